"""
A mixed-width weight as the GPU kernel reads it, and back.

Stored rows of one width are cut into tiles of 64 channels, the last one filled up with rows of
zeros that no channel owns. Inputs are padded to a multiple of 128. A tile lies in one piece, in
the order in which the kernel walks along the inputs:

    width   tensor      shape                         a byte holds, low bits first
      16    values16    bf16  [tiles, k / 64, 64, 64]    -
    8, 4    high        uint8 [tiles, k / P, 64, P / 2]  high nibbles of inputs j, j + P/2
       8    low         uint8 [tiles, k / P, 64, P / 2]  low nibbles of the same two inputs
       2    codes2      uint8 [tiles, k / 128, 64, 32]   inputs j + 96, + 64, + 32, + 0

with P = 128 inputs, or 64 where a group of scales is not a multiple of 64. Pairing distant inputs
lets one byte feed two matrix products without moving values between threads. The top bit of
`high` is flipped: high and low nibble put together are the two's complement of q - 128, and the
high nibble alone, shifted up, is 16 * (q - 8) of a 4-bit code. So the cap of an 8-bit channel is a
matter of not reading `low`.

The top bit of a 2-bit code is flipped as well. Scales are float16 [tiles, groups of the padded
inputs, 64]. `channels` int32 [all tiles, 64] names the output channel of each row, -1 for none;
the pruned channels are the last tiles, without codes. The two `tiles` tables, for programs of 64
and of 128 channels, have a line per program: width, first tile, number of tiles, first tile of
codes, first tile of scales. `arrivals` counts the programs that finished a part of a sum; it is
zero between calls.

Padding costs at most 63 rows for each width that occurs, and 127 inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlaq_ros.quant import packing
from vlaq_ros.quant.layout import CODE_WIDTHS, STORED_WIDTHS, MixedLayout
from vlaq_ros.quant.mixed import MixedWeight

TILE = 64  # channels
STEP = 128  # inputs
WIDE_STEP = 64  # inputs of a 16-bit tile
SMALLEST_GROUP = 32  # inputs of one integer matrix instruction
PROGRAM_CHANNELS = (TILE, 2 * TILE)


class Store(NamedTuple):
    """The tensors of a packed weight; the module docstring draws them."""

    values16: Tensor
    high: Tensor
    low: Tensor
    codes2: Tensor
    scale: Tensor
    channels: Tensor
    tiles: Tensor
    double_tiles: Tensor
    arrivals: Tensor


def paired_inputs(layout: MixedLayout) -> int:
    """Return P, the inputs whose nibbles share bytes."""
    return STEP if scale_group(layout) % 64 == 0 else STEP // 2


def scale_group(layout: MixedLayout) -> int:
    """Return the inputs that share a scale, 0 when all of them do."""
    return 0 if layout.groups == 1 else layout.group_size


def padded_inputs(layout: MixedLayout) -> int:
    """Return the number of inputs rounded up to whole steps."""
    return -(-layout.shape[1] // STEP) * STEP


def _scales(layout: MixedLayout) -> int:
    """Return the groups that the padded inputs of a channel have."""
    return -(-padded_inputs(layout) // layout.group_size) if layout.groups > 1 else 1


def pack(weight: MixedWeight) -> Store:
    """Return the tiles of a weight, on its device."""
    layout = weight.layout
    inputs, pair = padded_inputs(layout), paired_inputs(layout)
    codes = {
        bits: packing.unpack(getattr(weight, f'codes{bits}'), bits, layout.shape[1])
        for bits in CODE_WIDTHS
    }
    nibbles = {
        8: (codes[8] >> 4) ^ 8,
        4: codes[4] ^ 8,
    }
    high = [_interleave(_tiled(part, inputs), pair, 4) for part in nibbles.values()]
    scale = weight.scale.split(layout.counts[1:])
    tiles = _program_table(layout, 1)
    return Store(
        values16=_walk(_tiled(weight.values16, inputs), WIDE_STEP),
        high=torch.cat(high),
        low=_interleave(_tiled(codes[8] & 15, inputs), pair, 4),
        codes2=_interleave(_tiled(codes[2] ^ 2, inputs), STEP, 2, first_on_top=True),
        scale=torch.cat([_tiled(part, _scales(layout)).mT for part in scale]).contiguous(),
        channels=_channels(weight),
        tiles=tiles.to(weight.order.device),
        double_tiles=_program_table(layout, 2).to(weight.order.device),
        arrivals=torch.zeros(len(tiles), dtype=torch.int32, device=weight.order.device),
    )


def unpack(tensors: tuple[Tensor, ...], layout: MixedLayout) -> MixedWeight:
    """Return the weight that the tiles were packed from, bit by bit."""
    store, pair, columns = Store(*tensors), paired_inputs(layout), layout.shape[1]
    counts = dict(zip(STORED_WIDTHS, layout.counts))
    tiles8 = _tiles(counts[8])

    def codes(
        tensor: Tensor, bits: int, inputs: int, rows: int, first_on_top: bool = False
    ) -> Tensor:
        return _rows(_separate(tensor, bits, inputs, first_on_top), rows)[:, :columns]

    high8 = codes(store.high[:tiles8], 4, pair, counts[8]) ^ 8
    each = {
        8: high8 << 4 | codes(store.low, 4, pair, counts[8]),
        4: codes(store.high[tiles8:], 4, pair, counts[4]) ^ 8,
        2: codes(store.codes2, 2, STEP, counts[2], first_on_top=True) ^ 2,
    }
    packed = {
        f'codes{bits}': packing.pack(part, bits)
        if part.numel()
        else part.new_empty(layout.tensors()[f'codes{bits}'][1])
        for bits, part in each.items()
    }
    scale = store.scale.mT.split([_tiles(counts[bits]) for bits in CODE_WIDTHS])
    order = store.channels[: sum(map(_tiles, layout.counts))].flatten()
    values16 = store.values16.transpose(1, 2).flatten(2)
    return MixedWeight(
        layout,
        order=order[order >= 0],
        values16=_rows(values16, counts[16])[:, :columns].contiguous(),
        **packed,
        scale=torch.cat(
            [
                _rows(part, counts[bits])[:, : layout.groups]
                for bits, part in zip(CODE_WIDTHS, scale)
            ]
        ),
    )


def _tiles(rows: int) -> int:
    return -(-rows // TILE)


def _tiled(rows: Tensor, columns: int) -> Tensor:
    """Return [tiles, 64, columns] for [rows, fewer columns], filled up with zeros."""
    filled = pad(rows, (0, columns - rows.shape[1], 0, -len(rows) % TILE))
    return filled.reshape(-1, TILE, columns)


def _rows(tiles: Tensor, count: int) -> Tensor:
    """Return the first `count` rows of [tiles, 64, columns]."""
    return tiles.flatten(0, 1)[:count]


def _walk(tiles: Tensor, inputs: int) -> Tensor:
    """Return [tiles, steps, 64, inputs] for [tiles, 64, steps * inputs]."""
    return tiles.unflatten(2, (-1, inputs)).transpose(1, 2).contiguous()


def _shifts(bits: int, first_on_top: bool) -> list[int]:
    """Return where the parts of a byte begin, in the order of the inputs."""
    shifts = list(range(0, 8, bits))
    return shifts[::-1] if first_on_top else shifts


def _interleave(tiles: Tensor, inputs: int, bits: int, first_on_top: bool = False) -> Tensor:
    """Return bytes [tiles, steps, 64, inputs * bits / 8] for codes [tiles, 64, columns]."""
    parts = _walk(tiles, inputs).unflatten(3, (8 // bits, -1)).unbind(3)
    packed = torch.zeros_like(parts[0])
    for shift, part in zip(_shifts(bits, first_on_top), parts):
        packed |= part << shift
    return packed


def _separate(packed: Tensor, bits: int, inputs: int, first_on_top: bool) -> Tensor:
    """Return codes [tiles, 64, columns]; the inverse of `_interleave`."""
    mask = 2**bits - 1
    parts = [packed >> shift & mask for shift in _shifts(bits, first_on_top)]
    steps = torch.stack(parts, 3).flatten(3)  # [tiles, steps, 64, inputs]
    assert steps.shape[3] == inputs
    return steps.transpose(1, 2).flatten(2)


def _channels(weight: MixedWeight) -> Tensor:
    """Return the output channel of each row of each tile, int32 [all tiles, 64]."""
    pruned = (weight.widths() == 0).nonzero().flatten().to(torch.int32)
    parts = (*weight.order.split(weight.layout.counts), pruned)
    filled = [pad(part, (0, -len(part) % TILE), value=-1) for part in parts]
    return torch.cat(filled).reshape(-1, TILE).contiguous()


def _program_table(layout: MixedLayout, most: int) -> Tensor:
    """Return one line per program of up to `most` tiles of one width, int32 [programs, 5]."""
    sizes = [_tiles(count) for count in layout.counts]
    starts = {16: 0, 8: sizes[0], 4: sizes[0], 2: sum(sizes[:3]), 0: sum(sizes)}  # of the codes
    lines, first = [], 0
    for bits, size in zip((*STORED_WIDTHS, 0), (*sizes, _tiles(layout.pruned))):
        end = first + size
        while first < end:
            count = min(most, end - first)
            lines.append((bits, first, count, first - starts[bits], max(0, first - sizes[0])))
            first += count
    return torch.tensor(lines, dtype=torch.int32)
