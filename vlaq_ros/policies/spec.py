"""
What a policy expects and delivers, read from `policy.json` of its bundle. Never guessed.

Torch-free, so that the node, the tools and the tests can read a spec without loading a model.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from vlaq_ros.errors import BundleError
from vlaq_ros.types import ActionSpec


@dataclass(frozen=True)
class CameraSpec:
    """One camera: the name of its stream and the size of its images [px]."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class StateSpec:
    """Proprioception: names, units and the statistics that normalize it (z-score)."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class PromptSpec:
    """Word-level prompt: vocabulary (0 pads, 1 is unknown) and length limit [words]."""

    vocabulary: tuple[str, ...]
    max_words: int


@dataclass(frozen=True)
class PolicySpec:
    """
    The contract between a policy and the robot it was trained for.

    Attributes:
        family: Name of the adapter in `policies.registry`.
        name: Name of this bundle.
        cameras: In the order the model wants them; all are required.
        state: Proprioception.
        prompt: How an instruction becomes tokens.
        action: Meaning, units and range of the actions.
        action_mean: [action_dim] un-normalization offset, in the units of `action`.
        action_std: [action_dim] un-normalization scale, in the units of `action`.
        horizon: Actions per chunk.
        execution_horizon: Actions to execute before the next inference, by default.
        heads: Names of the action heads; the first is the default.
        sampler_steps: Denoise steps of the flow head.
        license: Licence of the weights.
        provenance: What the weights were trained on and how.
    """

    family: str
    name: str
    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    prompt: PromptSpec
    action: ActionSpec
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    horizon: int
    execution_horizon: int
    heads: tuple[str, ...]
    sampler_steps: int
    license: str
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `policy.json`."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> 'PolicySpec':
        """
        Build a spec from the values of `policy.json`.

        Raises:
            BundleError: Anything is missing, unknown or inconsistent; all problems are listed.
        """
        try:
            spec = PolicySpec(
                **{
                    **values,
                    'cameras': tuple(CameraSpec(**camera) for camera in values['cameras']),
                    'state': StateSpec(**_tuples(values['state'])),
                    'prompt': PromptSpec(**_tuples(values['prompt'])),
                    'action': ActionSpec(**_tuples(values['action'])),
                    'action_mean': tuple(values['action_mean']),
                    'action_std': tuple(values['action_std']),
                    'heads': tuple(values['heads']),
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f'policy.json does not describe a policy: {error!r}') from error
        problems = list(_problems(spec))
        if problems:
            raise BundleError('policy.json is inconsistent:\n  ' + '\n  '.join(problems))
        return spec


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _problems(spec: PolicySpec):
    state = spec.state
    if not len(state.names) == len(state.units) == len(state.mean) == len(state.std):
        yield 'state: names, units, mean and std differ in length'
    if not len(spec.action_mean) == len(spec.action_std) == spec.action.dim:
        yield f'action_mean and action_std must have {spec.action.dim} values'
    for name, values in (('state.std', state.std), ('action_std', spec.action_std)):
        bad = [v for v in values if not (math.isfinite(v) and v > 0)]
        if bad:
            yield f'{name} must be positive and finite, got {bad}'
    for name, values in (('state.mean', state.mean), ('action_mean', spec.action_mean)):
        bad = [v for v in values if not math.isfinite(v)]
        if bad:
            yield f'{name} must be finite, got {bad}'
    if not spec.cameras:
        yield 'a policy needs at least one camera'
    if not 1 <= spec.execution_horizon <= spec.horizon:
        yield f'execution_horizon={spec.execution_horizon} must be between 1 and {spec.horizon}'
    if not spec.heads:
        yield 'heads must name at least one action head'
    if spec.sampler_steps < 1:
        yield f'sampler_steps={spec.sampler_steps} must be at least 1'
