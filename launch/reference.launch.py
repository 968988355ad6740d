"""
A reference for a policy node elsewhere: what the full-precision policy would have done.

    ros2 launch vlaq_ros reference.launch.py policy:=policy bundle:=metaworld namespace:=left \
        camera_topics:='front:=/camera/color/image_raw wrist:=/wrist_camera/image_raw'

It needs the cameras of the robot and the ROS domain of the policy node, whose parameter
`drift.source` is `remote`. Parameters come from `params_file`; an argument that is given here
overrides it.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

CONFIG = PathJoinSubstitution([FindPackageShare('vlaq_ros'), 'config', 'reference_node.yaml'])

# Parameter, which is also the launch argument -> (how its text is read, description).
PARAMETERS = {
    'policy': (str, 'name of the policy node whose questions are answered'),
    'bundle': (str, 'float bundle: directory, or name of a shipped one'),
    'precision': (str, 'precision of the weights; default: fp32'),
    'head': (str, 'action head'),
    'threads': (int, 'threads of the tensor library'),
    'image_transport': (str, 'raw or compressed; as the policy node'),
    'image_wait_s': (float, 'how long a question waits for images [s]'),
    'history_s': (float, 'how long images are kept [s]'),
    'history_mb': (float, 'largest size of the images that are kept [MB]'),
    'use_sim_time': (bool, 'true: time comes from /clock'),
}
DRIVEN_FROM_HERE = {'autostart': True}
ARGUMENTS = {
    'params_file': (CONFIG, 'parameters of the node'),
    'node_name': ('reference', 'name of the node'),
    'namespace': ('', 'namespace of the node and of every relative topic'),
    'camera_topics': ('', 'space-separated `camera:=image topic`, as for the policy node'),
    'respawn': ('true', 'start the node again when it dies'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    **{name: ('', f'{text}; empty: as in params_file') for name, (_, text) in PARAMETERS.items()},
}


def is_true(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise ValueError(f"'{text}' must be true or false")
    return text.lower() == 'true'


def remappings(context: LaunchContext) -> list[tuple[str, str]]:
    pairs = []
    for entry in LaunchConfiguration('camera_topics').perform(context).split():
        camera, separator, topic = entry.partition(':=')
        if not (camera and separator and topic):
            raise ValueError(f"camera_topics: '{entry}' must read camera:=topic")
        pairs.append((f'{camera}/image_raw', topic))
        pairs.append((f'{camera}/image_raw/compressed', f'{topic}/compressed'))
    return pairs


def overrides(context: LaunchContext) -> dict[str, str | int | float | bool]:
    values = {}
    for name, (kind, _) in PARAMETERS.items():
        text = LaunchConfiguration(name).perform(context)
        if text:
            values[name] = is_true(text) if kind is bool else kind(text)
    return values


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    return [
        LifecycleNode(
            package='vlaq_ros',
            executable='reference_node',
            name=value('node_name'),
            namespace=value('namespace'),
            parameters=[value('params_file'), {**overrides(context), **DRIVEN_FROM_HERE}],
            remappings=remappings(context),
            ros_arguments=['--log-level', value('log_level')],
            respawn=is_true(value('respawn')),
            respawn_delay=2.0,
            output='screen',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
