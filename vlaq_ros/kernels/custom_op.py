"""
One operator, `vlaq::mixed_linear`, in place of a kernel wherever a call is traced.

A kernel is plain Python that passes addresses to compiled code. Called eagerly it runs at once,
and nothing of torch stands in between. What traces a model (torch.compile, torch.export,
torch.jit.trace, fake tensors, a dispatch mode) or differentiates it cannot look into that, and
sees this operator: one node of a graph, with the shape of its result and with a gradient.

The gradient goes to the input alone: grad @ W with the weight at the cap of the forward pass. The
rounding of activations counts as the identity (straight-through, Bengio et al. 2013, arXiv
1308.3432), since its true derivative is zero almost everywhere. Packed weights are constants.

The precision is a tensor and is read when the operator runs, so a compiled model changes it
without being compiled again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vlaq_ros.kernels.kernel import Kernel
from vlaq_ros.quant.mixed import MixedLayout

ARGUMENTS = 'Tensor[] tensors, str kernel, int[] layout, Tensor precision'

_library = torch.library.Library('vlaq', 'DEF')
_library.define(f'mixed_linear(Tensor x, {ARGUMENTS}, Tensor? bias) -> Tensor')
_library.define(f'mixed_linear_backward(Tensor grad, {ARGUMENTS}) -> Tensor')
_kernels: dict[str, Kernel] = {}


def traceable(kernel: Kernel) -> Kernel:
    """Return the kernel with a `run` that calls the operator where a call is traced."""
    _kernels[kernel.name] = kernel

    def run(
        x: Tensor,
        tensors: tuple[Tensor, ...],
        layout: MixedLayout,
        precision: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        if is_traced(x):
            sizes = [*layout.shape, layout.group_size, *layout.counts]
            op = torch.ops.vlaq.mixed_linear.default
            return op(x, list(tensors), kernel.name, sizes, precision, bias)
        return kernel.run(x, tensors, layout, precision, bias)

    return kernel._replace(run=run)


def is_traced(x: Tensor) -> bool:
    """Return whether a call with this input must be visible to torch."""
    return (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or (x.requires_grad and torch.is_grad_enabled())
        or is_in_torch_dispatch_mode()
        or torch.jit.is_tracing()
    )


def _layout(sizes: list[int]) -> MixedLayout:
    out_features, in_features, group_size, *counts = sizes
    return MixedLayout((out_features, in_features), group_size, tuple(counts))


def _forward(
    x: Tensor,
    tensors: list[Tensor],
    kernel: str,
    layout: list[int],
    precision: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return _kernels[kernel].run(x, tuple(tensors), _layout(layout), precision, bias)


def _backward(
    grad: Tensor, tensors: list[Tensor], kernel: str, layout: list[int], precision: Tensor
) -> Tensor:
    weight = _kernels[kernel].unpack(tuple(tensors), _layout(layout))
    dense = weight.dequantize(torch.float32, cap=int(precision[0]))
    return (grad.float() @ dense.to(grad.device)).to(grad.dtype)


def _shape_of_forward(
    x: Tensor,
    tensors: list[Tensor],
    kernel: str,
    layout: list[int],
    precision: Tensor,
    bias: Tensor | None,
) -> Tensor:
    torch._check(x.shape[-1] == layout[1], lambda: f'expected [..., {layout[1]}], got {x.shape}')
    return x.new_empty((*x.shape[:-1], layout[0]))


def _shape_of_backward(
    grad: Tensor, tensors: list[Tensor], kernel: str, layout: list[int], precision: Tensor
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], layout[1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, ctx.kernel, ctx.layout, precision, _ = inputs
    ctx.save_for_backward(precision.clone(), *tensors)  # as it was: it changes at run time


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    precision, *tensors = ctx.saved_tensors
    op = torch.ops.vlaq.mixed_linear_backward.default
    nothing = [None] * len(tensors)
    return op(grad, tensors, ctx.kernel, ctx.layout, precision), nothing, None, None, None, None


_library.impl('mixed_linear', _forward, 'CompositeExplicitAutograd')
_library.impl('mixed_linear_backward', _backward, 'CompositeExplicitAutograd')
torch.library.register_fake('vlaq::mixed_linear', _shape_of_forward, lib=_library)
torch.library.register_fake('vlaq::mixed_linear_backward', _shape_of_backward, lib=_library)
torch.library.register_autograd(
    'vlaq::mixed_linear', _differentiate, setup_context=_save, lib=_library
)
