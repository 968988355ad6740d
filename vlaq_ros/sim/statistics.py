"""
Statistics of paired success counts: Wilson interval, lost and gained episodes, exact McNemar test.

Two configurations are compared over the same episodes. Episodes in which both succeed or both fail
say nothing about the difference; the test uses only those in which one of them succeeds. A
difference is a claim only where the exact two-sided p-value is below `SIGNIFICANT`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SIGNIFICANT = 0.05
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Paired:
    """
    A configuration against its reference over the same episodes.

    Attributes:
        episodes: Episodes that both ran.
        lost: Episodes that only the reference solved.
        gained: Episodes that only the configuration solved.
        p_value: Exact two-sided McNemar test.
    """

    episodes: int
    lost: int
    gained: int
    p_value: float

    @property
    def verdict(self) -> str:
        """`tie` unless the p-value says otherwise; then `worse` or `better`."""
        if self.p_value >= SIGNIFICANT:
            return 'tie'
        return 'worse' if self.lost > self.gained else 'better'


def wilson_interval(successes: int, episodes: int, z: float = Z_95) -> tuple[float, float]:
    """
    Return the Wilson score interval of a success rate (Wilson 1927, equation 4), as fractions.

    Raises:
        ValueError: No episodes, or a count outside 0 to `episodes`.
    """
    if not 0 <= successes <= episodes or not episodes:
        raise ValueError(f'{successes} successes of {episodes} episodes is no rate')
    rate = successes / episodes
    denominator = 1.0 + z * z / episodes
    centre = (rate + z * z / (2.0 * episodes)) / denominator
    spread = rate * (1.0 - rate) / episodes + z * z / (4.0 * episodes * episodes)
    half = z * math.sqrt(spread) / denominator
    # At 0 and at `episodes` one end is exact; rounding must not push it out of [0, 1].
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def mcnemar_p(lost: int, gained: int) -> float:
    """
    Return the exact two-sided p-value: twice the binomial tail of the smaller count, at most 1.

    Raises:
        ValueError: A negative count.
    """
    if lost < 0 or gained < 0:
        raise ValueError(f'counts cannot be negative: lost={lost} gained={gained}')
    discordant = lost + gained
    tail = sum(math.comb(discordant, k) for k in range(min(lost, gained) + 1))
    # Integers of any size divide exactly; a float power of two would overflow from 1024 on.
    return min(1.0, 2 * tail / 2**discordant) if discordant else 1.0


def compare(outcome: Mapping[object, bool], reference: Mapping[object, bool]) -> Paired:
    """
    Compare two runs over the episodes that both have, whatever the keys are.

    Args:
        outcome: Episode -> success of the configuration.
        reference: Episode -> success of its reference.
    """
    common = outcome.keys() & reference.keys()
    lost = sum(reference[key] and not outcome[key] for key in common)
    gained = sum(outcome[key] and not reference[key] for key in common)
    return Paired(len(common), lost, gained, mcnemar_p(lost, gained))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile with linear interpolation; NaN when there are no values."""
    return float(np.percentile(values, percent)) if len(values) else math.nan
