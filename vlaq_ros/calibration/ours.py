"""
This package's own method: what the others leave on the table, put together.

1. Every output channel is rounded to every width *with compensation* and searched scales (`gptq`),
   and what that would cost the actions of all heads is estimated from gradients (`sensitivity`,
   the joint estimate). Errors that accumulate along the chunk cost more than those that cancel.
2. One budget for the whole policy is spent on tiles of 16 channels (`allocation`). Scales count.
3. Layers are rounded to the widths they got. If asked for, in running order and against the inputs
   they will really get (`sequential`), which takes a run of the policy per layer.
4. If asked for, scales, biases, norm gains and codes are tuned end to end (`tuning`).
5. If there is a tolerance, the whole is verified on held-out samples and stepped back
   (`verification`); a share of the budget is kept for that.

Of QVLA it takes the greedy walk over action sensitivities, of DA-PTQ that drift is what counts, of
GPTQ the rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from vlaq_ros.calibration.action_error import ActionMetric
from vlaq_ros.calibration.allocation import TILE, AllocationOptions, allocate
from vlaq_ros.calibration.gptq import SEARCH, compensate
from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.qvla import pruned_biases
from vlaq_ros.calibration.sensitivity import PROBES, Rounding, measure_sensitivity
from vlaq_ros.calibration.sequential import SequenceOptions, round_in_sequence
from vlaq_ros.calibration.statistics import LayerStatistics, collect_statistics
from vlaq_ros.calibration.tuning import TuningOptions, tune
from vlaq_ros.calibration.verification import (
    NEXT_WIDTH,
    Promotion,
    Tolerance,
    verify,
)
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight

NO_TUNING = TuningOptions(steps=0)


@dataclass(frozen=True)
class OursOptions:
    """
    Options of the method.

    Attributes:
        heads: Action heads that count; all when empty.
        accumulated: Weight of the accumulated error next to that of single actions.
        tile: Output channels that share a width.
        prune_share: Largest share of the channels of a layer that may get no bits at all; needed
            for budgets below 2 bits and their scales.
        probes: Random sign vectors per observation.
        sequence: How layers are rounded in running order; None rounds all at once.
        tuning: How long to tune afterwards.
        tolerance: What to verify; None skips verification.
        reserve: Share of the budget kept for stepping back; used only with a tolerance.

    Raises:
        SchemeError: The reserve is not a share.
    """

    heads: tuple[str, ...] = ()
    accumulated: float = 0.1
    tile: int = TILE
    prune_share: float = 0.0
    probes: int = PROBES
    sequence: SequenceOptions | None = None
    tuning: TuningOptions = NO_TUNING
    tolerance: Tolerance | None = None
    reserve: float = 0.03

    def __post_init__(self) -> None:
        if not 0.0 <= self.reserve < 1.0:
            raise SchemeError(f'reserve={self.reserve} must be from 0 to below 1')


def compensated_rounding(
    context: CalibrationContext, statistics: Mapping[str, LayerStatistics]
) -> Rounding:
    """Return the rounding with compensation; what it gave once is remembered."""

    @cache
    def rounded(name: str, bits: int) -> Tensor:
        weight = context.weight(name)
        widths = (bits,) * len(weight)
        return _compensated(context, statistics, name, weight, widths).dequantize()

    return rounded


def _compensated(
    context: CalibrationContext,
    statistics: Mapping[str, LayerStatistics],
    name: str,
    weight: Tensor,
    widths: Sequence[int],
) -> MixedWeight:
    moment = statistics[name].second_moment
    return compensate(weight, moment, widths, context.group_of(name), ratios=SEARCH)


def promote_compensated(
    context: CalibrationContext,
    result: MethodResult,
    statistics: Mapping[str, LayerStatistics],
) -> Promotion:
    """Return the promotion of the narrowest channels of a layer, rounded with compensation."""

    def promote(name: str, weight: MixedWeight) -> MixedWeight | None:
        widths = weight.widths().tolist()
        narrowest = min(widths)
        if narrowest == 16:
            return None
        wider = [NEXT_WIDTH[w] if w == narrowest else w for w in widths]
        target = result.targets.get(name, context.weight(name))
        return _compensated(context, statistics, name, target, wider)

    return promote


def calibrate(context: CalibrationContext, options: OursOptions | None = None) -> MethodResult:
    """
    Allocate by action error, round with compensation, then tune and verify as asked.

    Raises:
        SchemeError: The budget is below what 2 bits need, or verification is asked for without
            held-out batches.
    """
    options = options or OursOptions()
    metric = ActionMetric(
        context.spec,
        context.action_scale,
        torch.ones(context.spec.dim),
        options.accumulated,
        options.heads,
    )
    statistics = collect_statistics(context)
    rounding = compensated_rounding(context, statistics)
    found, passes = measure_sensitivity(context, statistics, metric, rounding, options.probes)
    kept = 1.0 - (options.reserve if options.tolerance else 0.0)
    widths = allocate(
        {name: layer.cost for name, layer in found.items()},
        {name: context.linear(name).in_features for name in context.layers},
        kept * context.budget_bits,
        context.group_size,
        AllocationOptions(tile=options.tile, prune_share=options.prune_share),
    )
    each = {name: columns.tolist() for name, columns in widths.items()}
    if options.sequence:
        result = round_in_sequence(context, each, options.sequence)
    else:
        weights = {
            name: _compensated(context, statistics, name, context.weight(name), each[name])
            for name in context.layers
        }
        result = MethodResult('ours', weights, dict.fromkeys(weights, context.activation_bits))
    record = {
        'accumulated': options.accumulated,
        'tile': options.tile,
        'passes': passes._asdict(),
        'sequence': options.sequence is not None,
        'tuning_steps': options.tuning.steps,
    }
    biases = pruned_biases(context, result.weights, statistics)
    result = replace(result, method='ours', parameters=biases, provenance=record)
    if options.tuning.steps:
        result, losses = tune(context, result, metric, options.tuning)
        record |= {'first_loss': losses[0], 'last_loss': losses[-1]}
    if options.tolerance:
        promote = promote_compensated(context, result, statistics)
        result, verification = verify(context, result, options.tolerance, promote)
        record['verification'] = {
            'passed': verification.passed,
            'reason': verification.reason,
            'promoted': [list(step) for step in verification.promoted],
        }
    return result
