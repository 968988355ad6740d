"""
Install the half that needs no ROS: the library and the `vlaq` command (see setup.cfg).

The C++ kernels of the CPU are compiled on the way, from the list that vlaq_kernels.cmake reads as
well. Without a C++ compiler the rest is installed all the same, and says at run time what is
missing.
"""

import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path('vlaq_ros/kernels/native')
LIBRARY = 'vlaq_ros.kernels.libvlaq_kernels'
FLAGS = ['-std=c++17', '-O3', '-DNDEBUG', '-fPIC', '-pthread']
FLAGS += ['-ffp-contract=off', '-Wno-psabi']
FLAGS += ['-fvisibility=hidden', '-fvisibility-inlines-hidden']
PROCESSORS = {'amd64': 'x86_64', 'arm64': 'aarch64'}  # other names of the same


class BuildKernels(build_ext):
    """Compile a plain shared library: nothing in it belongs to one version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the name that `native_library` looks for, without the tag of this Python."""
        return f'{fullname.replace(".", "/")}.so'

    def build_extension(self, ext: Extension) -> None:
        """Compile and link, or say why not."""
        compiler = shlex.split(os.environ.get('CXX', 'c++'))
        try:
            self.compile_kernels(compiler, Path(self.get_ext_fullpath(ext.name)))
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(
                f'the kernels of the CPU are left out, quantized layers will be slow: {error}. '
                'With a C++ compiler (sudo apt install g++, or CXX=...) install again.'
            )

    def compile_kernels(self, compiler: list[str], target: Path) -> None:
        """Compile every source that this compiler can, then link them."""
        sources = [row for row in self.listed_sources() if knows(compiler, row[1])]
        macros = [f'-DVLAQ_HAVE_{path.stem.upper()}' for path, _ in sources]
        objects = [str(Path(self.build_temp) / f'{path.stem}.o') for path, _ in sources]
        more = shlex.split(os.environ.get('CXXFLAGS', ''))
        self.mkpath(self.build_temp)
        self.mkpath(str(target.parent))
        for (path, flags), made in zip(sources, objects):
            self.call([*compiler, *FLAGS, *more, *macros, *flags, '-c', str(path), '-o', made])
        self.call([*compiler, '-shared', '-pthread', *objects, '-o', str(target)])

    def call(self, command: list[str]) -> None:
        """Run a compiler command and show it, as setuptools does for its own."""
        self.announce(shlex.join(command), level=2)
        subprocess.run(command, check=True)

    def listed_sources(self) -> list[tuple[Path, list[str]]]:
        """Return (file, its own flags) of the sources for this processor."""
        machine = platform.machine().lower()
        processors = ('any', PROCESSORS.get(machine, machine))
        rows = [line.split() for line in (NATIVE / 'sources.txt').read_text().splitlines()]
        rows = [row for row in rows if row and not row[0].startswith('#')]
        return [(NATIVE / name, flags) for name, cpu, *flags in rows if cpu in processors]


def knows(compiler: list[str], flags: list[str]) -> bool:
    """Return whether a compiler takes all of these flags; an old one may not."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / 'empty.cpp'
        empty.touch()
        command = [*compiler, *flags, '-c', str(empty), '-o', f'{folder}/empty.o']
        done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


setup(ext_modules=[Extension(LIBRARY, [])], cmdclass={'build_ext': BuildKernels})
