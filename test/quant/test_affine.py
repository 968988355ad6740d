"""Laws of affine quantization, for every width, granularity, symmetry and shape of a range."""

import numpy as np
import pytest
import torch

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import (
    QParams,
    choose_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_tokens,
    quantize,
)
from vlaq_ros.quant.error import sqnr_db
from vlaq_ros.quant.scheme import CLIPS, PerChannel, PerGroup, PerTensor, QuantScheme

OUT, IN = 12, 48


def _centred(seed=0):
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {
    'centred': _centred(),
    'positive': _centred().abs() + 0.5,
    'negative': -_centred().abs() - 0.5,
    'mixed_rows': _centred() * torch.logspace(-3, 3, OUT).unsqueeze(1),
    'zero_rows': _centred() * (torch.arange(OUT) % 2).unsqueeze(1),
    'zero': torch.zeros(OUT, IN),
    'subnormal_scale': _centred() * 1e-5,
    'below_smallest_scale': _centred() * 1e-9,
    'bfloat16': _centred().bfloat16(),
}
GRANULARITIES = {'tensor': PerTensor(), 'channel': PerChannel(), 'group': PerGroup(16)}
SCHEMES = {
    f'w{bits}-{name}-{"sym" if symmetric else "asym"}': QuantScheme(bits, granularity, symmetric)
    for bits in (2, 3, 4, 8)
    for name, granularity in GRANULARITIES.items()
    for symmetric in (True, False)
}
every_weight = pytest.mark.parametrize('weight', WEIGHTS.values(), ids=WEIGHTS.keys())
every_scheme = pytest.mark.parametrize('scheme', SCHEMES.values(), ids=SCHEMES.keys())


def _each_weight_its_scale(qparams):
    """Return the scales as float32 [out, in], by repetition instead of by blocks."""
    scale = qparams.scale.float()
    return scale.expand(OUT, -1).repeat_interleave(IN // scale.shape[1], dim=1)


@every_weight
@every_scheme
def test_round_trip_error_is_at_most_half_a_stored_step(weight, scheme):
    qparams = choose_qparams(weight, scheme)
    restored = dequantize(quantize(weight, qparams, scheme), qparams, scheme)
    error = (restored - weight.float()).abs()
    assert (error <= (0.5 + 1e-4) * _each_weight_its_scale(qparams)).all()


@every_weight
@every_scheme
def test_zero_is_exact_or_half_a_step_where_it_lies_between_codes(weight, scheme):
    qparams = choose_qparams(weight, scheme)
    zeros = torch.zeros_like(weight)
    restored = dequantize(quantize(zeros, qparams, scheme), qparams, scheme)
    between = 0.5 if scheme.bits == 2 and scheme.symmetric else 0.0
    assert torch.equal(restored.abs(), between * _each_weight_its_scale(qparams))


@every_weight
@every_scheme
def test_scales_are_float16_and_zero_only_where_all_weights_are(weight, scheme):
    scale, zero_point = qparams = choose_qparams(weight, scheme)
    assert scale.shape == scheme.granularity.grid(OUT, IN)
    assert scale.dtype == zero_point.dtype == torch.float16
    assert scale.isfinite().all()
    assert (scale >= 0).all()
    assert (weight[_each_weight_its_scale(qparams) == 0] == 0).all()
    assert zero_point.shape == ((1, 1) if scheme.symmetric else scale.shape)
    assert ((zero_point >= 0) & (zero_point <= scheme.qmax)).all()
    assert (zero_point % 1 == (0.5 if scheme.bits == 2 and scheme.symmetric else 0.0)).all()


@every_scheme
def test_the_range_ends_with_the_codes(scheme):
    """
    A range one code too short or too long passes the bound on the error but not this.

    Symmetric: -1 and 1 are half a step beyond codes 1 and qmax, which mirror each other; at 2
    bits the codes mirror each other by themselves. Asymmetric: 0 and 1 are codes 0 and qmax.
    """
    low = -1.0 if scheme.symmetric else 0.0
    weight = torch.linspace(low, 1.0, 16).repeat(OUT, IN // 16)
    codes = quantize(weight, choose_qparams(weight, scheme), scheme)
    assert codes.dtype == torch.uint8
    least = 1 if scheme.symmetric and scheme.bits > 2 else 0
    assert (codes.min(), codes.max()) == (least, scheme.qmax)


@every_scheme
def test_the_step_is_the_range_over_the_number_of_steps_but_for_float16(scheme):
    """Range of the weights: -1 to 1 symmetric, 0 (widened) to 1 asymmetric."""
    weight = torch.linspace(0.25, 1.0, 16).repeat(OUT, IN // 16)
    step = (2.0 if scheme.symmetric else 1.0) / (2**scheme.bits - 1)
    scale = choose_qparams(weight, scheme).scale.float()
    assert (scale >= step).all()
    assert (scale <= step * (1 + 2**-10)).all()


@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('symmetric', [True, False])
def test_a_zero_row_gets_scale_zero(symmetric, clip):
    weight, scheme = WEIGHTS['zero_rows'], QuantScheme(2, PerChannel(), symmetric)
    scale = choose_qparams(weight, scheme, clip).scale.flatten()
    assert (scale[::2] == 0.0).all()
    assert (scale[1::2] > 0.0).all()
    assert (fake_quantize(weight, scheme, clip)[::2] == 0.0).all()


def test_a_short_last_group_is_quantized_as_if_it_were_alone():
    weight, scheme = WEIGHTS['mixed_rows'], QuantScheme(4, PerGroup(20), symmetric=False)
    parts = [fake_quantize(part.contiguous(), scheme) for part in weight.split(20, dim=1)]
    assert torch.equal(fake_quantize(weight, scheme), torch.cat(parts, dim=1))
    for clip in CLIPS:
        parts = [
            fake_quantize(p.contiguous(), scheme, clip, 80.0) for p in weight.split(20, dim=1)
        ]
        assert torch.equal(fake_quantize(weight, scheme, clip, 80.0), torch.cat(parts, dim=1))


@pytest.mark.parametrize('symmetric', [True, False])
def test_a_percentile_cuts_the_range_where_numpy_says(symmetric):
    weight = WEIGHTS['mixed_rows']
    scheme = QuantScheme(4, PerGroup(16), symmetric)
    groups = weight.reshape(OUT, 3, 16).double().numpy()
    if symmetric:
        span = 2 * np.percentile(np.abs(groups), 90.0, axis=-1)
    else:
        ends = np.percentile(groups, (90.0, 10.0), axis=-1)
        span = np.maximum(ends[0], 0) - np.minimum(ends[1], 0)
    scale = choose_qparams(weight, scheme, 'percentile', 90.0).scale.double()
    np.testing.assert_allclose(scale.numpy(), span / 15, rtol=1e-3)


@every_scheme
def test_all_of_the_weights_are_the_hundredth_percentile(scheme):
    weight = WEIGHTS['mixed_rows']
    whole, cut = choose_qparams(weight, scheme), choose_qparams(weight, scheme, 'percentile', 100)
    assert torch.equal(whole.scale, cut.scale)
    assert torch.equal(whole.zero_point, cut.zero_point)


@every_weight
@every_scheme
def test_the_search_never_has_a_larger_error_than_the_whole_range(weight, scheme):
    weight = weight.float()
    squared = [
        (fake_quantize(weight, scheme, clip) - weight).square().double().sum()
        for clip in ('absmax', 'mse')
    ]
    assert squared[1] <= squared[0] * (1 + 1e-6)


def test_the_search_finds_the_known_best_step_of_a_gaussian():
    """Four levels: 0.9957 sigma, 0.1188 of the power is noise (Max 1960, table II)."""
    weight = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(4))
    scheme = QuantScheme(2, PerTensor())
    scale = choose_qparams(weight, scheme, 'mse').scale.item()
    assert scale == pytest.approx(0.9957, rel=0.05)
    assert sqnr_db(weight, fake_quantize(weight, scheme, 'mse')) == pytest.approx(9.25, abs=0.05)


def test_the_search_spends_its_error_where_nothing_depends_on_it():
    weight = WEIGHTS['centred']
    scheme, matters = QuantScheme(2, PerChannel()), torch.arange(IN) % 4 == 0
    plain, weighted = (
        (fake_quantize(weight, scheme, 'mse', importance=i) - weight)[:, matters].square().sum()
        for i in (None, matters.float())
    )
    assert weighted < 0.8 * plain


@pytest.mark.parametrize(
    'importance', [torch.ones(3), -torch.ones(IN), torch.full((IN,), torch.nan)], ids=str
)
def test_an_importance_that_does_not_fit_is_refused(importance):
    with pytest.raises(SchemeError, match=f'importance must hold {IN} numbers from 0 up'):
        choose_qparams(WEIGHTS['centred'], QuantScheme(4), 'mse', importance=importance)


def test_a_clip_that_does_not_exist_is_refused():
    with pytest.raises(SchemeError, match="clip='best' is not supported: use one of"):
        choose_qparams(WEIGHTS['centred'], QuantScheme(4), 'best')
    with pytest.raises(SchemeError, match='percentile=0 must lie above 0 and be at most 100'):
        choose_qparams(WEIGHTS['centred'], QuantScheme(4), 'percentile', 0)


def test_each_channel_is_quantized_as_if_it_were_alone():
    scheme = QuantScheme(4, PerGroup(16), symmetric=False)
    weight = WEIGHTS['mixed_rows']
    alone = torch.cat([fake_quantize(row.unsqueeze(0), scheme) for row in weight])
    assert torch.equal(fake_quantize(weight, scheme), alone)


def test_each_group_is_quantized_as_if_it_were_a_channel():
    weight = WEIGHTS['centred']
    as_channels = fake_quantize(weight.reshape(-1, 16), QuantScheme(4, PerChannel()))
    grouped = fake_quantize(weight, QuantScheme(4, PerGroup(16)))
    assert torch.equal(grouped, as_channels.reshape(OUT, IN))


@every_scheme
def test_values_on_the_grid_come_back_exactly(scheme):
    """Integers in, integers out: half a step of slack would hide an off-by-one zero point."""
    zero_point = scheme.middle if scheme.symmetric else 1
    codes = torch.arange(OUT * IN, dtype=torch.int32).reshape(OUT, IN) % (scheme.qmax + 1)
    grid = scheme.granularity.grid(OUT, IN)
    qparams = QParams(
        torch.full(grid, 0.5, dtype=torch.float16), torch.full((1, 1), zero_point).half()
    )
    values = (codes - zero_point) * 0.5
    assert torch.equal(quantize(values, qparams, scheme).int(), codes)
    assert torch.equal(dequantize(codes.to(torch.uint8), qparams, scheme), values)


@pytest.mark.parametrize('bits', [2, 3, 4, 5, 6, 7, 8])
def test_noise_falls_by_six_decibels_per_bit(bits):
    """Uniform weights fill the range, so noise is step^2 / 12: SQNR = 20 log10(2^bits - 1) dB."""
    weight = torch.rand(64, 1024, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scheme = QuantScheme(bits, PerTensor())
    expected = 20 * torch.log10(torch.tensor(2.0**bits - 1)).item()
    assert sqnr_db(weight, fake_quantize(weight, scheme)) == pytest.approx(expected, abs=0.6)


@every_scheme
def test_what_exceeds_the_range_is_clipped_to_its_ends(scheme):
    """Codes that wrapped around would turn the largest weights into the smallest."""
    qparams = choose_qparams(WEIGHTS['centred'], scheme)
    beyond = 1e3 * WEIGHTS['centred'].sign()
    codes = quantize(beyond, qparams, scheme)
    assert torch.equal(codes, torch.where(beyond > 0, scheme.qmax, 0).to(torch.uint8))


def test_quantizing_again_changes_nothing():
    scheme = QuantScheme(8, PerChannel())
    qparams = choose_qparams(WEIGHTS['centred'], scheme)
    codes = quantize(WEIGHTS['centred'], qparams, scheme)
    assert torch.equal(quantize(dequantize(codes, qparams, scheme), qparams, scheme), codes)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_fake_quantize_keeps_the_dtype(dtype):
    weight = WEIGHTS['centred'].to(dtype)
    assert fake_quantize(weight, QuantScheme(8)).dtype == dtype


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_a_weight_that_is_not_finite_is_refused_with_its_channels(value):
    weight = _centred()
    weight[3, 5] = weight[7, 0] = weight[7, 9] = value
    with pytest.raises(SchemeError, match=r'not finite in 2 output channel\(s\): 3, 7$'):
        choose_qparams(weight, QuantScheme(4))


def test_a_scale_that_float16_cannot_hold_is_refused_with_its_channels():
    weight = _centred()
    weight[4, 0] = 65504.0 * 7.5 * 1.001
    scheme = QuantScheme(4, PerGroup(16))
    with pytest.raises(SchemeError, match=r'scale above 65504 in 1 output channel\(s\): 4$'):
        choose_qparams(weight, scheme)
    weight[4, 0] = 65504.0 * 7.5
    assert choose_qparams(weight, scheme).scale.max() == 65504.0


def test_a_long_list_of_channels_is_cut_but_counted():
    with pytest.raises(SchemeError, match=r'in 40 output channel\(s\): 0, 1, .*, 15, \.\.\.$'):
        choose_qparams(torch.full((40, 4), torch.nan), QuantScheme(4))


@pytest.mark.parametrize('shape', [(8,), (2, 3, 4), (0, 4), (4, 0)])
def test_what_is_not_a_filled_matrix_is_refused(shape):
    with pytest.raises(SchemeError, match='must be a filled matrix'):
        choose_qparams(torch.zeros(shape), QuantScheme(4))


def test_codes_are_not_dequantized_to_integers():
    scheme = QuantScheme(8)
    qparams = choose_qparams(WEIGHTS['centred'], scheme)
    with pytest.raises(ValueError, match='torch.int64 cannot hold them'):
        dequantize(torch.zeros(OUT, IN, dtype=torch.uint8), qparams, scheme, torch.int64)


@pytest.mark.parametrize(('bits', 'limit'), [(16, 32512), (8, 127), (4, 7), (2, 1)])
def test_tokens_are_rounded_to_whole_steps_of_their_own_largest_value(bits, limit):
    tokens = torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(2))
    tokens = tokens * torch.logspace(-6, 6, 10).reshape(2, 5, 1)
    step = tokens.double().abs().amax(-1, keepdim=True) / limit
    codes = fake_quantize_tokens(tokens, bits).double() / step
    assert (codes - codes.round()).abs().max() < 1e-6 * limit
    assert torch.equal(codes.abs().amax(-1).round(), torch.full((2, 5), limit).double())
    assert ((codes * step - tokens).abs() / step).max() <= 0.5 + 1e-6 * limit


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_zero_token_stays_zero_and_a_broken_one_is_seen(value):
    tokens = torch.zeros(3, 4)
    tokens[1, 2] = value
    rounded = fake_quantize_tokens(tokens, 8)
    assert torch.equal(rounded[[0, 2]], torch.zeros(2, 4))
    assert rounded[1].isnan().all()
