"""Stores share memory, yet are tensors of their own: none touches another, and none stays."""

import copy
import ctypes
import mmap
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vlaq_ros.kernels import store_memory
from vlaq_ros.kernels.store_memory import HUGE_PAGE, REGION_BYTES, filled_store

MIB = 1 << 20
SMAPS = Path('/proc/self/smaps')
needs_smaps = pytest.mark.skipif(not SMAPS.exists(), reason='needs /proc/self/smaps')


@pytest.fixture(autouse=True)
def fresh_region(monkeypatch):
    """Let no store of another test lie beside those of this one."""
    monkeypatch.setattr(store_memory, '_shared', [])


def filled(size, value):
    return filled_store(size, lambda address: ctypes.memset(address, value, size))


def resident_pages(begin, size):
    """Return how many pages of an address range are in memory."""
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(size), pages) == 0
    return sum(page & 1 for page in pages)


def huge_bytes(begin, end):
    """Return how much of an address range the system holds in huge pages."""
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if '-' in first and not first.endswith(':'):
            low, high = (int(part, 16) for part in first.split('-'))
            inside = low < end and begin < high
        elif inside and first == 'AnonHugePages:':
            total += int(line.split()[1]) * 1024
    return total


def can_be_huge(advice):
    """Return whether small pages become a huge one on this advice, or on advice before writing."""
    memory = mmap.mmap(-1, 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_ubyte.from_buffer(memory)
    address = ctypes.addressof(view)
    first = -address % HUGE_PAGE
    if advice == store_memory.COLLAPSE:
        memory[first] = 1
    try:
        memory.madvise(advice, first, HUGE_PAGE)
    except OSError:
        return False
    memory[first] = 1
    return huge_bytes(address, address + len(memory)) > 0


def test_stores_keep_their_values_while_others_come_and_go():
    rng, alive = random.Random(0), []
    for _ in range(1500):
        if alive and rng.random() < 0.5:
            store, value = alive.pop(rng.randrange(len(alive)))
            assert (store == value).all()
            del store
        else:
            size = rng.choice([1, 100, 5000, 300_000, HUGE_PAGE, 1_234_567, 20 * MIB])
            value = rng.randrange(256)
            alive.append((filled(size, value), value))
            assert alive[-1][0].data_ptr() % 64 == 0
            assert alive[-1][0].nbytes == size
    assert all((store == value).all() for store, value in alive)


def test_stores_of_several_threads_do_not_overlap():
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda n: filled(1000 * (n % 7 + 1), n % 256), range(800)))
    assert all((store == n % 256).all() for n, store in enumerate(stores))


def test_a_view_keeps_the_bytes_when_its_store_is_gone():
    view = filled(MIB, 7)[5:10]
    others = [filled(MIB, 9) for _ in range(3)]
    assert view.tolist() == [7] * 5
    del others


def test_nothing_is_resident_but_what_is_stored():
    size = 5 * HUGE_PAGE + 300_000
    stores = [filled(size, 1) for _ in range(3)]
    begin = stores[0].data_ptr()
    pages = -(-3 * size // mmap.PAGESIZE)
    assert resident_pages(begin, 4 * size) == pages
    del stores[1]
    assert pages // 3 * 2 <= resident_pages(begin, 4 * size) <= pages // 3 * 2 + 3
    stores.clear()
    assert resident_pages(begin, 4 * size) <= 4  # where one ended and the next began


@needs_smaps
def test_nothing_else_is_resident_where_huge_pages_come_unasked(monkeypatch):
    if not can_be_huge(store_memory.HUGE):
        pytest.skip('this system has no huge pages to give')

    class HugeMap(mmap.mmap):
        def __new__(cls, *args, **kwargs):
            made = super().__new__(cls, *args, **kwargs)
            made.madvise(store_memory.HUGE)
            return made

    monkeypatch.setattr(store_memory.mmap, 'mmap', HugeMap)
    store = filled(300_000, 1)
    assert resident_pages(store.data_ptr(), HUGE_PAGE) == -(-300_000 // mmap.PAGESIZE)


def test_the_memory_of_dead_stores_is_used_again():
    kept = filled(100, 1)
    first = filled(MIB, 1).data_ptr()
    assert {filled(MIB, 2).data_ptr() for _ in range(200)} == {first}
    assert kept.tolist() == [1] * 100


def test_a_store_larger_than_a_region_has_one_of_its_own():
    small = filled(100, 1)
    large = filled(REGION_BYTES + 5, 2)
    beside = filled(100, 3)
    assert beside.data_ptr() - small.data_ptr() == 128
    assert large[0] == large[-1] == 2


def test_what_writing_raises_comes_through_and_frees_the_memory():
    def fail(address):
        raise ValueError(address)

    with pytest.raises(ValueError, match=r'\d+') as caught:
        filled_store(1000, fail)
    address = int(str(caught.value))
    del caught
    assert filled(1000, 1).data_ptr() == address


def test_copies_hold_their_own_bytes_alone():
    store = [filled(1000, value) for value in (1, 2, 3)][1]
    for other in (copy.deepcopy(store), pickle.loads(pickle.dumps(store)), store.clone()):
        assert torch.equal(other, store)
        assert other.untyped_storage().nbytes() == 1000
        assert other.data_ptr() % 64 == 0


@needs_smaps
def test_a_large_store_lies_in_huge_pages():
    if not can_be_huge(store_memory.HUGE):
        pytest.skip('this system has no huge pages to give')
    store = filled(3 * HUGE_PAGE, 1)
    assert huge_bytes(store.data_ptr(), store.data_ptr() + store.nbytes) >= HUGE_PAGE


@needs_smaps
def test_small_stores_share_a_huge_page_as_soon_as_it_is_full():
    if not can_be_huge(store_memory.COLLAPSE):
        pytest.skip('this system cannot make a huge page of small ones')
    stores = [filled(HUGE_PAGE // 4, n) for n in range(4)]
    begin = stores[0].data_ptr()
    assert huge_bytes(begin, begin + HUGE_PAGE) == HUGE_PAGE
    assert all((store == n).all() for n, store in enumerate(stores))
    last = filled(HUGE_PAGE // 4, 9)
    assert huge_bytes(last.data_ptr(), last.data_ptr() + 1) == 0


def test_stores_that_live_until_the_end_end_quietly():
    code = (
        'import ctypes\n'
        'from vlaq_ros.kernels.store_memory import filled_store\n'
        'fill = lambda a: ctypes.memset(a, 1, 3 << 20)\n'
        'stores = [filled_store(3 << 20, fill) for _ in range(3)]\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stderr == ''
