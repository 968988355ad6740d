"""What a kernel is: five things under one name, all that the rest of the package may call."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from vlaq_ros.quant.mixed import MixedLayout, MixedWeight

Tensors = tuple[Tensor, ...]
Run = Callable[[Tensor, Tensors, MixedLayout, Tensor, Tensor | None], Tensor]


class Kernel(NamedTuple):
    """
    A way to multiply by a weight with channels of several widths.

    Attributes:
        name: As printed in reports.
        pack: weight -> the tensors that the kernel reads; they hold no pointers and may be copied
            and moved like any other. Raises SchemeError when the kernel cannot hold the weight.
        unpack: (tensors, layout) -> the same weight, bit by bit.
        run: (x [..., in], tensors, layout, precision, bias) -> [..., out] in the dtype of x.
            x may have any strides. precision is int32 [2] on the CPU or beside the weight: (cap,
            activation bits), read at every call, so that it can change without a new trace.
            bias is float32 [out] or None.
        refusal: (layout, device type) -> why it cannot run there; '' when it can.
    """

    name: str
    pack: Callable[[MixedWeight], Tensors]
    unpack: Callable[[Tensors, MixedLayout], MixedWeight]
    run: Run
    refusal: Callable[[MixedLayout, str], str]


def row_major_parts(weight: MixedWeight) -> Tensors:
    """Return order, values16, codes8, codes4, codes2 and scale; an absent class has 0 rows."""
    return tuple(getattr(weight, name) for name in weight.layout.tensors())
