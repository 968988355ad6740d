"""
Recordings that samples come from: bags of a robot, and demonstrations of the simulator.

Both are surveyed first, without pixels; the images of chosen steps are loaded afterwards. Whatever
shows that a recording does not fit the policy is said before any long work, for all recordings at
once.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.data.bag_observations import BagObservations, BagScan
from vlaq_ros.data.bag_streams import StreamLayout
from vlaq_ros.data.bags import Bag
from vlaq_ros.errors import BagError, ConfigError, VlaqError
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.types import Observation


class Moment(NamedTuple):
    """
    One step of a recording that may become a sample.

    Attributes:
        episode: Name of the episode, unique among all recordings.
        instruction: The sentence that was in force.
        stamp_ns: When it was observed.
        state: [state_dim].
        key: What the recording finds it by.
    """

    episode: str
    instruction: str
    stamp_ns: int
    state: NDArray[np.float64]
    key: Any


class Recording(Protocol):
    """
    Steps of a policy's work, of which some are loaded.

    Attributes:
        name: Unique, and free of the path where it lies.
        topic: Where the observations were stamped.
    """

    name: str
    topic: str

    def survey(self) -> list[Moment]:
        """Return every step in order of time, episode by episode."""

    def load(self, moments: Sequence[Moment]) -> Iterator[tuple[Moment, Observation | str]]:
        """Yield these steps with their observation, or with why they have none after all."""

    def report(self) -> dict[str, Any]:
        """Return what there is to know about the recording, after the survey."""


def layout_of(spec: PolicySpec, **values: Any) -> StreamLayout:
    """
    Return what a policy takes from the robot; `values` are further fields of `StreamLayout`.

    Raises:
        ConfigError: The number of state sources is not that of the policy.
    """
    cameras = {camera.name: (camera.height, camera.width) for camera in spec.cameras}
    layout = StreamLayout(cameras, **values)
    if len(layout.sources) != len(spec.state.names):
        raise ConfigError(
            f'{len(layout.sources)} state sources {list(layout.sources)} for bundle '
            f'{spec.name!r}, which needs {len(spec.state.names)}: {", ".join(spec.state.names)}'
        )
    return layout


class BagRecording:
    """
    A bag, sampled on the control clock of a policy.

    Args:
        path: The bag.
        spec: The policy.
        layout: What it takes from the robot; None: `layout_of(spec)`.
        names: Stream -> topic, for topics that are called otherwise.
        instruction: The sentence of the whole bag, instead of those in it.

    Raises:
        BagError: There is no such bag, or it does not fit the policy.
    """

    def __init__(
        self,
        path: Path | str,
        spec: PolicySpec,
        layout: StreamLayout | None = None,
        names: Mapping[str, str] | None = None,
        instruction: str = '',
    ) -> None:
        bag = Bag(path)
        period_ns = spec.action.period_ns
        self.name = bag.name
        self._reader = BagObservations(
            bag, layout or layout_of(spec), period_ns, names, instruction
        )
        self.topic = next(iter(self._reader.streams.cameras))
        self._scan: BagScan | None = None

    def survey(self) -> list[Moment]:
        """Read the bag once; see `BagObservations.scan`."""
        self._scan = self._reader.scan()
        return [
            Moment(
                f'{self.name}/{step.episode}', step.instruction, step.observed_ns, step.state, step
            )
            for step in self._scan.steps
        ]

    def load(self, moments: Sequence[Moment]) -> Iterator[tuple[Moment, Observation | str]]:
        """Read the bag again and decode the images of these moments."""
        by_tick = {moment.key.now_ns: moment for moment in moments}
        for step, seen in self._reader.load([moment.key for moment in moments]):
            yield by_tick[step.now_ns], seen

    def report(self) -> dict[str, Any]:
        """Return where the bag comes from, what it lacks and how its clocks agree."""
        assert self._scan is not None
        scan = self._scan
        return {
            'kind': 'bag',
            'name': self.name,
            'recorded': self._reader.bag.provenance(),
            'steps': len(scan.steps),
            'gap_share': scan.gap_share,
            'dropped': dict(scan.dropped),
            'offset_s': dict(scan.offset_s),
            'losses': list(scan.losses),
        }


class DemonstrationRecording:
    """
    One shard of demonstrations, as `vlaq collect` writes them.

    Args:
        path: The `.npz` file.
        spec: The policy; its cameras and state are compared with the shard.
        sentences: Task number -> its sentences; an episode gets one of them by its number.

    Raises:
        BagError: The shard is not one, or does not fit the policy.
    """

    topic = 'demonstration'

    def __init__(
        self, path: Path, spec: PolicySpec, sentences: Mapping[int, Sequence[str]]
    ) -> None:
        self.name = path.stem
        self._path, self._spec, self._sentences = path, spec, sentences
        self._cameras = [camera.name for camera in spec.cameras]
        try:
            with np.load(path, allow_pickle=False) as shard:
                missing = {'task', 'episode', 'steps', 'state', *self._cameras} - {*shard.files}
                columns = [] if missing else [shard['state'], *(shard[c] for c in self._cameras)]
        except (OSError, ValueError) as error:
            raise BagError(f'{path} is no shard of demonstrations: {error}') from error
        if missing:
            raise BagError(f'{path} is no shard for this policy: it has no {sorted(missing)}')
        sizes = [(len(spec.state.names),), *((c.height, c.width, 3) for c in spec.cameras)]
        problems = [
            f'{name} is {list(column.shape[1:])}, the policy needs {list(size)}'
            for name, column, size in zip(['state', *self._cameras], columns, sizes)
            if column.shape[1:] != size
        ]
        if problems:
            raise BagError(f'{path} does not fit the policy: {"; ".join(problems)}')
        self._steps = len(columns[0])

    def survey(self) -> list[Moment]:
        """Return every recorded observation; stamps count from the start of the episode."""
        with np.load(self._path, allow_pickle=False) as shard:
            task, episode = shard['task'], shard['episode']
            steps, state = shard['steps'], shard['state']
        period_ns = self._spec.action.period_ns
        return [
            Moment(
                f'{self.name}/{episode[row]}',
                self._sentence(int(task[row]), int(episode[row])),
                int(steps[row]) * period_ns,
                state[row].astype(np.float64),
                row,
            )
            for row in range(len(task))
        ]

    def load(self, moments: Sequence[Moment]) -> Iterator[tuple[Moment, Observation | str]]:
        """Read the images of these moments."""
        with np.load(self._path, allow_pickle=False) as shard:
            images = {camera: shard[camera] for camera in self._cameras}
        for moment in moments:
            seen = {camera: column[moment.key] for camera, column in images.items()}
            yield moment, Observation(seen, moment.state, moment.instruction, moment.stamp_ns)

    def report(self) -> dict[str, Any]:
        """Return how many steps there are."""
        return {'kind': 'demonstrations', 'name': self.name, 'steps': self._steps}

    def _sentence(self, task: int, episode: int) -> str:
        sentences = self._sentences[task]
        return sentences[episode % len(sentences)]


def open_bags(paths: Sequence[Path | str], spec: PolicySpec, **options: Any) -> list[BagRecording]:
    """
    Open bags; `options` are those of `BagRecording`.

    Raises:
        BagError: Any of them is missing, is given twice or does not fit the policy; all problems
            of all bags are listed.
    """
    return _open_all(paths, lambda path: BagRecording(path, spec, **options))


def open_demonstrations(
    folder: Path, spec: PolicySpec, sentences: Mapping[int, Sequence[str]]
) -> list[DemonstrationRecording]:
    """
    Open every shard of a folder.

    Raises:
        BagError: There is none, or any of them does not fit the policy; all problems are listed.
    """
    paths = sorted(p for p in folder.glob('*.npz') if '.partial' not in p.name)
    if not paths:
        raise BagError(f'no demonstrations in {folder}: record some with `vlaq collect {folder}`')
    return _open_all(paths, lambda path: DemonstrationRecording(path, spec, sentences))


def _open_all(paths: Sequence[Any], opened: Any) -> list[Any]:
    recordings, problems = [], []
    for path in paths:
        try:
            recordings.append(opened(path))
        except VlaqError as error:
            problems.append(str(error))
    names = [recording.name for recording in recordings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(
            f'several recordings are called {", ".join(twice)}: samples are told apart by name'
        )
    if problems:
        raise BagError('\n'.join(problems))
    if not recordings:
        raise BagError('no recordings given')
    return recordings
