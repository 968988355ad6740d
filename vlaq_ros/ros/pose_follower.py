"""
Which target pose a tick sends: the one that is due, or as much of the way there as is allowed.

A chunk is planned as a whole before it is accepted. Every step starts at the target that was sent
last, or at the measured pose after a stop, and leads no further than the speed limits allow in
the time since then. Limits that change while a chunk is executed plan its remaining rows again.
No rclpy, as in `control_loop`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.limits import CommandLimits, LimitReason
from vlaq_ros.kinematics.lie import quat_conjugate, quat_multiply, so3_log
from vlaq_ros.ros.pose_targets import PoseTarget, approach, pose_targets
from vlaq_ros.types import ActionChunk, Pose


class PoseStep(NamedTuple):
    """
    What one tick sends.

    Attributes:
        pose: Target in the base frame.
        gripper: Opening that goes with it; None commands none.
        limited: The limits that stepped in, each once.
        increment: [6] what the row asks for: translation [m] in the base frame, and rotation
            vector [rad] about the axes of the tool before it.
        row: Sequence of the chunk, and row in it.
    """

    pose: Pose
    gripper: float | None
    limited: tuple[LimitReason, ...]
    increment: NDArray[np.float64]
    row: tuple[int, int]


class PoseFollower:
    """
    Follows the targets of the chunk that is executed.

    Args:
        first_step_s: How long the first step after a stop lasts, at most the period of the
            policy [s].
    """

    def __init__(self, first_step_s: float) -> None:
        self._first_step_s = first_step_s
        self._targets: list[PoseTarget] = []
        self._must_replan = False
        self._sent: tuple[PoseStep, int] | None = None

    @property
    def has_sent(self) -> bool:
        """Whether a target was sent since `forget`."""
        return self._sent is not None

    @property
    def targets(self) -> tuple[PoseTarget, ...]:
        """The plan: one target per row of the chunk."""
        return tuple(self._targets)

    def follow(self, targets: list[PoseTarget]) -> None:
        """Follow this plan of a new chunk, made with the limits in force."""
        self._targets = targets
        self._must_replan = False

    def limits_changed(self) -> None:
        """Plan the rows that are left again before the next one is sent."""
        self._must_replan = True

    def forget(self) -> None:
        """Drop the plan and what was sent."""
        self._targets = []
        self._sent = None

    def step(
        self, chunk: ActionChunk, row: int, now_ns: int, start: Pose | None, limits: CommandLimits
    ) -> PoseStep:
        """
        Return what is to be sent now; `sent` tells that it was.

        Args:
            chunk: The chunk whose targets are followed.
            row: The row that is due.
            now_ns: On the control clock.
            start: Measured pose of an arm that is at rest; None: it is under way, to the target
                that was sent last.
            limits: In force now.

        Raises:
            UnsafeActionError: A row that had to be planned again breaks a limit that refuses.
        """
        place, period_s = (chunk.sequence, row), chunk.spec.period_s
        is_sent = False
        if start is None:
            last, sent_ns = self._sent
            start, is_sent = last.pose, last.row == place
            elapsed_s = min((now_ns - sent_ns) * 1e-9, period_s)
        else:
            elapsed_s = min(self._first_step_s, period_s)
        if self._must_replan:
            self._replan(chunk, row + is_sent, start, limits)
        target = self._targets[row]
        pose, shortened = approach(start, target.pose, limits, elapsed_s)
        before = self._targets[row - 1].pose if row else start
        limited = tuple(dict.fromkeys((*target.limited, *shortened)))
        return PoseStep(pose, target.gripper, limited, _increment(before, target.pose), place)

    def sent(self, step: PoseStep, now_ns: int) -> None:
        """Note that this was sent: the next step goes on from there."""
        self._sent = (step, now_ns)

    def _replan(self, chunk: ActionChunk, row: int, start: Pose, limits: CommandLimits) -> None:
        """Plan the rows from this one on again, from where the arm is on its way."""
        rest = pose_targets(chunk, start, limits, row)
        passed = [target._replace(pose=start, limited=()) for target in self._targets[:row]]
        self.follow(passed + rest)


def _increment(before: Pose, after: Pose) -> NDArray[np.float64]:
    turn = so3_log(quat_multiply(quat_conjugate(before.quat_xyzw), after.quat_xyzw))
    return np.concatenate([after.position - before.position, turn])
