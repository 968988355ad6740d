"""DA-PTQ: the interface correction, its folding, and both allocations."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import da_ptq
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.da_ptq import DaPtqOptions, scale_rows
from vlaq_ros.calibration.interface_correction import Moments, fit_correction
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight


def samples(channels=24, tokens=3000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(channels, channels, generator=generator).double()
    noise = torch.randn(tokens, channels, generator=generator).double()
    return noise @ basis + torch.randn(channels, generator=generator)


def covariance_error(reference, values):
    return float((reference.covariance - Moments.of(values).covariance).norm())


def test_equal_moments_need_no_correction():
    moments = Moments.of(samples())
    found = fit_correction(moments, moments)
    torch.testing.assert_close(found.matrix, torch.eye(24, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        found.shift, torch.zeros(24, dtype=torch.float64), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize('dense', [True, False], ids=['dense', 'gain'])
def test_the_covariance_error_falls_and_the_mean_is_repaired(dense):
    z = samples()
    generator = torch.Generator().manual_seed(9)
    factor = torch.rand(24, generator=generator).double() + 0.6
    quantized = z * factor + 0.3 * torch.randn(z.shape, generator=generator).double() + 1.0
    reference = Moments.of(z)
    found = fit_correction(reference, Moments.of(quantized), dense)
    corrected = quantized @ found.matrix.T + found.shift
    assert covariance_error(reference, corrected) < 0.9 * covariance_error(reference, quantized)
    torch.testing.assert_close(corrected.mean(0), reference.mean)
    assert found.kind == ('dense' if dense else 'gain')


def test_gains_stay_in_their_range():
    z = samples()
    found = fit_correction(Moments.of(10.0 * z), Moments.of(z), dense=False)
    assert (found.matrix.diagonal() == 2.0).all()


def test_a_silent_channel_is_left_alone():
    z = samples()
    z[:, 3] = 0.0
    found = fit_correction(Moments.of(z), Moments.of(0.9 * z))
    assert torch.isfinite(found.matrix).all()


def test_folding_equals_the_map_after_the_layer():
    x, weight, bias = samples(8), torch.randn(24, 8).double(), torch.randn(24).double()
    z = x @ weight.T + bias
    found = fit_correction(Moments.of(samples()), Moments.of(z))
    folded, shift = found.fold(weight, bias)
    torch.testing.assert_close(x @ folded.T + shift, z @ found.matrix.T + found.shift)


def test_moments_that_are_not_finite_are_refused():
    moments = Moments.of(samples())
    broken = Moments(moments.mean * torch.nan, moments.covariance)
    with pytest.raises(SchemeError, match='finite and of one size'):
        fit_correction(moments, broken)


@pytest.mark.parametrize('bits', [16, 8, 4, 2])
def test_scaled_rows_keep_their_codes(bits):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    packed = MixedWeight.from_float(weight, (bits,) * 6, 16)
    gains = torch.linspace(0.5, 2.0, 6)
    found = scale_rows(packed, gains)
    expected = packed.dequantize() * gains.unsqueeze(1)
    torch.testing.assert_close(
        found.dequantize(), expected, rtol=1e-2 if bits == 16 else 1e-3, atol=0
    )
    assert torch.equal(found.codes4, packed.codes4)


@pytest.mark.parametrize('weights', ['chain', 'pose'])
def test_the_budget_is_spent_layer_by_layer(context, weights):
    context = dataclasses.replace(context, budget_bits=5.0)
    result = da_ptq.calibrate(context, DaPtqOptions(weights=weights))
    assert 4.5 <= result.mean_bits_per_weight <= 5.0
    assert all(len(set(w.widths().tolist())) == 1 for w in result.weights.values())
    assert len(set(result.provenance['bits'].values())) > 1
    assert len(result.provenance['drift_weights']) == 4


def test_the_published_mode_protects_the_best_scored_layers(context):
    result = da_ptq.calibrate(context, DaPtqOptions(mode='paper', correct=False))
    bits, scores = result.provenance['bits'], result.provenance['scores']
    protected = [scores[name] for name in bits if bits[name] == 16]
    others = [scores[name] for name in bits if bits[name] == 4]
    assert len(protected) == round(0.3 * len(bits))
    assert min(protected) >= max(others)
    assert min(scores.values()) > 0.0


@pytest.mark.parametrize('dense', [True, False], ids=['dense', 'gain'])
def test_the_corrected_interface_speaks_with_the_old_moments(context, dense):
    context = dataclasses.replace(context, budget_bits=3.2)
    interface = context.structure.interface
    plain = da_ptq.calibrate(context, DaPtqOptions(correct=False))
    fixed = da_ptq.calibrate(context, DaPtqOptions(dense=dense))
    reference = Moments.of(da_ptq._outputs(context, interface))
    found = {}
    for name, result in (('plain', plain), ('fixed', fixed)):
        with applied(context.model, result):
            found[name] = Moments.of(da_ptq._outputs(context, interface))
    for moment in ('mean', 'covariance'):
        exact = getattr(reference, moment)
        before = (getattr(found['plain'], moment) - exact).norm()
        assert (getattr(found['fixed'], moment) - exact).norm() < before


def test_choices_that_do_not_exist_are_all_named():
    with pytest.raises(SchemeError, match='mode=.*\nweights='):
        DaPtqOptions(mode='greedy', weights='tree')
