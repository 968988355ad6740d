"""
Choosing and loading samples: one after another from what has been served least so far.

Instructions come first, then phases of motion and episodes within an instruction. Images are
decoded only of what was chosen.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vlaq_ros.calibration.phases import Phase
from vlaq_ros.calibration.recordings import Moment, Recording
from vlaq_ros.errors import BagError
from vlaq_ros.types import Observation

_REPLACEMENTS = 3  # times that samples whose images prove broken are replaced by others


class Source(NamedTuple):
    """Where a sample was taken: a recording, the topic that stamped it, and the stamp."""

    recording: str
    topic: str
    stamp_ns: int


@dataclass(frozen=True)
class Sample:
    """
    One observation with what it is an example of.

    `sensitivity` is that of the motion before it (`motion_history`); None: unknown.
    """

    observation: Observation
    episode: str
    instruction: str
    phase: Phase
    source: Source
    sensitivity: float | None = None


class Candidate(NamedTuple):
    """A step of a recording at which the arm does something."""

    recording: int
    moment: Moment
    phase: Phase
    sensitivity: float | None


def draw(
    recordings: Sequence[Recording],
    candidates: Sequence[Candidate],
    count: int,
    rng: np.random.Generator,
) -> tuple[Sample, ...]:
    """Choose and load; a sample whose images prove broken is replaced by another."""
    left = list(candidates)
    drawn: dict[_Key, Sample] = {}
    failures: list[str] = []
    for _ in range(_REPLACEMENTS):
        chosen = _balanced(left, count - len(drawn), _taken(drawn.values()), rng)
        picked = {_key(c) for c in chosen}
        left = [c for c in left if _key(c) not in picked]
        drawn |= _load(recordings, chosen, failures)
        if len(drawn) == count:
            return _in_order(drawn)
    lines = '\n  '.join(failures[:10])
    raise BagError(
        f'{len(drawn)} of {count} samples could be loaded, {len(failures)} could not:\n  {lines}'
    )


def draw_further(
    recordings: Sequence[Recording],
    candidates: Sequence[Candidate],
    drawn: Sequence[Sample],
    count: int,
    rng: np.random.Generator,
) -> tuple[Sample, ...]:
    """
    Choose and load at most `count` that were not drawn yet, as many as there are.

    A sample whose images prove broken is left out.
    """
    used = {(s.source.recording, s.episode, s.source.stamp_ns) for s in drawn}
    left = [c for c in candidates if (recordings[c.recording].name, *_order(c.moment)) not in used]
    chosen = _balanced(left, count, _taken(drawn), rng)
    return _in_order(_load(recordings, chosen, []))


def _load(
    recordings: Sequence[Recording], chosen: Sequence[Candidate], failures: list[str]
) -> dict['_Key', Sample]:
    """Return what could be loaded; what could not is added to `failures`."""
    picked = {_key(c): c for c in chosen}
    drawn = {}
    for number, recording in enumerate(recordings):
        mine = [c.moment for c in chosen if c.recording == number]
        for moment, seen in recording.load(mine) if mine else ():
            if isinstance(seen, str):
                failures.append(f'{recording.name} at t={moment.stamp_ns / 1e9:.3f} s: {seen}')
                continue
            key = (number, _order(moment))
            drawn[key] = Sample(
                seen,
                moment.episode,
                moment.instruction,
                picked[key].phase,
                Source(recording.name, recording.topic, moment.stamp_ns),
                picked[key].sensitivity,
            )
    return drawn


def _in_order(drawn: Mapping['_Key', Sample]) -> tuple[Sample, ...]:
    return tuple(sample for _, sample in sorted(drawn.items(), key=lambda item: item[0]))


def _taken(samples: Iterable[Sample]) -> Counter:
    return Counter(_keys_of((s.instruction, s.phase, s.episode) for s in samples))


def _balanced(
    candidates: Sequence[Candidate], count: int, taken: Counter, rng: np.random.Generator
) -> list[Candidate]:
    """Choose one after another from the group that has been served least so far."""
    groups: dict[tuple[str, str, str], list[Candidate]] = defaultdict(list)
    for place in rng.permutation(len(candidates)):
        c = candidates[place]
        groups[c.moment.instruction, str(c.phase), c.moment.episode].append(c)
    taken = taken.copy()
    chosen: list[Candidate] = []
    while len(chosen) < count and groups:
        best = min(groups, key=lambda g: [taken[key] for key in _keys_of([g])])
        chosen.append(groups[best].pop())
        taken.update(_keys_of([best]))
        if not groups[best]:
            del groups[best]
    return chosen


def _keys_of(groups: Iterable[tuple[str, Any, str]]) -> list[tuple[str, ...]]:
    """Return what a choice counts for: its instruction, then phase and episode within it."""
    return [
        key
        for instruction, phase, episode in groups
        for key in (
            ('instruction', instruction),
            ('phase', instruction, str(phase)),
            ('episode', instruction, episode),
        )
    ]


_Key = tuple[int, tuple[str, int]]


def _key(candidate: Candidate) -> _Key:
    return candidate.recording, _order(candidate.moment)


def _order(moment: Moment) -> tuple[str, int]:
    """Return what tells the moments of a recording apart, and sorts them."""
    return moment.episode, moment.stamp_ns
