"""A quantized layer is a small linear layer that survives moving, casting and the disk."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.quantized_linear import QuantizedLinear
from vlaq_ros.quant.error import sqnr_db
from vlaq_ros.quant.scheme import WEIGHT_LEVELS, PerGroup, QuantScheme

LEAST_DB = {'w8': 40, 'w4': 18}  # Gaussian weights; 3 dB below what is measured
every_level = pytest.mark.parametrize('level', WEIGHT_LEVELS)


def _linear(seed=0, bias=True):
    torch.manual_seed(seed)
    linear = nn.Linear(192, 37, bias=bias)
    nn.init.normal_(linear.weight, std=0.05)
    return linear


@every_level
@pytest.mark.parametrize('leading', [(), (5,), (2, 3, 4)], ids=str)
def test_the_output_is_close_to_the_float_layer(level, leading):
    linear = _linear()
    x = torch.randn(*leading, 192)
    y = QuantizedLinear.from_linear(linear, WEIGHT_LEVELS[level])(x)
    assert y.shape == (*leading, 37)
    assert sqnr_db(linear(x), y) > LEAST_DB[level] - (6 if not leading else 0)


@every_level
def test_packed_bytes_stay_within_bits_and_scales(level):
    scheme = WEIGHT_LEVELS[level]
    layer = QuantizedLinear.from_linear(_linear(), scheme)
    rows, groups = scheme.granularity.grid(37, 192)
    assert layer.weight.nbytes <= scheme.bits / 8 * 37 * 192 + 2 * rows * groups + 1
    assert sum(1 for _ in layer.parameters()) == 0  # the float weight is gone


@every_level
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no_bias'])
def test_state_dict_survives_the_disk_bit_for_bit(level, bias, tmp_path):
    layer = QuantizedLinear.from_linear(_linear(0, bias), WEIGHT_LEVELS[level])
    save_file(layer.state_dict(), tmp_path / 'layer.safetensors')
    other = QuantizedLinear.from_linear(_linear(1, bias), WEIGHT_LEVELS[level])
    other.load_state_dict(load_file(tmp_path / 'layer.safetensors'), strict=True)
    for name, tensor in layer.state_dict().items():
        assert other.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(other.state_dict()[name], tensor)
    x = torch.randn(3, 192)
    assert torch.equal(other(x), layer(x))


CASTS = {
    'half': lambda layer: layer.half(),
    'bfloat16': lambda layer: layer.bfloat16(),
    'double': lambda layer: layer.double(),
    'to_float': lambda layer: layer.to(torch.float32),
    'to_device_and_dtype': lambda layer: layer.to('cpu', torch.bfloat16),
    'type': lambda layer: layer.type(torch.float16),
}


@pytest.mark.parametrize('cast', CASTS.values(), ids=CASTS.keys())
def test_casting_the_model_leaves_codes_and_scales_alone(cast):
    layer = QuantizedLinear.from_linear(_linear(), WEIGHT_LEVELS['w4'])
    before = copy.deepcopy(layer)
    assert cast(layer) is layer
    for name in ('packed', 'scale', 'zero_point'):
        assert getattr(layer, name).dtype == getattr(before, name).dtype
        assert torch.equal(getattr(layer, name), getattr(before, name))
    if cast is not CASTS['to_float']:
        assert layer.bias.dtype != before.bias.dtype


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_compute_dtype_follows_the_input(dtype):
    layer = QuantizedLinear.from_linear(_linear(), WEIGHT_LEVELS['w8'])
    x = torch.randn(4, 192)
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    assert sqnr_db(layer(x), y.float()) > 35


def test_moving_to_another_device_moves_everything():
    layer = QuantizedLinear.from_linear(_linear(), WEIGHT_LEVELS['w4']).to('meta')
    assert {buffer.device.type for buffer in layer.buffers()} == {'meta'}
    assert (layer.packed.dtype, layer.scale.dtype) == (torch.uint8, torch.float16)


def test_the_layer_does_not_share_the_bias_of_the_original():
    linear = _linear()
    layer = QuantizedLinear.from_linear(linear, WEIGHT_LEVELS['w8'])
    before = layer.bias.clone()
    with torch.no_grad():
        linear.bias.add_(1.0)
    assert torch.equal(layer.bias, before)


def test_the_training_mode_is_kept():
    assert not QuantizedLinear.from_linear(_linear().eval(), WEIGHT_LEVELS['w8']).training


def test_the_kernel_and_the_scheme_are_shown():
    layer = QuantizedLinear.from_linear(_linear(), WEIGHT_LEVELS['w4'])
    assert repr(layer) == (
        'QuantizedLinear(in_features=192, out_features=37, bias=True, '
        'W4A16 per group of 64, symmetric)'
    )
    assert layer.kernel.reason.startswith('reference for W4A16')


def test_a_scheme_that_does_not_fit_is_refused():
    with pytest.raises(SchemeError, match='group_size=100 does not divide the input width 192'):
        QuantizedLinear.from_linear(_linear(), QuantScheme(4, PerGroup(100)))
