"""
Whether measured drift is worth a warning: OK, WARN or ERROR, with hysteresis.

A level is raised at once and lowered one step after a number of calm readings, so that a value
that hovers around a limit does not make the level flicker. Numbers in, level and reason out.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from vlaq_ros.errors import ConfigError


class DriftLevel(IntEnum):
    """How bad it is; the numbers are those of `DriftReport.msg`."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class DriftLimits:
    """
    Above which drift, averaged over the window, a level is reached.

    Attributes:
        warn_m, error_m: Of the position accumulated over one chunk [m].
        warn_rad, error_rad: Of the rotation accumulated over one chunk [rad].
        warn_gripper, error_gripper: Of the share of steps whose gripper commands disagree [1].
        calm_share: A reading is calm at or below this share of the limits of the level in force.
        calm_after: Calm readings in a row before the level falls by one.

    Raises:
        ConfigError: Limits that are not positive, or do not rise from warn to error; all of them.
    """

    warn_m: float = 0.003
    error_m: float = 0.007
    warn_rad: float = 0.05
    error_rad: float = 0.15
    warn_gripper: float = 0.3
    error_gripper: float = 0.6
    calm_share: float = 0.8
    calm_after: int = 3

    def __post_init__(self) -> None:
        problems = []
        for unit in _UNITS:
            warn, error = getattr(self, f'warn_{unit}'), getattr(self, f'error_{unit}')
            if not 0.0 < warn < error < math.inf:
                problems.append(
                    f'warn_{unit} = {warn!r} must be positive and below error_{unit} = {error!r}'
                )
        if not 0.0 < self.calm_share <= 1.0:
            problems.append(f'calm_share = {self.calm_share!r} must be above 0 and at most 1')
        if self.calm_after < 1:
            problems.append(f'calm_after = {self.calm_after!r} must be at least 1')
        if problems:
            raise ConfigError('\n'.join(problems))


_UNITS = {'m': 'position', 'rad': 'rotation', 'gripper': 'gripper'}


class Alarm(NamedTuple):
    """A level and why it is in force."""

    level: DriftLevel
    reason: str


class DriftAlarm:
    """Turns readings into a level; see the module."""

    def __init__(self, limits: DriftLimits) -> None:
        self.limits = limits
        self.reset()

    def reset(self) -> None:
        """Begin a new episode at OK."""
        self.level = DriftLevel.OK
        self._calm = 0

    def update(self, position_m: float, rotation_rad: float, gripper: float) -> Alarm:
        """
        Take one reading; what the policy does not command is NaN and plays no role.

        Args:
            position_m: Mean over the window of the position accumulated over one chunk [m].
            rotation_rad: The same of the rotation [rad].
            gripper: Share of the steps of the window whose gripper commands disagree [1].
        """
        values = dict(zip(_UNITS, (position_m, rotation_rad, gripper)))
        reached, why = self._reached(values, 1.0)
        if reached >= self.level:
            self.level, self._calm = reached, 0
            return Alarm(reached, why)
        calm, still = self._reached(values, self.limits.calm_share)
        self._calm = self._calm + 1 if calm < self.level else 0
        if self._calm < self.limits.calm_after:
            text = still if calm >= self.level else f'{why}, {self._calm} times in a row'
            return Alarm(self.level, f'{text}; {self.level.name} stays')
        self.level, self._calm = DriftLevel(self.level - 1), 0
        return Alarm(self.level, f'{why} for {self.limits.calm_after} readings')

    def _reached(self, values: dict[str, float], share: float) -> tuple[DriftLevel, str]:
        """Return the highest level whose limit, times `share`, some value is over."""
        for level in (DriftLevel.ERROR, DriftLevel.WARN):
            over = [
                f'{_UNITS[unit]} {_shown(value, unit)} over {_shown(share * limit, unit)}'
                for unit, value in values.items()
                for limit in [getattr(self.limits, f'{level.name.lower()}_{unit}')]
                if value > share * limit
            ]
            if over:
                return level, ', '.join(over)
        return DriftLevel.OK, 'within limits'


def _shown(value: float, unit: str) -> str:
    if unit == 'm':
        return f'{value * 1e3:.2f} mm'
    return f'{value:.3f} rad' if unit == 'rad' else f'{value:.0%}'
