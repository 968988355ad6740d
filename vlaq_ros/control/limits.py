"""
The last check before a command is sent: finite, speed, step, workspace and gripper range.

A command that breaks a limit is either clamped towards rest or refused, as configured; a command
that is not finite, or that cannot be checked because the pose is unknown, is refused always.
Clamping never reverses, never speeds up and never turns a motion other than by stopping the part
that leads out of the workspace. Every intervention has a reason that can be published and counted.

These limits know positions and velocities of the end effector. They know nothing of joints,
collisions or forces and do not replace the safety functions of the robot.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError, UnsafeActionError
from vlaq_ros.types import ActionChunk, EndEffectorCommand, Pose

_TOLERANCE = 1.0 + 1e-9  # a clamped command must pass the same check again


class LimitReason(str, Enum):
    """Which limit stepped in."""

    NOT_FINITE = 'not_finite'
    UNKNOWN_POSE = 'unknown_pose'
    LINEAR_SPEED = 'linear_speed'
    LINEAR_STEP = 'linear_step'
    ANGULAR_SPEED = 'angular_speed'
    WORKSPACE = 'workspace'
    GRIPPER = 'gripper'

    __str__ = str.__str__


class RefusedCommandError(UnsafeActionError):
    """
    A command was refused.

    Attributes:
        reasons: Every limit that it breaks.
    """

    def __init__(self, problems: dict[LimitReason, str]) -> None:
        self.reasons = tuple(problems)
        super().__init__('command refused: ' + '; '.join(problems.values()))


@dataclass(frozen=True)
class CommandLimits:
    """
    What a command may ask for.

    Attributes:
        max_linear_speed: Of the end effector [m/s].
        max_angular_speed: Of the end effector [rad/s].
        workspace_low: Lowest position of the end effector in the base frame [m]; None: no limit.
        workspace_high: Highest position, given together with `workspace_low` [m].
        max_linear_step: Longest way within one control period [m]; None: no limit beyond speed.
        on_exceed: `clamp` or `refuse`.
    """

    max_linear_speed: float
    max_angular_speed: float
    workspace_low: tuple[float, float, float] | None = None
    workspace_high: tuple[float, float, float] | None = None
    max_linear_step: float | None = None
    on_exceed: str = 'clamp'

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ConfigError('the command limits are not valid:\n  ' + '\n  '.join(problems))

    def check(
        self, command: EndEffectorCommand, pose: Pose | None, period_s: float
    ) -> tuple[EndEffectorCommand, tuple[LimitReason, ...]]:
        """
        Return the command that may be sent, and every limit that stepped in.

        A command within all limits comes back as it is. A gripper opening outside 0 to 1 counts as
        an excess like any other, so a policy should bound it by the range in its spec.

        Args:
            command: What is asked for.
            pose: Where the end effector is, in the base frame; needed when a workspace is set.
            period_s: How long the command will be carried out [s].

        Raises:
            RefusedCommandError: The command is not finite, cannot be checked, or breaks a limit
                while `on_exceed` is `refuse`. All reasons are listed.
            ValueError: The period is not positive.
        """
        if not (math.isfinite(period_s) and period_s > 0):
            raise ValueError(f'period_s must be positive, got {period_s}')
        _require_finite_command(command)
        problems: dict[LimitReason, str] = {}
        linear = self._limit_linear(command.twist[:3], period_s, problems)
        angular = _shorten(
            command.twist[3:], self.max_angular_speed, LimitReason.ANGULAR_SPEED, 'rad/s', problems
        )
        linear = self._limit_workspace(linear, command.frame, pose, period_s, problems)
        gripper = _limit_gripper(command.gripper, problems)
        if not problems:
            return command, ()
        if self.on_exceed == 'refuse':
            raise RefusedCommandError(problems)
        limited = replace(command, twist=np.concatenate([linear, angular]), gripper=gripper)
        return limited, tuple(problems)

    def _limit_linear(
        self, linear: NDArray, period_s: float, problems: dict[LimitReason, str]
    ) -> NDArray:
        linear = _shorten(linear, self.max_linear_speed, LimitReason.LINEAR_SPEED, 'm/s', problems)
        if self.max_linear_step is None:
            return linear
        step = _shorten(
            linear * period_s, self.max_linear_step, LimitReason.LINEAR_STEP, 'm', problems
        )
        return step / period_s if LimitReason.LINEAR_STEP in problems else linear

    def _limit_workspace(
        self,
        linear: NDArray,
        frame: str,
        pose: Pose | None,
        period_s: float,
        problems: dict[LimitReason, str],
    ) -> NDArray:
        """
        Stop the part of the motion that leads out of the workspace.

        Outside of it, motion towards the inside passes and motion further away does not.
        """
        if self.workspace_low is None or not linear.any():
            return linear  # what stands still cannot leave
        rotation = _base_from(frame, pose)
        velocity = rotation @ linear
        to_low = np.subtract(self.workspace_low, pose.position) / period_s
        to_high = np.subtract(self.workspace_high, pose.position) / period_s
        allowed = np.clip(velocity, np.minimum(to_low, 0.0), np.maximum(to_high, 0.0))
        leaving = np.abs(velocity - allowed) > 1e-9  # [m/s]: no limit for rounding
        if not leaving.any():
            return linear
        target = pose.position + velocity * period_s
        axes = ', '.join(
            f'{"xyz"[i]}={target[i]:.4f} m not within '
            f'{self.workspace_low[i]:g} to {self.workspace_high[i]:g} m'
            for i in np.flatnonzero(leaving)
        )
        problems[LimitReason.WORKSPACE] = f'it leads out of the workspace: {axes}'
        return rotation.T @ allowed


def require_finite(chunk: ActionChunk) -> None:
    """
    Check all rows of a chunk before the first one is executed.

    Raises:
        RefusedCommandError: Some have values that are not finite; all of them are listed.
    """
    rows = np.flatnonzero(~np.isfinite(chunk.actions).all(axis=1))
    if len(rows):
        text = f'chunk {chunk.sequence} has values that are not finite in rows {rows.tolist()}'
        raise RefusedCommandError({LimitReason.NOT_FINITE: text})


def _problems(limits: CommandLimits):
    for name in ('max_linear_speed', 'max_angular_speed', 'max_linear_step'):
        value = getattr(limits, name)
        if value is None and name == 'max_linear_step':
            continue
        if not (math.isfinite(value) and value > 0):
            yield f'{name}={value} must be positive and finite'
    if limits.on_exceed not in ('clamp', 'refuse'):
        yield f"on_exceed={limits.on_exceed!r} must be 'clamp' or 'refuse'"
    low, high = limits.workspace_low, limits.workspace_high
    if low is None and high is None:
        return
    if low is None or high is None or not len(low) == len(high) == 3:
        yield f'workspace_low={low} and workspace_high={high} must both have 3 values, or be None'
    elif not (np.isfinite([*low, *high]).all() and np.less(low, high).all()):
        yield f'workspace_low={low} must be finite and below workspace_high={high} on every axis'


def _require_finite_command(command: EndEffectorCommand) -> None:
    gripper = 0.0 if command.gripper is None else command.gripper
    if np.isfinite(command.twist).all() and math.isfinite(gripper):
        return
    text = f'twist {command.twist.tolist()}, gripper {command.gripper} is not finite'
    raise RefusedCommandError({LimitReason.NOT_FINITE: text})


def _shorten(
    vector: NDArray,
    longest: float,
    reason: LimitReason,
    unit: str,
    problems: dict[LimitReason, str],
) -> NDArray:
    """Scale a vector down to the longest allowed, keeping its direction."""
    length = math.hypot(*vector)  # does not overflow where the sum of squares would
    if length <= longest * _TOLERANCE:
        return vector
    name = reason.value.replace('_', ' ')
    problems[reason] = f'{name} {length:.4g} {unit} is above {longest:g} {unit}'
    return vector * (longest / length)


def _limit_gripper(gripper: float | None, problems: dict[LimitReason, str]) -> float | None:
    if gripper is None or 0.0 <= gripper <= 1.0:
        return gripper
    problems[LimitReason.GRIPPER] = f'gripper {gripper:.4g} is outside 0 (closed) to 1 (open)'
    return min(max(gripper, 0.0), 1.0)


def _base_from(frame: str, pose: Pose | None) -> NDArray:
    """Return the rotation [3, 3] that takes a vector in `frame` to the base frame."""
    if pose is None:
        text = 'the pose of the end effector is unknown, so the workspace cannot be checked'
        raise RefusedCommandError({LimitReason.UNKNOWN_POSE: text})
    norm = float(np.linalg.norm(pose.quat_xyzw))
    if not (np.isfinite(pose.position).all() and 0.99 < norm < 1.01):
        text = f'the pose of the end effector is not a pose: {pose}'
        raise RefusedCommandError({LimitReason.UNKNOWN_POSE: text})
    if frame == 'base':
        return np.eye(3)
    x, y, z, w = pose.quat_xyzw / norm
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + 2.0 * w * cross + 2.0 * cross @ cross
