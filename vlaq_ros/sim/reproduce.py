"""
`vlaq reproduce`: from nothing to the shipped bundle, in stages that are skipped once done.

Demonstrations of the scripted experts, two fifths of the training, demonstrations that start under
that unfinished policy (in the states it really gets into), the rest of the training, and the
golden actions.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file

from vlaq_ros.policies.bundle import WEIGHTS, open_bundle, write_bundle
from vlaq_ros.policies.reference import golden_actions
from vlaq_ros.sim import collect, train
from vlaq_ros.sim.tasks import find_task

# Precise tasks need more demonstrations than those that expert noise hardly disturbs.
EXPERT_SHARES = (
    'reach=1.2,push=1.2,pick-place=1.3,assembly=1.1,peg-insert-side=1.4,door-open=0.8,'
    'drawer-open=0.7,drawer-close=0.5,button-press-topdown=0.5,window-open=0.6,window-close=0.6'
)
ROLL_IN_SHARES = (
    'reach=1.5,push=1.5,pick-place=1.5,peg-insert-side=2,assembly=1.5,stick-push=1.5,door-open=1,'
    'drawer-open=0.5,drawer-close=0.3,button-press-topdown=0.3,window-open=0.4,window-close=0.4'
)
ROLL_IN_SEED = 60
GOLDEN_TASKS = ('reach', 'drawer-open')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq reproduce`."""
    parser.add_argument('out', type=Path, help='folder for data, checkpoints and the bundle')
    parser.add_argument('--per-task', type=int, default=150, help='expert demonstrations per task')
    parser.add_argument('--roll-ins', type=int, default=50, help='roll-in demonstrations per task')
    parser.add_argument('--steps', type=int, default=11000, help='training steps of 64 samples')
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0, help='training seed')


def run(args: argparse.Namespace) -> int:
    """Run the stages that are not done yet; the result is `out/bundle`."""
    data, work = args.out / 'data', args.out / 'train'
    processes = ['--processes', str(args.processes)]
    training = [str(data), str(work), '--steps', str(args.steps), '--seed', str(args.seed)]
    shares = ['--weights', EXPERT_SHARES]
    expert = [str(data), '--per-task', str(args.per_task), *shares]
    shares = ['--weights', ROLL_IN_SHARES]
    first_seed = ['--first-seed', str(ROLL_IN_SEED)]
    roll_in = ['--roll-in', str(work / 'bundle'), '--per-task', str(args.roll_ins)]
    first = ['--resume', '--stop-after', str(args.steps * 2 // 5)]
    stages = {
        'expert demonstrations': (collect, expert),
        'first training': (train, [*training, *first]),
        'roll-in demonstrations': (collect, [str(data), *roll_in, *shares, *first_seed]),
        'second training': (train, [*training, '--resume']),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for number, (title, (command, options)) in enumerate(stages.items()):
        done = args.out / f'stage{number}.done'
        if done.exists():
            continue
        print(f'{number + 1}/{len(stages)}: {title}', flush=True)
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        status = command.run(parser.parse_args([*options, *processes]))
        if status:
            return status
        done.touch()
    finish(work / 'bundle', args.out / 'bundle')
    print(f'the bundle is at {args.out / "bundle"}')
    return 0


def finish(trained: Path, target: Path) -> None:
    """Copy a trained bundle to `target` together with its golden actions."""
    bundle = open_bundle(trained)
    instructions = tuple(find_task(name).sentences[0] for name in GOLDEN_TASKS)
    golden = golden_actions(bundle, instructions)
    write_bundle(target, bundle.spec, bundle.config, load_file(trained / WEIGHTS), golden)
