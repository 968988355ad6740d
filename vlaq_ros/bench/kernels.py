"""
One linear layer by every way there is, over shapes and tokens.

For every shape and number of tokens all contenders and the ceilings of the machine are timed in
the same rounds, so that ratios and shares of the floor are of one moment.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch

from vlaq_ros.bench.ceilings import CeilingCases, Ceilings
from vlaq_ros.bench.contenders import Contender, Refusal, brief
from vlaq_ros.bench.onnx_rivals import onnx_rivals
from vlaq_ros.bench.openvino_rivals import openvino_rivals
from vlaq_ros.bench.own_kernels import kernel_in_use, own_contenders
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.stopwatch import Case, Effort, Timing, measure
from vlaq_ros.bench.torch_rivals import result_of, torch_rivals
from vlaq_ros.kernels import native_library

Row = dict[str, Any]


def measure_step(job: Job, step: Step) -> Iterator[Row]:
    """Yield one row per contender, and one with the ceilings."""
    inputs, outputs, tokens = (step.values[name] for name in ('in', 'out', 'tokens'))
    place = {
        'section': job.section,
        'in': inputs,
        'out': outputs,
        'tokens': tokens,
        'threads': job.threads,
        'isa': job.isa or _isa(),
    }
    weight, contenders = _prepared(inputs, outputs, job.threads, job.rivals)
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1))
    exact = x @ weight.T
    cases, errors, running = [], {}, []
    for contender in contenders:
        if isinstance(contender, Refusal):
            yield _refused(place, contender)
            continue
        try:
            calls = [contender.bind(x, copy) for copy in contender.copies]
            errors[contender.name] = float((result_of(calls[0]) - exact).norm() / exact.norm())
        except Exception as error:  # noqa: BLE001  a library may refuse a shape in any way
            refusal = Refusal(contender.name, contender.family, brief(error))
            yield _refused(place, refusal)
            continue
        cases.append(Case(contender.name, calls))
        running.append(contender)
    ceiling_cases = _ceiling_cases(job.threads)
    timings = measure([*cases, *ceiling_cases.cases()], job.threads, Effort(*job.effort))
    ceilings = ceiling_cases.ceilings(timings)
    for contender in running:
        timing, error = timings[contender.name], errors[contender.name]
        yield {**place, **_values(contender, timing, error, tokens, ceilings)}
    yield {
        **place,
        'name': 'ceilings',
        'family': 'machine',
        'read_bytes_s': ceilings.read_bytes_s,
        'operations_s': ceilings.operations_s,
        'source': ceilings.source,
        'kernel': kernel_in_use(),
    }


def _values(
    contender: Contender, timing: Timing, error: float, tokens: int, ceilings: Ceilings
) -> Row:
    work = contender.work
    return {
        'name': contender.name,
        'family': contender.family,
        'seconds': timing.seconds,
        'low': timing.low,
        'high': timing.high,
        'calls': timing.calls,
        'error': error,
        'read_bytes': work.weight_bytes,
        'operations': work.total_operations(tokens),
        'floor_s': work.floor_s(tokens, ceilings),
        'copies': len(contender.copies),
        'remark': contender.remark,
    }


def _refused(place: Row, refusal: Refusal) -> Row:
    return {
        **place,
        'name': refusal.name,
        'family': refusal.family,
        'seconds': None,
        'remark': refusal.reason,
    }


@lru_cache(maxsize=1)
def _prepared(
    inputs: int, outputs: int, threads: int, rivals: bool
) -> tuple[torch.Tensor, list[Contender | Refusal]]:
    """Return a random weight and everything that can multiply by it; the last shape is kept."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    contenders = [*torch_rivals(weight), *own_contenders(weight)]
    if rivals:
        contenders += [*onnx_rivals(weight, threads), *openvino_rivals(weight, threads)]
    return weight, contenders


@lru_cache(maxsize=1)
def _ceiling_cases(threads: int) -> CeilingCases:
    return CeilingCases(threads)


def _isa() -> str:
    return 'no kernel library' if native_library.problem() else native_library.isa()
