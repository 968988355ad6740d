"""
The network of the reference policy: a small vision-language-action model with two action heads.

Two cameras, the state and the words of the instruction become tokens of one sequence, followed by
learned query tokens; a Llama decoder from `transformers` reads it. Two heads share that backbone:

- flow: a diffusion transformer (DiT; Peebles & Xie 2023) predicts the velocity of a flow-matching
  ODE (Lipman et al. 2023) over the whole action chunk, with cross-attention to all backbone
  states;
- token: every query token emits one distribution over bins for each action dimension, in parallel
  (as OpenVLA-OFT decodes).

Module names of the backbone are those of Llama checkpoints, so name patterns written for larger
policies apply here too. Everything is in normalized units; the adapter owns the physical ones.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

from vlaq_ros.errors import BundleError

MODEL_TYPE = 'vlaq_reference'


@dataclass(frozen=True)
class ReferenceConfig:
    """
    Sizes of the network.

    Attributes:
        vocabulary_size: Number of words, padding and the unknown word included.
        prompt_length: Words per instruction, padded.
        cameras: (name, height, width) of each camera [px]; multiples of 16.
        state_dim, action_dim, horizon: Sizes of state, action and chunk.
        hidden_size, layers, heads, intermediate_size: Llama backbone.
        dit_layers: Blocks of the flow head.
        bins: Bins per action dimension of the token head.
    """

    vocabulary_size: int
    prompt_length: int
    cameras: tuple[tuple[str, int, int], ...]
    state_dim: int
    action_dim: int
    horizon: int
    hidden_size: int = 192
    layers: int = 3
    heads: int = 6
    intermediate_size: int = 512
    dit_layers: int = 2
    bins: int = 64

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `config.json`."""
        return {'model_type': MODEL_TYPE, **asdict(self)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> 'ReferenceConfig':
        """Read `config.json`; `BundleError` when it is not one of this family."""
        if values.get('model_type') != MODEL_TYPE:
            raise BundleError(
                f'config.json has model_type {values.get("model_type")!r}, expected {MODEL_TYPE!r}'
            )
        sizes = {key: value for key, value in values.items() if key != 'model_type'}
        try:
            sizes['cameras'] = tuple((str(n), int(h), int(w)) for n, h, w in sizes['cameras'])
            return ReferenceConfig(**sizes)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f'config.json does not describe the network: {error!r}') from error


class CameraStem(nn.Module):
    """Image -> one token per 16 x 16 pixels: three strided convolutions, projection, position."""

    def __init__(self, height: int, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 6, 4, 1)
        self.norm1 = nn.GroupNorm(8, 64)
        self.conv2 = nn.Conv2d(64, 128, 3, 2, 1)
        self.norm2 = nn.GroupNorm(8, 128)
        self.conv3 = nn.Conv2d(128, hidden, 3, 2, 1)
        self.proj = nn.Linear(hidden, hidden)
        tokens = (height // 16) * (width // 16)
        self.position = nn.Parameter(torch.randn(tokens, hidden) * 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Map [batch, 3, height, width] in [-1, 1] to [batch, tokens, hidden]."""
        x = functional.silu(self.norm1(self.conv1(image)))
        x = functional.silu(self.norm2(self.conv2(x)))
        x = functional.silu(self.conv3(x).flatten(2).transpose(1, 2))
        return self.proj(x) + self.position


class Attention(nn.Module):
    """Multi-head attention of `x` over `context`."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.o_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x [batch, n, hidden], context [batch, m, hidden]; mask is True where readable."""
        q, k, v = (
            proj(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, t in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the backbone, MLP; modulated by the flow time (adaLN)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.adaln = nn.Linear(hidden, 6 * hidden)
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.self_attn = Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden)
        self.cross_attn = Attention(hidden, heads)
        self.norm3 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)
        nn.init.zeros_(self.adaln.weight)
        nn.init.zeros_(self.adaln.bias)

    def forward(self, x: Tensor, context: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        """
        Map x [draws * batch, horizon, hidden].

        Several noise draws of one observation share its context [batch, n, hidden]: their queries
        are laid side by side, so keys and values are computed once.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.adaln(functional.silu(time)).unsqueeze(1).chunk(6, dim=-1)
        )
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + (1 + gate1) * self.self_attn(y, y)
        queries = self.norm2(x).reshape(context.shape[0], -1, x.shape[-1])
        x = x + self.cross_attn(queries, context, mask).reshape(x.shape)
        y = self.norm3(x) * (1 + scale2) + shift2
        return x + (1 + gate2) * self.fc2(functional.gelu(self.fc1(y)))


class ReferenceModel(nn.Module):
    """Backbone and both heads. Batch first; draws of one observation are adjacent rows."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.language_model = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocabulary_size,
                hidden_size=hidden,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=256,
                pad_token_id=0,
                use_cache=False,
            )
        )
        self.vision = nn.ModuleDict(
            {name: CameraStem(height, width, hidden) for name, height, width in config.cameras}
        )
        self.state_proj = nn.Linear(config.state_dim, hidden)
        self.query = nn.Parameter(torch.randn(config.horizon + 1, hidden) * 0.02)
        self.token_head = nn.Linear(hidden, config.action_dim * config.bins)
        self.context_proj = nn.Linear(hidden, hidden)
        self.action_in = nn.Linear(config.action_dim, hidden)
        self.action_position = nn.Parameter(torch.randn(config.horizon, hidden) * 0.02)
        self.time_in = nn.Linear(hidden, hidden)
        self.time_out = nn.Linear(hidden, hidden)
        self.dit = nn.ModuleList(DiTBlock(hidden, config.heads) for _ in range(config.dit_layers))
        self.norm_out = nn.LayerNorm(hidden)
        self.action_out = nn.Linear(hidden, config.action_dim)

    def encode(
        self, images: dict[str, Tensor], state: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Run the backbone.

        Args:
            images: Camera name -> [batch, 3, height, width] in [-1, 1].
            state: [batch, state_dim], normalized.
            words: [batch, prompt_length] indices; 0 pads.

        Returns:
            Backbone states [batch, n, hidden], and [batch, n] True where a token is readable. The
            last `horizon + 1` states belong to the query tokens.
        """
        batch = state.shape[0]
        parts = [
            self.language_model.embed_tokens(words),
            self.state_proj(state).unsqueeze(1),
            *(self.vision[name](images[name]) for name, _, _ in self.config.cameras),
            self.query.expand(batch, -1, -1),
        ]
        tokens = torch.cat(parts, dim=1)
        readable = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        readable[:, : words.shape[1]] = words != 0
        hidden = self.language_model(
            inputs_embeds=tokens, attention_mask=readable.long()
        ).last_hidden_state
        return hidden, readable

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the token head [batch, horizon, action_dim, bins]."""
        queries = hidden[:, -self.config.horizon :]
        return self.token_head(queries).unflatten(-1, (self.config.action_dim, self.config.bins))

    def velocity(self, context: Tensor, readable: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """
        Return the velocity of the flow at `x`.

        Args:
            context: [batch, n, hidden] from `context_proj`.
            readable: [batch, n].
            x: [draws * batch, horizon, action_dim] point on the path from noise (0) to action (1).
            time: [draws * batch] in [0, 1].
        """
        half = self.config.hidden_size // 2
        steps = torch.arange(half, device=x.device)
        frequencies = torch.exp(steps * (-math.log(1000.0) / half))
        phase = 1000.0 * time[:, None] * frequencies
        embedded = torch.cat([phase.sin(), phase.cos()], dim=-1).to(context.dtype)
        embedded = self.time_out(functional.silu(self.time_in(embedded)))
        y = self.action_in(x) + self.action_position
        for block in self.dit:
            y = block(y, context, embedded, readable[:, None, None, :])
        return self.action_out(self.norm_out(y))

    def flow_actions(self, hidden: Tensor, readable: Tensor, steps: int, noise: Tensor) -> Tensor:
        """Integrate the flow from `noise` [batch, horizon, action_dim] with Euler steps."""
        context = self.context_proj(hidden)
        x = noise.to(hidden.dtype)
        for step in range(steps):
            time = torch.full((x.shape[0],), step / steps, device=x.device)
            x = x + self.velocity(context, readable, x, time) / steps
        return x
