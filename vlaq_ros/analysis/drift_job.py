"""
What is to be analysed, checked as a whole before anything long begins.

Bag, bundles, chunks and observations are looked at, and everything that is wrong with them is said
in one message.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaq_ros.analysis.chunk_observations import Asked, ChunkObservations, Found
from vlaq_ros.analysis.recorded_levels import precision_problem
from vlaq_ros.analysis.recorded_run import RecordedRun, read_run
from vlaq_ros.analysis.replay import Replay, find_replay
from vlaq_ros.calibration.recordings import layout_of
from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.data.bags import Bag
from vlaq_ros.data.messages import chunk_from_message, to_nanoseconds
from vlaq_ros.errors import BagError, BundleError, ConfigError, VlaqError
from vlaq_ros.policies.bundle import Bundle, open_bundle
from vlaq_ros.types import ActionChunk

WINDOW_S = 0.5
MOST = 0.5
"""Share of the chunks that must have an observation."""
_SHOWN = 5


@dataclass(frozen=True)
class DriftJob:
    """
    What a user asks for.

    Attributes:
        bag: The recording.
        reference: Bundle whose answers count as right.
        precision: What the reference runs at: a precision of the bundle, or a level.
        bundle: The bundle that was recorded; empty: found by its hash, if it is here.
        is_replayed: Whether observations are proven with the recorded bundle.
        policy: Name of the policy node, where the bag holds several.
        horizon: Rows of a chunk that are executed; 0: as recorded, else as the bundle says.
        window_s: Length of the window [s]; 0: as recorded, else 0.5.
        limits: When drift is worth a warning; None: those of the node by default, which is not
            recorded with a bag.
        topics: Stream -> topic, for topics that are called otherwise.
        layout: Further fields of `StreamLayout`.
    """

    bag: Path
    reference: str = 'metaworld'
    precision: str = 'fp32'
    bundle: str = ''
    is_replayed: bool = True
    policy: str = ''
    horizon: int = 0
    window_s: float = 0.0
    limits: DriftLimits | None = None
    topics: Mapping[str, str] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedJob:
    """
    A job that can be run.

    Attributes:
        job: As asked for.
        bag: Opened.
        bundle: Of the reference.
        recorded: The small messages.
        chunks: Those of `recorded`, as values.
        observations: Where the observations come from.
        found: What each chunk saw.
        horizon, window_s: What is in force.
        provenance: What the recorder knew.
        replay: The recorded policy, to prove observations; None: it is not here.
        why_no_replay: Why not.
    """

    job: DriftJob
    bag: Bag
    bundle: Bundle
    recorded: RecordedRun
    chunks: tuple[ActionChunk, ...]
    observations: ChunkObservations
    found: tuple[Found, ...]
    horizon: int
    window_s: float
    provenance: Mapping[str, Any]
    replay: Replay | None
    why_no_replay: str

    @property
    def limits(self) -> DriftLimits:
        """When drift is worth a warning."""
        return self.job.limits or DriftLimits()

    @property
    def notes(self) -> list[str]:
        """What a reader of the result must know about bag and reference."""
        notes = list(dict.fromkeys((*self.recorded.losses, *self.observations.losses)))
        lost = self.provenance.get('lost') or {}
        notes += [f'{topic}: {n} messages were lost while recording' for topic, n in lost.items()]
        ran = self.provenance.get('bundle_hash', '')
        origins = {ran, self.replay.bundle.origin} if self.replay else {ran}
        if ran and not origins & {self.bundle.digest, self.bundle.origin}:
            notes.append(
                f'recorded with bundle {self.provenance.get("bundle")!r} ({ran[:12]}), which is '
                f'not the reference {self.bundle.spec.name!r} ({self.bundle.digest[:12]}): drift '
                'says something about quantization only if it was made of that (`vlaq inspect` '
                'shows the origin of a packed bundle)'
            )
        return notes


def check_job(job: DriftJob) -> CheckedJob:
    """
    Look at everything that a job needs; reads the bag, runs no policy.

    Raises:
        VlaqError: Anything is wrong; all of it is listed.
    """
    problems: list[str] = []
    bundle = _try(problems, BundleError, open_bundle, job.reference)
    ran = _try(problems, BundleError, open_bundle, job.bundle) if job.bundle else None
    bag = _try(problems, BagError, Bag, job.bag)
    recorded = _try(problems, VlaqError, read_run, bag, job.policy, job.topics) if bag else None
    if not 0.0 <= job.window_s < 3600.0:
        problems.append(f'--window-s = {job.window_s} must be positive')
    if bundle:
        problem = precision_problem(bundle, job.precision)
        problems += [problem] if problem else []
    observations = None
    if bundle and bag:
        layout = _try(problems, ConfigError, _layout, bundle, job)
        if layout:
            observations = _try(problems, VlaqError, ChunkObservations, bag, layout, job.topics)
    chunks: tuple[ActionChunk, ...] = ()
    horizon = 0
    if bundle and recorded:
        chunks = _chunks(recorded, bundle, problems)
        horizon = job.horizon or _recorded_horizon(recorded) or bundle.spec.execution_horizon
        if not 1 <= horizon <= bundle.spec.horizon:
            problems.append(
                f'--horizon = {horizon} must be between 1 and {bundle.spec.horizon}, the actions '
                f'of a chunk of bundle {bundle.spec.name!r}'
            )
    if problems:
        raise ConfigError('nothing was run:\n' + '\n'.join(f'- {text}' for text in problems))
    asked = [
        Asked(
            number,
            chunk.observed_ns,
            one.log_ns - to_nanoseconds(one.message.inference_time),
            chunk.instruction,
        )
        for number, (chunk, one) in enumerate(zip(chunks, recorded.chunks))
    ]
    found = tuple(observations.find(asked))
    _require_most(found, bag.name)
    provenance = bag.provenance()
    replay, why = None, 'it was switched off'
    if job.is_replayed:
        replay, why = find_replay(provenance, chunks, [*([ran] if ran else []), bundle])
        if ran and not replay and provenance.get('bundle_hash'):
            why = (
                f'--bundle has digest {ran.digest[:12]}, recorded was '
                f'{provenance["bundle_hash"][:12]}'
            )
    return CheckedJob(
        job=job,
        bag=bag,
        bundle=bundle,
        recorded=recorded,
        chunks=chunks,
        observations=observations,
        found=found,
        horizon=horizon,
        window_s=job.window_s or _recorded_window_s(recorded) or WINDOW_S,
        provenance=provenance,
        replay=replay,
        why_no_replay=why,
    )


def _try(problems: list[str], kind: type[VlaqError], make: Any, *args: Any) -> Any:
    try:
        return make(*args)
    except kind as error:
        problems.append(str(error).replace('\n', '\n  '))
        return None


def _layout(bundle: Bundle, job: DriftJob) -> Any:
    return layout_of(bundle.spec, **job.layout)


def _chunks(recorded: RecordedRun, bundle: Bundle, problems: list[str]) -> tuple[ActionChunk, ...]:
    """Return the chunks as values; what does not fit the bundle becomes a problem."""
    spec = bundle.spec
    chunks, wrong = [], Counter()
    for one in recorded.chunks:
        message = one.message
        try:
            chunk = chunk_from_message(message, spec.action)
        except ValueError as error:
            wrong[str(error)] += 1
            continue
        if len(chunk.actions) != spec.horizon:
            wrong[f'{len(chunk.actions)} actions per chunk, expected {spec.horizon}'] += 1
        elif chunk.head not in spec.heads:
            wrong[f'head {chunk.head!r}, the bundle has {", ".join(spec.heads)}'] += 1
        else:
            chunks.append(chunk)
    total = len(recorded.chunks)
    for text, count in wrong.most_common(_SHOWN):
        problems.append(
            f'{count} of {total} chunks are of another policy than bundle {spec.name!r}: {text}'
        )
    return tuple(chunks)


def _recorded_horizon(recorded: RecordedRun) -> int:
    """Return the rows that the node compared, 0 when it reported nothing."""
    steps = Counter(one.message.steps for one in recorded.reports)
    return steps.most_common(1)[0][0] if steps else 0


def _recorded_window_s(recorded: RecordedRun) -> float:
    windows = Counter(to_nanoseconds(one.message.window) for one in recorded.reports)
    return windows.most_common(1)[0][0] * 1e-9 if windows else 0.0


def _require_most(found: tuple[Found, ...], name: str) -> None:
    without = [one for one in found if one.problem]
    if len(without) <= MOST * len(found):
        return
    reasons = Counter(one.problem for one in without).most_common(_SHOWN)
    lines = '\n'.join(f'- {count} x {text}' for text, count in reasons)
    raise BagError(
        f'bag {name!r}: {len(without)} of {len(found)} chunks have no observation, so there is '
        f'nothing to compare them with:\n{lines}\nRecord the cameras and the state as well '
        '(`record.launch.py` does), or name their topics with --topics'
    )
