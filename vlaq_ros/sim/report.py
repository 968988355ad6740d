"""
What an evaluation found, as numbers: one row per configuration.

Three kinds of claims are kept apart from here to the last table: success and drift, memory that is
resident, and the time of an inference. Lengths are in metres; NaN and None mean that there is
nothing to report, never zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.kinematics.drift import closed_loop_drift
from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.sim.precision_run import PrecisionRun, pooled
from vlaq_ros.sim.results import Config, Key, Record, ResultStore
from vlaq_ros.sim.rollout import Episode
from vlaq_ros.sim.statistics import Paired, compare, percentile, wilson_interval


@dataclass(frozen=True)
class ClosedLoop:
    """
    Distance of the hand to that of the reference run, until the shorter episode ends.

    Attributes:
        episodes: Paired episodes.
        at_step_12_m: Mean over the episodes that last that long [m].
        mean_m: Mean over the episodes of their mean over time [m].
        median_m: Median over the episodes of their mean over time [m].
        max_m: Mean over the episodes of their maximum [m].
        quartiles_m: [steps, 3] quartiles over the episodes at every step, while at least half of
            them last [m].
    """

    episodes: int
    at_step_12_m: float
    mean_m: float
    median_m: float
    max_m: float
    quartiles_m: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class OpenLoop:
    """
    Difference of the actions on the observations of the reference run, mean over the episodes.

    Attributes:
        episodes: Episodes that were replayed.
        position_per_step_m, position_accumulated_m: Single actions, and all of them composed [m].
        rotation_per_step_rad, rotation_accumulated_rad: The same [rad]; NaN when the policy
            commands no rotation.
        gripper_disagreement: Share of steps on different sides of half open.
    """

    episodes: int
    position_per_step_m: float
    position_accumulated_m: float
    rotation_per_step_rad: float
    rotation_accumulated_rad: float
    gripper_disagreement: float


@dataclass(frozen=True)
class Row:
    """
    One configuration.

    Attributes:
        config: Which.
        successes, episodes: Counts.
        interval: Wilson 95 % interval of the rate.
        per_task: Task -> (successes, episodes).
        stopped: Episodes that ended because the policy refused to act; they count as failed.
        paired: Against the reference run; None for a reference.
        closed_loop: None for a reference.
        open_loop: None for a reference, or when nothing was replayed.
        memory: Storage of the loaded policy.
        inferences: Inferences that were timed.
        p50_s, p95_s: Percentiles of the time of an inference [s].
        precision: What all episodes ran at; None where the precision is fixed.
        drift_by_task: Task -> mean over its episodes of the mean closed-loop drift [m]; empty for
            a reference.
    """

    config: Config
    successes: int
    episodes: int
    interval: tuple[float, float]
    per_task: dict[str, tuple[int, int]]
    stopped: int
    paired: Paired | None
    closed_loop: ClosedLoop | None
    open_loop: OpenLoop | None
    memory: MemoryReport | None
    inferences: int
    p50_s: float
    p95_s: float
    precision: PrecisionRun | None = None
    drift_by_task: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Fraction of episodes that succeeded."""
        return self.successes / self.episodes


def summarize(
    store: ResultStore, configs: Sequence[Config], episodes: Sequence[Episode]
) -> list[Row]:
    """Return one row per configuration over `episodes`, all of which must be finished."""
    keys = [(episode.task, episode.seed, episode.index) for episode in episodes]
    return [_row(store, config, keys) for config in configs]


def _row(store: ResultStore, config: Config, keys: list[Key]) -> Row:
    records = {key: store.records[config][key] for key in keys}
    reference = {key: store.records[config.reference][key] for key in keys}
    successes = sum(record.success for record in records.values())
    inference_s = [s for record in records.values() for s in record.inference_s]
    compared = not config.is_reference
    return Row(
        config=config,
        successes=successes,
        episodes=len(records),
        interval=wilson_interval(successes, len(records)),
        per_task=_per_task(records.values()),
        stopped=sum(bool(record.stopped) for record in records.values()),
        paired=compare(_outcomes(records), _outcomes(reference)) if compared else None,
        closed_loop=_closed_loop(records, reference) if compared else None,
        open_loop=_open_loop(records.values()) if compared else None,
        memory=store.memory.get(config),
        inferences=len(inference_s),
        p50_s=percentile(inference_s, 50),
        p95_s=percentile(inference_s, 95),
        precision=pooled(record.precision for record in records.values() if record.precision),
        drift_by_task=_drift_by_task(records, reference) if compared else {},
    )


def _outcomes(records: dict[Key, Record]) -> dict[Key, bool]:
    return {key: record.success for key, record in records.items()}


def _per_task(records: Iterable[Record]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for record in records:
        successes, episodes = counts.get(record.task, (0, 0))
        counts[record.task] = successes + record.success, episodes + 1
    return counts


def _closed_loop(records: dict[Key, Record], reference: dict[Key, Record]) -> ClosedLoop | None:
    pairs = [
        (record.positions, reference[key].positions)
        for key, record in records.items()
        if not record.stopped
    ]
    if not pairs:
        return None
    drifts = [closed_loop_drift(*pair) for pair in pairs]
    means = [drift.mean_m for drift in drifts]
    return ClosedLoop(
        episodes=len(pairs),
        at_step_12_m=_mean(drift.at_step_12_m for drift in drifts),
        mean_m=float(np.mean(means)),
        median_m=float(np.median(means)),
        max_m=_mean(drift.max_m for drift in drifts),
        quartiles_m=_quartiles(pairs),
    )


def _drift_by_task(records: dict[Key, Record], reference: dict[Key, Record]) -> dict[str, float]:
    means: dict[str, list[float]] = {}
    for key, record in records.items():
        if not record.stopped:
            drift = closed_loop_drift(record.positions, reference[key].positions)
            means.setdefault(record.task, []).append(drift.mean_m)
    return {task: float(np.mean(values)) for task, values in means.items()}


def _quartiles(pairs: list[tuple[NDArray, NDArray]]) -> NDArray[np.float64]:
    lengths = [min(len(first), len(second)) for first, second in pairs]
    distance = np.full((len(pairs), max(lengths)), np.nan)
    for row, steps, (first, second) in zip(distance, lengths, pairs):
        row[:steps] = np.linalg.norm(first[:steps] - second[:steps], axis=1)
    lasting = np.isfinite(distance).sum(axis=0)
    steps = int((2 * lasting >= len(pairs)).sum())  # `lasting` never rises
    return np.nanpercentile(distance[:, :steps], [25, 50, 75], axis=0).T


def _open_loop(records: Iterable[Record]) -> OpenLoop | None:
    replayed = [record.open_loop for record in records if record.open_loop is not None]
    if not replayed:
        return None
    names = (
        'position_per_step_m',
        'position_accumulated_m',
        'rotation_per_step_rad',
        'rotation_accumulated_rad',
        'gripper_disagreement',
    )
    means = {name: _mean(drift.get(name, math.nan) for drift in replayed) for name in names}
    return OpenLoop(len(replayed), **means)


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the finite values; NaN when there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
