"""
QVLA: bits per output channel by what they cost the actions (arXiv 2602.03782).

Channels get 0, 2, 4, 8 or 16 bits under one budget for the whole policy: gradients rank all
channels, exact runs refine the top of the ranking, and a greedy walk demotes the channel whose
next step down costs the least action error for what it saves.

Two modes. `paper` is the published recipe: the product of means as sensitivity, one scale per
channel from its largest weight, one width per channel, adjacent moves, and a budget in mean bits
per *channel*. `tiles` is the one for hardware and memory: the joint estimate, clipped scales, one
width per 16 channels of a layer, and a budget in bits per weight with scales.

RECONSTRUCTION, as no source gives them: the share of pairs measured exactly, the pruning guards
(at most 2 % of a layer, no more than a threshold above 2 bits), and the bias of a pruned channel,
which takes over its mean output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlaq_ros.calibration.action_error import ActionMetric, default_metric
from vlaq_ros.calibration.allocation import MENU, TILE, AllocationOptions, allocate
from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.sensitivity import (
    ChannelChange,
    Passes,
    Rounding,
    measure_exactly,
    measure_sensitivity,
    nearest_rounding,
    rank_correlation,
)
from vlaq_ros.calibration.statistics import LayerStatistics, collect_statistics
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight


@dataclass(frozen=True)
class QvlaOptions:
    """
    Options of QVLA.

    Attributes:
        mode: `tiles` or `paper`; see the module.
        exact_pairs: How many (channel, width) pairs, the costliest ones, are measured exactly; a
            forward pass over the calibration set each.
        prune_share: Largest share of the channels of a layer that may be pruned.
        prune_threshold: A channel may be pruned only if, against 2 bits, that costs at most this
            many times what a channel at 2 bits costs on average.
        clip: Rule of the scales of `tiles`; `paper` takes the largest weight.

    Raises:
        SchemeError: The mode does not exist.
    """

    mode: str = 'tiles'
    exact_pairs: int = 0
    prune_share: float = 0.02
    prune_threshold: float = 1.0
    clip: str = 'mse'

    def __post_init__(self) -> None:
        if self.mode not in ('tiles', 'paper'):
            raise SchemeError(f"mode={self.mode!r} must be 'tiles' or 'paper'")


def pruned_biases(
    context: CalibrationContext,
    weights: Mapping[str, MixedWeight],
    statistics: Mapping[str, LayerStatistics],
) -> dict[str, Tensor]:
    """Return the biases with which pruned channels keep their mean output, by parameter name."""
    biases = {}
    for name, weight in weights.items():
        pruned = weight.widths() == 0
        if pruned.any():
            bias = context.linear(name).bias
            base = torch.zeros(len(pruned)) if bias is None else bias.detach().float()
            mean = (context.weight(name).double() @ statistics[name].input_mean).float()
            biases[f'{name}.bias'] = torch.where(pruned, base + mean, base)
    return biases


def refine_exactly(
    context: CalibrationContext,
    metric: ActionMetric,
    costs: dict[str, NDArray[np.float64]],
    statistics: dict[str, LayerStatistics],
    rounding: Rounding,
    pairs: int,
) -> tuple[float, Passes]:
    """
    Replace the largest costs by exact measurements, in place.

    Returns:
        The rank correlation of estimate and measurement over these pairs, and the passes taken.
    """
    ranked = sorted(
        (-table[channel, column], name, channel, column)
        for name, table in costs.items()
        for channel, column in np.ndindex(table.shape)
    )[:pairs]
    changes = [ChannelChange(name, (ch,), MENU[column]) for _, name, ch, column in ranked]
    exact, passes = measure_exactly(context, metric, changes, statistics, rounding)
    for (_, name, channel, column), error in zip(ranked, exact):
        costs[name][channel, column] = error
    return rank_correlation(np.array([-entry[0] for entry in ranked]), exact), passes


def calibrate(
    context: CalibrationContext,
    options: QvlaOptions | None = None,
    metric: ActionMetric | None = None,
) -> MethodResult:
    """
    Allocate widths by action sensitivity and round to nearest.

    Raises:
        SchemeError: The budget is below what 2 bits and the allowed pruning need.
    """
    options, metric = options or QvlaOptions(), metric or default_metric(context)
    paper = options.mode == 'paper'
    clip = 'absmax' if paper else options.clip
    rounding = nearest_rounding(context, clip)
    statistics = collect_statistics(context)
    found, passes = measure_sensitivity(context, statistics, metric, rounding)
    costs = {n: (s.product if paper else s.cost).copy() for n, s in found.items()}
    record = {'mode': options.mode, 'clip': clip, 'passes': passes._asdict()}
    if options.exact_pairs:
        agreement, exact_passes = refine_exactly(
            context, metric, costs, statistics, rounding, options.exact_pairs
        )
        record |= {'exact_rank_correlation': agreement, 'exact_passes': exact_passes._asdict()}
    mean_cost = float(np.concatenate([table[:, MENU.index(2)] for table in costs.values()]).mean())
    widths = allocate(
        costs,
        {name: context.linear(name).in_features for name in context.layers},
        context.budget_bits,
        context.group_size,
        AllocationOptions(
            tile=1 if paper else TILE,
            count='channels' if paper else 'bytes',
            moves='adjacent' if paper else 'hull',
            prune_share=options.prune_share,
            prune_threshold=options.prune_threshold * mean_cost * (1 if paper else TILE),
        ),
    )
    weights = {
        name: MixedWeight.from_float(
            context.weight(name), widths[name].tolist(), context.group_of(name), clip
        )
        for name in context.layers
    }
    return MethodResult(
        'qvla',
        weights,
        dict.fromkeys(context.layers, context.activation_bits),
        pruned_biases(context, weights, statistics),
        record,
    )
