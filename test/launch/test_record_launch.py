"""`ros2 launch vlaq_ros record.launch.py`, where launch_ros exists."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='needs a ROS 2 installation with launch_ros')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

import yaml
from launch.actions import DeclareLaunchArgument

from launch import LaunchContext
from vlaq_ros.policies.bundle import open_bundle

LAUNCH_FILE = Path(__file__).parents[2] / 'launch' / 'record.launch.py'
QOS_FILE = LAUNCH_FILE.parents[1] / 'config' / 'record_qos.yaml'
pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def launch_file():
    module_spec = importlib.util.spec_from_file_location('record_launch', LAUNCH_FILE)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_context(launch_file):
    def make(**arguments):
        context = LaunchContext()
        texts = {n: v for n, (v, _) in launch_file.ARGUMENTS.items() if isinstance(v, str)}
        given = {
            **texts,
            'bundle': 'toy',
            'qos_overrides': str(QOS_FILE),
            'params_file': '',
        } | arguments
        context.launch_configurations.update(given)
        return context

    return make


def option(command, name):
    return command[command.index(name) + 1]


def test_every_argument_is_declared_with_a_description(launch_file):
    declared = {
        entity.name: entity
        for entity in launch_file.generate_launch_description().entities
        if isinstance(entity, DeclareLaunchArgument)
    }
    assert set(declared) == set(launch_file.ARGUMENTS)
    assert all(argument.description for argument in declared.values())


def test_rosbag2_records_the_topics_to_mcap_and_keeps_where_they_come_from(
    launch_file, make_context, monkeypatch
):
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    command = launch_file.rosbag2_command(
        make_context(
            output='run', namespace='left', precision='w4', topics='front/image_raw:=/camera'
        )
    )
    assert command[:3] == ['ros2', 'bag', 'record']
    assert option(command, '--output') == 'run'
    assert option(command, '--storage') == 'mcap'
    assert '--use-sim-time' not in command
    topics = command[command.index('--topics') + 1 :]
    assert topics[0] == '/camera'
    assert {'/left/ee_pose', '/left/policy/action_chunk', '/left/instruction'} <= set(topics)
    key, text = option(command, '--custom-data').split('=')  # rosbag2 splits at every one
    kept = json.loads(text)
    assert key == 'vlaq_ros'
    assert (kept['bundle_hash'], kept['precisions']) == (open_bundle('toy').digest, ['w4'])
    assert kept['streams']['front/image_raw'] == '/camera'
    profiles = yaml.safe_load(Path(option(command, '--qos-profile-overrides-path')).read_text())
    assert profiles['/camera']['reliability'] == 'best_effort'
    assert profiles['/left/policy/status']['durability'] == 'transient_local'
    assert set(profiles) <= set(topics)


def test_humble_gets_only_what_it_knows(launch_file, make_context, monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    command = launch_file.rosbag2_command(make_context(use_sim_time='true'))
    assert '--use-sim-time' in command
    assert not {'--custom-data', '--topics', '--disable-keyboard-controls'} & set(command)
    assert command[-1] == '/policy/drift'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'recorder': 'rosbag3'}, "'rosbag3' must be auto, rosbag2 or node"),
        ({'topics': 'front=/cam'}, "'front=/cam' must read stream:=topic"),
        ({'topics': 'top:=/cam'}, r"\['top'\] are not recorded. Streams: front/image_raw"),
        ({'use_sim_time': 'yes', 'recorder': 'node'}, "'yes' must be true or false"),
    ],
)
def test_a_wrong_argument_is_refused(launch_file, make_context, arguments, message):
    with pytest.raises(ValueError, match=message):
        launch_file.start(make_context(**arguments))


def test_without_rosbag2_the_recorder_node_records(launch_file, make_context, monkeypatch):
    monkeypatch.setattr(launch_file, 'has_rosbag2', lambda: False)
    made = {}
    monkeypatch.setattr(launch_file, 'Node', lambda **kwargs: made.update(kwargs))
    launch_file.start(make_context(topics='ee_pose:=/tcp', extra_topics='/tf_static'))
    assert made['executable'] == 'recorder_node'
    assert made['remappings'] == [('ee_pose', '/tcp')]
