"""
The shortest time that a linear layer can take: reading its weights, or its multiply-adds.

    floor = max(bytes read / bandwidth, sum over kinds of operations / rate)

Activations and outputs are left out, as they stay in the cache; so is the rounding of activations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vlaq_ros.bench.ceilings import Ceilings

SCALE_BYTES = 2  # float16
WIDTHS = (16, 8, 4, 2, 0)


@dataclass(frozen=True)
class Work:
    """
    What one call has to do per token, and once.

    Attributes:
        weight_bytes: Read once per call: codes as far as they are used, and scales.
        operations: Kind of arithmetic -> operations per token; a multiply-add is two.
    """

    weight_bytes: float
    operations: Mapping[str, float]

    def floor_s(self, tokens: int, ceilings: Ceilings) -> float:
        """Return the shortest time on this machine [s]."""
        reading = self.weight_bytes / ceilings.read_bytes_s
        computing = sum(
            tokens * count / ceilings.rate(kind) for kind, count in self.operations.items()
        )
        return max(reading, computing)

    def total_operations(self, tokens: int) -> float:
        """Return the operations of one call."""
        return tokens * sum(self.operations.values())


def mixed_work(
    in_features: int,
    rows: Mapping[int, int],
    group_size: int,
    *,
    cap: int = 8,
    activation_bits: int = 8,
) -> Work:
    """
    Return the work of a layer whose output channels have different widths.

    Args:
        in_features: Inputs of the layer.
        rows: Width -> number of output channels; pruned ones (0) cost nothing.
        group_size: Inputs per scale.
        cap: 4 reads half of the codes of 8-bit channels.
        activation_bits: 16 takes two integer products per weight.
    """
    groups = -(-in_features // group_size)
    weight_bytes, operations = 0.0, {'bf16': 0.0, 'int8': 0.0}
    passes = 2 if activation_bits == 16 else 1
    for width, count in rows.items():
        if width == 16:
            weight_bytes += count * in_features * 2
            operations['bf16'] += 2.0 * count * in_features
        elif width:
            read_bits = min(width, cap)
            weight_bytes += count * (in_features * read_bits / 8 + groups * SCALE_BYTES)
            operations['int8'] += 2.0 * count * in_features * passes
    return Work(weight_bytes, {kind: count for kind, count in operations.items() if count})


def dense_work(in_features: int, out_features: int, bits: float, kind: str) -> Work:
    """Return the work of a layer of one width without counting scales: that of a library."""
    weights = in_features * out_features
    return Work(weights * bits / 8, {kind: 2.0 * weights})
