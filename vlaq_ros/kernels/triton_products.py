"""
Sums of products of a tile of channels and a tile of tokens: one function per way of storing.

All return float32 [channels, tokens] with the scales applied. Inputs come as a pointer and the
offset of each token; TYPE is what is multiplied: int8 for rounded activations, else a 16-bit
float. A scale per step is loaded one step ahead by hand, since the compiler loads only operands of
a product ahead of their use; two per step would cost too many registers.
"""

import triton
import triton.language as tl

from vlaq_ros.kernels.triton_bytes import (
    even_operand,
    left,
    left_byte,
    next_crumb,
    operand,
    right,
    right_byte,
    top_crumb,
)


@triton.jit
def rows(first, count, tile_size, row_size, CHANNELS: tl.constexpr):
    """Return where the rows of `count` tiles begin; rows of a tile that is not there repeat."""
    row = tl.arange(0, CHANNELS)
    tile = tl.minimum(row // 64, count - 1) + first
    return tile.to(tl.int64) * tile_size + (row % 64) * row_size


@triton.jit
def _inputs(
    source,
    token_offsets,
    is_token,
    start,
    columns,
    COUNT: tl.constexpr,
    TYPE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """
    Return inputs start, start + 1, ... of each token as [COUNT, tokens].

    What is not there is 0 and not loaded: one token costs the traffic of one, not of a tile.
    """
    k = start + tl.arange(0, COUNT)
    where = source + token_offsets[None, :] + k[:, None]
    is_there = is_token[None, :]
    if RAGGED:
        is_there = is_there & (k < columns)[:, None]
    return tl.load(where, mask=is_there, other=0).to(TYPE)


@triton.jit
def _scales(scale_rows, start, GROUP: tl.constexpr):
    """Return the scale of each channel for the group of input `start`, [channels, 1]."""
    group = start // GROUP if GROUP else 0
    return tl.load(scale_rows + group * 64).to(tl.float32)[:, None]


@triton.jit
def nibble_product(
    source,
    token_offsets,
    is_token,
    columns,
    high_rows,
    low_rows,
    scale_rows,
    offset,
    first,
    last,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    PAIR: tl.constexpr,
    BOTH: tl.constexpr,
    TYPE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """
    Return the sums over inputs [first, last) * PAIR.

    With BOTH planes of q - 128; of the high one alone of 16 * (q - 8), plus `offset` with floats.
    """
    HALF: tl.constexpr = PAIR // 2
    SUM: tl.constexpr = tl.int32 if tl.int8 == TYPE else tl.float32
    byte = tl.arange(0, HALF)
    total = tl.zeros((CHANNELS, TOKENS), SUM if GROUP == 0 else tl.float32)
    next_scale = _scales(scale_rows, first * PAIR, GROUP)
    for pair in range(first, last):
        start = pair * PAIR
        scale = next_scale
        if GROUP % PAIR > 0:
            scale = _scales(scale_rows, start, GROUP)
            scale_right = _scales(scale_rows, start + HALF, GROUP)
        elif GROUP > 0:
            next_scale = _scales(scale_rows, tl.minimum(pair + 1, last - 1) * PAIR, GROUP)
        where = pair * 64 * HALF + byte[None, :]
        high = tl.load(high_rows[:, None] + where)
        x_left = _inputs(source, token_offsets, is_token, start, columns, HALF, TYPE, RAGGED)
        x_right = _inputs(
            source, token_offsets, is_token, start + HALF, columns, HALF, TYPE, RAGGED
        )
        if BOTH:
            low = tl.load(low_rows[:, None] + where)
            w_left = operand(left_byte(high, low), TYPE)
            w_right = operand(right_byte(high, low), TYPE)
        else:
            w_left = even_operand(left(high), offset, TYPE)
            w_right = even_operand(right(high), offset, TYPE)
        if GROUP == 0:
            total = tl.dot(w_left, x_left, total, out_dtype=SUM)
            total = tl.dot(w_right, x_right, total, out_dtype=SUM)
        elif GROUP % PAIR == 0:
            part = tl.dot(w_left, x_left, out_dtype=SUM)
            part = tl.dot(w_right, x_right, part, out_dtype=SUM)
            total += part.to(tl.float32) * scale
        else:
            part = tl.dot(w_left, x_left, out_dtype=SUM)
            total += part.to(tl.float32) * scale
            part = tl.dot(w_right, x_right, out_dtype=SUM)
            total += part.to(tl.float32) * scale_right
    result = total.to(tl.float32)
    if GROUP == 0:
        result = result * next_scale
    return result


@triton.jit
def crumb_product(
    source,
    token_offsets,
    is_token,
    columns,
    code_rows,
    scale_rows,
    first,
    last,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    TYPE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Return the sums over inputs [first, last) * 128 of 64 * (q - 1.5), of 2-bit codes."""
    SUM: tl.constexpr = tl.int32 if tl.int8 == TYPE else tl.float32
    byte = tl.arange(0, 32)
    total = tl.zeros((CHANNELS, TOKENS), SUM if GROUP == 0 else tl.float32)
    next_scale = _scales(scale_rows, first * 128, GROUP)
    for step in range(first, last):
        start = step * 128
        scale = next_scale
        if GROUP > 0:
            next_scale = _scales(scale_rows, tl.minimum(step + 1, last - 1) * 128, GROUP)
        packed = tl.load(code_rows[:, None] + step * 64 * 32 + byte[None, :])
        part = tl.zeros((CHANNELS, TOKENS), SUM)
        for quarter in tl.static_range(4):
            at = start + quarter * 32
            levels = even_operand(top_crumb(packed), 0.0, TYPE)
            packed = next_crumb(packed)
            x_part = _inputs(source, token_offsets, is_token, at, columns, 32, TYPE, RAGGED)
            if GROUP == 0:
                total = tl.dot(levels, x_part, total, out_dtype=SUM)
            elif GROUP % 128 == 0:
                part = tl.dot(levels, x_part, part, out_dtype=SUM)
            else:
                part = tl.dot(levels, x_part, out_dtype=SUM)
                total += part.to(tl.float32) * _scales(scale_rows, at, GROUP)
        if GROUP > 0 and GROUP % 128 == 0:
            total += part.to(tl.float32) * scale
    result = total.to(tl.float32)
    if GROUP == 0:
        result = result * next_scale
    return result


@triton.jit
def wide_product(
    source,
    token_offsets,
    is_token,
    columns,
    value_rows,
    first,
    last,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Return the sums over inputs [first, last) * 128 of bfloat16 weights, which have no scale."""
    k = tl.arange(0, 64)
    total = tl.zeros((CHANNELS, TOKENS), tl.float32)
    for step in range(first * 2, last * 2):
        values = tl.load(value_rows[:, None] + step * 64 * 64 + k[None, :])
        x_part = _inputs(
            source, token_offsets, is_token, step * 64, columns, 64, tl.bfloat16, RAGGED
        )
        total = tl.dot(values, x_part, total)
    return total


@triton.jit
def middle_of_capped(
    sums,
    tokens,
    scale_rows,
    first,
    last,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
):
    """
    Return what the low nibbles that a cap leaves out are worth, at their mean of 7.5.

    For integer activations, from the sums of their codes over SUM inputs: a signed byte has no
    room for the half. Floats get it with every weight.
    """
    total = tl.zeros((CHANNELS, TOKENS), tl.float32)
    BLOCKS: tl.constexpr = 128 // SUM
    for block in range(first * BLOCKS, last * BLOCKS):
        codes = tl.load(sums + block * tokens).to(tl.float32)
        total += codes[None, :] * _scales(scale_rows, block * SUM, GROUP)
    return total * 7.5


@triton.jit
def not_a_number(
    source,
    token_offsets,
    is_token,
    columns,
    first,
    last,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Return zeros, and NaN for tokens with a value that is not finite: for pruned channels."""
    total = tl.zeros((CHANNELS, TOKENS), tl.float32)
    for step in range(first, last):
        values = _inputs(
            source, token_offsets, is_token, step * 128, columns, 128, tl.float32, RAGGED
        )
        total += tl.sum(values * 0.0, axis=0)[None, :]
    return total
