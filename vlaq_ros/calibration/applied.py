"""
Run the policy as a method left it, without packing anything.

Inside the `with` block the layers multiply by their rounded weights and round their inputs per
token; afterwards the model is bit for bit what it was, whatever happened in between.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import linear

from vlaq_ros.calibration.method import MethodResult
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import fake_quantize_tokens
from vlaq_ros.quant.mixed import MixedWeight


def linear_of_rounded(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation_bits: int, wide: Tensor | None
) -> Tensor:
    """
    Return x @ weight.T + bias with x rounded per token; gradients pass the rounding unchanged.

    Args:
        x: [..., in].
        weight: [out, in], as it was rounded.
        bias: [out] or None.
        activation_bits: 16 leaves x as it is.
        wide: Numbers of the channels of 16 bits, which see x in bfloat16 where others see fewer
            than 16 bits; None when there are none.
    """
    if activation_bits == 16:
        return linear(x, weight, bias)
    rounded = x + (fake_quantize_tokens(x, activation_bits) - x).detach()
    y = linear(rounded, weight, bias)
    if wide is None:
        return y
    fine = linear(x.bfloat16().float(), weight[wide], None if bias is None else bias[wide])
    return y.index_copy(-1, wide, fine)


class RoundedLinear(nn.Module):
    """A linear layer with a packed weight, in float32; see `linear_of_rounded`."""

    def __init__(
        self, weight: MixedWeight, bias: Tensor | None, activation_bits: int, cap: int = 8
    ) -> None:
        super().__init__()
        self.activation_bits = activation_bits
        self.weight = nn.Parameter(weight.dequantize(cap=cap), requires_grad=False)
        self.bias = bias
        wide = (weight.widths() == 16).nonzero().flatten()
        self._wide = wide if len(wide) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]."""
        return linear_of_rounded(x, self.weight, self.bias, self.activation_bits, self._wide)


@contextmanager
def applied(
    model: nn.Module, result: MethodResult, caps: Mapping[str, int] | None = None
) -> Iterator[nn.Module]:
    """
    Give the model the weights and parameters of `result` for the duration of the block.

    A quantized layer may get a bias that it did not have.

    Args:
        model: Changed inside the block.
        result: What it gets.
        caps: Layer -> bits that are read of its 8-bit channels; 8 where not named.

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
            cap = (caps or {}).get(name, 8)
            layer = RoundedLinear(weight, bias, result.activation_bits[name], cap)
            replace_module(model, name, layer)
        yield model
    finally:
        for name, original in originals.items():
            replace_module(model, name, original)
        for name, value in before.items():
            parameters[name].data = value


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where `name` is."""
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
