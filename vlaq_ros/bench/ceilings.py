"""
What the processor can do at best, measured beside the kernels: reading memory, multiply-adds.

The loops are in the kernel library (`kernels/native/ceilings.cpp`) and use the instructions that
the kernels use. Where it has none, or is missing, NumPy and torch take their place; they stay
below the truth, and the source of the figures says so.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from vlaq_ros.bench.stopwatch import Case, Effort, Timing, measure
from vlaq_ros.errors import MissingDependencyError
from vlaq_ros.kernels import native_library

KINDS = ('fp32', 'bf16', 'int8')  # in the order of the numbers in ceilings.cpp
READ_BYTES = 32 << 20  # of one thread in one call
BUFFER_BYTES = 256 << 20
ITERATIONS = 400_000  # 0.6 to 2 ms
FALLBACK_SIZE = 512
READ = 'ceiling: read'


@dataclass(frozen=True)
class Ceilings:
    """
    Rates of a number of threads together.

    Attributes:
        read_bytes_s: Bytes per second read in order from memory.
        operations_s: Kind ('fp32', 'bf16', 'int8') -> operations per second, a multiply-add being
            two; a kind without a unit of its own is missing.
        source: Who measured: the kernel library with its instructions, or the fallback.
    """

    read_bytes_s: float
    operations_s: dict[str, float]
    source: str

    def rate(self, kind: str) -> float:
        """Return the rate of a kind; that of fp32, which is always there, when it has no unit."""
        return self.operations_s.get(kind, self.operations_s['fp32'])


class CeilingCases:
    """The cases to put into a measurement, and the ceilings from their timings."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._work: dict[str, float] = {}
        try:
            self._library = _with_signatures(native_library.library())
            self.source = f'kernel library, {native_library.isa()}'
        except MissingDependencyError:
            self._library = None
            self.source = 'NumPy and torch: lower than the real ceiling, no kernel library'
        self._buffer = np.ones(BUFFER_BYTES, np.uint8)

    def cases(self) -> list[Case]:
        """Return one case for reading and one for every kind of arithmetic there is."""
        parts = BUFFER_BYTES // READ_BYTES
        turns = [
            [(turn * self.threads + worker) % parts for worker in range(self.threads)]
            for turn in range(parts)
        ]
        calls = [lambda turn=turn: self._together(self._read, turn) for turn in turns]
        self._work = {READ: float(READ_BYTES * self.threads)}
        cases = [Case(READ, calls)]
        for number, kind in enumerate(KINDS):
            operations = self._compute(number)
            if operations:
                name = _case_name(kind)
                self._work[name] = operations * self.threads
                numbers = [number] * self.threads
                cases.append(Case(name, [lambda n=numbers: self._together(self._compute, n)]))
        return cases

    def ceilings(self, timings: dict[str, Timing]) -> Ceilings:
        """Return the ceilings of a measurement that `cases` took part in."""
        rates = {
            kind: self._work[_case_name(kind)] / timings[_case_name(kind)].seconds
            for kind in KINDS
            if _case_name(kind) in self._work
        }
        return Ceilings(self._work[READ] / timings[READ].seconds, rates, self.source)

    def _together(self, function, arguments) -> None:
        """Call once per thread; ctypes and NumPy let other threads run."""
        if self.threads == 1:
            function(arguments[0])
        else:
            list(self._pool.map(function, arguments))

    def _read(self, part: int) -> None:
        piece = self._buffer[part * READ_BYTES : (part + 1) * READ_BYTES]
        if self._library:
            self._library.vlaq_ceiling_read(piece.ctypes.data, READ_BYTES)
        else:
            piece.view(np.int64).max()

    def _compute(self, number: int) -> float:
        """Do the arithmetic of a kind and return how many operations that was; 0 without unit."""
        if self._library:
            operations = self._library.vlaq_ceiling_run(number, ITERATIONS)
            if operations or number:
                return operations
        dtypes = {'fp32': torch.float32, 'bf16': torch.bfloat16}
        if KINDS[number] not in dtypes:
            return 0.0
        square = torch.ones(FALLBACK_SIZE, FALLBACK_SIZE, dtype=dtypes[KINDS[number]])
        square @ square
        return 2.0 * FALLBACK_SIZE**3


def is_ceiling(name: str) -> bool:
    """Return whether a timing belongs to `CeilingCases`."""
    return name.startswith('ceiling: ')


def measure_ceilings(threads: int, effort: Effort) -> Ceilings:
    """Measure the ceilings by themselves."""
    cases = CeilingCases(threads)
    return cases.ceilings(measure(cases.cases(), threads, effort))


def _case_name(kind: str) -> str:
    return f'ceiling: {kind}'


def _with_signatures(library: ctypes.CDLL) -> ctypes.CDLL:
    library.vlaq_ceiling_read.restype = ctypes.c_int64
    library.vlaq_ceiling_read.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.vlaq_ceiling_run.restype = ctypes.c_double
    library.vlaq_ceiling_run.argtypes = (ctypes.c_int, ctypes.c_int64)
    return library
