"""
Sums that must come out exactly.

Scales are powers of two, and the tokens hold whole numbers with a largest value of 127, which
makes the step of the activations 1. Products and sums are then multiples of one half that float32
can hold, and nothing may be rounded on the way: saturation at 16 bits, a code taken as signed, a
wrong zero point or a lost carry changes the result.
"""

import pytest
import torch

from vlaq_ros.quant.mixed import MixedWeight

CODES = {8: 256, 4: 16, 2: 4}


def whole_numbers(tokens, columns, limit, generator):
    x = torch.randint(-limit, limit + 1, (tokens, columns), generator=generator).float()
    x[:, 0] = limit  # makes the step 1
    return x


def random_codes(widths, columns, generator):
    codes = [torch.randint(CODES[w], (columns,), generator=generator) for w in widths]
    return torch.stack(codes).to(torch.uint8)


def powers_of_two(rows, groups, generator):
    return torch.exp2(torch.randint(-2, 3, (rows, groups), generator=generator).float()).half()


@pytest.mark.parametrize('bits', [8, 4, 2], ids=lambda bits: f'w{bits}')
@pytest.mark.parametrize('cap', [8, 4], ids=lambda cap: f'cap{cap}')
@pytest.mark.parametrize(('columns', 'group_size'), [(257, 32), (64, 64), (1031, 1031), (16, 16)])
@pytest.mark.parametrize('tokens', [1, 2, 5, 33])
def test_random_codes_against_random_whole_numbers(
    kernel, multiply, definition, generator, bits, cap, columns, group_size, tokens
):
    codes = random_codes([bits] * 20, columns, generator)
    groups = -(-columns // group_size)
    scale = powers_of_two(20, groups, generator)
    weight = MixedWeight.from_codes(codes, scale, [bits] * 20, group_size)
    x = whole_numbers(tokens, columns, 127, generator)
    y, expected = multiply(kernel, x, weight, cap, 8).double(), definition(x, weight, cap, 8)
    if (bits, cap) == (8, 4):  # the middle of a capped weight is a half, lost at most once a group
        assert ((y - expected).abs() <= 0.5 * weight.scale.double().sum(1)).all()
    else:
        assert torch.equal(y, expected)


@pytest.mark.parametrize('code', ['lowest', 'highest'])
@pytest.mark.parametrize('sign', [1, -1], ids=['plus', 'minus'])
@pytest.mark.parametrize('bits', [8, 4, 2], ids=lambda bits: f'w{bits}')
@pytest.mark.parametrize('columns', [16, 1000, 32768, 98304], ids=lambda columns: f'k{columns}')
@pytest.mark.parametrize('tokens', [1, 6])
def test_the_largest_sums_do_not_saturate(
    integer_kernel, multiply, definition, code, sign, bits, columns, tokens
):
    """Products of 127 * 128 in pairs exceed 16 bits; sums of 98304 of them need 31."""
    codes = torch.full((3, columns), 0 if code == 'lowest' else CODES[bits] - 1).to(torch.uint8)
    scale = torch.ones(3, 1).half()
    weight = MixedWeight.from_codes(codes, scale, [bits] * 3, columns)
    x = torch.full((tokens, columns), 127.0 * sign)
    for cap in (8, 4):
        y = multiply(integer_kernel, x, weight, cap, 8)
        assert torch.equal(y.double(), definition(x, weight, cap, 8))  # the sum of codes is even


@pytest.mark.parametrize('bits', [8, 4, 2], ids=lambda bits: f'w{bits}')
@pytest.mark.parametrize('tokens', [1, 6])
def test_large_terms_that_cancel_leave_the_small_one(integer_kernel, multiply, bits, tokens):
    """A zero point taken off in floats after the sum would lose the last bits of a long row."""
    columns = 40000
    codes = torch.full((2, columns), CODES[bits] - 1).to(torch.uint8)
    weight = MixedWeight.from_codes(codes, torch.ones(2, 1).half(), [bits] * 2, columns)
    x = torch.full((tokens, columns), 127.0)
    x[:, columns // 2 :] = -127.0
    x[:, 5] = 126.0
    largest_code = {8: 127.0, 4: 7.0, 2: 1.5}[bits]
    assert (multiply(integer_kernel, x, weight, 8, 8) == -largest_code).all()


@pytest.mark.parametrize('bits', [8, 4, 2], ids=lambda bits: f'w{bits}')
@pytest.mark.parametrize(('activation_bits', 'limit'), [(16, 32512), (4, 7), (2, 1)])
@pytest.mark.parametrize('tokens', [1, 6])
def test_other_activation_widths_are_exact_as_well(
    integer_kernel, multiply, definition, generator, bits, activation_bits, limit, tokens
):
    """At 16 bits a code is 256 * high + low; every carry between the two bytes occurs here."""
    columns = 96
    codes = random_codes([bits] * 18, columns, generator)
    weight = MixedWeight.from_codes(codes, powers_of_two(18, 3, generator), [bits] * 18, 32)
    x = whole_numbers(tokens, columns, limit, generator)
    y = multiply(integer_kernel, x, weight, 8, activation_bits)
    expected = definition(x, weight, 8, activation_bits)
    if activation_bits == 16:  # sums reach 2^28 times the scale: float32 rounds the last step
        torch.testing.assert_close(y.double(), expected, rtol=2e-7, atol=2.0)
    else:
        assert torch.equal(y.double(), expected)


@pytest.mark.parametrize('tokens', [1, 6])
def test_every_sixteen_bit_activation_code_comes_through(kernel, multiply, tokens):
    """One input is not zero; the result is that input, for codes around every carry."""
    weight = MixedWeight.from_codes(
        torch.full((1, 16), 129).to(torch.uint8), torch.ones(1, 1).half(), [8], 16
    )
    for code in (0, 1, 127, 128, 129, 255, 256, 257, 383, 384, 385, 32383, 32384, 32511, 32512):
        for sign in (1, -1):
            x = torch.zeros(tokens, 16)
            x[:, 3], x[:, 7] = 32512.0, sign * code
            assert (multiply(kernel, x, weight, 8, 16) == 32512.0 + sign * code).all()


@pytest.mark.parametrize('position', range(0, 67, 3))
def test_every_input_meets_its_own_weight(kernel, multiply, generator, position):
    """One input at a time: no two columns are swapped, none is read twice."""
    widths = [8] * 17 + [4] * 18 + [2] * 19
    codes = random_codes(widths, 67, generator)
    scale = torch.ones(len(widths), 5).half()
    weight = MixedWeight.from_codes(codes, scale, widths, 16)
    x = torch.zeros(2, 67)
    x[1, position] = 127.0
    y = multiply(kernel, x, weight, 8, 8)
    assert torch.equal(y[1], 127.0 * weight.dequantize()[:, position])
    assert not y[0].any()


@pytest.mark.parametrize('tokens', [1, 5])
def test_wide_channels_add_bfloat16_products_exactly(kernel, multiply, generator, tokens):
    values = torch.randint(-128, 129, (18, 70), generator=generator).float()
    weight = MixedWeight.from_float(values, [16] * 18, 70)
    x = torch.randint(-128, 129, (tokens, 70), generator=generator).float()
    assert torch.equal(multiply(kernel, x, weight, 8, 8), x @ values.T)
