"""
Calibrate a policy from bags, or from the live topics, beside an existing robot stack.

    ros2 launch vlaq_ros calibrate.launch.py bag:=run_07 method:=qvla bits:=3.5 out:=out/mine
    ros2 launch vlaq_ros calibrate.launch.py collect_s:=120 out:=out/mine namespace:=left \
        topics:='front/image_raw:=/camera/color/image_raw'

The node starts at once and tells how far it is on `calibration/progress`. Parameters come from
`params_file`; an argument that is given here overrides it.
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

CONFIG = PathJoinSubstitution([FindPackageShare('vlaq_ros'), 'config', 'calibration_node.yaml'])

# Parameter, which is also the launch argument -> (how its text is read, description).
PARAMETERS = {
    'bag': (str, 'bags to calibrate from, separated by spaces; none: record from the topics'),
    'collect_s': (float, 'how long to record when no bag is given [s], to <out>.recording'),
    'bundle': (str, 'float bundle: directory, or name of a shipped one'),
    'method': (str, 'calibration method; `vlaq calibrate --help` lists them'),
    'bits': (float, 'budget in bits per weight, scales included'),
    'group_size': (int, 'inputs that share a scale; 0: one scale per channel'),
    'activation_bits': (int, '2, 4, 8 or 16'),
    'out': (str, 'directory of the packed bundle'),
    'samples': (int, 'observations to calibrate with'),
    'held_out': (int, 'observations to judge with'),
    'seed': (int, 'of every random choice'),
    'heads': (str, 'action heads that count, separated by spaces'),
    'options': (str, 'options of the method, separated by spaces: mode=paper'),
    'instruction': (str, 'sentence of all bags'),
    'image_transport': (str, 'raw or compressed'),
    'resume': (bool, 'true: go on where a calibration was interrupted'),
    'overwrite': (bool, 'true: begin anew, and replace a packed bundle'),
    'use_sim_time': (bool, 'true: time comes from /clock'),
}
DRIVEN_FROM_HERE = {'autostart': True, 'auto_start': True}
ARGUMENTS = {
    'params_file': (CONFIG, 'parameters of the node'),
    'node_name': ('calibration', 'name of the node'),
    'namespace': ('', 'namespace of the node and of every relative topic'),
    'topics': ('', 'space-separated `stream:=topic` for live topics that are called otherwise'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    **{name: ('', f'{text}; empty: as in params_file') for name, (_, text) in PARAMETERS.items()},
}


def is_true(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise ValueError(f"'{text}' must be true or false")
    return text.lower() == 'true'


def remappings(context: LaunchContext) -> list[tuple[str, str]]:
    pairs = []
    for entry in LaunchConfiguration('topics').perform(context).split():
        stream, separator, topic = entry.partition(':=')
        if not (stream and separator and topic):
            raise ValueError(f"topics: '{entry}' must read stream:=topic")
        pairs.append((stream, topic))
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
            executable='calibration_node',
            name=value('node_name'),
            namespace=value('namespace'),
            parameters=[value('params_file'), {**overrides(context), **DRIVEN_FROM_HERE}],
            remappings=remappings(context),
            ros_arguments=['--log-level', value('log_level')],
            output='screen',
        )
    ]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
