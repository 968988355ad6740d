"""
How much the actions change when one output channel is rounded: by gradients, and exactly.

QVLA (arXiv 2602.03782) ranks channels by s = G * N: G estimates the squared Jacobian of the
actions, summed over tokens, and N = d^T E[x x^T] d is the output noise of a weight change d. That
product of means forgets which token is how sensitive, and that the errors of the tokens of one
observation add up with their signs. The estimate used here keeps both,

    s = E_v E_observation ( sum over calls and tokens of g_c * (d_c x) )^2,   g = d(v^T A) / dy

with random signs v (Hutchinson), which is the squared first-order change of the actions itself and
takes the same passes. The published product is kept next to it (`product`).

A layer without gradients from below, such as the first one, starts the graph by itself, so that
no sensitivity is silently zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlaq_ros.calibration.action_error import ActionMetric
from vlaq_ros.calibration.allocation import MENU
from vlaq_ros.calibration.checkpoint import Part, recall
from vlaq_ros.calibration.method import CalibrationContext
from vlaq_ros.calibration.statistics import LayerStatistics
from vlaq_ros.quant.mixed import MixedWeight

PROBES = 4

Rounding = Callable[[str, int], Tensor]
"""(layer, bits) -> its weight [out, in] with every channel rounded to that width."""


class Passes(NamedTuple):
    """Cost of an estimate in passes over one batch."""

    forward: int
    backward: int


@dataclass(frozen=True, eq=False)
class LayerSensitivity:
    """
    Action error of every output channel of a layer at every width of `MENU`.

    Attributes:
        cost: [out, 5] expected squared action error, by the joint estimate.
        product: [out, 5] the same as a product of means, as published.
        token_hessian: float64 [in, in], sum of w x x^T per observation, where the weight w of a
            token is the mean of g^2 over channels: what an output error costs there.
    """

    cost: NDArray[np.float64]
    product: NDArray[np.float64]
    token_hessian: Tensor


def nearest_rounding(context: CalibrationContext, clip: str = 'mse') -> Rounding:
    """Return the rounding to nearest."""

    def rounded(name: str, bits: int) -> Tensor:
        weight = context.weight(name)
        widths = (bits,) * len(weight)
        return MixedWeight.from_float(weight, widths, context.group_of(name), clip).dequantize()

    return rounded


class _Probe:
    """Collects one layer: its changes at all widths, and what backward passes say of them."""

    def __init__(self, changes: Tensor, mean: Tensor) -> None:
        widths, channels, inputs = changes.shape
        self.changes = changes  # [widths, out, in]
        # A pruned channel keeps its mean output in the bias: only the deviation is lost.
        self._constant = torch.zeros(widths, channels)
        self._constant[-1] = -changes[-1] @ mean
        self._first_order: Tensor | float = 0.0  # [batch, out, widths], summed over calls
        self.cost = torch.zeros(channels, widths, dtype=torch.float64)
        self.gradient = torch.zeros(channels, dtype=torch.float64)
        self.token_hessian = torch.zeros(inputs, inputs, dtype=torch.float64)

    def forward_hook(self, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Ask for the gradient of the output, starting the graph here if none leads up to it."""
        x = args[0].detach()
        if not y.requires_grad:
            y = y.detach().requires_grad_()
        y.register_hook(lambda gradient: self._take(x, gradient))
        return y

    def _take(self, x: Tensor, gradient: Tensor) -> None:
        batch = len(x)
        x, gradient = (t.reshape(batch, -1, t.shape[-1]).float() for t in (x, gradient))
        by_weight, by_output = gradient.transpose(1, 2) @ x, gradient.sum(1)  # of observations
        first_order = torch.stack(
            [
                (by_weight * change).sum(-1) + by_output * constant
                for change, constant in zip(self.changes, self._constant)
            ],
            dim=-1,
        )
        self._first_order = self._first_order + first_order
        square = gradient.square()
        self.gradient += square.sum((0, 1)).double()
        weighted = (square.mean(-1, keepdim=True) * x).flatten(0, 1)
        self.token_hessian += (weighted.T @ x.flatten(0, 1)).double()

    def end_pass(self) -> None:
        """Square the change of each observation, summed over tokens and calls of the layer."""
        if isinstance(self._first_order, Tensor):
            self.cost += self._first_order.square().sum(0).double()
        self._first_order = 0.0


def measure_sensitivity(
    context: CalibrationContext,
    statistics: dict[str, LayerStatistics],
    metric: ActionMetric,
    rounding: Rounding | None = None,
    probes: int = PROBES,
    layers: Iterable[str] | None = None,
) -> tuple[dict[str, LayerSensitivity], Passes]:
    """
    Estimate the action error of every channel of every layer at every width.

    Takes one forward and `probes` backward passes per batch, whatever the number of channels. Five
    rounded copies of every layer are held meanwhile; where they do not fit into memory, take some
    `layers` at a time.

    Args:
        context: The policy.
        statistics: Of all layers, from `collect_statistics`.
        metric: What an action error costs.
        rounding: How channels would be rounded; to nearest, clipped, when None.
        probes: Random sign vectors per observation.
        layers: Which layers; all when None.
    """
    rounding = rounding or nearest_rounding(context)
    collectors = {}
    for name in context.layers if layers is None else layers:
        weight = context.weight(name)
        changes = [rounding(name, bits) - weight for bits in MENU]
        mean = statistics[name].input_mean.float()
        collectors[name] = _Probe(torch.stack(changes), mean)

    def make() -> Part:
        observations = _run_probes(context, metric, collectors, probes)
        tensors = {}
        for name, collector in collectors.items():
            noise = _output_noise(collector, statistics[name])
            count = observations * probes
            tensors[f'{name}.cost'] = collector.cost / count
            tensors[f'{name}.product'] = collector.gradient[:, None] / count * noise
            tensors[f'{name}.token_hessian'] = collector.token_hessian / count
        return tensors, {}

    def depends() -> dict[str, Any]:
        moments = {n: (s.second_moment, s.input_mean) for n, s in statistics.items()}
        return {
            'changes': {name: collector.changes for name, collector in collectors.items()},
            'moments': moments,
            'metric': (metric.scale, metric.weight, metric.accumulated, metric.heads),
            'probes': (probes, context.seed),
            'batches': context.batches,
        }

    tensors, _ = recall('sensitivity', context.model, depends, make)
    result = {
        name: LayerSensitivity(
            tensors[f'{name}.cost'].numpy(),
            tensors[f'{name}.product'].numpy(),
            tensors[f'{name}.token_hessian'],
        )
        for name in collectors
    }
    return result, Passes(len(context.batches), len(context.batches) * probes)


def _run_probes(
    context: CalibrationContext,
    metric: ActionMetric,
    collectors: Mapping[str, _Probe],
    probes: int,
) -> int:
    """Fill the collectors; return the number of observations."""
    generator = torch.Generator().manual_seed(context.seed)
    handles = [
        context.linear(name).register_forward_hook(probe.forward_hook)
        for name, probe in collectors.items()
    ]
    observations = 0
    try:
        for batch in context.batches:
            projected = metric.project(context.forward(batch))
            observations += len(projected)
            for probe in range(probes):
                signs = torch.randint(0, 2, projected.shape, generator=generator) * 2.0 - 1.0
                projected.backward(signs, retain_graph=probe + 1 < probes)
                for collector in collectors.values():
                    collector.end_pass()
    finally:
        for handle in handles:
            handle.remove()
    return observations


def _output_noise(collector: _Probe, moments: LayerStatistics) -> Tensor:
    """Return E[(d x)^2] per token, float64 [out, widths]; around the mean where pruned."""
    changes = collector.changes.double()
    noise = ((changes @ moments.second_moment) * changes).sum(-1)
    noise[-1] -= (changes[-1] @ moments.input_mean).square()
    return noise.T.clamp(min=0.0)


class ChannelChange(NamedTuple):
    """Some output channels of a layer, all rounded to one width."""

    layer: str
    channels: tuple[int, ...]
    bits: int


def measure_exactly(
    context: CalibrationContext,
    metric: ActionMetric,
    changes: Sequence[ChannelChange],
    statistics: dict[str, LayerStatistics],
    rounding: Rounding | None = None,
    batches: int | None = None,
) -> tuple[NDArray[np.float64], Passes]:
    """
    Return the action error of each change by itself, by running the policy with it.

    Args:
        context: The policy.
        metric: What an action error costs.
        changes: One forward pass over the batches each.
        statistics: As in `measure_sensitivity`.
        rounding: As there.
        batches: How many of the batches to use; all when None.
    """
    rounding = rounding or nearest_rounding(context)
    used = context.batches[:batches]
    errors = np.zeros(len(changes))
    with torch.no_grad():
        reference = [metric.project(context.forward(batch)) for batch in used]
        for i, change in enumerate(changes):
            with _changed(context, change, statistics, rounding):
                found = [metric.project(context.forward(batch)) for batch in used]
            squares = [(f - r).square().sum(1) for f, r in zip(found, reference)]
            errors[i] = float(torch.cat(squares).double().mean())
    return errors, Passes((len(changes) + 1) * len(used), 0)


@contextmanager
def _changed(
    context: CalibrationContext,
    change: ChannelChange,
    statistics: dict[str, LayerStatistics],
    rounding: Rounding,
) -> Iterator[None]:
    """Round some channels of one layer inside the block; a pruned one keeps its mean output."""
    linear, rows = context.linear(change.layer), list(change.channels)
    weight, bias = linear.weight, linear.bias
    changed = weight.detach().clone()
    changed[rows] = rounding(change.layer, change.bits)[rows].to(weight.dtype)
    shift = torch.zeros(len(weight), dtype=weight.dtype)
    if change.bits == 0:
        mean = statistics[change.layer].input_mean.to(weight.dtype)
        shift[rows] = weight.detach()[rows] @ mean
    try:
        linear.weight = nn.Parameter(changed, requires_grad=False)
        linear.bias = nn.Parameter(shift if bias is None else bias + shift, requires_grad=False)
        yield
    finally:
        linear.weight, linear.bias = weight, bias


def rank_correlation(first: NDArray, second: NDArray) -> float:
    """Return Spearman's correlation of two equally long lists; equal values share their rank."""
    ranks = []
    for values in (np.asarray(first), np.asarray(second)):
        _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = counts.cumsum()
        ranks.append((last - (counts - 1) / 2)[where])
    return float(np.corrcoef(*ranks)[0, 1])
