"""A packed layer is a small linear layer that survives moving, casting, copying and the disk."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.precision_groups import share_precision
from vlaq_ros.quant.error import sqnr_db
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight
from vlaq_ros.quant.scheme import LayerScheme

OUT, IN = 37, 192
SCHEMES = {
    'w8': LayerScheme(8),
    'w4': LayerScheme(4, 64),
    'mixed': LayerScheme(tuple((16, 8, 4, 2, 0)[channel % 5] for channel in range(OUT)), 64),
    'pruned': LayerScheme(0),
}
every_scheme = pytest.mark.parametrize('scheme', SCHEMES.values(), ids=SCHEMES.keys())


def _linear(seed=0, bias=True):
    torch.manual_seed(seed)
    linear = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
    nn.init.normal_(linear.weight, std=0.05)
    return linear


def _expected(layer, x):
    y = x.double() @ layer.weight.dequantize(torch.float64).T
    return y if layer.bias is None else y + layer.bias.double()


@every_scheme
@pytest.mark.parametrize('leading', [(), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no_bias'])
def test_the_output_is_the_product_with_the_weight(scheme, leading, bias):
    layer = MixedLinear.from_linear(_linear(0, bias), scheme)
    x = torch.randn(*leading, IN)
    y = layer(x)
    assert y.shape == (*leading, OUT)
    wide = layer.weight.widths() == 16
    assert sqnr_db(_expected(layer, x)[..., wide], y[..., wide]) > 48 or not wide.any()
    expected = _expected(layer, x)[..., ~wide]
    assert (y[..., ~wide] - expected).abs().max() <= 2e-4 * expected.abs().max() + 1e-7


@every_scheme
def test_the_float_weight_is_gone(scheme):
    layer = MixedLinear.from_linear(_linear(), scheme)
    assert list(layer.parameters()) == []
    held = sum(buffer.nbytes for buffer in layer.buffers())
    assert held == layer.weight_bytes + 4 * OUT + 8
    assert layer.weight_bytes >= layer.weight.nbytes or layer.layout.kept == 0


@every_scheme
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no_bias'])
@pytest.mark.parametrize('target', ['empty', 'packed'])
def test_state_dict_survives_the_disk_bit_for_bit(scheme, bias, target, tmp_path):
    layer = MixedLinear.from_linear(_linear(0, bias), scheme)
    save_file(layer.state_dict(), tmp_path / 'layer.safetensors')
    other = MixedLinear.empty(layer.layout, bias)
    if target == 'packed':
        other = MixedLinear.from_linear(_linear(1, bias), scheme)
    other.load_state_dict(load_file(tmp_path / 'layer.safetensors'), strict=True)
    _assert_same_state(layer, other)
    x = torch.randn(3, IN)
    assert torch.equal(other(x), layer(x))


def _assert_same_state(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name].cpu(), tensor.cpu())


def test_the_state_is_the_file_form():
    layer = MixedLinear.from_linear(_linear(), SCHEMES['mixed'])
    weight = MixedWeight.from_float(_linear().weight, SCHEMES['mixed'].widths, 64)
    state = layer.state_dict()
    assert torch.equal(state.pop('bias'), _linear().bias)
    assert set(state) == set(weight.tensors())
    assert all(torch.equal(state[name], tensor) for name, tensor in weight.tensors().items())


def test_loading_leaves_the_layer_and_the_tensors_apart():
    state = MixedLinear.from_linear(_linear(), SCHEMES['mixed']).state_dict()
    layer = MixedLinear.empty(MixedLayout((OUT, IN), 64, (8, 8, 7, 7)))
    layer.load_state_dict(state)
    before = copy.deepcopy(layer)
    for tensor in state.values():
        tensor.zero_()
    _assert_same_state(layer, before)


CASTS = {
    'half': lambda layer: layer.half(),
    'bfloat16': lambda layer: layer.bfloat16(),
    'double': lambda layer: layer.double(),
    'to_float': lambda layer: layer.to(torch.float32),
    'to_device_and_dtype': lambda layer: layer.to('cpu', torch.bfloat16),
    'type': lambda layer: layer.type(torch.float16),
}


@every_scheme
@pytest.mark.parametrize('cast', CASTS.values(), ids=CASTS.keys())
@pytest.mark.parametrize('form', ['packed', 'empty'])
def test_casting_the_model_leaves_the_layer_alone(scheme, cast, form):
    layer = MixedLinear.from_linear(_linear(), scheme)
    if form == 'empty':
        layer = MixedLinear(layer.layout)
    before = copy.deepcopy(layer)
    assert cast(layer) is layer
    _assert_same_state(layer, before)
    for (name, buffer), (_, old) in zip(layer.named_buffers(), before.named_buffers()):
        assert buffer.dtype == old.dtype, name


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_compute_dtype_follows_the_input(dtype):
    layer = MixedLinear.from_linear(_linear(), SCHEMES['w8'])
    x = torch.randn(4, IN)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert sqnr_db(layer(x), y.float()) > 35


def test_the_meta_device_empties_the_layer_and_loading_fills_it_again():
    layer = MixedLinear.from_linear(_linear(), SCHEMES['mixed'])
    x, before = torch.randn(3, IN), copy.deepcopy(layer)
    layer.to('meta')
    assert layer.is_empty
    assert {buffer.device.type for buffer in layer.buffers()} == {'meta'}
    with pytest.raises(SchemeError, match='this layer was never loaded: 8 x 16 bit'):
        layer(x)
    layer.load_state_dict(before.state_dict())
    assert torch.equal(layer(x), before(x))


def test_a_copy_is_independent():
    layer = MixedLinear.from_linear(_linear(), SCHEMES['w8'])
    other = copy.deepcopy(layer)
    _assert_same_state(layer, other)
    other.set_cap(4)
    x = torch.randn(3, IN)
    assert layer.shared_precision.cap == 8
    assert not torch.equal(other(x), layer(x))


def test_copies_of_a_model_keep_what_its_layers_share():
    model = nn.Sequential(*(MixedLinear.from_linear(_linear(s), SCHEMES['w8']) for s in (0, 1)))
    share_precision(model)
    other = copy.deepcopy(model)
    other[0].set_cap(4)
    assert other[1].shared_precision.cap == 4
    assert model[1].shared_precision.cap == 8
    assert other[0].precision is other[1].precision


def test_the_layer_does_not_share_the_bias_of_the_original():
    linear = _linear()
    layer = MixedLinear.from_linear(linear, SCHEMES['w8'])
    before = layer.bias.clone()
    linear.bias.add_(1.0)
    assert torch.equal(layer.bias, before)


def test_the_training_mode_is_kept():
    assert not MixedLinear.from_linear(_linear().eval(), SCHEMES['w8']).training


def test_gradients_reach_the_input():
    layer = MixedLinear.from_linear(_linear(), SCHEMES['w8'])
    x = torch.randn(2, IN, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0], layer.weight.dequantize().sum(0))


def test_the_kernel_and_the_layout_are_shown():
    layer = MixedLinear.from_linear(_linear(), SCHEMES['w4'])
    assert repr(layer) == (
        'MixedLinear(in_features=192, out_features=37, bias=True, 37 x 4 bit, groups of 64)'
    )
    assert repr(MixedLinear.empty(layer.layout, bias=False)) == (
        'MixedLinear(in_features=192, out_features=37, bias=False, 37 x 4 bit, groups of 64, '
        'empty)'
    )
    assert layer.kernel.reason.startswith(layer.kernel.kernel.name)


def test_a_scheme_that_does_not_fit_is_refused():
    with pytest.raises(SchemeError, match='group_size=100 fits no kernel: use a multiple of 16'):
        MixedLinear.from_linear(_linear(), LayerScheme(4, 100))
    with pytest.raises(SchemeError, match='2 widths for 37 output channels'):
        MixedLinear.from_linear(_linear(), LayerScheme((4, 8)))


def test_every_fault_of_every_layer_is_listed_and_nothing_is_changed():
    model = nn.ModuleDict(
        {name: MixedLinear.from_linear(_linear(), SCHEMES['mixed']) for name in 'abc'}
    )
    before = copy.deepcopy(model)
    state = model.state_dict()
    state['a.scale'][0, 0] = torch.nan
    state['a.codes8'] = state['a.codes8'][:, 1:]
    state['b.bias'] = torch.full((OUT,), torch.inf)
    state['c.zero_point'] = torch.zeros(1)
    del state['c.order']
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    for fault in (
        'a: not a mixed-width weight',
        'codes8: uint8 [8, 191], expected uint8 [8, 192]',
        'scale: negative or not finite in 1 row(s): 0',
        'b: bias: not finite',
        '"c.order"',
        '"c.zero_point"',
    ):
        assert fault in str(error.value)
    _assert_same_state(model, before)


def test_a_weight_of_another_layout_is_refused():
    layer = MixedLinear.empty(MixedLayout((OUT, IN), 64, (0, 0, OUT, 0)))
    weight = MixedWeight.from_float(_linear().weight, [8] * OUT, 64)
    with pytest.raises(SchemeError, match='the layer holds 37 x 4 bit.*given 37 x 8 bit.*no bias'):
        layer.fill(weight, None)


def test_room_that_was_filled_by_others_is_packed_when_asked():
    """Loaders that write tensor by tensor know no layers."""
    source = MixedLinear.from_linear(_linear(), SCHEMES['mixed'])
    layer = MixedLinear(source.layout)
    for name, tensor in source.state_dict().items():
        getattr(layer, name).copy_(tensor)
    assert layer.is_empty
    layer.pack()
    assert not layer.is_empty
    _assert_same_state(layer, source)
    layer.pack()
    with pytest.raises(SchemeError, match='never loaded'):
        MixedLinear.empty(source.layout).pack()


def test_the_cap_reads_the_high_nibble_at_once():
    layer = MixedLinear.from_linear(_linear(bias=False), LayerScheme(8, 64))
    x = torch.randn(3, IN)
    full = layer(x)
    layer.set_cap(4)
    expected = x.double() @ layer.weight.dequantize(torch.float64, cap=4).T
    assert sqnr_db(expected, layer(x)) > 70
    layer.set_cap(8)
    assert torch.equal(layer(x), full)


def test_fewer_activation_bits_make_more_noise():
    layer = MixedLinear.from_linear(_linear(), LayerScheme(8, 64, activation_bits=2))
    x = torch.randn(64, IN)
    ratios = []
    for bits in (2, 4, 8, 16):
        layer.set_activation_bits(bits)
        ratios.append(sqnr_db(_expected(layer, x), layer(x)))
    assert ratios == sorted(ratios)
    assert ratios[0] < 8 < ratios[1] < 25 < ratios[2] < 50 < ratios[3]


@pytest.mark.parametrize(('cap', 'bits'), [(2, 8), (16, 8), (4, 3), (4, 0), (4, 8.0)])
def test_a_precision_that_does_not_exist_changes_nothing(cap, bits):
    layer = MixedLinear.from_linear(_linear(), SCHEMES['w8'])
    with pytest.raises(SchemeError, match='is not supported'):
        layer.shared_precision.set(cap, bits)
    assert layer.precision.tolist() == [8, 16]


def _model():
    layers = {name: MixedLinear.from_linear(_linear(), SCHEMES['w8']) for name in ('a', 'b', 'c')}
    return nn.ModuleDict({**layers, 'norm': nn.LayerNorm(4)})


def test_one_write_switches_all_layers_that_share_a_precision():
    model = _model()
    llm = share_precision(model, ['a', 'b'])
    llm.set(cap=4, activation_bits=8)
    assert [model[name].precision.tolist() for name in 'abc'] == [[4, 8], [4, 8], [8, 16]]
    assert model.a.precision is model.b.precision
    model.to(torch.float16)
    llm.set(cap=8)
    assert [model[name].precision.tolist() for name in 'abc'] == [[8, 8], [8, 8], [8, 16]]


def test_a_precision_made_in_inference_mode_can_be_changed_outside():
    with torch.inference_mode():
        layer = MixedLinear.from_linear(_linear(), SCHEMES['w8'])
    layer.set_cap(4)
    assert layer.precision.tolist() == [4, 16]


def test_layers_that_differ_are_shared_only_when_told_what_to_be():
    model = _model()
    model.b.set_activation_bits(8)
    with pytest.raises(SchemeError) as error:
        share_precision(model)
    assert str(error.value) == (
        'layers that share a precision differ in activation_bits; name one:\n'
        '  a: 16\n  b: 8\n  c: 16'
    )
    assert share_precision(model, activation_bits=8).activation_bits == 8
    assert [model[name].precision.tolist() for name in 'abc'] == [[8, 8]] * 3


def test_names_without_a_packed_layer_share_nothing():
    with pytest.raises(SchemeError, match=r'2 name\(s\) hold no packed layer:\n  norm\n  d$'):
        share_precision(_model(), ['a', 'norm', 'd'])
    with pytest.raises(SchemeError, match='the model has no packed layer'):
        share_precision(nn.Linear(2, 2))


@pytest.mark.gpu
@pytest.mark.parametrize('scheme', SCHEMES.values(), ids=SCHEMES.keys())
def test_another_device_repacks_the_layer_and_back_again_nothing_has_changed(scheme):
    layer = MixedLinear.from_linear(_linear(), scheme)
    before, x = copy.deepcopy(layer), torch.randn(5, IN)
    layer.to('cuda')
    assert {buffer.device.type for buffer in layer.buffers()} == {'cuda'}
    _assert_same_state(layer, before)
    assert sqnr_db(before(x), layer(x.cuda()).cpu()) > 40 or layer.layout.kept == 0
    layer.set_cap(4)
    assert layer.precision.tolist() == [4, 16]
    _assert_same_state(layer.cpu(), before)
    before.set_cap(4)
    assert torch.equal(layer(x), before(x))
