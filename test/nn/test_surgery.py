"""Surgery touches what it is told to, all of it or nothing, and can be undone."""

import copy

import pytest
import torch
from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.mixed_conv import MixedConv2d
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.surgery import (
    find_linears,
    layer_roles,
    prepare_empty,
    quantize_linears,
    restore,
)
from vlaq_ros.quant.mixed import MixedLayout
from vlaq_ros.quant.scheme import LayerScheme

W4, W8 = LayerScheme(4, 64), LayerScheme(8)


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
            'patch': nn.Conv2d(3, 8, 4, 4),
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
    quantize_linears(model, {'llm.0.fc': W4, 'head': W8, 'patch': W8})
    after = _kinds(model)
    changed = {name: after[name] for name in before if before[name] is not after[name]}
    assert changed == {'llm.0.fc': MixedLinear, 'head': MixedLinear, 'patch': MixedConv2d}
    assert model.llm[0].fc.layout == MixedLayout((128, 64), 64, (0, 0, 128, 0))
    assert model.head.layout == MixedLayout((4, 72), 72, (0, 4, 0, 0))
    assert model.patch.layout == MixedLayout((8, 48), 48, (0, 8, 0, 0))


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
        '2 layer(s) are not a plain nn.Linear or nn.Conv2d:\n'
        '  vision.1: LayerNorm\n'
        '  adapter: Adapter'
    )
    assert list(model.modules()) == before


def test_every_layer_that_its_scheme_does_not_fit_is_listed_and_nothing_is_touched(model):
    before = list(model.modules())
    model.patch.groups = 3
    plan = {
        'vision.0': LayerScheme(4, 50),
        'head': LayerScheme((8, 8)),
        'llm.0.fc': W8,
        'patch': W8,
    }
    with pytest.raises(SchemeError) as error:
        quantize_linears(model, plan)
    assert str(error.value) == (
        '3 layer(s) cannot be quantized as planned:\n'
        '  vision.0: group_size=50 fits no kernel: use a multiple of 16, or at least the input '
        'width 100 for one scale per channel\n'
        '  head: 2 widths for 4 output channels\n'
        "  patch: groups=3, padding_mode='zeros': only convolutions without groups that pad with "
        'zeros can be packed'
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
        '2 layer(s) cannot be quantized as planned:\n'
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
    assert isinstance(model.head, MixedLinear)


def test_a_layer_with_two_names_is_replaced_and_restored_under_both():
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({'a': shared, 'b': nn.Sequential(shared)})
    originals = quantize_linears(model, {'a': W4})
    assert isinstance(model.a, MixedLinear)
    assert model.b[0] is model.a
    restore(model, originals)
    assert model.a is model.b[0] is shared


def test_an_empty_layer_takes_no_memory_and_is_filled_by_loading(model):
    plan = {'llm.0.fc': LayerScheme(tuple([8, 4] * 64), 16, 8), 'head': W8, 'patch': W8}
    quantize_linears(model, plan)
    other = copy.deepcopy(model).to('meta')
    for name, layer in (('head', nn.Linear(72, 4)), ('patch', nn.Conv2d(3, 8, 4, 4))):
        setattr(other, name, layer.to('meta'))
    other.llm[0]['fc'] = nn.Linear(64, 128).to('meta')
    layouts = {name: model.get_submodule(name).layout for name in plan}
    prepare_empty(other, layouts, {'llm.0.fc': 8})
    packed = [other.get_submodule(name) for name in plan]
    assert all(layer.is_empty and layer.device.type == 'meta' for layer in packed)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    x = torch.randn(2, 64)
    assert torch.equal(other.llm[0].fc(x), model.llm[0].fc(x))
    assert other.llm[0].fc.precision.tolist() == model.llm[0].fc.precision.tolist() == [8, 8]
    image = torch.randn(1, 3, 8, 12)
    assert torch.equal(other.patch(image), model.patch(image))


def test_a_layout_of_another_shape_is_refused(model):
    layouts = {
        'head': MixedLayout((4, 64), 64, (0, 4, 0, 0)),
        'patch': MixedLayout((9, 48), 48, (0, 9, 0, 0)),
    }
    with pytest.raises(SchemeError) as error:
        prepare_empty(model, layouts)
    assert str(error.value) == (
        '2 layer(s) cannot be quantized as planned:\n'
        '  head: weight of shape (4, 64), the layer has (4, 72)\n'
        '  patch: weight of shape (9, 48), the layer has (8, 48)'
    )


def test_each_layer_has_the_first_role_that_matches_and_none_is_guessed(model):
    names = find_linears(model)
    roles = {'llm': r'llm\..*', 'vision': r'vision\.\d', 'rest': 'head|llm.*'}
    assert list(layer_roles(names, roles).values()) == ['vision', 'llm', 'llm', 'llm', 'rest']
    with pytest.raises(
        SchemeError, match=r'2 layer\(s\) match none of the roles llm:\n  vision.0\n'
    ):
        layer_roles(names, {'llm': r'llm\..*'})
