"""How far a quantized tensor is from the one it stands for."""

import torch
from torch import Tensor

from vlaq_ros.quant.mixed import CAPS, MixedWeight


def sqnr_db(reference: Tensor, quantized: Tensor) -> float:
    """
    Return the signal to quantization noise ratio [dB]: 10 log10(|r|^2 / |r - q|^2).

    Unlike a cosine it sees a wrong scale. Equal tensors give infinity.
    """
    reference, quantized = reference.detach().double(), quantized.detach().double()
    noise = (reference - quantized).square().sum()
    return float(10.0 * torch.log10(reference.square().sum() / noise))


def view_errors_db(reference: Tensor, weight: MixedWeight) -> dict[int, float]:
    """Return cap -> signal to noise [dB] of a weight [out, in] read with all bits, and capped."""
    return {cap: sqnr_db(reference, weight.dequantize(cap=cap)) for cap in CAPS}
