"""Tuning: the loss falls, the format stays, and the model is what it was."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import rtn, smoothquant
from vlaq_ros.calibration.action_error import default_metric
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.tuning import TunableLinear, TuningOptions, tune
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight


def error_of(context, result, batches):
    metric = default_metric(context)
    with torch.no_grad():
        reference = [context.forward(batch) for batch in batches]
        with applied(context.model, result):
            found = [context.forward(batch) for batch in batches]
    return sum(float(metric.error(f, r).sum()) for f, r in zip(found, reference))


@pytest.fixture
def two_bits(context):
    return rtn.calibrate(dataclasses.replace(context, budget_bits=3.0), 'mse')


def test_a_tunable_layer_starts_as_the_packed_one_and_packs_to_it():
    weight = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))
    widths = (8, 2, 4, 0, 16, 2, 8, 4, 2, 4)
    packed = MixedWeight.from_float(weight, widths, 16, 'mse')
    layer = TunableLinear(packed, weight, None, 16)
    x = torch.randn(3, 40)
    torch.testing.assert_close(layer(x), x @ packed.dequantize().T)
    again = layer.packed()
    assert torch.equal(again.dequantize(), packed.dequantize())
    assert torch.equal(again.order, packed.order)


@pytest.mark.parametrize('code_rate', [0.0, 0.01], ids=['scales', 'codes'])
def test_tuning_lowers_the_error_in_the_same_bytes(context, two_bits, code_rate):
    metric = default_metric(context)
    options = TuningOptions(steps=30, code_rate=code_rate)
    tuned, losses = tune(context, two_bits, metric, options)
    assert len(losses) == 30
    assert sum(losses[-4:]) < sum(losses[:4])
    before = error_of(context, two_bits, context.batches)
    assert error_of(context, tuned, context.batches) < 0.8 * before
    assert tuned.nbytes == two_bits.nbytes
    for name, weight in tuned.weights.items():
        assert torch.equal(weight.widths(), two_bits.weights[name].widths())
        assert (code_rate > 0) or torch.equal(weight.codes2, two_bits.weights[name].codes2)


def test_parameters_that_were_folded_stay_folded(context):
    smooth = smoothquant.calibrate(dataclasses.replace(context, budget_bits=5.0))
    tuned, _ = tune(context, smooth, default_metric(context), TuningOptions(steps=1))
    assert set(tuned.parameters) >= set(smooth.parameters)
    before = error_of(context, smooth, context.batches)
    assert error_of(context, tuned, context.batches) < 2.0 * before


def test_the_model_is_what_it_was_afterwards(context, two_bits):
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    modules = dict(context.model.named_modules())
    tune(context, two_bits, default_metric(context), TuningOptions(steps=2))
    assert dict(context.model.named_modules()) == modules
    after = context.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in context.model.parameters())


def test_no_steps_change_nothing(context, two_bits):
    same, losses = tune(context, two_bits, default_metric(context), TuningOptions(steps=0))
    assert same is two_bits
    assert losses == []


def test_the_same_seed_gives_the_same_result(context, two_bits):
    found = [
        tune(context, two_bits, default_metric(context), TuningOptions(steps=3))[0]
        for _ in range(2)
    ]
    for name, weight in found[0].weights.items():
        assert torch.equal(weight.dequantize(), found[1].weights[name].dequantize())


def test_negative_options_are_all_named():
    with pytest.raises(SchemeError, match='steps=-1, scale_rate=-0.1'):
        TuningOptions(steps=-1, scale_rate=-0.1)
