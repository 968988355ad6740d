"""A quantized weight is really small and stands for exactly what affine quantization says."""

import pytest
import torch

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import fake_quantize
from vlaq_ros.quant.scheme import PerChannel, PerGroup, PerTensor, QuantScheme
from vlaq_ros.quant.weight import QuantizedWeight

SCHEMES = [
    QuantScheme(bits, granularity, symmetric)
    for bits in (2, 4, 8)
    for granularity in (PerTensor(), PerChannel(), PerGroup(7))
    for symmetric in (True, False)
]
every_scheme = pytest.mark.parametrize('scheme', SCHEMES, ids=str)


@every_scheme
def test_the_packed_weight_equals_the_fake_quantized_one(scheme):
    weight = torch.randn(13, 21, generator=torch.Generator().manual_seed(0))
    quantized = QuantizedWeight.from_float(weight, scheme)
    assert torch.equal(quantized.dequantize(), fake_quantize(weight, scheme))
    assert quantized.shape == (13, 21)


@every_scheme
def test_bytes_are_the_codes_and_the_scales_and_nothing_else(scheme):
    """Two bytes per scale, one per zero point (one for all when symmetric), rows whole bytes."""
    quantized = QuantizedWeight.from_float(torch.ones(13, 21), scheme)
    rows, groups = scheme.granularity.grid(13, 21)
    zero_points = 1 if scheme.symmetric else rows * groups
    expected = 13 * -(-21 * scheme.bits // 8) + 2 * rows * groups + zero_points
    assert quantized.nbytes == expected
    tensors = (quantized.packed, *quantized.qparams)
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == expected


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_weight_comes_back_in_the_dtype_asked_for(dtype):
    quantized = QuantizedWeight.from_float(torch.eye(4), QuantScheme(8))
    assert quantized.dequantize(dtype).dtype == dtype


def test_a_width_without_a_packed_form_is_refused():
    with pytest.raises(SchemeError, match=r'bits=3 has no packed form: use one of \(2, 4, 8\)'):
        QuantizedWeight.from_float(torch.eye(4), QuantScheme(3))
