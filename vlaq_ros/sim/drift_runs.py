"""
Closed-loop episodes of the drift study: what was commanded, and what references answered.

An episode is kept as the executed rows of every chunk and the answers of two references to the
same observations, so that every monitor, window and limit can be tried on it afterwards.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.base import Policy
from vlaq_ros.sim.faults import Fault, FaultyPolicy
from vlaq_ros.sim.results import write_atomically
from vlaq_ros.sim.robot import SimRobot
from vlaq_ros.sim.rollout import Episode, run_episode
from vlaq_ros.types import ActionChunk, Observation

RUNS = 'runs.jsonl'
STUDY = 'study.json'
CHOOSE, JUDGE = 'choose', 'judge'
"""Episodes that limits are chosen on, and episodes that they are judged on."""
_DIGITS = 8
RunKey = tuple[str, str, str, str, int, int]


@dataclass(frozen=True, eq=False)
class StudyRun:
    """
    One episode.

    Attributes:
        split: `CHOOSE` or `JUDGE`.
        level: That the judged policy ran at.
        fault: Name of what was injected; empty: nothing.
        onset: Number of the first wrong chunk; -1 without a fault.
        task, seed, index: The episode.
        success: Whether the task was solved.
        steps: Policy steps executed.
        judged: [chunks, rows, dim] executed rows of each chunk, the last one possibly cut short by
            the end of the episode.
        references: Name of a reference -> its answers [chunks, rows, dim].
    """

    split: str
    level: str
    fault: str
    onset: int
    task: str
    seed: int
    index: int
    success: bool
    steps: int
    judged: NDArray[np.float64] = field(repr=False)
    references: dict[str, NDArray[np.float64]] = field(repr=False)

    @property
    def key(self) -> RunKey:
        """What it is found by."""
        return self.split, self.level, self.fault, self.task, self.seed, self.index

    @property
    def chunks(self) -> int:
        """Number of inferences."""
        return len(self.judged)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        arrays = {'judged': _plain(self.judged)}
        references = {name: _plain(rows) for name, rows in self.references.items()}
        names = ('split', 'level', 'fault', 'onset', 'task', 'seed', 'index', 'success', 'steps')
        return {**{n: getattr(self, n) for n in names}, **arrays, 'references': references}

    @staticmethod
    def from_json(values: dict[str, Any]) -> 'StudyRun':
        """Return the run of one line."""
        arrays = {'judged': np.array(values['judged'])}
        references = {name: np.array(rows) for name, rows in values['references'].items()}
        return StudyRun(**{**values, **arrays, 'references': references})


@dataclass(frozen=True)
class Plan:
    """
    One episode that is to be run.

    Attributes:
        split, level: See `StudyRun`.
        fault: What to inject; None: nothing.
        episode: Where it starts.
    """

    split: str
    level: str
    fault: Fault | None
    episode: Episode

    @property
    def key(self) -> RunKey:
        """Key of the run."""
        name = self.fault.name if self.fault else ''
        episode = self.episode
        return self.split, self.level, name, episode.task, episode.seed, episode.index

    @property
    def clean_key(self) -> RunKey:
        """Key of the same episode without a fault."""
        return (*self.key[:2], '', *self.key[3:])


class _Recorder:
    """Asks references what the judged policy was asked, and keeps what all of them said."""

    def __init__(self, policy: FaultyPolicy, references: dict[str, Policy], rows: int) -> None:
        self.spec = policy.spec
        self._policy = policy
        self._references = references
        self._rows = rows
        self.judged: list[NDArray] = []
        self.answers: dict[str, list[NDArray]] = {name: [] for name in references}

    def reset(self) -> None:
        for policy in (self._policy, *self._references.values()):
            policy.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        chunk = self._policy.infer(observation)
        self.judged.append(chunk.actions[: self._rows])
        for name, policy in self._references.items():
            self.answers[name].append(policy.infer(observation).actions[: self._rows])
        return chunk


def run_one(
    robot: SimRobot, policy: Policy, references: dict[str, Policy], plan: Plan, clean_chunks: int
) -> StudyRun:
    """
    Run one episode; a fault begins with a random inference that the healthy episode has.

    Args:
        robot: Reset by this function.
        policy: The judged one, at its level.
        references: By name.
        plan: What to run.
        clean_chunks: Inferences of the same episode without a fault; unused without a fault.
    """
    onset = draw_onset(plan, clean_chunks) if plan.fault else -1
    rows = policy.spec.execution_horizon
    recorder = _Recorder(FaultyPolicy(policy, plan.fault, max(onset, 0)), references, rows)
    result = run_episode(robot, recorder, plan.episode)
    return StudyRun(
        *plan.key[:3],
        onset,
        *plan.key[3:],
        result.success,
        result.steps,
        np.array(recorder.judged),
        {name: np.array(answers) for name, answers in recorder.answers.items()},
    )


def draw_onset(plan: Plan, clean_chunks: int) -> int:
    """Return the first wrong inference: not the first one, and at least two before the end."""
    place = [*plan.split.encode(), *plan.episode.task.encode(), plan.episode.seed]
    rng = np.random.default_rng([*place, plan.episode.index])
    return int(rng.integers(1, max(2, clean_chunks - 2)))


class RunStore:
    """
    The finished episodes of a study in a folder.

    Attributes:
        runs: By key.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], mode: str) -> None:
        """
        Open or create the folder; `mode` is that of `results.ResultStore`.

        Raises:
            ConfigError: The folder holds another study, or `new` found one.
        """
        self.runs: dict[RunKey, StudyRun] = {}
        self._path = folder / RUNS
        identity = json.loads(json.dumps(identity))
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and mode == 'new':
            raise ConfigError(
                f'{folder} holds an earlier study: continue it with --resume, delete it with '
                '--overwrite, or choose another --out'
            )
        if self._path.exists() and mode == 'resume':
            stored = json.loads((folder / STUDY).read_text(encoding='utf-8'))
            if stored != identity:
                names = [n for n in {**stored, **identity} if stored.get(n) != identity.get(n)]
                raise ConfigError(
                    f'{folder} holds another study; it differs in {", ".join(names)}: use the '
                    'same options, or another folder with --out'
                )
            self.runs = {run.key: run for run in self._read()}
        else:
            self._path.unlink(missing_ok=True)
        write_atomically(folder / STUDY, json.dumps(identity, indent=1) + '\n')

    def append(self, run: StudyRun) -> None:
        """Keep one finished episode."""
        line = json.dumps(run.to_json(), separators=(',', ':')) + '\n'
        with self._path.open('a', encoding='utf-8') as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.runs[run.key] = run

    def _read(self) -> Iterator[StudyRun]:
        complete, _, torn = self._path.read_text(encoding='utf-8').rpartition('\n')
        if torn:
            write_atomically(self._path, complete + '\n' if complete else '')
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                yield StudyRun.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f'{self._path}, line {number} is not an episode: {error!r}'
                ) from error


def _plain(rows: NDArray) -> list[Any]:
    return np.round(rows, _DIGITS).tolist()
