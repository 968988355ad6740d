"""
A quantized weight as it lies in memory: packed codes, scales and zero points.

This is the layout on disk and the one every kernel starts from; a kernel that wants another one
repacks when it is loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaq_ros.quant.affine import QParams, choose_qparams, dequantize, quantize
from vlaq_ros.quant.packing import pack, unpack
from vlaq_ros.quant.scheme import QuantScheme


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """
    A linear weight [out, in] in packed form.

    Attributes:
        packed: uint8 [out, ceil(in * bits / 8)], the codes as `packing` draws them.
        qparams: Scales and zero points.
        scheme: How it was quantized.
        shape: (out, in) of the weight it stands for.
    """

    packed: Tensor
    qparams: QParams
    scheme: QuantScheme
    shape: tuple[int, int]

    @staticmethod
    def from_float(weight: Tensor, scheme: QuantScheme) -> 'QuantizedWeight':
        """
        Quantize a float matrix [out, in] by rounding to the nearest code.

        Raises:
            SchemeError: The scheme does not fit the weight (see `choose_qparams`), or its width
                has no packed form.
        """
        qparams = choose_qparams(weight, scheme)
        packed = pack(quantize(weight, qparams, scheme), scheme.bits)
        return QuantizedWeight(packed, qparams, scheme, tuple(weight.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together."""
        return sum(tensor.nbytes for tensor in (self.packed, *self.qparams))

    def codes(self) -> Tensor:
        """Return the codes, uint8 [out, in]."""
        return unpack(self.packed, self.scheme.bits, self.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in] that the codes stand for."""
        return dequantize(self.codes(), self.qparams, self.scheme, dtype)
