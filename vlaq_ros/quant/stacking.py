"""Mixed-width weights below each other, and parts of them: bits are moved, none is changed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.layout import CODE_WIDTHS, STORED_WIDTHS, MixedLayout
from vlaq_ros.quant.mixed import MixedWeight


def stack(weights: Sequence[MixedWeight]) -> MixedWeight:
    """
    Return one weight [sum of out, in] whose channels are those of all weights in turn.

    Raises:
        SchemeError: Their inputs are not grouped alike.
    """
    first = weights[0].layout
    alike = {(w.layout.shape[1], w.layout.groups, _group(w.layout)) for w in weights}
    if len(alike) > 1:
        raise SchemeError(
            'weights are stacked only when their inputs are grouped alike:\n  '
            + '\n  '.join(f'in_features={w.layout.shape[1]}, {w.layout}' for w in weights)
        )
    offsets = [0]
    for weight in weights:
        offsets.append(offsets[-1] + weight.layout.shape[0])
    orders = [weight.order + offset for weight, offset in zip(weights, offsets)]
    counts = tuple(sum(w.layout.counts[i] for w in weights) for i in range(len(STORED_WIDTHS)))
    by_width = [order.split(w.layout.counts) for order, w in zip(orders, weights)]
    scales = [weight.scale.split(weight.layout.counts[1:]) for weight in weights]
    parts = {f'codes{bits}': [getattr(w, f'codes{bits}') for w in weights] for bits in CODE_WIDTHS}
    return MixedWeight(
        MixedLayout((offsets[-1], first.shape[1]), first.group_size, counts),
        order=_by_width(by_width),
        values16=torch.cat([weight.values16 for weight in weights]),
        **{name: torch.cat(rows) for name, rows in parts.items()},
        scale=_by_width(scales),
    )


def channels(weight: MixedWeight, start: int, stop: int) -> MixedWeight:
    """Return the output channels from `start` to `stop` - 1 as a weight of their own."""
    keep = (weight.order >= start) & (weight.order < stop)
    kept = keep.split(weight.layout.counts)
    counts = tuple(int(rows.sum()) for rows in kept)
    layout = MixedLayout((stop - start, weight.layout.shape[1]), weight.layout.group_size, counts)
    return MixedWeight(
        layout,
        order=weight.order[keep] - start,
        values16=weight.values16[kept[0]],
        **{
            f'codes{bits}': getattr(weight, f'codes{bits}')[rows]
            for bits, rows in zip(CODE_WIDTHS, kept[1:])
        },
        scale=weight.scale[keep[weight.layout.counts[0] :]],
    )


def _by_width(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return all first parts, then all second ones ...: rows sorted by width again."""
    return torch.cat([part for same_width in zip(*parts) for part in same_width])


def _group(layout: MixedLayout) -> int:
    return min(layout.group_size, layout.shape[1])
