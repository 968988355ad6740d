"""
Every kernel of the table against the definition, which conftest.py writes out again in float64.

A new kernel is tested by its row in `select.KERNELS`; the `cpu` row with every set of instructions
that this machine has.
"""

import pytest
import torch

from vlaq_ros.kernels import reference
from vlaq_ros.quant.error import sqnr_db
from vlaq_ros.quant.mixed import MixedWeight

WIDTHS = {
    'w2': [2],
    'w4': [4],
    'w8': [8],
    'w16': [16],
    'pruned': [0],
    'w8_w4': [8, 4],
    'w16_w2': [16, 2],
    'pruned_w8': [0, 8],
    'all': [0, 2, 4, 8, 16, 4, 4, 8],
}
# (in, out, group size): one input, one channel, odd sizes, whole and short last groups, one scale
SHAPES = {
    'k1': (1, 3, 16),
    'n1': (70, 1, 32),
    'odd': (33, 7, 16),
    'groups': (128, 40, 32),
    'short': (200, 37, 64),
    'channel': (77, 65, 77),
    'wide': (1040, 18, 128),
}
every_width = pytest.mark.parametrize('widths', WIDTHS.values(), ids=WIDTHS.keys())
every_shape = pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())

# Floors of the signal-to-noise ratio. A16 codes have a step of 1/32512 of the largest value. The
# middle of a capped weight is a half, which an integer sum may lose once per group and token.
EXACT_DB, CAPPED_DB, A16_DB, BFLOAT16_DB = 95, 80, 80, 48


def repeated(widths, channels):
    return (widths * channels)[:channels]


def floor_db(cap, activation_bits):
    if activation_bits == 16:
        return A16_DB
    return EXACT_DB if cap == 8 else CAPPED_DB


def assert_close(y, expected, least_db):
    assert y.shape == expected.shape
    assert y.isfinite().all()
    if not expected.any():
        assert not y.any()
        return
    assert sqnr_db(expected, y.double()) > least_db
    # No single result may hide in the mean; 30 dB leave room for a code that rounds the other way.
    assert (y - expected).abs().max() < 10 ** ((30 - least_db) / 20) * expected.abs().max()


@every_width
@every_shape
def test_a_kernel_computes_the_definition(
    kernel, make_weight, multiply, definition, generator, widths, shape
):
    columns, channels, group_size = shape
    weight = make_weight(repeated(widths, channels), columns, group_size)
    x = torch.randn(5, columns, generator=generator)
    bias = torch.randn(channels, generator=generator)
    for cap in (8, 4):
        y = multiply(kernel, x, weight, cap, 8, bias)
        assert y.dtype == torch.float32
        assert_close(y, definition(x, weight, cap, 8, bias), floor_db(cap, 8))


@pytest.mark.parametrize('tokens', [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 48, 65, 130])
def test_any_number_of_tokens(kernel, make_weight, multiply, definition, generator, tokens):
    weight = make_weight(repeated(WIDTHS['all'], 100), 192, 64)
    x = torch.randn(tokens, 192, generator=generator)
    assert_close(multiply(kernel, x, weight), definition(x, weight), EXACT_DB)


@pytest.mark.parametrize('activation_bits', [16, 8, 4, 2], ids=lambda bits: f'a{bits}')
@pytest.mark.parametrize('cap', [8, 4], ids=lambda cap: f'cap{cap}')
@pytest.mark.parametrize('tokens', [1, 40])
def test_every_precision(
    kernel, make_weight, multiply, definition, generator, activation_bits, cap, tokens
):
    weight = make_weight(repeated(WIDTHS['all'], 50), 320, 64)
    x = torch.randn(tokens, 320, generator=generator)
    y = multiply(kernel, x, weight, cap, activation_bits)
    assert_close(y, definition(x, weight, cap, activation_bits), floor_db(cap, activation_bits))


def test_fewer_activation_bits_cost_accuracy_and_none_is_free(
    kernel, make_weight, multiply, generator
):
    weight = make_weight([8] * 64, 512, 64)
    x = torch.randn(16, 512, generator=generator)
    exact = x.double() @ weight.dequantize(torch.float64).T
    ratios = [sqnr_db(exact, multiply(kernel, x, weight, 8, bits)) for bits in (16, 8, 4, 2)]
    assert ratios[0] > A16_DB
    assert 36 < ratios[1] < 50  # Gaussian tokens in 255 levels: about 40 dB
    assert 10 < ratios[2] < 24
    assert ratios[3] < 6


@pytest.mark.parametrize('tokens', [1, 3, 33])
@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no_bias'])
def test_bfloat16_goes_in_and_comes_out(
    kernel, make_weight, multiply, definition, generator, tokens, with_bias
):
    weight = make_weight(repeated(WIDTHS['all'], 90), 160, 32)
    x = torch.randn(tokens, 160, generator=generator).bfloat16()
    bias = torch.randn(90, generator=generator) if with_bias else None
    y = multiply(kernel, x, weight, 8, 8, bias)
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), definition(x, weight, 8, 8, bias), BFLOAT16_DB)


@pytest.mark.parametrize(
    ('dtype', 'least_db'), [(torch.float16, 60), (torch.float64, EXACT_DB)], ids=str
)
def test_other_types_come_back_as_they_went_in(
    kernel, make_weight, multiply, definition, generator, dtype, least_db
):
    weight = make_weight([8, 4, 2, 16, 0], 96, 32)
    x = torch.randn(6, 96, generator=generator).to(dtype)
    y = multiply(kernel, x, weight)
    assert y.dtype == dtype
    assert_close(y.float(), definition(x, weight), least_db)


@pytest.mark.parametrize('leading', [(), (1,), (0,), (2, 3), (2, 0, 3), (2, 1, 4)], ids=str)
def test_leading_dimensions_are_kept(
    kernel, make_weight, multiply, definition, generator, leading
):
    weight = make_weight(repeated(WIDTHS['all'], 21), 48, 16)
    x = torch.randn(*leading, 48, generator=generator)
    y = multiply(kernel, x, weight)
    assert y.shape == (*leading, 21)
    if y.numel():
        assert_close(y, definition(x, weight), EXACT_DB)


def _token_slice(x):
    return torch.cat((x, x + 1), dim=-1)[..., : x.shape[-1]]


def _every_second_feature(x):
    return torch.stack((x, x + 1), dim=-1)[..., 0]


def _transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _expanded(x):
    return x[:1].expand_as(x)


@pytest.mark.parametrize(
    'arrange',
    [_token_slice, _every_second_feature, _transposed, _expanded],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize('leading', [(5,), (3, 4)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_any_strides_give_the_result_of_a_contiguous_input(
    kernel, make_weight, multiply, generator, arrange, leading, dtype
):
    weight = make_weight(repeated(WIDTHS['all'], 19), 40, 16)
    x = arrange(torch.randn(*leading, 40, generator=generator).to(dtype))
    assert not x.is_contiguous()
    before = x.clone()
    y = multiply(kernel, x, weight)
    assert torch.equal(x, before)
    assert_close(y.float(), multiply(kernel, x.contiguous(), weight).float(), 110)


@pytest.mark.parametrize('with_bias', [True, False], ids=['bias', 'no_bias'])
@pytest.mark.parametrize('activation_bits', [16, 8, 4, 2], ids=lambda bits: f'a{bits}')
def test_a_token_of_zeros_gives_the_bias_exactly(
    kernel, make_weight, multiply, generator, with_bias, activation_bits
):
    weight = make_weight(repeated(WIDTHS['all'], 33), 64, 32)
    bias = torch.randn(33, generator=generator) if with_bias else None
    x = torch.randn(4, 64, generator=generator)
    x[2] = 0.0
    y = multiply(kernel, x, weight, 8, activation_bits, bias)
    assert torch.equal(y[2], bias if with_bias else torch.zeros(33))


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize('activation_bits', [16, 8], ids=lambda bits: f'a{bits}')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('tokens', [1, 9])
def test_a_token_that_is_not_finite_is_nan_everywhere_and_alone(
    kernel, make_weight, multiply, generator, value, activation_bits, dtype, tokens
):
    weight = make_weight(repeated(WIDTHS['all'], 33), 100, 32)
    bias = torch.randn(33, generator=generator)
    x = torch.randn(tokens, 100, generator=generator).to(dtype)
    healthy = multiply(kernel, x, weight, 8, activation_bits, bias)
    x[tokens // 2, 77] = value
    y = multiply(kernel, x, weight, 8, activation_bits, bias)
    assert y[tokens // 2].isnan().all()
    others = [m for m in range(tokens) if m != tokens // 2]
    assert torch.equal(y[others], healthy[others])


@pytest.mark.parametrize('size', [1e-30, 1e-6, 1e6, 1e30], ids=str)
def test_inputs_of_any_size_keep_their_accuracy(
    kernel, make_weight, multiply, definition, generator, size
):
    weight = make_weight(repeated(WIDTHS['all'], 33), 100, 32)
    x = torch.randn(3, 100, generator=generator) * size
    assert_close(multiply(kernel, x, weight), definition(x, weight), EXACT_DB)


def test_a_group_of_zeros_has_no_part_in_the_result(kernel, multiply, definition, generator):
    dense = torch.randn(12, 96, generator=generator)
    dense[:, 32:64] = 0.0
    weight = MixedWeight.from_float(dense, [2, 4, 8] * 4, 32)
    x = torch.randn(3, 96, generator=generator)
    assert_close(multiply(kernel, x, weight), definition(x, weight), EXACT_DB)


@every_width
@every_shape
def test_unpacking_gives_back_every_bit(kernel, make_weight, widths, shape):
    columns, channels, group_size = shape
    weight = make_weight(repeated(widths, channels), columns, group_size)
    packed = kernel.pack(weight)
    again = kernel.unpack(packed, weight.layout)
    assert again.layout == weight.layout
    for name in weight.layout.tensors():
        assert torch.equal(getattr(again, name), getattr(weight, name)), name
    for first, second in zip(packed, kernel.pack(again)):
        assert torch.equal(first, second)


def test_a_copied_packed_weight_works_like_the_first(kernel, make_weight, generator):
    weight = make_weight(repeated(WIDTHS['all'], 60), 128, 32)
    x = torch.randn(3, 128, generator=generator)
    precision = torch.tensor([8, 8], dtype=torch.int32)
    packed = kernel.pack(weight)
    copied = tuple(tensor.clone() for tensor in packed)
    first = kernel.run(x, packed, weight.layout, precision, None)
    for tensor in packed:
        tensor.zero_()
    assert torch.equal(kernel.run(x, copied, weight.layout, precision, None), first)


def test_the_precision_is_read_at_every_call(kernel, make_weight, definition, generator):
    weight = make_weight([8] * 24, 64, 32)
    x = torch.randn(3, 64, generator=generator)
    packed, precision = kernel.pack(weight), torch.tensor([8, 8], dtype=torch.int32)
    for cap, activation_bits in ((8, 8), (4, 8), (4, 4), (8, 8)):
        precision.copy_(torch.tensor([cap, activation_bits]))
        y = kernel.run(x, packed, weight.layout, precision, None)
        assert_close(
            y, definition(x, weight, cap, activation_bits), floor_db(cap, activation_bits)
        )


def test_random_layers(kernel, make_weight, multiply, definition, generator):
    """Sixty layers, shapes and precisions at once: what no list of cases foresees."""

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    for _ in range(60):
        columns, channels = (int(torch.randint(1, 150, (), generator=generator)) for _ in 'kn')
        group_size = pick(16, 32, 48, 128, columns + 5)
        chosen = torch.randint(5, (channels,), generator=generator)
        weight = make_weight(torch.tensor([0, 2, 4, 8, 16])[chosen].tolist(), columns, group_size)
        bias = pick(None, torch.randn(channels, generator=generator))
        dtype = pick(torch.float32, torch.float32, torch.bfloat16)
        cap, activation_bits = pick(8, 4), pick(8, 8, 16, 4)
        x = torch.randn(pick(1, 2, 5, 21), columns, generator=generator).to(dtype)
        y = multiply(kernel, x, weight, cap, activation_bits, bias)
        expected = definition(x, weight, cap, activation_bits, bias)
        least_db = floor_db(cap, activation_bits)
        assert_close(y.float(), expected, BFLOAT16_DB if dtype is torch.bfloat16 else least_db)


def test_the_reference_rounds_the_input_of_wide_channels_to_bfloat16(make_weight, generator):
    weight = make_weight([16] * 4, 32, 32)
    x = torch.randn(3, 32, generator=generator)
    y = reference.mixed_linear(x, weight, 8, 8, None)
    expected = x.bfloat16().double() @ weight.values16.double().T
    assert sqnr_db(expected, y.double()) > EXACT_DB
