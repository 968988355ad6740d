"""
SmoothQuant: move the outliers of the activations into the weights (Xiao et al., 2211.10438).

Every input channel is divided by f_j = max|X_j|^a / max|W_j|^(1-a) and every weight multiplied by
it. The division is folded into the norm or the layer that writes the activation; inputs that
nothing linear writes stay as they are and are listed in the provenance.
"""

import torch

from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.rtn import uniform_widths, widest_within_budget
from vlaq_ros.calibration.statistics import LayerStatistics, collect_statistics
from vlaq_ros.calibration.structure import Stream
from vlaq_ros.calibration.transforms import DiagonalScale, FoldedModel
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight

LARGEST_FACTOR = 1e3
_TINY = 1e-8


def smoothing_factor(
    context: CalibrationContext,
    folded: FoldedModel,
    stream: Stream,
    statistics: dict[str, LayerStatistics],
    strength: float,
) -> DiagonalScale:
    """
    Return the factors of one stream, over all its readers that are quantized.

    Channels that are always zero, and factors beyond 1000 either way, are bounded: such a channel
    would only lose precision in its writer.
    """
    readers = [name for name in stream.readers if name in context.layers]
    x = torch.stack([statistics[name].input_absmax for name in readers]).amax(0)
    w = torch.stack([folded.weight(name).abs().amax(0) for name in readers]).amax(0)
    factor = x.clamp(min=_TINY) ** strength / w.clamp(min=_TINY) ** (1.0 - strength)
    return DiagonalScale(factor.clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR))


def foldable(context: CalibrationContext) -> list[Stream]:
    """Return the streams that quantized layers read."""
    return [
        stream
        for stream in context.structure.streams
        if any(reader in context.layers for reader in stream.readers)
    ]


def calibrate(
    context: CalibrationContext, strength: float = 0.5, clip: str = 'absmax'
) -> MethodResult:
    """
    Smooth every input that can be folded, then round to the widest uniform width in the budget.

    Args:
        context: The policy; activations are rounded per token to its `activation_bits`.
        strength: How much of the outliers goes to the weights, 0 to 1.
        clip: Rule of the weight scales.

    Raises:
        SchemeError: The strength is out of range, or no width fits the budget.
    """
    if not 0.0 <= strength <= 1.0:
        raise SchemeError(f'strength={strength} must be between 0 and 1')
    bits = widest_within_budget(context)
    statistics = collect_statistics(context)
    folded = FoldedModel(context.model)
    streams = foldable(context)
    for stream in streams:
        folded.fold(stream, smoothing_factor(context, folded, stream, statistics, strength))
    weights = {
        name: MixedWeight.from_float(
            folded.weight(name), uniform_widths(context, name, bits), context.group_of(name), clip
        )
        for name in context.layers
    }
    smoothed = {reader for stream in streams for reader in stream.readers}
    return MethodResult(
        'smoothquant',
        weights,
        dict.fromkeys(context.layers, context.activation_bits),
        folded.parameters(context.layers),
        {
            'bits': bits,
            'strength': strength,
            'clip': clip,
            'not_smoothed': [name for name in context.layers if name not in smoothed],
        },
        folded.targets(context.layers),
    )
