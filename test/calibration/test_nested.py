"""Nested codes: both views are good at once, within the budget, and the bundle says so."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration.gptq import output_error
from vlaq_ros.calibration.methods import bind_method, option_names
from vlaq_ros.calibration.nested import NestedOptions, calibrate
from vlaq_ros.calibration.nested_rounding import RATIOS, round_both_views, scales_of_both
from vlaq_ros.errors import ConfigError, SchemeError
from vlaq_ros.quant.mixed import MixedWeight

GROUP = 16


def layer(seed=0, outputs=24, inputs=48):
    """Return a weight, and the second moment of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(400, inputs, generator=generator) @ (mixing + 0.5 * torch.eye(inputs))
    return weight, (x.T @ x / len(x)).double()


def errors(stored, weight, moment):
    """Return the output error read with 8 and with 4 bits."""
    return [float(output_error(stored.dequantize(cap=c) - weight, moment).sum()) for c in (8, 4)]


def nearest(weight, clip='mse'):
    return MixedWeight.from_float(weight, (8,) * len(weight), GROUP, clip)


@pytest.mark.parametrize('seed', range(3))
def test_both_views_beat_rounding_to_nearest(seed):
    weight, moment = layer(seed)
    found = errors(round_both_views(weight, moment, GROUP, 64.0, 3), weight, moment)
    plain = errors(nearest(weight), weight, moment)
    assert found[0] < plain[0]
    assert found[1] < 0.8 * plain[1]


def test_the_weight_moves_error_from_one_view_to_the_other():
    weight, moment = layer()
    found = [
        errors(round_both_views(weight, moment, GROUP, fine, 3), weight, moment)
        for fine in (0.0, 4.0, 64.0, 1024.0)
    ]
    fine, coarse = zip(*found)
    assert list(fine) == sorted(fine, reverse=True)
    assert list(coarse) == sorted(coarse)


def test_sweeps_lower_what_is_minimized():
    weight, moment = layer()
    costs = []
    for sweeps in (0, 1, 4):
        fine, coarse = errors(
            round_both_views(weight, moment, GROUP, 64.0, sweeps), weight, moment
        )
        costs.append(64.0 * fine + coarse)
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < costs[0]


def test_with_independent_inputs_no_single_code_can_be_replaced_by_a_better_one():
    weight, _ = layer()
    moment = torch.eye(weight.shape[1]).double()
    stored = round_both_views(weight, moment, GROUP, 64.0, 8)
    scale = stored.scale.float().repeat_interleave(GROUP, dim=1)
    codes = torch.arange(256.0).reshape(-1, 1, 1)
    fine = (codes - 128) * scale - weight
    coarse = (16 * (codes // 16) + 7.5 - 128) * scale - weight
    best = (64.0 * fine**2 + coarse**2).amin(0).sum()
    found = errors(stored, weight, moment)
    assert 64.0 * found[0] + found[1] == pytest.approx(float(best), rel=1e-5)


def test_scales_are_the_best_of_the_candidates_for_both_views():
    weight, moment = layer()
    importance = moment.diagonal().float()
    found = scales_of_both(weight, GROUP, importance)
    full = nearest(weight, 'absmax').scale.float()
    blocks = weight.reshape(len(weight), -1, GROUP)
    table = []
    for ratio in RATIOS:
        step = (full * ratio).half().float().unsqueeze(-1)
        codes = (blocks / step + 128).round().clamp(0, 255)
        views = (codes - 128) * step, (16 * (codes // 16) + 7.5 - 128) * step
        table.append([((v - blocks) ** 2 * importance.reshape(-1, GROUP)).sum(-1) for v in views])
    table = torch.stack([torch.stack(row) for row in table])  # [ratios, 2, out, groups]
    best = (table / table.amin(0)).sum(1).argmin(0)
    expected = (full * torch.tensor(RATIOS)[best]).half()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.0)


def test_a_short_last_group_a_dead_layer_and_zeros_are_stored():
    weight, moment = layer(inputs=40)
    weight[3] = 0.0
    stored = round_both_views(weight, moment, GROUP, 64.0, 2)
    assert torch.equal(stored.dequantize()[3], torch.zeros(40))
    assert torch.equal(stored.dequantize(cap=4)[3], torch.zeros(40))
    never_ran = round_both_views(weight, torch.zeros(40, 40), GROUP, 64.0, 2)
    assert (never_ran.dequantize() - weight).abs().max() < 0.1


def test_a_moment_that_does_not_fit_is_refused():
    weight, moment = layer()
    with pytest.raises(SchemeError, match=r'48 inputs must be a finite matrix \[48, 48\]'):
        round_both_views(weight, moment[:4, :4], GROUP, 64.0, 1)


def test_every_layer_is_rounded_and_the_record_says_how(context):
    context = dataclasses.replace(context, budget_bits=9.0)
    result = calibrate(context)
    assert set(result.weights) == set(context.layers)
    assert all(set(weight.widths().tolist()) == {8} for weight in result.weights.values())
    assert result.mean_bits_per_weight <= 9.0
    assert result.provenance['ladder'] == ['w4a8', 'w4a16', 'w8a8', 'w8a16']
    found = result.provenance['output_error']
    assert 0.0 < found['8'] < found['4'] < 0.2


def test_a_budget_below_8_bits_and_a_scale_per_channel_are_refused(context):
    with pytest.raises(SchemeError, match='5 bits per weight is too small for nested codes'):
        calibrate(dataclasses.replace(context, budget_bits=5.0))
    with pytest.raises(SchemeError, match='need a scale per group'):
        calibrate(dataclasses.replace(context, budget_bits=9.0, group_size=None))


def test_wrong_options_are_all_named():
    with pytest.raises(SchemeError) as caught:
        NestedOptions('w8a16,w4a8', fine_weight=-1.0, sweeps=-2)
    for part in ('precision levels must rise', 'fine_weight=-1.0', 'sweeps=-2'):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="'w5a8' is not understood|weight_bits = 5"):
        bind_method('nested', {'ladder': 'w5a8'})
    with pytest.raises(ConfigError, match="no bound named 'papper'"):
        bind_method('nested', {'bound': 'papper'})
    assert set(option_names('nested')) == {'ladder', 'bound', 'fine_weight', 'sweeps'}
