"""
Memory of a model, counted from the tensors it holds.

Storage is counted, not tensors: two names for one tensor count once, and a view counts with all of
the storage it keeps alive.
"""

import math
from collections import Counter
from typing import NamedTuple

from torch import nn

from vlaq_ros.nn.mixed_linear import MixedLinear


class ModelMemory(NamedTuple):
    """
    Storage of a model.

    Attributes:
        weight_bytes: All parameters and buffers.
        quantized_bytes: The packed weights alone: codes, scales and order, as they lie in memory.
        quantized_weights: Number of weights they stand for, pruned ones included.
        quantized_layers: Number of packed layers; layers that share one store count once.
        kernel: Kernels that multiply them, with the reasons; empty when none.
        activation_bits: Mean width of the inputs of the packed layers at present, by their
            weights; 0 when nothing is packed.
    """

    weight_bytes: int
    quantized_bytes: int
    quantized_weights: int
    quantized_layers: int
    kernel: str
    activation_bits: float

    @property
    def mean_bits_per_weight(self) -> float:
        """Bits per quantized weight, scales included; NaN when nothing is quantized."""
        if not self.quantized_weights:
            return math.nan
        return 8.0 * self.quantized_bytes / self.quantized_weights


def model_memory(model: nn.Module) -> ModelMemory:
    """Return the memory held by the parameters and buffers of `model`."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    layers = packed_layers(model)
    weights = [layer.in_features * layer.out_features for layer in layers]
    bits = sum(n * m.shared_precision.activation_bits for n, m in zip(weights, layers))
    return ModelMemory(
        weight_bytes=sum({s.data_ptr(): s.nbytes() for s in storages}.values()),
        quantized_bytes=sum(layer.weight_bytes for layer in layers),
        quantized_weights=sum(weights),
        quantized_layers=len(layers),
        kernel='; '.join(sorted({layer.kernel.reason for layer in layers})),
        activation_bits=bits / sum(weights) if weights else 0.0,
    )


def precisions_in_use(model: nn.Module) -> dict[tuple[int, int], int]:
    """Return (cap, activation bits) -> number of packed layers that compute at them now."""
    precisions = [layer.shared_precision for layer in packed_layers(model)]
    return dict(Counter((each.cap, each.activation_bits) for each in precisions))


def packed_layers(model: nn.Module) -> list[MixedLinear]:
    """Return everything that holds a packed weight, once."""
    layers = (module for module in model.modules() if isinstance(module, MixedLinear))
    return [layer for layer in layers if layer.holds_weight]
