"""GPTQ: exact where it must be, never worse than rounding where compensation can help."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import gptq, rtn
from vlaq_ros.calibration.applied import applied
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight


def correlated(inputs, tokens=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(tokens, inputs, generator=generator) @ basis
    return (x.T @ x / tokens).double()


def weight_of(channels, inputs, seed=1):
    return torch.randn(channels, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('act_order', [True, False], ids=['act-order', 'as-they-come'])
@pytest.mark.parametrize('group_size', [64, 16, 48], ids=['per-channel', 'g16', 'short-last'])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_compensation_lowers_the_output_error(bits, group_size, act_order):
    weight, hessian = weight_of(24, 64), correlated(64)
    widths = (bits,) * 24
    rounded = MixedWeight.from_float(weight, widths, group_size)
    found = gptq.compensate(
        weight, hessian, widths, group_size, clip='absmax', act_order=act_order
    )
    before = gptq.output_error(rounded.dequantize() - weight, hessian).sum()
    after = gptq.output_error(found.dequantize() - weight, hessian).sum()
    assert after < 0.7 * before


@pytest.mark.parametrize('group_size', [64, 16], ids=['per-channel', 'g16'])
@pytest.mark.parametrize('bits', [2, 4])
def test_searched_scales_never_harm_a_channel_and_help_at_two_bits(bits, group_size):
    weight, hessian = weight_of(24, 64), correlated(64)
    widths = (bits,) * 24
    errors = {}
    for ratios in ((1.0,), gptq.SEARCH):
        found = gptq.compensate(weight, hessian, widths, group_size, ratios=ratios)
        errors[ratios] = gptq.output_error(found.dequantize() - weight, hessian)
    assert (errors[gptq.SEARCH] <= errors[1.0,] * (1 + 1e-6)).all()
    assert errors[gptq.SEARCH].sum() < (0.9 if bits == 2 else 0.99) * errors[1.0,].sum()


def test_without_correlation_it_is_rounding_to_nearest():
    weight = weight_of(8, 32)
    hessian = torch.diag(torch.rand(32).double() + 0.1)
    found = gptq.compensate(weight, hessian, (4,) * 8, 16, clip='absmax')
    rounded = MixedWeight.from_float(weight, (4,) * 8, 16)
    assert torch.equal(found.dequantize(), rounded.dequantize())


def test_channels_of_every_width_are_rounded_as_if_they_were_alone():
    weight, hessian = weight_of(10, 48), correlated(48)
    widths = (8, 2, 4, 0, 16, 2, 8, 4, 2, 4)
    together = gptq.compensate(weight, hessian, widths, 16).dequantize()
    for bits in (8, 4, 2):
        alone = gptq.compensate(weight, hessian, (bits,) * 10, 16).dequantize()
        rows = [i for i, width in enumerate(widths) if width == bits]
        assert torch.equal(together[rows], alone[rows])
    assert torch.equal(together[3], torch.zeros(48))
    assert torch.equal(together[4], weight[4].bfloat16().float())


def test_one_column_follows_the_published_update():
    # Two inputs, worked by hand: w2 -= (w1 - q1) / U11 * U12 with U the factor of H^-1.
    weight = torch.tensor([[0.6, 1.0]])
    hessian = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = gptq.compensate(weight, hessian, (2,), 16, clip='absmax', damping=0.0, act_order=False)
    step = 2.0 / 3.0  # levels -1, -1/3, 1/3, 1
    inverse = torch.linalg.inv(hessian)
    error = 0.6 - 0.5 * step
    second = 1.0 - error * float(inverse[0, 1] / inverse[0, 0])
    assert second == pytest.approx(1.2667, abs=1e-3)
    torch.testing.assert_close(
        found.dequantize(), torch.tensor([[0.5 * step, 1.5 * step]]), rtol=1e-3, atol=1e-3
    )


def test_updates_in_blocks_are_the_same_updates(monkeypatch):
    weight, hessian = weight_of(12, 150), correlated(150)
    found = []
    for columns, rows in ((1000, 1000), (7, 5)):
        monkeypatch.setattr(gptq, '_COLUMNS', columns)
        monkeypatch.setattr(gptq, '_ROWS', rows)
        found.append(gptq.compensate(weight, hessian, (4,) * 12, 32).dequantize())
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize('rank', [0, 1, 5])
def test_a_singular_hessian_is_damped(rank):
    x = torch.randn(rank, 32, generator=torch.Generator().manual_seed(3)).double()
    found = gptq.compensate(weight_of(4, 32), x.T @ x, (4,) * 4, 16)
    assert torch.isfinite(found.dequantize()).all()


@pytest.mark.parametrize(
    'hessian', [torch.zeros(3, 3), torch.full((8, 8), torch.nan)], ids=['shape', 'nan']
)
def test_a_hessian_that_does_not_fit_is_refused(hessian):
    with pytest.raises(SchemeError, match='Hessian of a weight with 8 inputs'):
        gptq.compensate(weight_of(2, 8), hessian, (4, 4), 16)


def test_it_beats_rounding_on_the_policy(context):
    context = dataclasses.replace(context, budget_bits=3.0)  # 2 bits in groups of 16
    with torch.no_grad():
        before = context.forward(context.batches[0])
    errors = {}
    for method in (rtn, gptq):
        result = method.calibrate(context)
        assert result.mean_bits_per_weight == pytest.approx(3.0)
        with torch.no_grad(), applied(context.model, result):
            after = context.forward(context.batches[0])
        errors[method] = sum(float((after[h] - before[h]).square().sum()) for h in before)
    assert errors[gptq] < errors[rtn]
