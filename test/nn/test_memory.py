"""Memory figures come from the storage that is really held."""

import math

import pytest
import torch
from torch import nn

from vlaq_ros.nn.memory import model_memory, precisions_in_use
from vlaq_ros.nn.surgery import quantize_linears
from vlaq_ros.quant.scheme import LayerScheme


def _model():
    return nn.Sequential(nn.Linear(128, 64, bias=False), nn.LayerNorm(64), nn.Linear(64, 10))


def test_a_float_model_has_its_parameters_and_no_packed_layer():
    memory = model_memory(_model())
    assert memory[:5] == (4 * (128 * 64 + 2 * 64 + 64 * 10 + 10), 0, 0, 0, '')
    assert memory.activation_bits == 0.0
    assert math.isnan(memory.mean_bits_per_weight)


@pytest.mark.parametrize('scheme', [LayerScheme(8), LayerScheme(4, 64)], ids=str)
def test_a_packed_layer_weighs_what_its_tensors_hold(scheme):
    """64 channels fill the blocks of every kernel: nothing is held but codes, scales and order."""
    model = _model()
    rest = model_memory(model).weight_bytes - 4 * 128 * 64
    quantize_linears(model, {'0': scheme})
    memory = model_memory(model)
    layer = model[0]
    assert memory.quantized_bytes == layer.weight_bytes
    assert memory.quantized_bytes == pytest.approx(layer.weight.nbytes, abs=256)
    assert (memory.quantized_weights, memory.quantized_layers) == (128 * 64, 1)
    assert memory.weight_bytes == rest + memory.quantized_bytes + layer.precision.nbytes
    assert memory.mean_bits_per_weight == 8 * layer.weight_bytes / (128 * 64)


def test_each_reason_is_given_once():
    model = _model()
    quantize_linears(model, dict.fromkeys('02', LayerScheme(8)))
    assert model_memory(model).kernel == model[0].kernel.reason


def test_pruned_channels_count_as_weights_and_lower_the_mean():
    model = _model()
    quantize_linears(model, {'0': LayerScheme((8,) * 32 + (0,) * 32)})
    memory = model_memory(model)
    assert memory.quantized_weights == 128 * 64
    assert 4 < memory.mean_bits_per_weight < 4.8


def test_precisions_are_counted_and_averaged_by_weights():
    model = _model()
    quantize_linears(model, {'0': LayerScheme(8, activation_bits=8), '2': LayerScheme(8)})
    model[2].set_cap(4)
    assert precisions_in_use(model) == {(8, 8): 1, (4, 16): 1}
    expected = (8 * 128 * 64 + 16 * 64 * 10) / (128 * 64 + 64 * 10)
    assert model_memory(model).activation_bits == pytest.approx(expected)


def test_shared_storage_counts_once_and_a_view_counts_with_all_it_holds():
    model = nn.ModuleDict({'embed': nn.Embedding(10, 16), 'head': nn.Linear(16, 10, bias=False)})
    model.head.weight = nn.Parameter(model.embed.weight.detach())  # two parameters, one storage
    assert model_memory(model).weight_bytes == 4 * 10 * 16
    model.register_buffer('corner', torch.zeros(1000, dtype=torch.uint8)[:2])
    assert model_memory(model).weight_bytes == 4 * 10 * 16 + 1000
