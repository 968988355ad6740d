"""
The only place that picks a kernel.

A kernel is one file with two functions, `quantized_linear` and `refusal`, and one row of
`KERNELS`. The tests against the definition run over the rows of this table.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor

from vlaq_ros.kernels import reference
from vlaq_ros.quant.scheme import QuantScheme
from vlaq_ros.quant.weight import QuantizedWeight

Run = Callable[[Tensor, QuantizedWeight, Tensor | None], Tensor]


class Kernel(NamedTuple):
    """
    A way to multiply by a quantized weight.

    Attributes:
        name: As printed in reports.
        run: (x [..., in], weight, bias) -> [..., out].
        refusal: (scheme, device type) -> why it cannot run here; '' when it can.
    """

    name: str
    run: Run
    refusal: Callable[[QuantScheme, str], str]


class KernelChoice(NamedTuple):
    """The kernel to call, and a sentence saying why it was picked."""

    name: str
    run: Run
    reason: str


KERNELS = (Kernel('reference', reference.quantized_linear, reference.refusal),)
"""Fastest first. The last one refuses nothing."""


@cache
def select_kernel(scheme: QuantScheme, device_type: str) -> KernelChoice:
    """
    Return the first kernel that can run a scheme on a kind of device (`cpu`, `cuda`).

    The choice is made once per pair. It does not depend on the input: a kernel that prefers
    another path for many tokens decides that itself.
    """
    passed_over = []
    for kernel in KERNELS:
        refusal = kernel.refusal(scheme, device_type)
        if not refusal:
            why = 'passed over ' + '; '.join(passed_over) if passed_over else 'none is faster'
            reason = f'{kernel.name} for {scheme} on {device_type}: {why}'
            return KernelChoice(kernel.name, kernel.run, reason)
        passed_over.append(f'{kernel.name}, {refusal}')
    raise AssertionError('the last kernel refuses nothing')
