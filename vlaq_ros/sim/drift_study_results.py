"""
The numbers of a drift study: limits from one half of the episodes, judged on the other.

Everything is made of the kept rows with the monitors and alarms of the node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlaq_ros.control.drift_alarm import DriftLevel, DriftLimits
from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.sim.drift_detection import (
    ChosenLimits,
    Detections,
    FalseAlarms,
    Outcome,
    choose_limits,
    detect,
    detect_all,
    false_alarms,
    scaled,
)
from vlaq_ros.sim.drift_known import KnownError
from vlaq_ros.sim.drift_readings import CALIBRATED, SOURCES, Series
from vlaq_ros.sim.drift_runs import CHOOSE, JUDGE, StudyRun
from vlaq_ros.sim.drift_series import TURNING_STREAM, StudySeries, error_model
from vlaq_ros.sim.faults import ALL_FAULTS, FAULTS, TURNING

ALARMS = (DriftLevel.WARN, DriftLevel.ERROR)
SWEEP = tuple(float(f'{factor:.3g}') for factor in np.geomspace(0.1, 4.0, 24))


@dataclass(frozen=True)
class Judged:
    """
    What some limits are worth.

    Attributes:
        limits: By level.
        detections: (source, fault, alarm) -> injected errors.
        false_alarms: (source, level, alarm) -> episodes without an error.
    """

    limits: Mapping[str, DriftLimits]
    detections: Mapping[tuple[str, str, DriftLevel], Detections]
    false_alarms: Mapping[tuple[str, str, DriftLevel], FalseAlarms]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, one entry per row of a table."""
        return {
            'limits': {level: asdict(limits) for level, limits in self.limits.items()},
            'detections': [
                {'source': s, 'fault': f, 'alarm': a.name, **asdict(found), 'rate': found.rate}
                for (s, f, a), found in self.detections.items()
            ],
            'false_alarms': [
                {
                    **{'source': source, 'level': level, 'alarm': alarm.name, **asdict(found)},
                    **{'per_episode': found.per_episode, 'per_hour': found.per_hour},
                }
                for (source, level, alarm), found in self.false_alarms.items()
            ],
        }


@dataclass(frozen=True)
class SweepPoint:
    """
    One setting of the limits, all of them multiplied by one factor.

    Attributes:
        factor: Of the chosen limits.
        false_per_episode: Share of the episodes without an error that have an alarm.
        delay_s: Fault -> median delay to WARN, errors that are never noticed counting as
            infinite [s].
    """

    factor: float
    false_per_episode: float
    delay_s: Mapping[str, float]


@dataclass(frozen=True)
class WindowResult:
    """
    Everything at one window of the monitor.

    Attributes:
        window_s: The window [s].
        chosen: Limits that hold for every level.
        chosen_by_level: Limits that each level needs.
        by_own: What is found when each level is judged by its own limits.
        by_chosen, by_default: What the limits for all levels and the present defaults are worth.
        sweep: Of the limits of the level of the errors, with the source `shadow`.
    """

    window_s: float
    chosen: ChosenLimits
    chosen_by_level: Mapping[str, ChosenLimits]
    by_own: Judged
    by_chosen: Judged
    by_default: Judged
    sweep: tuple[SweepPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            'window_s': self.window_s,
            'chosen': self.chosen.to_json(),
            'chosen_by_level': {n: c.to_json() for n, c in self.chosen_by_level.items()},
            'by_own': self.by_own.to_json(),
            'by_chosen': self.by_chosen.to_json(),
            'by_default': self.by_default.to_json(),
            'sweep': [asdict(point) for point in self.sweep],
        }


@dataclass(frozen=True)
class StudyResults:
    """
    The study.

    Attributes:
        windows: One result per window of the monitor.
        model: Where the error model of `predicted` is from.
        success: (level, fault) -> (solved, episodes) of the judged episodes.
        levels: The levels, that of the errors first.
        faults: Names of the injected errors.
        known: By fault: what is predicted and measured of it, had it been there at calibration.
    """

    windows: tuple[WindowResult, ...]
    model: str
    success: Mapping[tuple[str, str], tuple[int, int]]
    levels: tuple[str, ...]
    faults: tuple[str, ...]
    known: Mapping[str, KnownError]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            'levels': list(self.levels),
            'faults': {name: FAULTS[name].text for name in self.faults},
            'predicted_by': self.model,
            'success': [
                {'level': level, 'fault': fault, 'solved': solved, 'episodes': episodes}
                for (level, fault), (solved, episodes) in self.success.items()
            ],
            'known': {name: asdict(error) for name, error in self.known.items()},
            'windows': [window.to_json() for window in self.windows],
        }


def evaluate_study(
    runs: Sequence[StudyRun],
    store: Bundle,
    head: str,
    windows_s: Sequence[float],
    levels: Sequence[str],
) -> StudyResults:
    """
    Return the numbers of finished episodes.

    Args:
        runs: All of them.
        store: The judged policy.
        head: Its action head.
        windows_s: Windows of the monitor [s].
        levels: That of the errors first.
    """
    model, origin = error_model(runs, store, head, levels)
    faults = tuple(dict.fromkeys(run.fault for run in runs if run.fault))
    success: dict[tuple[str, str], tuple[int, int]] = {}
    for run in runs:
        if run.split == JUDGE:
            solved, episodes = success.get((run.level, run.fault), (0, 0))
            success[run.level, run.fault] = solved + run.success, episodes + 1
    results = []
    readings = StudySeries(runs, store.spec.action, model)
    for window_s in windows_s:
        results.append(_at_window(readings, window_s, levels, faults, store.spec.action.period_s))
    known = {name: readings.known(levels[0], ALL_FAULTS[name]) for name in (*faults, TURNING.name)}
    return StudyResults(tuple(results), origin, success, tuple(levels), faults, known)


def _at_window(
    readings: StudySeries,
    window_s: float,
    levels: Sequence[str],
    faults: Sequence[str],
    step_s: float,
) -> WindowResult:
    clean = {level: readings.of(CHOOSE, level, '', 'shadow', window_s) for level in levels}
    turning = {level: readings.turning(CHOOSE, level, False, window_s) for level in levels}
    chosen = choose_limits({**clean, **{f'{name} turning': s for name, s in turning.items()}})
    by_level = {
        level: choose_limits({'': clean[level], 'turning': turning[level]}) for level in levels
    }
    injected = {
        **{(s, f): readings.of(JUDGE, levels[0], f, s, window_s) for s in SOURCES for f in faults},
        (TURNING_STREAM, TURNING.name): readings.turning(JUDGE, levels[0], True, window_s),
        **{
            (CALIBRATED, name): readings.calibrated(levels[0], ALL_FAULTS[name], window_s)
            for name in (*faults, TURNING.name)
        },
    }
    healthy = {
        **{
            (s, level): readings.of(JUDGE, level, '', s, window_s)
            for s in SOURCES
            for level in levels
        },
        **{
            (TURNING_STREAM, level): readings.turning(JUDGE, level, False, window_s)
            for level in levels
        },
    }

    def judge(limits: Mapping[str, DriftLimits]) -> Judged:
        return Judged(
            limits,
            {
                (source, fault, alarm): detect_all(found, limits[levels[0]], alarm)
                for (source, fault), found in injected.items()
                for alarm in ALARMS
            },
            {
                (source, level, alarm): false_alarms(found, limits[level], alarm, step_s)
                for (source, level), found in healthy.items()
                for alarm in ALARMS
            },
        )

    own = {level: one.limits for level, one in by_level.items()}
    shadow = {fault: injected['shadow', fault] for fault in faults}
    return WindowResult(
        window_s,
        chosen,
        by_level,
        by_own=judge(own),
        by_chosen=judge(dict.fromkeys(levels, chosen.limits)),
        by_default=judge(dict.fromkeys(levels, DriftLimits())),
        sweep=_sweep(own[levels[0]], shadow, healthy['shadow', levels[0]], step_s),
    )


def _sweep(
    limits: DriftLimits,
    injected: Mapping[str, Sequence[Series]],
    healthy: Sequence[Series],
    step_s: float,
) -> tuple[SweepPoint, ...]:
    points = []
    for factor in SWEEP:
        tried = scaled(limits, factor)
        wrong = false_alarms(healthy, tried, DriftLevel.WARN, step_s).per_episode
        delays = {fault: _median_delay(found, tried) for fault, found in injected.items()}
        points.append(SweepPoint(factor, wrong, delays))
    return tuple(points)


def _median_delay(all_series: Sequence[Series], limits: DriftLimits) -> float:
    found = [detect(series, limits, DriftLevel.WARN) for series in all_series]
    delays = [
        one.delay_s if one.outcome is Outcome.DETECTED else np.inf
        for one in found
        if one.outcome in (Outcome.DETECTED, Outcome.MISSED)
    ]
    if not delays:
        return float('nan')
    return float(np.quantile(delays, 0.5, method='higher'))
