"""
`vlaq drift-study`: when drift notices an injected error, and how often nothing was wrong.

The quantized policy drives the simulated arm; references answer the same observations. From a
random inference on an error of known size is added to its actions. Limits are chosen on episodes
with training seeds and judged on evaluation seeds; nothing reacts to an alarm here.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.errors import BundleError, ConfigError, MissingDependencyError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import Bundle, open_bundle
from vlaq_ros.policies.precision import PACKED
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.sim.collect import EVALUATION_SEED
from vlaq_ros.sim.machine import cpu_name, versions

if TYPE_CHECKING:
    from vlaq_ros.sim.drift_runs import Plan, RunStore

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq drift-study`."""
    parser.add_argument('store', help='folder of a nested packed bundle, the policy to judge')
    parser.add_argument(
        '--bundle', default='metaworld', help='float bundle it was made of (default: %(default)s)'
    )
    parser.add_argument('--head', default='flow', help='action head (default: %(default)s)')
    parser.add_argument(
        '--levels',
        nargs='+',
        default=['w8a8', 'w8a16', 'w4a8'],
        help='levels whose false alarms are counted; errors are injected at the first '
        '(default: %(default)s)',
    )
    parser.add_argument('--faults', nargs='*', metavar='FAULT', help='default: all')
    parser.add_argument('--tasks', nargs='+', metavar='TASK', help='default: all of the benchmark')
    parser.add_argument(
        '--per-task', type=int, default=17, help='episodes without an error per task and level'
    )
    parser.add_argument(
        '--faults-per-task', type=int, default=9, help='episodes per task and error'
    )
    parser.add_argument(
        '--choose-per-task', type=int, default=9, help='training-seed episodes per task and level'
    )
    parser.add_argument(
        '--windows-s',
        nargs='+',
        type=float,
        default=[2.0, 0.5],
        help='windows of the monitor (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=EVALUATION_SEED, help='default: %(default)s')
    parser.add_argument(
        '--choose-seed', type=int, default=0, help='seed of the episodes that limits come from'
    )
    parser.add_argument('--out', type=Path, default=Path('out/drift-study'))
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument('--resume', action='store_true', help='keep the finished episodes in --out')
    kept.add_argument('--overwrite', action='store_true', help='delete those episodes first')


@dataclass(frozen=True)
class Study:
    """
    A checked study.

    Attributes:
        bundle: Float bundle.
        store: Nested packed bundle that was made of it.
        plans: Every episode, those without an error before those with one, task by task.
    """

    bundle: Bundle
    store: Bundle
    plans: tuple['Plan', ...]


def make_study(args: argparse.Namespace) -> Study:
    """
    Check every option.

    Raises:
        ConfigError: Anything is unknown or out of range; every offender is listed.
    """
    from vlaq_ros.sim.faults import FAULTS

    problems = list(_problems(args, tuple(FAULTS)))
    bundle = store = None
    try:
        bundle, store = open_bundle(args.bundle), open_bundle(args.store)
        problems += _misfits(args, bundle, store)
    except BundleError as error:
        problems.append(str(error))
    if problems or bundle is None or store is None:
        raise ConfigError('nothing was run:\n  ' + '\n  '.join(problems))
    return Study(bundle, store, tuple(_plans(args)))


def run(args: argparse.Namespace) -> int:
    """
    Run the study and write its report; return the exit status.

    Raises:
        ConfigError: An option is wrong; nothing was run.
        SimulatorError: The simulator cannot render.
    """
    study = make_study(args)
    from vlaq_ros.sim.drift_runs import RunStore
    from vlaq_ros.sim.drift_study_report import draw_study, write_study
    from vlaq_ros.sim.drift_study_results import evaluate_study

    mode = 'resume' if args.resume else 'overwrite' if args.overwrite else 'new'
    store = RunStore(args.out, _identity(args, study), mode)
    if not _run_all(args, study, store):
        print(
            f'interrupted: {len(store.runs)} of {len(study.plans)} episodes are kept in '
            f'{args.out}; continue with --resume'
        )
        return INTERRUPTED
    runs = [store.runs[plan.key] for plan in study.plans]
    results = evaluate_study(runs, study.store, args.head, args.windows_s, args.levels)
    tables = write_study(args.out, results, _describe(args, study))
    print('\n\n'.join(table.to_text() for table in tables))
    written = ['study.md', 'results.json']
    try:
        written.append(draw_study(args.out, results).name)
    except MissingDependencyError as error:
        print(f'\nno plot: {error}')
    print(f'\nwritten to {args.out}: {", ".join(written)}')
    return 0


def _run_all(args: argparse.Namespace, study: Study, store: 'RunStore') -> bool:
    """Run what is not finished; return whether it ran to the end."""
    from tqdm import tqdm

    from vlaq_ros.sim.drift_runs import run_one
    from vlaq_ros.sim.robot import SimRobot

    todo = [plan for plan in study.plans if plan.key not in store.runs]
    if not todo:
        return True
    judged, references = _load(args)
    robot = SimRobot()
    quiet_s = 0.2 if sys.stderr.isatty() else 30.0
    total = len(study.plans)
    bar = tqdm(total=total, initial=total - len(todo), unit='episode', mininterval=quiet_s)
    try:
        with bar:
            for plan in todo:
                level = PrecisionLevel.from_name(plan.level)
                judged.apply_precision(dict.fromkeys(judged.levels, level))
                chunks = store.runs[plan.clean_key].chunks if plan.fault else 0
                store.append(run_one(robot, judged, references, plan, chunks))
                bar.update()
    except KeyboardInterrupt:
        return False
    return True


def _load(args: argparse.Namespace) -> tuple[Policy, dict[str, Policy]]:
    """Return the judged policy and its references by name, on one thread."""
    from vlaq_ros.sim.drift_readings import FULL_PRECISION, HIGHER

    judged = load_policy(args.store, precision=PACKED, head=args.head, threads=1)
    full = load_policy(args.bundle, precision=FULL_PRECISION, head=args.head, threads=1)
    higher = judged.twin()
    higher.apply_precision({group: max(levels) for group, levels in judged.levels.items()})
    return judged, {FULL_PRECISION: full, HIGHER: higher}


def _plans(args: argparse.Namespace) -> Iterator['Plan']:
    from vlaq_ros.sim.drift_runs import CHOOSE, JUDGE, Plan
    from vlaq_ros.sim.faults import FAULTS, find_fault
    from vlaq_ros.sim.rollout import default_episodes
    from vlaq_ros.sim.tasks import TASKS

    names = FAULTS if args.faults is None else args.faults
    for task in args.tasks or [task.name for task in TASKS]:
        for level in args.levels:
            for episode in default_episodes((task,), args.choose_per_task, args.choose_seed):
                yield Plan(CHOOSE, level, None, episode)
            for episode in default_episodes((task,), args.per_task, args.seed):
                yield Plan(JUDGE, level, None, episode)
        for name in names:
            for episode in default_episodes((task,), args.faults_per_task, args.seed):
                yield Plan(JUDGE, args.levels[0], find_fault(name), episode)


def _problems(args: argparse.Namespace, faults: tuple[str, ...]) -> Iterator[str]:
    from vlaq_ros.errors import unknown_name
    from vlaq_ros.sim.tasks import TASKS

    known = tuple(task.name for task in TASKS)
    for option, names, there in (('faults', args.faults, faults), ('tasks', args.tasks, known)):
        for name in names or ():
            if name not in there:
                yield f'--{option}: {unknown_name(option[:-1], name, there)}'
    for option in ('per_task', 'faults_per_task', 'choose_per_task'):
        if getattr(args, option) < 1:
            yield f'--{option.replace("_", "-")} {getattr(args, option)}: must be at least 1'
    if args.faults_per_task > args.per_task:
        yield (
            f'--faults-per-task {args.faults_per_task}: at most --per-task {args.per_task}, since '
            'every episode with an error has its twin without'
        )
    if args.seed < EVALUATION_SEED or not 0 <= args.choose_seed < EVALUATION_SEED:
        yield (
            f'--seed {args.seed}, --choose-seed {args.choose_seed}: limits are judged on seeds '
            f'from {EVALUATION_SEED} and chosen on seeds below'
        )
    for window_s in args.windows_s:
        if not 0.0 < window_s < float('inf'):
            yield f'--windows-s {window_s:g}: must be positive'


def _misfits(args: argparse.Namespace, bundle: Bundle, store: Bundle) -> Iterator[str]:
    if store.origin != bundle.digest:
        yield f'{args.store} was not made of the bundle {args.bundle!r}: it has no reference'
    if not store.is_nested:
        yield f'{args.store} is not nested: pack it with `vlaq quantize --nested`'
    if args.head not in bundle.spec.heads:
        yield f'--head {args.head!r}: the bundle has {", ".join(bundle.spec.heads)}'
    for name in args.levels:
        try:
            PrecisionLevel.from_name(name)
        except ConfigError as error:
            yield f'--levels: {error}'


def _identity(args: argparse.Namespace, study: Study) -> dict[str, Any]:
    """Return what must agree for two runs to be continued."""
    return {
        'store_sha256': study.store.digest,
        'bundle_sha256': study.bundle.digest,
        'head': args.head,
        'seed': args.seed,
        'choose_seed': args.choose_seed,
        'cpu': cpu_name(),
        'versions': versions(),
    }


def _describe(args: argparse.Namespace, study: Study) -> dict[str, Any]:
    """Return what a reader needs to repeat the study."""
    return {
        **_identity(args, study),
        'command': ' '.join(['vlaq', *sys.argv[1:]]),
        'bundle': study.bundle.spec.name,
        'levels': args.levels,
        'per_task': args.per_task,
        'faults_per_task': args.faults_per_task,
        'choose_per_task': args.choose_per_task,
        'cores': os.cpu_count(),
        'system': platform.platform(),
    }
