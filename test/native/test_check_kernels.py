"""
The check of the C++ kernels by themselves, in the forms that fit into a test run.

`tools/native_checks.py` has the others, which compile the kernels again under sanitizers.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlaq_ros.kernels import native_library

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / 'tools' / 'native_checks.py'
CROSS_TOOLS = ('cmake', 'aarch64-linux-gnu-g++', 'qemu-aarch64')
missing_tools = [program for program in CROSS_TOOLS if not shutil.which(program)]


@pytest.mark.skipif(native_library.problem() != '', reason='the library is not built')
@pytest.mark.skipif(not shutil.which('c++'), reason='no C++ compiler')
def test_the_library_in_use_agrees_with_a_double_loop(tmp_path):
    library = Path(native_library.library()._name)
    program = tmp_path / 'check_kernels'
    command = ['c++', '-std=c++17', '-O1', '-pthread', '-o', str(program)]
    command += [
        f'-I{ROOT}/vlaq_ros/kernels/native',
        str(Path(__file__).parent / 'check_kernels.cpp'),
    ]
    command += [str(library), f'-Wl,-rpath,{library.parent}']
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f'{isa} ok' for isa in native_library.available_isas()]
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(missing_tools), reason=f'not installed: {", ".join(missing_tools)}')
@pytest.mark.skipif('VLAQ_TEST_NEON' not in os.environ, reason='minutes long: set VLAQ_TEST_NEON')
def test_the_arm_kernels_agree_with_a_double_loop_under_emulation():
    done = subprocess.run(
        [sys.executable, TOOL, 'aarch64'], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'neon ok' in done.stdout.splitlines()


def test_an_unknown_check_lists_the_known_ones():
    command = [sys.executable, TOOL, 'memory']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    known = 'plain, address, undefined, thread, aarch64'
    assert f'no check named memory. Known: {known}' in done.stderr
