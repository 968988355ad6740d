"""
Memory for the stores of a model: side by side, in pages of 2 MiB where the system has them.

A call for few tokens reads a store from memory once. With pages of 4 KiB a good part of that time
goes into finding them, and most layers are smaller than a huge page or end in the middle of one.
So stores share regions of memory. Each is a tensor with a storage of its own: copying or pickling
it takes its own bytes alone, and when it dies its pages go back to the system.

Nothing is resident that no store has written: what is not a whole huge page stays in small ones.
"""

import ctypes
import mmap
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
REGION_BYTES = 64 << 20  # address space; a store of more than a quarter has a region to itself
ALIGNMENT = 64  # of a store, as the kernels want it
SMALL, HUGE = 15, 14  # MADV_NOHUGEPAGE, MADV_HUGEPAGE
COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1: make a huge page of small ones now

_lock = threading.Lock()
_shared: list['_Region'] = []  # the one that stores are added to, once there is one


def filled_store(size: int, fill: Callable[[int], None]) -> Tensor:
    """
    Return a uint8 tensor of `size` bytes, aligned to 64, after `fill(address)` has written it.

    What `fill` raises comes through, and the memory is free again.
    """
    region, begin = _take(_aligned(size))
    store = region.tensor(begin, size)
    whole = range(begin // HUGE_PAGE * HUGE_PAGE, (begin + size) // HUGE_PAGE * HUGE_PAGE)
    region.advise(HUGE, whole)
    fill(store.data_ptr())
    if begin % HUGE_PAGE:  # the first page already held the end of another store
        region.advise(COLLAPSE, whole[:HUGE_PAGE])
    return store


def _take(size: int) -> tuple['_Region', int]:
    """Return where `size` bytes are free."""
    if size > REGION_BYTES // 4:
        return _Region(size), 0
    with _lock:
        begin = _shared[0].take(size) if _shared else None
        if begin is None:
            _shared[:] = [_Region(REGION_BYTES)]
            begin = _shared[0].take(size)
        return _shared[0], begin


class _Region:
    """One mapping of the process; offsets count from its first whole huge page."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, size + HUGE_PAGE, flags=flags)
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(self._map))
        self._first = -address % HUGE_PAGE
        self._size, self._taken = size, 0
        self._dead: dict[int, int] = {}  # end -> begin of stores below `_taken`
        self.advise(SMALL, range(size))  # some systems give huge pages without being asked

    def take(self, size: int) -> int | None:
        """Return the offset of the next `size` bytes; None when they do not fit."""
        while self._taken in self._dead:
            self._taken = self._dead.pop(self._taken)
        begin = self._taken
        if begin + size > self._size:
            return None
        self._taken = begin + size
        return begin

    def tensor(self, begin: int, size: int) -> Tensor:
        """Return a tensor whose storage is these bytes; they are free again when it dies."""
        owner = (ctypes.c_ubyte * size).from_buffer(self._map, self._first + begin)
        weakref.finalize(owner, self._free, begin, size).atexit = False
        return torch.frombuffer(owner, dtype=torch.uint8)

    def advise(self, advice: int, where: range) -> None:
        """Tell the system about these bytes; it may not know the advice."""
        if where:
            with suppress(OSError):
                self._map.madvise(advice, self._first + where.start, len(where))

    def _free(self, begin: int, size: int) -> None:
        # Comes with the last reference, so also in the middle of `take`.
        first, last = -(-begin // mmap.PAGESIZE), (begin + size) // mmap.PAGESIZE
        self.advise(mmap.MADV_DONTNEED, range(first * mmap.PAGESIZE, last * mmap.PAGESIZE))
        self._dead[begin + _aligned(size)] = begin


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
