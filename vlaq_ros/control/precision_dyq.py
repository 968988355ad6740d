"""
Precision by what the arm is doing: DyQ-VLA (arXiv:2603.07904).

Fine translation and abrupt rotation need more precision than coarse, steady motion. The level
rises at once and falls after a delay. Reconstruction: the paper gives neither the delay K (4
decisions here) nor how a chunk of several actions is judged (by its largest sensitivity here, so
that a short fine phase is not averaged away).
"""

import math
from dataclasses import dataclass

from vlaq_ros.control.precision import (
    ACTIVATION_BITS,
    Decision,
    PrecisionInputs,
    PrecisionLevel,
    PrecisionMenu,
    Reason,
    count_problems,
    is_number,
    raise_problems,
)

NEVER = -1.0
"""As a boundary: the level below it is never used, since a sensitivity is not negative."""

THETA_FP = 0.5
"""Sensitivity above which the paper uses full precision."""


class DelayedLowering:
    """
    One-sided hysteresis: raises at once, lowers at the `lower_after`-th lower target in a row.

    It then falls to the highest of these targets, possibly over several levels.
    """

    def __init__(self, level: PrecisionLevel, lower_after: int) -> None:
        if lower_after < 1:
            raise ValueError(f'lower_after must be at least 1, got {lower_after}')
        self.level = level
        self.lower_after = lower_after
        self.waited = 0
        self._highest: PrecisionLevel | None = None

    def update(self, target: PrecisionLevel) -> PrecisionLevel:
        """Return the level in force now that `target` is wanted."""
        if target >= self.level:
            self._settle(target)
            return self.level
        self.waited += 1
        self._highest = target if self._highest is None else max(self._highest, target)
        if self.waited == self.lower_after:
            self._settle(self._highest)
        return self.level

    def _settle(self, level: PrecisionLevel) -> None:
        self.level, self.waited, self._highest = level, 0, None


@dataclass(frozen=True)
class DyqOptions:
    """
    How the rule lowers.

    Attributes:
        lower_after: Decisions in a row that must want a lower level, K.
    """

    lower_after: int = 4

    def __post_init__(self) -> None:
        raise_problems(count_problems(self, 'lower_after'))


class DyqRule:
    """
    Precision by motion sensitivity S: fine or abrupt motion needs more.

    Level i of the menu is used for S in (boundaries[i - 1], boundaries[i]], the top above the last
    boundary. Until the proxies are warm, and when S is not finite, the top is used.

    Raises:
        ConfigError: The boundaries do not fit the menu, fall, or are not finite.
    """

    def __init__(
        self, menu: PrecisionMenu, boundaries: tuple[float, ...], options: DyqOptions
    ) -> None:
        raise_problems(boundary_problems(menu, boundaries))
        self.menu = menu
        self.boundaries = tuple(boundaries)
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Begin at the top again."""
        self._state = DelayedLowering(self.menu.top, self.options.lower_after)
        self._last = Decision(self.menu.top, Reason.WARM_UP, 'no action was executed yet')

    def target(self, sensitivity: float) -> PrecisionLevel:
        """Return the level of a sensitivity, without any delay."""
        return self.menu.levels[sum(sensitivity > edge for edge in self.boundaries)]

    def decide(self, inputs: PrecisionInputs, active: PrecisionLevel) -> Decision:
        """Return the level for the next inference; unchanged when nothing was executed since."""
        if inputs.sensitivities:
            self._last = self._judge(inputs.sensitivities)
        return self._last

    def _judge(self, sensitivities: tuple[float | None, ...]) -> Decision:
        top = self.menu.top
        if any(value is None or not math.isfinite(value) for value in sensitivities):
            self._state.update(top)
            return Decision(top, Reason.WARM_UP, 'the motion windows are not full')
        highest = max(sensitivities)
        target = self.target(highest)
        level = self._state.update(target)
        found = f'S = {highest:.3g}'
        if level > target:
            waited, delay = self._state.waited, self.options.lower_after
            return Decision(
                level, Reason.LOWER_DELAYED, f'{found} allows {target}: {waited} of {delay}'
            )
        if level == top and self.boundaries and highest > self.boundaries[-1]:
            return Decision(
                level, Reason.FULL_PRECISION, f'{found} is over {self.boundaries[-1]:.3g}'
            )
        return Decision(level, Reason.MOTION, f'{found} asks for {target}')


def boundary_problems(menu: PrecisionMenu, boundaries: tuple[float, ...]) -> list[str]:
    """Return what is wrong with the boundaries between the levels of a menu."""
    problems = []
    if len(boundaries) != len(menu) - 1:
        problems.append(
            f'boundaries = {list(boundaries)} must be {len(menu) - 1} numbers: one between every '
            f'two of {", ".join(map(str, menu.levels))}'
        )
    if not all(is_number(edge) and math.isfinite(edge) for edge in boundaries):
        problems.append(f'boundaries = {list(boundaries)} must be finite numbers')
    elif any(low > high for low, high in zip(boundaries[:-1], boundaries[1:])):
        problems.append(f'boundaries = {list(boundaries)} must not fall')
    return problems


def menu_boundaries(
    menu: PrecisionMenu, theta_2_4: float, theta_4_8: float, theta_fp: float
) -> tuple[float, ...]:
    """
    Return the boundaries of a menu from the thresholds of the paper.

    They are named by activation widths. A menu without some width uses the next wider one there.

    Raises:
        ConfigError: Two levels of the menu have the same activation width.
    """
    widths = [level.activation_bits for level in menu.levels]
    if sorted(set(widths)) != widths:
        raise_problems(
            [
                f'the levels {", ".join(map(str, menu.levels))} do not rise in activation width: '
                'the thresholds of the paper cannot tell them apart; fit boundaries instead'
            ]
        )
    edges = dict(zip(ACTIVATION_BITS, (theta_2_4, theta_4_8, theta_fp)))
    return tuple(edges[width] for width in widths[:-1])
