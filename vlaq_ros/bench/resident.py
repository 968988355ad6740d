"""
Memory of this process as the operating system counts it, not as tensors add up.

`VmHWM` is the peak of the resident set. It is set back where the system allows it, so that a peak
belongs to what came after.
"""

import ctypes
import gc
from pathlib import Path

SMAPS = Path('/proc/self/smaps_rollup')
STATUS = Path('/proc/self/status')
CLEAR_REFS = Path('/proc/self/clear_refs')
RESET_PEAK = '5'


def resident_bytes() -> int:
    """Return the private resident memory after giving unused memory back [bytes]."""
    give_back()
    fields = _fields(SMAPS)
    return fields['Private_Clean'] + fields['Private_Dirty']


def proportional_bytes() -> int:
    """Return resident memory with shared pages counted by their share (PSS) [bytes]."""
    return _fields(SMAPS)['Pss']


def reset_peak() -> None:
    """Let the peak start at what is resident now."""
    give_back()
    CLEAR_REFS.write_text(RESET_PEAK, encoding='utf-8')


def peak_bytes() -> int:
    """Return the largest resident set since `reset_peak` [bytes]."""
    return _fields(STATUS)['VmHWM']


def current_bytes() -> int:
    """Return the resident set, to compare with `peak_bytes` [bytes]."""
    return _fields(STATUS)['VmRSS']


def give_back() -> None:
    """Return freed memory to the system, as far as the allocator can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _fields(path: Path) -> dict[str, int]:
    """Return the lines `Name:  123 kB` as bytes."""
    found = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        name, _, value = line.partition(':')
        parts = value.split()
        if len(parts) == 2 and parts[1] == 'kB':
            found[name] = int(parts[0]) * 1024
    return found
