"""
Precision levels, what a decision about them is based on, and what it says.

A level is a pair of widths. The order between levels is total: first by the narrower of the two
widths, because it dominates the error; then by the wider one; W8A4 stands below W4A8, because
activations have outliers and weights have fitted scales. An increase of either width is always an
increase of the level.

Numbers in, decision out: nothing here touches a policy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import total_ordering

from vlaq_ros.errors import ConfigError

WEIGHT_BITS = (4, 8)
ACTIVATION_BITS = (2, 4, 8, 16)
GROUPS = ('llm', 'expert')
"""Module groups whose precision is chosen separately."""

_NAME = re.compile(r'w(\d+)(?:a(\d+))?')


@total_ordering
@dataclass(frozen=True)
class PrecisionLevel:
    """
    Widths that one module group runs at.

    Attributes:
        weight_bits: Width that the kernels read of the stored weights, 4 or 8.
        activation_bits: Width of the inputs of the quantized layers, 2, 4, 8 or 16.
    """

    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        problems = []
        if self.weight_bits not in WEIGHT_BITS:
            problems.append(f'weight_bits = {self.weight_bits!r} must be one of {WEIGHT_BITS}')
        if self.activation_bits not in ACTIVATION_BITS:
            problems.append(
                f'activation_bits = {self.activation_bits!r} must be one of {ACTIVATION_BITS}'
            )
        raise_problems(problems)

    @classmethod
    def from_name(cls, name: str) -> 'PrecisionLevel':
        """
        Return the level of a name such as `w4a8`; `w4` is `w4a16`, as in the names of policies.

        Raises:
            ConfigError: The name has another form, or a width does not exist.
        """
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise ConfigError(
                f'precision level {name!r} is not understood: write it as w4a8, with weights of '
                f'{WEIGHT_BITS} and activations of {ACTIVATION_BITS} bits'
            )
        try:
            return cls(int(match[1]), int(match[2] or 16))
        except ConfigError as error:
            raise ConfigError(f'precision level {name!r}: {error}') from error

    def __str__(self) -> str:
        return f'w{self.weight_bits}a{self.activation_bits}'

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, PrecisionLevel):
            return NotImplemented
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[int, int, int]:
        widths = self.weight_bits, self.activation_bits
        return min(widths), max(widths), self.activation_bits


@dataclass(frozen=True)
class PrecisionMenu:
    """
    The levels that a module group may run at, lowest first; the last one is full precision.

    Raises:
        ConfigError: There is none, or they do not rise.
    """

    levels: tuple[PrecisionLevel, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, 'levels', tuple(self.levels))
        if not self.levels:
            raise ConfigError('a precision menu needs at least one level')
        if any(low >= high for low, high in zip(self.levels[:-1], self.levels[1:])):
            names = ', '.join(map(str, self.levels))
            right = ', '.join(map(str, sorted(set(self.levels))))
            raise ConfigError(
                f'precision levels must rise, got {names}; the order of these is {right}'
            )

    @classmethod
    def from_names(cls, *names: str) -> 'PrecisionMenu':
        """
        Return the menu of names such as `w4a8`.

        Raises:
            ConfigError: Some are not understood (all of them are listed), or they do not rise.
        """
        levels, problems = [], []
        for name in names:
            try:
                levels.append(PrecisionLevel.from_name(name))
            except ConfigError as error:
                problems.append(str(error))
        raise_problems(problems)
        return cls(tuple(levels))

    @property
    def bottom(self) -> PrecisionLevel:
        """The lowest level."""
        return self.levels[0]

    @property
    def top(self) -> PrecisionLevel:
        """The highest level, what safety falls back to."""
        return self.levels[-1]

    def above(self, level: PrecisionLevel) -> PrecisionLevel:
        """Return the next level above, the top when there is none."""
        return min((own for own in self.levels if own > level), default=self.top)

    def below(self, level: PrecisionLevel) -> PrecisionLevel:
        """Return the next level below, the bottom when there is none."""
        return max((own for own in self.levels if own < level), default=self.bottom)

    def __contains__(self, level: object) -> bool:
        return level in self.levels

    def __len__(self) -> int:
        return len(self.levels)


class Reason(str, Enum):
    """Why a level was chosen."""

    STATIC = 'static'
    WARM_UP = 'warm_up'
    MOTION = 'motion'
    FULL_PRECISION = 'full_precision'
    LOWER_DELAYED = 'lower_delayed'
    DRIFT_RAISED = 'drift_raised'
    DRIFT_HELD = 'drift_held'
    DRIFT_LOWERED = 'drift_lowered'
    DRIFT_UNKNOWN = 'drift_unknown'
    DRIFT_ALARM = 'drift_alarm'
    LATE = 'late'
    MARGIN_HELD = 'margin_held'
    MARGIN_RAISED = 'margin_raised'
    GRIPPER = 'gripper'
    CONTACT = 'contact'
    STOP_RECOVERY = 'stop_recovery'
    ESTOP_CLEARED = 'estop_cleared'

    __str__ = str.__str__


class SafetyEvent(str, Enum):
    """What forces full precision for a while; the values are those of `Reason`."""

    GRIPPER = 'gripper'
    CONTACT = 'contact'
    STOP_RECOVERY = 'stop_recovery'
    ESTOP_CLEARED = 'estop_cleared'

    __str__ = str.__str__


@dataclass(frozen=True)
class Decision:
    """
    The level of one module group until the next decision.

    Attributes:
        level: What to run at.
        reason: Why, for counting.
        detail: Why, as a sentence with the numbers.
    """

    level: PrecisionLevel
    reason: Reason
    detail: str


@dataclass(frozen=True)
class PrecisionInputs:
    """
    What is known before an inference.

    Attributes:
        now_ns: On the control clock.
        sensitivities: Motion sensitivity after each action executed since the last decision, i.e.
            of the executed part of the previous chunk; None during the warm-up of the proxies.
        drift_m: Accumulated drift of the newest comparison [m]; None: no new one; NaN: not
            commanded.
        drift_rad: The same for the rotation [rad].
        latency_s: Recent latency of an inference, e.g. the 95th percentile [s]; None: none yet.
        deadline_s: When an inference is late [s]; None: never.
        events: What has happened since the last decision.
    """

    now_ns: int
    sensitivities: tuple[float | None, ...] = ()
    drift_m: float | None = None
    drift_rad: float | None = None
    latency_s: float | None = None
    deadline_s: float | None = None
    events: frozenset[SafetyEvent] = frozenset()


def level_names(levels: Mapping[str, PrecisionLevel]) -> str:
    """Return the levels of all groups as text, e.g. `expert w8a16, llm w4a8`."""
    return ', '.join(f'{group} {level}' for group, level in sorted(levels.items()))


def raise_problems(problems: list[str]) -> None:
    """
    Raise one error that lists all problems, if there are any.

    Raises:
        ConfigError: One line per problem.
    """
    if problems:
        raise ConfigError('\n'.join(problems))


def count_problems(options: object, *names: str) -> list[str]:
    """Return what is wrong with the fields that must be whole numbers from 1."""
    return [
        f'{name} = {getattr(options, name)!r} must be a whole number, at least 1'
        for name in names
        if type(getattr(options, name)) is not int or getattr(options, name) < 1
    ]


def is_number(value: object) -> bool:
    """Whether a value of a file is a number; a truth value is none, NaN is one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
