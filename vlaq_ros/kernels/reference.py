"""
The definition of multiplying by a mixed weight; every faster kernel is tested against it.

    y[m, n] = sum_k x'[m, k] * W[n, k] + bias[n]

W is the dequantized weight at the present cap, x' is the input as the channel sees it:

    2-, 4- and 8-bit channels   x, or x rounded per token to 8, 4 or 2 bits (16: as it comes)
    16-bit channels             x rounded to bfloat16
    pruned channels             nothing: y is the bias

Everything is taken in float32 and rounded once, to the dtype of x. A token with a value that is
not finite gives NaN in all channels, pruned ones included: a broken input must not look healthy.

It runs on every device and for every layout, and it saves memory, not time: the weight is
dequantized in every call, 5 bytes per weight of that layer above the packed form.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from vlaq_ros.kernels.kernel import Kernel, row_major_parts
from vlaq_ros.quant.affine import fake_quantize_tokens
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight


def mixed_linear(
    x: Tensor, weight: MixedWeight, cap: int, activation_bits: int, bias: Tensor | None
) -> Tensor:
    """Return x' @ W.T + bias [..., out] for x [..., in], in the dtype of x."""
    values = x.float()
    rounded = fake_quantize_tokens(values, activation_bits) if activation_bits < 16 else values
    y = linear(rounded, weight.dequantize(torch.float32, cap))
    rows16 = weight.layout.counts[0]
    if rows16:
        wide = linear(values.bfloat16().float(), weight.values16.float())
        y[..., weight.order[:rows16].long()] = wide
    if bias is not None:
        y += bias.float()
    is_finite = torch.isfinite(values).all(-1, keepdim=True)  # [..., 1]
    return torch.where(is_finite, y, torch.nan).to(x.dtype)


def pack(weight: MixedWeight) -> tuple[Tensor, ...]:
    """Return the parts of the weight as they are."""
    return row_major_parts(weight)


def unpack(tensors: tuple[Tensor, ...], layout: MixedLayout) -> MixedWeight:
    """Return the weight; it shares the tensors."""
    return MixedWeight(layout, *tensors)


def run(
    x: Tensor,
    tensors: tuple[Tensor, ...],
    layout: MixedLayout,
    precision: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Return `mixed_linear` at the precision that the tensor holds now."""
    cap, activation_bits = precision.tolist()
    return mixed_linear(x, unpack(tensors, layout), cap, activation_bits, bias)


def refusal(layout: MixedLayout, device_type: str) -> str:
    """Return why this kernel cannot run a layout on a device: never, so always ''."""
    return ''


KERNEL = Kernel('reference', pack, unpack, run, refusal)
