"""
One linear layer on a CUDA device: cuBLAS, torch's low-bit kernels and our own.

Every contender is captured in a CUDA graph that calls it on all copies of its weight, so that
neither Python nor launches are in the time, as they are not in a policy that runs from a graph.
Without a device one row says so, and nothing else is reported: no figure is estimated.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from vlaq_ros.bench.contenders import brief
from vlaq_ros.bench.own_kernels import VARIANTS, Variant, channel_widths, group_size_for
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.stopwatch import copies_for
from vlaq_ros.bench.torch_rivals import int8_rows
from vlaq_ros.kernels.select import select_kernel
from vlaq_ros.quant.mixed import MixedWeight

CUBLAS = 'cuBLAS bf16'
LEAST_INT_MM_TOKENS = 17  # torch._int_mm refuses fewer on CUDA
WARM_UP = 3
MOST_COPIES = 64
ABSENT = 'not measured: this machine has no CUDA device'

Make = Callable[[Tensor, Tensor], list[Callable[[], Tensor]]]


class GpuContender(NamedTuple):
    """A name, and (weight, input) -> calls on several copies of the weight."""

    name: str
    make: Make


def measure_step(job: Job, step: Step) -> Iterator[dict[str, Any]]:
    """Yield one row per contender, or one that says why there is nothing."""
    inputs, outputs, tokens = (step.values[name] for name in ('in', 'out', 'tokens'))
    place = {'section': 'gpu', 'in': inputs, 'out': outputs, 'tokens': tokens}
    if not torch.cuda.is_available():
        yield {**place, 'name': 'gpu', 'seconds': None, 'reason': ABSENT}
        return
    device = torch.cuda.get_device_name()
    weight = torch.randn(outputs, inputs, device='cuda') * inputs**-0.5
    x = torch.randn(tokens, inputs, device='cuda').bfloat16()
    graphs, counts = {}, {}
    for contender in _contenders():
        try:
            calls = contender.make(weight, x)
            graphs[contender.name], counts[contender.name] = _capture(calls), len(calls)
        except Exception as error:  # noqa: BLE001  a kernel may refuse in any way
            yield {
                **place,
                'name': contender.name,
                'device': device,
                'seconds': None,
                'remark': brief(error),
            }
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(job.effort[0]):
        for name, graph in graphs.items():
            samples[name].append(_replay_s(graph) / counts[name])
    for name, values in samples.items():
        row = {'name': name, 'device': device, 'seconds': median(values), 'copies': counts[name]}
        yield {**place, **row, 'low': min(values), 'high': max(values)}


def _contenders() -> list[GpuContender]:
    own = [GpuContender(v.name, lambda w, x, v=v: _own(v, w, x)) for v in VARIANTS]
    return [
        GpuContender(CUBLAS, _cublas),
        GpuContender('torch _int_mm', _int_mm),
        GpuContender('torch _weight_int4pack_mm', _tinygemm),
        *own,
    ]


def _capture(calls: list[Callable[[], Tensor]]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return graph


def _replay_s(graph: torch.cuda.CUDAGraph) -> float:
    """Return the time of one replay on the device [s]."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _copies(tensor: Tensor) -> list[Tensor]:
    return [tensor.clone() for _ in range(min(MOST_COPIES, copies_for(tensor.nbytes)))]


def _cublas(weight: Tensor, x: Tensor) -> list[Callable[[], Tensor]]:
    return [lambda copy=copy: linear(x, copy) for copy in _copies(weight.bfloat16())]


def _int_mm(weight: Tensor, x: Tensor) -> list[Callable[[], Tensor]]:
    if len(x) < LEAST_INT_MM_TOKENS:
        raise ValueError(f'needs at least {LEAST_INT_MM_TOKENS} tokens')
    codes, _ = int8_rows(weight)
    rounded = (x / x.abs().amax(1, keepdim=True) * 127).round().to(torch.int8)
    return [lambda copy=copy: torch._int_mm(rounded, copy.t()) for copy in _copies(codes)]


def _tinygemm(weight: Tensor, x: Tensor) -> list[Callable[[], Tensor]]:
    group = group_size_for(weight.shape[1])
    grouped = weight.unflatten(1, (-1, group))
    scale = grouped.abs().amax(2) / 7.5
    codes = (grouped / scale[..., None] + 8).round().clamp(0, 15).flatten(1).to(torch.uint8)
    pairs = (codes[:, ::2] << 4) | codes[:, 1::2]
    packed = torch._convert_weight_to_int4pack(pairs.contiguous(), 8)
    qparams = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1)
    qparams = qparams.contiguous().bfloat16()
    return [
        lambda copy=copy: torch._weight_int4pack_mm(x, copy, group, qparams)
        for copy in _copies(packed)
    ]


def _own(variant: Variant, weight: Tensor, x: Tensor) -> list[Callable[[], Tensor]]:
    widths = channel_widths(variant.shares, len(weight))
    mixed = MixedWeight.from_float(weight, widths, group_size_for(weight.shape[1]))
    choice = select_kernel(mixed.layout, 'cuda')
    if choice.kernel.name == 'reference':
        raise ValueError(choice.reason)
    precision = torch.tensor([variant.cap, variant.activation_bits], dtype=torch.int32)
    precision = precision.to(weight.device)
    packed = choice.kernel.pack(mixed)
    count = min(MOST_COPIES, copies_for(sum(tensor.nbytes for tensor in packed)))
    copies = [tuple(tensor.clone() for tensor in packed) for _ in range(count)]
    run, layout = choice.kernel.run, mixed.layout
    return [lambda copy=copy: run(x, copy, layout, precision, None) for copy in copies]
