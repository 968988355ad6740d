"""
The reference policy as calibration sees it: differentiable heads, batches, structure.

Both heads are run on one pass of the backbone. The flow starts from its mean, zero, as it does on
the robot; the token head gives the expectation over bins, which has a gradient where argmax has
none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlaq_ros.calibration.structure import Attention, ModelStructure, Stream, Writer
from vlaq_ros.policies.prompt import encode_words
from vlaq_ros.policies.reference import images_to_tensor
from vlaq_ros.policies.reference_model import ReferenceModel
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.types import Observation


class ReferenceBatch(NamedTuple):
    """Inputs of several observations, as `ReferenceModel.encode` takes them."""

    images: dict[str, Tensor]
    state: Tensor
    words: Tensor


def make_batches(
    observations: Sequence[Observation], spec: PolicySpec, size: int
) -> tuple[ReferenceBatch, ...]:
    """
    Stack observations into batches of at most `size`.

    Raises:
        PolicyError: An instruction cannot be read.
    """
    mean, std = torch.tensor(spec.state.mean), torch.tensor(spec.state.std)
    batches = []
    for start in range(0, len(observations), size):
        part = observations[start : start + size]
        images = {
            camera.name: torch.cat(
                [images_to_tensor(o.images[camera.name].copy()[None]) for o in part]
            )
            for camera in spec.cameras
        }
        state = torch.stack([torch.from_numpy(o.state.copy()).float() for o in part])
        words = torch.tensor([encode_words(o.instruction, spec.prompt) for o in part])
        batches.append(ReferenceBatch(images, (state - mean) / std, words))
    return tuple(batches)


class ReferenceForward:
    """
    Batch -> head -> actions [batch, horizon, action_dim] in physical units.

    Args:
        model: The network.
        spec: Its policy.
        heads: Which of `spec.heads` to run.
        decoded: Return what the robot executes (bins chosen, bounds applied) instead of
            differentiable values.
    """

    def __init__(
        self, model: ReferenceModel, spec: PolicySpec, heads: Sequence[str], decoded: bool = False
    ) -> None:
        self._model, self._spec, self._heads, self._decoded = model, spec, tuple(heads), decoded
        self._low = torch.tensor(spec.action.low)
        self._high = torch.tensor(spec.action.high)

    def __call__(self, batch: ReferenceBatch) -> dict[str, Tensor]:
        """Run the backbone once, then every head."""
        hidden, readable = self._model.encode(*batch)
        run = {'flow': self._flow, 'token': self._token}
        return {head: run[head](hidden, readable) for head in self._heads}

    def _flow(self, hidden: Tensor, readable: Tensor) -> Tensor:
        spec = self._spec
        noise = torch.zeros(len(hidden), spec.horizon, spec.action.dim)
        actions = self._model.flow_actions(hidden, readable, spec.sampler_steps, noise)
        actions = actions * torch.tensor(spec.action_std) + torch.tensor(spec.action_mean)
        return torch.clamp(actions, self._low, self._high) if self._decoded else actions

    def _token(self, hidden: Tensor, readable: Tensor) -> Tensor:
        logits = self._model.token_logits(hidden)
        bins = logits.shape[-1]
        if self._decoded:
            position = logits.argmax(-1) + 0.5
        else:
            position = logits.softmax(-1) @ (torch.arange(bins, dtype=logits.dtype) + 0.5)
        return self._low + position / bins * (self._high - self._low)


def reference_structure(model: ReferenceModel) -> ModelStructure:
    """Return who reads and writes what in the reference network."""
    config = model.config
    hidden, wide = config.hidden_size, config.intermediate_size
    head = hidden // config.heads
    streams, attentions, feed_forward = [], [], []
    for i in range(config.layers):
        layer = f'language_model.layers.{i}'
        attention, mlp = f'{layer}.self_attn', f'{layer}.mlp'
        qkv = tuple(f'{attention}.{x}_proj' for x in 'qkv')
        streams += [
            Stream(qkv, (Writer(f'{layer}.input_layernorm.weight', 0, hidden),)),
            _linear_stream(f'{attention}.o_proj', f'{attention}.v_proj', hidden, head, bias=False),
            Stream(
                (f'{mlp}.gate_proj', f'{mlp}.up_proj'),
                (Writer(f'{layer}.post_attention_layernorm.weight', 0, hidden),),
            ),
            # silu(gate) * up: the product is linear in the rows of `up`.
            _linear_stream(f'{mlp}.down_proj', f'{mlp}.up_proj', wide, 1, bias=False),
        ]
        attentions.append(Attention(*qkv, f'{attention}.o_proj', config.heads))
        feed_forward += [f'{mlp}.{x}_proj' for x in ('gate', 'up', 'down')]
    streams.append(
        Stream(('context_proj', 'token_head'), (Writer('language_model.norm.weight', 0, hidden),))
    )
    keys = []
    for i in range(config.dit_layers):
        block = f'dit.{i}'
        self_attn, cross = f'{block}.self_attn', f'{block}.cross_attn'
        streams += [
            Stream(
                tuple(f'{self_attn}.{x}_proj' for x in 'qkv'),
                _modulation(f'{block}.adaln', 0, hidden),
            ),
            _linear_stream(f'{self_attn}.o_proj', f'{self_attn}.v_proj', hidden, head),
            Stream(
                (f'{cross}.q_proj',),
                tuple(Writer(f'{block}.norm2.{p}', 0, hidden) for p in ('weight', 'bias')),
            ),
            _linear_stream(f'{cross}.o_proj', f'{cross}.v_proj', hidden, head),
            Stream((f'{block}.fc1',), _modulation(f'{block}.adaln', 3 * hidden, hidden)),
        ]
        keys += [f'{cross}.k_proj', f'{cross}.v_proj']
        for name in (self_attn, cross):
            parts = (f'{name}.{x}_proj' for x in 'qkvo')
            attentions.append(Attention(*parts, config.heads))
        feed_forward += [f'{block}.fc1', f'{block}.fc2']
    writers = tuple(Writer(f'context_proj.{p}', 0, hidden) for p in ('weight', 'bias'))
    streams.append(Stream(tuple(keys), writers, mixes=hidden))
    return ModelStructure(
        tuple(streams), tuple(attentions), tuple(feed_forward), interface='context_proj'
    )


def _linear_stream(
    reader: str, writer: str, channels: int, mixes: int, bias: bool = True
) -> Stream:
    names = ('weight', 'bias') if bias else ('weight',)
    writers = tuple(Writer(f'{writer}.{p}', 0, channels) for p in names)
    return Stream((reader,), writers, mixes)


def _modulation(adaln: str, start: int, channels: int) -> tuple[Writer, ...]:
    """Return the writers of norm(x) * (1 + scale) + shift: rows [shift, scale] from `start`."""
    middle, stop = start + channels, start + 2 * channels
    return (
        Writer(f'{adaln}.weight', start, middle),
        Writer(f'{adaln}.bias', start, middle),
        Writer(f'{adaln}.weight', middle, stop),
        Writer(f'{adaln}.bias', middle, stop, offset=1.0),
    )
