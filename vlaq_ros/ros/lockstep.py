"""
Control in lockstep with a simulator that waits: each complete observation is answered once.

No timer and no age is involved. The answer carries the stamp of the observation, so the same start
gives the same actions however fast either side computes. Where motion is not allowed there is no
answer, and the simulator reports it.
"""

from vlaq_ros.control.supervisor import ControlState
from vlaq_ros.errors import UnsafeActionError
from vlaq_ros.ros.control_loop import ControlLoop


class LockstepLoop(ControlLoop):
    """A control loop that is driven by its inputs; see `ControlLoop` for the arguments."""

    _answered_ns: int | None = None
    _asked: tuple[int, int] | None = None

    def stored(self) -> None:
        """Answer when the last sample completed an observation."""
        now_ns = self._inputs.complete_stamp_ns()
        if now_ns is None or self.supervisor.state in (ControlState.INACTIVE, ControlState.FAULT):
            return
        if self._answered_ns is not None and now_ns <= self._answered_ns:
            return
        if self.instruction_problem:
            self.hold(self.instruction_problem, now_ns)
        elif not self._outputs.has_listeners():
            self.hold('nobody listens to the commands yet', now_ns)
        elif self.drift.stop:
            self.hold(self.drift.stop, now_ns)
        elif not self.player.needs_inference(now_ns):
            self._answer(now_ns)
        elif self._asked != (now_ns, self.epoch):
            self._asked = (now_ns, self.epoch)
            self._submit(now_ns)

    def instruction_changed(self, now_ns: int) -> None:
        """Follow the new sentence; the observation that waited for one is answered now."""
        super().instruction_changed(now_ns)
        self.stored()

    def clock_went_back(self, now_ns: int) -> None:
        """Begin again in the new time."""
        self._answered_ns = None
        super().clock_went_back(now_ns)
        self.stored()

    def reset(self, now_ns: int) -> None:
        """Reset, and answer the observation that waits."""
        super().reset(now_ns)
        self.stored()

    def tick(self, now_ns: int) -> None:
        """Do nothing: inputs drive this loop."""

    def watch(self, now_ns: int) -> None:
        """Take over finished inferences; nobody moves while nothing arrives."""
        self.collect(now_ns)
        missing = self._inputs.missing()
        if missing and self.supervisor.state is ControlState.WAITING:
            self.hold(f'nothing received yet on {", ".join(missing)}', now_ns)

    def collect(self, now_ns: int) -> None:
        """Take over what the worker has finished and answer with it."""
        failed = self.counts['failed inferences']
        super().collect(now_ns)
        if self.counts['failed inferences'] > failed:
            self._asked = None  # try again, until there are too many failures in a row
        self.stored()

    def _answer(self, now_ns: int) -> None:
        self._answered_ns = now_ns
        try:
            self._command(self.player.row_at(now_ns), now_ns)
        except UnsafeActionError as error:
            self.fault(str(error), now_ns)

    def _repeat_stop(self, now_ns: int) -> None:
        """Send nothing: a stop could be taken for the answer to the observation that waits."""
