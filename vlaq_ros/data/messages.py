"""
Messages as values: one reading for live messages and for those of a bag.

Only the names of fields are used, so a message of rclpy and one that was decoded without ROS give
the same values. A message that cannot be used is refused with the reason; nothing is repaired.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.data.images import decode_compressed, decode_image
from vlaq_ros.errors import ImageError, MessageError
from vlaq_ros.types import ActionChunk, ActionSpec, Pose

POSE_TOPIC, JOINT_TOPIC, INSTRUCTION_TOPIC = 'ee_pose', 'joint_states', 'instruction'
POSE_SOURCES = tuple(f'{POSE_TOPIC}.{axis}' for axis in ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw'))
JOINT_PREFIX = 'joint.'

_SECOND_NS = 1_000_000_000


def to_nanoseconds(stamp: Any) -> int:
    """Return a `builtin_interfaces` Time or Duration as integer nanoseconds."""
    return stamp.sec * _SECOND_NS + stamp.nanosec


def decode_pixels(msg: Any) -> NDArray[np.uint8]:
    """
    Return the pixels of an `Image` or `CompressedImage`: RGB uint8 [height, width, 3].

    Raises:
        ImageError: The message cannot be decoded.
    """
    if hasattr(msg, 'format'):
        return decode_compressed(msg.format, msg.data)
    return decode_image(
        msg.encoding, msg.height, msg.width, msg.step, bool(msg.is_bigendian), msg.data
    )


def require_size(camera: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """
    Compare the (height, width) of an image with what the policy expects [px].

    Raises:
        ImageError: They differ.
    """
    if size != expected:
        raise ImageError(
            f'camera {camera!r} sends images of {size[1]} x {size[0]} px (width x height), the '
            f'policy expects {expected[1]} x {expected[0]} px: resize them before'
        )


def to_pose(msg: Any) -> Pose:
    """Return the pose of a `PoseStamped`; its frame is the caller's business."""
    at, turned = msg.pose.position, msg.pose.orientation
    return Pose(np.array([at.x, at.y, at.z]), np.array([turned.x, turned.y, turned.z, turned.w]))


def read_pose(msg: Any, base_frame: str) -> Pose:
    """
    Return the pose of a `PoseStamped` in the base frame.

    Raises:
        MessageError: It is in another frame, or not finite.
    """
    frame = msg.header.frame_id
    if frame != base_frame:
        raise MessageError(
            f'in frame {frame!r}, expected {base_frame!r} (parameter command.base_frame)'
        )
    pose = to_pose(msg)
    if not np.isfinite([*pose.position, *pose.quat_xyzw]).all():
        raise MessageError('the pose is not finite')
    return pose


def pose_values(pose: Pose) -> dict[str, float]:
    """Return a pose by the names of `POSE_SOURCES`."""
    return dict(zip(POSE_SOURCES, np.concatenate([pose.position, pose.quat_xyzw])))


def read_joints(msg: Any, wanted: Iterable[str]) -> dict[str, float]:
    """
    Return the positions of a `JointState` by source name, `joint.<name>`.

    Raises:
        MessageError: One of the wanted sources is not there or not finite; all are listed.
    """
    values = {f'{JOINT_PREFIX}{name}': value for name, value in zip(msg.name, msg.position)}
    unusable = [source for source in wanted if not np.isfinite(values.get(source, np.nan))]
    if unusable:
        raise MessageError(f'no finite position of {unusable} in a message of {list(msg.name)}')
    return values


def chunk_from_message(msg: Any, spec: ActionSpec) -> ActionChunk:
    """
    Return the chunk of an `ActionChunk` message; its bounds and frame are those of `spec`.

    Raises:
        ValueError: The message was made for another action spec.
    """
    theirs = (tuple(msg.names), tuple(msg.units), msg.delta, to_nanoseconds(msg.step_duration))
    ours = (spec.names, spec.units, spec.delta, spec.period_ns)
    if theirs != ours:
        raise ValueError(f'the chunk has names, units, delta, period {theirs}, expected {ours}')
    return ActionChunk(
        np.array(msg.actions).reshape(msg.horizon, -1),
        spec,
        to_nanoseconds(msg.header.stamp),
        msg.instruction,
        msg.precision,
        msg.head,
        msg.sequence,
        msg.epoch,
        {'inference': to_nanoseconds(msg.inference_time) / _SECOND_NS},
    )
