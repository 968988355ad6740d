"""
Drift without a reference policy at hand: predicted from how wrong single actions usually are.

During calibration the error of an action (quantized minus reference: translation and rotation
vector) is measured at every precision level and in every phase of the motion, and how often the
gripper is commanded to the other side. So a prediction knows what quantization did to the policy,
a bias included, and nothing that goes wrong later. Along a trajectory these errors are propagated
to the pose reached, to first order: with T the pose of the reference and xi the drift in its own
frame, T Exp(xi) after one step in the tool frame is

    xi' = Ad(D)^-1 xi + G e        D: motion of this step, e: error of this action

so mean and covariance follow a linear recursion (first-order propagation as in Sola, Deray and
Atchuthan, arXiv:1812.01537, and in Barfoot and Furgale, 'Associating uncertainty with
three-dimensional poses', IEEE T-RO 30:3, 2014). Increments about the base axes do not turn with
the tool; their recursion has its own matrices. Errors of neighbouring steps resemble each other:
z in e = mean + root(covariance) z is a first-order autoregression with a fitted correlation.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError, unknown_name
from vlaq_ros.kinematics.actions import select_dimensions, to_target_pose
from vlaq_ros.kinematics.drift import grippers_disagree
from vlaq_ros.kinematics.drift_propagation import step_matrices
from vlaq_ros.kinematics.lie import IDENTITY
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose

ANY_PHASE = 'any'
"""Statistics of all phases together, for phases that were not seen at a level."""

MAX_CORRELATION = 0.99
_AXES = POSITION_NAMES + ROTATION_NAMES


@dataclass(frozen=True, eq=False)
class ErrorSample:
    """
    Neighbouring actions of one precision level and their reference, e.g. one chunk.

    Attributes:
        level: Precision level, e.g. `w4a8`.
        phases: Phase of the motion at each step.
        quantized: [steps, dim] in the units of the spec.
        reference: [steps, dim].
    """

    level: str
    phases: Sequence[str]
    quantized: NDArray
    reference: NDArray


@dataclass(frozen=True, eq=False)
class ErrorStatistics:
    """
    Error of one action: translation [m] and rotation vector [rad].

    Attributes:
        mean: [6].
        covariance: [6, 6].
        count: Actions it was estimated from.
        gripper: Share of the actions whose gripper clearly disagrees, as in `kinematics.drift`;
            NaN: none is commanded, or it was not measured.
    """

    mean: NDArray
    covariance: NDArray
    count: int
    gripper: float = math.nan


@dataclass(frozen=True, eq=False)
class DriftForecast:
    """
    Predicted difference of the poses after a trajectory, in the tool frame of the reference.

    Attributes:
        mean: [6] translation [m] and rotation vector [rad].
        covariance: [6, 6].
        gripper_disagreement: Expected share of steps whose gripper clearly disagrees; NaN: none is
            commanded, or the model does not know.
    """

    mean: NDArray
    covariance: NDArray
    gripper_disagreement: float

    @property
    def position_rms_m(self) -> float:
        """Root mean square of the distance between the two positions [m]."""
        return float(np.sqrt(self.mean[:3] @ self.mean[:3] + np.trace(self.covariance[:3, :3])))

    @property
    def rotation_rms_rad(self) -> float:
        """Root mean square of the angle between the two orientations [rad]."""
        return float(np.sqrt(self.mean[3:] @ self.mean[3:] + np.trace(self.covariance[3:, 3:])))


class PredictedDrift:
    """
    Error of an action by precision level and phase, and the drift that follows from it.

    Attributes:
        spec: What the actions mean.
        statistics: By (level, phase); (level, `ANY_PHASE`) exists for every level.
        correlation: Of the errors of neighbouring steps, by level.
    """

    def __init__(
        self,
        spec: ActionSpec,
        statistics: Mapping[tuple[str, str], ErrorStatistics],
        correlation: Mapping[str, float],
    ) -> None:
        self.spec = spec
        self.statistics = dict(statistics)
        self.correlation = dict(correlation)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels that were measured."""
        return tuple(self.correlation)

    @classmethod
    def fit(cls, samples: Iterable[ErrorSample], spec: ActionSpec) -> 'PredictedDrift':
        """
        Estimate the error of every level and phase.

        A phase with a single action at some level is covered by the statistics of all its phases.

        Raises:
            ConfigError: A level has fewer than two actions, there are none at all, or values are
                not finite; every offender is listed.
            ValueError: The arrays of a sample differ in length.
        """
        errors: dict[tuple[str, str], list[NDArray]] = defaultdict(list)
        flips: dict[tuple[str, str], list[float]] = defaultdict(list)
        pieces: dict[str, list[NDArray]] = defaultdict(list)
        broken: dict[str, None] = {}
        for sample in samples:
            difference = _errors_of(sample, spec)
            pieces[sample.level].append(difference)
            if not all(np.isfinite(rows).all() for rows in (sample.quantized, sample.reference)):
                broken[sample.level] = None
            differs = grippers_disagree(sample.quantized, sample.reference, spec)
            for phase, error, flip in zip(sample.phases, difference, differs):
                for key in ((sample.level, phase), (sample.level, ANY_PHASE)):
                    errors[key].append(error)
                    flips[key].append(flip)
        problems = [
            f'{len(values)} measured actions at level {level} are too few: at least 2 are needed'
            for (level, phase), values in errors.items()
            if phase == ANY_PHASE and len(values) < 2
        ]
        problems += [f'some actions at level {level} are not finite' for level in broken]
        if not errors:
            problems.append('there are no measured actions to predict drift from')
        if problems:
            raise ConfigError('\n'.join(problems))
        statistics = {
            key: ErrorStatistics(
                np.mean(values, axis=0),
                np.cov(values, rowvar=False),
                len(values),
                float(np.mean(flips[key])),
            )
            for key, values in errors.items()
            if len(values) >= 2
        }
        correlation = {
            level: _correlation(parts, statistics[level, ANY_PHASE])
            for level, parts in pieces.items()
        }
        return cls(spec, statistics, correlation)

    def error_at(self, level: str, phase: str) -> ErrorStatistics:
        """
        Return the error of one action; that of all phases where this one was not seen.

        Raises:
            ConfigError: The level was not measured; the known ones are listed.
        """
        if level not in self.correlation:
            raise ConfigError(unknown_name('measured precision level', level, self.levels))
        return self.statistics.get((level, phase)) or self.statistics[level, ANY_PHASE]

    def predict(
        self,
        actions: NDArray,
        levels: Sequence[str],
        phases: Sequence[str],
        start: Pose = IDENTITY,
    ) -> DriftForecast:
        """
        Return the drift after actions [n, dim] that were executed at these levels in these phases.

        Of a policy with absolute actions only the last error remains.

        Raises:
            ConfigError: A level was not measured, or the spec leaves the meaning of an absolute
                action open.
            ValueError: The arrays differ in length or are empty; an action is not finite.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if not len(actions) == len(levels) == len(phases) or not len(actions):
            raise ValueError(
                f'actions, levels and phases must have one length of at least 1, got '
                f'{len(actions)}, {len(levels)} and {len(phases)}'
            )
        mean = np.zeros(6)
        joint = np.zeros((12, 12))  # covariance of the drift and of z
        joint[6:, 6:] = np.eye(6)
        pose, flips = start, []
        for action, level, phase in zip(actions, levels, phases):
            error = self.error_at(level, phase)
            correlation = self.correlation[level]
            reached = to_target_pose(action, self.spec, pose)
            carry, gain = step_matrices(action, self.spec, pose, reached)
            mean = carry @ mean + gain @ error.mean
            step = np.zeros((12, 12))
            step[:6, :6], step[:6, 6:] = carry, gain @ _root(error.covariance)
            step[6:, 6:] = correlation * np.eye(6)
            joint = step @ joint @ step.T
            joint[6:, 6:] += (1.0 - correlation**2) * np.eye(6)
            flips.append(error.gripper)
            pose = reached
        return DriftForecast(mean, joint[:6, :6], float(np.mean(flips)))

    def to_dict(self) -> dict[str, object]:
        """Return the model for a JSON file; a share of the gripper that is NaN is left out."""
        return {
            'correlation': self.correlation,
            'statistics': [
                {
                    'level': level,
                    'phase': phase,
                    'mean': error.mean.tolist(),
                    'covariance': error.covariance.tolist(),
                    'count': error.count,
                    **({} if math.isnan(error.gripper) else {'gripper': error.gripper}),
                }
                for (level, phase), error in self.statistics.items()
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object], spec: ActionSpec) -> 'PredictedDrift':
        """
        Return the model that `to_dict` has written; an older one does not know the gripper.

        Raises:
            ConfigError: Something is missing or impossible; every offender is listed.
        """
        problems, statistics = [], {}
        try:
            correlation = {str(k): float(v) for k, v in data['correlation'].items()}
            for entry in data['statistics']:
                key = str(entry['level']), str(entry['phase'])
                mean, covariance = np.array(entry['mean']), np.array(entry['covariance'])
                gripper = float(entry['gripper']) if 'gripper' in entry else math.nan
                statistics[key] = ErrorStatistics(mean, covariance, int(entry['count']), gripper)
                problems += _gripper_problems(key, entry, spec)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f'drift model is not understood ({type(error).__name__}: {error}); fit it again'
            ) from error
        for (level, phase), error in statistics.items():
            if error.mean.shape != (6,) or error.covariance.shape != (6, 6):
                problems.append(f'drift model: {level} {phase} must hold 6 and 6 x 6 numbers')
            elif not (np.isfinite(error.mean).all() and np.isfinite(error.covariance).all()):
                problems.append(f'drift model: {level} {phase} is not finite')
        problems += [
            f'drift model: level {level} has correlation {value:g}, which must be within '
            f'{MAX_CORRELATION:g} of 0'
            for level, value in correlation.items()
            if not abs(value) <= MAX_CORRELATION
        ]
        problems += [
            f'drift model: level {level} has no statistics of phase {ANY_PHASE!r}'
            for level in correlation
            if (level, ANY_PHASE) not in statistics
        ]
        if problems:
            raise ConfigError('\n'.join(problems))
        return cls(spec, statistics, correlation)


def _gripper_problems(
    key: tuple[str, str], entry: Mapping[str, object], spec: ActionSpec
) -> Iterator[str]:
    if 'gripper' not in entry:
        return
    level, phase = key
    if GRIPPER_NAME not in spec.names:
        yield f'drift model: {level} {phase} has a gripper, which the policy does not command'
    elif not 0.0 <= float(entry['gripper']) <= 1.0:
        yield (
            f'drift model: {level} {phase} has gripper {entry["gripper"]}, which must be a share '
            'from 0 to 1'
        )


def _errors_of(sample: ErrorSample, spec: ActionSpec) -> NDArray:
    quantized, reference = np.asarray(sample.quantized), np.asarray(sample.reference)
    if quantized.shape != reference.shape or len(sample.phases) != len(quantized):
        raise ValueError(
            f'a sample needs one phase per step and two arrays of one shape, got '
            f'{len(sample.phases)} phases, {list(quantized.shape)} and {list(reference.shape)}'
        )
    return select_dimensions(quantized, spec, _AXES) - select_dimensions(reference, spec, _AXES)


def _correlation(parts: list[NDArray], pooled: ErrorStatistics) -> float:
    """Return the correlation of the errors of neighbouring steps, all commanded axes together."""
    deviation = np.sqrt(np.diag(pooled.covariance))
    moves = deviation > 0.0
    scaled = [(part - pooled.mean)[:, moves] / deviation[moves] for part in parts]
    products = sum(float((part[:-1] * part[1:]).sum()) for part in scaled)
    squares = [sum(float((part[cut] ** 2).sum()) for part in scaled) for cut in _ENDS]
    size = float(np.sqrt(squares[0] * squares[1]))
    return float(np.clip(products / size, -MAX_CORRELATION, MAX_CORRELATION)) if size else 0.0


_ENDS = slice(None, -1), slice(1, None)


def _root(covariance: NDArray) -> NDArray:
    """Return the symmetric root [6, 6], also of a covariance without full rank."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
