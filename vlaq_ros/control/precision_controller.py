"""
The precision of every module group before each inference: rules combined, safety first.

For each group the highest level that a rule asks for is taken, then lowered to what the deadline
allows, and then a safety event overrides both: for a dwell time after a gripper transition, a
contact, the end of a stop or of an emergency stop, every group runs at the top of its menu.
Reconstruction: the paper of DyQ-VLA has no such override, a robot needs one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vlaq_ros.control.precision import (
    Decision,
    PrecisionInputs,
    PrecisionLevel,
    PrecisionMenu,
    Reason,
    SafetyEvent,
    is_number,
    raise_problems,
)
from vlaq_ros.control.precision_rules import LatencyRule

_HALF_OPEN = 0.5


class PrecisionRule(Protocol):
    """One way of choosing the level of a module group."""

    def reset(self) -> None:
        """Forget everything, at the start of an episode."""

    def decide(self, inputs: PrecisionInputs, active: PrecisionLevel) -> Decision:
        """Return the level for the next inference, given the one at which inputs were measured."""


@dataclass(frozen=True)
class SafetyOptions:
    """
    How long a safety event forces the top level.

    Attributes:
        dwell_s: Time on the control clock after the newest event [s].
    """

    dwell_s: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.dwell_s) or not 0.0 <= self.dwell_s <= 3600.0:
            raise_problems([f'dwell_s = {self.dwell_s!r} must be from 0 to 3600 s'])


class SafetyFloor:
    """
    Remembers safety events until their dwell time is over.

    The decision that is told of an event is always covered, also with a dwell of zero. When the
    clock jumps backwards the dwell starts again: time that ran twice protects twice.
    """

    def __init__(self, options: SafetyOptions) -> None:
        self._dwell_ns = round(options.dwell_s * 1e9)
        self.reset()

    def reset(self) -> None:
        """Forget the events of the last episode."""
        self._event: SafetyEvent | None = None
        self._since_ns = 0

    def update(self, now_ns: int, events: frozenset[SafetyEvent]) -> SafetyEvent | None:
        """Return the event that forces the top level now, None when there is none."""
        if events:
            self._event, self._since_ns = min(events, key=list(SafetyEvent).index), now_ns
            return self._event
        if self._event is None:
            return None
        self._since_ns = min(self._since_ns, now_ns)
        if now_ns - self._since_ns >= self._dwell_ns:
            self._event = None
        return self._event


class GripperWatch:
    """Notices when the commanded gripper crosses half open."""

    def __init__(self) -> None:
        self._is_open: bool | None = None

    def reset(self) -> None:
        """Begin a new episode; its first command is no transition."""
        self._is_open = None

    def update(self, opening: float | None) -> bool:
        """Return whether this command, 0 closed to 1 open, is a transition; None commands none."""
        if opening is None:
            return False
        before, self._is_open = self._is_open, opening >= _HALF_OPEN
        return before is not None and before != self._is_open


@dataclass(frozen=True)
class GroupRules:
    """
    What decides the level of one module group.

    Attributes:
        menu: The levels to choose from.
        rules: Each asks for at least its level; the highest counts.
        ceiling: What the deadline allows; None: anything.
    """

    menu: PrecisionMenu
    rules: tuple[PrecisionRule, ...]
    ceiling: LatencyRule | None = None

    def __post_init__(self) -> None:
        if not self.rules and self.ceiling is None:
            raise ValueError('a module group needs at least one rule')

    def reset(self) -> None:
        """Forget everything, at the start of an episode."""
        for rule in (*self.rules, self.ceiling):
            if rule is not None:
                rule.reset()

    def decide(self, inputs: PrecisionInputs, active: PrecisionLevel) -> Decision:
        """Return the highest level asked for that the deadline allows."""
        asked = [rule.decide(inputs, active) for rule in self.rules]
        wanted = max(asked, key=lambda decision: decision.level, default=None)
        if self.ceiling is None:
            return wanted
        allowed = self.ceiling.decide(inputs, active)
        return allowed if wanted is None or allowed.level < wanted.level else wanted


class PrecisionController:
    """
    Decides the level of every module group, one call before each inference.

    Args:
        groups: Rules by name of the module group.
        safety: How long safety events force the top.
    """

    def __init__(self, groups: Mapping[str, GroupRules], safety: SafetyOptions) -> None:
        if not groups:
            raise ValueError('a precision controller needs at least one module group')
        self.groups = dict(groups)
        self._floor = SafetyFloor(safety)

    @property
    def top(self) -> dict[str, PrecisionLevel]:
        """The highest level of every group; what a policy should start at."""
        return {name: group.menu.top for name, group in self.groups.items()}

    def reset(self) -> None:
        """Begin a new episode."""
        self._floor.reset()
        for group in self.groups.values():
            group.reset()

    def decide(
        self, inputs: PrecisionInputs, active: Mapping[str, PrecisionLevel]
    ) -> dict[str, Decision]:
        """
        Return the decision for every module group.

        Args:
            inputs: What is known now.
            active: The level of every group at which the inputs were measured.

        Raises:
            ValueError: `active` does not name exactly the groups of this controller.
        """
        if set(active) != set(self.groups):
            raise ValueError(
                f'active levels are of the groups {sorted(active)}, this controller decides for '
                f'{sorted(self.groups)}'
            )
        event = self._floor.update(inputs.now_ns, inputs.events)
        decisions = {}
        for name, group in self.groups.items():
            decision = group.decide(inputs, active[name])  # also under a floor: rules remember
            if event is not None:
                decision = Decision(
                    group.menu.top, Reason(event.value), f'full precision after {event}'
                )
            decisions[name] = decision
        return decisions
