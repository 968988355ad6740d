"""
What precision an episode really ran at: shares of levels, and the mean widths that follow.

Widths are means over the inferences, every quantized weight that the head reads counting alike. A
weight stored with fewer bits than the level reads keeps its own. Activation widths of 4 and 2 are
rounded to that range and multiplied on 8-bit units: fewer bits there save no time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.control.precision_occupancy import Occupancy
from vlaq_ros.policies.base import Policy

Shares = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PrecisionRun:
    """
    Precision of the inferences of one episode, or of many.

    Attributes:
        inferences: How many there were.
        shares: Module group -> level -> share of the inferences.
        weight_bits, activation_bits: Mean widths.
        changes: Inferences of a group at another level than the one before, of all groups.
        reasons: Module group -> reason -> number of decisions; empty at a static level.
    """

    inferences: int
    shares: Shares
    weight_bits: float
    activation_bits: float
    changes: int = 0
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def static_run(policy: Policy, inferences: int) -> PrecisionRun | None:
    """Return what an episode at the present levels ran at; None where a policy has no levels."""
    weights = policy.executed_weights if policy.levels else {}
    if not weights or not inferences:
        return None
    levels = {group: {str(policy.active_levels[group]): 1.0} for group in weights}
    return PrecisionRun(inferences, levels, *mean_widths(levels, weights))


def counted_run(
    occupancy: Occupancy, weights: Mapping[str, Mapping[int, int]]
) -> PrecisionRun | None:
    """Return what was counted of the groups that the head executes; None: no inference."""
    groups = {name: found for name, found in occupancy.to_dict().items() if name in weights}
    if not groups:
        return None
    shares = {name: dict(found['share_of_inferences']) for name, found in groups.items()}
    return PrecisionRun(
        inferences=max(found['inferences'] for found in groups.values()),
        shares=shares,
        **dict(zip(('weight_bits', 'activation_bits'), mean_widths(shares, weights))),
        changes=sum(found['changes'] for found in groups.values()),
        reasons={name: dict(found['reasons']) for name, found in groups.items()},
    )


def mean_widths(shares: Shares, weights: Mapping[str, Mapping[int, int]]) -> tuple[float, float]:
    """
    Return the mean bits of weights and of activations.

    Args:
        shares: Module group -> level -> share of the inferences.
        weights: Module group -> stored width -> number of weights.
    """
    total = weight_bits = activation_bits = 0.0
    for group, counts in weights.items():
        total += sum(counts.values())
        for name, share in shares[group].items():
            level = PrecisionLevel.from_name(name)
            read = sum(n * _read(stored, level) for stored, n in counts.items())
            weight_bits += share * read
            activation_bits += share * level.activation_bits * sum(counts.values())
    return weight_bits / total, activation_bits / total


def pooled(runs: Iterable[PrecisionRun]) -> PrecisionRun | None:
    """Return all episodes as one, every inference counting alike; None without any."""
    runs = list(runs)
    total = sum(run.inferences for run in runs)
    if not total:
        return None
    shares: dict[str, dict[str, float]] = {}
    reasons: dict[str, dict[str, int]] = {}
    for run in runs:
        for group, levels in run.shares.items():
            found = shares.setdefault(group, {})
            for level, share in levels.items():
                found[level] = found.get(level, 0.0) + share * run.inferences / total
        for group, counts in run.reasons.items():
            sums = reasons.setdefault(group, {})
            for reason, number in counts.items():
                sums[reason] = sums.get(reason, 0) + number
    return PrecisionRun(
        inferences=total,
        shares=shares,
        weight_bits=sum(run.weight_bits * run.inferences for run in runs) / total,
        activation_bits=sum(run.activation_bits * run.inferences for run in runs) / total,
        changes=sum(run.changes for run in runs),
        reasons=reasons,
    )


def _read(stored: int, level: PrecisionLevel) -> int:
    return min(stored, level.weight_bits) if stored <= 8 else stored
