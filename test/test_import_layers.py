"""
Who may import whom (kept true here), and what nobody imports.

Read from the source with `ast`, so that imports inside functions count too.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'vlaq_ros'
MODULES = sorted(path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py')

BASE = {'errors', 'types'}
NUMERIC = {*BASE, 'control', 'kinematics', 'data'}
MODELS = {*NUMERIC, 'quant', 'kernels', 'nn', 'policies'}
MAY_IMPORT = {
    'errors': set(),
    'types': {'errors'},
    'quant': {'errors'},
    'kinematics': BASE,
    'control': BASE,
    'data': BASE,
    'kernels': {'errors', 'quant'},
    'nn': {'errors', 'quant', 'kernels'},
    'policies': {*NUMERIC, 'quant', 'kernels', 'nn'},
    'calibration': MODELS,
    'sim': {*NUMERIC, 'nn', 'policies'},
    'analysis': {*MODELS, 'calibration', 'sim'},
    'ros': {*NUMERIC, 'policies', 'calibration', 'sim'},
    'bench': {*MODELS, 'calibration', 'sim'},
    'doctor': {'errors'},
    'cli': {'errors'},
}
TORCH_FREE = {'errors', 'types', 'kinematics', 'control', 'data', 'ros', 'doctor', 'cli'}
TORCH_FREE_FILES = {'policies/base.py', 'policies/drift_monitor.py', 'policies/spec.py'}

ROS_ROOTS = {
    'ament_index_python',
    'cv_bridge',
    'launch',
    'launch_ros',
    'rclpy',
    'rosbag2_py',
    'rosidl_runtime_py',
    'tf2_ros',
}
ROS_SUFFIXES = ('_msgs', '_srvs', '_interfaces')

# torchvision and timm: their operators are not needed and break with other builds of torch.
# The rest: checkpoints are never unpickled, and nothing here listens on or opens a connection.
NEVER = {
    'cloudpickle',
    'dill',
    'http',
    'joblib',
    'marshal',
    'pickle',
    'requests',
    'shelve',
    'socket',
    'socketserver',
    'timm',
    'torchvision',
    'urllib',
}
EXCEPTIONS = {'ros/bringup.py': {'socket'}}  # binds a DDS port for a moment to see that it is free


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path.name}:{node.lineno}: use an absolute import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def is_ros(root):
    return root in ROS_ROOTS or root.endswith(ROS_SUFFIXES)


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_module_imports_only_what_its_part_may(path):
    part = part_of(path)
    allowed = MAY_IMPORT[part] | {part}
    if name_of(path) == 'ros/interfaces.py':
        allowed = allowed | {'msg', 'srv'}
    for name in imported_names(path):
        root, *rest = name.split('.')
        if root == 'vlaq_ros':
            assert rest[0] in allowed, f'{part} may not import {name}'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_only_the_ros_part_imports_ros(path):
    found = {name for name in imported_names(path) if is_ros(name.split('.')[0])}
    assert not found or part_of(path) == 'ros', f'{part_of(path)} may not import {found}'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_torch_stays_where_tensors_are(path):
    roots = {name.split('.')[0] for name in imported_names(path)}
    if part_of(path) in TORCH_FREE or name_of(path) in TORCH_FREE_FILES:
        assert not roots & {'torch', 'transformers', 'safetensors'}


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_nobody_imports_what_is_forbidden(path):
    roots = {name.split('.')[0] for name in imported_names(path)}
    assert not roots & NEVER - EXCEPTIONS.get(name_of(path), set())


def test_no_part_shadows_the_generated_half():
    assert not {'msg', 'srv', 'action'} & {part_of(path) for path in MODULES}


def test_importing_the_numeric_half_loads_neither_torch_nor_ros():
    names = [
        'vlaq_ros.' + name_of(path).removesuffix('.py').removesuffix('/__init__').replace('/', '.')
        for path in MODULES
        if part_of(path) in {*NUMERIC, 'cli', 'doctor'} or name_of(path) in TORCH_FREE_FILES
    ]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(*sorted({{'torch', 'rclpy', 'mujoco'}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''
