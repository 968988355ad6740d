"""
A linear layer whose weight lies in memory as packed codes, each output channel at its own width.

The layer is in one of two forms. Packed, it holds the tensors of the kernel that multiplies on its
device. Empty, it holds room for the tensors of the file form (`quant.mixed`), usually on the meta
device: that is how a model is built before its weights are loaded. Either way `state_dict()` is
the file form, the same on every device, and loading it packs the layer.

Nothing in it is trainable; gradients still reach the input.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.kernels.select import KernelChoice, select_kernel
from vlaq_ros.nn.precision import Precision
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight
from vlaq_ros.quant.scheme import LayerScheme


class MixedLinear(nn.Module):
    """
    y = x @ W.T + bias for x [..., in_features], in the dtype of x.

    Buffers: the packed tensors; `bias` float32 [out] or None; `precision` int32 [2], the cap and
    the activation bits. All keep their types for ever: `.half()`, `.to(dtype)` and the like move
    the layer but neither turn codes into floats nor round scales a second time. On a device of
    another kind the layer is repacked for the kernel that runs there.
    """

    is_stored = True  # whether files hold it under its own name
    holds_weight = True  # whether its weight is in its own buffers
    _FREE_DTYPE: tuple[str, ...] = ()  # buffers that `.to(dtype)` may cast

    def __init__(self, layout: MixedLayout, bias: bool = True, activation_bits: int = 16) -> None:
        """Make an empty layer on the default device, to be filled by `load_state_dict`."""
        super().__init__()
        self.layout = layout
        self.out_features, self.in_features = layout.shape
        self._packed: tuple[str, ...] = ()
        self._kernel = None
        self.register_buffer(
            'bias', torch.zeros(self.out_features, dtype=torch.float32) if bias else None
        )
        self._precision = Precision(activation_bits=activation_bits)
        self.register_buffer('precision', self._precision.on(torch.device('cpu')), False)
        self._make_room()

    @staticmethod
    def empty(layout: MixedLayout, bias: bool = True, activation_bits: int = 16) -> 'MixedLinear':
        """Return a layer that takes no memory until it is loaded."""
        with torch.device('meta'):
            return MixedLinear(layout, bias, activation_bits)

    @staticmethod
    def from_weight(
        weight: MixedWeight, bias: Tensor | None = None, activation_bits: int = 16
    ) -> 'MixedLinear':
        """Return a layer on the device of a packed weight, with a copy of the bias [out]."""
        layer = MixedLinear.empty(weight.layout, bias is not None, activation_bits)
        layer.fill(weight, bias)
        return layer

    @staticmethod
    def from_linear(
        linear: nn.Linear, scheme: LayerScheme, importance: Tensor | None = None
    ) -> 'MixedLinear':
        """
        Quantize a linear layer, which stays as it is, by rounding to the nearest code.

        Raises:
            SchemeError: The scheme does not fit the weight.
        """
        weight = quantize_weight(linear.weight, scheme, importance)
        layer = MixedLinear.from_weight(weight, linear.bias, scheme.activation_bits)
        return layer.train(linear.training)

    @property
    def is_empty(self) -> bool:
        """Whether the weight is still to be loaded."""
        return self._kernel is None

    @property
    def weight(self) -> MixedWeight:
        """The weight in the file form, unpacked at every access."""
        return self.unpack()

    @property
    def kernel(self) -> KernelChoice:
        """The kernel that multiplies on the present device, with the reason for it."""
        return select_kernel(self.layout, self.device.type)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return next((self._buffers[name].device for name in self._weight_names()), self._nowhere)

    @property
    def shared_precision(self) -> Precision:
        """Cap and activation bits, together with all layers that share them."""
        return self._precision

    @shared_precision.setter
    def shared_precision(self, precision: Precision) -> None:
        self._precision = precision
        self.precision = precision.on(self.precision.device)

    def set_cap(self, cap: int) -> None:
        """Read 8-bit channels with 8 or 4 bits from now on; so do layers that share it."""
        self._precision.set(cap=cap)

    def set_activation_bits(self, activation_bits: int) -> None:
        """Round activations to 16, 8, 4 or 2 bits from now on; so do layers that share it."""
        self._precision.set(activation_bits=activation_bits)

    @property
    def weight_bytes(self) -> int:
        """Bytes held for the weight: codes, scales and order, with the padding of the kernel."""
        return sum(self._buffers[name].nbytes for name in self._weight_names())

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] for x [..., in_features]."""
        if self._kernel is None:
            raise SchemeError(f'this layer was never loaded: {self.layout}')
        buffers = self._buffers  # attributes of a module cost a microsecond each
        precision, bias = buffers['precision'], buffers['bias']
        return self._kernel.run(x, self._tensors(), self.layout, precision, bias)

    def unpack(self) -> MixedWeight:
        """
        Return the weight in the file form.

        Raises:
            SchemeError: What an empty layer was given is not a weight.
        """
        if self._kernel is None:
            parts = {name: self._buffers[name] for name in self._file_names()}
            return MixedWeight.from_tensors(self.layout, parts)
        return self._kernel.unpack(self._tensors(), self.layout)

    def fill(self, weight: MixedWeight, bias: Tensor | None) -> None:
        """
        Take this weight of the same layout, and a copy of the bias; the layer moves to its device.

        Raises:
            SchemeError: The weight is of another layout, or the bias is missing or one too many.
        """
        if weight.layout != self.layout or (bias is None) != (self.bias is None):
            has = {True: 'no bias', False: 'a bias'}
            raise SchemeError(
                f'the layer holds {self.layout}, {has[self.bias is None]}; '
                f'given {weight.layout}, {has[bias is None]}'
            )
        self._fill(weight, None if bias is None else bias.detach().float().clone())

    def pack(self) -> None:
        """
        Pack what was written into the room of an empty layer; a packed one stays as it is.

        Raises:
            SchemeError: It is not a weight.
        """
        if self._kernel is None:
            if self.device.type == 'meta':
                raise SchemeError(f'this layer was never loaded: {self.layout}')
            self._fill(self.unpack(), self.bias)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        shape = f'in_features={self.in_features}, out_features={self.out_features}'
        empty = ', empty' if self.is_empty else ''
        return f'{shape}, bias={self.bias is not None}, {self.layout}{empty}'

    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple([self._buffers[name] for name in self._packed])

    def _file_names(self) -> tuple[str, ...]:
        return tuple(name for name, (_, shape) in self.layout.tensors().items() if 0 not in shape)

    def _weight_names(self) -> tuple[str, ...]:
        return self._packed if self._kernel is not None else self._file_names()

    def _make_room(self, device: torch.device | None = None) -> None:
        """Replace the weight by zeros in the file form; on the meta device they take no memory."""
        self._forget_weight()
        self._nowhere = torch.empty(0, device=device).device  # where a weight without bytes is
        for name, (dtype, shape) in self.layout.tensors().items():
            if 0 not in shape:
                zeros = torch.zeros(shape, dtype=dtype, device=self._nowhere)
                self.register_buffer(name, zeros)

    def _forget_weight(self) -> None:
        for name in (*self._packed, *self.layout.tensors()):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        self._kernel, self._packed = None, ()

    def _fill(self, weight: MixedWeight, bias: Tensor | None) -> None:
        """Pack a weight for the kernel of its device; it may share the tensors."""
        device = weight.order.device
        kernel = select_kernel(self.layout, device.type).kernel
        tensors = kernel.pack(weight)
        self._forget_weight()
        self._packed = tuple(f'packed{index}' for index in range(len(tensors)))
        for name, tensor in zip(self._packed, tensors):
            self.register_buffer(name, tensor, persistent=False)
        self._kernel, self._nowhere = kernel, device
        self.bias = None if bias is None else bias.to(device)
        self.precision = self._precision.on(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'MixedLinear':
        """Move the buffers, undo any change of their types, and repack for another device."""
        before, device, weight = dict(self._buffers), self.device, None
        super()._apply(fn, recurse)
        moved_to = fn(torch.empty(0, device=device)).device
        for name, tensor in before.items():
            if tensor is None or name in self._FREE_DTYPE:
                continue
            if self._buffers[name].dtype != tensor.dtype:
                self._buffers[name] = tensor.to(self._buffers[name].device)
        self._nowhere = moved_to
        if self._kernel is not None and moved_to.type != device.type:
            if moved_to.type == 'meta':
                self._make_room(moved_to)
            elif self.kernel.kernel.name != self._kernel.name:
                packed = tuple(before[name] for name in self._packed)
                weight = self._kernel.unpack(packed, self.layout)
                self._fill(weight.to(moved_to), self.bias)
        if moved_to.type != 'meta':
            self.precision = self._precision.on(moved_to)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self._kernel is None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        for name, tensor in self.unpack().tensors().items():
            destination[prefix + name] = tensor
        if self.bias is not None:
            destination[prefix + 'bias'] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check everything that belongs to this layer, then pack it; faults change nothing."""
        expected = {*self._file_names(), *(('bias',) if self.bias is not None else ())}
        found = {
            key.removeprefix(prefix): tensor
            for key, tensor in state_dict.items()
            if key.startswith(prefix)
        }
        missing_keys += [prefix + name for name in sorted(expected - set(found))]
        if strict:
            unexpected_keys += [prefix + name for name in found if name not in expected]
        if expected - set(found):
            return
        assign = local_metadata.get('assign_to_params_buffers', False)
        own = {name: found[name] if assign else found[name].clone() for name in expected}
        try:
            bias = self._checked_bias(own.pop('bias')) if 'bias' in own else None
            weight = MixedWeight.from_tensors(self.layout, own)
        except SchemeError as error:
            error_msgs.append(f'{prefix.removesuffix(".")}: {error}')
            return
        device = weight.order.device if self.device.type == 'meta' else self.device
        self._fill(weight.to(device), bias)

    def _checked_bias(self, bias: Tensor) -> Tensor:
        if tuple(bias.shape) != (self.out_features,) or not bias.is_floating_point():
            found = f'{str(bias.dtype).removeprefix("torch.")} {list(bias.shape)}'
            raise SchemeError(f'bias: {found}, expected float32 [{self.out_features}]')
        if not bias.isfinite().all():
            raise SchemeError('bias: not finite')
        return bias.detach().float()


def quantize_weight(
    weight: Tensor, scheme: LayerScheme, importance: Tensor | None = None
) -> MixedWeight:
    """
    Return a float matrix [out, in] as a scheme packs it.

    Raises:
        SchemeError: The scheme does not fit the weight.
    """
    return MixedWeight.from_float(
        weight,
        scheme.channel_widths(len(weight)),
        scheme.group_size or weight.shape[1],
        scheme.clip,
        scheme.percentile,
        importance,
    )
