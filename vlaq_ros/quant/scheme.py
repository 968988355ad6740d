"""
What a quantized weight looks like: width, granularity, symmetry, and the activations it meets.

Schemes are frozen values that refuse nonsense when they are built, so nothing downstream checks
them again. Only what an integer kernel can execute can be expressed: weights share a scale per
tensor, per output channel or per group along the input; activations are rounded per token, at run
time. A static scale per input channel does not factor out of an integer product and has no name
here.
"""

from dataclasses import dataclass, field

from vlaq_ros.errors import SchemeError

MIN_BITS, MAX_BITS = 2, 8
ACTIVATION_BITS = (8, 16)


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole matrix."""

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape [1, 1] of the scales of a [rows, columns] matrix."""
        return 1, 1

    def __str__(self) -> str:
        return 'per tensor'


@dataclass(frozen=True)
class PerChannel:
    """One scale per output channel: per row of a linear weight [out, in]."""

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape [rows, 1] of the scales of a [rows, columns] matrix."""
        return rows, 1

    def __str__(self) -> str:
        return 'per channel'


@dataclass(frozen=True)
class PerGroup:
    """
    One scale per `group_size` neighbouring weights of an output channel.

    Example: a [32, 128] weight in groups of 64 has scales [32, 2].
    """

    group_size: int

    def __post_init__(self) -> None:
        if not _is_int(self.group_size) or self.group_size < 1:
            raise SchemeError(f'group_size={self.group_size!r} must be a positive whole number')

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """
        Return the shape [rows, groups] of the scales of a [rows, columns] matrix.

        Raises:
            SchemeError: The groups do not fill the columns exactly.
        """
        if columns % self.group_size:
            raise SchemeError(
                f'group_size={self.group_size} does not divide the input width {columns}; '
                'choose a divisor'
            )
        return rows, columns // self.group_size

    def __str__(self) -> str:
        return f'per group of {self.group_size}'


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True)
class QuantScheme:
    """
    How the weight of one layer is quantized.

    Attributes:
        bits: Width of one code, 2 to 8. Codes are unsigned, 0 to `qmax`.
        granularity: Which weights share one scale.
        symmetric: Whether the range is centred on zero, so that the middle code stands for 0.0
            everywhere and no zero points are stored.
        activation_bits: 16 leaves the input as it comes; 8 rounds every token to 8 bits with a
            scale of its own, chosen at run time.

    Raises:
        SchemeError: A value is out of range.
    """

    bits: int
    granularity: Granularity = field(default_factory=PerChannel)
    symmetric: bool = True
    activation_bits: int = 16

    def __post_init__(self) -> None:
        if not _is_int(self.bits) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise SchemeError(
                f'bits={self.bits!r} is not supported: use a width from {MIN_BITS} to {MAX_BITS}'
            )
        if not isinstance(self.granularity, PerTensor | PerChannel | PerGroup):
            raise SchemeError(
                f'granularity={self.granularity!r} is not supported: '
                'use PerTensor(), PerChannel() or PerGroup(group_size)'
            )
        if self.activation_bits not in ACTIVATION_BITS:
            raise SchemeError(
                f'activation_bits={self.activation_bits!r} is not supported: '
                f'use one of {ACTIVATION_BITS}'
            )

    @property
    def qmax(self) -> int:
        """Largest code; the smallest is 0."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The code that stands for 0.0 in a symmetric scheme."""
        return 2 ** (self.bits - 1)

    def __str__(self) -> str:
        symmetry = 'symmetric' if self.symmetric else 'asymmetric'
        return f'W{self.bits}A{self.activation_bits} {self.granularity}, {symmetry}'


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


WEIGHT_LEVELS = {
    'w8': QuantScheme(8, PerChannel()),
    'w4': QuantScheme(4, PerGroup(64)),
}
"""Precision level of a policy -> scheme of its weights."""
