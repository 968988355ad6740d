"""
GPTQ: round column by column, and let the columns still to come make up for the error.

Frantar et al. 2022 (arXiv 2210.17323): with H = E[x x^T] and U the upper Cholesky factor of H^-1,
the error of column j, (w_j - q_j) / U_jj, is subtracted from every later column k times U_jk.
Output channels do not interact, so that channels of different widths share one factorization.

Scales are chosen before rounding starts, from the weights as they are; then columns may be taken
in any order, also with groups. The default is most active first ("act order"). `compensate` is
also the rounding of other methods, with a Hessian of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.rtn import uniform_widths, widest_within_budget
from vlaq_ros.calibration.statistics import collect_statistics
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import choose_qparams
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.quant.scheme import PerGroup, QuantScheme

DAMPING = 0.01
MAX_DAMPING = 10.0


def compensate(
    weight: Tensor,
    hessian: Tensor,
    widths: Sequence[int],
    group_size: int,
    clip: str = 'mse',
    damping: float = DAMPING,
    act_order: bool = True,
) -> MixedWeight:
    """
    Round a weight with the error of every input made up for by the others.

    Args:
        weight: Float [out, in].
        hessian: Symmetric, positive semidefinite [in, in]: E[x x^T], weighted or not.
        widths: Bits of every output channel.
        group_size: Inputs per scale.
        clip: Rule of the scales; `mse` weighs inputs by the diagonal of the Hessian.
        damping: Share of the mean diagonal that is added to the diagonal.
        act_order: Take inputs in the order of falling diagonal instead of as they come.

    Raises:
        SchemeError: The Hessian does not fit or is not finite, or the weight cannot be scaled.
    """
    channels, inputs = weight.shape
    if hessian.shape != (inputs, inputs) or not torch.isfinite(hessian).all():
        raise SchemeError(
            f'the Hessian of a weight with {inputs} inputs must be a finite matrix '
            f'[{inputs}, {inputs}], got {list(hessian.shape)}'
        )
    diagonal = hessian.diagonal()
    order = diagonal.argsort(descending=True) if act_order else torch.arange(inputs)
    factor = _inverse_factor(hessian[order][:, order].double(), damping)
    codes = torch.zeros(channels, inputs, dtype=torch.uint8)
    scale = torch.zeros(channels, -(-inputs // group_size), dtype=torch.float16)
    each = torch.tensor(widths)
    for bits in {8, 4, 2} & set(each.tolist()):
        rows = each == bits
        scheme = QuantScheme(bits, PerGroup(group_size))
        importance = diagonal.float().clamp(min=0.0)
        scale[rows] = choose_qparams(weight[rows], scheme, clip, importance=importance).scale
        steps = scale[rows].double()[:, order // group_size]  # [rows, in]
        codes[rows] = _round_columns(weight[rows], steps, order, factor, scheme)
    return MixedWeight.from_codes(codes, scale, widths, group_size, weight)


def _round_columns(
    weight: Tensor, steps: Tensor, order: Tensor, factor: Tensor, scheme: QuantScheme
) -> Tensor:
    """Return the codes uint8 [rows, in] of channels of one width; `steps` are in `order`."""
    left = weight.double()[:, order]  # what is still to be rounded
    divisor = torch.where(steps > 0.0, steps, torch.ones_like(steps))
    codes = torch.zeros_like(left)
    for j in range(left.shape[1]):
        codes[:, j] = (left[:, j] / divisor[:, j] + scheme.middle).round().clamp(0, scheme.qmax)
        value = (codes[:, j] - scheme.middle) * steps[:, j]
        error = (left[:, j] - value) / factor[j, j]
        left[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored.to(torch.uint8)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse, float64."""
    identity = torch.eye(len(hessian), dtype=torch.float64)
    mean = hessian.diagonal().mean()
    if mean <= 0.0:  # the layer never ran: nothing to compensate with
        return identity
    while damping <= MAX_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * mean * identity)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10.0
    raise SchemeError('the Hessian is not positive semidefinite, whatever the damping')


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Return E[(d x)^2] of every output channel [out] for a change d [out, in] of the weight."""
    difference = difference.double()
    return ((difference @ hessian) * difference).sum(1)


def calibrate(
    context: CalibrationContext, clip: str = 'mse', act_order: bool = True
) -> MethodResult:
    """
    Quantize all layers to the widest uniform width within the budget, with compensation.

    Raises:
        SchemeError: No width fits the budget.
    """
    bits = widest_within_budget(context)
    statistics = collect_statistics(context)
    weights = {
        name: compensate(
            context.weight(name),
            statistics[name].second_moment,
            uniform_widths(context, name, bits),
            context.group_of(name),
            clip,
            act_order=act_order,
        )
        for name in context.layers
    }
    return MethodResult(
        'gptq',
        weights,
        dict.fromkeys(context.layers, context.activation_bits),
        provenance={'bits': bits, 'clip': clip, 'act_order': act_order, 'damping': DAMPING},
    )
