"""
The drift of a recorded run as numbers: per chunk, per episode, over all, and by task.

Lengths are in metres and angles in radians here; NaN means that there is nothing to tell, never
zero. Means are over the chunks that could be judged, and their number always stands beside.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlaq_ros.analysis.drift_live import LiveComparison
from vlaq_ros.analysis.drift_measure import DriftRun, Judged
from vlaq_ros.analysis.recorded_levels import shares
from vlaq_ros.control.drift_alarm import DriftLevel
from vlaq_ros.kinematics.drift import stream_drift

MEANS = (
    'position_per_step_m',
    'position_accumulated_m',
    'rotation_per_step_rad',
    'rotation_accumulated_rad',
    'gripper_disagreement',
)


def summarize(run: DriftRun, live: LiveComparison) -> dict[str, Any]:
    """Return everything that the page and the pictures show, as plain values."""
    checked = run.checked
    recorded = checked.provenance
    tasks: dict[str, list[Judged]] = {}
    for one in run.judged:
        tasks.setdefault(run.episodes[one.episode].title, []).append(one)
    return {
        'bag': checked.bag.name,
        'recorded_with': {
            'bundle': recorded.get('bundle', ''),
            'bundle_hash': recorded.get('bundle_hash', ''),
            'precisions': recorded.get('precisions', []),
        },
        'reference': {
            'bundle': checked.bundle.spec.name,
            'bundle_hash': checked.bundle.digest,
            'precision': run.reference_precision,
        },
        'horizon': checked.horizon,
        'window_s': checked.window_s,
        'limits': {**vars(checked.limits), 'is_given': checked.job.limits is not None},
        'overall': group_values(run, run.judged),
        'episodes': [
            {
                **vars(episode),
                **group_values(run, [o for o in run.judged if o.episode == episode.number]),
            }
            for episode in run.episodes
        ],
        'tasks': {name: group_values(run, group) for name, group in tasks.items()},
        'levels': level_values(run.judged),
        'chunks': [chunk_values(one) for one in run.judged],
        'live': live_values(live),
        'why_no_replay': checked.why_no_replay,
        'notes': checked.notes,
        'trouble': dict(checked.recorded.trouble),
        'dropped': dict(checked.observations.dropped),
    }


def group_values(run: DriftRun, judged: Sequence[Judged]) -> dict[str, Any]:
    """Return the numbers of some chunks, e.g. of an episode."""
    known = [one for one in judged if one.reading is not None]
    drifts = [one.reading.drift for one in known]
    values: dict[str, Any] = {
        'chunks': len(judged),
        'judged': len(known),
        'sureness': dict(Counter(one.sureness for one in known)),
        'without_reading': dict(Counter(one.problem for one in judged if one.problem)),
    }
    for name in MEANS:
        column = [getattr(drift, name) for drift in drifts]
        values[name] = float(np.mean(column)) if column else math.nan
    accumulated = [drift.position_accumulated_m for drift in drifts]
    values['largest_accumulated_m'] = max(accumulated, default=math.nan)
    values |= _smoothness(run, known)
    values['occupancy'] = shares([one.levels for one in judged])
    values['worst_level'] = max((one.reading.level for one in known), default=DriftLevel.OK).name
    values['level_changes'] = len(alarm_changes(known))
    values['precision_changes'] = len(precision_changes(judged))
    return values


def _smoothness(run: DriftRun, known: Sequence[Judged]) -> dict[str, float]:
    """Return how smooth the commands are, each episode on its own, in the mean."""
    rows = slice(run.checked.horizon)
    streams = []
    for number in sorted({one.episode for one in known}):
        pairs = [
            (one.chunk.actions[rows], one.reference.actions[rows])
            for one in known
            if one.episode == number
        ]
        streams.append(stream_drift(pairs, run.checked.bundle.spec.action))
    names = {'jerk_ratio': 'jerk_ratio', 'smoothness': 'sparc'}
    names['reference_smoothness'] = 'reference_sparc'
    return {
        name: float(np.mean([getattr(stream, place) for stream in streams] or [math.nan]))
        for name, place in names.items()
    }


def level_values(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Return the drift of the chunks by the levels they were inferred at."""
    groups: dict[str, list[float]] = {}
    for one in judged:
        if one.reading is not None:
            groups.setdefault(level_name(one.levels), []).append(
                one.reading.drift.position_accumulated_m
            )
    return {
        name: {
            'judged': len(column),
            'position_accumulated_m': float(np.mean(column)),
            'largest_accumulated_m': max(column),
        }
        for name, column in sorted(groups.items())
    }


def level_name(levels: Mapping[str, str]) -> str:
    """Return the levels of all groups as one text: `w4a8`, or `expert w8a16, llm w4a8`."""
    names = set(levels.values())
    if len(names) == 1:
        return names.pop()
    return ', '.join(f'{group} {level}' for group, level in sorted(levels.items()))


def alarm_changes(judged: Sequence[Judged]) -> list[Judged]:
    """Return the chunks whose alarm is another one than before, within each epoch from OK on."""
    changes, before = [], None
    for one in judged:
        if one.reading is None:
            continue
        last = before.reading.level if before and before.chunk.epoch == one.chunk.epoch else 0
        if one.reading.level != last:
            changes.append(one)
        before = one
    return changes


def precision_changes(judged: Sequence[Judged]) -> list[Judged]:
    """Return the chunks that were inferred at other levels than the one before in the epoch."""
    return [
        one
        for last, one in zip(judged, judged[1:])
        if one.levels != last.levels and one.chunk.epoch == last.chunk.epoch
    ]


def chunk_values(one: Judged) -> dict[str, Any]:
    """Return one chunk as plain values."""
    values: dict[str, Any] = {
        'number': one.number,
        'episode': one.episode,
        'sequence': one.chunk.sequence,
        'epoch': one.chunk.epoch,
        'observed_ns': one.chunk.observed_ns,
        'precision': one.chunk.precision,
        'head': one.chunk.head,
        'levels': dict(one.levels),
        'sureness': one.sureness,
        'problem': one.problem,
    }
    reading = one.reading
    if reading is not None:
        values |= vars(reading.drift)
        values |= {
            'window_m': reading.window_m,
            'window_rad': reading.window_rad,
            'window_gripper': reading.window_gripper,
            'jerk_ratio': reading.jerk_ratio,
            'smoothness': reading.smoothness,
            'reference_smoothness': reading.reference_smoothness,
            'level': reading.level.name,
            'reason': reading.reason,
        }
    return values


def live_values(live: LiveComparison) -> dict[str, Any]:
    """Return the comparison with the reports of the node as plain values."""
    return {
        'verdict': live.verdict,
        'remark': live.remark,
        'passed': live.passed,
        'reports': live.reports,
        'compared': live.compared,
        'predicted': live.predicted,
        'sources': dict(live.sources),
        'left_out': dict(live.left_out),
        'fields': {
            name: {
                'numbers': live.numbers[name],
                'largest_difference': one.size,
                'live': one.live,
                'offline': one.offline,
                'sequence': one.sequence,
            }
            for name, one in live.largest.items()
        },
        'wrong': [vars(one) for one in live.wrong[:50]],
    }
