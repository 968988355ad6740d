"""
The GPU kernel against the definition, computed on the CPU by Triton's interpreter.

The interpreter has to be chosen before Triton is imported, so these tests skip themselves in an
ordinary run, and `test_triton.py` runs this file in a process of its own. By hand:

    TRITON_INTERPRET=1 python3 -m pytest test/kernels/test_triton_numerics.py
"""

import os

import numpy as np
import pytest
import torch

if os.environ.get('TRITON_INTERPRET') != '1':
    pytest.skip('needs TRITON_INTERPRET=1; test_triton.py sets it', allow_module_level=True)
pytest.importorskip('triton')

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from vlaq_ros.kernels import gpu, triton_format  # noqa: E402
from vlaq_ros.kernels.triton_bytes import even_operand, operand  # noqa: E402
from vlaq_ros.quant.error import sqnr_db  # noqa: E402

ALL_WIDTHS = [0, 2, 4, 8, 16, 4, 4, 8]
EXACT_DB = 95


@triton.jit
def convert(byte, result, COLUMNS: tl.constexpr, EVEN: tl.constexpr, offset):
    """Store what the bytes [4, COLUMNS] are as operands of the type of the result."""
    at = tl.arange(0, 4)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if EVEN:
        tl.store(result + at, even_operand(tl.load(byte + at), offset, result.dtype.element_ty))
    else:
        tl.store(result + at, operand(tl.load(byte + at), result.dtype.element_ty))


class Assembly:
    """
    The result of inline PTX: the few instructions of `triton_bytes`, on NumPy words.

    Triton's interpreter runs none, and the code is worth checking without a GPU. Elements are
    packed into 32-bit registers as the documentation of `inline_asm_elementwise` says, the first
    in the lowest bits.
    """

    def __init__(self, text, handles, result_type, pack):
        self._results, self._type = [], result_type
        self._pack = pack
        shape = np.broadcast_shapes(*(handle.data.shape for handle in handles))
        words = []
        for handle in handles:
            flat = np.ascontiguousarray(np.broadcast_to(handle.data, shape)).reshape(-1, pack)
            words += list(flat.view(np.uint32).T)
        width = interpreter._get_np_dtype(result_type).itemsize
        self._outputs = pack * width // 4
        self._registers = {f'${self._outputs + i}': word for i, word in enumerate(words)}
        for line in text.replace('{', '').replace('}', '').split(';'):
            if line.strip() and not line.strip().startswith('.reg'):
                self._step(*line.strip().split(None, 1))
        outputs = [self._registers[f'${i}'] for i in range(self._outputs)]
        data = np.stack(np.broadcast_arrays(*outputs), axis=-1).astype(np.uint32)
        data = data.view(interpreter._get_np_dtype(result_type)).reshape(shape)
        self._handle = interpreter.TensorHandle(data, result_type)

    def get_result(self, index):
        assert index == 0
        return self._handle

    def _step(self, opcode, operands):
        target, *names = [operand.strip() for operand in operands.split(',')]
        values = [self._value(name) for name in names]
        self._registers[target] = OPCODES[opcode](*values)

    def _value(self, name):
        if name.startswith('0f'):
            return np.uint32(int(name[2:], 16))
        return np.uint32(int(name, 0)) if name[0].isdigit() else self._registers[name]


def _select_bytes(a, b, selector):
    words = a, b  # bytes 0 to 3 are of a, 4 to 7 of b
    result = np.uint32(0)
    for i in range(4):
        index = int(selector) >> 4 * i & 7
        byte = words[index // 4] >> np.uint32(8 * (index % 4)) & np.uint32(255)
        result = result | byte << np.uint32(8 * i)
    return result


def _bfloats(words):
    words = np.atleast_1d(words).astype(np.uint32)
    return (words << 16).view(np.float32), (words & np.uint32(0xFFFF0000)).view(np.float32)


def _round_bfloats(low, high):
    low, high = (
        torch.from_numpy(np.ascontiguousarray(half)).bfloat16().view(torch.uint16).numpy()
        for half in (low, high)
    )
    return low.astype(np.uint32) | high.astype(np.uint32) << 16


def _fma_bfloats(a, b, c):
    products = [x.astype(np.float64) * y + z for x, y, z in zip(*map(_bfloats, (a, b, c)))]
    assert all((half == half.astype(np.float32)).all() for half in products)  # rounded once
    return _round_bfloats(*(half.astype(np.float32) for half in products))


def _halves(operation):
    def apply(a, b):
        a, b = np.broadcast_arrays(a.astype(np.uint32), b.astype(np.uint32))
        a, b = (np.ascontiguousarray(word)[..., None].view(np.float16) for word in (a, b))
        return operation(a, b).view(np.uint32)[..., 0]

    return apply


def _convert_pair(high, low):
    return _round_bfloats(low.view(np.float32), high.view(np.float32))


OPCODES = {
    'mov.b32': lambda a: np.atleast_1d(a),
    'and.b32': np.bitwise_and,
    'or.b32': np.bitwise_or,
    'xor.b32': np.bitwise_xor,
    'shl.b32': np.left_shift,
    'shr.b32': np.right_shift,
    'prmt.b32': _select_bytes,
    'sub.f32': lambda a, b: (a.view(np.float32) - b.view(np.float32)).view(np.uint32),
    'sub.f16x2': _halves(np.subtract),
    'add.f16x2': _halves(np.add),
    'fma.rn.bf16x2': _fma_bfloats,
    'cvt.rn.bf16x2.f32': _convert_pair,
}


@pytest.fixture(autouse=True)
def interpreter_of_today(monkeypatch):
    """Let Triton 3.6's interpreter take NumPy 2.3 and later, bfloat16 and inline PTX."""
    patch_tensor = interpreter._patch_lang_tensor
    builder = interpreter.InterpreterBuilder
    plain_dot, plain_cast = builder.create_dot, builder.cast_impl

    def patched(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, '__index__', lambda self: int(self.handle.data.item()))

    def dot(self, a, b, d, *rest):
        return plain_dot(self, widened(a), widened(b), d, *rest)

    def cast(self, source, target):
        if target.scalar is not tl.bfloat16 or source.dtype.scalar is tl.bfloat16:
            return plain_cast(self, source, target)
        rounded = torch.from_numpy(source.data.astype(np.float32)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    def widened(handle):
        if handle.dtype.scalar is not tl.bfloat16:
            return handle
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def assembly(self, text, constraints, handles, types, is_pure, pack):
        return Assembly(text, handles, types[0].scalar, pack)

    monkeypatch.setattr(interpreter, '_patch_lang_tensor', patched)
    monkeypatch.setattr(builder, 'create_dot', dot)
    monkeypatch.setattr(builder, 'cast_impl', cast)
    monkeypatch.setattr(builder, 'create_inline_asm', assembly)


def assert_close(y, expected, least_db=EXACT_DB):
    assert y.shape == expected.shape
    assert y.isfinite().all()
    assert sqnr_db(expected, y.double()) > least_db
    assert (y - expected).abs().max() < 10 ** ((30 - least_db) / 20) * expected.abs().max()


def as_seen(x, activation_bits):
    """Return what 16-bit activations keep of a float32 input: bfloat16."""
    return x.bfloat16().float() if activation_bits == 16 and x.dtype == torch.float32 else x


def run(x, weight, cap=8, activation_bits=8, bias=None, plan=None):
    precision = torch.tensor([cap, activation_bits], dtype=torch.int32)
    store = gpu.pack(weight)
    y = gpu.run_with_plan(x, store, weight.layout, precision, bias, plan)
    assert not triton_format.Store(*store).arrivals.any()
    return y


@pytest.mark.parametrize('width', [2, 4, 8, 16])
@pytest.mark.parametrize('activation_bits', [16, 8, 4, 2], ids=lambda bits: f'a{bits}')
@pytest.mark.parametrize('cap', [8, 4], ids=lambda cap: f'cap{cap}')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_width_and_precision(
    make_weight, definition, generator, width, activation_bits, cap, dtype
):
    weight = make_weight([width] * 70, 256, 128)
    x = torch.randn(5, 256, generator=generator).to(dtype)
    y = run(x, weight, cap, activation_bits)
    assert y.dtype == dtype
    expected = definition(as_seen(x, activation_bits), weight, cap, activation_bits)
    least_db = {torch.float32: EXACT_DB, torch.float16: 62, torch.bfloat16: 46}[dtype]
    assert_close(y.float(), expected, least_db)


@pytest.mark.parametrize(
    ('columns', 'group_size'),
    [(256, 32), (256, 64), (192, 96), (384, 128), (512, 256), (256, 256), (200, 64), (77, 77)]
    + [(1, 16), (300, 32), (130, 160), (260, 128), (500, 192)],
    ids=str,
)
@pytest.mark.parametrize('activation_bits', [16, 8], ids=lambda bits: f'a{bits}')
def test_all_widths_in_one_launch(
    make_weight, definition, generator, columns, group_size, activation_bits
):
    weight = make_weight((ALL_WIDTHS * 30)[:203], columns, group_size)
    x = as_seen(torch.randn(3, columns, generator=generator), activation_bits)
    bias = torch.randn(203, generator=generator)
    for cap in (8, 4):
        y = run(x, weight, cap, activation_bits, bias)
        assert_close(y, definition(x, weight, cap, activation_bits, bias))


@pytest.mark.parametrize(
    'plan',
    [gpu.Plan(64, 16, 1, 4, 4), gpu.Plan(64, 32, 3, 4, 4), gpu.Plan(64, 64, 5, 4, 3)]
    + [gpu.Plan(64, 64, 1, 4, 3), gpu.Plan(128, 128, 1, 8, 3), gpu.Plan(128, 16, 2, 4, 3)],
    ids=lambda plan: f'{plan.channels}x{plan.tokens}x{plan.parts}',
)
@pytest.mark.parametrize('activation_bits', [16, 8], ids=lambda bits: f'a{bits}')
def test_every_way_to_cut_a_call_gives_the_same(
    make_weight, definition, generator, plan, activation_bits
):
    weight = make_weight(sorted(ALL_WIDTHS * 40)[::-1], 600, 64)
    tokens = plan.tokens if plan.parts > 1 else plan.tokens + 3
    x = as_seen(torch.randn(tokens, 600, generator=generator), activation_bits)
    bias = torch.randn(320, generator=generator)
    y = run(x, weight, 4, activation_bits, bias, plan)
    assert_close(y, definition(x, weight, 4, activation_bits, bias))


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize('activation_bits', [16, 8], ids=lambda bits: f'a{bits}')
@pytest.mark.parametrize('widths', [ALL_WIDTHS * 4, [16, 0] * 16], ids=['all', 'no_codes'])
@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')
def test_a_token_that_is_not_finite_is_nan_everywhere_and_alone(
    make_weight, generator, value, activation_bits, widths
):
    weight = make_weight(widths, 300, 64)
    bias = torch.randn(32, generator=generator)
    x = torch.randn(9, 300, generator=generator)
    healthy = run(x, weight, 8, activation_bits, bias)
    x[4, 277] = value
    y = run(x, weight, 8, activation_bits, bias)
    assert y[4].isnan().all()
    others = [m for m in range(9) if m != 4]
    assert torch.equal(y[others], healthy[others])


@pytest.mark.parametrize('activation_bits', [16, 8, 4, 2], ids=lambda bits: f'a{bits}')
def test_a_token_of_zeros_gives_the_bias_exactly(make_weight, generator, activation_bits):
    weight = make_weight(ALL_WIDTHS * 4, 64, 32)
    bias = torch.randn(32, generator=generator)
    x = torch.randn(4, 64, generator=generator)
    x[2] = 0.0
    assert torch.equal(run(x, weight, 8, activation_bits, bias)[2], bias)


@pytest.mark.parametrize('size', [1e-30, 1e-6, 1e6, 1e30], ids=str)
def test_inputs_of_any_size_keep_their_accuracy(make_weight, definition, generator, size):
    weight = make_weight(ALL_WIDTHS * 4, 100, 32)
    x = torch.randn(3, 100, generator=generator) * size
    assert_close(run(x, weight), definition(x, weight))


@pytest.mark.parametrize('leading', [(), (0,), (2, 3), (2, 0, 3)], ids=str)
def test_leading_dimensions_strides_and_float64(make_weight, definition, generator, leading):
    weight = make_weight(ALL_WIDTHS * 3, 96, 32)
    x = torch.randn(*leading, 2 * 96, generator=generator).double()[..., ::2]
    y = run(x, weight)
    assert (y.dtype, y.shape) == (torch.float64, (*leading, 24))
    if y.numel():
        assert_close(y, definition(x, weight))


def test_the_precision_is_read_at_every_call(make_weight, definition, generator):
    weight = make_weight([8] * 24, 64, 32)
    x = torch.randn(3, 64, generator=generator)
    packed, precision = gpu.pack(weight), torch.tensor([8, 8], dtype=torch.int32)
    for cap, activation_bits in ((8, 8), (4, 8), (4, 4), (8, 8)):
        precision.copy_(torch.tensor([cap, activation_bits]))
        y = gpu.run(x, packed, weight.layout, precision, None)
        assert_close(y, definition(x, weight, cap, activation_bits))


def test_random_layers(make_weight, definition, generator):
    """Shapes, widths and precisions at once: what no list of cases foresees."""

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    for _ in range(25):
        columns, channels = (int(torch.randint(1, 400, (), generator=generator)) for _ in 'kn')
        chosen = torch.randint(5, (channels,), generator=generator)
        widths = torch.tensor([0, 2, 4, 8, 16])[chosen].tolist()
        weight = make_weight(widths, columns, pick(32, 64, 96, 128, columns + 5))
        bias = pick(None, torch.randn(channels, generator=generator))
        cap, activation_bits = pick(8, 4), pick(8, 8, 16, 4)
        x = torch.randn(pick(1, 2, 5, 21), columns, generator=generator)
        x = as_seen(x, activation_bits)
        y = run(x, weight, cap, activation_bits, bias)
        assert_close(y, definition(x, weight, cap, activation_bits, bias))


def test_bytes_become_the_same_numbers_in_every_type():
    """All 256 bytes, through the inline assembly that unpacks them."""
    byte = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    signed = byte.view(torch.int8).float()
    even = signed[:, ::2].contiguous()
    for dtype in (torch.float16, torch.bfloat16):
        result = torch.zeros(4, 64, dtype=dtype)
        convert[(1,)](byte, result, 64, False, 0.0)
        assert torch.equal(result.float(), signed)
        result = torch.zeros(4, 32, dtype=dtype)
        convert[(1,)](byte[:, ::2].contiguous(), result, 32, True, 7.5)
        exact = even[:, ::8] + 7.5  # nibbles, which are all that has the offset
        assert torch.equal(result.float()[:, ::8], exact)
