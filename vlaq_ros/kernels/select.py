"""
The only place that picks a kernel.

A kernel is one file with a `KERNEL`, and one row of `KERNELS`. The tests against the definition
run over the rows of this table.
"""

from functools import cache
from typing import NamedTuple

from vlaq_ros.kernels import cpu, gpu, reference
from vlaq_ros.kernels.custom_op import traceable
from vlaq_ros.kernels.kernel import Kernel
from vlaq_ros.quant.mixed import MixedLayout

KERNELS = tuple(traceable(row) for row in (gpu.KERNEL, cpu.KERNEL, reference.KERNEL))
"""Fastest first. The last one refuses nothing."""

PRICE_OF_THE_REFERENCE = 'it dequantizes the weight in every call: it saves memory, not time'


class KernelChoice(NamedTuple):
    """The kernel to call, and a sentence saying why it was picked."""

    kernel: Kernel
    reason: str


@cache
def select_kernel(layout: MixedLayout, device_type: str) -> KernelChoice:
    """
    Return the first kernel that can run a layout on a kind of device (`cpu`, `cuda`).

    The choice is made once per pair. It depends neither on the input nor on the precision: a
    kernel that prefers another path for many tokens decides that itself.

    Raises:
        ConfigError: The user asked for instructions that this machine does not have.
    """
    passed_over = []
    for kernel in KERNELS:
        refusal = kernel.refusal(layout, device_type)
        if not refusal:
            return KernelChoice(kernel, _reason(kernel, device_type, passed_over))
        passed_over.append(f'{kernel.name}: {refusal}')
    raise AssertionError('the last kernel refuses nothing')


def _reason(kernel: Kernel, device_type: str, passed_over: list[str]) -> str:
    parts = [f'{kernel.name} on {device_type}']
    if kernel.name == reference.KERNEL.name:
        parts.append(PRICE_OF_THE_REFERENCE)
    if passed_over:
        parts.append(f'passed over {"; ".join(passed_over)}')
    return '; '.join(parts) if len(parts) > 1 else f'{parts[0]}: none is faster'
