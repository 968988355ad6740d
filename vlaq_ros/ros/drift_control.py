"""
Drift of the running policy: asked for, judged, and answered with what the operator has chosen.

A reading is about a chunk that is being executed already: drift is noticed one inference of the
reference late. A source without answers is reported and never stops the arm. What an alarm has
stopped or raised stays so until readings say that it is over, or the epoch ends.

Everything here runs on the executor thread except `beside`, which runs on the inference thread. No
rclpy, as in `control_loop`.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vlaq_ros.control.drift_alarm import DriftLevel
from vlaq_ros.errors import VlaqError
from vlaq_ros.kinematics.predicted_drift import ANY_PHASE, PredictedDrift
from vlaq_ros.policies.drift_monitor import DriftMonitor, DriftReading
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.ros.drift_parameters import RAISE, STOP, DriftParameters
from vlaq_ros.ros.drift_sources import ReferenceSource
from vlaq_ros.ros.local_reference import InlineReference, ThreadedReference
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.types import ActionChunk, Observation

_REMEMBERED = 1024
STALLED_S = 5.0
"""A source that was asked and has been silent for longer than this is stalled [s]."""


class Told(NamedTuple):
    """
    A reading at the moment it is told.

    Attributes:
        reading: What is known about one chunk.
        window_s: Length of its window [s].
        delay_s: Since the inference that is judged, on the control clock [s].
    """

    reading: DriftReading
    window_s: float
    delay_s: float


@dataclass(frozen=True)
class DriftParts:
    """
    What the drift of a loaded policy is measured with.

    Attributes:
        source: Who answers the observations a second time; None: nobody.
        model: Error model, where drift is predicted instead; None: it is not.
        names: What runs -> under which name the model knows it.
        reference_precision: What the errors of the model are relative to.
    """

    source: ReferenceSource | None = None
    model: PredictedDrift | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    reference_precision: str = ''


class DriftControl:
    """
    Judges the chunks of one policy, and says what follows.

    Args:
        spec: Of the policy.
        config: Parameters of the node.
        parts: What drift is measured with; `drift_setup` makes them.
        steady: Returns seconds of a clock that never stops or jumps.

    Attributes:
        last: The newest reading of this epoch; None: none yet.
        readings: Number of readings since the node was configured.
    """

    def __init__(
        self,
        spec: PolicySpec,
        config: PolicyParameters,
        parts: DriftParts | None = None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.last: DriftReading | None = None
        self.readings = 0
        self._config: DriftParameters = config.drift
        self._parts = parts or DriftParts()
        self._steady = steady
        horizon = min(config.execution_horizon or spec.execution_horizon, spec.horizon)
        self._monitor = DriftMonitor(
            spec.action, horizon, self._config.limits(), self._config.window_s
        )
        self._counts: Counter[str] = Counter()
        self._problem = ''
        self._accepted_ns: dict[int, int] = {}
        self._predicted: list[DriftReading] = []
        self._forget()

    @property
    def is_on(self) -> bool:
        """Whether anything is measured or predicted."""
        return self._parts.source is not None or self._parts.model is not None

    @property
    def name(self) -> str:
        """Name of the source."""
        return self._config.source

    @property
    def counts(self) -> Counter[str]:
        """What has become of the questions to the source, by kind."""
        source = self._parts.source
        return self._counts + source.counts if source is not None else self._counts

    @property
    def floor(self) -> str:
        """Why the policy shall run at its highest levels; empty: it need not."""
        is_raised = self._config.reaction == RAISE and self._level > DriftLevel.OK
        return f'drift {self._level.name}: {self._why}' if is_raised else ''

    @property
    def stop(self) -> str:
        """Why the arm shall stand still; empty: it need not."""
        if self._config.reaction != STOP or not self._has_erred:
            return ''
        return f'drift {self._level.name} ({self.name}): {self._why}; until it is OK or ~/reset'

    @property
    def trouble(self) -> str:
        """Why there are no readings; empty: nothing is wrong."""
        source = self._parts.source
        text = source.trouble if source is not None and source.trouble else self._problem
        if self._asked_s is not None:
            silent_s = self._steady() - self._asked_s
            if silent_s > STALLED_S:
                stalled = f'no answer of the reference for {silent_s:.0f} s'
                return f'{stalled}: {text}' if text else stalled
        return text

    def apply(self, config: PolicyParameters) -> None:
        """Use the parameters that may change while running; the window goes on."""
        self._config = drift = config.drift
        self._monitor.change(drift.limits(), drift.window_s)
        if isinstance(self._parts.source, ThreadedReference):
            self._parts.source.duty = drift.duty

    def close(self) -> None:
        """Release the source."""
        if self._parts.source is not None:
            self._parts.source.close()

    def new_epoch(self, epoch: int) -> None:
        """Begin a new episode: no alarm, no window, and nothing under way."""
        if self._parts.source is not None:
            self._parts.source.new_epoch(epoch)
        self._monitor.reset()
        self._forget()

    def beside(self, observation: Observation, epoch: int) -> None:
        """Answer a second time on the inference thread, where the source works like that."""
        if isinstance(self._parts.source, InlineReference):
            self._parts.source.answer(observation, epoch)

    def accepted(
        self, observation: Observation, chunk: ActionChunk, now_ns: int, phase: str = ANY_PHASE
    ) -> None:
        """
        Judge a chunk that is executed from now on.

        Args:
            observation: What the policy got.
            chunk: Its answer.
            now_ns: On the control clock.
            phase: Of the motion, for a prediction.
        """
        if self._parts.source is not None:
            self._accepted_ns[chunk.sequence] = now_ns
            if len(self._accepted_ns) > _REMEMBERED:  # of a source that never answers
                del self._accepted_ns[next(iter(self._accepted_ns))]
            if self._asked_s is None:
                self._asked_s = self._steady()
            self._parts.source.submit(observation, chunk)
        elif self._parts.model is not None:
            self._predict(chunk, self._parts.model, phase)

    def collect(self, now_ns: int) -> list[Told]:
        """Return the readings since the last call, oldest first; they are in force now."""
        told = [Told(one, self._config.window_s, 0.0) for one in self._predicted]
        self._predicted = []
        for pair in self._parts.source.collect() if self._parts.source is not None else ():
            self._asked_s = None
            try:
                reading = self._monitor.measured(*pair, self._parts.source.name)
            except (ValueError, VlaqError) as error:
                self._counts['failed'] += 1
                self._problem = str(error)
                continue
            self._problem = ''
            accepted_ns = self._accepted_ns.pop(reading.sequence, now_ns)
            self._unread = reading
            told.append(Told(reading, self._config.window_s, (now_ns - accepted_ns) * 1e-9))
            self._note(reading)
        return told

    def take(self) -> DriftReading | None:
        """Return the newest measured reading, once."""
        reading, self._unread = self._unread, None
        return reading

    def _predict(self, chunk: ActionChunk, model: PredictedDrift, phase: str) -> None:
        self._counts['asked'] += 1
        level = self._parts.names.get(chunk.precision, chunk.precision)
        try:
            reading = self._monitor.predicted(
                chunk, model, level, phase, self._parts.reference_precision
            )
        except (ValueError, VlaqError) as error:
            self._counts['failed'] += 1
            self._problem = str(error)
            return
        self._counts['answered'] += 1
        self._problem = ''
        self._predicted.append(reading)
        self._note(reading)

    def _note(self, reading: DriftReading) -> None:
        self.last = reading
        self.readings += 1
        self._level, self._why = reading.level, reading.reason
        self._has_erred = reading.level is DriftLevel.ERROR or (
            self._has_erred and reading.level is not DriftLevel.OK
        )
        for sequence in [one for one in self._accepted_ns if one <= reading.sequence]:
            del self._accepted_ns[sequence]

    def _forget(self) -> None:
        self.last = self._unread = self._asked_s = None
        self._accepted_ns.clear()
        self._predicted.clear()
        self._level, self._why, self._has_erred = DriftLevel.OK, '', False
