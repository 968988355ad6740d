"""
Whether the arm may move, and why not.

The states are those of `PolicyStatus.msg`. A hold ends by itself as soon as motion is possible
again; a fault stays until it is reset, whatever happens in between. Every stop is a command that
is repeated for a while: a controller that missed the first one still stops.
"""

from enum import IntEnum


class ControlState(IntEnum):
    """What the control loop is doing; the numbers are those of `PolicyStatus.msg`."""

    INACTIVE = 0
    WAITING = 1
    RUNNING = 2
    HOLDING = 3
    FAULT = 4


class Supervisor:
    """
    The state of the control loop.

    Args:
        stop_repeat_s: How long the stop command is repeated [s].

    Attributes:
        state: What the loop is doing.
        reason: Why it does not move; empty while running.
        since_ns: When the state began, on the control clock.
    """

    def __init__(self, stop_repeat_s: float) -> None:
        self.stop_repeat_s = stop_repeat_s
        self.state = ControlState.INACTIVE
        self.reason = 'not active'
        self.since_ns = 0
        self._stop_until_s: float | None = None
        self._is_stop_owed = False  # even when it is repeated for no time at all

    def activate(self, now_ns: int) -> None:
        """Begin to wait for the first complete observation."""
        self._enter(ControlState.WAITING, 'activated', now_ns)
        self._end_stop()

    def deactivate(self, reason: str, now_ns: int) -> None:
        """Command nothing any more."""
        self._enter(ControlState.INACTIVE, reason, now_ns)
        self._end_stop()

    def run(self, now_ns: int) -> bool:
        """Ask to move; return whether motion is allowed."""
        if self.state in (ControlState.INACTIVE, ControlState.FAULT):
            return False
        self._enter(ControlState.RUNNING, '', now_ns)
        self._end_stop()
        return True

    def hold(self, reason: str, now_ns: int, steady_s: float) -> None:
        """Stop until motion is possible again. Before the first motion this is waiting."""
        if self.state in (ControlState.WAITING, ControlState.HOLDING):
            self.reason = reason
        elif self.state is ControlState.RUNNING:
            self._enter(ControlState.HOLDING, reason, now_ns)
            self._begin_stop(steady_s)

    def fault(self, reason: str, now_ns: int, steady_s: float) -> None:
        """Stop until `reset`. The first reason stays."""
        if self.state in (ControlState.INACTIVE, ControlState.FAULT):
            return
        self._enter(ControlState.FAULT, reason, now_ns)
        self._begin_stop(steady_s)

    def reset(self, now_ns: int) -> None:
        """Leave a fault and wait for a new observation; what moves is stopped by a hold."""
        if self.state is ControlState.FAULT:
            self._enter(ControlState.WAITING, 'reset', now_ns)

    def must_send_stop(self, steady_s: float) -> bool:
        """Whether the stop command is due at this steady time [s]; the first one always is."""
        if self._stop_until_s is None:
            return False
        return self._is_stop_owed or steady_s <= self._stop_until_s

    def stop_sent(self) -> None:
        """Note that the stop command went out: from now on it is only repeated."""
        self._is_stop_owed = False

    def _begin_stop(self, steady_s: float) -> None:
        self._stop_until_s = steady_s + self.stop_repeat_s
        self._is_stop_owed = True

    def _end_stop(self) -> None:
        self._stop_until_s = None
        self._is_stop_owed = False

    def _enter(self, state: ControlState, reason: str, now_ns: int) -> None:
        if state is not self.state:
            self.since_ns = now_ns
        self.state, self.reason = state, reason
