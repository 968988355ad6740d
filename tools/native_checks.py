#!/usr/bin/env python3
"""
Check the C++ kernels by themselves: plainly, under sanitizers, and for Arm under emulation.

    tools/native_checks.py                 all of them that this machine can run
    tools/native_checks.py address thread  some

    plain     as they are shipped
    address   AddressSanitizer
    undefined UndefinedBehaviorSanitizer
    thread    ThreadSanitizer
    aarch64   cross-compiled, run by qemu (apt install g++-aarch64-linux-gnu qemu-user)

Each is built in build/native_checks/ with CMake and runs test/native/check_kernels.cpp, which
compares every set of instructions with a double loop. Needs neither torch nor ROS.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / 'test' / 'native'
BUILD = ROOT / 'build' / 'native_checks'

ARM = 'aarch64-linux-gnu'
# name -> (options of CMake, programs it needs, what runs the check)
CHECKS = {
    'plain': ([], [], []),
    'address': (['-DVLAQ_SANITIZE=address', '-DVLAQ_OPTIMIZATION=-O1'], [], []),
    'undefined': (['-DVLAQ_SANITIZE=undefined', '-DVLAQ_OPTIMIZATION=-O1'], [], []),
    'thread': (['-DVLAQ_SANITIZE=thread', '-DVLAQ_OPTIMIZATION=-O1'], [], []),
    'aarch64': (
        [
            '-DCMAKE_SYSTEM_NAME=Linux',
            '-DCMAKE_SYSTEM_PROCESSOR=aarch64',
            f'-DCMAKE_CXX_COMPILER={ARM}-g++',
        ],
        [f'{ARM}-g++', 'qemu-aarch64'],
        ['qemu-aarch64', '-cpu', 'max', '-L', f'/usr/{ARM}'],
    ),
}


def main() -> int:
    """Run the checks asked for; return 1 when one fails."""
    parser = argparse.ArgumentParser(description='Check the C++ kernels by themselves.')
    parser.add_argument('checks', nargs='*', metavar='CHECK', help=', '.join(CHECKS))
    parser.add_argument('--jobs', default=str(os.cpu_count()), help='compilers at once')
    options = parser.parse_args()
    unknown = [name for name in options.checks if name not in CHECKS]
    if unknown:
        parser.error(f'no check named {", ".join(unknown)}. Known: {", ".join(CHECKS)}')
    failed = []
    for name in options.checks or CHECKS:
        lacking = missing(name)
        if lacking and not options.checks:
            print(f'{name}: left out, this machine has no {", ".join(lacking)}', flush=True)
            continue
        print(f'{name}:', flush=True)
        if not check(name, options.jobs):
            failed.append(name)
    print(f'failed: {", ".join(failed)}' if failed else 'all passed')
    return int(bool(failed))


def missing(name: str) -> list[str]:
    """Return the programs that a check needs and this machine does not have."""
    return [program for program in ('cmake', *CHECKS[name][1]) if not shutil.which(program)]


def check(name: str, jobs: str) -> bool:
    """Build and run one check; return whether it passed."""
    cmake, _, runner = CHECKS[name]
    folder = BUILD / name
    commands = (
        ['cmake', '-S', str(SOURCE), '-B', str(folder), '-DCMAKE_BUILD_TYPE=Release', *cmake],
        ['cmake', '--build', str(folder), '--parallel', jobs],
    )
    for command in commands:
        done = subprocess.run(
            command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode != 0:
            print(done.stdout, flush=True)
            return False
    # Sanitizers give up at the first finding; a leak counts as one.
    return subprocess.run([*runner, str(folder / 'check_kernels')], check=False).returncode == 0


if __name__ == '__main__':
    sys.exit(main())
