"""
An action chunk as target poses: where the end effector shall be after each row.

Every row starts where the row before it ended, so the limits hold along the whole way and a row
that was skipped is still counted. The first row starts at the measured pose of the observation.
A plan that begins late, or goes on after a hold, is some way off the arm: `approach` leads there.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vlaq_ros.control.commands import to_command
from vlaq_ros.control.limits import CommandLimits, LimitReason
from vlaq_ros.kinematics.actions import to_target_pose
from vlaq_ros.kinematics.lie import quat_conjugate, quat_multiply, quat_normalize, so3_exp, so3_log
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


def pose_targets(
    chunk: ActionChunk, start: Pose, limits: CommandLimits, first_row: int = 0
) -> list[PoseTarget]:
    """
    Return one target per row from `first_row` on, which begins at `start`.

    Raises:
        UnsafeActionError: A row is not finite or breaks a limit that refuses.
    """
    targets, pose = [], start
    for action in chunk.actions[first_row:]:
        command, limited = limits.check(to_command(action, chunk.spec), pose, chunk.spec.period_s)
        pose = _advance(pose, command, chunk.spec)
        targets.append(PoseTarget(pose, command.gripper, limited))
    return targets


def approach(
    start: Pose, target: Pose, limits: CommandLimits, duration_s: float
) -> tuple[Pose, tuple[LimitReason, ...]]:
    """
    Return how far towards the target the speed limits lead, and those that stepped in.

    The way is always shortened and never refused: it is not the policy that asks for it.
    """
    if duration_s <= 0.0:
        return start, ()
    turn = so3_log(quat_multiply(target.quat_xyzw, quat_conjugate(start.quat_xyzw)))
    way = np.concatenate([target.position - start.position, turn])
    speeds = replace(limits, workspace_low=None, workspace_high=None, on_exceed='clamp')
    wanted = EndEffectorCommand(way / duration_s, gripper=None)
    command, limited = speeds.check(wanted, None, duration_s)
    if not limited:
        return target, ()
    way = command.twist * duration_s
    quat = quat_normalize(quat_multiply(so3_exp(way[3:]), start.quat_xyzw))
    return Pose(start.position + way[:3], quat), limited


def _advance(pose: Pose, command: EndEffectorCommand, spec: ActionSpec) -> Pose:
    action = np.zeros(spec.dim)
    for axis, column in enumerate(spec.columns(POSITION_NAMES + ROTATION_NAMES)):
        if column is not None:
            action[column] = command.twist[axis] * spec.period_s
    (column,) = spec.columns((GRIPPER_NAME,))
    if column is not None:
        action[column] = command.gripper
    return to_target_pose(action, spec, pose)
