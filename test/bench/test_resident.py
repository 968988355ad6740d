"""Memory as the system counts it."""

import numpy as np
import pytest

from vlaq_ros.bench import resident

MEBIBYTE = 2**20

pytestmark = pytest.mark.skipif(
    not resident.SMAPS.is_file(), reason='needs /proc/self/smaps_rollup of Linux'
)


def test_touched_memory_is_resident_until_it_is_dropped():
    before = resident.resident_bytes()
    kept = np.ones(64 * MEBIBYTE, np.uint8)
    assert resident.resident_bytes() - before == pytest.approx(kept.nbytes, abs=4 * MEBIBYTE)
    del kept
    assert resident.resident_bytes() - before < 8 * MEBIBYTE


def test_memory_that_nothing_touched_is_not_resident():
    before = resident.resident_bytes()
    kept = np.empty(64 * MEBIBYTE, np.uint8)
    assert resident.resident_bytes() - before < 8 * MEBIBYTE
    assert kept.nbytes == 64 * MEBIBYTE


def test_the_peak_remembers_what_is_gone_and_can_be_set_back():
    resident.reset_peak()
    before = resident.current_bytes()
    np.ones(96 * MEBIBYTE, np.uint8)
    assert resident.peak_bytes() - before > 80 * MEBIBYTE
    resident.reset_peak()
    assert resident.peak_bytes() - before < 48 * MEBIBYTE
