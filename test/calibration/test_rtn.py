"""RTN: the widest width that fits, and nothing left behind in the model."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import rtn
from vlaq_ros.calibration.applied import applied
from vlaq_ros.errors import SchemeError


@pytest.mark.parametrize(
    ('budget', 'group_size', 'bits'),
    [(16.0, 16, 8), (8.99, 16, 4), (5.0, 16, 4), (4.99, 16, 2), (4.5, None, 4), (2.5, None, 2)],
)
def test_the_widest_width_within_the_budget_is_taken(context, budget, group_size, bits):
    context = dataclasses.replace(context, budget_bits=budget, group_size=group_size)
    result = rtn.calibrate(context)
    assert result.histogram() == {bits: 1.0}
    assert result.mean_bits_per_weight <= budget
    assert result.mean_bits_per_channel == bits
    counted = sum(
        w.scale.nbytes + w.codes8.nbytes + w.codes4.nbytes + w.codes2.nbytes
        for w in result.weights.values()
    )
    assert counted == rtn.uniform_bytes(context, bits) == result.nbytes


def test_a_budget_that_no_width_fits_is_refused(context):
    with pytest.raises(SchemeError, match=r'2\.5 bits per weight is below the 3\.000'):
        rtn.calibrate(dataclasses.replace(context, budget_bits=2.5))


def test_the_model_is_what_it_was_afterwards(context):
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    modules = dict(context.model.named_modules())
    result = rtn.calibrate(context)
    with applied(context.model, result):
        layer = context.model.get_submodule('dit.0.fc1')
        assert torch.equal(layer.weight, result.weights['dit.0.fc1'].dequantize())
    assert dict(context.model.named_modules()) == modules
    after = context.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_eight_bits_hardly_change_the_actions(context):
    result = rtn.calibrate(dataclasses.replace(context, budget_bits=9.0, activation_bits=8))
    with torch.no_grad():
        reference = context.forward(context.batches[0])
        with applied(context.model, result):
            found = context.forward(context.batches[0])
    for head, actions in reference.items():
        error = ((found[head] - actions) / context.action_scale).abs().max()
        assert 0.0 < error < 0.1


def test_names_that_the_model_does_not_have_are_all_refused(context):
    result = rtn.calibrate(context)
    weights = {'a.b': result.weights['dit.0.fc1'], 'dit.0': result.weights['dit.0.fc1']}
    wrong = dataclasses.replace(result, weights=weights, parameters={'c': torch.zeros(1)})
    with pytest.raises(SchemeError, match='c, a.b, dit.0'), applied(context.model, wrong):
        pass
