"""
Affine quantization: the only file of the package that rounds to codes.

A code q stands for the real value (Jacob et al. 2018, arXiv 1712.05877, equation 1)

    value = scale * (q - zero_point)        q = 0 .. 2^bits - 1

The zero point is a code, so that 0.0 comes back exactly, with one exception: a symmetric 2-bit
grid has its zero half-way between codes 1 and 2, with the levels -1.5 -0.5 0.5 1.5. Unless a range
is clipped on purpose, a weight lies at most half a step outside the values of the codes.

Scales are stored in float16 and are rounded to it *before* codes are chosen, upwards: a range that
shrank in storage would clip the largest weights. So the error is at most half a stored step. A
group of zeros has scale 0, which makes every code mean 0.0.

Scales below 6e-5 are float16 subnormals with fewer digits: the step grows by up to 1 % when it is
6e-6, and is never below 2^-24 = 6e-8, where weights smaller than half of that become 0.0 (at 2
bits: half a step). A scale above 65504 does not exist; such a weight is refused.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.scheme import PERCENTILE, PerGroup, QuantScheme, check_clip

CHANNELS_SHOWN = 16
CLIP_RATIOS = tuple(1.0 - step / 40 for step in range(33))
"""Shares of the full range that the search for the least squared error tries: 1.0 to 0.2."""
TOKEN_LIMIT = {16: 32512, 8: 127, 4: 7, 2: 1}
"""Activation bits -> the code of the largest value of a token."""


class QParams(NamedTuple):
    """
    How codes map to real values.

    Attributes:
        scale: Non-negative float16 [rows, groups]; [rows, 1] per channel, [1, 1] per tensor.
        zero_point: float16, the point of the codes that stands for 0.0, shaped as `scale`; [1, 1]
            in a symmetric scheme, where all share the middle.
    """

    scale: Tensor
    zero_point: Tensor


def choose_qparams(
    weight: Tensor,
    scheme: QuantScheme,
    clip: str = 'absmax',
    percentile: float = PERCENTILE,
    importance: Tensor | None = None,
    channels: Tensor | None = None,
) -> QParams:
    """
    Pick the scale and the zero point of every tensor, channel or group of `scheme`.

    The range is widened to contain zero: padding and pruned weights must come back as exactly 0.0,
    and an all-positive row would otherwise shift them. The symmetric step is absmax / (qmax / 2),
    as in torchao: the largest weights round inwards by half a step, and every step is finer than
    the absmax / (2^(bits-1) - 1) that would reach them, by 7 % at 4 bits.

    Args:
        weight: Float matrix [out, in].
        scheme: Width, granularity and symmetry.
        clip: `absmax` takes the whole range, `percentile` cuts it at a percentile of the
            magnitudes (of each side, when asymmetric), `mse` tries `CLIP_RATIOS` of it and keeps
            the one with the least squared error.
        percentile: Percent of the weights of a group that stay inside.
        importance: Non-negative [in]; how much the squared error of each input counts for `mse`.
        channels: Numbers [out] under which messages name the rows; 0, 1, 2 ... when None.

    Returns:
        Scales and zero points; the scale is 0 where all weights are zero.

    Raises:
        SchemeError: The weight is not a matrix, is empty or not finite, or needs a scale that
            float16 cannot hold; output channels are listed. Or `clip` does not exist, or
            `importance` does not fit.
    """
    if weight.ndim != 2 or not weight.numel():
        raise SchemeError(f'weight must be a filled matrix [out, in], got {list(weight.shape)}')
    check_clip(clip, percentile)
    refuse_channels('weight is not finite', ~torch.isfinite(weight), channels)
    blocks = _blocks(weight.detach().float(), scheme)  # [rows, groups, size]
    if clip == 'percentile':
        low, high = _percentile_range(blocks, _fill(weight.shape, scheme), scheme, percentile)
    else:
        low, high = blocks.amin(-1), blocks.amax(-1)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # [rows, groups]
    full = _qparams(low, high, scheme)
    too_large = full.scale.isinf().expand(len(weight), -1)
    refuse_channels('weight needs a scale above 65504', too_large, channels)
    if clip != 'mse':
        return full
    counts = _blocks(_importance(weight, importance).expand_as(weight), scheme)
    return _least_error(blocks, counts, low, high, scheme)


def quantize(weight: Tensor, qparams: QParams, scheme: QuantScheme) -> Tensor:
    """
    Return the codes of a weight: uint8, shaped as `weight`; what exceeds the range is clipped.

    Args:
        weight: Finite float matrix [out, in].
        qparams: From `choose_qparams` for the same shape and scheme.
        scheme: Gives the range and the groups of the codes.
    """
    codes = _codes(_blocks(weight.detach().float(), scheme), qparams, scheme)
    return _unblock(codes.to(torch.uint8), weight.shape)


def dequantize(
    codes: Tensor, qparams: QParams, scheme: QuantScheme, dtype: torch.dtype = torch.float32
) -> Tensor:
    """
    Return the real values of codes, shaped as `codes`.

    The product is taken in float32 and then rounded to `dtype`.

    Raises:
        ValueError: `dtype` is not a floating type; integers would lose the values silently.
    """
    if not dtype.is_floating_point:
        raise ValueError(f'codes stand for real values: {dtype} cannot hold them')
    return _unblock(_values(_blocks(codes.float(), scheme), qparams), codes.shape).to(dtype)


def fake_quantize(
    weight: Tensor,
    scheme: QuantScheme,
    clip: str = 'absmax',
    percentile: float = PERCENTILE,
    importance: Tensor | None = None,
) -> Tensor:
    """Return `weight` [out, in] as quantization leaves it, in its own dtype; raises as above."""
    qparams = choose_qparams(weight, scheme, clip, percentile, importance)
    return dequantize(quantize(weight, qparams, scheme), qparams, scheme, weight.dtype)


def fake_quantize_tokens(x: Tensor, bits: int) -> Tensor:
    """
    Return activations [..., in] rounded to `bits`, symmetric, with one float32 scale per token.

    The scale comes from the token itself, so nothing is calibrated and nothing is clipped: the
    largest value is the code 127 at 8 bits, 7 at 4, 1 at 2, and 32512 at 16, which is as far as
    256 * high + low reaches with two signed bytes. A token of zeros stays zero; one that is not
    finite comes back as NaN.
    """
    values = x.float()
    scale = values.abs().amax(-1, keepdim=True) / TOKEN_LIMIT[bits]  # [..., 1]
    scale = torch.where(scale == 0.0, torch.ones_like(scale), scale)
    return ((values / scale).round() * scale).to(x.dtype)


def refuse_channels(fault: str, bad: Tensor, channels: Tensor | None = None) -> None:
    """Raise a SchemeError naming the output channels (rows of `bad`) that have the fault."""
    rows = bad.any(dim=1).nonzero().flatten()
    found = (rows if channels is None else channels[rows]).tolist()
    if found:
        shown = ', '.join(map(str, found[:CHANNELS_SHOWN]))
        more = ', ...' if len(found) > CHANNELS_SHOWN else ''
        raise SchemeError(f'{fault} in {len(found)} output channel(s): {shown}{more}')


def _fill(shape: torch.Size, scheme: QuantScheme) -> int:
    """Return how many inputs the last group of every row lacks."""
    if not isinstance(scheme.granularity, PerGroup):
        return 0
    return -shape[1] % min(scheme.granularity.group_size, shape[1])


def _blocks(matrix: Tensor, scheme: QuantScheme) -> Tensor:
    """Return [rows, groups, size], one scale per row and group; a short last group gets zeros."""
    rows, groups = scheme.granularity.grid(*matrix.shape)
    missing = _fill(matrix.shape, scheme)
    return (pad(matrix, (0, missing)) if missing else matrix).reshape(rows, groups, -1)


def _unblock(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_blocks`."""
    return blocks.reshape(shape[0], -1)[:, : shape[1]].contiguous()


def _codes(blocks: Tensor, qparams: QParams, scheme: QuantScheme) -> Tensor:
    """Return the codes of [rows, groups, size] as floats; in a group of scale 0 they are zeros."""
    scale, zero_point = (values.float().unsqueeze(-1) for values in qparams)
    divisor = torch.where(scale > 0.0, scale, torch.ones_like(scale))
    return (blocks / divisor).add_(zero_point).round_().clamp_(0, scheme.qmax)


def _values(codes: Tensor, qparams: QParams) -> Tensor:
    """Return the real values of float codes [rows, groups, size]."""
    scale, zero_point = (values.float().unsqueeze(-1) for values in qparams)
    return codes.sub(zero_point).mul_(scale)


def _qparams(low: Tensor, high: Tensor, scheme: QuantScheme) -> QParams:
    """Return the qparams of ranges [rows, groups] with low <= 0 <= high."""
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = _round_up_to_half((high - low) / scheme.qmax)
    if scheme.symmetric:
        zero_point = torch.full((1, 1), scheme.middle, device=low.device)
    else:
        divisor = torch.where(scale > 0.0, scale.float(), torch.ones_like(low))
        zero_point = (-low / divisor).round().clamp(0, scheme.qmax)
    return QParams(scale, zero_point.half())


def _percentile_range(
    blocks: Tensor, missing: int, scheme: QuantScheme, percentile: float
) -> tuple[Tensor, Tensor]:
    """Return the two ends [rows, groups] within which `percentile` of the weights lie."""
    sizes = torch.full(blocks.shape[1:2], blocks.shape[-1], device=blocks.device)
    sizes[-1] -= missing
    if scheme.symmetric:
        high = _quantile(blocks.abs(), sizes, percentile / 100)
        return -high, high
    return -_quantile(-blocks, sizes, percentile / 100), _quantile(blocks, sizes, percentile / 100)


def _quantile(blocks: Tensor, sizes: Tensor, share: float) -> Tensor:
    """Return the linearly interpolated quantile of the first sizes[g] values of every group g."""
    padding = torch.arange(blocks.shape[-1], device=blocks.device) >= sizes.unsqueeze(-1)
    ordered = blocks.masked_fill(padding, torch.inf).sort(-1).values
    position = (share * (sizes - 1)).expand(blocks.shape[:2]).unsqueeze(-1)
    below = ordered.gather(-1, position.floor().long())
    above = ordered.gather(-1, position.ceil().long())
    return torch.lerp(below, above, position % 1.0).squeeze(-1)


def _importance(weight: Tensor, importance: Tensor | None) -> Tensor:
    """Return how much each input counts: float [in]."""
    if importance is None:
        return torch.ones(weight.shape[1], device=weight.device)
    importance = importance.detach().to(weight.device).float()
    if importance.shape != weight.shape[1:] or not (importance >= 0).all():
        raise SchemeError(
            f'importance must hold {weight.shape[1]} numbers from 0 up, one per input of the '
            f'weight; got shape {list(importance.shape)}, least {importance.min():g}'
        )
    return importance


def _least_error(
    blocks: Tensor, counts: Tensor, low: Tensor, high: Tensor, scheme: QuantScheme
) -> QParams:
    """Return, for every group, the qparams of the clip ratio with the least squared error."""
    best, least = None, None
    for ratio in CLIP_RATIOS:
        tried = _qparams(low * ratio, high * ratio, scheme)
        restored = _values(_codes(blocks, tried, scheme), tried)
        error = restored.sub_(blocks).square_().mul_(counts).sum(-1)  # [rows, groups]
        if best is None:
            best, least = tried, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried.scale, best.scale)
        zero_point = tried.zero_point  # the middle, at every ratio
        if not scheme.symmetric:
            zero_point = torch.where(better, zero_point, best.zero_point)
        best = QParams(scale, zero_point)
    return best


def _round_up_to_half(positive: Tensor) -> Tensor:
    """Return the smallest float16 not below each non-negative value; infinity above 65504."""
    half = positive.half()
    successor = (half.view(torch.int16) + 1).view(torch.float16)  # valid for non-negative floats
    return torch.where(half.float() < positive, successor, half)
