"""Rounding of activations on the GPU: one step per token, chosen from the token itself."""

import triton
import triton.language as tl

ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds half to even


@triton.jit(do_not_specialize=['tokens', 'columns', 'padded'])
def quantize_tokens(
    x,
    codes,
    steps,
    sums,
    precision,
    tokens,
    columns,
    padded,
    x_stride,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    Round one token per program to 8, 4 or 2 bits, symmetric; do nothing at 16.

    Writes codes int8 [tokens, padded], the step of each token float32 [tokens] (NaN when a value
    is not finite) and the sums of SUM neighbouring codes int32 [padded / SUM, tokens].
    """
    bits = tl.load(precision + 1)
    if bits < 16:
        token = tl.program_id(0).to(tl.int64)
        row = x + token * x_stride
        inputs = tl.arange(0, BLOCK)
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, columns, BLOCK):
            values = tl.load(row + start + inputs, mask=start + inputs < columns, other=0.0)
            size = tl.abs(values.to(tl.float32))
            largest = tl.maximum(largest, tl.where(size < float('inf'), size, float('inf')))
        largest = tl.max(largest, axis=0)
        is_finite = largest < float('inf')
        limit = tl.where(bits == 8, 127.0, tl.where(bits == 4, 7.0, 1.0))
        step = tl.math.div_rn(largest, limit)
        tl.store(steps + token, tl.where(is_finite, step, float('nan')))
        divisor = tl.where(is_finite & (step > 0.0), step, 1.0)
        for start in range(0, padded, BLOCK):
            values = tl.load(row + start + inputs, mask=start + inputs < columns, other=0.0)
            values = tl.where(is_finite, values.to(tl.float32), 0.0)
            code = tl.math.div_rn(values, tl.full((BLOCK,), 1.0, tl.float32) * divisor)
            code = (code + ROUNDING) - ROUNDING
            code = tl.minimum(tl.maximum(code, -limit), limit).to(tl.int32)
            is_inside = start + inputs < padded
            tl.store(codes + token * padded + start + inputs, code.to(tl.int8), mask=is_inside)
            total = tl.sum(tl.reshape(code, (BLOCK // SUM, SUM)), axis=1)
            block = start // SUM + tl.arange(0, BLOCK // SUM)
            tl.store(sums + block * tokens + token, total, mask=block < padded // SUM)
