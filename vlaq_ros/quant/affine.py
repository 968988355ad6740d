"""
Affine quantization: the only file of the package that rounds to codes.

A code q stands for the real value (Jacob et al. 2018, arXiv 1712.05877, equation 1)

    value = scale * (q - zero_point)        q = 0 .. 2^bits - 1

Every weight lies at most half a step outside the values of the codes, and 0.0 is one of them.
Scales are stored in float16 and are rounded to it *before* codes are chosen, upwards: a range that
shrank in storage would clip the largest weights. So the error is at most half a stored step.

Scales below 6e-5 are float16 subnormals with fewer digits: the step grows by up to 1 % when it is
6e-6, and is never below 2^-24 = 6e-8, where weights smaller than half of that become 0.0. A scale
above 65504 does not exist; such a weight is refused.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.scheme import QuantScheme

CHANNELS_SHOWN = 16


class QParams(NamedTuple):
    """
    How codes map to real values.

    Attributes:
        scale: Positive float16 [rows, groups]; [rows, 1] per channel, [1, 1] per tensor.
        zero_point: uint8, the code of 0.0, shaped as `scale`; [1, 1] in a symmetric scheme, where
            all share the middle code.
    """

    scale: Tensor
    zero_point: Tensor


def choose_qparams(weight: Tensor, scheme: QuantScheme) -> QParams:
    """
    Pick the min-max scale and the zero point of every tensor, channel or group of `scheme`.

    The range is widened to contain zero: padding and pruned weights must come back as exactly 0.0,
    and an all-positive row would otherwise shift them. The symmetric step is absmax / (qmax / 2),
    as in torchao: the largest weights round inwards by half a step, and every step is finer than
    the absmax / (2^(bits-1) - 1) that would reach them, by 7 % at 4 bits.

    Args:
        weight: Float matrix [out, in].
        scheme: Width, granularity and symmetry.

    Returns:
        Scales and zero points; where all weights are zero the scale is 1.0, so that
        dequantization stays finite.

    Raises:
        SchemeError: The weight is not a matrix, is empty or not finite, needs a scale that float16
            cannot hold, or is not as wide as a multiple of the group size. Output channels are
            listed.
    """
    if weight.ndim != 2 or not weight.numel():
        raise SchemeError(f'weight must be a filled matrix [out, in], got {list(weight.shape)}')
    _refuse('weight is not finite', ~torch.isfinite(weight))
    rows, groups = scheme.granularity.grid(*weight.shape)
    blocks = weight.detach().float().reshape(rows, groups, -1)
    low = blocks.amin(-1).clamp(max=0.0)  # [rows, groups]
    high = blocks.amax(-1).clamp(min=0.0)  # [rows, groups]
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = _round_up_to_half((high - low) / scheme.qmax)
    _refuse('weight needs a scale above 65504', scale.isinf().expand(len(weight), -1))
    scale = torch.where(scale > 0.0, scale, torch.ones_like(scale))
    if scheme.symmetric:
        zero_point = torch.full((1, 1), scheme.middle, device=weight.device)
    else:
        zero_point = (-low / scale.float()).round().clamp(0, scheme.qmax)
    return QParams(scale, zero_point.to(torch.uint8))


def quantize(weight: Tensor, qparams: QParams, scheme: QuantScheme) -> Tensor:
    """
    Return the codes of a weight: uint8, shaped as `weight`; what exceeds the range is clipped.

    Args:
        weight: Finite float matrix [out, in].
        qparams: From `choose_qparams` for the same shape and scheme.
        scheme: Gives the range of the codes.
    """
    scale, zero_point = (values.float().unsqueeze(-1) for values in qparams)
    blocks = weight.detach().float().reshape(*qparams.scale.shape, -1)
    codes = ((blocks / scale).round() + zero_point).clamp(0, scheme.qmax)
    return codes.to(torch.uint8).reshape(weight.shape)


def dequantize(codes: Tensor, qparams: QParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """
    Return the real values of codes, shaped as `codes`.

    The product is taken in float32 and then rounded to `dtype`.

    Raises:
        ValueError: `dtype` is not a floating type; integers would lose the values silently.
    """
    if not dtype.is_floating_point:
        raise ValueError(f'codes stand for real values: {dtype} cannot hold them')
    scale, zero_point = (values.float().unsqueeze(-1) for values in qparams)
    values = codes.float().reshape(*qparams.scale.shape, -1)
    return values.sub_(zero_point).mul_(scale).reshape(codes.shape).to(dtype)


def fake_quantize(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """Return `weight` [out, in] as quantization leaves it, in its own dtype; raises as above."""
    qparams = choose_qparams(weight, scheme)
    return dequantize(quantize(weight, qparams, scheme), qparams, weight.dtype)


def fake_quantize_tokens(x: Tensor, bits: int) -> Tensor:
    """
    Return activations [..., in] rounded to `bits`, symmetric, with one float32 scale per token.

    The scale comes from the token itself, so nothing is calibrated and nothing is clipped by more
    than half a step. A token of zeros stays zero; one that is not finite comes back as NaN.
    """
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)  # [..., 1]
    scale = torch.where(scale == 0.0, torch.ones_like(scale), scale)
    limit = 2 ** (bits - 1)
    return ((values / scale).round().clamp(-limit, limit - 1) * scale).to(x.dtype)


def _round_up_to_half(positive: Tensor) -> Tensor:
    """Return the smallest float16 not below each non-negative value; infinity above 65504."""
    half = positive.half()
    successor = (half.view(torch.int16) + 1).view(torch.float16)  # valid for non-negative floats
    return torch.where(half.float() < positive, successor, half)


def _refuse(fault: str, bad: Tensor) -> None:
    """Raise a SchemeError naming the output channels (rows of `bad`) that have the fault."""
    channels = bad.any(dim=1).nonzero().flatten().tolist()
    if channels:
        shown = ', '.join(map(str, channels[:CHANNELS_SHOWN]))
        more = ', ...' if len(channels) > CHANNELS_SHOWN else ''
        raise SchemeError(f'{fault} in {len(channels)} output channel(s): {shown}{more}')
