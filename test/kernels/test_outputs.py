"""
Where outputs go: widths strewn over the row, runs of neighbours, pruned channels, many tokens.

Many tokens are multiplied in another order and written in another way than one token. The sums are
the same to the last bit, so every row of a long call must be what a call with that token gives.
"""

import pytest
import torch

STREWN = [4, 8, 4, 4, 0, 2, 4, 16, 4, 8, 4]


def runs(channels):
    """Return widths in runs of neighbours that begin anywhere; some are whole lines of 16."""
    lengths = ((4, 21), (0, 37), (8, 16), (16, 3), (2, 40), (0, 5), (4, 1), (0, 16))
    widths = [width for width, length in lengths for _ in range(length)]
    return (widths * (channels // len(widths) + 1))[:channels]


WIDTHS = {
    'strewn': lambda channels: (STREWN * channels)[:channels],
    'runs': runs,
    'sorted': lambda channels: sorted((STREWN * channels)[:channels]),
    'nearly_all_pruned': lambda channels: [4 if n % 50 == 17 else 0 for n in range(channels)],
    'all_pruned': lambda channels: [0] * channels,
    'bfloat16_and_pruned': lambda channels: [16 if n % 20 == 3 else 0 for n in range(channels)],
    'uniform': lambda channels: [8] * channels,
}
every_pattern = pytest.mark.parametrize('pattern', WIDTHS.values(), ids=WIDTHS.keys())


def assert_rows_are_single_calls(kernel, multiply, x, weight, **options):
    together = multiply(kernel, x, weight, **options)
    assert together.dtype == x.dtype
    for token in range(len(x)):
        alone = multiply(kernel, x[token : token + 1], weight, **options)[0]
        assert torch.equal(together[token].nan_to_num(nan=1e9), alone.nan_to_num(nan=1e9)), token


@every_pattern
@pytest.mark.parametrize('channels', [7, 16, 129, 531])
@pytest.mark.parametrize('tokens', [13, 40])
def test_rows_of_a_long_call_are_those_of_single_calls(
    integer_kernel, make_weight, multiply, generator, pattern, channels, tokens
):
    weight = make_weight(pattern(channels), 80, 32)
    x = torch.randn(tokens, 80, generator=generator)
    bias = torch.randn(channels, generator=generator)
    assert_rows_are_single_calls(integer_kernel, multiply, x, weight, bias=bias)
    assert_rows_are_single_calls(integer_kernel, multiply, x, weight)


@every_pattern
@pytest.mark.parametrize(
    ('cap', 'activation_bits'), [(4, 8), (8, 16), (4, 16), (8, 4)], ids=lambda value: str(value)
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_at_every_precision_and_type(
    integer_kernel, make_weight, multiply, generator, pattern, cap, activation_bits, dtype
):
    weight = make_weight(pattern(129), 72, 16)
    x = torch.randn(20, 72, generator=generator).to(dtype)
    bias = torch.randn(129, generator=generator)
    precision = {'cap': cap, 'activation_bits': activation_bits}
    assert_rows_are_single_calls(integer_kernel, multiply, x, weight, bias=bias, **precision)


@every_pattern
def test_a_broken_token_is_nan_in_every_channel_and_no_other_is(
    integer_kernel, make_weight, multiply, generator, pattern
):
    weight = make_weight(pattern(131), 48, 16)
    x = torch.randn(30, 48, generator=generator)
    x[7, 5] = torch.inf
    x[29, 0] = torch.nan
    y = multiply(integer_kernel, x, weight, bias=torch.randn(131, generator=generator))
    broken = torch.zeros(30, dtype=torch.bool)
    broken[[7, 29]] = True
    assert y[broken].isnan().all()
    assert y[~broken].isfinite().all()


@every_pattern
def test_several_groups_of_channels_and_several_threads(
    integer_kernel, make_weight, multiply, generator, pattern
):
    # 700 channels of 1500 inputs are more than what stays in the cache at a time.
    weight = make_weight(pattern(700), 1500, 128)
    x = torch.randn(50, 1500, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = multiply(integer_kernel, x, weight)
        torch.set_num_threads(3)
        assert torch.equal(multiply(integer_kernel, x, weight), alone)
    finally:
        torch.set_num_threads(threads)
    for token in (0, 17, 49):
        assert torch.equal(multiply(integer_kernel, x[token : token + 1], weight)[0], alone[token])


@every_pattern
@pytest.mark.parametrize('inputs', [40, 2100])
def test_so_many_tokens_that_they_are_multiplied_in_blocks(
    integer_kernel, make_weight, multiply, generator, pattern, inputs
):
    weight = make_weight(pattern(40), inputs, 128)
    wide = torch.randn(530, inputs + 3, generator=generator)
    bias = torch.randn(40, generator=generator)
    y = multiply(integer_kernel, wide[:, :inputs], weight, bias=bias)
    for token in (0, 176, 177, 255, 256, 264, 265, 353, 354, 529):
        x = wide[token : token + 1, :inputs]
        assert torch.equal(multiply(integer_kernel, x, weight, bias=bias)[0], y[token]), token
