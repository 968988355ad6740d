"""
Attention temperature matching and output head balancing of QuantVLA (arXiv 2602.20309).

Quantization upstream changes the spread of the attention logits, which acts like another softmax
temperature, and the energy of the attention output. One scalar per head, alpha = std of the
full-precision logits over std of the quantized ones, multiplies the quantized logits; one scalar
per layer, beta = the same ratio of RMS outputs, multiplies the output. The paper writes a division
by alpha in one place, but its ratio is defined so that multiplying matches.

Both are folded: alpha into the scales (or the float weight) and bias of the query projection,
beta into those of the output projection. Rotary embeddings commute with alpha.

Spreads are taken over the keys a query may read, per query, averaged over all queries, steps and
observations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.method import CalibrationContext, MethodResult, scale_rows
from vlaq_ros.calibration.structure import Attention
from vlaq_ros.errors import SchemeError

_TINY = 1e-6


@dataclass(frozen=True)
class RatioRange:
    """
    Which corrections are believed.

    Attributes:
        low, high: Bounds of the ratio.
        neutral: Ratios whose distance from 1 is below this become 1.
        logarithmic: Whether that distance is |log ratio|, else |ratio - 1|.
    """

    low: float
    high: float
    neutral: float
    logarithmic: bool

    def apply(self, ratio: Tensor) -> Tensor:
        """Return the ratios, bounded, and 1 within the neutral band."""
        bounded = ratio.clamp(self.low, self.high)
        distance = bounded.log().abs() if self.logarithmic else (bounded - 1.0).abs()
        return torch.where(distance < self.neutral, torch.ones_like(bounded), bounded)


RANGES = {
    'log': RatioRange(math.exp(-0.30), math.exp(0.30), 0.03, True),
    'log_wide': RatioRange(math.exp(-0.40), math.exp(0.40), 0.03, True),
    'linear': RatioRange(0.7, 1.4, 0.02, False),
}
"""The range of the appendix, of the main text, and of the released code."""


class _LogitSpread(TorchFunctionMode):
    """Watches attention calls; `last` is the spread [heads] of the most recent one."""

    last: Tensor | None = None

    def __torch_function__(
        self, func: Callable, types: Sequence, args: tuple = (), kwargs: Mapping | None = None
    ) -> Tensor:
        kwargs = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            self.last = _spread(*args, **kwargs)
        return func(*args, **kwargs)


def _spread(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the mean over queries of the std of their readable logits, per head: [heads]."""
    logits = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    readable = torch.ones_like(logits, dtype=torch.bool)
    if is_causal:
        readable = readable.tril()
    if attn_mask is not None:
        allowed = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -1e4
        readable = readable & allowed
    count = readable.sum(-1).clamp(min=1)
    mean = (logits * readable).sum(-1) / count
    square = ((logits - mean.unsqueeze(-1)).square() * readable).sum(-1) / count
    return square.sqrt().mean((0, 2))


@dataclass(frozen=True, eq=False)
class AttentionMoments:
    """
    Of one attention layer.

    Attributes:
        spread: [heads] std of the logits.
        energy: RMS of the output projection.
    """

    spread: Tensor
    energy: float


def measure_attention(
    context: CalibrationContext, model: nn.Module, attentions: Sequence[Attention]
) -> dict[str, AttentionMoments]:
    """
    Return output projection -> moments, over all calibration batches and calls.

    Raises:
        SchemeError: Layers that never called `scaled_dot_product_attention`, all of them.
    """
    spreads: dict[str, list[Tensor]] = {a.output: [] for a in attentions}
    squares: dict[str, list[Tensor]] = {a.output: [] for a in attentions}
    mode = _LogitSpread()
    handles = []

    def watch(name: str) -> Callable:
        def take(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            if mode.last is not None:
                spreads[name].append(mode.last)
                squares[name].append(y.square().mean())
                mode.last = None

        return take

    for attention in attentions:
        layer = model.get_submodule(attention.output)
        handles.append(layer.register_forward_hook(watch(attention.output)))
    try:
        with torch.no_grad(), mode:
            for batch in context.batches:
                context.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name, calls in spreads.items() if not calls]
    if silent:
        raise SchemeError(
            'no call of scaled_dot_product_attention came before these layers:\n  '
            + '\n  '.join(silent)
        )
    return {
        name: AttentionMoments(
            torch.stack(calls).mean(0), float(torch.stack(squares[name]).mean().sqrt())
        )
        for name, calls in spreads.items()
    }


def balance_attention(
    context: CalibrationContext,
    result: MethodResult,
    attentions: Sequence[Attention],
    limits: RatioRange,
) -> tuple[MethodResult, dict[str, dict[str, list[float] | float]]]:
    """
    Fit alpha per head, then beta per layer with alpha in place, and fold both into a result.

    Returns:
        The new result, and output projection -> {'alpha': [...], 'beta': ...}.
    """
    teacher = measure_attention(context, context.model, attentions)
    with applied(context.model, result) as model:
        student = measure_attention(context, model, attentions)
    record = {}
    for a in attentions:
        raw = teacher[a.output].spread / (student[a.output].spread + _TINY)
        alpha = limits.apply(raw)
        channels = context.linear(a.query).out_features
        result = scale_outputs(
            context, result, a.query, alpha.repeat_interleave(channels // a.heads)
        )
        record[a.output] = {'alpha': alpha.tolist()}
    with applied(context.model, result) as model:
        student = measure_attention(context, model, attentions)
    for a in attentions:
        raw = torch.tensor(teacher[a.output].energy / (student[a.output].energy + _TINY))
        beta = limits.apply(raw)
        result = scale_outputs(
            context, result, a.output, beta.expand(context.linear(a.output).out_features)
        )
        record[a.output]['beta'] = float(beta)
    return result, record


def scale_outputs(
    context: CalibrationContext, result: MethodResult, name: str, gains: Tensor
) -> MethodResult:
    """Return the result with every output of one layer, bias included, times a gain [out]."""
    if (gains == 1.0).all():
        return result
    weights, parameters = dict(result.weights), dict(result.parameters)
    targets = dict(result.targets)
    linear = context.linear(name)
    if name in weights:
        weights[name] = scale_rows(weights[name], gains)
        target = targets.get(name, linear.weight.detach())
        targets[name] = target * gains.unsqueeze(1)
    else:
        key = f'{name}.weight'
        parameters[key] = parameters.get(key, linear.weight.detach()) * gains.unsqueeze(1)
    bias = parameters.get(f'{name}.bias', linear.bias)
    if bias is not None:
        parameters[f'{name}.bias'] = bias.detach() * gains
    return replace(result, weights=weights, parameters=parameters, targets=targets)
