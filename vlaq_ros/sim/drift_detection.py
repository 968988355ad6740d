"""
Alarms of the drift study: when an error is noticed, how often nothing was wrong, which limits.

Levels come from `control.drift_alarm`, hysteresis included. A detection counts from the first
wrong chunk: the chunks and the control time until a reading about a wrong chunk has the level. An
alarm that stood already when the error began is not counted as a detection, nor is an error that
changes nothing noticeable, such as a flipped gripper that is commanded half open.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.drift_alarm import DriftAlarm, DriftLevel, DriftLimits
from vlaq_ros.sim.drift_readings import Series

SIGNALS = ('m', 'rad', 'gripper')
"""Endings of the limits, in the order of `Series.window`."""
WARN_QUANTILE = 0.99
ERROR_FACTOR = 1.5
LARGEST_GRIPPER = 0.95


class Outcome(str, Enum):
    """What became of an injected error."""

    DETECTED = 'detected'
    MISSED = 'missed'
    ALREADY = 'already alarmed'
    NOTHING = 'nothing to flip'

    __str__ = str.__str__


@dataclass(frozen=True)
class Detection:
    """
    Whether and when one error was noticed.

    Attributes:
        outcome: What became of it.
        chunks: Chunks from the first wrong one to the one during which the alarm stood; NaN
            without a detection.
        delay_s: Control time from the first wrong observation to the alarm [s]; NaN as above.
    """

    outcome: Outcome
    chunks: float = math.nan
    delay_s: float = math.nan


@dataclass(frozen=True)
class Detections:
    """
    Many errors of one kind.

    Attributes:
        injected: How many.
        already: Of these, the ones that began during an alarm; they count nowhere below.
        nothing: The ones that change nothing noticeable; they count nowhere below.
        detected: How many were noticed.
        chunks, delay_s: Medians over the noticed ones; NaN when there are none.
        delay_p90_s: 90 % of the noticed ones were noticed within this [s].
    """

    injected: int
    already: int
    nothing: int
    detected: int
    chunks: float
    delay_s: float
    delay_p90_s: float

    @property
    def counted(self) -> int:
        """Errors that could be noticed."""
        return self.injected - self.already - self.nothing

    @property
    def rate(self) -> float:
        """Share of them that was noticed; NaN when there was none."""
        return self.detected / self.counted if self.counted else math.nan


@dataclass(frozen=True)
class FalseAlarms:
    """
    Alarms of episodes without an error.

    Attributes:
        episodes: How many.
        alarmed: Of these, the ones with an alarm.
        alarms: Number of times that a level was reached from below it.
        hours: Control time of all of them [h].
    """

    episodes: int
    alarmed: int
    alarms: int
    hours: float

    @property
    def per_episode(self) -> float:
        """Share of the episodes with an alarm."""
        return self.alarmed / self.episodes

    @property
    def per_hour(self) -> float:
        """Alarms per hour of motion."""
        return self.alarms / self.hours


def alarm_levels(series: Series, limits: DriftLimits) -> NDArray[np.int64]:
    """Return the level [n] after each reading."""
    alarm = DriftAlarm(limits)
    return np.array([alarm.update(*values).level for values in series.window], dtype=np.int64)


def detect(series: Series, limits: DriftLimits, least: DriftLevel) -> Detection:
    """Return whether and when the error of an episode reached a level."""
    if not series.shows:
        return Detection(Outcome.NOTHING)
    levels = alarm_levels(series, limits)
    before, after = series.chunk < series.onset, series.chunk >= series.onset
    if before.any() and levels[before][-1] >= least:
        return Detection(Outcome.ALREADY)
    reached = np.flatnonzero(after & (levels >= least))
    if not len(reached):
        return Detection(Outcome.MISSED)
    delay_s = float(series.time_s[reached[0]] - series.onset * series.period_s)
    return Detection(Outcome.DETECTED, round(delay_s / series.period_s), delay_s)


def detect_all(all_series: Sequence[Series], limits: DriftLimits, least: DriftLevel) -> Detections:
    """Return how many errors were noticed, and when."""
    found = [detect(series, limits, least) for series in all_series]
    noticed = [one for one in found if one.outcome is Outcome.DETECTED]
    delays = [one.delay_s for one in noticed] or [math.nan]
    return Detections(
        injected=len(found),
        already=sum(one.outcome is Outcome.ALREADY for one in found),
        nothing=sum(one.outcome is Outcome.NOTHING for one in found),
        detected=len(noticed),
        chunks=float(np.median([one.chunks for one in noticed] or [math.nan])),
        delay_s=float(np.median(delays)),
        delay_p90_s=float(np.quantile(delays, 0.9)),
    )


def false_alarms(
    all_series: Sequence[Series], limits: DriftLimits, least: DriftLevel, step_s: float
) -> FalseAlarms:
    """Return the alarms of episodes without an error; `step_s` is the time of a policy step."""
    alarmed = alarms = 0
    for series in all_series:
        above = alarm_levels(series, limits) >= least
        rises = int(np.count_nonzero(above & ~np.concatenate([[False], above[:-1]])))
        alarmed += rises > 0
        alarms += rises
    hours = sum(series.steps for series in all_series) * step_s / 3600.0
    return FalseAlarms(len(all_series), alarmed, alarms, hours)


@dataclass(frozen=True)
class ChosenLimits:
    """
    Limits chosen on episodes without an error.

    Attributes:
        limits: The limits.
        highest: Signal -> (99 % quantile, maximum) over the episodes of the largest reading, at
            the level where it is largest; absent where nothing was measured.
    """

    limits: DriftLimits
    highest: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {'limits': asdict(self.limits), 'highest': dict(self.highest)}


def choose_limits(by_level: Mapping[str, Sequence[Series]]) -> ChosenLimits:
    """
    Return limits that hold for every level: the largest that one of them needs.

    To warn: the 99 % quantile, over the episodes, of the largest reading. For an error: one and a
    half times the largest reading of all. Rounded up to two digits. What was not measured keeps
    its default.
    """
    values: dict[str, float] = {}
    highest: dict[str, tuple[float, float]] = {}
    for place, signal in enumerate(SIGNALS):
        peaks = [
            np.array([np.max(series.window[:, place]) for series in all_series])
            for all_series in by_level.values()
        ]
        peaks = [one[np.isfinite(one)] for one in peaks if np.isfinite(one).any()]
        if not peaks:
            continue
        warn = max(float(np.quantile(one, WARN_QUANTILE)) for one in peaks)
        largest = max(float(one.max()) for one in peaks)
        highest[signal] = warn, largest
        error = ERROR_FACTOR * largest
        if signal == 'gripper':
            error = min(error, LARGEST_GRIPPER)
        values[f'error_{signal}'] = _rounded_up(error)
        values[f'warn_{signal}'] = min(_rounded_up(warn), 0.9 * values[f'error_{signal}'])
    possible = {name: value for name, value in values.items() if value > 0.0}
    return ChosenLimits(replace(DriftLimits(), **possible), highest)


def scaled(limits: DriftLimits, factor: float) -> DriftLimits:
    """Return limits that are larger by a factor, those of the gripper up to always-agree."""
    names = [f'{kind}_{signal}' for kind in ('warn', 'error') for signal in SIGNALS]
    return replace(limits, **{name: factor * getattr(limits, name) for name in names})


def _rounded_up(value: float) -> float:
    if value <= 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f'{math.ceil(value / unit - 1e-9) * unit:.6g}')
