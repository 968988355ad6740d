"""The set-up behind `make`: what it asks for, what it repairs, and when it does nothing."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / 'tools' / 'set_up.py'


@pytest.fixture
def set_up(tmp_path, monkeypatch):
    """The script, working in an empty project folder; no real command is run."""
    spec = importlib.util.spec_from_file_location('set_up', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ('ROOT', 'VENV', 'VENV_PYTHON', 'INCOMPLETE', 'INSTALLED', 'BUILT'):
        inside = getattr(module, name).relative_to(SCRIPT.parent.parent)
        monkeypatch.setattr(module, name, tmp_path / inside)
    monkeypatch.setattr(module, 'WHEEL_PYTHONS', range(8, 99))  # whatever runs the tests
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    for name in ('constraints.txt', 'requirements.txt', 'requirements-ros.txt'):
        (tmp_path / name).write_text('')
    for name in ('CMakeLists.txt', 'package.xml'):
        (tmp_path / name).write_text('')
    for name in ('vlaq_ros', 'msg', 'install'):
        (tmp_path / name).mkdir()
    (tmp_path / 'vlaq_ros' / 'types.py').write_text('')
    return module


class Steps:
    """Record the steps of a run instead of taking them; those in `fail` raise."""

    names = ('require_system_packages', 'make_venv', 'install', 'build')

    def __init__(self, set_up):
        self.taken = []
        self.fail = set()
        self._set_up = set_up

    def step(self, name):
        def take(*args):
            if name in self.fail:
                raise self._set_up.SetUpError(name)
            self.taken.append(name)
            self._set_up.VENV.mkdir(exist_ok=True)

        return take


@pytest.fixture
def steps(set_up, monkeypatch):
    steps = Steps(set_up)
    for name in Steps.names:
        monkeypatch.setattr(set_up, name, steps.step(name))
    return steps


def run(set_up, steps):
    steps.taken.clear()
    code = set_up.main()
    return code, list(steps.taken)


def test_a_second_run_does_nothing(set_up, steps):
    assert run(set_up, steps)[0] == 0
    assert run(set_up, steps) == (0, [])


def test_what_has_failed_is_done_again_and_what_was_done_is_not(set_up, steps):
    steps.fail.add('build')
    assert run(set_up, steps) == (1, ['require_system_packages', 'make_venv', 'install'])
    steps.fail.clear()
    assert run(set_up, steps) == (0, ['build'])


def test_an_edited_module_needs_no_build_and_a_new_one_does(set_up, steps):
    run(set_up, steps)
    (set_up.ROOT / 'vlaq_ros' / 'types.py').write_text('changed = True')
    assert run(set_up, steps) == (0, [])
    (set_up.ROOT / 'vlaq_ros' / 'errors.py').write_text('')
    assert run(set_up, steps) == (0, ['build'])


def test_a_changed_message_needs_a_build(set_up, steps):
    message = set_up.ROOT / 'msg' / 'Drift.msg'
    message.write_text('float64 drift')
    run(set_up, steps)
    message.write_text('float64 drift_m')
    assert run(set_up, steps) == (0, ['build'])


def test_a_changed_kernel_needs_a_build(set_up, steps):
    source = set_up.ROOT / 'vlaq_ros' / 'kernels' / 'native' / 'linear.cpp'
    source.parent.mkdir(parents=True)
    source.write_text('int before;')
    run(set_up, steps)
    source.write_text('int after;')
    assert run(set_up, steps) == (0, ['build'])


def test_a_library_built_in_the_source_tree_needs_no_build(set_up, steps):
    run(set_up, steps)
    (set_up.ROOT / 'vlaq_ros' / 'libvlaq_kernels.so').touch()
    assert run(set_up, steps) == (0, [])


def test_a_changed_constraint_installs_again(set_up, steps):
    run(set_up, steps)
    (set_up.ROOT / 'constraints.txt').write_text('numpy==2.4.6\n')
    assert 'install' in run(set_up, steps)[1]


def test_everything_missing_is_named_at_once(set_up, monkeypatch):
    monkeypatch.setattr(set_up.shutil, 'which', lambda *args, **kwargs: None)
    monkeypatch.setattr(set_up, 'shared_libraries', lambda: {'libc.so.6'})
    with pytest.raises(set_up.SetUpError) as caught:
        set_up.require_system_packages('')
    message = str(caught.value)
    assert message.startswith('missing: ')
    assert '\n' not in message
    for package in ('g++', 'make', 'libosmesa6', 'libgl1', 'libglib2.0-0'):
        assert package in message.partition('Install with: sudo apt install ')[2].split()


def test_one_renderer_is_enough(set_up, monkeypatch):
    libraries = {'libGL.so.1', 'libgthread-2.0.so.0', 'libEGL.so.1'}
    monkeypatch.setattr(set_up, 'shared_libraries', lambda: libraries)
    monkeypatch.setattr(set_up.shutil, 'which', lambda name, **kwargs: name)
    assert 'libosmesa6' not in dict(map(reversed, set_up.missing_from_system('')))


def test_an_installed_ros_is_told_from_our_own_build(set_up, monkeypatch, tmp_path_factory):
    ours = set_up.ROOT / 'install' / 'vlaq_ros'
    wheels = set_up.VENV
    ros, overlay = tmp_path_factory.mktemp('ros'), tmp_path_factory.mktemp('overlay')
    for prefix in (wheels, ros):
        (prefix / 'share' / 'rclpy').mkdir(parents=True)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{ours}:{wheels}')
    assert set_up.sourced_ros() == ''
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{ours}:{overlay}:{ros}')
    assert set_up.sourced_ros() == str(ros)


def test_the_wheels_name_the_include_folders_of_this_environment(set_up, monkeypatch):
    folder = set_up.VENV / 'share' / 'std_msgs' / 'cmake'
    folder.mkdir(parents=True)
    built = '/opt/python/cp312-cp312'
    text = '"{}/include/python3.12;{}/lib/python3.12/site-packages/numpy/_core/include;${{x}}"'
    (folder / 'Export.cmake').write_text(text.format(built, built))
    (folder / 'Other.cmake').write_text('untouched')
    answers = {'sysconfig': '/here/include', 'numpy': '/here/numpy/include'}
    monkeypatch.setattr(set_up, 'output_of', lambda python, module, expression: answers[module])
    for _ in range(2):
        set_up.repair_wheels()
        repaired = (folder / 'Export.cmake').read_text()
        assert repaired == '"/here/include;/here/numpy/include;${x}"'
    assert (folder / 'Other.cmake').read_text() == 'untouched'


def test_an_interrupted_environment_is_made_anew(set_up, monkeypatch):
    monkeypatch.setattr(set_up, 'run', lambda *args, **kwargs: None)
    monkeypatch.setattr(set_up, 'is_usable', lambda ros: True)
    set_up.VENV.mkdir()
    set_up.INCOMPLETE.touch()
    (set_up.VENV / 'half_a_package').touch()
    set_up.make_venv('')
    assert not (set_up.VENV / 'half_a_package').exists()
    assert set_up.INCOMPLETE.exists()


def test_a_complete_environment_is_kept(set_up, monkeypatch):
    monkeypatch.setattr(set_up, 'is_usable', lambda ros: True)
    set_up.VENV.mkdir()
    set_up.INSTALLED.write_text('before')
    (set_up.VENV / 'package').touch()
    set_up.make_venv('')
    assert (set_up.VENV / 'package').exists()


def test_an_environment_of_somebody_else_is_never_deleted(set_up):
    set_up.VENV.mkdir()
    (set_up.VENV / 'theirs').touch()
    with pytest.raises(set_up.SetUpError, match='was not made by make'):
        set_up.make_venv('')
    assert (set_up.VENV / 'theirs').exists()


def test_a_python_that_does_not_fit_is_named_with_those_that_do(set_up, monkeypatch):
    monkeypatch.setattr(set_up, 'WHEEL_PYTHONS', range(5, 7))
    with pytest.raises(set_up.SetUpError, match=r'use 3\.5 to 3\.6'):
        set_up.make_venv('')
    assert not set_up.VENV.exists()


def test_versions_that_ros_relies_on_are_left_to_the_system(set_up, monkeypatch):
    set_up.VENV.mkdir()
    (set_up.ROOT / 'constraints.txt').write_text('numpy==2.4.6\npytest==9.2.0\ntorch==2.13.0\n')
    (set_up.ROOT / 'requirements.txt').write_text('opencv-python\ntorch\n')
    monkeypatch.setattr(set_up, 'output_of', lambda *args: '1.26.4')
    monkeypatch.setattr(set_up.sys, 'version_info', (3, 12, 3))
    assert set_up.write_system_constraints().read_text() == 'torch==2.13.0\nnumpy>=1.26,<2\n'
    assert set_up.write_system_requirements().read_text() == 'torch\n'
