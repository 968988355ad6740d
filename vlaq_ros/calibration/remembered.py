"""
Samples, statistics, sensitivities and results of methods as parts of a work folder.

Tensors come back bit for bit, so that a run that goes on gives what an uninterrupted one gives.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlaq_ros.calibration.checkpoint import Part, WorkFolder, plain
from vlaq_ros.calibration.method import MethodResult
from vlaq_ros.calibration.phases import Phase
from vlaq_ros.calibration.recordings import Recording
from vlaq_ros.calibration.samples import Sample, SamplePlan, SampleSet, Source, draw_samples
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.quant.layout import MixedLayout
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.types import Observation

_SETS = ('calibration', 'held_out')
_STATE = 'state'


def recall_samples(
    folder: WorkFolder, recordings: Sequence[Recording], spec: PolicySpec, plan: SamplePlan
) -> SampleSet:
    """
    Return the samples of these recordings; see `draw_samples`.

    Raises:
        BagError: As there.
    """

    def make() -> Part:
        drawn = draw_samples(recordings, spec, plan)
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {'report': dict(drawn.report)}
        for name in _SETS:
            samples: Sequence[Sample] = getattr(drawn, name)
            seen = [sample.observation for sample in samples]
            for camera in spec.cameras:
                images = np.stack([o.images[camera.name] for o in seen])
                tensors[f'{name}.image.{camera.name}'] = torch.from_numpy(images)
            tensors[f'{name}.{_STATE}'] = torch.from_numpy(np.stack([o.state for o in seen]))
            values[name] = [
                [
                    *(s.episode, s.instruction, str(s.phase), list(s.source), o.observed_ns),
                    s.sensitivity,
                ]
                for s, o in zip(samples, seen)
            ]
        return tensors, values

    tensors, values = folder.recall('samples', {'plan': asdict(plan), 'rows': 2}, make)
    sets = [_samples(name, tensors, values[name], spec) for name in _SETS]
    return SampleSet(*sets, values['report'])


def _samples(
    name: str, tensors: Mapping[str, Tensor], rows: Sequence[Any], spec: PolicySpec
) -> tuple[Sample, ...]:
    images = {c.name: tensors[f'{name}.image.{c.name}'].numpy() for c in spec.cameras}
    state = tensors[f'{name}.{_STATE}'].numpy()
    samples = []
    for i, (episode, instruction, phase, source, observed_ns, fine) in enumerate(rows):
        pictures = {camera: stack[i] for camera, stack in images.items()}
        seen = Observation(pictures, state[i], instruction, observed_ns)
        samples.append(Sample(seen, episode, instruction, Phase(phase), Source(*source), fine))
    return tuple(samples)


def recall_result(
    folder: WorkFolder, depends: Mapping[str, Any], run: Callable[[], MethodResult]
) -> MethodResult:
    """
    Return the result of a method.

    Args:
        folder: Where it is kept.
        depends: Name, options and budget of the method.
        run: Runs it.
    """
    tensors, values = folder.recall('result', depends, lambda: _pack(run()))
    weights = {
        name: MixedWeight.from_tensors(
            MixedLayout(tuple(shape), group_size, tuple(counts)), _below(f'weight.{name}', tensors)
        )
        for name, (shape, group_size, counts) in values['layouts'].items()
    }
    return MethodResult(
        values['method'],
        weights,
        values['activation_bits'],
        {n: tensors[f'parameter.{n}'] for n in values['parameters']},
        values['provenance'],
        {n: tensors[f'target.{n}'] for n in values['targets']},
    )


def _pack(result: MethodResult) -> Part:
    tensors: dict[str, Tensor] = {}
    layouts = {}
    for name, weight in result.weights.items():
        layout = weight.layout
        layouts[name] = [list(layout.shape), layout.group_size, list(layout.counts)]
        for key, tensor in weight.tensors().items():
            tensors[f'weight.{name}.{key}'] = tensor
    for kind, group in (('parameter', result.parameters), ('target', result.targets)):
        tensors |= {f'{kind}.{name}': tensor.detach() for name, tensor in group.items()}
    values = {
        'method': result.method,
        'activation_bits': dict(result.activation_bits),
        'layouts': layouts,
        'parameters': list(result.parameters),
        'targets': list(result.targets),
        'provenance': plain(result.provenance),
    }
    return tensors, values


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors `<prefix>.<key>` by their keys."""
    start = f'{prefix}.'
    return {
        name[len(start) :]: tensor
        for name, tensor in tensors.items()
        if name.startswith(start) and '.' not in name[len(start) :]
    }
