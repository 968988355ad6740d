"""
What a quantized weight looks like: width, granularity, symmetry, and the activations it meets.

Schemes are frozen values that refuse nonsense when they are built, so nothing downstream checks
them again. Only what an integer kernel can execute can be expressed: weights share a scale per
tensor, per output channel or per group along the input; activations are rounded per token, at run
time. A static scale per input channel does not factor out of an integer product and has no name
here.

`QuantScheme` is the maths of one grid and knows any width; `LayerScheme` is what a layer can hold
in memory: one width per output channel, from `WIDTHS`.
"""

from dataclasses import dataclass, field

from vlaq_ros.errors import SchemeError

MIN_BITS, MAX_BITS = 2, 8
WIDTHS = (0, 2, 4, 8, 16)
"""Widths of an output channel: pruned, three kinds of codes, bfloat16."""
ACTIVATION_BITS = (2, 4, 8, 16)
CLIPS = ('absmax', 'percentile', 'mse')
PERCENTILE = 99.9
"""Share [%] of the weights of a group that a percentile clip leaves unclipped, as published."""


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
    One scale per `group_size` neighbouring weights of an output channel; the last may be fewer.

    Example: a [32, 128] weight in groups of 64 has scales [32, 2], and so has a [32, 100] one.
    """

    group_size: int

    def __post_init__(self) -> None:
        if not _is_int(self.group_size) or self.group_size < 1:
            raise SchemeError(f'group_size={self.group_size!r} must be a positive whole number')

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape [rows, groups] of the scales of a [rows, columns] matrix."""
        return rows, -(-columns // self.group_size)

    def __str__(self) -> str:
        return f'per group of {self.group_size}'


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True)
class QuantScheme:
    """
    How one grid of codes maps to real values.

    Attributes:
        bits: Width of one code, 2 to 8. Codes are unsigned, 0 to `qmax`.
        granularity: Which weights share one scale.
        symmetric: Whether the range is centred on zero, so that `middle` stands for 0.0
            everywhere and no zero points are stored.
        activation_bits: 16 leaves the input as it comes; fewer round every token to that many
            bits with a scale of its own, chosen at run time.

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
        check_activation_bits(self.activation_bits)

    @property
    def qmax(self) -> int:
        """Largest code; the smallest is 0."""
        return 2**self.bits - 1

    @property
    def middle(self) -> float:
        """
        The point of the codes that stands for 0.0 in a symmetric scheme.

        At 2 bits it is 1.5, between two codes: four levels with a zero among them would have only
        one on one side.
        """
        return 1.5 if self.bits == 2 else float(2 ** (self.bits - 1))

    def __str__(self) -> str:
        symmetry = 'symmetric' if self.symmetric else 'asymmetric'
        return f'W{self.bits}A{self.activation_bits} {self.granularity}, {symmetry}'


@dataclass(frozen=True)
class LayerScheme:
    """
    How surgery quantizes one linear layer.

    Attributes:
        widths: Bits of every output channel, or one number for all of them; each from `WIDTHS`.
        group_size: Neighbouring inputs that share a scale, a multiple of 16 (or at least the
            input width); None for one scale per channel.
        activation_bits: What the input is rounded to per token, 16 for not at all.
        clip: Where the range of a group ends: at its largest weight (`absmax`), at a percentile of
            its magnitudes, or where the squared error is least (`mse`).
        percentile: Used by that clip, in percent.

    Raises:
        SchemeError: A value is out of range.
    """

    widths: int | tuple[int, ...]
    group_size: int | None = None
    activation_bits: int = 16
    clip: str = 'absmax'
    percentile: float = PERCENTILE

    def __post_init__(self) -> None:
        if isinstance(self.widths, list):  # as JSON writes it
            object.__setattr__(self, 'widths', tuple(self.widths))
        unknown = sorted(
            {repr(w) for w in self._each_width() if w not in WIDTHS or not _is_int(w)}
        )
        if unknown or not self._each_width():
            raise SchemeError(
                f'widths: {", ".join(unknown) or "none"} given; a channel has one of {WIDTHS} bits'
            )
        if self.group_size is not None:
            PerGroup(self.group_size)
        check_activation_bits(self.activation_bits)
        check_clip(self.clip, self.percentile)

    def channel_widths(self, channels: int) -> tuple[int, ...]:
        """
        Return the bits of each of the output channels of a layer.

        Raises:
            SchemeError: The scheme lists another number of channels.
        """
        if isinstance(self.widths, int):
            return (self.widths,) * channels
        if len(self.widths) != channels:
            raise SchemeError(f'{len(self.widths)} widths for {channels} output channels')
        return self.widths

    def _each_width(self) -> tuple[int, ...]:
        return self.widths if isinstance(self.widths, tuple) else (self.widths,)

    def __str__(self) -> str:
        widths = sorted(set(self._each_width()))
        span = '/'.join(map(str, widths))
        group = 'per channel' if self.group_size is None else f'per group of {self.group_size}'
        return f'W{span}A{self.activation_bits} {group}'


def check_activation_bits(bits: int) -> None:
    """Raise a SchemeError unless activations can be rounded to this many bits."""
    if bits not in ACTIVATION_BITS or not _is_int(bits):
        raise SchemeError(
            f'activation_bits={bits!r} is not supported: use one of {ACTIVATION_BITS}'
        )


def check_clip(clip: str, percentile: float) -> None:
    """Raise a SchemeError unless this way of choosing a range exists."""
    if clip not in CLIPS:
        raise SchemeError(f'clip={clip!r} is not supported: use one of {CLIPS}')
    if not 0.0 < percentile <= 100.0:
        raise SchemeError(f'percentile={percentile!r} must lie above 0 and be at most 100')


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
