"""
Memory of a model, counted from the tensors it holds.

Storage is counted, not tensors: two names for one tensor count once, and a view counts with all of
the storage it keeps alive.
"""

from typing import NamedTuple

from torch import nn

from vlaq_ros.nn.quantized_linear import QuantizedLinear


class ModelMemory(NamedTuple):
    """
    Storage of a model.

    Attributes:
        weight_bytes: All parameters and buffers.
        quantized_bytes: The packed layers alone: codes, scales and zero points.
        quantized_weights: Number of weights held in packed layers.
        quantized_layers: Number of packed layers.
        kernel: Kernels that multiply them, with the reasons; empty when none.
    """

    weight_bytes: int
    quantized_bytes: int
    quantized_weights: int
    quantized_layers: int
    kernel: str


def model_memory(model: nn.Module) -> ModelMemory:
    """Return the memory held by the parameters and buffers of `model`."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    return ModelMemory(
        weight_bytes=sum({s.data_ptr(): s.nbytes() for s in storages}.values()),
        quantized_bytes=sum(layer.weight.nbytes for layer in layers),
        quantized_weights=sum(layer.in_features * layer.out_features for layer in layers),
        quantized_layers=len(layers),
        kernel='; '.join(sorted({layer.kernel.reason for layer in layers})),
    )
