"""
Four bytes at a time: codes taken apart and turned into operands of a matrix instruction.

The compiler would handle byte after byte. These few lines of PTX keep four of them in a register,
which makes unpacking two to six times shorter. Nothing moves between lanes: byte i of a result
belongs to byte i of the arguments, and 16-bit results come out in the same order.

A byte is the two's complement of what it stands for, so 8-bit units take it as it is. Floats are
made without a conversion instruction: a byte put under the right exponent bits is that number plus
a constant, which is subtracted again. All of it is exact.

    float16     0x6400 | u  = 1024 + u                 u = byte + 128
    bfloat16    0x4300 | u  = 128 + u                  u = byte / 2 + 64, for even bytes
                0x4B000000 | u = 2**23 + u as float32  u = byte + 128, for odd ones
"""

import triton
import triton.language as tl

LEFT = tl.constexpr('{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }')
RIGHT = tl.constexpr('and.b32 $0, $1, 0xF0F0F0F0;')
LEFT_BYTE = tl.constexpr(
    '{ .reg .b32 t, u; shl.b32 t, $1, 4; and.b32 t, t, 0xF0F0F0F0; '
    'and.b32 u, $2, 0x0F0F0F0F; or.b32 $0, t, u; }'
)
RIGHT_BYTE = tl.constexpr(
    '{ .reg .b32 t, u; and.b32 t, $1, 0xF0F0F0F0; shr.b32 u, $2, 4; '
    'and.b32 u, u, 0x0F0F0F0F; or.b32 $0, t, u; }'
)
TOP_CRUMB = tl.constexpr('{ .reg .b32 t; and.b32 t, $1, 0xC0C0C0C0; or.b32 $0, t, 0x20202020; }')
NEXT_CRUMB = tl.constexpr('shl.b32 $0, $1, 2;')
FLOAT16 = tl.constexpr(
    '{ .reg .b32 u, a, b, c; xor.b32 u, $2, 0x80808080; mov.b32 c, 0x64806480; '
    'prmt.b32 a, u, 0x64646464, 0x4140; prmt.b32 b, u, 0x64646464, 0x4342; '
    'sub.f16x2 a, a, c; sub.f16x2 b, b, c; '
    'add.f16x2 $0, a, $3; add.f16x2 $1, b, $4; }'
)
BFLOAT16 = tl.constexpr(
    '{ .reg .b32 u, a, b, c, d; xor.b32 u, $2, 0x80808080; '
    'prmt.b32 a, u, 0x4B000000, 0x7650; prmt.b32 b, u, 0x4B000000, 0x7651; '
    'prmt.b32 c, u, 0x4B000000, 0x7652; prmt.b32 d, u, 0x4B000000, 0x7653; '
    'sub.f32 a, a, 0f4B000080; sub.f32 b, b, 0f4B000080; '
    'sub.f32 c, c, 0f4B000080; sub.f32 d, d, 0f4B000080; '
    'cvt.rn.bf16x2.f32 $0, b, a; cvt.rn.bf16x2.f32 $1, d, c; }'
)
EVEN_BFLOAT16 = tl.constexpr(
    '{ .reg .b32 u, a, b, one, two, c; mov.b32 one, 0x3F803F80; mov.b32 two, 0x40004000; '
    'mov.b32 c, 0xC340C340; '  # -192
    'shr.b32 u, $2, 1; and.b32 u, u, 0x7F7F7F7F; xor.b32 u, u, 0x40404040; '
    'prmt.b32 a, u, 0x43434343, 0x4140; prmt.b32 b, u, 0x43434343, 0x4342; '
    'fma.rn.bf16x2 a, a, one, c; fma.rn.bf16x2 b, b, one, c; '
    'fma.rn.bf16x2 $0, a, two, $3; fma.rn.bf16x2 $1, b, two, $4; }'
)
FLOAT_CONSTRAINTS = tl.constexpr('=r,=r,r,r,r')


@triton.jit
def _bytes(ASM: tl.constexpr, byte):
    return tl.inline_asm_elementwise(ASM, '=r,r', [byte], tl.uint8, is_pure=True, pack=4)


@triton.jit
def _bytes_of_two(ASM: tl.constexpr, first, second):
    return tl.inline_asm_elementwise(
        ASM, '=r,r,r', [first, second], tl.uint8, is_pure=True, pack=4
    )


@triton.jit
def left(high):
    """Return 16 * (q - 8) of the inputs in low nibbles."""
    return _bytes(LEFT, high)


@triton.jit
def right(high):
    """Return 16 * (q - 8) of the inputs in high nibbles."""
    return _bytes(RIGHT, high)


@triton.jit
def left_byte(high, low):
    """Return q - 128 of the inputs in low nibbles, from both planes."""
    return _bytes_of_two(LEFT_BYTE, high, low)


@triton.jit
def right_byte(high, low):
    """Return q - 128 of the inputs in high nibbles, from both planes."""
    return _bytes_of_two(RIGHT_BYTE, high, low)


@triton.jit
def top_crumb(packed):
    """Return 64 * (q - 1.5) of the code in the two top bits."""
    return _bytes(TOP_CRUMB, packed)


@triton.jit
def next_crumb(packed):
    """Return the bytes with the next code on top; what lies below the codes is worthless."""
    return _bytes(NEXT_CRUMB, packed)


@triton.jit
def operand(byte, TYPE: tl.constexpr):
    """Return bytes in two's complement as a type of the matrix units."""
    if tl.int8 == TYPE:
        return byte.to(tl.int8, bitcast=True)
    zero = tl.full((1, 1), 0.0, TYPE)
    if tl.float16 == TYPE:
        return _floats(FLOAT16, byte, zero)
    return _floats(BFLOAT16, byte, zero)


@triton.jit
def even_operand(byte, offset, TYPE: tl.constexpr):
    """Return even bytes as a type of the matrix units; floats have `offset`, 0 or 7.5, added."""
    if tl.int8 == TYPE:
        return byte.to(tl.int8, bitcast=True)
    added = tl.full((1, 1), 0.0, tl.float32) + offset
    if tl.float16 == TYPE:
        return _floats(FLOAT16, byte, added.to(TYPE))
    return _floats(EVEN_BFLOAT16, byte, added.to(TYPE))


@triton.jit
def _floats(ASM: tl.constexpr, byte, added):
    return tl.inline_asm_elementwise(
        ASM, FLOAT_CONSTRAINTS, [byte, added], added.dtype, is_pure=True, pack=4
    )
