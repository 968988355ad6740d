"""Surgery touches what it is told to, all of it or nothing, and can be undone."""

import pytest
import torch
from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.quantized_linear import QuantizedLinear
from vlaq_ros.nn.surgery import find_linears, quantize_linears, restore
from vlaq_ros.quant.scheme import WEIGHT_LEVELS

W4, W8 = WEIGHT_LEVELS['w4'], WEIGHT_LEVELS['w8']


class Adapter(nn.Linear):
    """A subclass that does more than multiply."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    block = nn.ModuleDict({'q_proj': nn.Linear(64, 64), 'fc': nn.Linear(64, 128)})
    return nn.ModuleDict(
        {
            'vision': nn.Sequential(nn.Linear(100, 64), nn.LayerNorm(64)),
            'llm': nn.ModuleList([block, nn.ModuleDict({'q_proj': nn.Linear(64, 64)})]),
            'adapter': Adapter(64, 64),
            'head': nn.Linear(72, 4),
        }
    )


def _kinds(model):
    return {name: type(module) for name, module in model.named_modules()}


def test_linears_are_found_at_every_depth_and_subclasses_are_not(model):
    expected = ('vision.0', 'llm.0.q_proj', 'llm.0.fc', 'llm.1.q_proj', 'head')
    assert find_linears(model) == expected


def test_patterns_include_and_exclude(model):
    assert find_linears(model, ['llm.*']) == ('llm.0.q_proj', 'llm.0.fc', 'llm.1.q_proj')
    assert find_linears(model, ['*.q_proj', 'head']) == ('llm.0.q_proj', 'llm.1.q_proj', 'head')
    assert find_linears(model, ['llm.*'], ['*.fc']) == ('llm.0.q_proj', 'llm.1.q_proj')


def test_patterns_that_match_nothing_are_refused_together(model):
    with pytest.raises(SchemeError) as error:
        find_linears(model, ['llm.*', 'lmm.*'], ['vision.1'])
    assert str(error.value) == (
        '2 pattern(s) match no linear layer:\n'
        '  lmm.*\n'
        '  vision.1\n'
        'Parts of the model with linear layers: head, llm, vision.'
    )


def test_exactly_the_named_layers_are_replaced(model):
    before = _kinds(model)
    quantize_linears(model, {'llm.0.fc': W4, 'head': W8})
    after = _kinds(model)
    changed = {name for name in before if before[name] is not after[name]}
    assert changed == {'llm.0.fc', 'head'}
    assert (model.llm[0].fc.scheme, model.head.scheme) == (W4, W8)


def test_an_empty_plan_changes_nothing(model):
    before = list(model.modules())
    assert quantize_linears(model, {}) == {}
    assert list(model.modules()) == before


def test_restore_puts_the_very_same_layers_back(model):
    before = list(model.named_modules())
    originals = quantize_linears(model, dict.fromkeys(find_linears(model, ['llm.*']), W4))
    restore(model, originals)
    assert list(model.named_modules()) == before
    restore(model, {})


def test_every_offender_is_listed_and_nothing_is_touched(model):
    before = list(model.modules())
    plan = {
        'llm.0.fc': W8,
        'llm.0.q_prj': W8,
        '': W8,
        'vision.0': W4,
        'vision.1': W8,
        'adapter': W8,
        'head': W4,
    }
    with pytest.raises(SchemeError) as error:
        quantize_linears(model, plan)
    assert str(error.value) == (
        '2 name(s) are not in the model:\n'
        "  'llm.0.q_prj', did you mean 'llm.0.q_proj'?\n"
        "  ''\n"
        '2 layer(s) are not a plain nn.Linear:\n'
        '  vision.1: LayerNorm\n'
        '  adapter: Adapter\n'
        'group_size=64 does not divide the input width of 2 layer(s):\n'
        '  vision.0: in_features=100\n'
        '  head: in_features=72\n'
        'Choose a divisor of every width, or list these layers under `exclude`.'
    )
    assert list(model.modules()) == before


def test_every_weight_that_is_not_finite_is_listed_and_nothing_is_touched(model):
    with torch.no_grad():
        model.head.weight[2, 0] = torch.nan
        model.llm[0].fc.weight[[1, 9], 3] = torch.inf
    before = list(model.modules())
    with pytest.raises(SchemeError) as error:
        quantize_linears(model, dict.fromkeys(find_linears(model), W8))
    assert str(error.value) == (
        'the weight of 2 layer(s) cannot be quantized:\n'
        '  llm.0.fc: weight is not finite in 2 output channel(s): 1, 9\n'
        '  head: weight is not finite in 1 output channel(s): 2'
    )
    assert list(model.modules()) == before


def test_names_without_a_quantized_layer_cannot_be_restored(model):
    originals = quantize_linears(model, {'head': W8})
    with pytest.raises(SchemeError) as error:
        restore(model, {**originals, 'llm.0.fc': nn.Linear(64, 128), 'nose': nn.Linear(1, 1)})
    assert str(error.value) == (
        '2 name(s) hold no quantized layer to restore:\n  llm.0.fc\n  nose'
    )
    assert isinstance(model.head, QuantizedLinear)


def test_a_layer_with_two_names_is_replaced_and_restored_under_both():
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({'a': shared, 'b': nn.Sequential(shared)})
    originals = quantize_linears(model, {'a': W4})
    assert isinstance(model.a, QuantizedLinear)
    assert model.b[0] is model.a
    restore(model, originals)
    assert model.a is model.b[0] is shared
