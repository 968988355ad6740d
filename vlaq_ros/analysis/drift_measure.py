"""
Drift of the chunks of a bag, measured against a reference policy that answers their observations.

The judgement is that of the running node (`policies.drift_monitor`): the same rows, window, limits
and hysteresis, and a new start with every epoch. What cannot be judged keeps the reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.analysis.chunk_observations import Found
from vlaq_ros.analysis.drift_job import CheckedJob
from vlaq_ros.analysis.recorded_levels import group_levels, load_at
from vlaq_ros.analysis.recorded_run import EpisodeState
from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.drift_monitor import DriftMonitor, DriftReading
from vlaq_ros.types import ActionChunk, Observation, Pose

SOURCE = 'shadow'
"""How `DriftReport` calls a reference that is run beside the policy."""

PROVEN, UNPROVEN = 'proven', 'unproven'
"""The recorded policy gives the recorded chunk for this observation, or for none there is."""

ALIKE, ESTIMATED = 'alike', 'estimated'
"""Without the recorded policy: all inputs have the stamp of the chunk; or they have not."""


@dataclass(frozen=True)
class Judged:
    """
    One chunk and what is known about its drift.

    Attributes:
        number: Place in the bag.
        episode: Number of its episode.
        chunk: As recorded.
        levels: Module group -> level that it was inferred at.
        reference: The reference's answer; None: there is none.
        reading: The drift; None: not known.
        sureness: How sure it is that the node had this observation; see `PROVEN`.
        problem: Why there is no reading; empty: there is one.
        start: Where the arm was measured at the observation; None: not recorded.
    """

    number: int
    episode: int
    chunk: ActionChunk
    levels: dict[str, str]
    reference: ActionChunk | None
    reading: DriftReading | None
    sureness: str
    problem: str
    start: Pose | None


@dataclass(frozen=True)
class RunEpisode:
    """
    Chunks that belong together.

    Attributes:
        number: From 0, in order of time.
        title: Task, or the sentence where no task was recorded.
        instruction: Of the first chunk.
        start_ns, end_ns: Stamps of the first and the last chunk.
        success: As recorded; None: not known.
    """

    number: int
    title: str
    instruction: str
    start_ns: int
    end_ns: int
    success: bool | None


@dataclass(frozen=True)
class DriftRun:
    """
    What was measured.

    Attributes:
        checked: What was asked for.
        judged: One per chunk.
        episodes: In order of time.
        reference_precision: What the reference ran at.
    """

    checked: CheckedJob
    judged: tuple[Judged, ...]
    episodes: tuple[RunEpisode, ...]
    reference_precision: str

    @property
    def bag_path(self) -> Path:
        """The recording."""
        return self.checked.job.bag


def measure(checked: CheckedJob, tell: Callable[[int, int], Any] = lambda *_: None) -> DriftRun:
    """
    Run the reference on every observation and judge every chunk.

    Args:
        checked: What to do.
        tell: Called with (chunks done, chunks in all).

    Raises:
        PolicyError: The reference has not got the level that was asked for.
    """
    answers = _Answers(checked, tell)
    spec, limits = checked.bundle.spec.action, checked.limits
    monitor = DriftMonitor(spec, checked.horizon, limits, checked.window_s)
    episodes, numbers = find_episodes(checked.chunks, checked.recorded.episodes)
    judged, epoch = [], None
    for number, chunk in enumerate(checked.chunks):
        if chunk.epoch != epoch:
            monitor.reset()
            epoch = chunk.epoch
        answer = answers.by_number[number]
        is_known = isinstance(answer, ActionChunk)
        problem = '' if is_known else answer
        if is_known and not np.isfinite(chunk.actions).all():
            is_known, problem = False, 'the recorded chunk is not finite'
        judged.append(
            Judged(
                number,
                numbers[number],
                chunk,
                group_levels(chunk.precision),
                answer if is_known else None,
                monitor.measured(chunk, answer, SOURCE) if is_known else None,
                answers.sureness.get(number, ''),
                problem,
                pose_at(checked.recorded.path_ns, checked.recorded.path, chunk.observed_ns),
            )
        )
    name = next((j.reference.precision for j in judged if j.reference), checked.job.precision)
    return DriftRun(checked, tuple(judged), tuple(episodes), name)


class _Answers:
    """What the reference says to every chunk, and how sure its observation is."""

    def __init__(self, checked: CheckedJob, tell: Callable[[int, int], Any]) -> None:
        self._checked, self._tell = checked, tell
        heads = dict.fromkeys(chunk.head for chunk in checked.chunks)
        self._policies = {
            head: load_at(checked.bundle, checked.job.precision, head) for head in heads
        }
        self._epoch: int | None = None
        self.by_number: dict[int, ActionChunk | str] = {}
        self.sureness: dict[int, str] = {}
        unsure = [one for one, seen in self._given() if not self._take(one, seen)]
        if unsure:
            self._search(unsure)

    def _given(self) -> Iterator[tuple[Found, Observation]]:
        """Yield what the bag gives; chunks without observation keep the reason."""
        for found, seen in self._checked.observations.load(self._checked.found):
            if isinstance(seen, str):
                self.by_number[found.asked.number] = seen
                self._tell(len(self.by_number), len(self._checked.found))
            else:
                yield found, seen

    def _take(self, found: Found, seen: Observation) -> bool:
        """Ask the reference; return False when the recorded policy did not see this."""
        checked, number = self._checked, found.asked.number
        chunk, replay = checked.chunks[number], checked.replay
        is_same = replay.reproduces(chunk, seen) if replay else found.is_alike
        self.sureness[number] = (
            (PROVEN if is_same else UNPROVEN) if replay else (ALIKE if is_same else ESTIMATED)
        )
        self.by_number[number] = self._ask(chunk, seen)
        self._tell(len(self.by_number), len(checked.found))
        return is_same or not replay

    def _search(self, unsure: Sequence[Found]) -> None:
        """Look for what the recorded policy saw instead."""
        for found, seen in self._checked.observations.others(unsure):
            number = found.asked.number
            chunk = self._checked.chunks[number]
            if self.sureness[number] == UNPROVEN and self._checked.replay.reproduces(chunk, seen):
                self.sureness[number] = PROVEN
                self.by_number[number] = self._ask(chunk, seen)

    def _ask(self, chunk: ActionChunk, seen: Observation) -> ActionChunk | str:
        policy = self._policies[chunk.head]
        if chunk.epoch != self._epoch:
            policy.reset()
            self._epoch = chunk.epoch
        try:
            return policy.infer(seen)
        except PolicyError as error:
            return f'the reference refuses: {error}'


def find_episodes(
    chunks: Sequence[ActionChunk], states: Sequence[EpisodeState]
) -> tuple[list[RunEpisode], list[int]]:
    """Return the episodes, and the number of the episode of every chunk."""
    stamps = np.array([state.stamp_ns for state in states], dtype=np.int64)
    outcome = {state.epoch: state.success for state in states}  # the last word counts
    for state in states:
        outcome[state.epoch] |= state.success
    episodes: list[RunEpisode] = []
    numbers, last = [], None
    for chunk in chunks:
        place = int(np.searchsorted(stamps, chunk.observed_ns, side='right')) - 1
        state = states[place] if place >= 0 else None
        key = (chunk.epoch, state.epoch if state else chunk.instruction)
        if key != last:
            title = state.task if state else chunk.instruction
            success = outcome[state.epoch] if state else None
            start_ns = chunk.observed_ns
            row = (len(episodes), title, chunk.instruction, start_ns, start_ns, success)
            episodes.append(RunEpisode(*row))
            last = key
        one = episodes[-1]
        episodes[-1] = RunEpisode(
            one.number, one.title, one.instruction, one.start_ns, chunk.observed_ns, one.success
        )
        numbers.append(one.number)
    return episodes, numbers


def pose_at(stamps_ns: NDArray, rows: NDArray, at_ns: int) -> Pose | None:
    """Return the newest measured pose at or before a stamp, None when there is none."""
    place = int(np.searchsorted(stamps_ns, at_ns, side='right')) - 1
    return Pose(rows[place, :3], rows[place, 3:]) if place >= 0 else None
