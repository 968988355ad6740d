"""
The last word on a configuration: run it as a whole on held-out samples, and step back if it fails.

Sums of single sensitivities do not predict the error of all layers together, so every result is
judged jointly: the error of each action dimension in its own unit, and the drift of the pose after
composing the executed actions. When a tolerance is missed, the layer whose return to more bits
helps most is promoted, and the result is judged again, until it passes or the budget is used up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.method import Batch, CalibrationContext, MethodResult
from vlaq_ros.errors import SchemeError
from vlaq_ros.kinematics.drift import gripper_disagreement, open_loop_drift
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.types import ActionSpec


@dataclass(frozen=True)
class Tolerance:
    """
    What is good enough, on the mean over held-out samples; every head must keep it.

    Attributes:
        drift_m: Distance between the end poses of a chunk [m].
        drift_rad: Angle between them [rad]; not judged when no rotation is commanded.
        gripper: Share of steps on different sides of half open, and not only just; not judged
            without a gripper.

    Raises:
        SchemeError: A limit is not positive.
    """

    drift_m: float = 0.005
    drift_rad: float = 0.02
    gripper: float = 0.02

    def __post_init__(self) -> None:
        wrong = [name for name, limit in vars(self).items() if not limit > 0.0]
        if wrong:
            raise SchemeError(f'tolerances must be positive: {", ".join(wrong)}')


@dataclass(frozen=True)
class HeadReport:
    """
    One head on the held-out samples, against full precision.

    Attributes:
        error: Mean absolute error of each action dimension, in the units of the spec.
        worst: Largest absolute error of each dimension.
        step_m: Mean distance between single actions [m].
        drift_m: Mean distance between the end poses of a chunk [m].
        drift_rad: Mean angle between them [rad]; NaN when none is commanded.
        gripper: Share of steps on different sides of half open, at least a tenth of the range
            apart: a policy that does not use its gripper may hover about the middle. NaN without
            a gripper.
        samples: Number of observations.
    """

    error: tuple[float, ...]
    worst: tuple[float, ...]
    step_m: float
    drift_m: float
    drift_rad: float
    gripper: float
    samples: int

    def excess(self, tolerance: Tolerance) -> float:
        """Return the largest ratio of a measure to its limit; at most 1 passes."""
        ratios = (getattr(self, name) / limit for name, limit in vars(tolerance).items())
        return max(ratio for ratio in ratios if not np.isnan(ratio))


@dataclass(frozen=True)
class Verification:
    """
    Whether a result holds, and how it came to.

    Attributes:
        heads: Head -> report of the final result.
        passed: Whether every head keeps the tolerance.
        promoted: (layer, bits per weight before, after) of each step back, in order.
        reason: Why it ended, in one sentence.
    """

    heads: dict[str, HeadReport]
    passed: bool
    promoted: tuple[tuple[str, float, float], ...]
    reason: str


def executed_actions(
    context: CalibrationContext, batches: Sequence[Batch]
) -> list[dict[str, Tensor]]:
    """Return what the robot would execute for each batch, with the model as it is now."""
    with torch.no_grad():
        return [context.decode(batch) for batch in batches]


def judge(
    context: CalibrationContext,
    result: MethodResult,
    reference: Sequence[dict[str, Tensor]],
    batches: Sequence[Batch] | None = None,
) -> dict[str, HeadReport]:
    """
    Compare a result with full precision.

    Args:
        context: The policy.
        result: What to judge.
        reference: `executed_actions` of the full-precision model on the same batches.
        batches: Where; the held-out ones when None.
    """
    with applied(context.model, result):
        found = executed_actions(context, context.held_out if batches is None else batches)
    reports = {}
    for head in reference[0]:
        quantized = torch.cat([actions[head] for actions in found]).double().numpy()
        exact = torch.cat([actions[head] for actions in reference]).double().numpy()
        reports[head] = head_report(quantized, exact, context.spec)
    return reports


def head_report(quantized: np.ndarray, exact: np.ndarray, spec: ActionSpec) -> HeadReport:
    """Compare two arrays of chunks [samples, horizon, action_dim] of one head."""
    drifts = [open_loop_drift(q, r, spec) for q, r in zip(quantized, exact)]
    error = np.abs(quantized - exact).reshape(-1, spec.dim)

    def mean(name: str) -> float:
        return float(np.mean([getattr(drift, name) for drift in drifts]))

    return HeadReport(
        error=tuple(error.mean(0).tolist()),
        worst=tuple(error.max(0).tolist()),
        step_m=mean('position_per_step_m'),
        drift_m=mean('position_accumulated_m'),
        drift_rad=mean('rotation_accumulated_rad'),
        gripper=gripper_disagreement(
            *(actions.reshape(-1, spec.dim) for actions in (quantized, exact)), spec
        ),
        samples=len(drifts),
    )


Promotion = Callable[[str, MixedWeight], MixedWeight | None]
"""(layer, its weight) -> the same with more bits; None when there are no more to give."""

NEXT_WIDTH = {0: 2, 2: 4, 4: 8, 8: 16, 16: 16}


def one_width_more(context: CalibrationContext, result: MethodResult) -> Promotion:
    """Return the promotion of the narrowest channels of a layer to their next width."""

    def promote(name: str, weight: MixedWeight) -> MixedWeight | None:
        widths = weight.widths().tolist()
        narrowest = min(widths)
        if narrowest == 16:
            return None
        wider = [NEXT_WIDTH[w] if w == narrowest else w for w in widths]
        target = result.targets.get(name, context.weight(name))
        return MixedWeight.from_float(target, wider, weight.layout.group_size, 'mse')

    return promote


def verify(
    context: CalibrationContext,
    result: MethodResult,
    tolerance: Tolerance,
    promote: Promotion,
    budget_bytes: float | None = None,
    candidates: int = 8,
    max_steps: int = 16,
) -> tuple[MethodResult, Verification]:
    """
    Judge a result on held-out samples and promote layers until it passes.

    Every step tries the promotion of the layers that promise most, each by itself, and keeps the
    one that lowers the squared excess of all heads most per byte; if none of them does, it goes on
    down the list. Layers are ranked once, by what restoring one to full precision gains.

    Args:
        context: The policy, with held-out batches.
        result: From any method.
        tolerance: What is good enough.
        promote: How a layer gets more bits.
        budget_bytes: Limit on codes and scales; that of the context when None.
        candidates: Layers tried per step.
        max_steps: Most promotions.

    Returns:
        The result that passed, or the best one reached, and the record.

    Raises:
        SchemeError: The context has no held-out batches.
    """
    if not context.held_out:
        raise SchemeError('verification needs held-out batches of other episodes')
    limit = context.budget_bytes if budget_bytes is None else budget_bytes
    reference = executed_actions(context, context.held_out)
    heads = judge(context, result, reference)
    promoted: list[tuple[str, float, float]] = []
    ranked: list[str] = []
    while _excess(heads, tolerance) > 1.0 and len(promoted) < max_steps:
        trials = {name: _promoted(result, name, promote) for name in result.weights}
        trials = {n: t for n, t in trials.items() if t is not None and t.nbytes <= limit}
        if trials and not ranked:
            ranked = _rank(context, result, reference, tolerance)
        fitting = [(name, trials[name]) for name in ranked if name in trials]
        best = None
        for i, (name, trial) in enumerate(fitting):
            if i >= candidates and best is not None:
                break
            found = judge(context, trial, reference)
            gain = _badness(heads, tolerance) - _badness(found, tolerance)
            gain /= trial.nbytes - result.nbytes
            if gain > 0.0 and (best is None or gain > best[0]):
                best = (gain, name, trial, found)
        if best is None:
            why = 'no promotion that fits the budget helps' if fitting else 'the budget is used'
            return result, _conclude(heads, tolerance, promoted, why)
        _, name, trial, heads = best
        promoted.append((name, _bits(result.weights[name]), _bits(trial.weights[name])))
        result = trial
    return result, _conclude(heads, tolerance, promoted, f'{max_steps} promotions were made')


def _conclude(
    heads: dict[str, HeadReport],
    tolerance: Tolerance,
    promoted: list[tuple[str, float, float]],
    why: str,
) -> Verification:
    excess = _excess(heads, tolerance)
    reason = 'within the tolerance' if excess <= 1.0 else why
    reason = f'{reason}: the worst measure is at {100 * excess:.0f} % of its limit'
    return Verification(heads, excess <= 1.0, tuple(promoted), reason)


def _rank(
    context: CalibrationContext,
    result: MethodResult,
    reference: Sequence[dict[str, Tensor]],
    tolerance: Tolerance,
) -> list[str]:
    """Return the layers in the order of what leaving them out of quantization gains."""
    gains = {}
    for name in result.weights:
        weight = result.targets.get(name, context.weight(name))
        widths = (16,) * len(weight)
        restored = MixedWeight.from_float(weight, widths, context.group_of(name))
        trial = _with_weight(result, name, restored)
        gains[name] = -_badness(judge(context, trial, reference), tolerance)
    return sorted(gains, key=gains.get, reverse=True)


def _promoted(result: MethodResult, name: str, promote: Promotion) -> MethodResult | None:
    weight = promote(name, result.weights[name])
    return None if weight is None else _with_weight(result, name, weight)


def _with_weight(result: MethodResult, name: str, weight: MixedWeight) -> MethodResult:
    return replace(result, weights={**result.weights, name: weight})


def _excess(heads: dict[str, HeadReport], tolerance: Tolerance) -> float:
    return max(report.excess(tolerance) for report in heads.values())


def _badness(heads: dict[str, HeadReport], tolerance: Tolerance) -> float:
    """Return what promotions should lower: it sees every head, not only the worst one."""
    return sum(report.excess(tolerance) ** 2 for report in heads.values())


def _bits(weight: MixedWeight) -> float:
    rows, columns = weight.layout.shape
    return 8.0 * (weight.nbytes - weight.order.nbytes) / (rows * columns)
