"""
What the arm was commanded since the last decision about precision: motion, gripper, stops.

The same readings as `calibration` and `sim` take from recorded actions. No rclpy, as in
`control_loop`.
"""

from typing import NamedTuple

from numpy.typing import NDArray

from vlaq_ros.control.precision import SafetyEvent
from vlaq_ros.control.precision_controller import GripperWatch
from vlaq_ros.kinematics.motion import (
    MotionReading,
    MotionScale,
    MotionTracker,
    OnlineMotionScale,
    motion_phase,
)


class Commanded(NamedTuple):
    """
    What was commanded between two decisions.

    Attributes:
        sensitivities: One per row, oldest first; None while the windows are not full.
        events: What happened that forces full precision.
    """

    sensitivities: tuple[float | None, ...]
    events: frozenset[SafetyEvent]


class CommandedMotion:
    """
    Collects what was commanded until a decision takes it.

    Args:
        scale: What counts as coarse and as abrupt.

    Attributes:
        phase: Of the motion before the last `take`; see `motion_phase`.
    """

    def __init__(self, scale: MotionScale | OnlineMotionScale) -> None:
        self._gripper = GripperWatch()
        self.rescale(scale)
        self._forget()

    def rescale(self, scale: MotionScale | OnlineMotionScale) -> None:
        """Read motion by this scale from now on, with empty windows."""
        self._tracker = MotionTracker(scale)

    def executed(
        self, increment: NDArray, gripper: float | None, row: tuple[int, int], *, resumed: bool
    ) -> None:
        """
        Note what was commanded.

        Args:
            increment: [6] translation [m] and rotation vector [rad] of this action, as commanded.
            gripper: Commanded opening, 0 closed to 1 open; None commands none.
            row: Sequence of the chunk and row in it; a row that is sent again counts once.
            resumed: Whether this is the first motion after a stop.
        """
        if resumed:
            self._events.add(SafetyEvent.STOP_RECOVERY)
        if row == self._row:
            return
        self._row = row
        if self._gripper.update(gripper):
            self._events.add(SafetyEvent.GRIPPER)
        self._reading = self._tracker.update(increment)
        self._sensitivities.append(self._reading.sensitivity)

    def stopped(self) -> None:
        """Note that the arm was stopped while it moved: it recovers at full precision."""
        self._events.add(SafetyEvent.STOP_RECOVERY)

    def take(self) -> Commanded:
        """Return what was commanded since the last call, for a decision about what follows."""
        commanded = Commanded(tuple(self._sensitivities), frozenset(self._events))
        self._sensitivities, self._events = [], set()
        self.phase = motion_phase(self._reading, SafetyEvent.GRIPPER in commanded.events)
        return commanded

    def new_epoch(self) -> None:
        """Begin a new episode; a stop is still to be recovered from."""
        events = self._events
        self._forget()
        self._events = events & {SafetyEvent.STOP_RECOVERY}

    def _forget(self) -> None:
        self._sensitivities: list[float | None] = []
        self._events: set[SafetyEvent] = set()
        self._reading = MotionReading(None, None, None)
        self.phase = motion_phase(self._reading, gripper_moves=False)
        self._row: tuple[int, int] | None = None
        self._gripper.reset()
        self._tracker.reset()
