"""
DA-PTQ: widths per layer by what they do to the path of the arm, and a repaired interface.

arXiv 2604.11572, in the order allocate, quantize, take statistics, correct (the paper is of two
minds about it):

1. every action dimension gets a drift weight, from the published virtual chain or from real pose
   integration (`drift_weights`);
2. every layer gets the score mean |dL/dW| of the drift-weighted error L of the 4-bit policy;
3. `paper`: the best-scored 30 % of the layers stay in bfloat16, the rest get 4 bits. `budget`:
   every layer gets 2, 4, 8 or 16 bits, a byte being spent where score times weight change is
   largest;
4. the interface is corrected (`interface_correction`).

RECONSTRUCTION: L is taken on the denoised chunk instead of on the predicted noise, which every
head has; the cost of a width in `budget` mode; activations are rounded per token, since a static
scale per input channel has no integer product. Mixing channels at the interface needs its weight
in bfloat16; with `dense=False` gains alone are folded into its scales.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlaq_ros.calibration.action_error import ActionMetric
from vlaq_ros.calibration.allocation import MENU, AllocationOptions, allocate
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.drift_weights import chain_weights, pose_weights
from vlaq_ros.calibration.interface_correction import AffineMap, Moments, fit_correction
from vlaq_ros.calibration.method import CalibrationContext, MethodResult, scale_rows
from vlaq_ros.calibration.rtn import uniform_widths
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight

PROTECTED_SHARE = 0.3
WEIGHTED_CHUNKS = 32
_WHOLE_LAYER = 2**31


@dataclass(frozen=True)
class DaPtqOptions:
    """
    Options of DA-PTQ.

    Attributes:
        mode: `budget` or `paper`; see the module.
        weights: `chain` as published, or `pose`.
        dense: Whether the interface correction may mix channels.
        correct: Whether the interface is corrected at all.

    Raises:
        SchemeError: A choice does not exist; all are listed.
    """

    mode: str = 'budget'
    weights: str = 'chain'
    dense: bool = False
    correct: bool = True

    def __post_init__(self) -> None:
        known = {'mode': ('budget', 'paper'), 'weights': ('chain', 'pose')}
        wrong = [
            f'{name}={getattr(self, name)!r} must be one of {values}'
            for name, values in known.items()
            if getattr(self, name) not in values
        ]
        if wrong:
            raise SchemeError('\n'.join(wrong))


def drift_metric(context: CalibrationContext, weights: str) -> ActionMetric:
    """Return the metric that weighs every dimension by how far its error moves the arm."""
    with torch.no_grad():
        actions = context.forward(context.batches[0])
    chunks = next(iter(actions.values()))[:WEIGHTED_CHUNKS].double()
    if weights == 'chain':
        found = chain_weights((chunks / context.action_scale).flatten(0, 1).numpy())
    else:
        found = pose_weights(chunks.numpy(), context.spec, context.action_scale.numpy())
    return ActionMetric(context.spec, context.action_scale, torch.from_numpy(found).float())


def layer_scores(
    context: CalibrationContext, metric: ActionMetric, quantized: MethodResult
) -> dict[str, float]:
    """Return mean |dL/dW| of every layer of the quantized policy, averaged over batches."""
    scores = dict.fromkeys(context.layers, 0.0)
    for batch in context.batches:
        with torch.no_grad():
            reference = context.forward(batch)
        with applied(context.model, quantized) as model:
            weights = {name: model.get_submodule(name).weight for name in context.layers}
            for weight in weights.values():
                weight.requires_grad_()
            loss = metric.error(context.forward(batch), reference).mean()
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients):
            if gradient is not None:
                scores[name] += float(gradient.abs().mean()) / len(context.batches)
    return scores


def calibrate(context: CalibrationContext, options: DaPtqOptions | None = None) -> MethodResult:
    """
    Allocate widths per layer by drift, round to nearest, and repair the interface.

    Raises:
        SchemeError: The budget is below what 2 bits need (`budget` mode only).
    """
    options = options or DaPtqOptions()
    metric = drift_metric(context, options.weights)
    four_bits = _quantize(context, dict.fromkeys(context.layers, 4))
    scores = layer_scores(context, metric, four_bits)
    allot = _protect_the_best if options.mode == 'paper' else _spend_the_budget
    bits = allot(context, scores)
    interface = context.structure.interface
    if options.correct and options.dense and interface in bits:
        bits[interface] = 16
    result = _quantize(context, bits)
    record = {
        'mode': options.mode,
        'drift_weights': metric.weight.tolist(),
        'scores': scores,
        'bits': bits,
    }
    weights, parameters, targets = dict(result.weights), {}, {}
    if options.correct and interface in weights:
        correction = _fit_interface(context, result, interface, options.dense)
        weights[interface], bias = _fold(context, interface, weights[interface], correction)
        targets[interface] = correction.fold(context.weight(interface), None)[0].float()
        parameters[f'{interface}.bias'] = bias
        record['correction'] = correction.kind
    return MethodResult('da_ptq', weights, result.activation_bits, parameters, record, targets)


def _quantize(context: CalibrationContext, bits: dict[str, int]) -> MethodResult:
    weights = {
        name: MixedWeight.from_float(
            context.weight(name),
            uniform_widths(context, name, bits[name]),
            context.group_of(name),
            'mse',
        )
        for name in context.layers
    }
    return MethodResult('da_ptq', weights, dict.fromkeys(weights, context.activation_bits))


def _protect_the_best(context: CalibrationContext, scores: dict[str, float]) -> dict[str, int]:
    ranked = sorted(scores, key=scores.get, reverse=True)
    protected = set(ranked[: round(PROTECTED_SHARE * len(ranked))])
    return {name: 16 if name in protected else 4 for name in scores}


def _spend_the_budget(context: CalibrationContext, scores: dict[str, float]) -> dict[str, int]:
    costs = {}
    for name, score in scores.items():
        weight = context.weight(name)
        changes = []
        for width in MENU:
            widths = uniform_widths(context, name, width)
            rounded = MixedWeight.from_float(weight, widths, context.group_of(name), 'mse')
            changes.append((rounded.dequantize() - weight).abs().sum(1).numpy())
        costs[name] = score * np.stack(changes, axis=1).astype(float)
    inputs = {name: context.linear(name).in_features for name in context.layers}
    options = AllocationOptions(tile=_WHOLE_LAYER, prune_share=0.0)
    widths = allocate(costs, inputs, context.budget_bits, context.group_size, options)
    return {name: int(each[0]) for name, each in widths.items()}


def _fit_interface(
    context: CalibrationContext, result: MethodResult, interface: str, dense: bool
) -> AffineMap:
    """Compare the outputs of the interface before and after quantization."""
    reference = Moments.of(_outputs(context, interface))
    with applied(context.model, result):
        quantized = Moments.of(_outputs(context, interface))
    return fit_correction(reference, quantized, dense)


def _outputs(context: CalibrationContext, name: str) -> Tensor:
    found: list[Tensor] = []
    layer = context.model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, __, y: found.append(y.flatten(0, -2)))
    try:
        with torch.no_grad():
            for batch in context.batches:
                context.forward(batch)
    finally:
        handle.remove()
    return torch.cat(found)


def _fold(
    context: CalibrationContext, name: str, weight: MixedWeight, correction: AffineMap
) -> tuple[MixedWeight, Tensor]:
    """Return weight and bias of the corrected interface; gains go into its scales."""
    bias = context.linear(name).bias
    turned, shift = correction.fold(weight.dequantize(), None if bias is None else bias.detach())
    if correction.kind == 'dense':
        widths = weight.widths().tolist()
        return MixedWeight.from_float(
            turned.float(), widths, context.group_of(name)
        ), shift.float()
    gains = correction.matrix.diagonal()
    return scale_rows(weight, gains.float()), shift.float()
