"""`ros2 launch vlaq_ros policy.launch.py`, where launch_ros and the installed package exist."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='needs a ROS 2 installation with launch_ros')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')
pytest.importorskip('lifecycle_msgs', reason='needs lifecycle_msgs')

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import DeclareLaunchArgument

from launch import LaunchContext

LAUNCH_FILE = Path(__file__).parents[2] / 'launch' / 'policy.launch.py'
pytestmark = [pytest.mark.ros, pytest.mark.slow]


@pytest.fixture(scope='module')
def launch_file():
    module_spec = importlib.util.spec_from_file_location('policy_launch', LAUNCH_FILE)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def context(launch_file, **arguments):
    context = LaunchContext()
    defaults = dict.fromkeys(launch_file.ARGUMENTS, '')
    context.launch_configurations.update({**defaults, **arguments})
    return context


def test_every_argument_is_declared_with_a_description(launch_file):
    declared = {
        entity.name: entity
        for entity in launch_file.generate_launch_description().entities
        if isinstance(entity, DeclareLaunchArgument)
    }
    assert set(declared) == set(launch_file.ARGUMENTS)
    assert all(argument.description for argument in declared.values())


def test_only_arguments_that_are_given_override_the_file(launch_file):
    assert launch_file.overrides(context(launch_file)) == {}
    given = context(launch_file, precision='w8', threads='2', use_sim_time='True')
    assert launch_file.overrides(given) == {'precision': 'w8', 'threads': 2, 'use_sim_time': True}


def test_what_drift_is_measured_against_can_be_given(launch_file):
    given = context(launch_file, drift_source='shadow', drift_reference_bundle='metaworld')
    assert launch_file.overrides(given) == {
        'drift.source': 'shadow',
        'drift.reference_bundle': 'metaworld',
    }
    assert launch_file.overrides(context(launch_file, drift_reaction='raise')) == {
        'drift.reaction': 'raise'
    }


def test_topics_are_remapped_raw_and_compressed(launch_file):
    given = context(launch_file, camera_topics='front:=/cam/rgb', twist_topic='/servo/twist')
    assert launch_file.remappings(given) == [
        ('~/delta_twist_cmds', '/servo/twist'),
        ('front/image_raw', '/cam/rgb'),
        ('front/image_raw/compressed', '/cam/rgb/compressed'),
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'camera_topics': 'front=/cam'}, "'front=/cam' must read camera:=topic"),
        ({'lockstep': 'yes'}, "'yes' must be true or false"),
    ],
    ids=['camera', 'switch'],
)
def test_a_malformed_argument_is_refused(launch_file, arguments, message):
    given = context(launch_file, **arguments)
    with pytest.raises(ValueError, match=message):
        _ = launch_file.remappings(given), launch_file.overrides(given)


def test_the_node_does_not_drive_its_transitions_too(launch_file, monkeypatch):
    """With `autostart: true` in params_file node and launch file both configured it."""
    made = {}
    monkeypatch.setattr(launch_file, 'LifecycleNode', lambda **kwargs: made.update(kwargs))
    launch_file.start(
        context(launch_file, autostart='false', respawn='false', params_file='mine.yaml')
    )
    assert made['parameters'] == ['mine.yaml', {'autostart': False}]


def test_the_node_comes_up_as_told_and_ends_cleanly_on_ctrl_c(ros_domain, tmp_path):
    pytest.importorskip('ros2launch', reason='needs the ros2 launch command')
    try:
        get_package_share_directory('vlaq_ros')
    except PackageNotFoundError:
        pytest.skip('needs vlaq_ros installed: source its setup file')
    import rclpy
    from lifecycle_msgs.srv import GetState
    from rcl_interfaces.srv import GetParameters
    from rclpy.executors import SingleThreadedExecutor

    arguments = ['bundle:=toy', 'precision:=w8', 'namespace:=left', 'node_name:=pilot']
    log = (tmp_path / 'log').open('w+')
    process = subprocess.Popen(
        ['ros2', 'launch', str(LAUNCH_FILE), *arguments, 'twist_topic:=/servo/twist'],
        env={**os.environ, 'ROS_LOG_DIR': str(tmp_path)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    ros = rclpy.context.Context()
    rclpy.init(context=ros, domain_id=ros_domain)
    observer = rclpy.create_node('observer', context=ros)
    executor = SingleThreadedExecutor(context=ros)
    executor.add_node(observer)

    def call(service_type, name, **fields):
        client = observer.create_client(service_type, name)
        assert client.wait_for_service(60.0), name
        future = client.call_async(service_type.Request(**fields))
        executor.spin_until_future_complete(future, timeout_sec=30.0)
        return future.result()

    try:
        deadline = time.monotonic() + 60.0
        while call(GetState, '/left/pilot/get_state').current_state.label != 'active':
            assert time.monotonic() < deadline
            time.sleep(0.1)
        names = ['precision', 'bundle', 'command.rate_hz']
        values = call(GetParameters, '/left/pilot/get_parameters', names=names).values
        assert [v.string_value or v.double_value for v in values] == ['w8', 'toy', 50.0]
        assert observer.count_publishers('/servo/twist') == 1
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        assert process.wait(30.0) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        executor.shutdown()
        observer.destroy_node()
        ros.try_shutdown()
        log.seek(0)
        text = log.read()
        sys.stdout.write(text)
    assert 'process has finished cleanly' in text
    assert 'Traceback' not in text
