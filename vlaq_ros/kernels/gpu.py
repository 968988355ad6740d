"""
Multiplication on an NVIDIA GPU by the Triton kernels of `triton_kernel`.

One launch multiplies by all widths of a layer; a second, smaller one before it rounds activations
to integers, and returns at once while they have 16 bits. Nothing is allocated but the result and
scratch memory, nothing is read back, and how a call is cut into programs depends on sizes alone:
calls can be captured in a CUDA graph, and a graph follows the precision tensor. One layer must not
run on two streams at once: programs that share a sum meet at counters of the layer.

16-bit activations are the 16-bit floats that came in; float32 is rounded to bfloat16 for the
product, summed in float32 and stored as float32.

This file imports without Triton, which is needed to run, not to pack.
"""

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from vlaq_ros.kernels import triton_format
from vlaq_ros.kernels.kernel import Kernel
from vlaq_ros.kernels.triton_format import SMALLEST_GROUP, STEP, TILE, Store
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight

LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 and 8-bit integer matrix instructions
MOST_INPUTS = 2**31 // (128 * 127)  # what an int32 sum of products holds
QUANTIZE_BLOCK = 1024  # inputs
PRODUCT_TYPES = {
    torch.float32: 'bfloat16',
    torch.float16: 'float16',
    torch.bfloat16: 'bfloat16',
}
"""Type of x -> type in which 16-bit activations are multiplied."""


class Chip(NamedTuple):
    """What the choice of tiles depends on."""

    capability: tuple[int, int]
    multiprocessors: int


class Plan(NamedTuple):
    """
    How a call is cut into programs.

    Attributes:
        channels: Of a program, 64 or 128.
        tokens: Of a program.
        parts: Programs that share the inputs of one tile.
        warps: Of a program.
        stages: Steps that are loaded ahead.
    """

    channels: int
    tokens: int
    parts: int
    warps: int
    stages: int


def choose_plan(tokens: int, programs: int, steps: int, chip: Chip) -> Plan:
    """
    Return how to multiply `tokens` by `programs` tiles of 64 channels and `steps` of 128 inputs.

    With few tokens the weights are all the traffic there is, and enough programs must be reading:
    two per multiprocessor, with at least four steps each. With many, larger tiles read each weight
    and each token less often; only Hopper has the registers' worth of matrix unit for 128 x 128.
    """
    if tokens <= 64:
        width = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
        wanted = -(-2 * chip.multiprocessors // programs)
        parts = max(1, min(wanted, steps // 4, 16))
        parts = -(-steps // -(-steps // parts))  # none of them empty
        return Plan(TILE, width, parts, 4, 4 if width < 64 else 3)
    tiles = -(-tokens // 128) * -(-programs // 2)
    if chip.capability >= (9, 0) and 2 * tiles >= chip.multiprocessors:
        return Plan(2 * TILE, 128, 1, 8, 3)
    return Plan(TILE, 64, 1, 4, 3)


def pack(weight: MixedWeight) -> tuple[Tensor, ...]:
    """Return the tiles of a weight; see `triton_format`."""
    return tuple(triton_format.pack(weight))


def run(
    x: Tensor,
    tensors: tuple[Tensor, ...],
    layout: MixedLayout,
    precision: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """
    Return [..., out] for x [..., in], in the dtype of x; float64 passes through float32.

    A precision that lies on the CPU is copied in every call.

    Raises:
        ValueError: x has another width or device than the weight, or the precision would have to
            be copied into a CUDA graph, which could not follow it.
    """
    return run_with_plan(x, tensors, layout, precision, bias, None)


def run_with_plan(
    x: Tensor,
    tensors: tuple[Tensor, ...],
    layout: MixedLayout,
    precision: Tensor,
    bias: Tensor | None,
    plan: Plan | None,
) -> Tensor:
    """Do what `run` does, cut as a plan says; None chooses one."""
    if x.dtype not in PRODUCT_TYPES:
        return run_with_plan(x.float(), tensors, layout, precision, bias, plan).to(x.dtype)
    store = Store(*tensors)
    device = store.channels.device
    channels_out, columns = layout.shape
    if x.shape[-1] != columns or x.device != device:
        raise ValueError(
            f'expected [..., {columns}] on {device}, got {list(x.shape)} on {x.device}'
        )
    rows = x.reshape(-1, columns)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    y = x.new_empty((*x.shape[:-1], channels_out))
    if len(rows):
        steps = triton_format.padded_inputs(layout) // STEP
        plan = plan or choose_plan(len(rows), len(store.tiles), steps, _chip(device))
        with torch.cuda.device_of(x):
            _launch(rows, store, layout, _beside(precision, device), bias, plan, y)
    return y


def constants(
    layout: MixedLayout, dtype: torch.dtype, plan: Plan, has_bias: bool
) -> dict[str, object]:
    """Return what `multiply` is compiled for, by the names of its arguments."""
    from triton import language

    return {
        'TYPE': getattr(language, PRODUCT_TYPES[dtype]),
        'CHANNELS': plan.channels,
        'TOKENS': plan.tokens,
        'IS_SPLIT': plan.parts > 1,
        'GROUP': triton_format.scale_group(layout),
        'PAIR': triton_format.paired_inputs(layout),
        'SUM': _summed_inputs(layout),
        'HAS_CODES': sum(layout.counts[1:]) > 0,
        'HAS_BIAS': has_bias,
        'RAGGED': layout.shape[1] % STEP != 0,
    }


def _launch(
    rows: Tensor,
    store: Store,
    layout: MixedLayout,
    precision: Tensor,
    bias: Tensor | None,
    plan: Plan,
    y: Tensor,
) -> None:
    """Fill y [..., out] from rows [tokens, in], at least one; their features are neighbours."""
    from vlaq_ros.kernels import triton_kernel

    assert plan.parts == 1 or len(rows) <= plan.tokens  # one arrival counter per tile
    steps = triton_format.padded_inputs(layout) // STEP
    constant = constants(layout, rows.dtype, plan, bias is not None)
    tiles = store.tiles if plan.channels == TILE else store.double_tiles
    partial_sums = len(tiles) * plan.parts * plan.channels * plan.tokens
    triton_kernel.multiply[(-(-len(rows) // plan.tokens), len(tiles), plan.parts)](
        rows,
        *_rounded(rows, layout, precision),
        store.values16,
        store.high,
        store.low,
        store.codes2,
        store.scale,
        store.channels,
        tiles,
        store.arrivals,
        rows.new_empty(partial_sums if plan.parts > 1 else 0, dtype=torch.float32),
        y if bias is None else bias.float().contiguous(),
        y,
        precision,
        len(rows),
        layout.shape[1],
        layout.shape[0],
        rows.stride(0),
        steps,
        -(-steps // plan.parts),
        plan.parts,
        store.scale.shape[1],
        num_warps=plan.warps,
        num_stages=plan.stages,
        **constant,
    )


def _rounded(rows: Tensor, layout: MixedLayout, precision: Tensor) -> tuple[Tensor, ...]:
    """Return codes, steps and sums of codes of tokens; unwritten at 16 activation bits."""
    from vlaq_ros.kernels import triton_quantize

    tokens, inputs = len(rows), triton_format.padded_inputs(layout)
    if sum(layout.counts[1:]) == 0:
        tokens = 0
    summed = _summed_inputs(layout)
    codes = rows.new_empty((tokens, inputs), dtype=torch.int8)
    steps = rows.new_empty(tokens, dtype=torch.float32)
    sums = rows.new_empty((inputs // summed, tokens), dtype=torch.int32)
    if tokens:
        triton_quantize.quantize_tokens[(tokens,)](
            rows,
            codes,
            steps,
            sums,
            precision,
            tokens,
            layout.shape[1],
            inputs,
            rows.stride(0),
            SUM=summed,
            BLOCK=QUANTIZE_BLOCK,
            num_warps=4,
        )
    return codes, steps, sums


def _summed_inputs(layout: MixedLayout) -> int:
    """Return how many neighbouring codes of a token are summed: they share a scale."""
    group = triton_format.scale_group(layout)
    return next(size for size in (128, 64, 32) if group % size == 0)


def refusal(layout: MixedLayout, device_type: str) -> str:
    """Return why the kernel cannot run a layout on a kind of device; '' when it can."""
    if device_type != 'cuda':
        return 'runs on NVIDIA GPUs alone'
    if problem := _problem():
        return problem
    return layout_problem(layout)


def layout_problem(layout: MixedLayout) -> str:
    """Return why no GPU can run a layout; '' when it can."""
    has_groups = layout.groups > 1 and sum(layout.counts[1:]) > 0
    if has_groups and layout.group_size % SMALLEST_GROUP:
        return f'group_size={layout.group_size} is not a multiple of {SMALLEST_GROUP}'
    if layout.shape[1] > MOST_INPUTS:
        return f'in_features={layout.shape[1]} is above {MOST_INPUTS}'
    return ''


KERNEL = Kernel('triton', pack, triton_format.unpack, run, refusal)


@cache
def _problem() -> str:
    """Return why this machine cannot run the kernel; '' when it can."""
    if not torch.cuda.is_available():
        return 'torch sees no CUDA device'
    if torch.version.hip:
        return 'untested on AMD GPUs'
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        found, least = ('.'.join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
        return f'the GPU has compute capability {found}, below {least}'
    if find_spec('triton') is None:
        return 'Triton is not installed: pip install vlaq_ros[gpu]'
    return ''


@cache
def _chip(device: torch.device) -> Chip:
    if device.type != 'cuda':  # Triton's interpreter
        return Chip((9, 0), 4)
    properties = torch.cuda.get_device_properties(device)
    return Chip((properties.major, properties.minor), properties.multi_processor_count)


def _beside(precision: Tensor, device: torch.device) -> Tensor:
    """Return the precision on a device."""
    if precision.device == device:
        return precision
    if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            'the precision lies on the CPU, where a captured CUDA graph would not see it change: '
            'move it to the GPU with the layer'
        )
    return precision.to(device)
