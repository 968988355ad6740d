"""`ros2 launch vlaq_ros reference.launch.py`, where launch_ros exists."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='needs a ROS 2 installation with launch_ros')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from launch.actions import DeclareLaunchArgument

from launch import LaunchContext
from vlaq_ros.ros.parameters import table
from vlaq_ros.ros.reference_parameters import ReferenceParameters

LAUNCH_FILE = Path(__file__).parents[2] / 'launch' / 'reference.launch.py'
pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def launch_file():
    module_spec = importlib.util.spec_from_file_location('reference_launch', LAUNCH_FILE)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def context(launch_file, **arguments):
    context = LaunchContext()
    defaults = dict.fromkeys(launch_file.ARGUMENTS, '')
    context.launch_configurations.update({**defaults, 'respawn': 'true', **arguments})
    return context


def test_every_argument_is_declared_with_a_description(launch_file):
    declared = {
        entity.name: entity
        for entity in launch_file.generate_launch_description().entities
        if isinstance(entity, DeclareLaunchArgument)
    }
    assert set(declared) == set(launch_file.ARGUMENTS)
    assert all(argument.description for argument in declared.values())


def test_every_argument_is_a_parameter_of_the_node_and_read_as_its_type(launch_file):
    rows = {row.name: row for row in table(ReferenceParameters)}
    for name, (kind, _) in launch_file.PARAMETERS.items():
        if name != 'use_sim_time':
            assert kind is type(rows[name].default), name


def test_what_is_given_overrides_the_file_and_the_node_starts(launch_file, monkeypatch):
    made = {}
    monkeypatch.setattr(launch_file, 'LifecycleNode', lambda **kwargs: made.update(kwargs))
    launch_file.start(
        context(
            launch_file,
            params_file='mine.yaml',
            bundle='toy',
            image_wait_s='0.5',
            camera_topics='front:=/cam/rgb',
        )
    )
    assert (made['executable'], made['respawn']) == ('reference_node', True)
    assert made['parameters'] == [
        'mine.yaml',
        {'bundle': 'toy', 'image_wait_s': 0.5, 'autostart': True},
    ]
    assert made['remappings'] == [
        ('front/image_raw', '/cam/rgb'),
        ('front/image_raw/compressed', '/cam/rgb/compressed'),
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'camera_topics': 'front=/cam'}, "'front=/cam' must read camera:=topic"),
        ({'use_sim_time': 'yes'}, "'yes' must be true or false"),
    ],
    ids=['topic', 'switch'],
)
def test_a_malformed_argument_is_refused(launch_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        launch_file.start(context(launch_file, **arguments))
