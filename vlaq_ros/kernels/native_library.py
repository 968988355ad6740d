"""
Find and load libvlaq_kernels.so, the C++ kernels of the CPU, and speak its C interface.

The library is built with the package (CMakeLists.txt, setup.py) and lies in this folder; in a
checkout with a colcon build it lies in the same folder of the install space. Where it is missing
everything still runs, on the slower `reference` kernel, and `problem()` says what to do about it.

Two environment variables are read when it is loaded:

    VLAQ_ISA           instructions to use, one of `available_isas()`; the best by default
    VLAQ_PIN_WORKERS   processors for the worker threads, such as 2,3 or 4-7; anywhere by default

Loading needs neither torch nor ROS. The number of threads is not set here: every call says how
many may take part.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from vlaq_ros.errors import ConfigError, MissingDependencyError

FILE_NAME = 'libvlaq_kernels.so'
ABI_VERSION = 1
REMEDY = (
    'install a C++ compiler (sudo apt install g++) and build again: `make build` or colcon in a '
    'checkout, `pip install --force-reinstall --no-deps .` otherwise'
)


class Layout(ctypes.Structure):
    """`vlaq_layout`: the sizes of one layer."""

    _fields_ = [  # noqa: RUF012
        (name, c_int32)
        for name in (
            'in_features',
            'out_features',
            'group_size',
            'rows16',
            'rows8',
            'rows4',
            'rows2',
        )
    ]


class Rows(ctypes.Structure):
    """`vlaq_rows`: where the row-major parts of one layer lie; null when a class has no rows."""

    _fields_ = [  # noqa: RUF012
        ('order', c_void_p),
        ('values16', c_void_p),
        ('codes8', c_void_p),
        ('codes4', c_void_p),
        ('codes2', c_void_p),
        ('scale', c_void_p),
    ]


# name -> (type of the result, types of the arguments), as in vlaq_kernels.h
SIGNATURES = {
    'vlaq_abi_version': (c_int, ()),
    'vlaq_error_text': (c_char_p, (c_int,)),
    'vlaq_store_bytes': (c_int64, (POINTER(Layout),)),
    'vlaq_pack': (c_int, (POINTER(Layout), POINTER(Rows), c_void_p)),
    'vlaq_unpack': (c_int, (c_void_p, POINTER(Layout), POINTER(Rows))),
    'vlaq_linear': (
        c_int,
        (
            *(c_void_p, c_int, c_void_p, c_int64, c_int64),  # store, dtype, x, stride, tokens
            *(c_void_p, c_void_p, c_int64),  # bias, y, stride
            *(c_int, c_int, c_int),  # cap, activation bits, threads
        ),
    ),
    'vlaq_isa': (c_char_p, ()),
    'vlaq_set_isa': (c_int, (c_char_p,)),
    'vlaq_available_isas': (c_char_p, ()),
    'vlaq_pin_workers': (c_int, (POINTER(c_int32), c_int)),
}


@cache
def library() -> ctypes.CDLL:
    """
    Return the loaded library, ready to be called.

    Raises:
        MissingDependencyError: There is none, or none that fits; says what to do.
        ConfigError: VLAQ_ISA or VLAQ_PIN_WORKERS cannot be obeyed.
    """
    loaded = _load(_candidates())
    if wanted := os.environ.get('VLAQ_ISA'):
        _set_isa(loaded, wanted, 'VLAQ_ISA')
    if cpus := os.environ.get('VLAQ_PIN_WORKERS'):
        _pin_workers(loaded, parse_cpus(cpus))
    return loaded


def problem() -> str:
    """
    Return why the library cannot be used here and what to do about it; '' when it can.

    Raises:
        ConfigError: As `library`: what the user asked for by name is not silently left out.
    """
    try:
        library()
    except MissingDependencyError as error:
        return str(error)
    return ''


def describe() -> str:
    """Return the file, its version and the instructions, in one line; raises as `library`."""
    path = library()._name
    return f'{isa()} of {", ".join(available_isas())}; interface {ABI_VERSION}, {path}'


def isa() -> str:
    """Return the name of the instructions that the kernels use."""
    return library().vlaq_isa().decode()


def available_isas() -> tuple[str, ...]:
    """Return what this processor and this build can run, best first."""
    return _available(library())


def set_isa(name: str) -> None:
    """
    Use other instructions from the next call on; for tests and comparisons.

    Raises:
        ConfigError: This processor or this build does not have them.
    """
    _set_isa(library(), name, 'isa')


def pin_workers(cpus: Sequence[int]) -> None:
    """
    Let worker thread i run on processor cpus[i] alone; an empty list frees them.

    The thread that calls is not pinned: it belongs to the caller.

    Raises:
        ConfigError: A processor that this process may not use.
    """
    _pin_workers(library(), cpus)


def parse_cpus(text: str) -> list[int]:
    """
    Return the numbers in a list such as 2,3 or 4-7.

    Raises:
        ConfigError: Something in it is neither a number nor a range.
    """
    cpus = []
    for part in text.split(','):
        first, dash, last = part.strip().partition('-')
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(
                f'VLAQ_PIN_WORKERS={text!r}: {part!r} is neither a number nor a range; '
                'list processors as in 2,3 or 4-7'
            )
        cpus.extend(range(int(first), int(last if dash else first) + 1))
    return cpus


def error_text(status: int) -> str:
    """Return what a negative or positive status of the library means."""
    return library().vlaq_error_text(abs(status)).decode()


def _candidates() -> list[Path]:
    """Return the library files of all parts of the package, the newest build first."""
    folders = sys.modules[__name__.partition('.')[0]].__path__
    paths = [Path(folder) / 'kernels' / FILE_NAME for folder in folders]
    return sorted(
        (path for path in paths if path.is_file()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )


def _load(paths: Sequence[Path]) -> ctypes.CDLL:
    if not paths:
        raise MissingDependencyError(f'{FILE_NAME} has not been built: {REMEDY}')
    faults = []
    for path in paths:
        try:
            loaded = ctypes.CDLL(str(path))
            _declare(loaded, path)
        except (OSError, AttributeError, MissingDependencyError) as error:
            faults.append(str(error))
        else:
            return loaded
    raise MissingDependencyError('; '.join((*faults, REMEDY)))


def _declare(loaded: ctypes.CDLL, path: Path) -> None:
    """Set the types of all functions; refuse another version before anything else is called."""
    version = loaded.vlaq_abi_version()
    if version != ABI_VERSION:
        raise MissingDependencyError(
            f'{path} has interface version {version}, this package needs {ABI_VERSION}'
        )
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments


def _available(loaded: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(loaded.vlaq_available_isas().decode().split(','))


def _set_isa(loaded: ctypes.CDLL, name: str, source: str) -> None:
    if loaded.vlaq_set_isa(name.encode()) != 0:
        raise ConfigError(
            f'{source}={name!r} cannot run here; this processor and this build have: '
            f'{", ".join(_available(loaded))}'
        )


def _pin_workers(loaded: ctypes.CDLL, cpus: Sequence[int]) -> None:
    allowed = os.sched_getaffinity(0)
    if unusable := [cpu for cpu in cpus if cpu not in allowed]:
        raise ConfigError(
            f'processors {_listed(unusable)} cannot be used for worker threads; '
            f'this process may run on {_listed(sorted(allowed))}'
        )
    status = loaded.vlaq_pin_workers((c_int32 * len(cpus))(*cpus), len(cpus))
    if status != 0:
        raise ConfigError(f'workers cannot be pinned to processors {_listed(cpus)}')


def _listed(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))
