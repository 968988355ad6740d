"""
How far a calibration is, and about how long it will take: counted in runs of the policy.

Stages are announced with the runs they are expected to take. The time of a run is measured as they
happen, so the estimate needs no table of machines; before the first one there is none.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

STAGES = {
    'samples': 'reading recordings',
    'reference': 'running the full-precision policy',
    'sensitivity': 'measuring what every channel costs the actions',
    'method': 'deciding and rounding',
    'verification': 'judging all layers together on held-out samples',
    'packing': 'writing and trying the packed bundle',
    'report': 'drawing the report',
}
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Standing:
    """
    Where a calibration stands.

    Attributes:
        stage: One of `STAGES`.
        done, total: Units of this stage.
        remaining_s: Estimated time to the end of the whole run [s]; negative: not known yet.
        message: One sentence.
    """

    stage: str
    done: int
    total: int
    remaining_s: float
    message: str


class Progress:
    """
    Counts, estimates, and tells.

    Args:
        tell: Called with every change worth telling, at most a few times a second. May raise to
            end the run.
        clock: Returns seconds.

    Attributes:
        spent_s: Stage -> seconds so far.
    """

    def __init__(
        self,
        tell: Callable[[Standing], None] = lambda standing: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._clock = tell, clock
        self._left: dict[str, float] = {}
        self._weight = 1.0
        self._runs = self._busy_s = 0.0
        self._last_s, self._told_s = clock(), float('-inf')
        self._stage, self._done, self._total, self._message = '', 0, 0, ''
        self.spent_s: dict[str, float] = {}

    def expect(self, runs: Mapping[str, float]) -> None:
        """Take stage -> runs of the policy it will take, about."""
        self._left.update(runs)

    def begin(self, stage: str, total: int, message: str = '', weight: float = 1.0) -> None:
        """
        Enter a stage.

        Args:
            stage: One of `STAGES`; its expectation is replaced by total times weight.
            total: Units, more if `step` is called more often.
            message: One sentence; that of the stage when empty.
            weight: Runs of the policy that one unit takes.
        """
        now = self._clock()
        self._spend(now)
        self._left.pop(self._stage, None)
        self._left[stage] = total * weight
        self._stage, self._done, self._total = stage, 0, total
        self._message, self._weight = message or STAGES[stage], weight
        self._say(now)

    def step(self, units: int = 1) -> None:
        """Count units of this stage as done."""
        now = self._clock()
        self._done += units
        self._total = max(self._total, self._done)
        self._left[self._stage] = (self._total - self._done) * self._weight
        self._runs += units * self._weight
        self._busy_s += now - self._last_s
        self._spend(now)
        if now - self._told_s >= _PAUSE_S or self._done == self._total:
            self._say(now)

    def end(self) -> None:
        """Leave the last stage."""
        self._spend(self._clock())
        self._left.clear()
        self._done = self._total
        self._say(self._clock())

    @property
    def remaining_s(self) -> float:
        """Estimated time to the end [s]; negative: not known yet."""
        left = sum(self._left.values())
        if not left:
            return 0.0
        return left * self._busy_s / self._runs if self._runs else -1.0

    def _spend(self, now: float) -> None:
        if self._stage:
            spent = self.spent_s.get(self._stage, 0.0)
            self.spent_s[self._stage] = spent + now - self._last_s
        self._last_s = now

    def _say(self, now: float) -> None:
        self._told_s = now
        self._tell(Standing(self._stage, self._done, self._total, self.remaining_s, self._message))
