"""
Stacks of decoder layers with everything around the linear layers: norms, attention, SwiGLU.

The blocks are those of `transformers`, the weights random: speed does not depend on their values.
The surroundings run eagerly and in the same way for everybody. Packed layers that read the same
input (q/k/v, gate/up) are one call, as in policies.

    small    16 layers of 960 (SmolVLA's language model)   prefix of 177 tokens; 50 tokens on it
    7b       3 layers of 4096 (a tenth of Llama-2-7B)      prefix of 290 tokens; 1 token on it
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from vlaq_ros.bench.contenders import brief
from vlaq_ros.bench.own_kernels import BF16_ROWS, GROUP_SIZE, MIX_WIDE, channel_widths
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.stopwatch import Case, Effort, measure
from vlaq_ros.bench.torch_rivals import BF16, BF16_FROZEN, FP32, frozen_linear, frozen_weight
from vlaq_ros.nn.shared_input import share_inputs
from vlaq_ros.nn.surgery import find_linears, quantize_linears
from vlaq_ros.quant.scheme import LayerScheme

MIX_SHARES = {0: 0.05, 4: 0.70, 8: 0.20, 16: 0.05}
ROUND_S = 0.15


@dataclass(frozen=True)
class Stack:
    """
    Sizes of a stack and of its two stages.

    Attributes:
        prefix: Tokens of the first stage.
        step: Name of the second stage.
        step_tokens: Tokens of the second stage, which read the prefix from the cache.
        has_variants: Whether layers that are not fused and bfloat16 surroundings are measured too;
            for a large stack that takes minutes.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    prefix: int
    step: str
    step_tokens: int
    has_variants: bool = True


STACKS = {
    'small': Stack(16, 960, 2560, 15, 5, 177, 'denoise step', 50),
    '7b': Stack(3, 4096, 11008, 32, 32, 290, 'decode', 1, has_variants=False),
}


def measure_step(job: Job, step: Step) -> Iterator[dict[str, Any]]:
    """Yield one row per model and stage."""
    name = step.values['stack']
    stack = STACKS[name]
    layers = step.values.get('layers', stack.layers)
    original = build(stack, layers)
    stages: dict[str, list[Case]] = {'prefill': [], stack.step: []}
    for label, make in models(stack.has_variants).items():
        try:
            model, dtype = make(share(original))
        except Exception as error:  # noqa: BLE001  a library may raise anything
            row = {'section': 'layers', 'stack': name, 'name': label, 'seconds': None}
            yield {**row, 'remark': brief(error)}
            continue
        prefill, on_top = stage_calls(model, stack, dtype)
        stages['prefill'].append(Case(label, [prefill]))
        stages[stack.step].append(Case(label, [on_top]))
    for stage, cases in stages.items():
        effort = Effort(job.effort[0], ROUND_S)
        for label, timing in measure(cases, job.threads, effort).items():
            yield {
                'section': 'layers',
                'stack': name,
                'layers': layers,
                'stage': stage,
                'tokens': stack.prefix if stage == 'prefill' else stack.step_tokens,
                'threads': job.threads,
                'name': label,
                'seconds': timing.seconds,
                'low': timing.low,
                'high': timing.high,
                'calls': timing.calls,
            }


def build(stack: Stack, layers: int) -> LlamaModel:
    """Return a float32 model with random linear weights."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=stack.hidden,
        intermediate_size=stack.intermediate,
        num_hidden_layers=0,
        num_attention_heads=stack.heads,
        num_key_value_heads=stack.key_value_heads,
        max_position_embeddings=1024,
        pad_token_id=0,
        attn_implementation='sdpa',
    )
    model = LlamaModel(config).eval()
    config.num_hidden_layers = layers
    generator = torch.Generator().manual_seed(0)
    with torch.device('meta'):  # the initialisation of transformers would take most of the time
        blocks = [LlamaDecoderLayer(config, index) for index in range(layers)]
    for block in blocks:
        block.to_empty(device='cpu')
        for parameter in block.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.data.fill_(1.0)
    model.layers = nn.ModuleList(blocks).eval()
    return model.requires_grad_(False)


def share(model: nn.Module) -> nn.Module:
    """Return a copy of the structure whose parameters lie in the same memory."""
    shared = {id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def to_bfloat16(model: nn.Module) -> nn.Module:
    """Cast the parameters; rotary frequencies are buffers and stay float."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


Made = tuple[nn.Module, torch.dtype]


def models(has_variants: bool = True) -> dict[str, Callable[[nn.Module], Made]]:
    """Return label -> what turns a float32 model into the one that is timed, and its dtype."""
    uniform = {'W8A8': 8, 'W4A8': 4, 'W2A8': 2, BF16_ROWS: 16}
    found: dict[str, Callable[[nn.Module], Made]] = {
        FP32: lambda model: (model, torch.float32),
        BF16: lambda model: (to_bfloat16(model), torch.bfloat16),
        BF16_FROZEN: _frozen,
        'torch dynamic int8 fbgemm': _dynamic_int8,
    }
    for label, bits in {**uniform, MIX_WIDE: None}.items():
        found[label] = lambda model, bits=bits: (_packed(model, bits), torch.float32)
    if has_variants:
        found['W4A8, not fused'] = lambda m: (_packed(m, 4, fused=False), torch.float32)
        for label, bits in {'W8A8': 8, 'W4A8': 4, MIX_WIDE: None}.items():
            found[f'{label}, bf16 around'] = lambda m, bits=bits: _bf16_around(m, bits)
    return found


def stage_calls(
    model: nn.Module, stack: Stack, dtype: torch.dtype
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the calls of the two stages: the prefix, and the tokens on top of it."""
    generator = torch.Generator().manual_seed(2)
    prefix = torch.randn(1, stack.prefix, stack.hidden, generator=generator).to(dtype)
    tokens = torch.randn(1, stack.step_tokens, stack.hidden, generator=generator).to(dtype)
    cache = DynamicCache(config=model.config)
    model(inputs_embeds=prefix, past_key_values=cache, use_cache=True)

    def prefill() -> Any:
        return model(inputs_embeds=prefix, use_cache=False)

    def on_top() -> Any:
        result = model(inputs_embeds=tokens, past_key_values=cache, use_cache=True)
        cache.crop(-stack.step_tokens)
        return result

    return prefill, on_top


class FrozenLinear(nn.Module):
    """A bfloat16 layer as torch.compile with freezing leaves it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = frozen_weight(linear.weight.data.bfloat16())  # cannot be a parameter
        self._bias = None if linear.bias is None else linear.bias.data.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]."""
        return frozen_linear(x, self._weight, self._bias)


def freeze_linears(model: nn.Module) -> None:
    """Replace every linear layer by a `FrozenLinear`."""
    for name in find_linears(model):
        parent, _, child = name.rpartition('.')
        owner = model.get_submodule(parent)
        setattr(owner, child, FrozenLinear(getattr(owner, child)))


def _frozen(model: nn.Module) -> Made:
    freeze_linears(model)
    return to_bfloat16(model), torch.bfloat16


def _dynamic_int8(model: nn.Module) -> Made:
    torch.backends.quantized.engine = 'fbgemm'
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return quantized, torch.float32


def _packed(model: nn.Module, bits: int | None, fused: bool = True) -> nn.Module:
    """Pack every linear layer; fused, those that read the same input are one call."""
    plan = {name: _scheme(model.get_submodule(name), bits) for name in find_linears(model)}
    quantize_linears(model, plan)
    if fused:
        share_inputs(model)
    return model


def _bf16_around(model: nn.Module, bits: int | None) -> Made:
    """Pack, and let everything else compute in bfloat16."""
    return to_bfloat16(_packed(model, bits)), torch.bfloat16


def _scheme(linear: nn.Linear, bits: int | None) -> LayerScheme:
    mixed = bits is None
    widths = tuple(channel_widths(MIX_SHARES, linear.out_features)) if mixed else bits
    return LayerScheme(widths, GROUP_SIZE, activation_bits=8)
