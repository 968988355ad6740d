"""SmoothQuant and AWQ: the factors, their folding, and what they are for."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import awq, rtn, smoothquant
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.statistics import collect_statistics
from vlaq_ros.calibration.transforms import FoldedModel
from vlaq_ros.errors import SchemeError


def with_outliers(context, channels=(3, 17), factor=40.0):
    """Make a few activations of the backbone large and their weights small: the same function."""
    with torch.no_grad():
        for stream in context.structure.streams[:3:2]:
            rows = list(channels)
            gain = dict(context.model.named_parameters())[stream.writers[0].parameter]
            gain[rows] *= factor
            for reader in stream.readers:
                context.model.get_submodule(reader).weight[:, rows] /= factor
    return context


def error_of(context, result):
    with torch.no_grad():
        reference = [context.forward(batch) for batch in context.held_out]
        with applied(context.model, result):
            found = [context.forward(batch) for batch in context.held_out]
    pairs = [(f[h], r[h]) for f, r in zip(found, reference) for h in r]
    return sum(float(((f - r) / context.action_scale).square().sum()) for f, r in pairs)


def test_factors_are_those_of_the_formula(context):
    statistics = collect_statistics(context)
    stream = context.structure.streams[0]
    folded = FoldedModel(context.model)
    found = smoothquant.smoothing_factor(context, folded, stream, statistics, 0.75)
    x = statistics[stream.readers[0]].input_absmax
    w = torch.stack([context.weight(name).abs().amax(0) for name in stream.readers]).amax(0)
    torch.testing.assert_close(found.factor, x**0.75 / w**0.25)


def test_smoothing_alone_changes_no_action(context):
    wide = dataclasses.replace(context, budget_bits=9.0)
    plain, smooth = rtn.calibrate(wide), smoothquant.calibrate(wide)
    assert error_of(wide, smooth) < 3 * error_of(wide, plain)
    assert error_of(wide, smooth) < 0.01


def test_smoothing_repairs_outliers_under_rounded_activations(context):
    context = with_outliers(context)
    context = dataclasses.replace(context, budget_bits=9.0, activation_bits=4)
    assert error_of(context, smoothquant.calibrate(context)) < 0.5 * error_of(
        context, rtn.calibrate(context)
    )


def test_awq_repairs_outliers_under_rounded_weights(context):
    context = with_outliers(context)
    context = dataclasses.replace(context, budget_bits=5.0)
    result = awq.calibrate(context)
    assert error_of(context, result) < 0.7 * error_of(context, rtn.calibrate(context, 'mse'))
    backbone = '+'.join(context.structure.streams[0].readers)
    assert result.provenance['exponents'][backbone] > 0.0


def test_inputs_that_cannot_be_folded_are_named(context):
    result = smoothquant.calibrate(context)
    left = {'time_in', 'time_out', 'dit.0.adaln', 'dit.0.fc2'}
    assert set(result.provenance['not_smoothed']) == left


@pytest.mark.parametrize('strength', [-0.1, 1.5])
def test_a_strength_out_of_range_is_refused(context, strength):
    with pytest.raises(SchemeError, match='must be between 0 and 1'):
        smoothquant.calibrate(context, strength=strength)
