"""
Run the policy as a method left it, without packing anything.

Inside the `with` block the layers multiply by their rounded weights and round their inputs per
token; afterwards the model is bit for bit what it was, whatever happened in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import linear

from vlaq_ros.calibration.method import MethodResult
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import fake_quantize_tokens
from vlaq_ros.quant.mixed import MixedWeight


class RoundedLinear(nn.Module):
    """
    A linear layer with a rounded weight, in float32.

    Channels of 16 bits see the input rounded to bfloat16 when the others see it rounded to 8 bits
    or less; with 16-bit activations nothing is done to the input.
    """

    def __init__(self, weight: MixedWeight, bias: Tensor | None, activation_bits: int) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        self.weight = nn.Parameter(weight.dequantize(), requires_grad=False)
        self.bias = bias
        wide = weight.widths() == 16
        self._wide = wide.nonzero().flatten() if activation_bits < 16 and wide.any() else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]; gradients pass the rounding of x unchanged."""
        if self.activation_bits == 16:
            return linear(x, self.weight, self.bias)
        rounded = x + (fake_quantize_tokens(x, self.activation_bits) - x).detach()
        y = linear(rounded, self.weight, self.bias)
        if self._wide is not None:
            bias = None if self.bias is None else self.bias[self._wide]
            y[..., self._wide] = linear(x.bfloat16().float(), self.weight[self._wide], bias)
        return y


@contextmanager
def applied(model: nn.Module, result: MethodResult) -> Iterator[nn.Module]:
    """
    Give the model the weights and parameters of `result` for the duration of the block.

    A quantized layer may get a bias that it did not have.

    Raises:
        SchemeError: Names in `result` that the model does not have, all of them.
    """
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    biases = {f'{name}.bias': name for name in result.weights}
    unknown = [name for name in result.parameters if name not in {*parameters, *biases}]
    unknown += [name for name in result.weights if type(modules.get(name)) is not nn.Linear]
    if unknown:
        raise SchemeError('the model has no such parameter or layer: ' + ', '.join(unknown))
    before = {n: parameters[n].data for n in result.parameters if n not in biases}
    originals = {name: modules[name] for name in result.weights}
    try:
        for name, value in before.items():
            parameters[name].data = result.parameters[name].to(value.dtype)
        for name, weight in result.weights.items():
            bias = result.parameters.get(f'{name}.bias', originals[name].bias)
            _set(model, name, RoundedLinear(weight, bias, result.activation_bits[name]))
        yield model
    finally:
        for name, original in originals.items():
            _set(model, name, original)
        for name, value in before.items():
            parameters[name].data = value


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
