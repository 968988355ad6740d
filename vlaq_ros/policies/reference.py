"""
The adapter of the reference policy: bundle in, action chunks in physical units out.

Weights are stored as float16 and run as fp32, bf16, or with the linear layers of backbone and flow
head packed to 8 or 4 bits. Camera stems, input and output projections and the token head stay
float: they are a fifth of the weights and the most fragile ones.
"""

import copy
import re
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.errors import BundleError, PolicyError
from vlaq_ros.nn import surgery
from vlaq_ros.nn.memory import model_memory
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.precision_groups import share_precision
from vlaq_ros.nn.second_view import second_view
from vlaq_ros.nn.shared_input import share_inputs
from vlaq_ros.nn.store_file import load_model
from vlaq_ros.nn.surgery import find_linears, quantize_linears
from vlaq_ros.policies.base import MemoryReport, SelfTestReport
from vlaq_ros.policies.bundle import WEIGHTS, Bundle
from vlaq_ros.policies.precision import NESTED, SCHEMES, precisions
from vlaq_ros.policies.prompt import encode_words
from vlaq_ros.policies.reference_model import ReferenceConfig, ReferenceModel
from vlaq_ros.policies.self_test import run_self_test
from vlaq_ros.policies.switching import FLOAT_WEIGHTS, ONE_VIEW, ONLY_4, LevelSwitch
from vlaq_ros.policies.validation import check_observation
from vlaq_ros.quant.layout import STORED_WIDTHS, MixedLayout
from vlaq_ros.types import ActionChunk, Observation

# Role of every linear layer, by name. A layer that matches nothing is an error, never a guess.
ROLES = {
    'vision': r'vision\.\w+\.proj',
    'llm': r'language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)',
    'expert': (
        r'context_proj|time_in|time_out|'
        r'dit\.\d+\.(adaln|fc1|fc2|(self|cross)_attn\.[qkvo]_proj)'
    ),
    'action_io': r'state_proj|action_in|action_out',
    'head': r'token_head',
}
QUANTIZED_ROLES = ('llm', 'expert')
_ROLES_OF_HEAD = {'flow': QUANTIZED_ROLES, 'token': ('llm',)}


def layer_roles(model: nn.Module) -> dict[str, str]:
    """
    Return linear layer -> role.

    Raises:
        SchemeError: Layers that match no role, all of them.
    """
    return surgery.layer_roles(find_linears(model), ROLES)


def images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Map uint8 [batch, height, width, 3] to float [batch, 3, height, width] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


class ReferencePolicy:
    """See `policies.base.Policy`."""

    def __init__(
        self, bundle: Bundle, model: ReferenceModel, precision: str, head: str, switch: LevelSwitch
    ) -> None:
        self.spec = bundle.spec
        self.precisions = precisions(bundle)
        self.head = head
        self.measured_levels = bundle.levels()
        self._bundle = bundle
        self._model = model
        self._dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
        self._words: tuple[str, Tensor] | None = None
        self._switch = switch

    @property
    def precision(self) -> str:
        """Name of what it runs at; see `Policy.precision`."""
        return self._switch.name

    @property
    def levels(self) -> Mapping[str, tuple[PrecisionLevel, ...]]:
        """What every module group can be switched to."""
        return self._switch.levels

    @property
    def active_levels(self) -> Mapping[str, PrecisionLevel]:
        """The level of every module group now."""
        return self._switch.active

    @property
    def level_limits(self) -> str:
        """Why there are no other levels."""
        return self._switch.limits

    @property
    def executed_weights(self) -> Mapping[str, Mapping[int, int]]:
        """Quantized weights that this head reads, by module group and stored width."""
        stored = self._switch.stored
        return {role: stored[role] for role in _ROLES_OF_HEAD[self.head] if role in stored}

    def prepare_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Refuse levels that do not exist; see `Policy.prepare_precision`."""
        self._switch.prepare(levels)

    def apply_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Switch; see `Policy.apply_precision`."""
        self._switch.apply(levels)

    def reset(self) -> None:
        """Forget the instruction."""
        self._words = None

    def twin(self) -> 'ReferencePolicy':
        """Return a second view of the same weights; see `Policy.twin`."""
        twin = copy.copy(self)
        twin._model, twin._switch = second_view((self._model, self._switch))
        twin._words = None
        return twin

    def check_instruction(self, instruction: str) -> None:
        """Refuse a sentence this policy cannot read; see `Policy.check_instruction`."""
        encode_words(instruction, self.spec.prompt)

    @torch.no_grad()  # in inference mode layers could not share what they read
    def infer(self, observation: Observation) -> ActionChunk:
        """Return the action chunk for one observation; see `Policy.infer`."""
        clock = [time.perf_counter()]
        check_observation(observation, self.spec)
        images, state, words = self._inputs(observation)
        clock.append(time.perf_counter())
        hidden, readable = self._model.encode(images, state, words)
        clock.append(time.perf_counter())
        actions = self._decode(hidden, readable)
        clock.append(time.perf_counter())
        if not np.isfinite(actions).all():
            raise PolicyError(
                f'the {self.head} head at {self.precision} returned non-finite actions'
            )
        stages = ('preprocess', 'prefill', 'denoise' if self.head == 'flow' else 'decode')
        return ActionChunk(
            actions,
            self.spec.action,
            observation.observed_ns,
            observation.instruction,
            self.precision,
            self.head,
            stage_s=dict(zip(stages, np.diff(clock).tolist())),
        )

    def _inputs(self, observation: Observation) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        if self._words is None or self._words[0] != observation.instruction:
            encoded = encode_words(observation.instruction, self.spec.prompt)
            self._words = (observation.instruction, torch.tensor([encoded]))
        images = {
            camera.name: images_to_tensor(np.array(observation.images[camera.name])[None])
            for camera in self.spec.cameras
        }
        mean, std = np.array(self.spec.state.mean), np.array(self.spec.state.std)
        state = torch.from_numpy((observation.state - mean) / std)[None]
        images = {name: image.to(self._dtype) for name, image in images.items()}
        return images, state.to(self._dtype), self._words[1]

    def _decode(self, hidden: Tensor, readable: Tensor) -> NDArray[np.float64]:
        """Return [horizon, action_dim] in physical units, within the range of the action."""
        spec = self.spec
        low, high = np.array(spec.action.low), np.array(spec.action.high)
        if self.head == 'token':
            bins = self._model.token_logits(hidden)[0].argmax(-1).double().numpy()
            return low + (bins + 0.5) / self._model.config.bins * (high - low)
        # The flow starts from its mean, zero: the same observation gives the same actions.
        noise = torch.zeros(1, spec.horizon, spec.action.dim)
        actions = self._model.flow_actions(hidden, readable, spec.sampler_steps, noise)
        actions = actions[0].double().numpy() * spec.action_std + spec.action_mean
        # np.clip lets NaN through; `infer` refuses it afterwards.
        return np.clip(actions, low, high)

    def self_test(self) -> SelfTestReport:
        """Check the golden actions, and that cameras and words matter."""
        golden = self._bundle.golden()
        if golden is None:
            first, last = self.spec.prompt.vocabulary[2], self.spec.prompt.vocabulary[-1]
            return run_self_test(self, (first, last), None)
        instructions = (golden['instructions'][0], golden['instructions'][1])
        return run_self_test(self, instructions, np.array(golden['actions'][self.head]))

    def memory(self) -> MemoryReport:
        """Return the storage of the loaded weights."""
        return MemoryReport(**model_memory(self._model)._asdict())


def load(bundle: Bundle, precision: str, head: str, threads: int | None) -> ReferencePolicy:
    """
    Load the weights strictly and bring them to `precision`.

    Raises:
        BundleError: A tensor is missing, unexpected, of another shape or not finite; all are
            listed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = load_float_model(bundle) if not bundle.is_packed else _load_packed(bundle, precision)
    if not bundle.is_packed and precision in SCHEMES:
        roles = layer_roles(model)
        layers = [name for name, role in roles.items() if role in QUANTIZED_ROLES]
        quantize_linears(model, dict.fromkeys(layers, SCHEMES[precision]))
    elif precision == 'bf16':
        _to_bfloat16(model)
    model.requires_grad_(False)
    switch = level_switch(model, precision, is_nested=precision == NESTED or bundle.is_nested)
    share_inputs(model)
    return ReferencePolicy(bundle, model, precision, head, switch)


def level_switch(model: nn.Module, name: str, *, is_nested: bool) -> LevelSwitch:
    """
    Let the packed layers of every module group share their precision; return how to switch it.

    A group whose layers are stored at different precisions keeps them and cannot be switched.

    Args:
        model: Its packed layers are changed in place, before they share inputs.
        name: Of the precision it was loaded at.
        is_nested: Whether its 8-bit channels may be read at 4 bits.
    """
    packed = {n: m for n, m in model.named_modules() if isinstance(m, MixedLinear)}
    precisions, weight_bits, limits, stored = {}, {}, [], {}
    for role in QUANTIZED_ROLES:
        layers = {n: m for n, m in packed.items() if re.fullmatch(ROLES[role], n)}
        shared = [layer.shared_precision for layer in layers.values()]
        if not shared:
            continue
        if len({(one.cap, one.activation_bits) for one in shared}) > 1:
            limits.append(
                f'the layers of {role} are stored with different activation widths: load the '
                'bundle at a level such as w8a8 instead of `packed`'
            )
            continue
        has_8 = any(layer.layout.counts[1] for layer in layers.values())
        cap = shared[0].cap if has_8 else 4
        precisions[role] = share_precision(model, layers, cap=cap)
        weight_bits[role] = ((4, 8) if is_nested else (8,)) if has_8 else (4,)
        stored[role] = dict(sum((_stored(m.layout) for m in layers.values()), Counter()))
    if not packed:
        limits.append(FLOAT_WEIGHTS)
    if any(widths == (4,) for widths in weight_bits.values()):
        limits.append(ONLY_4)
    if any(widths == (8,) for widths in weight_bits.values()):
        limits.append(ONE_VIEW)
    return LevelSwitch(precisions, weight_bits, name, '; '.join(limits), stored)


def _stored(layout: MixedLayout) -> Counter[int]:
    """Return stored width -> number of weights; 0 bits for pruned channels."""
    widths = (*STORED_WIDTHS, 0)
    return Counter({bits: layout.rows(bits) * layout.shape[1] for bits in widths})


def load_float_model(bundle: Bundle) -> ReferenceModel:
    """
    Return the full-precision network of a float bundle, in evaluation mode.

    Raises:
        BundleError: As `load`.
    """
    model = ReferenceModel(ReferenceConfig.from_json(bundle.config)).eval()
    _load_weights(model, bundle)
    return model


def _load_packed(bundle: Bundle, precision: str) -> ReferenceModel:
    model = ReferenceModel(ReferenceConfig.from_json(bundle.config)).eval()
    load_model(model, bundle.path / WEIGHTS)
    if precision in SCHEMES:
        scheme = SCHEMES[precision]
        share_precision(model, cap=scheme.widths, activation_bits=scheme.activation_bits)
    return model


def _load_weights(model: ReferenceModel, bundle: Bundle) -> None:
    try:
        tensors = load_file(bundle.path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise BundleError(f'{bundle.path / WEIGHTS} cannot be read: {error}') from error
    expected = model.state_dict()
    problems = [f'{name}: missing' for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f'{name}: unexpected')
        elif tensor.shape != expected[name].shape:
            shapes = f'{list(tensor.shape)}, expected {list(expected[name].shape)}'
            problems.append(f'{name}: shape {shapes}')
        elif not torch.isfinite(tensor).all():
            problems.append(f'{name}: not finite')
    if problems:
        raise BundleError(
            f'{bundle.path / WEIGHTS} does not fit config.json:\n  ' + '\n  '.join(problems)
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def _to_bfloat16(model: ReferenceModel) -> None:
    """Cast the weights; the rotary frequencies must stay float or positions lose their meaning."""
    frequencies = {
        name: buffer.clone() for name, buffer in model.named_buffers() if 'inv_freq' in name
    }
    model.to(torch.bfloat16)
    for name, buffer in frequencies.items():
        owner, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(owner), attribute, buffer)


def golden_actions(bundle: Bundle, instructions: tuple[str, str]) -> dict[str, object]:
    """Return the content of `golden.json`: actions of every head at the default precision."""
    from vlaq_ros.policies.self_test import synthetic_observation

    actions = {}
    for head in bundle.spec.heads:
        policy = load(bundle, precisions(bundle)[0], head, None)
        observation = synthetic_observation(bundle.spec, instructions[0])
        actions[head] = policy.infer(observation).actions.tolist()
    return {'instructions': list(instructions), 'actions': actions}
