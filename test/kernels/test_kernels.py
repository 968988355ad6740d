"""
Every kernel of the table against the definition, written out again here in float64.

A new kernel is tested by its row in `select.KERNELS`.
"""

import numpy as np
import pytest
import torch

from vlaq_ros.kernels import reference, select
from vlaq_ros.quant.error import sqnr_db
from vlaq_ros.quant.scheme import PerChannel, PerGroup, PerTensor, QuantScheme
from vlaq_ros.quant.weight import QuantizedWeight

SCHEMES = [
    QuantScheme(bits, granularity, symmetric)
    for bits in (2, 4, 8)
    for granularity in (PerTensor(), PerChannel(), PerGroup(11))
    for symmetric in (True, False)
]
SHAPES = {'one': (1, 1, 11), 'odd': (3, 7, 33), 'tall': (50, 129, 22), 'wide': (5, 2, 385)}
every_kernel = pytest.mark.parametrize('kernel', select.KERNELS, ids=lambda kernel: kernel.name)
every_scheme = pytest.mark.parametrize('scheme', SCHEMES, ids=str)


def _case(shape, scheme, offset=0.0):
    tokens, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) + offset
    bias = torch.randn(rows, generator=generator)
    return x, QuantizedWeight.from_float(weight, scheme), bias


def _definition(x, weight, bias):
    """Return scale * (code - zero point) of every single weight, multiplied in float64."""
    codes = weight.codes().numpy().astype(np.int64)
    scale, zero_point = (values.double().numpy() for values in weight.qparams)
    rows, columns = codes.shape
    real = np.empty(codes.shape)
    for row in range(rows):
        for column in range(columns):
            r = row if scale.shape[0] > 1 else 0
            group = column * scale.shape[1] // columns
            z = zero_point[0, 0] if zero_point.size == 1 else zero_point[r, group]
            real[row, column] = scale[r, group] * (codes[row, column] - z)
    return torch.from_numpy(x.double().numpy() @ real.T + bias.double().numpy())


def _skip_where_refused(kernel, scheme):
    if refusal := kernel.refusal(scheme, 'cpu'):
        pytest.skip(f'{kernel.name}: {refusal}')


@every_kernel
@every_scheme
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_a_kernel_computes_the_definition(kernel, scheme, shape):
    _skip_where_refused(kernel, scheme)
    x, weight, bias = _case(shape, scheme)
    y, expected = kernel.run(x, weight, bias), _definition(x, weight, bias)
    assert sqnr_db(expected, y) > 100
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)


@every_kernel
@pytest.mark.parametrize('offset', [5.0, -5.0], ids=['positive', 'negative'])
@pytest.mark.parametrize('symmetric', [True, False])
def test_a_kernel_takes_one_sided_rows(kernel, offset, symmetric):
    scheme = QuantScheme(4, PerGroup(11), symmetric)
    _skip_where_refused(kernel, scheme)
    x, weight, bias = _case(SHAPES['odd'], scheme, offset)
    assert sqnr_db(_definition(x, weight, bias), kernel.run(x, weight, bias)) > 100


@every_kernel
@pytest.mark.parametrize('symmetric', [True, False])
def test_a_row_of_zeros_gives_the_bias_exactly(kernel, symmetric):
    scheme = QuantScheme(4, PerChannel(), symmetric)
    _skip_where_refused(kernel, scheme)
    weight = QuantizedWeight.from_float(torch.tensor([[0.0] * 9, [1.0] * 9]), scheme)
    bias = torch.tensor([0.3, 0.0])
    assert (kernel.run(torch.randn(4, 9), weight, bias)[:, 0] == bias[0]).all()


@every_kernel
@pytest.mark.parametrize(
    ('dtype', 'least_db'),
    [(torch.float32, 100), (torch.float16, 55), (torch.bfloat16, 38)],
    ids=str,
)
@pytest.mark.parametrize('leading', [(), (1,), (2, 3), (2, 1, 4)], ids=str)
def test_a_kernel_keeps_the_dtype_and_the_leading_dimensions(kernel, dtype, least_db, leading):
    scheme = QuantScheme(8, PerChannel())
    _skip_where_refused(kernel, scheme)
    _, weight, bias = _case(SHAPES['odd'], scheme)
    x = torch.randn(*leading, 33, generator=torch.Generator().manual_seed(3)).to(dtype)
    y = kernel.run(x, weight, bias)
    assert (y.dtype, y.shape) == (dtype, (*leading, 7))
    assert sqnr_db(_definition(x, weight, bias), y) > least_db


@every_kernel
def test_no_bias_is_a_zero_bias(kernel):
    _skip_where_refused(kernel, SCHEMES[0])
    x, weight, bias = _case(SHAPES['odd'], SCHEMES[0])
    without = kernel.run(x, weight, None)
    torch.testing.assert_close(without, kernel.run(x, weight, torch.zeros_like(bias)))


@every_kernel
def test_eight_bit_activations_add_the_noise_of_eight_bits_and_no_more(kernel):
    """128 Gaussian features in 255 steps of their own range: about 40 dB, never lossless."""
    scheme = QuantScheme(8, PerChannel(), activation_bits=8)
    _skip_where_refused(kernel, scheme)
    x, weight, bias = _case((64, 40, 128), scheme)
    ratio = sqnr_db(_definition(x, weight, bias), kernel.run(x, weight, bias))
    assert 36 < ratio < 50


def test_the_gradient_reaches_the_input():
    x, weight, bias = _case(SHAPES['odd'], SCHEMES[0])
    x.requires_grad_()
    reference.quantized_linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad[0], weight.dequantize().sum(0))
