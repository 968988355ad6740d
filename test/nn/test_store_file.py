"""What is saved comes back bit for bit, in little memory, or not at all."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vlaq_ros.errors import BundleError, SchemeError
from vlaq_ros.nn.store_file import (
    StoredLayer,
    load_model,
    model_schema,
    parse_schema,
    read_schema,
    save_model,
)
from vlaq_ros.nn.surgery import quantize_linears
from vlaq_ros.nn.tensor_file import TensorSpec, write_tensors
from vlaq_ros.quant.mixed import MixedLayout
from vlaq_ros.quant.scheme import LayerScheme

PLAN = {
    'layers.0': LayerScheme((16, 8, 4, 2, 0) * 4, 16, 8),
    'layers.2': LayerScheme(4),
    'patch': LayerScheme(8),
}


class Model(nn.Module):
    """Linear, convolution and embedding, one of them with two names, and buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 20)
        self.layers = nn.ModuleList(
            [nn.Linear(50, 20), nn.LayerNorm(20), nn.Linear(20, 50, False)]
        )
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.head = nn.Linear(20, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer('steps', torch.arange(3))
        self.register_buffer('frequencies', torch.ones(2), persistent=False)

    def forward(self, x, image):
        y = self.layers[2](self.layers[1](self.layers[0](x)))
        return self.head(y[..., :20]), self.patch(image)


def _model(seed=0, plan=PLAN):
    torch.manual_seed(seed)
    model = Model().requires_grad_(False)
    quantize_linears(model, plan)
    return model


def _to_meta(model):
    model.to('meta')
    model.head.weight = model.embed.weight  # moving parted them
    return model


INPUTS = (torch.randn(3, 50), torch.randn(1, 3, 4, 4))


@pytest.fixture
def path(tmp_path):
    save_model(_model(), tmp_path / 'model.safetensors')
    return tmp_path / 'model.safetensors'


def _assert_equal(one, other):
    for ours, theirs in zip(one(*INPUTS), other(*INPUTS)):
        assert torch.equal(ours, theirs)
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize('target', ['float', 'packed', 'meta'])
def test_a_model_comes_back_bit_for_bit(path, target):
    other = _model(1, PLAN if target == 'packed' else {})
    if target == 'meta':
        other = _to_meta(other)
        other.frequencies = torch.ones(2)
    load_model(other, path)
    _assert_equal(_model(), other)
    assert other.head.weight is other.embed.weight
    assert other.layers[0].precision.tolist() == ([8, 8])


def test_the_file_is_the_same_whatever_was_loaded_before(path, tmp_path):
    other = _model(1, {})
    load_model(other, path)
    save_model(other, tmp_path / 'again')
    assert (tmp_path / 'again').read_bytes() == path.read_bytes()


def test_the_file_holds_the_file_form_of_every_layer_and_shared_tensors_once(path):
    state = _model().state_dict()
    del state['head.weight']
    stored = load_file(path)
    assert set(stored) == set(state)
    assert all(torch.equal(stored[name], state[name]) for name in state)


def test_the_schema_says_what_the_layers_are(path):
    schema = model_schema(_model())
    assert schema['format'] == 1
    assert schema['layers']['layers.0'] == {
        'shape': [20, 50],
        'group_size': 16,
        'counts': [4, 4, 4, 4],
        'activation_bits': 8,
    }
    assert read_schema(path) == parse_schema(json.loads(json.dumps(schema)), 'it')
    assert read_schema(path)['patch'] == StoredLayer(MixedLayout((6, 12), 12, (0, 6, 0, 0)))


def test_floats_are_cast_to_the_model(path):
    model = _model(1, {}).bfloat16()
    load_model(model, path)
    assert model.embed.weight.dtype == torch.bfloat16
    assert torch.equal(model.embed.weight, _model().embed.weight.bfloat16())
    assert torch.equal(model.layers[0].bias, _model().layers[0].bias)


def test_what_was_never_loaded_cannot_be_saved(tmp_path):
    model = _model().to('meta')
    with pytest.raises(SchemeError, match=r'8 part\(s\) were never loaded:\n  layers.0\n'):
        save_model(model, tmp_path / 'file')
    assert list(tmp_path.iterdir()) == []


def _damage(path, change):
    """Rewrite a file with other tensors and another schema."""
    tensors, schema = load_file(path), model_schema(_model())
    change(tensors, schema)
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_tensors(path, specs, [lambda: tensors], {'vlaq': json.dumps(schema)})


def _refusal(path, model=None):
    with pytest.raises((BundleError, SchemeError)) as error:
        load_model(model or _model(1, {}), path)
    return str(error.value)


def test_every_missing_unexpected_and_differing_tensor_is_listed(path):
    def change(tensors, schema):
        del tensors['layers.0.order'], tensors['steps']
        tensors['patch.codes8'] = tensors['patch.codes8'][:, 1:].contiguous()
        tensors['embed.weight'] = tensors['embed.weight'].int()
        tensors['layers.0.scale'] = tensors['layers.0.scale'].float()
        tensors['extra'] = torch.zeros(1)

    _damage(path, change)
    assert _refusal(path).split('\n  ')[1:] == [
        'layers.0.order: missing, expected int32 [16]',
        'steps: missing, expected int64 [3]',
        'embed.weight: int32 [7, 20], expected float32 [7, 20]',
        'extra: unexpected',
        'layers.0.scale: float32 [12, 4], expected float16 [12, 4]',
        'patch.codes8: uint8 [6, 11], expected uint8 [6, 12]',
    ]


def test_every_value_that_is_no_weight_is_listed(path):
    def change(tensors, schema):
        tensors['layers.0.scale'][2, 1] = torch.nan
        tensors['layers.2.order'][0] = 77
        tensors['patch.bias'][0] = torch.inf
        tensors['embed.weight'][0, 0] = -torch.inf

    _damage(path, change)
    message = _refusal(path)
    for fault in (
        'scale: negative or not finite in 1 row(s): 2',
        'order: 77 of 50 channels do not exist',
        'patch.bias: not finite',
        'embed.weight: not finite',
    ):
        assert fault in message


SCHEMAS = {
    'version': (lambda s: s.update(format=3), 'is of format 3; this version reads 1. Upgrade'),
    'true': (lambda s: s.update(format=True), 'is of format True; this version reads 1'),
    'no layers': (lambda s: s.pop('layers'), 'must have a format and layers'),
    'a list': (lambda s: s.update(layers=[]), 'are not a table'),
    'key': (lambda s: s['layers']['patch'].pop('counts'), 'patch: must have exactly shape, group'),
    'extra': (lambda s: s['layers']['patch'].update(x=1), 'patch: must have exactly shape, group'),
    'counts': (lambda s: s['layers']['patch'].update(counts=[0, 9, 0, 0]), 'patch: counts='),
    'group': (lambda s: s['layers']['layers.0'].update(group_size=24), 'layers.0: group_size=24'),
    'bits': (lambda s: s['layers']['patch'].update(activation_bits=6), 'patch: activation_bits=6'),
    'unknown': (lambda s: s['layers'].update(q=s['layers']['patch']), "'q'"),
    'wrong kind': (
        lambda s: s['layers'].update({'layers.1': s['layers']['patch']}),
        'layers.1: LayerNorm',
    ),
    'shape': (
        lambda s: s['layers']['patch'].update(shape=[7, 12]),
        r'patch: weight of shape \(7, 12\), the layer has \(6, 12\)',
    ),
    'fewer': (lambda s: s['layers'].pop('patch'), 'patch.weight: missing'),
}


@pytest.mark.parametrize(('change', 'message'), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_that_does_not_fit_is_refused(path, change, message):
    _damage(path, lambda tensors, schema: change(schema))
    with pytest.raises((BundleError, SchemeError), match=message):
        load_model(_model(1, {}), path)


def test_packed_layers_that_the_file_does_not_describe_are_refused(path):
    _damage(path, lambda tensors, schema: schema['layers'].pop('patch'))
    assert 'does not describe packed layers of the model:\n  patch' in _refusal(path, _model())


def test_a_file_without_a_schema_or_without_a_file_is_refused(path, tmp_path):
    write_tensors(path, {}, [], {})
    assert "has no 'vlaq' entry: no file of packed layers" in _refusal(path)
    assert 'cannot be read: No such file or directory' in _refusal(tmp_path / 'nothing')


def test_tensors_that_stay_without_values_are_refused(path):
    model = _to_meta(_model(1, {}))
    assert _refusal(path, model).endswith('or store them:\n  frequencies')


MEASURE = """
import sys, torch
from torch import nn
from vlaq_ros.nn.memory import packed_layers
from vlaq_ros.nn.store_file import load_model

def model(layers, width):
    with torch.device('meta'):
        return nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(layers)])

def kib(key):
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ':'))

torch.set_num_threads(1)
load_model(model(1, 64), sys.argv[1])
big = model(12, 2048)
before = kib('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')  # the high-water mark starts anew
load_model(big, sys.argv[2])
sizes = [layer.weight_bytes for layer in packed_layers(big)]
print(1024 * (kib('VmHWM') - before), 1024 * (kib('VmRSS') - before), sum(sizes), max(sizes))
"""


def _random_model(layers, width):
    """Packed layers of random codes; quantizing as many weights would take its time."""
    from vlaq_ros.nn.mixed_linear import MixedLinear
    from vlaq_ros.quant.mixed import MixedWeight

    codes = torch.randint(0, 256, (width, width), dtype=torch.uint8)
    scale = torch.ones(width, -(-width // 128), dtype=torch.float16)
    weight = MixedWeight.from_codes(codes, scale, [8] * width, 128)
    return nn.ModuleList([MixedLinear.from_weight(weight) for _ in range(layers)])


def _can_reset_the_high_water_mark():
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _can_reset_the_high_water_mark(), reason='no /proc/self/clear_refs')
def test_loading_takes_the_model_and_one_layer_and_no_more(tmp_path):
    """Mapped files count as resident too: a loader that maps its file fails this."""
    save_model(_random_model(1, 64), tmp_path / 'small')
    save_model(_random_model(12, 2048), tmp_path / 'big')
    done = subprocess.run(
        [sys.executable, '-c', MEASURE, tmp_path / 'small', tmp_path / 'big'],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, resident, packed, layer = map(int, done.stdout.split())
    assert packed > 50e6
    assert resident > 0.95 * packed
    assert peak <= 1.1 * resident + layer, f'{peak / 1e6:.1f} MB for {packed / 1e6:.1f} MB'


@pytest.mark.gpu
def test_layers_are_packed_where_they_will_run(path):
    model = _to_meta(_model(1, {}))
    model.frequencies = torch.ones(2)
    load_model(model, path, 'cuda')
    expected = _model()(*INPUTS)
    for ours, theirs in zip(model(*(x.cuda() for x in INPUTS)), expected):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0.02, atol=0.02)
