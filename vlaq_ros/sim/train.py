"""
`vlaq train`: train the reference policy on demonstrations and write its bundle.

Data-parallel over processes on one machine (gloo), bf16 autocast, AdamW with a cosine schedule, an
exponential moving average of the weights (EMA) that becomes the policy. Checkpoints are written
every few hundred steps; `--resume` goes on from the last one, also with more demonstrations.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.bundle import write_bundle
from vlaq_ros.policies.prompt import encode_words
from vlaq_ros.policies.reference_model import ReferenceConfig, ReferenceModel
from vlaq_ros.policies.spec import CameraSpec, PolicySpec, PromptSpec, StateSpec
from vlaq_ros.sim.dataset import HORIZON, TrainingSet, draw_batch, load_shards
from vlaq_ros.sim.robot import ACTION_SPEC, CAMERAS, STATE_NAMES, STATE_UNITS
from vlaq_ros.sim.tasks import TASKS, vocabulary

EXECUTION_HORIZON = 6
PROMPT_LENGTH = 14
NOISE_DRAWS = 2
TOKEN_WEIGHT = 0.2
OFFSET_WEIGHT = 0.5
EMA_DECAY = 0.998
WARM_UP_STEPS = 200
LOG_EVERY = 100


def build_spec(data: TrainingSet, provenance: dict[str, Any]) -> PolicySpec:
    """Return the spec of the policy with the statistics of the training set."""
    actions = data.chunk.reshape(-1, ACTION_SPEC.dim)
    floor = 0.025 * np.subtract(ACTION_SPEC.high, ACTION_SPEC.low)
    return PolicySpec(
        family='reference',
        name='metaworld',
        cameras=tuple(CameraSpec(name, c.height, c.width) for name, c in CAMERAS.items()),
        state=StateSpec(
            STATE_NAMES,
            STATE_UNITS,
            tuple(map(float, data.state.mean(0))),
            tuple(map(float, data.state.std(0).clip(0.02))),
        ),
        prompt=PromptSpec(vocabulary(), PROMPT_LENGTH),
        action=ACTION_SPEC,
        action_mean=tuple(map(float, actions.mean(0))),
        action_std=tuple(map(float, np.maximum(actions.std(0), floor))),
        horizon=HORIZON,
        execution_horizon=EXECUTION_HORIZON,
        heads=('flow', 'token'),
        sampler_steps=5,
        license='Apache-2.0',
        provenance=provenance,
    )


def build_config(spec: PolicySpec) -> ReferenceConfig:
    """Return the network that fits `spec`."""
    return ReferenceConfig(
        vocabulary_size=len(spec.prompt.vocabulary),
        prompt_length=spec.prompt.max_words,
        cameras=tuple((c.name, c.height, c.width) for c in spec.cameras),
        state_dim=len(spec.state.names),
        action_dim=spec.action.dim,
        horizon=spec.horizon,
    )


class Trainee(nn.Module):
    """The network with the auxiliary head that only training uses."""

    def __init__(self, config: ReferenceConfig, spec: PolicySpec, data: TrainingSet) -> None:
        super().__init__()
        self.model = ReferenceModel(config)
        # On CPUs the backward pass of fused attention takes longer than the rest of the network.
        self.model.language_model.config._attn_implementation = 'eager'
        self.offset_head = nn.Linear(config.hidden_size, data.offsets.shape[1])
        tensors = {
            'state_mean': spec.state.mean,
            'state_std': spec.state.std,
            'action_mean': spec.action_mean,
            'action_std': spec.action_std,
            'low': spec.action.low,
            'high': spec.action.high,
            'offset_mean': data.offsets.mean(0),
            'offset_std': data.offsets.std(0),
        }
        for name, values in tensors.items():
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    def losses(self, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        """Return [flow, token, offset] losses of one batch."""
        model, chunk = self.model, batch['chunk']
        state = (batch['state'] - self.state_mean) / self.state_std
        hidden, readable = model.encode(batch['images'], state, batch['words'])
        # Flow matching: x_t = (1 - t) noise + t action, target velocity = action - noise.
        action = ((chunk - self.action_mean) / self.action_std).repeat_interleave(NOISE_DRAWS, 0)
        noise = torch.randn(action.shape, generator=generator)
        time = torch.rand(len(action), generator=generator)
        x = torch.lerp(noise, action, time[:, None, None])
        velocity = model.velocity(model.context_proj(hidden), readable, x, time)
        flow = functional.mse_loss(velocity.float(), action - noise)
        position = (chunk - self.low) / (self.high - self.low)
        bins = (position * model.config.bins).long().clamp(0, model.config.bins - 1)
        logits = model.token_logits(hidden).float()
        token = functional.cross_entropy(logits.flatten(0, 2), bins.flatten())
        predicted = self.offset_head(hidden[:, -model.config.horizon - 1]).float()
        offset = functional.mse_loss(
            predicted, (batch['offsets'] - self.offset_mean) / self.offset_std
        )
        return torch.stack([flow, token, offset])


def learning_rate(step: int, total: int, peak: float) -> float:
    """Return the rate of a linear warm-up followed by a cosine to 2 % of the peak."""
    cosine = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(step / total, 1.0)))
    return peak * cosine * min(1.0, (step + 1) / WARM_UP_STEPS)


class Training:
    """
    The network and everything else that a resumed run goes on with.

    Attributes:
        spec: What the policy will expect; a resumed run keeps the statistics of its first one.
        done: Steps finished.
    """

    def __init__(self, data: TrainingSet, args: argparse.Namespace) -> None:
        checkpoint = args.out / 'checkpoint.pt'
        saved = None
        self.spec = build_spec(data, {})
        if args.resume and checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.spec = PolicySpec.from_json(json.loads(saved['spec']))
        self._args = args
        self._trainee = Trainee(build_config(self.spec), self.spec, data)
        self._parameters = list(self._trainee.parameters())
        decay = [p for p in self._parameters if p.ndim > 1]
        plain = [p for p in self._parameters if p.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{'params': decay, 'weight_decay': 0.02}, {'params': plain, 'weight_decay': 0.0}],
            lr=args.learning_rate,
            betas=(0.9, 0.97),
        )
        self._average = [p.detach().clone() for p in self._parameters]
        self.done = 0
        if saved:
            self._trainee.load_state_dict(saved['trainee'])
            self._optimizer.load_state_dict(saved['optimizer'])
            self._average, self.done = saved['average'], saved['step']

    def step(self, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        """Take one step; return the [flow, token, offset] losses."""
        args = self._args
        for group in self._optimizer.param_groups:
            group['lr'] = learning_rate(self.done, args.steps, args.learning_rate)
        with torch.autocast('cpu', torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            losses = self._trainee.losses(batch, generator)
        self._optimizer.zero_grad()
        (losses[0] + TOKEN_WEIGHT * losses[1] + OFFSET_WEIGHT * losses[2]).backward()
        if args.processes > 1:
            self._share_gradients()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            rate = 1.0 - min(EMA_DECAY, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_(self._average, self._parameters, rate)
        self.done += 1
        return losses.detach()

    def save(self, observations: int) -> None:
        """Write the checkpoint and the bundle of the averaged weights, each in one move."""
        out = self._args.out
        checkpoint = {
            'trainee': self._trainee.state_dict(),
            'optimizer': self._optimizer.state_dict(),
            'average': self._average,
            'step': self.done,
            'spec': json.dumps(self.spec.to_json()),
        }
        torch.save(checkpoint, out / 'checkpoint.partial')
        os.replace(out / 'checkpoint.partial', out / 'checkpoint.pt')
        provenance = {
            'simulator': 'Meta-World v3, training seeds below 100',
            'observations': observations,
            'steps': self.done,
            'batch': self._args.batch,
            'seed': self._args.seed,
        }
        spec = PolicySpec.from_json({**self.spec.to_json(), 'provenance': provenance})
        names = [name for name, _ in self._trainee.named_parameters()]
        tensors = {
            name.removeprefix('model.'): tensor.half().contiguous()
            for name, tensor in zip(names, self._average)
            if name.startswith('model.')
        }
        write_bundle(out / 'bundle', spec, self._trainee.model.config.to_json(), tensors)

    def _share_gradients(self) -> None:
        flat = torch.cat([p.grad.flatten() for p in self._parameters])
        distributed.all_reduce(flat)
        flat /= self._args.processes
        for p, part in zip(self._parameters, flat.split([p.numel() for p in self._parameters])):
            p.grad.copy_(part.view_as(p))


class Log:
    """Mean losses and speed of every 100 steps: one line in `log.jsonl`, and in the bar."""

    def __init__(self, path: Path, batch: int) -> None:
        self._path = path
        self._batch = batch
        self._losses: list[Tensor] = []
        self._since_s = time.monotonic()

    def add(self, step: int, losses: Tensor, bar: tqdm) -> None:
        """Take the losses of one step."""
        self._losses.append(losses)
        if step % LOG_EVERY:
            return
        names = ('flow', 'token', 'offset')
        means = dict(zip(names, torch.stack(self._losses).mean(0).tolist()))
        speed = len(self._losses) * self._batch / (time.monotonic() - self._since_s)
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step, **means, 'samples_s': speed}) + '\n')
        bar.set_postfix({name: f'{mean:.3f}' for name, mean in means.items()})
        self._losses, self._since_s = [], time.monotonic()


def _train_process(rank: int, data: TrainingSet, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.processes > 1:
        store = distributed.FileStore(str(args.out / 'rendezvous'), args.processes)
        distributed.init_process_group('gloo', store=store, rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)  # all processes start from the same weights
    training = Training(data, args)
    prompt, first = training.spec.prompt, training.done
    words = torch.tensor([[encode_words(s, prompt) for s in task.sentences] for task in TASKS])
    rng = np.random.default_rng([args.seed, rank, first])
    generator = torch.Generator().manual_seed(args.seed * 1000 + rank + 100 * first)
    rows = _shuffled(len(data), max(1, args.batch // args.processes), rng)
    log = Log(args.out / 'log.jsonl', args.batch)
    last = min(args.steps, args.stop_after or args.steps)
    bar = tqdm(range(first + 1, last + 1), initial=first, total=last, disable=rank > 0)
    for step in bar:
        batch = draw_batch(data, next(rows), words, training.spec, rng)
        losses = training.step(batch, generator)
        if rank == 0:
            log.add(step, losses, bar)
            if step % args.save_every == 0 or step == last:
                training.save(len(data))
    if args.processes > 1:
        distributed.destroy_process_group()


def _shuffled(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield batches of `size` rows for ever; every row once before any row twice."""
    order: NDArray[np.int64] = np.array([], int)
    while True:
        while len(order) < size:
            order = np.r_[order, rng.permutation(count)]
        yield np.sort(order[:size])
        order = order[size:]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq train`."""
    parser.add_argument('data', type=Path, help='folder with demonstrations (`vlaq collect`)')
    parser.add_argument('out', type=Path, help='folder for log, checkpoint and bundle')
    parser.add_argument('--steps', type=int, default=8000)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--learning-rate', type=float, default=1e-3)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--save-every', type=int, default=200)
    parser.add_argument('--stop-after', type=int, help='end early, in the schedule of --steps')
    parser.add_argument('--resume', action='store_true', help='go on from the last checkpoint')


def run(args: argparse.Namespace) -> int:
    """Train, then leave the bundle in `out/bundle`."""
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.resume and (args.out / 'checkpoint.pt').exists():
        raise ConfigError(f'{args.out} holds a checkpoint: pass --resume or another folder')
    data = load_shards(args.data)
    counts = np.bincount(data.task, minlength=len(TASKS))
    per_task = ', '.join(f'{task.name} {n}' for task, n in zip(TASKS, counts))
    print(f'{len(data)} observations: {per_task}')
    (args.out / 'rendezvous').unlink(missing_ok=True)
    if args.processes == 1:
        _train_process(0, data, args)
        return 0
    # Forked, so that all processes share the images in memory.
    multiprocessing.start_processes(
        _train_process, (data, args), nprocs=args.processes, start_method='fork'
    )
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))
