"""The package as others receive it: metadata that agrees, complete wheels, a quick command."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMPORT_NAMES = {
    'mcap-ros2-support': 'mcap_ros2',
    'opencv-python': 'cv2',
    'pillow': 'PIL',
    'pyyaml': 'yaml',
}
# used where installed
OPTIONAL = {'control_msgs', 'cv_bridge', 'onnx', 'onnxruntime', 'openvino', 'triton'}
NOT_FOR_MAKE = {'bench', 'gpu'}  # extras: rivals of `vlaq bench`, and what needs a CUDA device
PACKAGE_FILES = ('vlaq_ros', 'setup.py', 'setup.cfg', 'pyproject.toml', 'LICENSE')


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    return parser


def package_xml():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def requirement_names(text):
    lines = (line.partition('#')[0].partition(';')[0].strip() for line in text.splitlines())
    return {re.split(r'[\[<>=!~ ]', line)[0] for line in lines if line}


def canonical(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def test_the_versions_agree():
    version = setup_cfg()['metadata']['version']
    assert package_xml().findtext('version') == version
    assert re.search(
        rf'^{re.escape(version)} \(', (ROOT / 'CHANGELOG.rst').read_text(), re.MULTILINE
    )


def test_make_installs_what_pip_installs():
    config = setup_cfg()
    extras = '\n'.join(
        packages
        for name, packages in config['options.extras_require'].items()
        if name not in NOT_FOR_MAKE
    )
    wanted = requirement_names(config['options']['install_requires'] + '\n' + extras)
    assert wanted == requirement_names((ROOT / 'requirements.txt').read_text())


def test_everything_that_make_installs_is_pinned():
    pinned = {
        canonical(name) for name in requirement_names((ROOT / 'constraints.txt').read_text())
    }
    for name in ('requirements.txt', 'requirements-ros.txt'):
        wanted = {canonical(n) for n in requirement_names((ROOT / name).read_text())}
        assert wanted <= pinned


def imported_roots(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition('.')[0]


@pytest.mark.parametrize('folder', ['vlaq_ros', 'launch'])
def test_every_package_that_is_imported_is_declared(folder):
    known = {*sys.stdlib_module_names, *OPTIONAL, 'vlaq_ros'}
    known |= {element.text for element in package_xml()}
    requirements = requirement_names((ROOT / 'requirements.txt').read_text())
    known |= {IMPORT_NAMES.get(name, name) for name in requirements}
    used = {root: path for path in (ROOT / folder).rglob('*.py') for root in imported_roots(path)}
    assert {root: str(path) for root, path in used.items() if root not in known} == {}


def test_node_executables_are_executable_and_name_a_function_that_exists():
    for path in sorted((ROOT / 'scripts').iterdir()):
        text = path.read_text()
        assert os.access(path, os.X_OK), path
        assert text.startswith('#!/usr/bin/env python3\n')  # the Python of the active environment
        module = re.search(r'^from (\S+) import main$', text, re.MULTILINE)[1]
        source = (ROOT / (module.replace('.', '/') + '.py')).read_text()
        assert re.search(r'^def main\(', source, re.MULTILINE), module


def build_wheel(folder, **environment):
    """Build the wheel from a copy: setuptools writes into the folder it builds."""
    pytest.importorskip('setuptools', minversion='70.1')  # the first that makes wheels by itself
    copy = folder / 'source'
    copy.mkdir()
    for name in PACKAGE_FILES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(
                path, copy / name, ignore=shutil.ignore_patterns('__pycache__', '*.so')
            )
        else:
            shutil.copy(path, copy)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '--quiet']
    options = ['--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir', str(folder)]
    subprocess.run([*pip, *options, str(copy)], check=True, env={**os.environ, **environment})
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel as it is made where there is no C++ compiler."""
    return build_wheel(tmp_path_factory.mktemp('wheel'), CXX='no-such-compiler')


def test_the_wheel_holds_every_file_of_the_package(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'vlaq_ros').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts and path.suffix != '.so'
    }
    assert packed == source


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which('c++'), reason='no C++ compiler')
def test_a_wheel_made_with_a_compiler_has_kernels_that_load(tmp_path):
    """Without optimization, to be quick: what is tested is that all of it is there."""
    path = build_wheel(tmp_path, CXX='c++', CXXFLAGS='-O0')
    installed = tmp_path / 'installed'
    zipfile.ZipFile(path).extractall(installed)
    code = 'from vlaq_ros.kernels import native_library; print(native_library.describe())'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(installed) in done.stdout, done.stderr
    assert 'portable' in done.stdout


def test_what_pip_and_colcon_compile_is_one_list():
    native = ROOT / 'vlaq_ros' / 'kernels' / 'native'
    lines = (native / 'sources.txt').read_text().splitlines()
    listed = {line.split()[0] for line in lines if line and not line.startswith('#')}
    assert listed == {path.name for path in native.glob('*.cpp')}
    for path in (native / 'vlaq_kernels.cmake', ROOT / 'setup.py'):
        assert '-ffp-contract=off' in path.read_text()  # the one flag that changes results


def test_the_command_works_from_the_wheel_without_ros_and_without_torch(wheel, tmp_path):
    """The command must answer in an environment where nothing else is installed."""
    venv.create(tmp_path / 'venv', with_pip=False, symlinks=True)
    python = tmp_path / 'venv' / 'bin' / 'python3'
    code = f"""
import sys
sys.path.insert(0, {str(wheel)!r})
from vlaq_ros.cli import main
sys.exit(main(['demo'] if sys.argv[1:] == ['demo'] else []))
"""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    help_text = subprocess.run(
        [python, '-c', code], capture_output=True, text=True, env=environment, check=False
    )
    assert help_text.returncode == 2
    assert 'doctor' in help_text.stdout
    assert help_text.stderr == ''
    demo = subprocess.run(
        [python, '-c', code, 'demo'], capture_output=True, text=True, env=environment, check=False
    )
    assert demo.returncode == 2
    assert 'Traceback' not in demo.stderr


def installed_prefix():
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    found = [Path(p) for p in prefixes if (Path(p) / 'share/vlaq_ros/package.xml').is_file()]
    return found[0] if found else None


@pytest.mark.ros
@pytest.mark.skipif(installed_prefix() is None, reason='the package is not built: make setup')
class TestBuiltPackage:
    """What colcon installed and `ros2 launch`, `ros2 run` look for."""

    def test_launch_files_and_parameters_are_in_share(self):
        for folder in ('launch', 'config'):
            source = {p.name for p in (ROOT / folder).iterdir() if p.name != '__pycache__'}
            built = {p.name for p in (installed_prefix() / 'share/vlaq_ros' / folder).iterdir()}
            assert source <= built

    def test_executables_are_in_lib(self):
        built = {p.name for p in (installed_prefix() / 'lib/vlaq_ros').iterdir()}
        assert {'policy_node', 'sim_node'} <= built

    def test_the_package_is_in_the_index(self):
        index = installed_prefix() / 'share/ament_index/resource_index'
        assert (index / 'packages/vlaq_ros').is_file()
        assert (index / 'rosidl_interfaces/vlaq_ros').is_file()

    def test_the_installed_half_is_complete_without_the_source_tree(self):
        code = 'import vlaq_ros, vlaq_ros.types, vlaq_ros.msg; print(*vlaq_ros.__path__)'
        paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
        without = os.pathsep.join(p for p in paths if Path(p).resolve() != ROOT)
        done = subprocess.run(
            [sys.executable, '-c', code],
            cwd=installed_prefix(),
            env={**os.environ, 'PYTHONPATH': without},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert str(ROOT / 'vlaq_ros') not in done.stdout.split()
        installed = Path(done.stdout.split()[0])
        source = {
            p.relative_to(ROOT / 'vlaq_ros')
            for p in (ROOT / 'vlaq_ros').rglob('*')
            if p.is_file() and '__pycache__' not in p.parts and p.suffix != '.so'
        }
        assert {path for path in source if not (installed / path).is_file()} == set()

    def test_the_kernels_of_the_cpu_are_built_and_load(self):
        code = 'from vlaq_ros.kernels import native_library; print(native_library.describe())'
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert str(installed_prefix()) in done.stdout

    def test_both_halves_import_when_the_source_tree_comes_first(self):
        code = 'import vlaq_ros, vlaq_ros.types, vlaq_ros.msg; print(vlaq_ros.types.__file__)'
        done = subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(ROOT / 'vlaq_ros' / 'types.py')
