"""
What the arm is doing, read from the commands it has executed: slow and fine, or turning abruptly.

Two proxies of DyQ-VLA (arXiv:2603.07904) and their combination. With a(t) the increment of step t,

    fineness     M(t) = 1 - |a_xyz(t)| / mu      mean over a long window
    angular jerk J(t) = |a_rot(t) - a_rot(t-1)| / nu      mean over a short window
    sensitivity  S(t) = max(0, lambda M + (1 - lambda) J)

where mu and nu are 95th percentiles over calibration data. The jerk is a first difference of
rotation commands; the name is the paper's. Reconstruction: the paper gives neither lambda (0.5
here) nor what happens before the windows are full (no value here, so that a caller stays at full
precision). Where a policy commands no rotation, S is the fineness alone, and the other way round.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.actions import select_dimensions
from vlaq_ros.kinematics.lie import quat_conjugate, quat_multiply, so3_exp, so3_log
from vlaq_ros.kinematics.running_quantile import RunningQuantile
from vlaq_ros.types import POSITION_NAMES, ROTATION_NAMES, ActionSpec

NORMALIZER_QUANTILE = 0.95
"""Quantile of the calibration data that counts as 1, as in the paper."""

MIN_TRANSLATION_M = 1e-6
MIN_ROTATION_RAD = 1e-3
"""Changes of rotation below this are no jerk, however still the wrist was during calibration."""


def step_increments(actions: NDArray, spec: ActionSpec) -> NDArray:
    """
    Return the motion [n, 6] that actions [n, dim] ask for: translation [m], rotation vector [rad].

    Absolute actions give the n - 1 steps between neighbours. What is not commanded is zero.
    """
    translation = select_dimensions(actions, spec, POSITION_NAMES)
    rotation = select_dimensions(actions, spec, ROTATION_NAMES)
    if not spec.delta:
        quat = so3_exp(rotation)
        rotation = so3_log(quat_multiply(quat_conjugate(quat[:-1]), quat[1:]))
        translation = np.diff(translation, axis=0)
    return np.concatenate([translation, rotation], axis=-1)


@dataclass(frozen=True)
class MotionScale:
    """
    The normalizers of the proxies; None where the policy commands no such motion.

    Attributes:
        translation_m: Length of a step that counts as coarse, mu [m].
        rotation_rad: Change of the rotation per step that counts as abrupt, nu [rad].
    """

    translation_m: float | None
    rotation_rad: float | None

    def __post_init__(self) -> None:
        values = {name: value for name, value in asdict(self).items() if value is not None}
        problems = [
            f'{name} = {value!r} must be a positive number'
            for name, value in values.items()
            if not _is_number(value) or not 0.0 < value < np.inf
        ]
        if not values:
            problems.append(
                'translation_m and rotation_rad are both absent: a policy that moves no end '
                'effector has no motion to read'
            )
        _raise_all('motion scale', problems)

    def to_dict(self) -> dict[str, float | None]:
        """Return the values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> 'MotionScale':
        """
        Return the scale that `to_dict` has written.

        Raises:
            ConfigError: A value is missing, unknown or out of range; all of them are listed.
        """
        return cls(**_checked_keys(cls, data, 'motion scale'))


@dataclass(frozen=True)
class MotionOptions:
    """
    How the proxies are formed.

    Attributes:
        fineness_weight: Share of the fineness in the sensitivity, lambda.
        fineness_window: Steps of the long window.
        jerk_window: Steps of the short window.
    """

    fineness_weight: float = 0.5
    fineness_window: int = 10
    jerk_window: int = 5

    def __post_init__(self) -> None:
        problems = [
            f'{name} = {getattr(self, name)!r} must be a whole number of steps, at least 1'
            for name in ('fineness_window', 'jerk_window')
            if type(getattr(self, name)) is not int or getattr(self, name) < 1
        ]
        if not _is_number(self.fineness_weight) or not 0.0 <= self.fineness_weight <= 1.0:
            problems.append(f'fineness_weight = {self.fineness_weight!r} must be from 0 to 1')
        _raise_all('motion options', problems)

    def to_dict(self) -> dict[str, float]:
        """Return the values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> 'MotionOptions':
        """
        Return the options that `to_dict` has written.

        Raises:
            ConfigError: A value is missing, unknown or out of range; all of them are listed.
        """
        return cls(**_checked_keys(cls, data, 'motion options'))


def fit_motion_scale(
    episodes: Iterable[NDArray], spec: ActionSpec, quantile: float = NORMALIZER_QUANTILE
) -> MotionScale:
    """
    Return the normalizers of recorded actions, one array [n, dim] per episode.

    The jerk is taken inside episodes only. A wrist that never turned during calibration gets a
    small normalizer, so that its first turn counts as abrupt: towards more precision.

    Raises:
        ConfigError: There are no steps, or an arm that commands positions stood still in all of
            them.
    """
    increments = [step_increments(np.asarray(actions), spec) for actions in episodes]
    lengths = _flat(np.linalg.norm(steps[:, :3], axis=1) for steps in increments)
    jerks = _flat(np.linalg.norm(np.diff(steps[:, 3:], axis=0), axis=1) for steps in increments)
    if not len(jerks):
        raise ConfigError(
            f'{len(lengths)} executed actions in {len(increments)} episodes are too few for '
            'motion normalizers: give episodes of at least two actions'
        )
    if not (np.isfinite(lengths).all() and np.isfinite(jerks).all()):
        raise ConfigError('executed actions hold values that are not finite: repair the episodes')
    has_translation = any(name in POSITION_NAMES for name in spec.names)
    translation_m = float(np.quantile(lengths, quantile)) if has_translation else None
    if translation_m is not None and translation_m < MIN_TRANSLATION_M:
        raise ConfigError(
            f'the {quantile:g} quantile of {len(lengths)} commanded steps is {translation_m:g} m: '
            'the arm stands still in these episodes; calibrate with episodes in which it moves'
        )
    rotation_rad = max(float(np.quantile(jerks, quantile)), MIN_ROTATION_RAD)
    return MotionScale(translation_m, rotation_rad if spec.has_rotation else None)


class OnlineMotionScale:
    """
    Normalizers learned while the robot works, for a robot without calibration data.

    There is no scale until five steps were seen and the arm has really moved.
    """

    def __init__(self, spec: ActionSpec, quantile: float = NORMALIZER_QUANTILE) -> None:
        has_translation = any(name in POSITION_NAMES for name in spec.names)
        self._length = RunningQuantile(quantile) if has_translation else None
        self._jerk = RunningQuantile(quantile) if spec.has_rotation else None
        if self._length is None and self._jerk is None:
            raise ConfigError(f'actions {spec.names} move no end effector: no motion to read')

    def add(self, length_m: float, jerk_rad: float | None) -> None:
        """Take one step into account; it has no jerk when it is the first of an episode."""
        if self._length is not None:
            self._length.add(length_m)
        if self._jerk is not None and jerk_rad is not None:
            self._jerk.add(jerk_rad)

    @property
    def scale(self) -> MotionScale | None:
        """The normalizers so far, None while they are unknown."""
        translation_m = rotation_rad = None
        if self._length is not None:
            translation_m = self._length.value
            if translation_m is None or translation_m < MIN_TRANSLATION_M:
                return None
        if self._jerk is not None:
            if self._jerk.value is None:
                return None
            rotation_rad = max(self._jerk.value, MIN_ROTATION_RAD)
        return MotionScale(translation_m, rotation_rad)


@dataclass(frozen=True)
class MotionReading:
    """
    The proxies after one step; None during warm-up and for motion that is not commanded.

    Attributes:
        fineness: Mean M over the long window, at most 1; negative for very coarse motion.
        jerk: Mean J over the short window, not negative.
        sensitivity: S; None until every window that counts is full.
    """

    fineness: float | None
    jerk: float | None
    sensitivity: float | None


class MotionTracker:
    """Reads the proxies from executed commands, one call per executed action."""

    def __init__(
        self, scale: MotionScale | OnlineMotionScale, options: MotionOptions | None = None
    ) -> None:
        self.options = options or MotionOptions()
        self._scale = scale
        self._lengths: deque[float] = deque(maxlen=self.options.fineness_window)
        self._jerks: deque[float] = deque(maxlen=self.options.jerk_window)
        self._rotation: NDArray | None = None

    def reset(self) -> None:
        """Begin a new episode: the windows are empty again; what was learned online stays."""
        self._lengths.clear()
        self._jerks.clear()
        self._rotation = None

    def update(self, increment: NDArray) -> MotionReading:
        """
        Take one executed step [6] into account: translation [m] and rotation vector [rad].

        An executed twist times the period of the policy is such a step; `step_increments` makes
        them of recorded actions.

        Raises:
            ValueError: The step is not six finite numbers.
        """
        increment = np.asarray(increment, dtype=np.float64)
        if increment.shape != (6,) or not np.isfinite(increment).all():
            raise ValueError(f'an executed step is 6 finite numbers, got {increment.tolist()}')
        length_m, jerk_rad = float(np.linalg.norm(increment[:3])), None
        self._lengths.append(length_m)
        if self._rotation is not None:
            jerk_rad = float(np.linalg.norm(increment[3:] - self._rotation))
            self._jerks.append(jerk_rad)
        self._rotation = increment[3:]
        if isinstance(self._scale, OnlineMotionScale):
            self._scale.add(length_m, jerk_rad)
            return self._reading(self._scale.scale)
        return self._reading(self._scale)

    def _reading(self, scale: MotionScale | None) -> MotionReading:
        if scale is None:
            return MotionReading(None, None, None)
        fineness = jerk = None
        if scale.translation_m is not None and len(self._lengths) == self._lengths.maxlen:
            fineness = 1.0 - float(np.mean(self._lengths)) / scale.translation_m
        if scale.rotation_rad is not None and len(self._jerks) == self._jerks.maxlen:
            jerk = float(np.mean(self._jerks)) / scale.rotation_rad
        return MotionReading(fineness, jerk, self._sensitivity(scale, fineness, jerk))

    def _sensitivity(
        self, scale: MotionScale, fineness: float | None, jerk: float | None
    ) -> float | None:
        if scale.rotation_rad is None:
            return None if fineness is None else max(0.0, fineness)
        if scale.translation_m is None:
            return jerk
        if fineness is None or jerk is None:
            return None
        weight = self.options.fineness_weight
        return max(0.0, weight * fineness + (1.0 - weight) * jerk)


PHASES = ('gripper', 'fine', 'coarse')
"""What an arm does, as far as errors of a policy differ between them."""


def motion_phase(reading: MotionReading, gripper_moves: bool, fine_above: float = 0.5) -> str:
    """
    Return one of `PHASES` for the step of a reading; before the windows are full it is `fine`.

    Reconstruction: no source names phases; this is the coarsest split that keeps grasps apart.
    """
    if gripper_moves:
        return 'gripper'
    is_coarse = reading.sensitivity is not None and reading.sensitivity <= fine_above
    return 'coarse' if is_coarse else 'fine'


def read_episode(
    actions: NDArray, spec: ActionSpec, scale: MotionScale, options: MotionOptions | None = None
) -> list[MotionReading]:
    """Return the reading after every step of recorded actions [n, dim], as live."""
    tracker = MotionTracker(scale, options)
    return [tracker.update(step) for step in step_increments(actions, spec)]


def _flat(parts: Iterable[NDArray]) -> NDArray:
    return np.concatenate([np.zeros(0), *parts])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _checked_keys(cls: type, data: Mapping[str, object], where: str) -> Mapping[str, object]:
    known = [field.name for field in fields(cls)]
    problems = [
        f'{name!r} is unknown; known: {", ".join(known)}' for name in data if name not in known
    ]
    problems += [f'{name!r} is missing' for name in known if name not in data]
    _raise_all(where, problems)
    return data


def _raise_all(where: str, problems: list[str]) -> None:
    if problems:
        raise ConfigError('\n'.join(f'{where}: {problem}' for problem in problems))
