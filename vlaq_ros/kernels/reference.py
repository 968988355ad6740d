"""
The definition of multiplying by a quantized weight; every faster kernel is tested against it.

    y = x' @ W.T + bias        W = scale * (codes - zero_point), x' = x or x rounded per token

The weight is dequantized in float32, rounded to the dtype of the input, and the product is taken
in that dtype. With 8-bit activations the input is rounded first; the product is still taken in
floats, so this shows the error of an integer kernel, not its speed.

It runs on every device and for every scheme, and it saves memory, not time: the dequantized weight
of one layer exists during each call. The peak above the packed weight is 5 bytes per weight of
that layer (1 for unpacked codes, 4 for floats), 7 with a 16-bit input.
"""

from torch import Tensor
from torch.nn.functional import linear

from vlaq_ros.quant.affine import fake_quantize_tokens
from vlaq_ros.quant.scheme import QuantScheme
from vlaq_ros.quant.weight import QuantizedWeight


def quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Return x @ w.T + bias [..., out] for x [..., in], in the dtype of x."""
    if weight.scheme.activation_bits < 16:
        x = fake_quantize_tokens(x, weight.scheme.activation_bits)
    return linear(x, weight.dequantize(x.dtype), None if bias is None else bias.to(x.dtype))


def refusal(scheme: QuantScheme, device_type: str) -> str:
    """Return why this kernel cannot run a scheme on a device: never, so always ''."""
    return ''
