"""What a reader needs to know about the machine and the software to judge a figure."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil

from vlaq_ros.sim.machine import cpu_name

PACKAGES = ('torch', 'numpy', 'transformers', 'onnxruntime', 'openvino', 'triton')
FLAGS = (
    'avx2',
    'avx_vnni',
    'avx512f',
    'avx512_vnni',
    'avx512_bf16',
    'avx512_fp16',
    'amx_int8',
    'amx_bf16',
    'asimddp',
    'i8mm',
    'sve',
)
GOVERNOR = Path('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor')
HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def describe_machine() -> dict[str, Any]:
    """Return processor, instructions, memory, governor, versions and load as plain values."""
    flags = _flags()
    return {
        'cpu': cpu_name(),
        'cores': len(os.sched_getaffinity(0)),
        'instructions': [flag for flag in FLAGS if flag in flags],
        'memory_gib': round(psutil.virtual_memory().total / 2**30, 1),
        'governor': _line(GOVERNOR) or 'not readable',
        'huge_pages': _line(HUGE_PAGES) or 'not readable',
        'load': round(os.getloadavg()[0], 2),
        'system': platform.platform(),
        'python': platform.python_version(),
        'versions': {name: _version(name) for name in PACKAGES if _version(name)},
        'command': ' '.join(['vlaq', *sys.argv[1:]]),
    }


def is_installed(package: str) -> bool:
    """Return whether a Python package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def _flags() -> set[str]:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return set()
    found = [line for line in lines if line.startswith(('flags', 'Features'))]
    return set(found[0].split(':', 1)[1].split()) if found else set()


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding='utf-8').strip()
    except OSError:
        return ''


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''
