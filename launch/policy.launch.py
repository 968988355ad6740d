"""
The policy node alone, beside the drivers and the controller of an existing robot.

    ros2 launch vlaq_ros policy.launch.py namespace:=left precision:=w8 \
        camera_topics:='front:=/camera/color/image_raw wrist:=/wrist_camera/image_raw' \
        twist_topic:=/servo_node/delta_twist_cmds

Parameters come from `params_file`; an argument that is given here overrides it. With `autostart`
the node is configured and activated by lifecycle events, otherwise a lifecycle manager does it.
Loading a large policy takes longer than the usual service time-out of such a manager.
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

CONFIG = PathJoinSubstitution([FindPackageShare('vlaq_ros'), 'config', 'policy_node.yaml'])

# Parameter -> (launch argument, how its text is read, description). Empty: as in params_file.
PARAMETERS = {
    'bundle': ('bundle', str, 'policy bundle: a directory or the name of a shipped one'),
    'precision': (
        'precision',
        str,
        'precision of the weights: default, fp32, bf16, w8, w8a8, w4, w4a8 or packed',
    ),
    'head': ('head', str, 'action head'),
    'threads': ('threads', int, 'threads of the tensor library'),
    'image_transport': ('image_transport', str, 'raw or compressed'),
    'command.type': ('command_type', str, 'twist or pose'),
    'drift.source': (
        'drift_source',
        str,
        'what drift is measured against: none, shadow, higher, remote or predicted',
    ),
    'drift.reference_bundle': (
        'drift_reference_bundle',
        str,
        'float bundle that a packed one was made of',
    ),
    'drift.reaction': ('drift_reaction', str, 'what drift leads to: report, raise or stop'),
    'lockstep': ('lockstep', bool, 'true: answer a simulator that waits'),
    'use_sim_time': ('use_sim_time', bool, 'true: time comes from /clock'),
}
# Whatever params_file says: two drivers of the same transitions would make one of them fail.
DRIVEN_FROM_HERE = {'autostart': False}
# Launch argument -> topic of the node. Empty: the name of the topic itself.
TOPICS = {
    'instruction_topic': 'instruction',
    'ee_pose_topic': 'ee_pose',
    'joint_states_topic': 'joint_states',
    'twist_topic': '~/delta_twist_cmds',
    'pose_topic': '~/pose_target_cmds',
    'gripper_topic': '~/gripper_cmds',
}
ARGUMENTS = {
    'params_file': (CONFIG, 'parameters of the node'),
    'node_name': ('policy', 'name of the node'),
    'namespace': ('', 'namespace of the node and of every relative topic'),
    'camera_topics': ('', 'space-separated `camera:=image topic`, e.g. front:=/camera/image_raw'),
    'autostart': ('true', 'configure and activate the node'),
    'respawn': ('false', 'start the node again when it dies'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    **{argument: ('', f'topic of `{topic}`') for argument, topic in TOPICS.items()},
    **{name: ('', f'{text}; empty: as in params_file') for name, _, text in PARAMETERS.values()},
}


def is_true(text: str) -> bool:
    if text.lower() not in ('true', 'false'):
        raise ValueError(f"'{text}' must be true or false")
    return text.lower() == 'true'


def remappings(context: LaunchContext) -> list[tuple[str, str]]:
    given = {topic: LaunchConfiguration(name).perform(context) for name, topic in TOPICS.items()}
    pairs = [(inner, outer) for inner, outer in given.items() if outer]
    for entry in LaunchConfiguration('camera_topics').perform(context).split():
        camera, separator, topic = entry.partition(':=')
        if not (camera and separator and topic):
            raise ValueError(f"camera_topics: '{entry}' must read camera:=topic")
        pairs.append((f'{camera}/image_raw', topic))
        pairs.append((f'{camera}/image_raw/compressed', f'{topic}/compressed'))
    return pairs


def overrides(context: LaunchContext) -> dict[str, str | int | bool]:
    values = {}
    for parameter, (argument, kind, _) in PARAMETERS.items():
        text = LaunchConfiguration(argument).perform(context)
        if text:
            values[parameter] = is_true(text) if kind is bool else kind(text)
    return values


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    node = LifecycleNode(
        package='vlaq_ros',
        executable='policy_node',
        name=value('node_name'),
        namespace=value('namespace'),
        parameters=[value('params_file'), {**overrides(context), **DRIVEN_FROM_HERE}],
        remappings=remappings(context),
        ros_arguments=['--log-level', value('log_level')],
        respawn=is_true(value('respawn')),
        respawn_delay=2.0,
        output='screen',
    )
    if not is_true(value('autostart')):
        return [node]

    def request(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(node), transition_id=transition
            )
        )

    # The handlers come first: the node may start before the next entity is visited.
    return [
        RegisterEventHandler(
            OnProcessStart(
                target_action=node,
                on_start=[request(Transition.TRANSITION_CONFIGURE)],
            )
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=node,
                start_state='configuring',
                goal_state='inactive',
                entities=[request(Transition.TRANSITION_ACTIVATE)],
            )
        ),
        node,
    ]


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
