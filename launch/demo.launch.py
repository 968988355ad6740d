"""
The simulated arm with a policy that drives it, episode after episode.

    ros2 launch vlaq_ros demo.launch.py task:=drawer-open precision:=w4

The simulator publishes the sentence of every episode and starts the next one by itself. `vlaq
demo` runs the same two nodes without `launch`, once per task, and reports.
"""

from launch.actions import DeclareLaunchArgument, Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

# name -> (default, description)
ARGUMENTS = {
    'bundle': ('metaworld', 'policy bundle: a directory or the name of a shipped one'),
    'precision': ('w8', 'of the weights: default, fp32, bf16, w8, w8a8, w4, w4a8 or packed'),
    'head': ('', 'action head; empty: the default of the bundle'),
    'threads': ('1', 'threads of the policy; the simulator needs a core of its own'),
    'task': ('drawer-open', 'task of the first episode'),
    'seed': ('100', 'environment seed; 100 and above were never trained on'),
    'index': ('0', 'start state of the first episode, 0 to 49'),
    'auto_reset': ('next_index', 'after an episode: off, next_index or next_task'),
    'lockstep': ('false', 'true: simulated time waits for every command'),
    'real_time_factor': ('1.0', 'simulated seconds per second, when not in lockstep'),
    'camera_every': ('1', 'render the cameras at every n-th step, when not in lockstep'),
    'spectator': ('true', 'publish a larger view on spectator/image_raw'),
    'namespace': ('', 'namespace of both nodes'),
}


def generate_launch_description() -> LaunchDescription:
    """Start both nodes; when one ends, so does the other."""
    config = PathJoinSubstitution([FindPackageShare('vlaq_ros'), 'config'])
    simulator = Node(
        package='vlaq_ros',
        executable='sim_node',
        name='sim',
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            PathJoinSubstitution([config, 'sim_node.yaml']),
            {
                'publish_instruction': True,
                **_values(str, 'task', 'auto_reset'),
                **_values(int, 'seed', 'index', 'camera_every'),
                **_values(float, 'real_time_factor'),
                **_values(bool, 'lockstep', 'spectator'),
            },
        ],
        remappings=[
            (topic, f'policy/{topic}')
            for topic in ('delta_twist_cmds', 'pose_target_cmds', 'gripper_cmds')
        ],
        output='screen',
        on_exit=Shutdown(reason='the simulator has ended'),
    )
    policy = Node(
        package='vlaq_ros',
        executable='policy_node',
        name='policy',
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            PathJoinSubstitution([config, 'policy_node.yaml']),
            {
                'use_sim_time': True,
                'autostart': True,
                **_values(str, 'bundle', 'precision', 'head'),
                **_values(int, 'threads'),
                **_values(bool, 'lockstep'),
            },
        ],
        output='screen',
        on_exit=Shutdown(reason='the policy has ended'),
    )
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, simulator, policy])


def _values(value_type: type, *names: str) -> dict[str, ParameterValue]:
    """Return launch arguments as parameters of one type, so that `off` stays a text."""
    return {
        name: ParameterValue(LaunchConfiguration(name), value_type=value_type) for name in names
    }
