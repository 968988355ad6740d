"""The kernels of this package as contenders: every width, the cap, and mixes."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlaq_ros.bench.contenders import Call, Contender, Refusal, gather
from vlaq_ros.bench.floors import Work, mixed_work
from vlaq_ros.bench.stopwatch import copies_for
from vlaq_ros.kernels.kernel import Kernel
from vlaq_ros.kernels.select import select_kernel
from vlaq_ros.quant.layout import STORED_WIDTHS
from vlaq_ros.quant.mixed import MixedWeight

MIX_WIDE = 'mix 0/4/8/16'
MIX_NARROW = 'mix 2/4/8'
CAPPED = 'W8A8 capped to 4'
BF16_ROWS = 'bf16 rows'
PRUNED = 'all pruned'


class Variant(NamedTuple):
    """
    One row of the tables.

    Attributes:
        name: As printed.
        shares: Width -> share of the output channels.
        cap: 4 reads only the high nibble of 8-bit channels.
        activation_bits: 8 or 16; 16-bit channels always see bfloat16.
    """

    name: str
    shares: dict[int, float]
    cap: int = 8
    activation_bits: int = 8


VARIANTS = (
    Variant('W2A8', {2: 1.0}),
    Variant('W4A8', {4: 1.0}),
    Variant('W8A8', {8: 1.0}),
    Variant(CAPPED, {8: 1.0}, cap=4),
    Variant(BF16_ROWS, {16: 1.0}),
    Variant(PRUNED, {0: 1.0}),
    Variant(MIX_WIDE, {0: 0.05, 4: 0.70, 8: 0.20, 16: 0.05}),
    Variant(MIX_NARROW, {2: 0.20, 4: 0.60, 8: 0.20}),
    Variant('W4A16', {4: 1.0}, activation_bits=16),
    Variant('W8A16', {8: 1.0}, activation_bits=16),
)


def own_contenders(weight: Tensor) -> list[Contender | Refusal]:
    """Return all variants of a float32 weight [out, in], packed for the CPU kernel in use."""
    stores: dict[tuple, tuple[Kernel, MixedWeight, list]] = {}

    def make(variant: Variant) -> Contender:
        key = tuple(variant.shares.items())
        if key not in stores:  # the same store serves every cap and activation width
            stores[key] = _pack(weight, variant.shares)
        return _contender(variant, *stores[key])

    return gather('own', {v.name: lambda v=v: make(v) for v in VARIANTS})


GROUP_SIZE = 128
"""Inputs that share a scale in our own layers; the last group may be short."""


def group_size_for(in_features: int) -> int:
    """Return the group of rivals: 128, or 64 where 128 does not divide the inputs."""
    return GROUP_SIZE if in_features % GROUP_SIZE == 0 else 64


def channel_widths(shares: dict[int, float], out_features: int) -> list[int]:
    """Return a width per output channel: the given shares in a fixed random order."""
    widths = []
    for width, share in shares.items():
        widths += [width] * round(share * out_features)
    widths = (widths + [max(shares, key=shares.get)] * out_features)[:out_features]
    order = torch.randperm(out_features, generator=torch.Generator().manual_seed(0))
    return [widths[i] for i in order.tolist()]


def kernel_in_use(in_features: int = 128) -> str:
    """Return the reason for the kernel that serves the CPU here."""
    weight = MixedWeight.from_float(torch.ones(16, in_features), [8] * 16, 64)
    return select_kernel(weight.layout, 'cpu').reason


def _pack(weight: Tensor, shares: dict[int, float]) -> tuple[Kernel, MixedWeight, list]:
    out_features, in_features = weight.shape
    widths = channel_widths(shares, out_features)
    mixed = MixedWeight.from_float(weight, widths, GROUP_SIZE)
    kernel = select_kernel(mixed.layout, 'cpu').kernel
    read_bytes = _work(mixed, cap=4).weight_bytes  # cold even where half of an 8-bit store is read
    return kernel, mixed, [kernel.pack(mixed) for _ in range(copies_for(int(read_bytes)))]


def _work(mixed: MixedWeight, cap: int = 8, activation_bits: int = 8) -> Work:
    layout = mixed.layout
    return mixed_work(
        layout.shape[1],
        dict(zip(STORED_WIDTHS, layout.counts)),
        layout.group_size,
        cap=cap,
        activation_bits=activation_bits,
    )


def _contender(variant: Variant, kernel: Kernel, mixed: MixedWeight, copies: list) -> Contender:
    layout = mixed.layout
    precision = torch.tensor([variant.cap, variant.activation_bits], dtype=torch.int32)

    def bind(x: Tensor, tensors: tuple[Tensor, ...]) -> Call:
        return lambda: kernel.run(x, tensors, layout, precision, None)

    work = _work(mixed, variant.cap, variant.activation_bits)
    return Contender(variant.name, 'own', work, copies, bind)
