"""Memory as the system counts it, each time in a process in which nothing else lives."""

import subprocess
import sys
import textwrap

import pytest

from vlaq_ros.bench import resident

MEBIBYTE = 2**20

pytestmark = pytest.mark.skipif(
    not resident.SMAPS.is_file(), reason='needs /proc/self/smaps_rollup of Linux'
)


def printed_mebibytes(program: str) -> list[float]:
    """Return the sizes that a fresh interpreter prints; in this one earlier tests left memory."""
    imports = 'import numpy as np\nfrom vlaq_ros.bench.resident import *\n'
    ran = subprocess.run(
        [sys.executable, '-c', imports + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return [int(size) / MEBIBYTE for size in ran.stdout.split()]


def test_touched_memory_is_resident_until_it_is_dropped():
    held, left = printed_mebibytes("""
        before = resident_bytes()
        kept = np.ones(64 * 2**20, np.uint8)
        print(resident_bytes() - before)
        del kept
        print(resident_bytes() - before)
    """)
    assert held == pytest.approx(64, abs=4)
    assert left < 8


def test_memory_that_nothing_touched_is_not_resident():
    (held,) = printed_mebibytes("""
        before = resident_bytes()
        kept = np.empty(64 * 2**20, np.uint8)
        print(resident_bytes() - before)
    """)
    assert held < 8


def test_the_peak_remembers_what_is_gone_and_can_be_set_back():
    reached, after = printed_mebibytes("""
        reset_peak()
        before = current_bytes()
        np.ones(96 * 2**20, np.uint8)
        print(peak_bytes() - before)
        reset_peak()
        print(peak_bytes() - before)
    """)
    assert reached > 80
    assert after < 48
