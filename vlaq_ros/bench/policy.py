"""
A whole inference by stage: the shipped policy at every precision, and a policy of useful size.

The shipped policy is measured through its adapter, as a node uses it. It is small; what its size
cannot show, a model of the same family with the sizes of SmolVLA and random weights shows. Stages
are wall time, as a robot waits for them; the ratios are of CPU time, all models in turn.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from vlaq_ros.bench.contenders import brief
from vlaq_ros.bench.layers import freeze_linears, share, to_bfloat16
from vlaq_ros.bench.own_kernels import GROUP_SIZE, MIX_WIDE, channel_widths
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.ratios import BF16, FP32
from vlaq_ros.nn.shared_input import share_inputs
from vlaq_ros.nn.surgery import quantize_linears
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.precision import precisions
from vlaq_ros.policies.reference import QUANTIZED_ROLES, images_to_tensor, layer_roles
from vlaq_ros.policies.reference_model import ReferenceConfig, ReferenceModel
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.quant.scheme import LayerScheme

BUNDLE = 'metaworld'
SMALL = ReferenceConfig(
    vocabulary_size=512,
    prompt_length=29,
    cameras=(('front', 128, 96), ('wrist', 128, 96)),
    state_dim=8,
    action_dim=7,
    horizon=50,
    hidden_size=960,
    layers=16,
    heads=15,
    intermediate_size=2560,
    dit_layers=5,
)
SMALL_STEPS = 10
SMALL_ROUNDS = 10
FROZEN = 'torch bf16, frozen linear layers'
PER_CHANNEL = 'W8A8 per channel'
BF16_PRECISIONS = ('bf16', BF16, FROZEN)
TOTAL = 'total'
LEAST_SAMPLES = 20  # for the tails
Stages = Mapping[str, float]


class Runner(NamedTuple):
    """
    A model ready to infer.

    Attributes:
        precision, head: As printed.
        infer: Makes one inference and returns its stages [s], wall time.
        kernel: The kernel of its packed layers and why; '' when it has none.
    """

    precision: str
    head: str
    infer: Callable[[], Stages]
    kernel: str = ''


def measure_step(job: Job, step: Step) -> Iterator[dict[str, Any]]:
    """Yield one row per precision and head."""
    if step.values['model'] == 'shipped':
        title, runners, rounds = f'Bundle `{BUNDLE}`', _shipped(job.threads), job.effort[0]
    else:
        tokens = SMALL.prompt_length + 1 + SMALL.horizon + 1
        tokens += sum(h * w // 256 for _, h, w in SMALL.cameras)
        title = f'Small VLA, random weights, {tokens} + {SMALL_STEPS} x {SMALL.horizon} tokens'
        runners, rounds = _small(), min(SMALL_ROUNDS, job.effort[0])
    wall, cpu = infer_in_turn(runners, rounds)
    for runner in runners:
        key = runner.precision, runner.head
        yield {
            'section': 'policy',
            'model': title,
            'precision': runner.precision,
            'head': runner.head,
            'threads': job.threads,
            'inferences': rounds,
            'stages': {stage: percentiles(values) for stage, values in wall[key].items()},
            'cpu_s': float(np.median(cpu[key])),
            'ratio': _against_bf16(cpu, runner),
            'kernel': runner.kernel,
        }


def infer_in_turn(
    runners: Sequence[Runner], rounds: int
) -> tuple[dict[tuple[str, str], dict[str, list[float]]], dict[tuple[str, str], list[float]]]:
    """
    Let every model infer once per round, after one inference to warm up.

    Returns:
        (precision, head) -> stage -> wall seconds, and (precision, head) -> CPU seconds.
    """
    wall: dict[tuple[str, str], dict[str, list[float]]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    for runner in runners:
        runner.infer()
    for _ in range(rounds):
        for runner in runners:
            key = runner.precision, runner.head
            start, cpu_start = time.perf_counter(), time.process_time()
            stages = dict(runner.infer())
            cpu.setdefault(key, []).append(time.process_time() - cpu_start)
            stages[TOTAL] = time.perf_counter() - start
            for stage, seconds in stages.items():
                wall.setdefault(key, {}).setdefault(stage, []).append(seconds)
    return wall, cpu


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99 [s]; the tails are None below twenty samples."""
    values = {'p50': float(np.percentile(seconds, 50)), 'p95': None, 'p99': None}
    if len(seconds) >= LEAST_SAMPLES:
        values |= {name: float(np.percentile(seconds, int(name[1:]))) for name in ('p95', 'p99')}
    return values


def _against_bf16(cpu: Mapping[tuple[str, str], list[float]], runner: Runner) -> float | None:
    bf16 = [
        float(np.median(values))
        for (precision, head), values in cpu.items()
        if precision in BF16_PRECISIONS and head == runner.head
    ]
    own = float(np.median(cpu[runner.precision, runner.head]))
    return min(bf16) / own if bf16 else None


def _shipped(threads: int) -> list[Runner]:
    bundle = open_bundle(BUNDLE)
    words = bundle.golden()['instructions'][0]
    observation = synthetic_observation(bundle.spec, words)
    runners = []
    for head in bundle.spec.heads:
        for precision in precisions(bundle):
            policy = load_policy(bundle.path, precision=precision, head=head, threads=threads)
            kernel = policy.memory().kernel
            infer = policy.infer
            runners.append(
                Runner(precision, head, lambda run=infer: run(observation).stage_s, kernel)
            )
    return runners


def _small() -> list[Runner]:
    torch.manual_seed(0)
    original = ReferenceModel(SMALL).eval().requires_grad_(False)
    packed = {PER_CHANNEL: 8, 'W8A8': 8, 'W4A8': 4, MIX_WIDE: None}
    makers: dict[str, tuple[Callable[[nn.Module], None], torch.dtype]] = {
        FP32: (lambda model: None, torch.float32),
        BF16: (to_bfloat16, torch.bfloat16),
        FROZEN: (_freeze, torch.bfloat16),
    }
    for label, bits in packed.items():
        group = None if label == PER_CHANNEL else GROUP_SIZE
        pack = partial(_pack, bits=bits, group_size=group)
        makers[label] = (pack, torch.float32)
        around = (partial(pack, bf16_around=True), torch.bfloat16)
        makers[f'{label}, bf16 around'] = around
    runners = []
    for label, (change, dtype) in makers.items():
        model = share(original)
        try:
            change(model)
        except Exception as error:  # noqa: BLE001  a torch without the private operators
            print(f'{label}: {brief(error)}')
            continue
        runners.append(Runner(label, 'flow', _inference(model, dtype)))
    return runners


def _freeze(model: nn.Module) -> None:
    freeze_linears(model)
    to_bfloat16(model)


def _pack(
    model: nn.Module, bits: int | None, group_size: int | None, bf16_around: bool = False
) -> None:
    """Pack the layers that the shipped policy packs; `bits` None mixes widths."""
    plan = {}
    for name, role in layer_roles(model).items():
        if role in QUANTIZED_ROLES:
            linear = model.get_submodule(name)
            widths = bits
            if bits is None:
                shares = {0: 0.05, 4: 0.70, 8: 0.20, 16: 0.05}
                widths = tuple(channel_widths(shares, linear.out_features))
            plan[name] = LayerScheme(widths, group_size, activation_bits=8)
    quantize_linears(model, plan)
    share_inputs(model)
    if bf16_around:
        to_bfloat16(model)


def _inference(model: ReferenceModel, dtype: torch.dtype) -> Callable[[], Stages]:
    """Return an inference like that of the adapter, on random inputs."""
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        for name, height, width in SMALL.cameras
    }
    state = torch.zeros(1, SMALL.state_dim, dtype=dtype)
    words = torch.ones(1, SMALL.prompt_length, dtype=torch.long)
    noise = torch.randn(1, SMALL.horizon, SMALL.action_dim)

    def infer() -> Stages:
        clock = [time.perf_counter()]
        pixels = {name: images_to_tensor(image).to(dtype) for name, image in images.items()}
        clock.append(time.perf_counter())
        hidden, readable = model.encode(pixels, state, words)
        clock.append(time.perf_counter())
        model.flow_actions(hidden, readable, SMALL_STEPS, noise)
        clock.append(time.perf_counter())
        return dict(zip(('preprocess', 'prefill', 'denoise'), np.diff(clock).tolist()))

    return infer
