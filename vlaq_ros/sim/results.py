"""
Finished episodes of an evaluation on disk, so that an interrupted run loses nothing.

    run.json           what was run; results of anything else are not mixed in
    <config>.jsonl     one line per finished episode, appended and synced

A line is complete or it is not there: a torn last line, left by a crash, is dropped on opening.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.sim.precision_run import PrecisionRun

RUN = 'run.json'
REFERENCE_PRECISION = 'fp32'
Key = tuple[str, int, int]


@dataclass(frozen=True, order=True)
class Config:
    """One row of the evaluation: a precision of the weights and an action head."""

    precision: str
    head: str

    @property
    def name(self) -> str:
        """How the user writes it, e.g. `w8:flow`."""
        return f'{self.precision}:{self.head}'

    @property
    def reference(self) -> 'Config':
        """The full-precision run of the same head."""
        return Config(REFERENCE_PRECISION, self.head)

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with this one."""
        return self.precision == REFERENCE_PRECISION


@dataclass(frozen=True)
class Record:
    """
    What is kept of one episode.

    Attributes:
        task, seed, index, instruction: The episode.
        success: Whether the task's own criterion was met within its step limit.
        steps: Policy steps executed.
        positions: [steps + 1, 3] hand position at the start and after every step [m].
        inference_s: Seconds of every inference; the first of a process is left out (warm-up).
        open_loop: Open-loop drift on the observations of the reference run, by name [m, rad or 1];
            None where it was not measured.
        stopped: Why the policy refused to act; the episode then counts as failed. Usually empty.
        precision: What it ran at; None where the precision is fixed, or was not recorded.
    """

    task: str
    seed: int
    index: int
    instruction: str
    success: bool
    steps: int
    positions: NDArray[np.float64] = field(repr=False)
    inference_s: tuple[float, ...] = ()
    open_loop: Mapping[str, float] | None = None
    stopped: str = ''
    precision: PrecisionRun | None = None

    @property
    def key(self) -> Key:
        """What two configurations are paired by."""
        return self.task, self.seed, self.index

    def to_json(self) -> dict[str, Any]:
        """Return plain values, lengths rounded to micrometres and times to microseconds."""
        return {
            **asdict(self),
            'positions': np.round(self.positions, 6).tolist(),
            'inference_s': [round(seconds, 6) for seconds in self.inference_s],
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> 'Record':
        """Build a record from the values of one line."""
        positions = np.array(values['positions'], dtype=np.float64).reshape(-1, 3)
        precision = values.get('precision') and PrecisionRun(**values['precision'])
        return Record(
            **{
                **values,
                'positions': positions,
                'inference_s': tuple(values['inference_s']),
                'precision': precision,
            }
        )


class ResultStore:
    """
    The folder of one evaluation.

    Attributes:
        folder: Where it is.
        records: Config -> episode -> record, everything finished so far.
        memory: Config -> storage of the loaded policy, as far as known.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], mode: str = 'new') -> None:
        """
        Open or create the folder.

        Args:
            folder: Created when missing.
            identity: What makes two runs comparable, e.g. bundle hash, seed and versions.
            mode: `new` refuses a folder with results, `resume` continues it, `overwrite` deletes
                the results of an earlier run first.

        Raises:
            ConfigError: The folder holds results of another run, or `new` found any.
        """
        self.folder = folder
        self.records: dict[Config, dict[Key, Record]] = {}
        self.memory: dict[Config, MemoryReport] = {}
        self._identity = json.loads(json.dumps(identity))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'--out {folder} cannot be made: {error.strerror}') from error
        existing = sorted(folder.glob('*.jsonl'))
        if mode == 'new' and existing:
            raise ConfigError(
                f'{folder} holds the episodes of an earlier run ({len(existing)} files): continue '
                'it with --resume, delete them with --overwrite, or choose another --out'
            )
        if mode == 'resume' and (existing or (folder / RUN).exists()):
            self._load()
        else:
            for path in existing:
                path.unlink()
        self._write_run()

    def append(self, config: Config, record: Record) -> None:
        """Keep one finished episode."""
        line = json.dumps(record.to_json(), separators=(',', ':')) + '\n'
        with self._path(config).open('a', encoding='utf-8') as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records.setdefault(config, {})[record.key] = record

    def set_memory(self, config: Config, memory: MemoryReport) -> None:
        """Keep the storage of a loaded policy."""
        if self.memory.get(config) != memory:
            self.memory[config] = memory
            self._write_run()

    def _path(self, config: Config) -> Path:
        return self.folder / f'{config.precision}-{config.head}.jsonl'

    def _write_run(self) -> None:
        memory = {config.name: asdict(report) for config, report in self.memory.items()}
        write_atomically(
            self.folder / RUN,
            json.dumps({'identity': self._identity, 'memory': memory}, indent=1) + '\n',
        )

    def _load(self) -> None:
        path = self.folder / RUN
        try:
            run = json.loads(path.read_text(encoding='utf-8'))
            stored, memory = run['identity'], run['memory']
            self.memory = {
                Config(*name.split(':')): MemoryReport(**report) for name, report in memory.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f'{path} is not the record of a run: {error!r}') from error
        if stored != self._identity:
            names = sorted(stored.keys() | self._identity.keys())
            differences = [
                f'{name}: {stored.get(name)!r}, now {self._identity.get(name)!r}'
                for name in names
                if stored.get(name) != self._identity.get(name)
            ]
            raise ConfigError(
                f'{self.folder} holds another run; its episodes cannot be paired with these:\n  '
                + '\n  '.join(differences)
                + '\nUse the same options, or another folder with --out'
            )
        for file in sorted(self.folder.glob('*.jsonl')):
            self.records[Config(*file.stem.split('-', 1))] = _read_records(file)


def write_atomically(path: Path, text: str) -> None:
    """Write `path` so that it is never seen half-written."""
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)


def _read_records(path: Path) -> dict[Key, Record]:
    text = path.read_text(encoding='utf-8')
    complete, _, torn = text.rpartition('\n')
    if torn:
        write_atomically(path, complete + '\n' if complete else '')
    records = {}
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            record = Record.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{path}, line {number} is not an episode: {error!r}') from error
        records[record.key] = record
    return records
