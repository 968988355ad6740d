"""
Record what a calibration needs: cameras, state, sentences, commands, chunks, status.

    ros2 launch vlaq_ros record.launch.py output:=run_07 namespace:=left \
        topics:='front/image_raw:=/camera/color/image_raw'

With `ros2 bag` installed it records, in C++, to MCAP; everywhere else the recorder node of this
package does. Both write the same topics, and the provenance into the custom data of the bag.
`topics` names those that are called otherwise, as `stream:=topic`; so does the bag, and a
calibration from it needs no table.
"""

import importlib.util
import os
import tempfile
import time
from pathlib import Path

import yaml
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.ros.recorded_topics import camera_names, custom_data, provenance, stream_names

CONFIG = PathJoinSubstitution([FindPackageShare('vlaq_ros'), 'config', 'recorder_node.yaml'])
QOS = PathJoinSubstitution([FindPackageShare('vlaq_ros'), 'config', 'record_qos.yaml'])

ARGUMENTS = {
    'output': ('', 'directory of the bag; empty: bag_<date>_<time>'),
    'bundle': ('metaworld', 'policy bundle whose cameras are recorded'),
    'policy': ('policy', 'name of the policy node'),
    'precision': ('', 'precision that the policy runs at, for the provenance'),
    'namespace': ('', 'namespace of every relative topic'),
    'topics': ('', 'space-separated `stream:=topic` for topics that are called otherwise'),
    'extra_topics': ('', 'space-separated topics to record as well, e.g. /tf_static'),
    'image_transport': ('raw', 'raw or compressed'),
    'use_sim_time': ('false', 'true: receive times are those of /clock'),
    'recorder': ('auto', 'rosbag2, node, or auto: rosbag2 where it is installed'),
    'qos_overrides': (QOS, 'QoS that rosbag2 asks for'),
    'params_file': (CONFIG, 'parameters of the recorder node'),
}


def is_true(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise ValueError(f"'{text}' must be true or false")
    return text.lower() == 'true'


def has_rosbag2() -> bool:
    return importlib.util.find_spec('ros2bag') is not None


def remappings(context: LaunchContext) -> dict[str, str]:
    pairs = {}
    for entry in LaunchConfiguration('topics').perform(context).split():
        stream, separator, topic = entry.partition(':=')
        if not (stream and separator and topic):
            raise ValueError(f"topics: '{entry}' must read stream:=topic")
        pairs[stream] = topic
    return pairs


def recorded(context: LaunchContext) -> dict[str, str]:
    """Return stream -> topic name, as the nodes resolve it."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    names = stream_names(
        camera_names(value('bundle')),
        value('policy'),
        value('image_transport'),
        value('extra_topics').split(),
    )
    renamed = remappings(context)
    unknown = [stream for stream in renamed if stream not in names]
    if unknown:
        raise ValueError(f'topics: {unknown} are not recorded. Streams: {", ".join(names)}')
    space = value('namespace').strip('/')
    prefix = f'/{space}/' if space else '/'
    topics = {stream: renamed.get(stream, stream) for stream in names}
    return {s: topic if topic.startswith('/') else prefix + topic for s, topic in topics.items()}


def qos_file(path: str, streams: dict[str, str], policy: str) -> str:
    """Return a copy of the QoS file that names the topics as they are here."""
    profiles = yaml.safe_load(Path(path).read_text()) or {}
    default = {f'/{stream}'.replace(f'/{policy}/', '/policy/'): t for stream, t in streams.items()}
    known = {default.get(topic, topic): profile for topic, profile in profiles.items()}
    with tempfile.NamedTemporaryFile('w', suffix='.yaml', delete=False) as file:
        yaml.safe_dump({t: p for t, p in known.items() if t in streams.values()}, file)
    return file.name


def rosbag2_command(context: LaunchContext) -> list[str]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    streams = recorded(context)
    bundle = open_bundle(value('bundle'))
    in_sim_time = is_true(value('use_sim_time'))
    kept = provenance(
        streams,
        bundle=bundle.spec.name,
        bundle_hash=bundle.digest,
        precisions=[value('precision')] if value('precision') else [],
        use_sim_time=in_sim_time,
        lost={},
    )
    output = value('output') or time.strftime('bag_%Y%m%d_%H%M%S')
    command = ['ros2', 'bag', 'record', '--output', output, '--storage', 'mcap']
    command += ['--storage-preset-profile', 'zstd_fast']
    overrides = qos_file(value('qos_overrides'), streams, value('policy'))
    command += ['--qos-profile-overrides-path', overrides]
    command += ['--use-sim-time'] if in_sim_time else []
    topics = list(streams.values())
    if os.environ.get('ROS_DISTRO') == 'humble':  # knows neither custom data nor these options
        return [*command, *topics]
    return [
        *command,
        '--disable-keyboard-controls',
        '--custom-data',
        custom_data(kept),
        '--topics',
        *topics,
    ]


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    recorder = value('recorder')
    if recorder not in ('auto', 'rosbag2', 'node'):
        raise ValueError(f"recorder: '{recorder}' must be auto, rosbag2 or node")
    if recorder == 'rosbag2' or recorder == 'auto' and has_rosbag2():
        ended = Shutdown(reason='the recording has ended')
        return [ExecuteProcess(cmd=rosbag2_command(context), output='screen', on_exit=ended)]
    recorded(context)  # a wrong argument is refused here, with its name
    texts = ('output', 'bundle', 'policy', 'image_transport', 'extra_topics')
    node = Node(
        package='vlaq_ros',
        executable='recorder_node',
        name='recorder',
        namespace=value('namespace'),
        parameters=[
            value('params_file'),
            {name: ParameterValue(value(name), value_type=str) for name in texts},
            {'use_sim_time': is_true(value('use_sim_time'))},
        ],
        remappings=list(remappings(context).items()),
        output='screen',
        on_exit=Shutdown(reason='the recording has ended'),
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
