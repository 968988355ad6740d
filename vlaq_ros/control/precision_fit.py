"""
Where the motion sensitivity calls for the next level: boundaries fitted from calibration samples.

DyQ-VLA (arXiv:2603.07904) admits an action error of D / (S + eta) at sensitivity S, and uses the
lowest width within it. Reconstruction: the paper gives neither D nor eta nor the procedure. Here
samples are pooled by deciles of S; eta is 0.05; D is such that the error of the level just below
the top meets the bound at the 90th percentile of S; a boundary lies where the pooled error first
crosses the bound. Numbers only: who measures the errors decides their unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu, raise_problems
from vlaq_ros.control.precision_dyq import NEVER

SOFTENING = 0.05
POOLS = 10
ANCHOR_QUANTILE = 0.9


@dataclass(frozen=True)
class BoundaryFit:
    """
    Fitted boundaries with what they were read from.

    Attributes:
        boundaries: One between every two levels of the menu; never falling. `NEVER`: the level
            below is too inaccurate everywhere.
        budget: D of the admissible error D / (S + softening), in the unit of the errors.
        softening: The eta of the bound.
        sensitivities: Mean sensitivity of every pool, rising.
        errors: Mean error of every pool, by level.
        bound: Admissible error of every pool.
        counts: Samples of every pool.
    """

    boundaries: tuple[float, ...]
    budget: float
    softening: float
    sensitivities: tuple[float, ...]
    errors: Mapping[PrecisionLevel, tuple[float, ...]]
    bound: tuple[float, ...]
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, object]:
        """Return everything for a JSON report; levels by name."""
        return {
            'boundaries': list(self.boundaries),
            'budget': self.budget,
            'softening': self.softening,
            'sensitivities': list(self.sensitivities),
            'errors': {str(level): list(values) for level, values in self.errors.items()},
            'bound': list(self.bound),
            'counts': list(self.counts),
        }


def fit_boundaries(
    sensitivities: NDArray,
    errors: Mapping[PrecisionLevel, NDArray],
    menu: PrecisionMenu,
    softening: float = SOFTENING,
    budget: float | None = None,
    pools: int = POOLS,
) -> BoundaryFit:
    """
    Fit the boundaries between the levels of a menu.

    Args:
        sensitivities: [samples] S of each sample.
        errors: For every level below the top, [samples] squared distance of its action from the
            one of full precision.
        menu: At least two levels; the top counts as without error.
        softening: eta, positive.
        budget: D; fitted when None.
        pools: Pools of about equal size; equal sensitivities are never torn apart.

    Raises:
        ConfigError: Samples are too few, not finite or negative, or errors of a level are absent;
            every problem is listed.
    """
    sensitivities = np.asarray(sensitivities, dtype=np.float64)
    lower = menu.levels[:-1]
    raise_problems(_problems(sensitivities, errors, lower, softening, budget, pools))
    if not lower:
        raise_problems([f'the menu {menu.top} has one level: there is nothing to fit'])
    pool_of = _pools(sensitivities, pools)
    counts = np.bincount(pool_of)
    centers = np.bincount(pool_of, sensitivities) / counts
    pooled = {level: np.bincount(pool_of, errors[level]) / counts for level in lower}
    if budget is None:
        anchor = float(np.quantile(sensitivities, ANCHOR_QUANTILE))
        budget = float(np.interp(anchor, centers, pooled[lower[-1]])) * (anchor + softening)
    bound = budget / (centers + softening)
    edges = [
        _first_crossing(centers, pooled[level] - bound, sensitivities.max()) for level in lower
    ]
    edges = np.minimum.accumulate(edges[::-1])[::-1]  # a lower level never outlasts a higher one
    return BoundaryFit(
        boundaries=tuple(map(float, edges)),
        budget=budget,
        softening=softening,
        sensitivities=tuple(map(float, centers)),
        errors={level: tuple(map(float, values)) for level, values in pooled.items()},
        bound=tuple(map(float, bound)),
        counts=tuple(map(int, counts)),
    )


def _pools(sensitivities: NDArray, pools: int) -> NDArray:
    """Return the pool [samples] of each sample, numbered from 0 without gaps."""
    inner = np.quantile(sensitivities, np.arange(1, pools) / pools)
    return np.unique(np.searchsorted(inner, sensitivities, side='left'), return_inverse=True)[1]


def _first_crossing(centers: NDArray, excess: NDArray, highest: float) -> float:
    """Return the sensitivity where the error first exceeds the bound, between pools by a line."""
    above = np.flatnonzero(excess > 0.0)
    if not len(above):
        return float(highest)  # nothing is known beyond what was seen
    first = above[0]
    if first == 0:
        return NEVER
    share = -excess[first - 1] / (excess[first] - excess[first - 1])
    return float(centers[first - 1] + share * (centers[first] - centers[first - 1]))


def _problems(
    sensitivities: NDArray,
    errors: Mapping[PrecisionLevel, NDArray],
    lower: tuple[PrecisionLevel, ...],
    softening: float,
    budget: float | None,
    pools: int,
) -> list[str]:
    problems = []
    if pools < 2 or sensitivities.ndim != 1 or len(sensitivities) < 2 * pools:
        problems.append(
            f'{sensitivities.size} samples are too few for {pools} pools: at least two pools of '
            'two samples each are needed; calibrate with more episodes'
        )
    if not (np.isfinite(sensitivities).all() and (sensitivities >= 0.0).all()):
        bad = np.count_nonzero(~(np.isfinite(sensitivities) & (sensitivities >= 0.0)))
        problems.append(
            f'{bad} of {sensitivities.size} sensitivities are negative or not finite: leave out '
            'the samples of the warm-up'
        )
    for level in lower:
        if level not in errors:
            problems.append(f'the errors of {level} are absent')
            continue
        values = np.asarray(errors[level], dtype=np.float64)
        if values.shape != sensitivities.shape:
            problems.append(
                f'the errors of {level} are {list(values.shape)}, the sensitivities '
                f'{list(sensitivities.shape)}: give one error per sample'
            )
        elif not (np.isfinite(values).all() and (values >= 0.0).all()):
            problems.append(f'some errors of {level} are negative or not finite')
    if not 0.0 < softening < np.inf:
        problems.append(f'softening = {softening!r} must be positive')
    if budget is not None and not 0.0 <= budget < np.inf:
        problems.append(f'budget = {budget!r} must be positive')
    return problems
