"""
Whether the node reported, while it ran, what is found offline now: number by number.

Reports are judged again in the order in which they were sent, by a monitor that sees what the
monitor of the node saw. Numbers of single chunks are always compared. Those of the window, and the
level, depend on the chunks before, so they are compared from where all of these are known.
Predicted reports come from an error model and are listed only.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlaq_ros.analysis.drift_measure import DriftRun, Judged
from vlaq_ros.analysis.recorded_levels import group_levels
from vlaq_ros.analysis.recorded_run import Recorded
from vlaq_ros.policies.drift_monitor import PREDICTED, DriftMonitor, DriftReading

RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""How much two numbers may differ: share of the larger, plus m, rad or 1."""

CHUNK_FIELDS = {
    'steps': 'drift.steps',
    'position_per_step': 'drift.position_per_step_m',
    'position_accumulated': 'drift.position_accumulated_m',
    'rotation_per_step': 'drift.rotation_per_step_rad',
    'rotation_accumulated': 'drift.rotation_accumulated_rad',
    'gripper_disagreement': 'drift.gripper_disagreement',
}
WINDOW_FIELDS = {
    'window_position': 'window_m',
    'window_rotation': 'window_rad',
    'window_gripper': 'window_gripper',
    'jerk_ratio': 'jerk_ratio',
    'smoothness': 'smoothness',
    'reference_smoothness': 'reference_smoothness',
}
LEVEL_FIELDS = {'level': 'level'}
_LIMITS = (
    '{} levels are others than live: the limits of the node are not recorded, give them with '
    '--warn-m, --error-m, ..., --calm-after to compare levels as well'
)
FIELDS = {**CHUNK_FIELDS, **WINDOW_FIELDS, **LEVEL_FIELDS}
"""Field of `DriftReport` -> field of `DriftReading`."""


@dataclass(frozen=True)
class Difference:
    """
    A number that the node reported and the one that is found now.

    Attributes:
        sequence, epoch: Of the judged chunk.
        field: Of `DriftReport`.
        live, offline: The two numbers.
        sureness: Of the observation of the chunk; see `drift_measure.PROVEN`.
    """

    sequence: int
    epoch: int
    field: str
    live: float
    offline: float
    sureness: str = ''

    @property
    def size(self) -> float:
        """How far apart they are; infinite when only one of them is a number."""
        if math.isnan(self.live) and math.isnan(self.offline):
            return 0.0
        size = abs(self.live - self.offline) if self.live != self.offline else 0.0
        return math.inf if math.isnan(size) else size

    @property
    def is_same(self) -> bool:
        """Whether they are the same number, but for rounding."""
        larger = max(abs(self.live), abs(self.offline))
        if self.size == 0.0:
            return True
        return math.isfinite(larger) and self.size <= ABSOLUTE + RELATIVE * larger


@dataclass(frozen=True)
class LiveComparison:
    """
    What the recorded reports say next to what is found now.

    Attributes:
        reports: Number of recorded reports.
        compared: Number of reports that were compared.
        numbers: Field -> numbers that were compared.
        largest: Field -> the largest difference among them.
        wrong: Numbers that differ by more than rounding.
        remark: What else is to be said; empty: nothing.
        predicted: Number of predicted reports.
        left_out: Why reports were not compared -> how many.
        sources: Source -> number of reports.
    """

    reports: int
    compared: int
    numbers: Mapping[str, int]
    largest: Mapping[str, Difference]
    wrong: tuple[Difference, ...]
    remark: str
    predicted: int
    left_out: Mapping[str, int]
    sources: Mapping[str, int]

    @property
    def passed(self) -> bool:
        """Whether no number differs; also where none could be compared."""
        return not self.wrong

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.reports:
            return 'the bag holds no drift reports of the node'
        if not self.compared:
            return f'none of the {self.reports} recorded drift reports could be compared'
        counted = f'{self.compared} of {self.reports} recorded drift reports'
        if self.passed:
            return f'same numbers as live: {sum(self.numbers.values())} numbers of {counted}'
        return (
            f'OTHER NUMBERS than live: {len(self.wrong)} of {sum(self.numbers.values())} numbers '
            f'of {counted}'
        )


def compare_live(run: DriftRun) -> LiveComparison:
    """Compare the recorded drift reports with what was measured now."""
    reports = run.checked.recorded.reports
    sources = Counter(one.message.source for one in reports)
    left_out: Counter[str] = Counter()
    found: list[Difference] = []
    compared = 0
    for differences in _judge_again(run, reports, left_out):
        found += differences
        compared += 1
    largest: dict[str, Difference] = {}
    for one in found:
        if one.field not in largest or one.size > largest[one.field].size:
            largest[one.field] = one
    numbers = Counter(one.field for one in found)
    wrong = tuple(one for one in found if not one.is_same)
    levels = [one for one in wrong if one.field in LEVEL_FIELDS]
    is_given = run.checked.job.limits is not None
    remark = _LIMITS.format(len(levels)) if levels and not is_given else ''
    return LiveComparison(
        reports=len(reports),
        compared=compared,
        numbers={name: numbers[name] for name in FIELDS if numbers[name]},
        largest={name: largest[name] for name in FIELDS if name in largest},
        wrong=wrong if is_given else tuple(one for one in wrong if one not in levels),
        remark=remark,
        predicted=sources[PREDICTED],
        left_out=dict(left_out),
        sources=dict(sources),
    )


def _judge_again(
    run: DriftRun, reports: Sequence[Recorded], left_out: Counter[str]
) -> Iterator[list[Difference]]:
    checked = run.checked
    spec, limits = checked.bundle.spec.action, checked.limits
    monitor = DriftMonitor(spec, checked.horizon, limits, checked.window_s)
    by_chunk = {(one.chunk.epoch, one.chunk.sequence): one for one in run.judged}
    window_ns = round(checked.window_s * 1e9)
    first = run.judged[0].chunk
    epoch, unknown_ns = first.epoch, None
    if first.sequence > 1:  # the recording began within an epoch
        unknown_ns = first.observed_ns
    is_level_known = unknown_ns is None
    for one in reports:
        report = one.message
        if report.epoch != epoch:
            monitor.reset()
            epoch, unknown_ns, is_level_known = report.epoch, None, True
        judged = by_chunk.get((report.epoch, report.sequence))
        why = _why_not(run, report, judged)
        if why:
            left_out[why] += 1
            unknown_ns, is_level_known = one.stamp_ns, False
            continue
        reading = monitor.measured(judged.chunk, judged.reference, report.source)
        fields = dict(CHUNK_FIELDS)
        if unknown_ns is None or one.stamp_ns - unknown_ns >= window_ns:
            fields |= WINDOW_FIELDS
        if is_level_known:
            fields |= LEVEL_FIELDS
        yield [
            Difference(
                report.sequence,
                report.epoch,
                name,
                float(getattr(report, name)),
                float(_value(reading, place)),
                judged.sureness,
            )
            for name, place in fields.items()
        ]


def _why_not(run: DriftRun, report: Any, judged: Judged | None) -> str:
    """Say why a report cannot be compared; empty: it can."""
    if report.source == PREDICTED:
        return 'predicted by an error model'
    if judged is None:
        return 'its chunk is not in the bag'
    if group_levels(report.reference_precision) != group_levels(run.reference_precision):
        return (
            f'its reference ran at {report.reference_precision}, this one at '
            f'{run.reference_precision} (see --precision)'
        )
    return f'its chunk cannot be judged: {judged.problem}' if judged.reading is None else ''


def _value(reading: DriftReading, place: str) -> Any:
    value: Any = reading
    for name in place.split('.'):
        value = getattr(value, name)
    return value
