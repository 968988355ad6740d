"""
Drift of a running policy, chunk by chunk: one definition for the node, evaluation and recordings.

Whoever has a chunk and what a reference answers to the same observation gets a reading: the drift
of the rows that are executed, its mean over a window, and the level of alarm. Without a reference
an error model predicts the reading with its uncertainty: from what calibration measured, an error
of the level included; what goes wrong while the robot works reaches no prediction.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlaq_ros.control.drift_alarm import DriftAlarm, DriftLevel, DriftLimits
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.drift import Drift, DriftWindow, open_loop_drift
from vlaq_ros.kinematics.predicted_drift import ANY_PHASE, PredictedDrift
from vlaq_ros.types import ActionChunk, ActionSpec

SOURCES = ('shadow', 'higher', 'remote', 'predicted')
"""Where a reference comes from; see `DriftReport.msg`."""

PREDICTED = 'predicted'


@dataclass(frozen=True)
class DriftReading:
    """
    What is known about the drift of one chunk.

    Attributes:
        sequence, epoch, observed_ns: Of the judged chunk.
        source: One of `SOURCES`.
        precision: Level of the judged policy.
        reference_precision: Level of the reference.
        drift: Of the executed rows of this chunk.
        deviation_m, deviation_rad: Standard deviation of the accumulated drift where it is
            predicted [m, rad]; NaN: it was measured.
        window_m, window_rad: Mean over the window of the drift accumulated in a chunk [m, rad].
        window_gripper: Mean over the window of the gripper disagreement [1].
        jerk_ratio, smoothness, reference_smoothness: Of the window; see `StreamDrift`.
        level: After hysteresis.
        reason: Why the level is what it is.
    """

    sequence: int
    epoch: int
    observed_ns: int
    source: str
    precision: str
    reference_precision: str
    drift: Drift
    deviation_m: float
    deviation_rad: float
    window_m: float
    window_rad: float
    window_gripper: float
    jerk_ratio: float
    smoothness: float
    reference_smoothness: float
    level: DriftLevel
    reason: str


class DriftMonitor:
    """
    Compares chunks with references and remembers the window; not thread-safe.

    Args:
        spec: What the actions mean.
        horizon: Rows of a chunk that are executed, and compared.
        limits: When drift is worth a warning.
        window_s: How long a chunk counts [s].
    """

    def __init__(
        self, spec: ActionSpec, horizon: int, limits: DriftLimits, window_s: float = 0.5
    ) -> None:
        if horizon < 1:
            raise ConfigError(f'horizon = {horizon} must be at least 1')
        self.spec = spec
        self.horizon = horizon
        self._alarm = DriftAlarm(limits)
        self._window = DriftWindow(spec)
        self._recent: deque[tuple[int, Drift]] = deque()
        self.change(limits, window_s)

    def change(self, limits: DriftLimits, window_s: float) -> None:
        """
        Judge by these from the next reading on; window and level go on as they are.

        Raises:
            ConfigError: The window is not positive; nothing is changed.
        """
        if not 0.0 < window_s < math.inf:
            raise ConfigError(f'window_s = {window_s} must be positive')
        self.window_s = window_s
        self._window.window_ns = round(window_s * 1e9)
        self._alarm.limits = limits

    def reset(self) -> None:
        """Begin a new episode."""
        self._alarm.reset()
        self._window.reset()
        self._recent.clear()

    def measured(self, chunk: ActionChunk, reference: ActionChunk, source: str) -> DriftReading:
        """
        Take a chunk and the reference's answer to the same observation.

        Raises:
            ValueError: The two answer different observations, differ in shape, or are not finite.
        """
        if reference.observed_ns != chunk.observed_ns:
            raise ValueError(
                f'the chunk answers the observation at {chunk.observed_ns} ns, its reference that '
                f'at {reference.observed_ns} ns'
            )
        rows = slice(self.horizon)
        pair = chunk.actions[rows], reference.actions[rows]
        drift = open_loop_drift(*pair, self.spec)
        stream = self._window.add(*pair, chunk.observed_ns)
        return self._reading(
            chunk,
            source,
            reference.precision,
            drift,
            (math.nan, math.nan),
            (stream.jerk_ratio, stream.sparc, stream.reference_sparc),
        )

    def predicted(
        self,
        chunk: ActionChunk,
        model: PredictedDrift,
        level: str,
        phase: str = ANY_PHASE,
        reference_precision: str = 'fp32',
    ) -> DriftReading:
        """
        Predict the drift of a chunk from how wrong its level usually is.

        It tells how wrong the level was when it was calibrated, a bias or a gripper on the wrong
        side included, for the motion that is commanded now. A fault that came later is not in it.

        Args:
            chunk: What is judged.
            model: Error of single actions, from a calibration.
            level: That the chunk was inferred at, as the model names it.
            phase: Of the motion, as the model names it; all phases together where it does not.
            reference_precision: What the errors of the model are relative to.

        Raises:
            ConfigError: The model does not know the level.
        """
        actions = chunk.actions[: self.horizon]
        forecast = model.predict(actions, (level,) * len(actions), (phase,) * len(actions))
        single = [model.predict(row[None], (level,), (phase,)) for row in actions]
        has_rotation = self.spec.has_rotation
        drift = Drift(
            float(np.mean([one.position_rms_m for one in single])),
            forecast.position_rms_m,
            float(np.mean([one.rotation_rms_rad for one in single])) if has_rotation else math.nan,
            forecast.rotation_rms_rad if has_rotation else math.nan,
            forecast.gripper_disagreement,
            len(actions),
        )
        linear, angular = (
            np.trace(forecast.covariance[:3, :3]),
            np.trace(forecast.covariance[3:, 3:]),
        )
        deviation = (math.sqrt(linear), math.sqrt(angular) if has_rotation else math.nan)
        nothing = (math.nan, math.nan, math.nan)
        return self._reading(chunk, PREDICTED, reference_precision, drift, deviation, nothing)

    def _reading(
        self,
        chunk: ActionChunk,
        source: str,
        reference_precision: str,
        drift: Drift,
        deviation: tuple[float, float],
        smoothness: tuple[float, float, float],
    ) -> DriftReading:
        means = self._window_means(chunk.observed_ns, drift)
        alarm = self._alarm.update(
            means['position_accumulated_m'],
            means['rotation_accumulated_rad'],
            means['gripper_disagreement'],
        )
        return DriftReading(
            chunk.sequence,
            chunk.epoch,
            chunk.observed_ns,
            source,
            chunk.precision,
            reference_precision,
            drift,
            *deviation,
            *means.values(),
            *smoothness,
            *alarm,
        )

    def _window_means(self, observed_ns: int, drift: Drift) -> Mapping[str, float]:
        """Return the means of the chunks observed within the window before this one."""
        recent = self._recent
        if recent and observed_ns < recent[-1][0]:
            recent.clear()  # the clock was set back
        recent.append((observed_ns, drift))
        while observed_ns - recent[0][0] >= self._window.window_ns:
            recent.popleft()
        names = ('position_accumulated_m', 'rotation_accumulated_rad', 'gripper_disagreement')
        return {name: float(np.mean([getattr(d, name) for _, d in recent])) for name in names}
