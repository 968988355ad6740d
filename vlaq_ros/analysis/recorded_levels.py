"""
The levels of the module groups, read from the name of the precision that a chunk was inferred at.

A name is that of a loaded precision (`nested`), of a level of all groups (`w4a8`), or the levels
by group (`expert w8a16, llm w4a8`). Names that say no widths, such as `fp32` and `packed`, stand
for themselves.
"""

from collections.abc import Mapping, Sequence

from vlaq_ros.control.precision import GROUPS, PrecisionLevel
from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.policies.precision import DEFAULT, NESTED, PACKED, SCHEMES, precisions
from vlaq_ros.policies.registry import load_policy


def group_levels(name: str) -> dict[str, str]:
    """Return module group -> level, e.g. `w4a8`, of the name of a precision."""
    if name in SCHEMES:
        scheme = SCHEMES[name]
        name = f'w{scheme.widths}a{scheme.activation_bits}'
    parts = [part.split() for part in name.split(',')]
    if all(len(part) == 2 for part in parts):
        return {group: _full(level) for group, level in sorted(parts)}
    return dict.fromkeys(sorted(GROUPS), _full(name))


def level_rank(name: str) -> tuple[int, PrecisionLevel | str]:
    """Return what levels are sorted by, lowest first; names without widths come last."""
    try:
        return 0, PrecisionLevel.from_name(name)
    except ConfigError:
        return 1, name


def shares(levels: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Return module group -> level -> its share of these inferences, lowest first."""
    found: dict[str, dict[str, float]] = {}
    for group in sorted({group for one in levels for group in one}):
        names = [one[group] for one in levels if group in one]
        known = sorted(set(names), key=level_rank)
        found[group] = {name: names.count(name) / len(names) for name in known}
    return found


def precision_problem(bundle: Bundle, precision: str) -> str:
    """Say why a bundle cannot run at a precision or level; empty: it can, as far as names tell."""
    if precision == DEFAULT or precision in precisions(bundle):
        return ''
    try:
        PrecisionLevel.from_name(precision)
    except ConfigError:
        known = ', '.join(precisions(bundle))
        hint = (
            ' (its float bundle is a reference at fp32: --reference)' if bundle.is_packed else ''
        )
        return (
            f'no precision or level {precision!r} of bundle {bundle.spec.name!r}, known: {known}'
            f'{hint}'
        )
    return ''


def load_at(bundle: Bundle, precision: str, head: str) -> Policy:
    """
    Load a bundle at one of its precisions, or at a level that its nested or packed form has.

    Raises:
        ConfigError: It has no such precision.
        PolicyError: It has no such level.
    """
    if precision == DEFAULT or precision in precisions(bundle):
        return load_policy(bundle.path, precision=precision, head=head)
    loaded = PACKED if bundle.is_packed else NESTED
    policy = load_policy(bundle.path, precision=loaded, head=head)
    policy.apply_precision(dict.fromkeys(policy.levels, PrecisionLevel.from_name(precision)))
    return policy


def _full(name: str) -> str:
    """Return `w4` as `w4a16`; other names as they are."""
    try:
        return str(PrecisionLevel.from_name(name))
    except ConfigError:
        return name
