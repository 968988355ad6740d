"""
Samples to calibrate and to judge with: balanced, reproducible, and from different episodes.

Every instruction, every phase of motion within it and every episode gets its share as evenly as
the recordings allow. The held-out samples come from episodes that no calibration sample comes
from. The same recordings, plan and seed give the same samples. Recordings that cannot give a
meaningful set are refused with everything that is missing, before an image is decoded.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from vlaq_ros.calibration.motion_history import motion_before
from vlaq_ros.calibration.phases import (
    Phase,
    motion_columns,
    phases_of,
    speed_scale,
    speeds,
)
from vlaq_ros.calibration.recordings import Moment, Recording
from vlaq_ros.errors import BagError, ConfigError, VlaqError
from vlaq_ros.policies.spec import PolicySpec
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


@dataclass(frozen=True)
class SamplePlan:
    """
    How many samples are drawn, and what recordings must offer.

    Attributes:
        calibration: Samples to calibrate with.
        held_out: Samples to judge with.
        held_out_share: Share of the episodes that the latter come from.
        seed: Of every choice.
        min_instructions: Fewer different sentences would calibrate for one task only.
        min_episodes: Fewer episodes cannot be split.
        max_gap_share: Largest share of a recording's control periods without an observation.
        min_speed: An arm that is never faster has not moved [m/s or rad/s].
    """

    calibration: int = 128
    held_out: int = 64
    held_out_share: float = 0.25
    seed: int = 0
    min_instructions: int = 2
    min_episodes: int = 4
    max_gap_share: float = 0.5
    min_speed: float = 1e-3

    def __post_init__(self) -> None:
        problems = []
        if self.calibration < 1 or self.held_out < 1:
            problems.append(
                f'calibration={self.calibration} and held_out={self.held_out} must be at least 1'
            )
        if not 0.0 < self.held_out_share < 1.0:
            problems.append(f'held_out_share={self.held_out_share} must lie between 0 and 1')
        if self.min_episodes < 2 or self.min_instructions < 1:
            problems.append(
                f'min_episodes={self.min_episodes} must be at least 2 and '
                f'min_instructions={self.min_instructions} at least 1'
            )
        if problems:
            raise ConfigError('sample plan: ' + '; '.join(problems))


@dataclass(frozen=True)
class SampleSet:
    """
    What a calibration works with.

    Attributes:
        calibration: Samples to calibrate with, in order of recording and time.
        held_out: Samples to judge with, from other episodes.
        report: Plan, recordings and counts, as plain values for an artifact.
    """

    calibration: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    report: Mapping[str, Any]


class _Candidate(NamedTuple):
    recording: int
    moment: Moment
    phase: Phase
    sensitivity: float | None


def draw_samples(
    recordings: Sequence[Recording], spec: PolicySpec, plan: SamplePlan | None = None
) -> SampleSet:
    """
    Draw samples from recordings.

    Raises:
        BagError: Recordings are damaged, have gaps, are too few or too uniform, or do not show
            the arm moving; everything that is wrong is listed.
    """
    plan = plan or SamplePlan()
    surveyed = _survey(recordings, plan)
    scale, measured, candidates = _with_phases(surveyed, spec)
    rng = np.random.default_rng(plan.seed)
    held_out_episodes = _split(candidates, plan.held_out_share, rng)
    parts = {
        'calibration': [c for c in candidates if c.moment.episode not in held_out_episodes],
        'held_out': [c for c in candidates if c.moment.episode in held_out_episodes],
    }
    _require_enough(plan, scale, candidates, parts)
    samples = {name: _draw(recordings, parts[name], getattr(plan, name), rng) for name in parts}
    report = {
        'plan': asdict(plan),
        'recordings': [recording.report() for recording in recordings],
        'speed_scale': scale,
        'measured_step_m': measured,
        **{name: _counts(drawn) for name, drawn in samples.items()},
    }
    return SampleSet(samples['calibration'], samples['held_out'], report)


def _survey(recordings: Sequence[Recording], plan: SamplePlan) -> list[list[Moment]]:
    """Return the moments of every recording, or refuse all that cannot be used."""
    surveyed, problems = [], []
    for recording in recordings:
        try:
            surveyed.append(recording.survey())
        except VlaqError as error:
            problems.append(str(error))
            continue
        gap_share = recording.report().get('gap_share', 0.0)
        if gap_share > plan.max_gap_share:
            problems.append(
                f'{recording.name}: {gap_share:.0%} of its control periods have no complete '
                f'observation, at most {plan.max_gap_share:.0%} may: record again, or allow '
                'older inputs'
            )
    if problems:
        raise BagError('\n'.join(problems))
    return surveyed


def _with_phases(
    surveyed: Sequence[Sequence[Moment]], spec: PolicySpec
) -> tuple[float, float | None, list[_Candidate]]:
    """Return the speed scale, the long step, and every moment at which the arm does something."""
    columns, gripper_column = motion_columns(spec.state)
    episodes: dict[tuple[int, str], list[Moment]] = defaultdict(list)
    for number, moments in enumerate(surveyed):
        for moment in moments:
            episodes[number, moment.episode].append(moment)
    tracks = []
    for (number, _), moments in episodes.items():
        stamps_ns = np.array([moment.stamp_ns for moment in moments])
        states = np.stack([moment.state for moment in moments])
        tracks.append((number, moments, stamps_ns, states, speeds(stamps_ns, states[:, columns])))
    scale = speed_scale([track[-1] for track in tracks])
    step_m, before = motion_before([track[2:4] for track in tracks], spec)
    openings = (
        [states[:, gripper_column] for *_, states, _ in tracks]
        if gripper_column is not None
        else []
    )
    joined = np.concatenate([*openings, np.zeros(0)])
    gripper_range = (joined.min(), joined.max()) if len(joined) else (0.0, 0.0)
    candidates = []
    for (number, moments, stamps_ns, states, speed), fine in zip(tracks, before):
        gripper = states[:, gripper_column] if gripper_column is not None else None
        if scale > 0.0:
            found = phases_of(stamps_ns, speed, scale, gripper, gripper_range)
            candidates += [_Candidate(number, *row) for row in zip(moments, found, fine)]
    return scale, step_m, [c for c in candidates if c.phase is not Phase.IDLE]


def _split(
    candidates: Sequence[_Candidate], share: float, rng: np.random.Generator
) -> frozenset[str]:
    """Return the episodes to hold out: of every instruction its share, never all of them."""
    by_instruction: dict[str, dict[str, None]] = defaultdict(dict)
    for candidate in candidates:
        by_instruction[candidate.moment.instruction].setdefault(candidate.moment.episode)
    single, held_out = [], []
    for _, episodes in sorted(by_instruction.items()):
        if len(episodes) == 1:
            single += episodes
            continue
        count = min(max(1, round(share * len(episodes))), len(episodes) - 1)
        held_out += list(rng.permutation(sorted(episodes))[:count])
    single = sorted(set(single))
    held_out += list(rng.permutation(single)[: round(share * len(single))])
    return frozenset(map(str, held_out))


def _require_enough(
    plan: SamplePlan,
    scale: float,
    candidates: Sequence[_Candidate],
    parts: Mapping[str, Sequence[_Candidate]],
) -> None:
    """Refuse recordings that cannot give a meaningful set, with everything that is missing."""
    if scale < plan.min_speed:
        raise BagError(
            f'the arm does not move: its speed stays below {plan.min_speed:g} per second '
            f'({scale:.2g}). Record it at work, and check the state sources and their scales'
        )
    instructions = sorted({c.moment.instruction for c in candidates})
    episodes = {c.moment.episode for c in candidates}
    problems = []
    if len(instructions) < plan.min_instructions:
        problems.append(
            f'{len(instructions)} instruction(s), at least {plan.min_instructions} are needed, or '
            f'the policy is calibrated for one task only: {", ".join(map(repr, instructions))}'
        )
    if len(episodes) < plan.min_episodes:
        problems.append(f'{len(episodes)} episode(s), at least {plan.min_episodes} are needed')
    for name, part in parts.items():
        wanted = getattr(plan, name)
        if len(part) < wanted:
            problems.append(
                f'{len(part)} step(s) in motion for the {wanted} {name.replace("_", "-")} samples'
            )
    if problems:
        lines = '\n  '.join(problems)
        raise BagError(
            f'the recordings are not enough:\n  {lines}\nRecord more, or ask for fewer samples'
        )


def _draw(
    recordings: Sequence[Recording],
    candidates: Sequence[_Candidate],
    count: int,
    rng: np.random.Generator,
) -> tuple[Sample, ...]:
    """Choose and load; a sample whose images prove broken is replaced by another."""
    left = list(candidates)
    drawn: dict[tuple[int, tuple[str, int]], Sample] = {}
    failures: list[str] = []
    for _ in range(_REPLACEMENTS):
        taken = Counter(_keys_of((s.instruction, s.phase, s.episode) for s in drawn.values()))
        chosen = _balanced(left, count - len(drawn), taken, rng)
        picked = {(c.recording, _order(c.moment)): c for c in chosen}
        left = [c for c in left if (c.recording, _order(c.moment)) not in picked]
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
        if len(drawn) == count:
            return tuple(sample for _, sample in sorted(drawn.items(), key=lambda item: item[0]))
    lines = '\n  '.join(failures[:10])
    raise BagError(
        f'{len(drawn)} of {count} samples could be loaded, {len(failures)} could not:\n  {lines}'
    )


def _balanced(
    candidates: Sequence[_Candidate], count: int, taken: Counter, rng: np.random.Generator
) -> list[_Candidate]:
    """Choose one after another from the group that has been served least so far."""
    groups: dict[tuple[str, str, str], list[_Candidate]] = defaultdict(list)
    for place in rng.permutation(len(candidates)):
        c = candidates[place]
        groups[c.moment.instruction, str(c.phase), c.moment.episode].append(c)
    taken = taken.copy()
    chosen: list[_Candidate] = []
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


def _order(moment: Moment) -> tuple[str, int]:
    """Return what tells the moments of a recording apart, and sorts them."""
    return moment.episode, moment.stamp_ns


def _counts(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        'samples': len(samples),
        'instructions': dict(sorted(Counter(s.instruction for s in samples).items())),
        'phases': dict(sorted(Counter(str(s.phase) for s in samples).items())),
        'episodes': dict(sorted(Counter(s.episode for s in samples).items())),
        'sources': [list(s.source) for s in samples],
    }
