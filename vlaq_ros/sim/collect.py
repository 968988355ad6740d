"""
`vlaq collect`: record demonstrations for training the reference policy.

Every worker owns its environment seeds; seeds from 100 on belong to the evaluation and are never
touched. A worker appends one shard file at a time, so a stopped run keeps what it has.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import numpy as np

from vlaq_ros.sim.tasks import TASKS

EVALUATION_SEED = 100
SHARD_EPISODES = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq collect`."""
    parser.add_argument('out', type=Path, help='folder for the shards')
    parser.add_argument('--per-task', type=int, default=300, help='demonstrations per task')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--first-seed', type=int, default=0, help='first environment seed to use')
    parser.add_argument(
        '--roll-in', help='bundle that starts the episodes before the expert takes over'
    )
    parser.add_argument(
        '--weights', default='', help='task=factor,... to record more of some tasks than of others'
    )


def _quota(per_task: int, weights: str, processes: int) -> list[int]:
    factors = dict(item.split('=') for item in weights.split(',') if item)
    return [round(per_task * float(factors.get(t.name, 1.0)) / processes) for t in TASKS]


def _work(worker: int, args: argparse.Namespace) -> None:
    import torch

    from vlaq_ros.sim.demonstrations import demonstrate, save
    from vlaq_ros.sim.robot import SimRobot

    torch.set_num_threads(1)
    policy = None
    if args.roll_in:
        from vlaq_ros.policies.registry import load_policy

        policy = load_policy(args.roll_in).infer
    rng = np.random.default_rng([args.first_seed, worker])
    robot = SimRobot()
    quota = _quota(args.per_task, args.weights, args.processes)
    kept, tried = np.zeros(len(TASKS), int), np.zeros(len(TASKS), int)
    shard, shards, started = [], 0, time.monotonic()
    seeds_per_worker = (EVALUATION_SEED - args.first_seed) // args.processes
    while (kept < quota).any():
        open_tasks = [i for i in range(len(TASKS)) if kept[i] < quota[i]]
        which = min(open_tasks, key=lambda i: kept[i] / quota[i])
        block, index = divmod(int(tried[which]), 50)
        seed = args.first_seed + worker * seeds_per_worker + block % seeds_per_worker
        tried[which] += 1
        episode = demonstrate(robot, TASKS[which], seed, index, rng, policy)
        if episode is None:
            continue
        kept[which] += 1
        shard.append(episode)
        if len(shard) == SHARD_EPISODES or (kept >= quota).all():
            save(args.out / f's{args.first_seed:03d}_w{worker}_{shards:03d}.npz', shard)
            shard, shards = [], shards + 1
            print(
                f'worker {worker}: {kept.sum()}/{sum(quota)} kept of {tried.sum()} tried, '
                f'{time.monotonic() - started:.0f} s',
                flush=True,
            )
    rates = ', '.join(f'{t.name} {k}/{n}' for t, k, n in zip(TASKS, kept, tried))
    print(f'worker {worker} done: {rates}', flush=True)


def run(args: argparse.Namespace) -> int:
    """Record the demonstrations."""
    args.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context('spawn')
    workers = [context.Process(target=_work, args=(i, args)) for i in range(args.processes)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    return int(any(process.exitcode for process in workers))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))
