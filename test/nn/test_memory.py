"""Memory figures come from the storage that is really held."""

import pytest
import torch
from torch import nn

from vlaq_ros.nn.memory import model_memory
from vlaq_ros.nn.surgery import quantize_linears
from vlaq_ros.quant.scheme import WEIGHT_LEVELS


def _model():
    return nn.Sequential(nn.Linear(128, 64, bias=False), nn.LayerNorm(64), nn.Linear(64, 10))


def test_a_float_model_has_its_parameters_and_no_packed_layer():
    memory = model_memory(_model())
    assert memory == (4 * (128 * 64 + 2 * 64 + 64 * 10 + 10), 0, 0, 0, '')


@pytest.mark.parametrize(
    ('level', 'packed'), [('w8', 128 * 64 + 2 * 64 + 1), ('w4', 128 * 64 // 2 + 2 * 2 * 64 + 1)]
)
def test_a_packed_layer_weighs_its_codes_and_scales(level, packed):
    model = _model()
    rest = model_memory(model).weight_bytes - 4 * 128 * 64
    quantize_linears(model, {'0': WEIGHT_LEVELS[level]})
    memory = model_memory(model)
    assert memory.quantized_bytes == packed
    assert (memory.quantized_weights, memory.quantized_layers) == (128 * 64, 1)
    assert memory.weight_bytes == rest + packed
    assert memory.kernel.startswith('reference for W')


def test_each_reason_is_given_once():
    model = _model()
    quantize_linears(model, dict.fromkeys('02', WEIGHT_LEVELS['w8']))
    assert model_memory(model).kernel == (
        'reference for W8A16 per channel, symmetric on cpu: none is faster'
    )


def test_shared_storage_counts_once_and_a_view_counts_with_all_it_holds():
    model = nn.ModuleDict({'embed': nn.Embedding(10, 16), 'head': nn.Linear(16, 10, bias=False)})
    model.head.weight = nn.Parameter(model.embed.weight.detach())  # two parameters, one storage
    assert model_memory(model).weight_bytes == 4 * 10 * 16
    model.register_buffer('corner', torch.zeros(1000, dtype=torch.uint8)[:2])
    assert model_memory(model).weight_bytes == 4 * 10 * 16 + 1000
