"""
An action chunk as target poses: where the end effector shall be after each row.

Every row starts where the row before it ended, so the limits hold along the whole way and a row
that was skipped is still counted. The first row starts at the measured pose of the observation.
"""

from typing import NamedTuple

import numpy as np

from vlaq_ros.control.commands import to_command
from vlaq_ros.control.limits import CommandLimits, LimitReason
from vlaq_ros.kinematics.actions import to_target_pose
from vlaq_ros.types import (
    GRIPPER_NAME,
    POSITION_NAMES,
    ROTATION_NAMES,
    ActionChunk,
    ActionSpec,
    EndEffectorCommand,
    Pose,
)


class PoseTarget(NamedTuple):
    """The pose and the gripper opening at the end of one row, and the limits that stepped in."""

    pose: Pose
    gripper: float | None
    limited: tuple[LimitReason, ...]


def pose_targets(chunk: ActionChunk, start: Pose, limits: CommandLimits) -> list[PoseTarget]:
    """
    Return one target per row.

    Raises:
        UnsafeActionError: A row is not finite or breaks a limit that refuses.
    """
    targets, pose = [], start
    for action in chunk.actions:
        command, limited = limits.check(to_command(action, chunk.spec), pose, chunk.spec.period_s)
        pose = _advance(pose, command, chunk.spec)
        targets.append(PoseTarget(pose, command.gripper, limited))
    return targets


def _advance(pose: Pose, command: EndEffectorCommand, spec: ActionSpec) -> Pose:
    action = np.zeros(spec.dim)
    for axis, column in enumerate(spec.columns(POSITION_NAMES + ROTATION_NAMES)):
        if column is not None:
            action[column] = command.twist[axis] * spec.period_s
    (column,) = spec.columns((GRIPPER_NAME,))
    if column is not None:
        action[column] = command.gripper
    return to_target_pose(action, spec, pose)
