"""
RTN: round every weight to the nearest code. The baseline all others have to beat.

No calibration data are used. Scales come from the largest weight of a channel or group, from a
percentile, or from the clip with the least squared error.
"""

from vlaq_ros.calibration.allocation import MENU, channel_bytes
from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight

UNIFORM_WIDTHS = (8, 4, 2)


def widest_within_budget(context: CalibrationContext) -> int:
    """
    Return the largest uniform width whose codes and scales fit the budget.

    Raises:
        SchemeError: Not even 2 bits fit.
    """
    for bits in UNIFORM_WIDTHS:
        if uniform_bytes(context, bits) <= context.budget_bytes * (1 + 1e-9):
            return bits
    least = 8 * uniform_bytes(context, 2) / context.weight_count
    raise SchemeError(
        f'a budget of {context.budget_bits:g} bits per weight is below the {least:.3f} that '
        f'2-bit codes with their scales need (group_size={context.group_size}); raise the '
        'budget, use larger groups, or a method that prunes'
    )


def uniform_bytes(context: CalibrationContext, bits: int) -> float:
    """Return the bytes of codes and scales of all layers at one width."""
    return sum(
        context.linear(name).out_features
        * channel_bytes(context.linear(name).in_features, context.group_of(name))[MENU.index(bits)]
        for name in context.layers
    )


def uniform_widths(context: CalibrationContext, name: str, bits: int) -> tuple[int, ...]:
    """Return the same width for every output channel of a layer."""
    return (bits,) * context.linear(name).out_features


def calibrate(context: CalibrationContext, clip: str = 'absmax') -> MethodResult:
    """
    Round all layers to the widest uniform width within the budget.

    Raises:
        SchemeError: No width fits the budget.
    """
    bits = widest_within_budget(context)
    weights = {
        name: MixedWeight.from_float(
            context.weight(name), uniform_widths(context, name, bits), context.group_of(name), clip
        )
        for name in context.layers
    }
    return MethodResult(
        'rtn',
        weights,
        dict.fromkeys(context.layers, context.activation_bits),
        provenance={'bits': bits, 'clip': clip},
    )
