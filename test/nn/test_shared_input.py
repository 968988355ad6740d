"""Layers with one input compute together and answer alone, whatever is done between the calls."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.memory import model_memory
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.precision_groups import share_precision
from vlaq_ros.nn.shared_input import SharedLinear, SharedStore, separate_inputs, share_inputs
from vlaq_ros.nn.store_file import load_model, model_schema, save_model
from vlaq_ros.nn.surgery import find_linears, quantize_linears
from vlaq_ros.quant.scheme import LayerScheme

GROUPS = (
    ('cross_attn.k_proj', 'cross_attn.v_proj'),
    ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
    ('mlp.gate_proj', 'mlp.up_proj'),
)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(32, 48), nn.Linear(32, 16)
        self.v_proj = nn.Linear(32, 16, bias=False)
        self.o_proj = nn.Linear(48, 32)

    def forward(self, x, context):
        query = self.q_proj(x).view(*x.shape[:-1], 3, 16)
        key, value = self.k_proj(context), self.v_proj(context)
        weights = torch.einsum('bthd,bsd->bhts', query, key).softmax(-1)
        return self.o_proj(torch.einsum('bhts,bsd->bthd', weights, value).flatten(-2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 40), nn.Linear(32, 40)
        self.down_proj = nn.Linear(40, 32)

    def forward(self, x):
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn, self.mlp = Attention(), Attention(), Mlp()

    def forward(self, x, context):
        x = self.cross_attn(self.self_attn(x, x), context)
        return self.mlp(x)


def _scheme(rows):
    return LayerScheme(tuple((8, 4, 2, 0, 8)[row % 5] for row in range(rows)), 16)


def _block():
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    names = find_linears(block)
    plan = {name: _scheme(block.get_submodule(name).out_features) for name in names}
    quantize_linears(block, plan)
    return block


def _inputs():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, n, 32, generator=generator) for n in (5, 7))


@pytest.fixture
def calls(monkeypatch):
    """Count the products that are computed."""
    counted, forward = [], MixedLinear.forward

    def count(self, x):
        counted.append(self)
        return forward(self, x)

    monkeypatch.setattr(MixedLinear, 'forward', count)
    return counted


def test_groups_are_found_and_the_model_computes_the_same_bits(calls):
    alone, block = _block(), _block()
    assert set(share_inputs(block)) == set(GROUPS)
    expected = alone(*_inputs())
    assert len(calls) == 11
    calls.clear()
    assert torch.equal(block(*_inputs()), expected)
    assert len(calls) == 7  # two attentions of which one shares k and v alone, o twice, the MLP
    kinds = {name: type(block.get_submodule(name)) for group in GROUPS for name in group}
    assert set(kinds.values()) == {SharedLinear}


def test_keys_files_and_memory_are_those_of_the_single_layers(tmp_path):
    alone, block = _block(), _block()
    share_inputs(block)
    ours, theirs = block.state_dict(), alone.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model_schema(block) == model_schema(alone)
    save_model(block, tmp_path / 'shared')
    save_model(alone, tmp_path / 'alone')
    assert (tmp_path / 'shared').read_bytes() == (tmp_path / 'alone').read_bytes()
    memory, single = model_memory(block), model_memory(alone)
    assert memory.quantized_weights == single.quantized_weights
    assert memory.quantized_layers == 11 - 4
    assert memory.quantized_bytes == sum(
        m.weight_bytes for m in block.modules() if isinstance(m, MixedLinear)
    )


def test_separated_layers_are_the_layers_of_before():
    alone, block = _block(), _block()
    share_inputs(block)
    separate_inputs(block)
    assert not any(isinstance(m, SharedLinear | SharedStore) for m in block.modules())
    ours, theirs = block.state_dict(), alone.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize('how', ['state_dict', 'file', 'meta'])
def test_weights_are_loaded_into_fused_layers(how, tmp_path):
    source, block = _block(), _block()
    with torch.no_grad():
        source.self_attn.k_proj = MixedLinear.from_linear(nn.Linear(32, 16), _scheme(16))
    share_inputs(block)
    if how == 'meta':
        block.to('meta')
        assert block.self_attn.q_proj.is_empty
        assert set(block.state_dict()) == set(source.state_dict())
    if how == 'file':
        save_model(source, tmp_path / 'file')
        load_model(block, tmp_path / 'file')
    else:
        block.load_state_dict(source.state_dict())
    assert torch.equal(block(*_inputs()), source(*_inputs()))


def _fused():
    torch.manual_seed(0)
    layers = nn.ModuleList(
        MixedLinear.from_linear(nn.Linear(32, rows), LayerScheme(8, 16)) for rows in (24, 16, 8)
    )
    alone = copy.deepcopy(layers)
    share_inputs(layers, [('0', '1', '2')])
    return layers, alone


def _assert_right(layers, alone, x):
    for layer, single in zip(layers, alone):
        assert torch.equal(layer(x), single(x))


def test_one_product_serves_each_layer_once(calls):
    layers, alone = _fused()
    with torch.no_grad():
        x = torch.randn(3, 32)
        first = [layer(x) for layer in layers]
        assert len(calls) == 1
        again = [layer(x) for layer in layers]  # a static buffer, as in a graph: computed anew
        assert len(calls) == 2
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        _assert_right(layers, alone, x)


def test_an_input_that_changed_in_place_is_seen():
    layers, alone = _fused()
    with torch.no_grad():
        x = torch.randn(3, 32)
        layers[0](x)
        x.mul_(2)
        _assert_right(layers, alone, x)
        layers[1](x)
        x[0, 0] = 5.0
        assert torch.equal(layers[2](x), alone[2](x))


def test_an_equal_input_that_is_another_object_is_computed(calls):
    layers, _ = _fused()
    with torch.no_grad():
        x = torch.randn(3, 32)
        layers[0](x)
        layers[1](x.clone())
        layers[2](x.view(3, 32))
        assert len(calls) == 3


@pytest.mark.filterwarnings('ignore:layers that share')
def test_inference_mode_gives_the_same_and_a_word_of_warning():
    """Its tensors have no version: a change in place could not be seen."""
    layers, alone = _fused()
    with torch.inference_mode():
        x = torch.randn(3, 32)
        with pytest.warns(RuntimeWarning, match=r'run under torch.no_grad\(\)'):
            layers[0](x)
        x.mul_(2)
        _assert_right(layers, alone, x)


def test_a_changed_precision_is_seen():
    layers, alone = _fused()
    share_precision(alone)
    x = torch.randn(3, 32)
    with torch.no_grad():
        layers[0](x)
        layers[1].set_cap(4)
        alone[0].set_cap(4)
        assert torch.equal(layers[2](x), alone[2](x))
        layers[0](x)
        share_precision(layers, activation_bits=8)
        share_precision(alone, activation_bits=8)
        assert torch.equal(layers[1](x), alone[1](x))


def test_loaded_weights_are_seen():
    layers, alone = _fused()
    state = alone.state_dict()
    state['1.scale'] = 2 * state['1.scale']
    x = torch.randn(3, 32)
    with torch.no_grad():
        layers[0](x)
        layers.load_state_dict(state)
        alone.load_state_dict(state)
        assert torch.equal(layers[1](x), alone[1](x))
        _assert_right(layers, alone, x)


def test_the_input_is_not_kept_alive_and_takes_the_parts_with_it():
    layers, _ = _fused()
    store = layers[0].store
    with torch.no_grad():
        x = torch.randn(3, 32)
        layers[0](x)
        alive = weakref.ref(x)
        parts = weakref.ref(store._last._parts[1])
        del x
        gc.collect()
        assert alive() is None
        assert parts() is None


def test_a_part_that_was_fetched_is_not_kept():
    layers, _ = _fused()
    with torch.no_grad():
        x = torch.randn(3, 32)
        layers[0](x)
        part = layers[1](x)
        fetched = weakref.ref(part)
        del part
        gc.collect()
        assert fetched() is None


def test_gradients_reach_the_input_through_every_layer(calls):
    layers, alone = _fused()
    x = torch.randn(3, 32, requires_grad=True)
    sum(layer(x).square().sum() for layer in layers).backward()
    assert len(calls) == 3
    gradient = x.grad.clone()
    x.grad = None
    sum(layer(x).square().sum() for layer in alone).backward()
    torch.testing.assert_close(gradient, x.grad)


def test_compiled_models_compute_the_same():
    torch.compiler.reset()
    layers, alone = _fused()
    compiled = torch.compile(lambda x: [layer(x) for layer in layers], fullgraph=True)
    with torch.no_grad():
        x = torch.randn(3, 32)
        layers[0](x)  # leaves parts that the trace must not pick up
        for _ in range(2):
            for y, single in zip(compiled(x), alone):
                assert torch.equal(y, single(x))
            layers[0].set_cap(4)
            share_precision(alone, cap=4)


def test_copies_share_among_themselves():
    layers, alone = _fused()
    with torch.no_grad():
        x = torch.randn(3, 32)
        layers[0](x)
        other = copy.deepcopy(layers)
        assert other[0].store is other[2].store is not layers[0].store
        _assert_right(other, alone, x)
        other[0].set_cap(4)
        _assert_right(layers, alone, x)
        assert isinstance(pickle.loads(pickle.dumps(layers[0].store._last)), object)


def test_casting_and_training_mode_are_those_of_layers():
    layers, alone = _fused()
    layers.half().eval()
    with torch.no_grad():
        _assert_right(layers, alone, torch.randn(3, 32))
    assert not layers[0].training
    assert layers[0].bias.dtype == torch.float32
    assert (layers[0].is_empty, layers[0].device.type) == (False, 'cpu')
    assert layers[0].kernel == layers[0].store.kernel


@pytest.mark.parametrize(
    ('other', 'fault'),
    [
        (
            MixedLinear.from_linear(nn.Linear(48, 8), LayerScheme(8, 16)),
            'different inputs: 32, 48',
        ),
        (MixedLinear.from_linear(nn.Linear(32, 8), LayerScheme(8)), 'different groups: 16, 32'),
        (
            MixedLinear.from_linear(nn.Linear(32, 8), LayerScheme(8, 16, 8)),
            r'different precisions: \[8, 16\], \[8, 8\]',
        ),
        (nn.Linear(32, 8), 'not packed linear layers: MixedLinear, Linear'),
        (MixedLinear.from_linear(nn.Linear(32, 8), LayerScheme(8, 16)).to('meta'), 'not loaded'),
    ],
    ids=['inputs', 'groups', 'precisions', 'float', 'empty'],
)
def test_layers_that_differ_are_refused_when_named_and_left_alone_when_found(other, fault):
    first = MixedLinear.from_linear(nn.Linear(32, 8), LayerScheme(8, 16))
    model = nn.ModuleDict({'gate_proj': first, 'up_proj': other})
    with pytest.raises(SchemeError, match=rf'1 group.*\n  gate_proj, up_proj: {fault}'):
        share_inputs(model, [('gate_proj', 'up_proj')])
    assert share_inputs(model) == ()
    assert (model.gate_proj, model.up_proj) == (first, other)


def test_every_group_that_cannot_be_fused_is_listed():
    model = nn.ModuleDict({'a': MixedLinear.from_linear(nn.Linear(32, 8), LayerScheme(8, 16))})
    with pytest.raises(SchemeError) as error:
        share_inputs(model, [('a', 'b'), ('a', 'a')])
    assert str(error.value) == (
        '2 group(s) of layers cannot share an input:\n'
        '  a, b: not packed linear layers: MixedLinear, missing\n'
        '  a, a: not two or more different layers'
    )
