"""
Tune a quantized policy as a whole, so that its actions become those of full precision again.

The packed format stays exactly as it is: what moves are the scales, the biases, the norm gains,
and by how much a weight leans to the next code. Loss is the action error itself, through all
layers, heads and denoise steps, plus the error of the interface between backbone and action head,
which every token of every observation supervises. Nothing but observations is needed: the targets
are the full-precision policy's own.

Rounding has no gradient; it is passed straight through (Bengio et al. 2013, arXiv 1308.3432), with
scales learned as in LSQ (Esser et al. 2020, arXiv 1902.08153) and end to end as in EfficientQAT
(Chen et al. 2024, arXiv 2407.11062).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vlaq_ros.calibration.action_error import ActionMetric
from vlaq_ros.calibration.applied import applied, linear_of_rounded, replace_module
from vlaq_ros.calibration.method import Batch, CalibrationContext, MethodResult
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.quant.packing import unpack
from vlaq_ros.quant.scheme import QuantScheme

_INSIDE = 0.49  # how far from its code a weight may start, in steps


@dataclass(frozen=True)
class TuningOptions:
    """
    How long and how fast to tune.

    Attributes:
        steps: Optimizer steps, one batch each; 0 leaves everything as it is.
        scale_rate: Learning rate of the logarithm of the scales.
        code_rate: Learning rate of the position between codes, in steps of the grid; 0, the
            default, keeps the codes that rounding chose: codes that move need many steps to make
            up for the compensation they undo.
        float_rate: Learning rate of biases and norm gains.
        interface: Weight of the relative error of the interface in the loss.

    Raises:
        SchemeError: A value is negative.
    """

    steps: int = 200
    scale_rate: float = 2e-3
    code_rate: float = 0.0
    float_rate: float = 5e-4
    interface: float = 1.0

    def __post_init__(self) -> None:
        wrong = [f'{name}={value}' for name, value in vars(self).items() if not value >= 0]
        if wrong:
            raise SchemeError(f'tuning options must not be negative: {", ".join(wrong)}')


class TunableLinear(nn.Module):
    """
    A packed weight whose scales and positions between codes can be learned.

    Channels of 16 bits and pruned ones stay as they are.
    """

    def __init__(
        self, weight: MixedWeight, target: Tensor, bias: Tensor | None, activation_bits: int
    ) -> None:
        super().__init__()
        channels, inputs = weight.layout.shape
        self.layout = weight.layout
        self.activation_bits = activation_bits
        self.widths = weight.widths()
        coded = (self.widths > 0) & (self.widths < 16)
        self._fixed = torch.where(coded.unsqueeze(1), 0.0, weight.dequantize())
        self._group = torch.arange(inputs) // weight.layout.group_size
        schemes = {bits: QuantScheme(bits) for bits in (2, 4, 8)}
        limits = [schemes.get(int(w)) for w in self.widths]
        self._middle = torch.tensor([s.middle if s else 0.0 for s in limits]).unsqueeze(1)
        self._qmax = torch.tensor([float(s.qmax) if s else 0.0 for s in limits]).unsqueeze(1)
        scale = torch.zeros(channels, weight.layout.groups)
        codes = torch.zeros(channels, inputs)
        wide, start = weight.layout.counts[0], 0
        for bits, count in zip((8, 4, 2), weight.layout.counts[1:]):
            rows = weight.order[wide + start :][:count].long()
            codes[rows] = unpack(getattr(weight, f'codes{bits}'), bits, inputs).float()
            scale[rows] = weight.scale[start : start + count].float()
            start += count
        steps = scale[:, self._group]
        leaning = torch.where(steps > 0.0, target / steps.clamp(min=1e-12) + self._middle, codes)
        leaning = torch.minimum(torch.maximum(leaning, codes - _INSIDE), codes + _INSIDE)
        self._alive = scale > 0.0
        self.log_scale = nn.Parameter(scale.clamp(min=1e-8).log())
        self.position = nn.Parameter(leaning)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        rows = (self.widths == 16).nonzero().flatten()
        self._wide = rows if len(rows) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]."""
        bounded = torch.minimum(self.position.clamp(min=0.0), self._qmax)
        codes = bounded + (bounded.round() - bounded).detach()
        scale = torch.where(self._alive, self.log_scale.exp(), 0.0)
        weight = self._fixed + (codes - self._middle) * scale[:, self._group]
        return linear_of_rounded(x, weight, self.bias, self.activation_bits, self._wide)

    @torch.no_grad()
    def packed(self) -> MixedWeight:
        """Return the weight as it is now, in the packed format."""
        codes = torch.minimum(self.position.clamp(min=0.0), self._qmax).round().to(torch.uint8)
        scale = torch.where(self._alive, self.log_scale.exp(), 0.0).half()
        widths = self.widths.tolist()
        return MixedWeight.from_codes(codes, scale, widths, self.layout.group_size, self._fixed)


def tune(
    context: CalibrationContext,
    result: MethodResult,
    metric: ActionMetric,
    options: TuningOptions,
) -> tuple[MethodResult, list[float]]:
    """
    Return a result with the same widths that is nearer to full precision, and the losses.

    If the action error on the calibration batches did not fall, the result given is returned: a
    small set of observations can be matched by rounding alone, and then there is only noise to
    learn from. The model of the context is what it was afterwards.
    """
    if not options.steps:
        return result, []
    teacher = _Teacher(context, metric)
    before = teacher.action_error(result)
    generator = torch.Generator().manual_seed(context.seed)
    losses = []
    with _tunable(context, result) as (layers, floats):
        groups = [
            {'params': [x.log_scale for x in layers.values()], 'lr': options.scale_rate},
            {'params': [x.position for x in layers.values()], 'lr': options.code_rate},
            {'params': list(floats.values()), 'lr': options.float_rate},
        ]
        optimizer = torch.optim.Adam([g for g in groups if g['params']], betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1.0 + math.cos(math.pi * step / options.steps))
        )
        order: list[int] = []
        for _ in range(options.steps):
            if not order:
                order = torch.randperm(len(context.batches), generator=generator).tolist()
            loss = teacher.loss(order.pop(), options.interface)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        weights = {name: layer.packed() for name, layer in layers.items()}
        parameters = {name: value.detach().clone() for name, value in floats.items()}
    tuned = replace(result, weights=weights, parameters={**result.parameters, **parameters})
    return (tuned if teacher.action_error(tuned) < before else result), losses


class _Teacher:
    """The outputs of the full-precision model on every batch, and the distance from them."""

    def __init__(self, context: CalibrationContext, metric: ActionMetric) -> None:
        self._context, self._metric = context, metric
        with torch.no_grad():
            self._targets = [self._run(batch) for batch in context.batches]

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor] = []
        interface = self._context.structure.interface
        handle = None
        if interface:
            layer = self._context.model.get_submodule(interface)
            handle = layer.register_forward_hook(lambda _, __, y: seen.append(y))
        try:
            projected = self._metric.project(self._context.forward(batch))
        finally:
            if handle:
                handle.remove()
        return projected, seen[0] if seen else None

    def action_error(self, result: MethodResult) -> float:
        """Return the mean action error of a result over all batches."""
        with torch.no_grad(), applied(self._context.model, result):
            errors = [
                (self._run(batch)[0] - exact).square().sum(1).mean()
                for batch, (exact, _) in zip(self._context.batches, self._targets)
            ]
        return float(torch.stack(errors).mean())

    def loss(self, index: int, interface: float) -> Tensor:
        """Return the mean cost of one batch."""
        projected, seen = self._run(self._context.batches[index])
        exact, expected = self._targets[index]
        loss = (projected - exact).square().sum(1).mean()
        if seen is not None and interface:
            loss = loss + interface * (seen - expected).square().mean() / expected.var()
        return loss


@contextmanager
def _tunable(
    context: CalibrationContext, result: MethodResult
) -> Iterator[tuple[dict[str, TunableLinear], dict[str, nn.Parameter]]]:
    """Put tunable layers into the model; yield them, and the other parameters by name."""
    model = context.model
    parameters = dict(model.named_parameters())
    originals = {name: context.linear(name) for name in result.weights}
    layers, floats = {}, {}
    for name, weight in result.weights.items():
        bias = result.parameters.get(f'{name}.bias', originals[name].bias)
        target = result.targets.get(name, context.weight(name))
        layers[name] = TunableLinear(weight, target, bias, result.activation_bits[name])
        if bias is not None:
            floats[f'{name}.bias'] = layers[name].bias
    before = {}
    for name in _gains(model) | {n for n in result.parameters if n not in floats}:
        before[name] = parameters[name].data
        parameters[name].data = result.parameters.get(name, before[name]).clone()
        if name in _gains(model):
            floats[name] = parameters[name]
            parameters[name].requires_grad_()
    try:
        for name, layer in layers.items():
            replace_module(model, name, layer)
        yield layers, floats
    finally:
        for name, original in originals.items():
            replace_module(model, name, original)
        for name, value in before.items():
            parameters[name].data = value
            parameters[name].requires_grad_(False)
            parameters[name].grad = None


def _gains(model: nn.Module) -> set[str]:
    """Return the names of the gains and shifts of all norms."""
    return {
        f'{name}.{parameter}'
        for name, module in model.named_modules()
        if 'norm' in type(module).__name__.lower()
        for parameter, _ in module.named_parameters(recurse=False)
    }
