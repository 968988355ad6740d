"""
ROS messages to the values of `vlaq_ros.types` and back. No arithmetic beyond units.

Everything is stamped by the caller: commands with the present time, chunks with the time of their
observation.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image, JointState

from vlaq_ros.data.messages import (
    chunk_from_message,
    decode_pixels,
    to_nanoseconds,
    to_pose,
)
from vlaq_ros.errors import ImageError
from vlaq_ros.policies.base import Policy
from vlaq_ros.ros.drift_control import Told
from vlaq_ros.ros.interfaces import ActionChunk as ActionChunkMessage
from vlaq_ros.ros.interfaces import DriftReport, PrecisionState
from vlaq_ros.ros.precision_report import PrecisionReport
from vlaq_ros.types import ActionChunk, EndEffectorCommand, Pose

__all__ = [
    'chunk_from_message',
    'chunk_message',
    'drift_message',
    'gripper_message',
    'image_bridge',
    'pose_message',
    'precision_message',
    'switchable',
    'to_duration',
    'to_nanoseconds',
    'to_pixels',
    'to_pose',
    'to_stamp',
    'twist_message',
]

_SECOND_NS = 1_000_000_000
# Encodings for which cv_bridge gives the same pixels as our decoder, without rounding.
_BRIDGED_ENCODINGS = ('rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8')


def to_stamp(stamp_ns: int) -> Time:
    """Return nanoseconds as a message stamp."""
    return Time(sec=stamp_ns // _SECOND_NS, nanosec=stamp_ns % _SECOND_NS)


def to_duration(seconds: float) -> Duration:
    """Return seconds as a message duration, to the nearest nanosecond."""
    duration_ns = round(seconds * _SECOND_NS)
    return Duration(sec=duration_ns // _SECOND_NS, nanosec=duration_ns % _SECOND_NS)


def to_pixels(msg: Image | CompressedImage) -> NDArray[np.uint8]:
    """
    Return the pixels of an image message: RGB uint8 [height, width, 3].

    Raises:
        ImageError: The message cannot be decoded.
    """
    if not isinstance(msg, CompressedImage):
        bridge, _ = image_bridge()
        if bridge is not None and msg.encoding in _BRIDGED_ENCODINGS:
            return bridge(msg)
    return decode_pixels(msg)


@lru_cache(maxsize=1)
def image_bridge() -> tuple[Callable[[Image], NDArray[np.uint8]] | None, str]:
    """
    Return the installed cv_bridge as a function and why, or None and why not.

    Some builds of cv_bridge misread padded rows or fail on newer numpy, so one small padded image
    must come back with the right pixels. Probed once per process.
    """
    try:
        cv_bridge = importlib.import_module('cv_bridge').CvBridge()
    except Exception as error:  # compiled modules fail in many ways, not only with ImportError
        return None, f'own decoder: cv_bridge is not usable ({error})'

    def bridged(msg: Image) -> NDArray[np.uint8]:
        try:
            return np.asarray(cv_bridge.imgmsg_to_cv2(msg, 'rgb8'))
        except Exception as error:
            raise ImageError(f'cv_bridge cannot decode a {msg.encoding} image: {error}') from error

    padded = bytes([1, 2, 3, 0, 4, 5, 6, 0])
    probe = Image(height=2, width=1, encoding='bgr8', step=4, data=padded)
    try:
        same = np.array_equal(bridged(probe), decode_pixels(probe))
    except ImageError as error:
        return None, f'own decoder: {error}'
    if not same:
        return None, 'own decoder: cv_bridge misreads padded rows'
    return bridged, 'cv_bridge'


def twist_message(command: EndEffectorCommand, frame_id: str, stamp_ns: int) -> TwistStamped:
    """Return the velocity of a command, linear [m/s] and angular [rad/s]."""
    msg = TwistStamped()
    msg.header.stamp, msg.header.frame_id = to_stamp(stamp_ns), frame_id
    linear, angular = msg.twist.linear, msg.twist.angular
    linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = map(float, command.twist)
    return msg


def pose_message(pose: Pose, frame_id: str, stamp_ns: int) -> PoseStamped:
    """Return a target pose."""
    msg = PoseStamped()
    msg.header.stamp, msg.header.frame_id = to_stamp(stamp_ns), frame_id
    at, turned = msg.pose.position, msg.pose.orientation
    at.x, at.y, at.z = map(float, pose.position)
    turned.x, turned.y, turned.z, turned.w = map(float, pose.quat_xyzw)
    return msg


def gripper_message(joint: str, position: float, stamp_ns: int) -> JointState:
    """Return a gripper command: the joint and its position [m]."""
    msg = JointState(name=[joint], position=[float(position)])
    msg.header.stamp = to_stamp(stamp_ns)
    return msg


def chunk_message(chunk: ActionChunk, frame_id: str) -> ActionChunkMessage:
    """Return a chunk as a message, stamped with its observation."""
    msg = ActionChunkMessage(
        names=list(chunk.spec.names),
        units=list(chunk.spec.units),
        delta=chunk.spec.delta,
        horizon=len(chunk.actions),
        actions=chunk.actions.ravel().tolist(),
        step_duration=to_duration(chunk.spec.period_s),
        sequence=chunk.sequence,
        epoch=chunk.epoch,
        instruction=chunk.instruction,
        precision=chunk.precision,
        head=chunk.head,
        inference_time=to_duration(chunk.inference_s),
    )
    msg.header.stamp, msg.header.frame_id = to_stamp(chunk.observed_ns), frame_id
    return msg


def precision_message(policy: Policy, report: PrecisionReport) -> PrecisionState:
    """Return the precision that a loaded policy runs at, and what has become of changes."""
    memory = policy.memory()
    unpacked_bits = 16.0 if policy.precision == 'bf16' else 32.0
    msg = PrecisionState(
        precision=policy.precision,
        requested=report.requested,
        available=list(policy.precisions),
        switchable=switchable(policy),
        mean_bits_per_weight=float(memory.mean_bits_per_weight),
        activation_bits=memory.activation_bits if memory.quantized_layers else unpacked_bits,
        weight_bytes=memory.weight_bytes,
        quantized_layers=memory.quantized_layers,
        kernel=memory.kernel,
        reason=report.reason,
        changes=report.changes,
        rolled_back=report.rolled_back,
        level=list(report.share_of_inferences),
        share_of_inferences=list(report.share_of_inferences.values()),
        share_of_time=[report.share_of_time.get(k, 0.0) for k in report.share_of_inferences],
        measured=list(report.latency_s),
        latency=list(report.latency_s.values()),
    )
    msg.header.stamp = to_stamp(report.since_ns)
    return msg


def drift_message(told: Told, frame_id: str) -> DriftReport:
    """Return a reading of drift, stamped with the observation that both chunks answer."""
    reading = told.reading
    drift = reading.drift
    msg = DriftReport(
        source=reading.source,
        precision=reading.precision,
        reference_precision=reading.reference_precision,
        sequence=reading.sequence,
        epoch=reading.epoch,
        steps=drift.steps,
        position_per_step=drift.position_per_step_m,
        position_accumulated=drift.position_accumulated_m,
        rotation_per_step=drift.rotation_per_step_rad,
        rotation_accumulated=drift.rotation_accumulated_rad,
        gripper_disagreement=drift.gripper_disagreement,
        position_deviation=reading.deviation_m,
        rotation_deviation=reading.deviation_rad,
        window_position=reading.window_m,
        window_rotation=reading.window_rad,
        window_gripper=reading.window_gripper,
        jerk_ratio=reading.jerk_ratio,
        smoothness=reading.smoothness,
        reference_smoothness=reading.reference_smoothness,
        window=to_duration(told.window_s),
        delay=to_duration(told.delay_s),
        level=int(reading.level),
        reason=reading.reason,
    )
    msg.header.stamp, msg.header.frame_id = to_stamp(reading.observed_ns), frame_id
    return msg


def switchable(policy: Policy) -> list[str]:
    """Return what a loaded policy can be switched to, e.g. `llm w4a8`."""
    return [f'{group} {level}' for group, each in policy.levels.items() for level in each]
