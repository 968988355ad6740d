"""
What every layer sees and says on the calibration batches, in one streaming pass.

A layer that runs several times per observation, as those of a flow head do at every denoise step,
is observed every time; nothing is kept but sums.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from vlaq_ros.calibration.checkpoint import Part, recall
from vlaq_ros.calibration.method import CalibrationContext


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """
    Moments of one linear layer over all tokens.

    Attributes:
        tokens: Number of input rows.
        second_moment: E[x x^T], float64 [in, in].
        input_mean: E[x], float64 [in].
        input_absmax: max |x|, float32 [in].
        input_mean_abs: E|x|, float64 [in].
        output_mean: E[y], float64 [out].
    """

    tokens: int
    second_moment: Tensor
    input_mean: Tensor
    input_absmax: Tensor
    input_mean_abs: Tensor
    output_mean: Tensor


_MOMENTS = [field.name for field in fields(LayerStatistics)[1:]]


class _Sums:
    """Running sums of one layer."""

    def __init__(self, layer: nn.Linear) -> None:
        inputs, outputs = layer.in_features, layer.out_features
        self.tokens = 0
        self.square = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.total = torch.zeros(inputs, dtype=torch.float64)
        self.total_abs = torch.zeros(inputs, dtype=torch.float64)
        self.absmax = torch.zeros(inputs)
        self.output = torch.zeros(outputs, dtype=torch.float64)

    def add(self, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Take one call of the layer; a forward hook."""
        x = args[0].detach().flatten(0, -2).float()
        self.tokens += len(x)
        self.square += (x.T @ x).double()
        self.total += x.sum(0).double()
        self.total_abs += x.abs().sum(0).double()
        self.absmax = torch.maximum(self.absmax, x.abs().amax(0))
        self.output += y.detach().flatten(0, -2).sum(0).double()

    def finish(self) -> LayerStatistics:
        """Return the means; zeros where the layer never ran."""
        count = max(self.tokens, 1)
        return LayerStatistics(
            self.tokens,
            self.square / count,
            self.total / count,
            self.absmax,
            self.total_abs / count,
            self.output / count,
        )


@contextmanager
def observed(context: CalibrationContext, layers: Iterable[str]) -> Iterator[dict[str, _Sums]]:
    """Sum up every call of `layers` that happens inside the block."""
    sums = {name: _Sums(context.linear(name)) for name in layers}
    handles = [context.linear(n).register_forward_hook(s.add) for n, s in sums.items()]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def collect_statistics(
    context: CalibrationContext, layers: Iterable[str] | None = None
) -> dict[str, LayerStatistics]:
    """
    Run all heads over all calibration batches once.

    Args:
        context: The policy.
        layers: Layers to observe; all layers to quantize when None.
    """
    names = list(context.layers if layers is None else layers)

    def make() -> Part:
        with observed(context, names) as sums, torch.no_grad():
            for batch in context.batches:
                context.forward(batch)
        found = {name: total.finish() for name, total in sums.items()}
        tensors = {f'{n}.{f}': getattr(s, f) for n, s in found.items() for f in _MOMENTS}
        return tensors, {name: statistics.tokens for name, statistics in found.items()}

    tensors, tokens = recall(
        'statistics', context.model, lambda: {'layers': names, 'batches': context.batches}, make
    )
    return {
        name: LayerStatistics(tokens[name], *(tensors[f'{name}.{field}'] for field in _MOMENTS))
        for name in names
    }
