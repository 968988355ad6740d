"""
The seam of every calibration method: what it is given, and what it hands back.

A method is a function `calibrate(context) -> MethodResult`. It sees the full-precision model, the
calibration batches through the policy's own forward pass, and a budget; it returns weights that
the packed format holds exactly, plus the few float parameters it folded something into. It never
changes the model it was given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlaq_ros.calibration.structure import ModelStructure
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.quant.scheme import check_activation_bits
from vlaq_ros.types import ActionSpec

Batch = Any
"""Calibration inputs of several observations; only the forward pass of the policy reads them."""


@dataclass(frozen=True, eq=False)
class CalibrationContext:
    """
    A policy to calibrate, and what for.

    Attributes:
        model: Full precision, in evaluation mode; parameters need no gradients.
        layers: Linear layer to quantize -> its role.
        forward: Batch -> head -> actions [batch, horizon, action_dim] in the units of `spec`,
            differentiable: flow heads with fixed noise, token heads as the expectation over bins.
        decode: As `forward`, but what the robot would execute: bins chosen, bounds applied.
        batches: Calibration inputs.
        held_out: Inputs of other episodes; for verification only.
        spec: Meaning and units of the actions.
        action_scale: [action_dim] by which action errors are divided before they are added up.
        structure: What the linear layers read and write, for folding.
        budget_bits: Bits per weight of `layers`, scales included.
        group_size: Neighbouring inputs that share a scale; None gives one scale per channel.
        activation_bits: 16, or the width to which the input of `layers` is rounded per token.
        seed: Of every random choice.

    Raises:
        SchemeError: Layers that the model does not have as plain linear layers, all of them; a
            context without batches; activation bits that no kernel rounds to per token.
    """

    model: nn.Module
    layers: Mapping[str, str]
    forward: Callable[[Batch], dict[str, Tensor]]
    decode: Callable[[Batch], dict[str, Tensor]]
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    spec: ActionSpec
    action_scale: Tensor
    structure: ModelStructure
    budget_bits: float = 4.0
    group_size: int | None = None
    activation_bits: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        modules = dict(self.model.named_modules())
        missing = [name for name in self.layers if type(modules.get(name)) is not nn.Linear]
        if missing or not self.layers:
            raise SchemeError(
                'calibration needs plain linear layers; these are not:\n  ' + '\n  '.join(missing)
            )
        if not self.batches:
            raise SchemeError('calibration needs at least one batch of observations')
        check_activation_bits(self.activation_bits)

    def linear(self, name: str) -> nn.Linear:
        """Return a linear layer of the model."""
        return self.model.get_submodule(name)

    def weight(self, name: str) -> Tensor:
        """Return the weight of a layer [out, in], float32, outside autograd."""
        return self.linear(name).weight.detach().float()

    def group_of(self, name: str) -> int:
        """Return the number of inputs of a layer that share a scale."""
        return self.group_size or self.linear(name).in_features

    @property
    def weight_count(self) -> int:
        """Number of weights the budget speaks of."""
        return sum(self.linear(name).weight.numel() for name in self.layers)

    @property
    def budget_bytes(self) -> float:
        """The budget for codes and scales of all layers."""
        return self.budget_bits * self.weight_count / 8


@dataclass(frozen=True, eq=False)
class MethodResult:
    """
    What a method decided.

    Attributes:
        method: Its name.
        weights: Layer -> packed weight. A layer that is missing stays float.
        activation_bits: Width of the input of each of these layers, per token.
        parameters: Other parameters with a new value, by their name in the model: norm gains,
            biases, and float weights something was folded into.
        provenance: Plain values: options, scores, passes; for the record on disk.
        targets: Layer -> the float weight [out, in] its packed one stands for, where folding made
            that another one than the model's.
    """

    method: str
    weights: Mapping[str, MixedWeight]
    activation_bits: Mapping[str, int]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales of all quantized layers, without the order of their rows."""
        return sum(weight.nbytes - weight.order.nbytes for weight in self.weights.values())

    @property
    def mean_bits_per_weight(self) -> float:
        """Bits per weight of the quantized layers, scales included, weighted by layer size."""
        count = sum(math.prod(weight.layout.shape) for weight in self.weights.values())
        return 8.0 * self.nbytes / count

    @property
    def mean_bits_per_channel(self) -> float:
        """Mean width over output channels, without scales: the budget as QVLA counts it."""
        widths = torch.cat([weight.widths() for weight in self.weights.values()])
        return float(widths.float().mean())

    def histogram(self) -> dict[int, float]:
        """Return width -> share of all output channels."""
        widths = torch.cat([weight.widths() for weight in self.weights.values()])
        return {int(w): float((widths == w).float().mean()) for w in widths.unique()}


def scale_rows(weight: MixedWeight, gains: Tensor) -> MixedWeight:
    """Return a weight with every output channel times a positive gain [out], codes unchanged."""
    stored = gains[weight.order.long()].unsqueeze(1)
    wide = weight.layout.counts[0]
    tensors = {
        **weight.tensors(),
        'values16': (weight.values16.float() * stored[:wide]).bfloat16(),
        'scale': (weight.scale.float() * stored[wide:]).half(),
    }
    return MixedWeight.from_tensors(weight.layout, tensors)
