"""A packed convolution is the convolution with the weight that its codes stand for."""

import copy

import pytest
import torch
from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.mixed_conv import MixedConv2d
from vlaq_ros.quant.error import sqnr_db
from vlaq_ros.quant.scheme import LayerScheme

GEOMETRIES = {
    'patches': ((3, 10, 4, 4), {}),
    'oblong patches': ((3, 10, (2, 5), (2, 5)), {}),
    'without bias': ((3, 10, 4, 4), {'bias': False}),
    'overlap': ((2, 10, 3, 1), {}),
    'gaps': ((2, 10, 2, 3), {}),
    'padding': ((2, 10, 3, 2), {'padding': (1, 2)}),
    'padded patches': ((2, 10, 4, 4), {'padding': 2}),
    'same': ((2, 10, (3, 4), 1), {'padding': 'same'}),
    'valid': ((2, 10, 3, 1), {'padding': 'valid'}),
    'dilation': ((2, 10, 3, 3), {'dilation': (2, 1)}),
    'pixels': ((5, 10, 1, 1), {}),
}
SCHEME = LayerScheme((16, 8, 4, 2, 0) * 2, 16)


def _pair(sizes, options, dtype=torch.float32):
    """Return a packed convolution and the float one with its weight."""
    torch.manual_seed(0)
    conv = nn.Conv2d(*sizes, **options).requires_grad_(False)
    packed = MixedConv2d.from_conv(conv, SCHEME)
    conv.weight.copy_(packed.unpack().dequantize().reshape(conv.weight.shape))
    return packed, conv


@pytest.mark.parametrize(('sizes', 'options'), GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize('batch', [(2,), ()], ids=['batch', 'one'])
@pytest.mark.parametrize('size', [(12, 20), (15, 13)], ids=str)
def test_every_geometry_is_that_of_torch(sizes, options, batch, size):
    packed, conv = _pair(sizes, options)
    x = torch.randn(*batch, sizes[0], *size)
    expected, y = conv(x), packed(x)
    assert y.shape == expected.shape
    codes = packed.unpack().widths() != 16
    assert sqnr_db(expected.movedim(-3, 0)[codes], y.movedim(-3, 0)[codes]) > 65
    assert sqnr_db(expected, y) > 48  # 16-bit channels see the image in bfloat16


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_vision_towers_read_the_dtype_and_the_shape_of_the_weight(dtype):
    packed, conv = _pair((3, 10, 4, 4), {})
    packed.to(dtype)
    assert packed.weight.dtype == dtype
    assert packed.weight.shape == conv.weight.shape
    assert packed.weight.isnan().all()  # whoever multiplies by it shall see it
    assert packed(torch.randn(1, 3, 8, 8).to(packed.weight.dtype)).dtype == dtype


def test_state_and_copies_are_those_of_a_packed_layer():
    packed, _ = _pair((3, 10, 4, 4), {})
    other = MixedConv2d.empty(nn.Conv2d(3, 10, 4, 4), packed.layout)
    other.load_state_dict(packed.state_dict())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(other(x), packed(x))
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))
    assert set(packed.state_dict()) == {
        'order', 'values16', 'codes8', 'codes4', 'codes2', 'scale', 'bias'
    }  # fmt: skip


@pytest.mark.parametrize(
    ('options', 'message'),
    [({'groups': 2}, 'groups=2'), ({'padding': 1, 'padding_mode': 'circular'}, "'circular'")],
    ids=['groups', 'circular'],
)
def test_what_is_no_single_product_is_refused(options, message):
    with pytest.raises(SchemeError, match=message):
        MixedConv2d.from_conv(nn.Conv2d(4, 10, 2, 2, **options), SCHEME)
