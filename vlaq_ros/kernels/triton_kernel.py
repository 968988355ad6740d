"""
The GPU kernel: one launch multiplies by a layer whose channels have different widths.

    y[m, n] = step[m] * sum_g scale[n, g] * (sum_{k in g} code[n, k] * x'[m, k]) + bias[n]

A program computes 64 or 128 channels of one width for up to 128 tokens. It reads the width from a
table, and cap and activation bits from memory, so a captured CUDA graph follows a change of either
without being captured again. Channels lie along the rows of the matrix instruction and tokens
along its columns: weights are unpacked in registers and go straight into the product, and few
tokens waste little of it.

    activations      units                    x'
    16 bits          float16 or bfloat16      x as it comes; float32 is rounded to bfloat16
    8, 4, 2 bits     8-bit integers           codes of `quantize_tokens`, which then have a step

Codes of weights are exact in either type, products of a group are summed without rounding in the
integer case and in float32 otherwise, and the scale is applied to the sum of a group. With few
tokens several programs share the inputs of one tile; the last one to arrive adds the parts in
their order, so a result does not depend on which one that was.

`triton_format` draws the weights. Nothing here allocates, synchronizes or chooses; `gpu` does.
"""

import triton
import triton.language as tl

from vlaq_ros.kernels.triton_products import (
    crumb_product,
    middle_of_capped,
    nibble_product,
    not_a_number,
    rows,
    wide_product,
)


@triton.jit
def coded_product(
    source,
    token_offsets,
    is_token,
    columns,
    high,
    low,
    codes2,
    scale_rows,
    code_tile,
    count,
    steps,
    first,
    last,
    width,
    cap,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    PAIR: tl.constexpr,
    TYPE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Return the sums of 8-, 4- or 2-bit channels over inputs [first, last) * 128."""
    BYTES: tl.constexpr = PAIR // 2  # of a row, in a pair of halves
    PAIRS: tl.constexpr = 128 // PAIR
    if width == 2:
        crumb_rows = codes2 + rows(code_tile, count, steps * (64 * 32), 32, CHANNELS)
        total = crumb_product(
            *(source, token_offsets, is_token, columns, crumb_rows, scale_rows, first, last),
            *(CHANNELS, TOKENS, GROUP, TYPE, RAGGED),
        )
        total *= 1.0 / 64.0
    else:
        where = rows(code_tile, count, steps * (PAIRS * 64 * BYTES), BYTES, CHANNELS)
        high_rows = high + where
        if width == 8 and cap == 8:
            total = nibble_product(
                *(source, token_offsets, is_token, columns, high_rows, low + where, scale_rows),
                *(0.0, first * PAIRS, last * PAIRS),
                *(CHANNELS, TOKENS, GROUP, PAIR, True, TYPE, RAGGED),
            )
        else:
            middle = tl.where(width == 8, 7.5, 0.0)
            total = nibble_product(
                *(source, token_offsets, is_token, columns, high_rows, high_rows, scale_rows),
                *(middle, first * PAIRS, last * PAIRS),
                *(CHANNELS, TOKENS, GROUP, PAIR, False, TYPE, RAGGED),
            )
            total *= tl.where(width == 8, 1.0, 1.0 / 16.0)
    return total


@triton.jit(do_not_specialize=['tokens', 'steps', 'steps_per_part', 'parts', 'groups'])
def multiply(
    x,
    x_codes,
    x_steps,
    x_sums,
    values16,
    high,
    low,
    codes2,
    scale,
    channels,
    tiles,
    arrivals,
    partial_sums,
    bias,
    y,
    precision,
    tokens,
    columns,
    channels_out,
    x_stride,
    steps,
    steps_per_part,
    parts,
    groups,
    TYPE: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    PAIR: tl.constexpr,
    SUM: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """
    Compute a tile of channels for a tile of tokens, or when IS_SPLIT a part of its sum.

    Grid: (tiles of tokens, programs of channels, parts). Sizes: `steps` of 128 inputs, of which a
    part takes `steps_per_part`; TYPE is what 16-bit activations are multiplied in.
    """
    program = tl.program_id(1)
    line = tiles + program * 5
    width, first_tile, count = tl.load(line), tl.load(line + 1), tl.load(line + 2)
    code_tile, scale_tile = tl.load(line + 3), tl.load(line + 4)
    cap, is_rounded = tl.load(precision), HAS_CODES and tl.load(precision + 1) < 16
    part = tl.program_id(2)
    first = part * steps_per_part
    last = tl.minimum(first + steps_per_part, steps)

    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_token = token < tokens
    token = tl.minimum(token, tokens - 1)
    x_at = token.to(tl.int64) * x_stride
    if width == 16:
        value_rows = values16 + rows(code_tile, count, steps * (128 * 64), 64, CHANNELS)
        total = wide_product(
            x, x_at, is_token, columns, value_rows, first, last, CHANNELS, TOKENS, RAGGED
        )
    elif width > 0:
        scale_rows = scale + rows(scale_tile, count, groups * 64, 1, CHANNELS)
        if is_rounded:
            codes_at = token.to(tl.int64) * (steps * 128)
            total = coded_product(
                *(x_codes, codes_at, is_token, columns, high, low, codes2, scale_rows),
                *(code_tile, count, steps, first, last, width, cap),
                *(CHANNELS, TOKENS, GROUP, PAIR, tl.int8, False),
            )
            if width > cap:
                sums = x_sums + token
                total += middle_of_capped(
                    sums, tokens, scale_rows, first, last, CHANNELS, TOKENS, GROUP, SUM
                )
        else:
            total = coded_product(
                *(x, x_at, is_token, columns, high, low, codes2, scale_rows),
                *(code_tile, count, steps, first, last, width, cap),
                *(CHANNELS, TOKENS, GROUP, PAIR, TYPE, RAGGED),
            )
    elif is_rounded:
        total = tl.zeros((CHANNELS, TOKENS), tl.float32)  # the step of a broken token is NaN
    else:
        total = not_a_number(x, x_at, is_token, columns, first, last, CHANNELS, TOKENS, RAGGED)

    is_last = True
    if IS_SPLIT:
        own = tl.arange(0, TOKENS)[None, :] * CHANNELS + tl.arange(0, CHANNELS)[:, None]
        size = CHANNELS * TOKENS
        place = partial_sums + program.to(tl.int64) * (parts * size)
        tl.store(place + part * size + own, total, mask=is_token[None, :])
        tl.debug_barrier()  # every thread has written before one of them says so
        is_last = tl.atomic_add(arrivals + program, 1, sem='acq_rel', scope='gpu') == parts - 1
        if is_last:
            tl.store(arrivals + program, 0)
            total = tl.zeros((CHANNELS, TOKENS), tl.float32)
            for other in range(parts):
                there = place + other * size + own
                mask = is_token[None, :]
                total += tl.load(there, mask=mask, other=0.0, cache_modifier='.cg')
    if is_last:
        if is_rounded and width != 16:
            total *= tl.load(x_steps + token)[None, :]
        total = tl.where(tl.abs(total) < float('inf'), total, float('nan'))
        row = tl.arange(0, CHANNELS)
        channel = tl.load(channels + first_tile * 64 + row, mask=row < count * 64, other=-1)
        is_channel = channel >= 0
        if HAS_BIAS:
            total += tl.load(bias + channel, mask=is_channel, other=0.0)[:, None]
        where = y + token.to(tl.int64)[None, :] * channels_out + channel[:, None]
        is_stored = is_channel[:, None] & is_token[None, :]
        tl.store(where, total.to(y.dtype.element_ty), mask=is_stored)
