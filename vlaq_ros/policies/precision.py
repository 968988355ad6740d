"""
Names of the precisions a policy can run at.

    fp32, bf16    float weights, inputs of the same type
    w8, w4        8- or 4-bit weights; inputs of 16 bits
    w8a8, w4a8    the same weights; inputs rounded per token to 8 bits
    nested        8-bit weights in groups that can be read at 4 bits while the policy runs
    packed        a packed bundle as it was stored
    default       the first that the bundle has
"""

from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.quant.scheme import LayerScheme

FLOAT_PRECISIONS = ('fp32', 'bf16')
SCHEMES = {
    'w8': LayerScheme(8),
    'w8a8': LayerScheme(8, activation_bits=8),
    'w4': LayerScheme(4, 64),
    'w4a8': LayerScheme(4, 64, activation_bits=8),
    'nested': LayerScheme(8, 64),
}
"""How float weights are rounded to nearest at a precision."""
QUANTIZED_PRECISIONS = tuple(SCHEMES)
NESTED = 'nested'
"""Float weights rounded so that every level is a view of the same bytes."""
PACKED = 'packed'
"""Exactly as a packed bundle was stored."""
DEFAULT = 'default'
"""The first precision of the bundle: fp32, or `packed` where it is packed."""
PRECISIONS = (DEFAULT, *FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS, PACKED)


def precisions(bundle: Bundle) -> tuple[str, ...]:
    """
    Return the precisions that a bundle can be loaded at, the default first.

    A packed bundle has no float weights left; its integer channels run at the precision they were
    stored at or, where a level reads less of them, at that level.
    """
    if not bundle.is_packed:
        return (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)
    levels = [name for name in QUANTIZED_PRECISIONS if name != NESTED]
    return (PACKED, *(name for name in levels if bundle.is_nested or 'w8' in name))
