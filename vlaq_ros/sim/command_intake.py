"""
Which command the simulated arm follows next, and why a command was refused.

Plain numbers in, a decision out: no ROS. A command is taken only when it is finite, expressed in
the base frame and stamped for now; everything else is counted by reason and never executed.

In lockstep a step needs one motion (twist or target) and one gripper command, both stamped exactly
`now_ns`. Otherwise the newest motion is followed until it is older than the time-out, then the arm
stands still; the gripper keeps its last opening.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.sim.robot import PERIOD_NS


class Refusal(str, Enum):
    """Why a command was not taken."""

    NOT_FINITE = 'not_finite'
    WRONG_FRAME = 'wrong_frame'
    WRONG_JOINT = 'wrong_joint'
    OUT_OF_RANGE = 'out_of_range'
    FROM_THE_FUTURE = 'from_the_future'
    TOO_OLD = 'too_old'
    NO_EPISODE = 'no_episode'

    __str__ = str.__str__


@dataclass(frozen=True)
class Motion:
    """
    Where the hand shall go: exactly one of the two is set.

    Attributes:
        twist: [6] linear [m/s], angular [rad/s] in the base frame.
        target: [3] position in the base frame [m].
        stamp_ns: When the command was made.
    """

    twist: NDArray[np.float64] | None
    target: NDArray[np.float64] | None
    stamp_ns: int


class CommandIntake:
    """
    Holds the newest accepted commands of one episode.

    Attributes:
        frame: Name of the only frame that motions may be expressed in.
        timeout_ns: Age at which a motion ends; None in lockstep, where stamps must be exact.
        refused: Number of refused commands by reason, since construction.
        last_refusal: One sentence about the newest refusal; empty before the first.
    """

    def __init__(self, frame: str, timeout_ns: int | None) -> None:
        self.frame = frame
        self.timeout_ns = timeout_ns
        self.refused: Counter[Refusal] = Counter()
        self.last_refusal = ''
        self._running = False
        self._started_ns = 0
        self._motion: Motion | None = None
        self._gripper: float | None = None
        self._gripper_ns = -1

    def start(self, now_ns: int) -> None:
        """Begin an episode: forget every command, refuse those stamped before `now_ns`."""
        self._running, self._started_ns = True, now_ns
        self._motion, self._gripper, self._gripper_ns = None, None, -1

    def stop(self) -> None:
        """End the episode: the arm stands still and further commands are refused."""
        self._running, self._motion = False, None

    def put_twist(
        self, twist: NDArray[np.float64], frame: str, stamp_ns: int, now_ns: int
    ) -> Refusal | None:
        """Take a velocity command [6]; return the reason when it is refused."""
        refusal = self._motion_problem('twist', twist, frame, stamp_ns, now_ns)
        if refusal is None:
            self._motion = Motion(np.array(twist), None, stamp_ns)
        return refusal

    def put_target(
        self, position: NDArray[np.float64], frame: str, stamp_ns: int, now_ns: int
    ) -> Refusal | None:
        """Take a target position [3] in metres; return the reason when it is refused."""
        refusal = self._motion_problem('target pose', position, frame, stamp_ns, now_ns)
        if refusal is None:
            self._motion = Motion(None, np.array(position), stamp_ns)
        return refusal

    def put_gripper(self, opening: float, stamp_ns: int, now_ns: int) -> Refusal | None:
        """Take a gripper opening, 0 closed to 1 open; return the reason when it is refused."""
        refusal = self._problem('gripper', np.array([opening]), stamp_ns, now_ns)
        if refusal is None and not -1e-6 <= opening <= 1.0 + 1e-6:
            refusal = self._refuse(
                Refusal.OUT_OF_RANGE, f'gripper opening {opening:.4f} must be between 0 and 1'
            )
        if refusal is None:
            self._gripper, self._gripper_ns = opening, stamp_ns
        return refusal

    def refuse_joint(self, names: list[str]) -> Refusal:
        """Count a gripper command that does not name exactly the joint `gripper`."""
        return self._refuse(
            Refusal.WRONG_JOINT, f"gripper command must name the one joint 'gripper', got {names}"
        )

    def is_complete(self, now_ns: int) -> bool:
        """Whether a motion and a gripper command stamped exactly `now_ns` have arrived."""
        motion = self._motion
        return motion is not None and motion.stamp_ns == now_ns == self._gripper_ns

    def motion(self, now_ns: int) -> Motion | None:
        """Return the motion to follow now, None to stand still."""
        motion = self._motion
        if motion is None or (
            self.timeout_ns is not None and now_ns - motion.stamp_ns > self.timeout_ns
        ):
            return None
        return motion

    def gripper(self) -> float | None:
        """Return the last opening commanded in this episode, None to keep the gripper as it is."""
        return self._gripper

    def _motion_problem(
        self, what: str, values: NDArray[np.float64], frame: str, stamp_ns: int, now_ns: int
    ) -> Refusal | None:
        if frame != self.frame:
            return self._refuse(
                Refusal.WRONG_FRAME,
                f'{what} is in frame {frame!r}, this arm moves in {self.frame!r}',
            )
        return self._problem(what, values, stamp_ns, now_ns)

    def _problem(
        self, what: str, values: NDArray[np.float64], stamp_ns: int, now_ns: int
    ) -> Refusal | None:
        if not self._running:
            return self._refuse(Refusal.NO_EPISODE, f'{what}: no episode is running')
        if not np.isfinite(values).all():
            return self._refuse(Refusal.NOT_FINITE, f'{what} is not finite: {values.tolist()}')
        # Off lockstep a stamp may lie within the step that is about to be simulated.
        lead_ns = 0 if self.timeout_ns is None else PERIOD_NS
        if stamp_ns > now_ns + lead_ns:
            return self._refuse(
                Refusal.FROM_THE_FUTURE,
                f'{what} is stamped {(stamp_ns - now_ns) * 1e-9:.3f} s ahead of simulated time: '
                'the sender needs use_sim_time',
            )
        if stamp_ns < max(self._started_ns, now_ns - (self.timeout_ns or 0)):
            return self._refuse(
                Refusal.TOO_OLD, f'{what} is stamped {(now_ns - stamp_ns) * 1e-9:.3f} s ago'
            )
        return None

    def _refuse(self, reason: Refusal, sentence: str) -> Refusal:
        self.refused[reason] += 1
        self.last_refusal = sentence
        return reason
