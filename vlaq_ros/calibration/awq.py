"""
AWQ: protect the weights that meet large activations by scaling them up (Lin et al., 2306.00978).

Every input channel j is divided by s_j = mean|X_j|^a, its weights multiplied; a is the best of 20
points for the outputs of all readers of the activation together, judged by E[x x^T] alone. The
clip of the weight scales is then searched with the same errors. Scales are folded as those of
SmoothQuant are.
"""

import torch
from torch import Tensor

from vlaq_ros.calibration.gptq import output_error
from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.rtn import uniform_widths, widest_within_budget
from vlaq_ros.calibration.smoothquant import foldable
from vlaq_ros.calibration.statistics import LayerStatistics, collect_statistics
from vlaq_ros.calibration.structure import Stream
from vlaq_ros.calibration.transforms import DiagonalScale, FoldedModel
from vlaq_ros.quant.mixed import MixedWeight

GRID = 20
_TINY = 1e-4


def _scale(statistics: LayerStatistics, strength: float) -> Tensor:
    """Return mean|X|^a, normalized so that largest times smallest is 1."""
    scale = statistics.input_mean_abs.clamp(min=_TINY) ** strength
    return (scale / (scale.max() * scale.min()).sqrt()).float()


def _rounded(
    context: CalibrationContext, weight: Tensor, name: str, bits: int, moment: Tensor
) -> MixedWeight:
    """Round a weight with the clip that suits its inputs."""
    importance = moment.diagonal().float().clamp(min=0.0)
    widths = uniform_widths(context, name, bits)
    return MixedWeight.from_float(
        weight, widths, context.group_of(name), 'mse', importance=importance
    )


def search_scale(
    context: CalibrationContext,
    folded: FoldedModel,
    stream: Stream,
    statistics: dict[str, LayerStatistics],
    bits: int,
) -> tuple[DiagonalScale, float]:
    """Return the best scale of a stream, and the exponent that gave it; 0 is no scaling."""
    readers = [name for name in stream.readers if name in context.layers]
    best, least, exponent = None, torch.inf, 0.0
    for step in range(GRID):
        transform = DiagonalScale(_scale(statistics[readers[0]], step / GRID))
        error = 0.0
        for name in readers:
            weight = folded.weight(name)
            moment = statistics[name].second_moment
            scaled = transform.apply_online(transform.apply_online(moment).T)
            found = _rounded(context, transform.fold_reader(weight), name, bits, scaled)
            change = found.dequantize() - transform.fold_reader(weight)
            error += float(output_error(change, scaled).sum())
        if error < least:
            best, least, exponent = transform, error, step / GRID
    return best, exponent


def calibrate(context: CalibrationContext) -> MethodResult:
    """
    Scale every input that can be folded, then round to the widest uniform width in the budget.

    Raises:
        SchemeError: No width fits the budget.
    """
    bits = widest_within_budget(context)
    statistics = collect_statistics(context)
    folded = FoldedModel(context.model)
    exponents = {}
    for stream in foldable(context):
        transform, exponent = search_scale(context, folded, stream, statistics, bits)
        folded.fold(stream, transform)
        exponents['+'.join(stream.readers)] = exponent
    weights = {}
    for name in context.layers:
        moment = folded.second_moment(name, statistics[name].second_moment)
        weights[name] = _rounded(context, folded.weight(name), name, bits, moment)
    return MethodResult(
        'awq',
        weights,
        dict.fromkeys(context.layers, context.activation_bits),
        folded.parameters(context.layers),
        {'bits': bits, 'exponents': exponents},
        folded.targets(context.layers),
    )
