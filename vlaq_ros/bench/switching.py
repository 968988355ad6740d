"""
What a change of precision costs: the change itself, memory, and the calls after it.

One layer holds 8-bit codes; capped to 4 it reads half of them. It is compared with a layer that
holds 4-bit codes only.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import nn

from vlaq_ros.bench.own_kernels import group_size_for
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.resident import resident_bytes
from vlaq_ros.bench.stopwatch import Case, Effort, copies_for, measure, now_s
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.quant.scheme import LayerScheme

CAPS = (8, 4)
CALLS_AFTER = 8
ROUND_S = 0.03


def measure_step(job: Job, step: Step) -> Iterator[dict[str, Any]]:
    """Yield one row with everything about one shape."""
    inputs, outputs = step.values['in'], step.values['out']
    x = torch.randn(1, inputs, generator=torch.Generator().manual_seed(1))
    nested, small = _layers(inputs, outputs, 8), _layers(inputs, outputs, 4)
    # every layer is switched and called, then the next: weights are as cold as in a model
    switches = max(job.effort[0], len(nested))
    before = resident_bytes()
    switch_s, calls_s = _switch_and_call(nested, x, switches, job.threads)
    added = resident_bytes() - before
    cases = [Case('W4', [lambda layer=layer: layer(x) for layer in small])]
    cases += [Case(f'W8 cap {cap}', _capped(inputs, outputs, cap, x)) for cap in CAPS]
    steady = measure(cases, job.threads, Effort(max(3, job.effort[0] // 6), ROUND_S))
    yield {
        'section': 'switching',
        'in': inputs,
        'out': outputs,
        'threads': job.threads,
        'name': f'{inputs}x{outputs}',
        'switch_s': switch_s,
        'first_call_s': {cap: times[0] for cap, times in calls_s.items()},
        'later_call_s': {cap: median(times[1:]) for cap, times in calls_s.items()},
        'steady_call_s': {cap: steady[f'W8 cap {cap}'].seconds for cap in CAPS},
        'w4_call_s': steady['W4'].seconds,
        'added_bytes': added,
        'switches': switches,
    }


def _layers(inputs: int, outputs: int, bits: int) -> list[MixedLinear]:
    """Return equal layers, enough of them to be cold when called in turn."""
    linear = nn.Linear(inputs, outputs, bias=False)
    scheme = LayerScheme(bits, group_size_for(inputs), activation_bits=8)
    count = min(24, copies_for(inputs * outputs * min(CAPS) // 8))  # cold at every cap
    return [MixedLinear.from_linear(linear, scheme) for _ in range(count)]


def _capped(inputs: int, outputs: int, cap: int, x: torch.Tensor) -> list[Callable[[], Any]]:
    layers = _layers(inputs, outputs, 8)
    for layer in layers:
        layer.set_cap(cap)
    return [lambda layer=layer: layer(x) for layer in layers]


def _switch_and_call(
    layers: list[MixedLinear], x: torch.Tensor, switches: int, threads: int
) -> tuple[float, dict[int, list[float]]]:
    """
    Change the cap again and again and time the change and the calls after it.

    Returns:
        Median seconds of a change, and cap -> median seconds of the 1st, 2nd, ... call after it.
        Between two calls all other layers are called, so that each call reads its own weights from
        memory.
    """
    changes: list[float] = []
    after = {cap: [[] for _ in range(CALLS_AFTER)] for cap in CAPS}
    for layer in layers:
        layer(x)
    for number in range(switches):
        cap = CAPS[(number + 1) % 2]
        for layer in layers:
            start = now_s(threads)
            layer.set_cap(cap)
            changes.append(now_s(threads) - start)
        for place in range(CALLS_AFTER):
            for layer in layers:
                start = now_s(threads)
                layer(x)
                after[cap][place].append(now_s(threads) - start)
    times = {cap: [median(values) for values in places] for cap, places in after.items()}
    return median(changes), times
