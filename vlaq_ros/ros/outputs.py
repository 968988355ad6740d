"""
What the policy sends: arm and gripper commands, chunks and drift, through lifecycle publishers.

They publish nothing unless the node is active. The gripper goes first, so that a receiver that
acts on the arm command has both.
"""

from typing import Any

from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import JointState

from vlaq_ros.control.commands import HOLD
from vlaq_ros.ros import qos
from vlaq_ros.ros.conversions import (
    chunk_message,
    drift_message,
    gripper_message,
    pose_message,
    twist_message,
)
from vlaq_ros.ros.drift_control import Told
from vlaq_ros.ros.interfaces import ActionChunk as ActionChunkMessage
from vlaq_ros.ros.interfaces import DriftReport
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.types import ActionChunk, EndEffectorCommand, Pose

_TOPICS = {'twist': '~/delta_twist_cmds', 'pose': '~/pose_target_cmds'}
_TYPES = {'twist': TwistStamped, 'pose': PoseStamped}


class Outputs:
    """
    The publishers of one configured policy.

    Attributes:
        topics: Topic names of arm and gripper commands after remapping.
        sent: Arm commands sent, stops included.
        unmatched: Topic -> what keeps a subscriber from being reached.
    """

    def __init__(self, node: LifecycleNode, config: PolicyParameters) -> None:
        self._node = node
        self._config = config
        self.sent = 0
        self.unmatched: dict[str, str] = {}
        kind = config.command.type
        self._arm = self._add(_TYPES[kind], _TOPICS[kind], qos.COMMAND)
        self._gripper = self._add(JointState, '~/gripper_cmds', qos.COMMAND)
        self._chunk = self._add(ActionChunkMessage, '~/action_chunk', qos.CHUNK)
        self._drift = self._add(DriftReport, '~/drift', qos.DRIFT) if config.drift.is_on else None
        self.topics = tuple(p.topic_name for p in (self._arm, self._gripper))
        self._gripper_sent: tuple[float, int] | None = None

    @property
    def wants_pose(self) -> bool:
        """Whether arm commands are target poses."""
        return self._config.command.type == 'pose'

    def has_listeners(self) -> bool:
        """Whether somebody receives both arm and gripper commands."""
        return all(p.get_subscription_count() for p in (self._arm, self._gripper))

    def send_twist(self, command: EndEffectorCommand, stamp_ns: int) -> None:
        """Send a velocity and the gripper opening that goes with it."""
        self._send_gripper(command.gripper, stamp_ns)
        self._send_arm(twist_message(command, self._frame(command.frame), stamp_ns))

    def send_pose(self, pose: Pose, gripper: float | None, stamp_ns: int) -> None:
        """Send a target pose in the base frame and the gripper opening that goes with it."""
        self._send_gripper(gripper, stamp_ns)
        self._send_arm(pose_message(pose, self._frame('base'), stamp_ns))

    def send_stop(self, pose: Pose | None, stamp_ns: int) -> bool:
        """
        Send the stop of this output: no velocity, or stay at this measured pose.

        Without a measured pose nothing is sent: an older target would be a motion. Return whether
        it was sent.
        """
        if not self.wants_pose:
            self._send_arm(twist_message(HOLD, self._frame(HOLD.frame), stamp_ns))
        elif pose is not None:
            self._send_arm(pose_message(pose, self._frame('base'), stamp_ns))
        return not self.wants_pose or pose is not None

    def send_chunk(self, chunk: ActionChunk) -> None:
        """Publish the chunk that was accepted."""
        self._chunk.publish(chunk_message(chunk, self._frame(chunk.spec.frame)))

    def send_drift(self, told: Told, frame: str) -> None:
        """Publish a reading of the drift of actions in this frame."""
        if self._drift is not None:
            self._drift.publish(drift_message(told, self._frame(frame)))

    def flush(self, timeout_s: float) -> None:
        """Wait until subscribers have the last arm command."""
        self._arm.wait_for_all_acked(Duration(seconds=timeout_s))

    def rivals(self) -> list[str]:
        """Name the other publishers of our arm and gripper command topics."""
        own = (self._node.get_name(), self._node.get_namespace())
        rivals = []
        for topic in self.topics:
            infos = self._node.get_publishers_info_by_topic(topic)
            names = [(info.node_name, info.node_namespace) for info in infos]
            if own in names:
                names.remove(own)  # once: a second process of the same name is a rival
            rivals += [f'{space.rstrip("/")}/{name} on {topic}' for name, space in names]
        return rivals

    def close(self) -> None:
        """Remove the publishers."""
        for publisher in (self._arm, self._gripper, self._chunk, self._drift):
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)

    def _add(self, message_type: type, topic: str, profile: Any) -> Any:
        resolved = self._node.resolve_topic_name(topic)

        def on_incompatible_qos(event: Any) -> None:
            kind = getattr(event.last_policy_kind, 'name', event.last_policy_kind)
            text = f'a subscriber asks for incompatible QoS on {resolved} (policy {kind})'
            self.unmatched[resolved] = text
            self._node.get_logger().warning(f'{text}: it receives nothing')

        return self._node.create_lifecycle_publisher(
            message_type,
            topic,
            event_callbacks=qos.PublisherEventCallbacks(incompatible_qos=on_incompatible_qos),
            **qos.overridable(profile),
        )

    def _frame(self, frame: str) -> str:
        command = self._config.command
        return command.base_frame if frame == 'base' else command.tool_frame

    def _send_arm(self, msg: TwistStamped | PoseStamped) -> None:
        self._arm.publish(msg)
        self.sent += 1

    def _send_gripper(self, opening: float | None, stamp_ns: int) -> None:
        """Send the gripper on change; always in lockstep, where each stamp needs its answer."""
        if opening is None:
            return
        gripper = self._config.gripper
        position = opening * gripper.travel
        if self._gripper_sent is not None and not self._config.lockstep:
            last, last_ns = self._gripper_sent
            is_recent = 0 <= stamp_ns - last_ns < gripper.repeat_s * 1e9
            if is_recent and abs(position - last) < gripper.min_change:
                return
        self._gripper.publish(gripper_message(gripper.joint, position, stamp_ns))
        self._gripper_sent = (position, stamp_ns)
