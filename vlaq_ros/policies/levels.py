"""
What a calibration knows about the levels of a nested store: `levels.json` of a bundle.

    format       1
    reference    precision that errors are measured against: fp32
    ladder       the levels, lowest first
    motion       normalizers of the commanded motion, null where the recordings did not tell them
    heads        by action head, whose errors differ:
      measured     by what ran: errors on held-out samples, tolerance, predicted drift
      precision    levels and boundaries by module group, as a file of `dynamic_precision.file`
      fits         by module group: what the boundaries were read from, or why there are none
      drift        error model of single actions, by what ran and phase of the motion; files from
                   before it knew the gripper are read, and predict none
    record       samples, tolerance and whatever else tells how it was made

What ran is named as a policy names it: `w4a8` where all module groups run at one level, else
`expert w8a16, llm w4a8`. Phases are those of `kinematics.motion.motion_phase`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu, is_number, level_names
from vlaq_ros.control.precision_parameters import PrecisionParameters
from vlaq_ros.errors import ConfigError, unknown_name
from vlaq_ros.kinematics.motion import MotionScale
from vlaq_ros.kinematics.predicted_drift import PredictedDrift
from vlaq_ros.types import ActionSpec

FORMAT = 1
REFERENCE = 'fp32'
_KEYS = ('format', 'reference', 'ladder', 'motion', 'heads', 'record')
_HEAD_KEYS = ('measured', 'precision', 'fits', 'drift')


@dataclass(frozen=True)
class MeasuredLevel:
    """
    How a policy acts at some levels, on held-out samples against full precision.

    Attributes:
        error: Mean absolute error of each action dimension, in the units of the spec.
        worst: Largest absolute error of each.
        step_m: Mean distance between single actions [m].
        drift_m: Mean distance between the end poses of a chunk [m].
        drift_rad: Mean angle between them [rad]; NaN: no rotation is commanded.
        gripper: Share of steps on clearly different sides of half open; NaN: no gripper.
        samples: Observations.
        excess: Largest ratio of a measure to its tolerance; at most 1 passes.
        rms_m: Root mean square drift after the executed rows of a chunk [m].
        predicted_rms_m: The same as the error model predicts it for these chunks [m].
    """

    error: tuple[float, ...]
    worst: tuple[float, ...]
    step_m: float
    drift_m: float
    drift_rad: float
    gripper: float
    samples: int
    excess: float
    rms_m: float
    predicted_rms_m: float

    @property
    def within_tolerance(self) -> bool:
        """Whether every measure keeps its limit."""
        return self.excess <= 1.0

    @property
    def prediction_ratio(self) -> float:
        """Predicted over measured drift; NaN where nothing drifts."""
        return self.predicted_rms_m / self.rms_m if self.rms_m > 0.0 else math.nan


@dataclass(frozen=True, eq=False)
class HeadLevels:
    """
    What is known for one action head.

    Attributes:
        measured: By name of what ran.
        precision: Levels that keep the tolerance, and the boundaries between them.
        fits: By module group: what the boundaries were read from, plain values.
        drift: Error of single actions.
    """

    measured: Mapping[str, MeasuredLevel]
    precision: PrecisionParameters
    fits: Mapping[str, Any]
    drift: PredictedDrift

    def measured_as(self, levels: Mapping[str, PrecisionLevel]) -> str:
        """
        Return under which name the errors of a policy at these levels were measured.

        Mixtures that were not are taken for all groups at the lowest of their levels, which errs
        on the side of more drift.

        Raises:
            ConfigError: That was not measured either.
        """
        for name in (levels_name(levels), str(min(levels.values()))):
            if name in self.measured:
                return name
        raise ConfigError(unknown_name('measured level', levels_name(levels), self.measured))


@dataclass(frozen=True, eq=False)
class BundleLevels:
    """
    The content of `levels.json`.

    Attributes:
        ladder: The levels that were measured.
        motion: Normalizers for reading the commanded motion; None: not fitted.
        heads: By action head.
        record: How it was made, plain values.
        reference: Precision that errors are measured against.
    """

    ladder: PrecisionMenu
    motion: MotionScale | None
    heads: Mapping[str, HeadLevels]
    record: Mapping[str, Any] = field(default_factory=dict)
    reference: str = REFERENCE

    def to_json(self) -> dict[str, Any]:
        """Return plain values that `from_json` reads."""
        return {
            'format': FORMAT,
            'reference': self.reference,
            'ladder': list(map(str, self.ladder.levels)),
            'motion': None if self.motion is None else self.motion.to_dict(),
            'heads': {name: _head_to_json(head) for name, head in self.heads.items()},
            'record': dict(self.record),
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], spec: ActionSpec, heads: tuple[str, ...]
    ) -> 'BundleLevels':
        """
        Read what `to_json` has written.

        Args:
            data: Plain values.
            spec: Actions of the policy.
            heads: Its action heads.

        Raises:
            ConfigError: Another format, or something is missing, unknown or impossible; every
                offender has a line.
        """
        if data.get('format') != FORMAT:
            raise ConfigError(
                f'format {data.get("format")!r}; this version reads {FORMAT}: calibrate again, or '
                'use the matching version'
            )
        return _Reader(spec, heads).read(data)


def levels_name(levels: Mapping[str, PrecisionLevel]) -> str:
    """Return the name of what runs: `w4a8`, or `expert w8a16, llm w4a8`."""
    names = {str(level) for level in levels.values()}
    return names.pop() if len(names) == 1 else level_names(levels)


def _head_to_json(head: HeadLevels) -> dict[str, Any]:
    measured = {
        name: {key: _without_nan(value) for key, value in asdict(level).items()}
        for name, level in head.measured.items()
    }
    return {
        'measured': measured,
        'precision': json.loads(head.precision.to_json()),
        'fits': dict(head.fits),
        'drift': head.drift.to_dict(),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(map(_without_nan, value))
    return None if isinstance(value, float) and math.isnan(value) else value


class _Reader:
    """Collects what is wrong instead of stopping at the first problem."""

    def __init__(self, spec: ActionSpec, heads: tuple[str, ...]) -> None:
        self._spec, self._heads = spec, heads
        self._problems: list[str] = []

    def read(self, data: Mapping[str, Any]) -> BundleLevels:
        self._keys('', data, _KEYS)
        ladder = self._catch('ladder', lambda: PrecisionMenu.from_names(*data['ladder']))
        motion = None
        if data.get('motion') is not None and self._is_table('motion', data['motion']):
            motion = self._catch('motion', lambda: MotionScale.from_dict(data['motion']))
        heads = {}
        if self._is_table('heads', data.get('heads')):
            for name, head in data['heads'].items():
                if name not in self._heads:
                    self._problems.append(unknown_name('heads: action head', name, self._heads))
                elif self._is_table(f'heads.{name}', head):
                    heads[name] = self._head(f'heads.{name}', head, ladder)
            if not data['heads']:
                self._problems.append('heads is empty: there is nothing to choose from')
        self._is_table('record', data.get('record'))
        if not isinstance(data.get('reference'), str):
            self._problems.append(f'reference = {data.get("reference")!r} must be a precision')
        if self._problems:
            raise ConfigError('\n'.join(self._problems))
        return BundleLevels(ladder, motion, heads, data['record'], data['reference'])

    def _head(
        self, where: str, data: Mapping[str, Any], ladder: PrecisionMenu | None
    ) -> HeadLevels | None:
        before = len(self._problems)
        self._keys(where, data, _HEAD_KEYS)
        tables = [name for name in _HEAD_KEYS if self._is_table(f'{where}.{name}', data.get(name))]
        if len(tables) < len(_HEAD_KEYS):
            return None
        measured = {
            name: self._measured(f'{where}.measured.{name}', level)
            for name, level in data['measured'].items()
        }
        precision = self._catch(
            f'{where}.precision',
            lambda: PrecisionParameters.from_json(json.dumps(data['precision']), 'rules'),
        )
        drift = self._catch(
            f'{where}.drift', lambda: PredictedDrift.from_dict(data['drift'], self._spec)
        )
        if drift is not None:
            self._problems += [
                f'{where}.drift: {name} was measured and has no error model'
                for name in measured
                if name not in drift.levels
            ]
        if ladder is not None:
            self._problems += [
                f'{where}.measured.{level} is missing, it is in the ladder'
                for level in ladder.levels
                if str(level) not in measured
            ]
            self._problems += [
                f'{where}.precision: {group} {level} is not in the ladder'
                for group, own in (precision.groups if precision else {}).items()
                for level in own.menu.levels
                if level not in ladder
            ]
        if len(self._problems) > before:
            return None
        return HeadLevels(measured, precision, data['fits'], drift)

    def _measured(self, where: str, data: object) -> MeasuredLevel | None:
        if not self._is_table(where, data):
            return None
        before = len(self._problems)
        self._keys(where, data, tuple(one.name for one in fields(MeasuredLevel)))
        if len(self._problems) > before:
            return None
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name in ('error', 'worst'):
                good = isinstance(value, list) and len(value) == self._spec.dim
                good = good and all(is_number(one) and one >= 0.0 for one in value)
                values[name] = tuple(value) if good else None
                wanted = f'{self._spec.dim} numbers from 0'
            elif name in ('drift_rad', 'gripper') and value is None:
                values[name], good = math.nan, True
            else:
                values[name], good = value, is_number(value) and 0.0 <= value < math.inf
                wanted = 'a number from 0'
            if not good:
                self._problems.append(f'{where}.{name} = {value!r} must be {wanted}')
        return None if len(self._problems) > before else MeasuredLevel(**values)

    def _keys(self, where: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
        prefix = f'{where}.' if where else ''
        self._problems += [f'{prefix}{name} is missing' for name in known if name not in data]
        self._problems += [
            unknown_name('entry', f'{prefix}{name}', known) for name in data if name not in known
        ]

    def _is_table(self, where: str, data: object) -> bool:
        if not isinstance(data, Mapping):
            self._problems.append(f'{where} = {data!r} must be a table of named values')
        return isinstance(data, Mapping)

    def _catch(self, where: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as error:
            self._problems += [f'{where}: {line}' for line in str(error).splitlines()]
        except (KeyError, TypeError) as error:
            self._problems.append(f'{where} is not understood ({type(error).__name__}: {error})')
        return None
