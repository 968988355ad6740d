"""
Rules that choose a precision level: fixed, by measured drift, by the deadline.

Each rule serves one module group, remembers what it needs, and answers every call with a level and
the reason. A rule is told which level is active, i.e. under which its inputs were measured: in a
combination of rules, or while a change is being prepared, that is not the level it asked for.
"""

import math
from dataclasses import dataclass

from vlaq_ros.control.precision import (
    Decision,
    PrecisionInputs,
    PrecisionLevel,
    PrecisionMenu,
    Reason,
    count_problems,
    is_number,
    raise_problems,
)


class StaticRule:
    """Always the same level."""

    def __init__(self, level: PrecisionLevel) -> None:
        self.level = level

    def reset(self) -> None:
        """Do nothing: there is nothing to forget."""

    def decide(self, inputs: PrecisionInputs, active: PrecisionLevel) -> Decision:
        """Return the level."""
        return Decision(self.level, Reason.STATIC, f'{self.level} is set')


@dataclass(frozen=True)
class DriftOptions:
    """
    When measured drift raises and lowers the precision.

    Attributes:
        warn_m, warn_rad: At or below, the drift is small enough for a lower level.
        raise_m, raise_rad: Above, the level is raised at once.
        lower_after: Small measurements in a row before one level is given up.
        silence_after: Decisions without any measurement before the top is used.
    """

    warn_m: float = 0.005
    raise_m: float = 0.01
    warn_rad: float = 0.05
    raise_rad: float = 0.1
    lower_after: int = 10
    silence_after: int = 100

    def __post_init__(self) -> None:
        problems = count_problems(self, 'lower_after', 'silence_after')
        for unit in ('m', 'rad'):
            low, high = getattr(self, f'warn_{unit}'), getattr(self, f'raise_{unit}')
            if not (is_number(low) and is_number(high) and 0.0 < low < high < math.inf):
                problems.append(
                    f'warn_{unit} = {low!r} must be positive and below raise_{unit} = {high!r}'
                )
        raise_problems(problems)


class DriftRule:
    """
    Precision by measured drift, one level at a time; it begins at the top.

    Above the raise limit of position or rotation it asks at once for more than the active level,
    between the limits it stays. Small drift counts only when it was measured at the level asked
    for or below: at a higher one it says nothing about a lower one. What the policy does not
    command (NaN) plays no role.
    """

    def __init__(self, menu: PrecisionMenu, options: DriftOptions) -> None:
        self.menu = menu
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Begin at the top again."""
        self._level = self.menu.top
        self._small = self._silent = 0

    def decide(self, inputs: PrecisionInputs, active: PrecisionLevel) -> Decision:
        """Return the level for the next inference."""
        options, found, warns, raises = self.options, [], [], []
        for value, unit in ((inputs.drift_m, 'm'), (inputs.drift_rad, 'rad')):
            if value is None or math.isnan(value):
                continue
            found.append(f'{value:.3g} {unit}')
            warns.append(value > getattr(options, f'warn_{unit}'))
            raises.append(value > getattr(options, f'raise_{unit}'))
        if not found:
            return self._without_measurement()
        self._silent = 0
        drift = f'drift {", ".join(found)} at {active}'
        if any(raises):
            before, self._level = self._level, max(self._level, self.menu.above(active))
            self._small = 0
            reason = Reason.DRIFT_RAISED if self._level > before else Reason.DRIFT_HELD
            return Decision(self._level, reason, f'{drift} is over the raise limit')
        if any(warns):
            self._small = 0
            return Decision(self._level, Reason.DRIFT_HELD, f'{drift} is over the warn limit')
        if active > self._level:
            return Decision(self._level, Reason.DRIFT_HELD, f'{drift} says nothing about less')
        self._small += 1
        if self._small < options.lower_after or self._level == self.menu.bottom:
            waited = f'{min(self._small, options.lower_after)} of {options.lower_after}'
            return Decision(self._level, Reason.DRIFT_HELD, f'{drift} is small: {waited}')
        self._small, self._level = 0, self.menu.below(self._level)
        return Decision(self._level, Reason.DRIFT_LOWERED, f'{drift} has been small')

    def _without_measurement(self) -> Decision:
        self._silent += 1
        if self._silent <= self.options.silence_after:
            return Decision(self._level, Reason.DRIFT_HELD, 'no new comparison')
        self._small, self._level = 0, self.menu.top
        return Decision(
            self._level, Reason.DRIFT_UNKNOWN, f'no comparison in {self._silent} decisions'
        )


@dataclass(frozen=True)
class LatencyOptions:
    """
    When the deadline lowers and raises the precision; margins are shares of the deadline.

    Attributes:
        low_margin: Less time than this is left: one level lower at once.
        high_margin: More time than this is left: one level higher after `raise_after`.
        raise_after: Decisions in a row with the high margin.
        retry_after: Decisions before a level that was too slow is tried again.
    """

    low_margin: float = 0.1
    high_margin: float = 0.3
    raise_after: int = 20
    retry_after: int = 500

    def __post_init__(self) -> None:
        problems = count_problems(self, 'raise_after', 'retry_after')
        low, high = self.low_margin, self.high_margin
        if not (is_number(low) and is_number(high) and 0.0 <= low < high < 1.0):
            problems.append(
                f'low_margin = {low!r} must be at least 0 and below high_margin = {high!r}, '
                'which must be below 1'
            )
        raise_problems(problems)


class LatencyRule:
    """
    The highest precision that keeps the deadline; it begins at the top.

    It gives way when the active level is late, and asks for more when the active level is the one
    it allows and has time to spare. A level that was too slow is left alone for a while, so that
    the rule does not swing between a level that is late and one with time to spare.
    """

    def __init__(self, menu: PrecisionMenu, options: LatencyOptions) -> None:
        self.menu = menu
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Begin at the top again."""
        self._level = self.menu.top
        self._calm = self._count = 0
        self._late_at: dict[PrecisionLevel, int] = {}

    def decide(self, inputs: PrecisionInputs, active: PrecisionLevel) -> Decision:
        """
        Return the level for the next inference.

        Raises:
            ValueError: The deadline is not positive.
        """
        self._count += 1
        latency_s, deadline_s = inputs.latency_s, inputs.deadline_s
        if latency_s is None or deadline_s is None:
            self._calm = 0
            return Decision(self._level, Reason.MARGIN_HELD, 'no latency or no deadline is known')
        if not deadline_s > 0.0:
            raise ValueError(f'deadline_s must be positive, got {deadline_s}')
        margin = (deadline_s - latency_s) / deadline_s
        found = f'{margin:.0%} of the deadline of {deadline_s * 1e3:.4g} ms is left'
        if not margin >= self.options.low_margin:  # also for a latency that is NaN
            self._calm = 0
            self._late_at[active] = self._count
            self._level = min(self._level, self.menu.below(active))
            return Decision(self._level, Reason.LATE, f'{found} at {active}')
        has_time = margin > self.options.high_margin and active == self._level
        self._calm = self._calm + 1 if has_time else 0
        higher = self.menu.above(self._level)
        late_at = self._late_at.get(higher, -self.options.retry_after)
        if (
            higher == self._level
            or self._calm < self.options.raise_after
            or self._count - late_at < self.options.retry_after
        ):
            return Decision(self._level, Reason.MARGIN_HELD, found)
        self._calm, self._level = 0, higher
        return Decision(self._level, Reason.MARGIN_RAISED, found)
