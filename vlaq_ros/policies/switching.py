"""
Precision levels of a loaded policy: which there are, and switching between them.

The packed layers of a module group share one `Precision`, so a switch is one write per group: it
loads nothing, packs nothing, and costs as little whichever way it goes.
"""

from collections.abc import Iterable, Mapping

from vlaq_ros.control.precision import (
    ACTIVATION_BITS,
    PrecisionLevel,
    level_names,
)
from vlaq_ros.errors import PolicyError
from vlaq_ros.nn.precision import Precision

FLOAT_WEIGHTS = (
    'its weights are float: load the bundle at precision `nested` for levels of 8- and 4-bit '
    'weights, or at another packed precision for levels of activation widths'
)
ONE_VIEW = (
    'its 8-bit channels were not made to be read at 4 bits: load a float bundle at precision '
    '`nested`, or a packed bundle that was written as nested'
)
ONLY_4 = 'its weights have 4 bits and no more: load the bundle at a precision with 8-bit weights'


class LevelSwitch:
    """
    The levels of a policy by module group.

    Args:
        precisions: What the layers of each group share, at its value now.
        weight_bits: Weight widths that each group can run at.
        name: Name of the precision that the policy was loaded at.
        limits: Why there are no other levels, for refusals.
        stored: Weights of each group by the width they are stored at, pruned ones at 0.
    """

    def __init__(
        self,
        precisions: Mapping[str, Precision],
        weight_bits: Mapping[str, Iterable[int]],
        name: str,
        limits: str,
        stored: Mapping[str, Mapping[int, int]] | None = None,
    ) -> None:
        self.limits = limits
        self.stored = {group: dict(counts) for group, counts in (stored or {}).items()}
        self.levels = {
            group: tuple(
                sorted(PrecisionLevel(w, a) for w in weight_bits[group] for a in ACTIVATION_BITS)
            )
            for group in precisions
        }
        self._precisions = dict(precisions)
        self._name = name
        self._loaded = self.active

    @property
    def active(self) -> dict[str, PrecisionLevel]:
        """The level of every group now."""
        return {
            group: PrecisionLevel(precision.cap, precision.activation_bits)
            for group, precision in self._precisions.items()
        }

    @property
    def name(self) -> str:
        """Name of what the policy runs at: as it was loaded, else its levels."""
        active = self.active
        if active == self._loaded:
            return self._name
        levels = set(active.values())
        return str(levels.pop()) if len(levels) == 1 else level_names(active)

    def prepare(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """
        Refuse levels that this policy has not got; nothing else is needed before a switch.

        Raises:
            PolicyError: Groups or levels that do not exist; all are listed, with those that do.
        """
        problems = level_problems(levels, self.levels, self.limits)
        if problems:
            raise PolicyError('\n'.join(problems))

    def apply(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """
        Run at these levels from the next call on.

        Raises:
            PolicyError: As `prepare`; nothing is changed.
        """
        self.prepare(levels)
        for group, level in levels.items():
            self._precisions[group].set(level.weight_bits, level.activation_bits)


def level_problems(
    levels: Mapping[str, PrecisionLevel],
    available: Mapping[str, tuple[PrecisionLevel, ...]],
    limits: str,
) -> list[str]:
    """Return why these levels cannot be run at, one sentence per group; none: they can."""
    problems = []
    for group, level in levels.items():
        there = available.get(group, ())
        if not there and not available:
            problems.append(f'{group} {level}: the precision of this policy is fixed: {limits}')
        elif not there:
            groups = ', '.join(sorted(available))
            problems.append(f'{group}: there is no such module group; available: {groups}')
        elif level not in there:
            names = ', '.join(map(str, there))
            why = f' ({limits})' if limits else ''
            problems.append(f'{group} {level} is not available; available: {names}{why}')
    return problems
