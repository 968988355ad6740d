"""
A linear layer whose weight lives in memory as packed codes.

Its buffers are the packed weight itself, so `state_dict()` is the form on disk. Nothing in it is
trainable; gradients still reach the input.
"""

from collections.abc import Callable

from torch import Tensor, nn

from vlaq_ros.kernels.select import KernelChoice, select_kernel
from vlaq_ros.quant.affine import QParams
from vlaq_ros.quant.scheme import QuantScheme
from vlaq_ros.quant.weight import QuantizedWeight


class QuantizedLinear(nn.Module):
    """
    y = x @ w.T + bias for x [..., in_features], computed in the dtype of x.

    Buffers: `packed` uint8 [out, bytes per row], `scale` float16 [rows, groups], `zero_point`
    uint8 [rows, groups] or [1, 1], `bias` [out] or None. The first three keep their types for
    ever: `.half()`, `.to(dtype)` and the like move the layer and cast the bias, but neither turn
    codes into floats nor round scales a second time.
    """

    _PACKED_BUFFERS = ('packed', 'scale', 'zero_point')

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.scheme = weight.scheme
        self.register_buffer('packed', weight.packed)
        self.register_buffer('scale', weight.qparams.scale)
        self.register_buffer('zero_point', weight.qparams.zero_point)
        self.register_buffer('bias', None if bias is None else bias.detach().clone())

    @staticmethod
    def from_linear(linear: nn.Linear, scheme: QuantScheme) -> 'QuantizedLinear':
        """
        Quantize a linear layer, which stays as it is.

        Raises:
            SchemeError: The scheme does not fit the weight.
        """
        layer = QuantizedLinear(QuantizedWeight.from_float(linear.weight, scheme), linear.bias)
        return layer.train(linear.training)

    @property
    def weight(self) -> QuantizedWeight:
        """The packed weight; it shares the buffers of this layer."""
        shape = (self.out_features, self.in_features)
        qparams = QParams(self.scale, self.zero_point)
        return QuantizedWeight(self.packed, qparams, self.scheme, shape)

    @property
    def kernel(self) -> KernelChoice:
        """The kernel that multiplies on the present device, with the reason for it."""
        return select_kernel(self.scheme, self.packed.device.type)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] for x [..., in_features]."""
        return self.kernel.run(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        shape = f'in_features={self.in_features}, out_features={self.out_features}'
        return f'{shape}, bias={self.bias is not None}, {self.scheme}'

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'QuantizedLinear':
        """Move the buffers, but undo any change of type of the packed ones."""
        before = {name: self._buffers[name] for name in self._PACKED_BUFFERS}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = self._buffers[name]
            if moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self
