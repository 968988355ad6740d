"""
Codes of 8 bits whose upper half is a good code of 4 bits, too.

An 8-bit code q under a scale s is read in two ways (`quant.mixed`): as s (q - 128), and with its
high nibble h alone as s (16 h + 7.5 - 128). What is minimized, for every output channel, with
H = E[x x^T] and d8, d4 the errors of its weights in the two views, is

    fine_weight d8 H d8^T + d4 H d4^T

*Scales* are chosen per group first, from multiples of the one that reaches the largest weight: the
one with the least sum of both views' squared errors, inputs weighted by the diagonal of H, each
view's error as a multiple of the least it could have. Small scales suit the 4-bit view, which may
clip; the 8-bit view may not.

*Codes* are then rounded column by column as in GPTQ (arXiv 2210.17323), with the errors of each
view made up for by its own later columns. Rounding to nearest has a nibble that is nearest in the
4-bit view, but compensation asks the two views for different nibbles. The one that costs less is
taken, and the low nibble brings the 8-bit view as near as it can (the aim of MatGPTQ, without its
training). Last, sweeps over all columns replace single codes where that lowers the sum, until
none does or they are used up.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlaq_ros.calibration.gptq import DAMPING, check_hessian, inverse_factor
from vlaq_ros.quant.affine import choose_qparams
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.quant.scheme import PerGroup, QuantScheme

RATIOS = tuple(step / 40 for step in range(20, 49))
"""Multiples of the scale that reaches the largest weight: 0.5 to 1.2."""
_BITS, _ZERO, _NIBBLE, _MIDDLE = 8, 128, 16, 7.5
_ROWS, _COLUMNS = 1024, 64  # channels at a time; columns between updates of all later ones


def round_both_views(
    weight: Tensor, hessian: Tensor, group_size: int, fine_weight: float, sweeps: int
) -> MixedWeight:
    """
    Round a weight so that it can be read with 8 bits and with 4.

    Args:
        weight: Float [out, in].
        hessian: Symmetric, positive semidefinite [in, in]: E[x x^T].
        group_size: Inputs per scale.
        fine_weight: How much the squared error of the 8-bit view counts next to the other's; 0
            rounds for the 4-bit view alone.
        sweeps: Most passes over all columns afterwards.

    Raises:
        SchemeError: The Hessian does not fit or is not finite, or the weight cannot be scaled.
    """
    check_hessian(hessian, weight.shape[1])
    importance = hessian.diagonal().clamp(min=0.0).float()
    scale = scales_of_both(weight, group_size, importance)
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for rows in torch.arange(len(weight)).split(_ROWS):
        part = _Channels(weight[rows], scale[rows], group_size, hessian, fine_weight)
        codes[rows] = part.improve(part.round(), sweeps).to(torch.uint8)
    return MixedWeight.from_codes(codes, scale, (_BITS,) * len(weight), group_size)


def scales_of_both(weight: Tensor, group_size: int, importance: Tensor) -> Tensor:
    """
    Return the scales float16 [out, groups] that suit both views of codes rounded to nearest.

    Args:
        weight: Float [out, in].
        group_size: Inputs per scale.
        importance: Non-negative [in]: how much the squared error of each input counts.

    Raises:
        SchemeError: The weight cannot be scaled.
    """
    full = choose_qparams(weight, QuantScheme(_BITS, PerGroup(group_size))).scale
    group_size = min(group_size, weight.shape[1])
    shape = len(weight), full.shape[1], group_size
    missing = shape[1] * group_size - weight.shape[1]
    blocks = pad(weight.detach().float(), (0, missing)).reshape(shape)
    counts = pad(importance.float(), (0, missing)).reshape(1, *shape[1:])
    counts = torch.where(counts.sum(-1, keepdim=True) > 0.0, counts, torch.ones_like(counts))
    tried = torch.stack([(full.float() * ratio).half() for ratio in RATIOS])
    errors = torch.stack([_nearest_errors(blocks, counts, scale) for scale in tried])
    least = errors.amin(0).clamp(min=torch.finfo(torch.float32).tiny)
    best = (errors / least).sum(1).argmin(0)  # [out, groups]
    return tried.gather(0, best.unsqueeze(0)).squeeze(0)


def _nearest_errors(blocks: Tensor, counts: Tensor, scale: Tensor) -> Tensor:
    """Return the squared error [2, out, groups] of the 8- and the 4-bit view at a scale."""
    steps = scale.float().unsqueeze(-1)
    codes = (blocks / _divisor(steps) + _ZERO).round_().clamp_(0, 2**_BITS - 1)
    return torch.stack(
        [((view - blocks).square_() * counts).sum(-1) for view in _views(codes, steps)]
    )


class _Channels:
    """Rounds output channels; codes are float64 [rows, in] until they are done."""

    def __init__(
        self, weight: Tensor, scale: Tensor, group_size: int, hessian: Tensor, fine_weight: float
    ) -> None:
        self._weight = weight.detach().double()
        steps = scale.double().repeat_interleave(group_size, dim=1)
        self._steps = steps[:, : weight.shape[1]]
        self._hessian = hessian.double()
        self._order = hessian.diagonal().argsort(descending=True, stable=True)
        self._fine_weight = fine_weight

    def round(self) -> Tensor:
        """Return codes with the errors of either view made up for by later columns."""
        order, count = self._order, len(self._order)
        factor = inverse_factor(self._hessian[order][:, order], DAMPING)
        steps = self._steps[:, order]
        left = self._weight[:, order].expand(2, -1, -1).clone()  # what each view still owes
        codes = torch.zeros_like(left[0])
        for start in range(0, count, _COLUMNS):
            stop = min(start + _COLUMNS, count)
            errors = torch.zeros_like(left[:, :, start:stop])
            for j in range(start, stop):
                codes[:, j] = self._choose(left[:, :, j], steps[:, j])
                values = torch.stack(_views(codes[:, j], steps[:, j]))
                error = (left[:, :, j] - values) / factor[j, j]
                left[:, :, j + 1 : stop] -= error.unsqueeze(-1) * factor[j, j + 1 : stop]
                errors[:, :, j - start] = error
            left[:, :, stop:] -= errors @ factor[start:stop, stop:]
        restored = torch.empty_like(codes)
        restored[:, order] = codes
        return restored

    def improve(self, codes: Tensor, sweeps: int) -> Tensor:
        """Return codes of which no single one can be replaced by a better one, if time allows."""
        codes = codes.clone()
        mean = self._hessian.diagonal().mean()
        damped = self._hessian + DAMPING * mean * torch.eye(len(self._hessian)).double()
        if mean <= 0.0:  # the layer never ran
            return codes
        values = torch.stack(_views(codes, self._steps))
        slopes = (values - self._weight) @ damped  # [2, rows, in]
        for _ in range(sweeps):
            before = codes.clone()
            for j in self._order.tolist():
                steps = self._steps[:, j]
                values = torch.stack(_views(codes[:, j], steps))
                codes[:, j] = self._choose(values - slopes[:, :, j] / damped[j, j], steps)
                change = torch.stack(_views(codes[:, j], steps)) - values
                slopes += change.unsqueeze(-1) * damped[j]
            if torch.equal(before, codes):
                break
        return codes

    def _choose(self, wanted: Tensor, steps: Tensor) -> Tensor:
        """
        Return the codes [rows] of one column.

        Args:
            wanted: [2, rows] value that would be best in the 8- and in the 4-bit view.
            steps: [rows] scales.
        """
        fine, coarse = wanted / _divisor(steps) + _ZERO
        best = least = None
        of_fine = (fine.round().clamp(0, 2**_BITS - 1) / _NIBBLE).floor()
        of_coarse = ((coarse - _MIDDLE) / _NIBBLE).round().clamp(0, _NIBBLE - 1)
        for nibble in (of_fine, of_fine + (of_coarse - of_fine).sign(), of_coarse):
            code = _NIBBLE * nibble + (fine - _NIBBLE * nibble).round().clamp(0, _NIBBLE - 1)
            cost = self._fine_weight * (fine - code) ** 2
            cost += (coarse - _NIBBLE * nibble - _MIDDLE) ** 2
            if best is None:
                best, least = code, cost
            else:
                best = torch.where(cost < least, code, best)
                least = torch.minimum(cost, least)
        return best


def _views(codes: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return what float codes stand for, read with 8 bits and with 4."""
    coarse = _NIBBLE * (codes / _NIBBLE).floor() + _MIDDLE
    return (codes - _ZERO) * steps, (coarse - _ZERO) * steps


def _divisor(steps: Tensor) -> Tensor:
    return torch.where(steps > 0.0, steps, torch.ones_like(steps))
