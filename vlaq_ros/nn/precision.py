"""
The precision at which packed layers compute, as a tensor that layers can share.

Two whole numbers: the cap (bits read of 8-bit channels, 8 or 4) and the bits to which activations
are rounded. Kernels read them at every call, so a change needs no repacking, no memory, no new
trace and no new graph, and with layers sharing one tensor it is one write for all of them.
"""

import torch
from torch import Tensor

from vlaq_ros.quant.mixed import check_cap
from vlaq_ros.quant.scheme import check_activation_bits


class Precision:
    """
    Cap and activation bits, with one int32 tensor [2] on every device that reads them.

    Layers hold the tensors as buffers; this object keeps those of one group equal when layers of
    the group are moved.
    """

    def __init__(self, cap: int = 8, activation_bits: int = 16) -> None:
        self._tensors: dict[torch.device, Tensor] = {}
        self._values = (8, 16)
        self.set(cap, activation_bits)

    @property
    def cap(self) -> int:
        """Bits that are read of 8-bit channels."""
        return self._values[0]

    @property
    def activation_bits(self) -> int:
        """Bits that activations are rounded to; 16 for the finest that the kernel has."""
        return self._values[1]

    def set(self, cap: int | None = None, activation_bits: int | None = None) -> None:
        """
        Change one or both for every layer that shares this object; takes effect at the next call.

        Raises:
            SchemeError: There is no such cap or activation width; nothing is changed.
        """
        cap = self.cap if cap is None else cap
        activation_bits = self.activation_bits if activation_bits is None else activation_bits
        check_cap(cap)
        check_activation_bits(activation_bits)
        self._values = (cap, activation_bits)
        for tensor in self._tensors.values():
            tensor.copy_(torch.tensor(self._values, dtype=torch.int32))

    def on(self, device: torch.device) -> Tensor:
        """Return the tensor [2] of a device; always the same one."""
        if device not in self._tensors:
            with torch.inference_mode(False):  # else only inference mode could write to it
                values = torch.tensor(self._values, dtype=torch.int32, device=device)
            self._tensors[device] = values
        return self._tensors[device]
