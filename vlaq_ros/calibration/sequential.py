"""
Round layer by layer, in the order they run, each against the inputs it will really get.

A layer behind quantized ones sees other inputs x_q than it was trained on. Here it is rounded for
those, and asked to give what the full-precision layer gives for x: the least-squares answer is

    W' = W + W (C - H) (H + damping)^-1,     C = E[x x_q^T], H = E[x_q x_q^T]

(the asymmetric target of GPTAQ, Li et al. 2025, arXiv 2504.02692), which is then rounded with
compensation. Layers that read the same tensor are rounded together. Every stage takes one
full-precision and one quantized run over the calibration batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.gptq import DAMPING, SEARCH, compensate
from vlaq_ros.calibration.method import Batch, CalibrationContext, MethodResult
from vlaq_ros.quant.mixed import MixedWeight


@dataclass(frozen=True)
class SequenceOptions:
    """
    How layers are rounded in sequence.

    Attributes:
        clip: Rule of the scales.
        damping: Share of the mean diagonal added to H, in both places.
        repair: How much of the difference C - H is made up for, 0 to 1.
    """

    clip: str = 'mse'
    damping: float = DAMPING
    repair: float = 1.0


class _LastCallError(Exception):
    """Ends a forward pass whose rest is of no interest."""


@dataclass(frozen=True)
class Stage:
    """
    Layers that read the same tensor.

    Attributes:
        names: The layers.
        calls: How often each runs in one forward pass.
    """

    names: tuple[str, ...]
    calls: int


def stages(context: CalibrationContext) -> list[Stage]:
    """Return all layers that run, in the order they first do."""
    groups: list[list[str]] = []
    calls = dict.fromkeys(context.layers, 0)
    tensors: list[Tensor] = []  # kept, so that no other tensor can take the place of one

    def watch(name: str) -> Callable:
        def take(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            if calls[name] > 1:
                return
            if not (tensors and tensors[-1] is args[0]):
                tensors.append(args[0])
                groups.append([])
            groups[-1].append(name)

        return take

    handles = [context.linear(n).register_forward_pre_hook(watch(n)) for n in context.layers]
    try:
        with torch.no_grad():
            context.forward(context.batches[0])
    finally:
        for handle in handles:
            handle.remove()
    return [Stage(tuple(names), calls[names[0]]) for names in groups]


def round_in_sequence(
    context: CalibrationContext,
    widths: Mapping[str, Sequence[int]],
    options: SequenceOptions | None = None,
) -> MethodResult:
    """
    Round every layer to given widths.

    Args:
        context: The policy.
        widths: Layer -> bits of every output channel.
        options: How.

    Returns:
        A result whose `targets` are the repaired float weights.
    """
    options = options or SequenceOptions()
    weights: dict[str, MixedWeight] = {}
    targets: dict[str, Tensor] = {}
    for stage in stages(context):
        partial = MethodResult(
            'sequence', weights, dict.fromkeys(weights, context.activation_bits)
        )
        hessian, cross = _moments(context, partial, stage)
        damping = options.damping * hessian.diagonal().mean().clamp(min=1e-12)
        damped = hessian + damping * torch.eye(len(hessian), dtype=torch.float64)
        repair = options.repair * torch.linalg.solve(damped, cross - hessian, left=False)
        for name in stage.names:
            weight = context.weight(name).double()
            targets[name] = (weight + weight @ repair).float()
            weights[name] = compensate(
                targets[name],
                hessian,
                widths[name],
                context.group_of(name),
                options.clip,
                options.damping,
                ratios=SEARCH,
            )
    bits = dict.fromkeys(weights, context.activation_bits)
    return MethodResult('sequence', weights, bits, targets=targets)


def _moments(
    context: CalibrationContext, partial: MethodResult, stage: Stage
) -> tuple[Tensor, Tensor]:
    """Return E[x_q x_q^T] and E[x x_q^T] of the input of a stage, float64."""
    inputs = context.linear(stage.names[0]).in_features
    hessian = torch.zeros(inputs, inputs, dtype=torch.float64)
    cross = torch.zeros(inputs, inputs, dtype=torch.float64)
    tokens = 0
    for batch in context.batches:
        exact = _inputs(context, stage, batch)
        with applied(context.model, partial):
            quantized = _inputs(context, stage, batch)
        hessian += (quantized.T @ quantized).double()
        cross += (exact.T @ quantized).double()
        tokens += len(exact)
    return hessian / tokens, cross / tokens


def _inputs(context: CalibrationContext, stage: Stage, batch: Batch) -> Tensor:
    """Return all inputs [tokens, in] of a stage for one batch; the pass ends with the last."""
    calls: list[Tensor] = []

    def take(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append(args[0].flatten(0, -2))
        if len(calls) == stage.calls:
            raise _LastCallError

    handle = context.linear(stage.names[0]).register_forward_pre_hook(take)
    try:
        with torch.no_grad():
            context.forward(batch)
    except _LastCallError:
        pass
    finally:
        handle.remove()
    return torch.cat(calls)
