"""QVLA: the budget in both of its meanings, pruning with a bias, better than uniform widths."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import qvla, rtn
from vlaq_ros.calibration.action_error import default_metric
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.qvla import QvlaOptions
from vlaq_ros.calibration.statistics import collect_statistics
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight


def error_of(context, result, batches):
    metric = default_metric(context)
    with torch.no_grad():
        reference = [context.forward(batch) for batch in batches]
        with applied(context.model, result):
            found = [context.forward(batch) for batch in batches]
    return sum(float(metric.error(f, r).sum()) for f, r in zip(found, reference))


def test_the_histogram_of_the_published_mode_averages_the_budget(context):
    context = dataclasses.replace(context, budget_bits=4.0, group_size=None)
    result = qvla.calibrate(context, QvlaOptions(mode='paper'))
    mean = sum(bits * share for bits, share in result.histogram().items())
    channels = sum(context.linear(name).out_features for name in context.layers)
    assert 4.0 - 8 / channels <= mean <= 4.0 + 1e-6
    assert mean == pytest.approx(result.mean_bits_per_channel)
    assert result.mean_bits_per_weight > 4.0  # scales, which the published budget leaves out
    assert len(result.histogram()) >= 3


def test_the_default_mode_counts_scales_and_gives_tiles_one_width(context):
    context = dataclasses.replace(context, budget_bits=4.5)
    result = qvla.calibrate(context)
    assert 4.4 <= result.mean_bits_per_weight <= 4.5
    for weight in result.weights.values():
        assert all(count % 16 == 0 for count in weight.layout.counts)


def test_it_beats_a_uniform_width_of_the_same_size(context):
    context = dataclasses.replace(context, budget_bits=5.0, group_size=None)
    mixed, uniform = qvla.calibrate(context), rtn.calibrate(context, 'mse')
    assert uniform.nbytes < mixed.nbytes <= context.budget_bytes
    even = dataclasses.replace(context, budget_bits=uniform.mean_bits_per_weight)
    assert error_of(context, qvla.calibrate(even), context.held_out) < error_of(
        context, uniform, context.held_out
    )


def test_exact_measurement_replaces_the_top_of_the_ranking(context):
    result = qvla.calibrate(context, QvlaOptions(exact_pairs=6))
    assert result.provenance['exact_passes'] == {'forward': 14, 'backward': 0}
    assert -1.0 <= result.provenance['exact_rank_correlation'] <= 1.0


def test_a_pruned_channel_keeps_its_mean_output(context):
    name = 'language_model.layers.0.mlp.up_proj'
    statistics = collect_statistics(context, [name])
    weight = context.weight(name)
    widths = [0, *[16] * (len(weight) - 1)]
    weights = {name: MixedWeight.from_float(weight, widths, 16)}
    biases = qvla.pruned_biases(context, weights, statistics)
    bias = biases[f'{name}.bias']
    assert bias[0] == pytest.approx(float(statistics[name].output_mean[0]), abs=1e-5)
    assert (bias[1:] == 0.0).all()
    result = qvla.MethodResult('test', weights, {name: 16}, biases)
    without = dataclasses.replace(result, parameters={})
    assert error_of(context, result, context.batches) < error_of(context, without, context.batches)


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(SchemeError, match="mode='rows' must be 'tiles' or 'paper'"):
        QvlaOptions(mode='rows')
