"""
What drift monitors would have said during an episode, from each source of a reference.

    shadow      full precision answers at once
    higher      the same store at its highest level answers at once
    remote      full precision answers one chunk late; answers are matched by their sequence
    predicted   an error model and no reference

    predicted, calibrated with it
                the same, the model fitted to actions that had the error already

An inference takes no control time here: an answer at once is there before the chunk is executed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.kinematics.predicted_drift import ErrorSample, PredictedDrift
from vlaq_ros.policies.drift_monitor import DriftMonitor, DriftReading
from vlaq_ros.sim.drift_runs import StudyRun
from vlaq_ros.sim.faults import ALL_FAULTS, TURNING, Fault
from vlaq_ros.types import POSITION_NAMES, ROTATION_NAMES, ActionChunk, ActionSpec

FULL_PRECISION = 'fp32'
HIGHER = 'higher'
SOURCES = ('shadow', 'higher', 'remote', 'predicted')
CALIBRATED = 'predicted, calibrated with it'
"""Not a source of its own: what `predicted` says of an error that was there at calibration."""

REMOTE_DELAY = 1
"""Chunks after which an answer of `remote` arrives."""

TURN_RMS_RAD = 0.02
_TURN_PERIODS_S = (0.5, 2.0)
_WAVES = 3


@dataclass(frozen=True, eq=False)
class Series:
    """
    The readings of one episode, oldest first.

    Attributes:
        chunk: [n] number of the judged chunk.
        time_s: [n] control time at which the reading is there, from the first observation.
        drift: [n, 3] of each chunk: position [m], rotation [rad], gripper [1].
        window: [n, 3] means over the window.
        period_s: Control time from one chunk to the next [s].
        steps: Policy steps of the episode.
        onset: Number of the first wrong chunk; -1: none.
        shows: Whether the error changes the actions noticeably; see `Fault.shows`.
    """

    chunk: NDArray[np.int64]
    time_s: NDArray[np.float64]
    drift: NDArray[np.float64] = field(repr=False)
    window: NDArray[np.float64] = field(repr=False)
    period_s: float
    steps: int
    onset: int
    shows: bool = True

    def at_window(self, window_s: float) -> 'Series':
        """Return these readings with means over another window [s], as a monitor forms them."""
        kept = math.ceil(window_s / self.period_s - 1e-9)
        means = [
            self.drift[max(0, k - kept + 1) : k + 1].mean(axis=0) for k in range(len(self.chunk))
        ]
        return replace(self, window=np.array(means).reshape(-1, 3))


class RemoteAnswers:
    """Answers that arrive some chunks late and in any order, matched with what was asked."""

    def __init__(self) -> None:
        self._asked: dict[tuple[int, int], ActionChunk] = {}

    def ask(self, chunk: ActionChunk) -> None:
        """Remember a chunk until its answer comes."""
        self._asked[chunk.epoch, chunk.sequence] = chunk

    def arrived(self, answer: ActionChunk) -> ActionChunk | None:
        """Return the chunk that was asked about; None: nobody asked, or it was answered."""
        return self._asked.pop((answer.epoch, answer.sequence), None)


def read(
    run: StudyRun,
    spec: ActionSpec,
    source: str,
    model: PredictedDrift | None = None,
) -> Series:
    """
    Return what a monitor says during an episode, with a window of one chunk.

    Args:
        run: The episode.
        spec: What its actions mean.
        source: One of `SOURCES`, or `CALIBRATED`.
        model: For the sources that predict.
    """
    rows = run.judged.shape[1]
    monitor = DriftMonitor(spec, rows, DriftLimits(), rows * spec.period_s)
    judged = _chunks(run.judged, spec, run.level)
    if source in ('predicted', CALIBRATED):
        pairs = [(k, monitor.predicted(one, model, run.level)) for k, one in enumerate(judged)]
    else:
        name = HIGHER if source == 'higher' else FULL_PRECISION
        answers = _chunks(run.references[name], spec, name)
        delay = REMOTE_DELAY if source == 'remote' else 0
        pairs = list(_measured(monitor, judged, answers, source, delay))
    return _series(run, spec, pairs)


def turning_run(run: StudyRun, spec: ActionSpec, fault: bool) -> tuple[StudyRun, ActionSpec]:
    """
    Return a synthetic stream with rotation: the translations of an episode and random turns.

    The turns are smooth: three waves per axis with periods from 0.5 to 2 s, 0.02 rad per step.
    Those of the judged policy are as wrong, by their size, as its translations in this episode.

    Args:
        run: An episode without a fault.
        spec: What its actions mean.
        fault: Whether to turn the judged policy by `TURNING` from a random chunk on.
    """
    wide = replace(
        spec,
        names=(*spec.names, *ROTATION_NAMES),
        units=(*spec.units, 'rad', 'rad', 'rad'),
        low=(*spec.low, -0.5, -0.5, -0.5),
        high=(*spec.high, 0.5, 0.5, 0.5),
    )
    rng = np.random.default_rng([*run.task.encode(), run.seed, run.index, *run.level.encode()])
    chunks, rows, _ = run.judged.shape
    turns = _smooth_turns(rng, chunks * rows, spec.period_s).reshape(chunks, rows, 3)
    columns = spec.columns(POSITION_NAMES)
    reference = run.references[FULL_PRECISION]
    error = np.sqrt(np.mean((run.judged - reference)[..., columns] ** 2))
    size = np.sqrt(np.mean(reference[..., columns] ** 2))
    noise = rng.normal(0.0, TURN_RMS_RAD * error / max(size, 1e-9), turns.shape)
    judged = np.concatenate([run.judged, turns + noise], axis=-1)
    onset = int(rng.integers(1, max(2, chunks - 2))) if fault else -1
    if fault:
        for chunk in judged[onset:]:
            chunk[:] = TURNING.change(chunk, wide)
    answers = {FULL_PRECISION: np.concatenate([reference, turns], axis=-1)}
    name = TURNING.name if fault else ''
    changed = replace(run, judged=judged, references=answers, fault=name, onset=onset)
    return changed, wide


def with_fault(run: StudyRun, spec: ActionSpec, fault: Fault) -> StudyRun:
    """
    Return an episode without an error as if the policy had it from the first chunk on, open loop.

    The arm is driven by the healthy actions: the observations, and what references answer, stay.
    """
    judged = np.array([fault.change(chunk, spec) for chunk in run.judged])
    return replace(run, judged=judged, fault=fault.name, onset=0)


def error_samples(run: StudyRun) -> Iterator[ErrorSample]:
    """Yield what an error model is fitted to: every chunk with the answer of full precision."""
    for judged, reference in zip(run.judged, run.references[FULL_PRECISION]):
        yield ErrorSample(run.level, ('unknown',) * len(judged), judged, reference)


def _measured(
    monitor: DriftMonitor,
    judged: list[ActionChunk],
    answers: list[ActionChunk],
    source: str,
    delay: int,
) -> Iterator[tuple[int, DriftReading]]:
    """Yield (chunk during which the reading is there, reading)."""
    remote = RemoteAnswers()
    for number, chunk in enumerate(judged):
        remote.ask(chunk)
        if number >= delay:
            answer = answers[number - delay]
            yield number, monitor.measured(remote.arrived(answer), answer, source)


def _series(run: StudyRun, spec: ActionSpec, pairs: list[tuple[int, DriftReading]]) -> Series:
    period_s = run.judged.shape[1] * spec.period_s
    window = np.array([[r.window_m, r.window_rad, r.window_gripper] for _, r in pairs])
    window = window.reshape(-1, 3)
    wrong = run.judged[max(run.onset, 0) :].reshape(-1, spec.dim)
    return Series(
        chunk=np.array([reading.sequence for _, reading in pairs], dtype=np.int64),
        time_s=np.array([number * period_s for number, _ in pairs]),
        drift=window,
        window=window,
        period_s=period_s,
        steps=run.steps,
        onset=run.onset,
        shows=not run.fault or ALL_FAULTS[run.fault].shows(wrong, spec),
    )


def _chunks(rows: NDArray, spec: ActionSpec, precision: str) -> list[ActionChunk]:
    period_ns = rows.shape[1] * spec.period_ns
    return [
        ActionChunk(each, spec, k * period_ns, '', precision, '', sequence=k)
        for k, each in enumerate(rows)
    ]


def _smooth_turns(rng: np.random.Generator, steps: int, period_s: float) -> NDArray:
    """Return smooth rotation vectors [steps, 3] with a root mean square of `TURN_RMS_RAD`."""
    time_s = np.arange(steps) * period_s
    periods_s = rng.uniform(*_TURN_PERIODS_S, (_WAVES, 3))
    phases = rng.uniform(0.0, 2 * np.pi, (_WAVES, 3))
    waves = np.sin(2 * np.pi * time_s[:, None, None] / periods_s + phases).sum(axis=1)
    return TURN_RMS_RAD * waves / np.sqrt(np.mean(waves**2))
