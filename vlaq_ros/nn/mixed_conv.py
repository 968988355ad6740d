"""
A 2-D convolution on packed weights: image patches become rows that a packed layer multiplies.

Meant for the patch embedding of vision towers, where kernel and stride are equal: there patches
are a mere reordering of the image. Other strides, padding and dilation copy overlapping patches
first. Groups of channels would need one small layer each and are refused.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.mixed_linear import MixedLinear, quantize_weight
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight
from vlaq_ros.quant.scheme import LayerScheme


class MixedConv2d(MixedLinear):
    """
    `nn.Conv2d` for x [batch, channels, height, width], weight [out, channels * kh * kw] packed.

    The order of the inputs is that of `conv.weight.flatten(1)`: channel, then row, then column.
    """

    _FREE_DTYPE = ('stand_in',)

    def __init__(self, conv: nn.Conv2d, layout: MixedLayout, activation_bits: int = 16) -> None:
        """
        Make an empty layer with the geometry of `conv`, whose weight is not read.

        Raises:
            SchemeError: The convolution has groups or pads with other values than zeros, or the
                layout is of another shape.
        """
        if conv.groups != 1 or conv.padding_mode != 'zeros':
            raise SchemeError(
                f'groups={conv.groups}, padding_mode={conv.padding_mode!r}: only convolutions '
                'without groups that pad with zeros can be packed'
            )
        expected = (conv.out_channels, conv.weight[0].numel())
        if layout.shape != expected:
            raise SchemeError(f'weight of shape {layout.shape}, the layer has {expected}')
        super().__init__(layout, conv.bias is not None, activation_bits)
        self.register_buffer(
            'stand_in', torch.full((1,), torch.nan, dtype=conv.weight.dtype), False
        )
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding = _padding(conv)
        self.train(conv.training)

    @staticmethod
    def empty(conv: nn.Conv2d, layout: MixedLayout, activation_bits: int = 16) -> 'MixedConv2d':
        """Return a layer that takes no memory until it is loaded; raises as the constructor."""
        with torch.device('meta'):
            return MixedConv2d(conv, layout, activation_bits)

    @staticmethod
    def from_conv(
        conv: nn.Conv2d, scheme: LayerScheme, importance: Tensor | None = None
    ) -> 'MixedConv2d':
        """
        Quantize a convolution, which stays as it is, by rounding to the nearest code.

        Raises:
            SchemeError: The scheme does not fit the weight, or this convolution cannot be packed.
        """
        weight = quantize_weight(conv.weight.flatten(1), scheme, importance)
        layer = MixedConv2d.empty(conv, weight.layout, scheme.activation_bits)
        layer.fill(weight, conv.bias)
        return layer

    @property
    def weight(self) -> Tensor:
        """
        A stand-in of the shape of the kernels, of NaN, without memory.

        Vision towers read its dtype to cast their images; it follows `.to(dtype)`.
        """
        return self.stand_in.expand(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, out, height', width'], or the same without batch."""
        images = pad(x, self.padding) if any(self.padding) else x
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                images.shape[-2:], self.dilation, self.kernel_size, self.stride
            )
        )
        y = super().forward(self._patches(images, height, width))  # [..., height * width, out]
        return y.transpose(-1, -2).unflatten(-1, (height, width))

    def _fill(self, weight: MixedWeight, bias: Tensor | None) -> None:
        super()._fill(weight, bias)
        dtype, device = self.stand_in.dtype, weight.order.device
        self.stand_in = torch.full((1,), torch.nan, dtype=dtype, device=device)

    def _patches(self, images: Tensor, height: int, width: int) -> Tensor:
        """Return [..., height * width, channels * kh * kw]."""
        if self.stride != self.kernel_size or self.dilation != (1, 1):
            return unfold(images, self.kernel_size, self.dilation, 0, self.stride).transpose(
                -1, -2
            )
        rows, columns = self.kernel_size
        tiles = images[..., : height * rows, : width * columns]
        tiles = tiles.unflatten(-1, (width, columns)).unflatten(-3, (height, rows))
        # [..., channels, height, rows, width, columns]
        return tiles.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return left, right, top, bottom, as `torch.nn.functional.pad` wants them."""
    if conv.padding == 'valid':
        return 0, 0, 0, 0
    if conv.padding == 'same':
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size)]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        return left, right, top, bottom
    top, left = conv.padding
    return left, left, top, top
