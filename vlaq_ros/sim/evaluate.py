"""
`vlaq eval`: closed-loop success and drift of quantized policies in simulation, without ROS.

Every configuration runs the same starts with the same sentences as the full-precision run of its
own action head, on one thread each, so that differences are due to quantization alone. All options
are checked before anything runs.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaq_ros.errors import BundleError, ConfigError, MissingDependencyError
from vlaq_ros.policies.bundle import Bundle, open_bundle
from vlaq_ros.sim import precision_options
from vlaq_ros.sim.collect import EVALUATION_SEED
from vlaq_ros.sim.results import Config, ResultStore
from vlaq_ros.sim.run_description import describe_run, identity_of
from vlaq_ros.sim.source import PolicySource, like_of, parse_packed
from vlaq_ros.sim.tasks import INSTRUCTIONS, TASKS

if TYPE_CHECKING:
    from vlaq_ros.sim.rollout import Episode
    from vlaq_ros.sim.workers import Job

DEFAULT_CONFIGS = ('fp32:flow', 'w8:flow', 'w4:flow', 'fp32:token', 'w8:token', 'w4:token')
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq eval`."""
    parser.add_argument('--bundle', default='metaworld', help='folder or name of a shipped bundle')
    parser.add_argument(
        '--configs',
        nargs='+',
        default=list(DEFAULT_CONFIGS),
        metavar='PRECISION:HEAD',
        help='what to compare (default: %(default)s); the fp32 run of a head is its reference. '
        'NAME:HEAD and NAME@LEVEL:HEAD are packed bundles, NAME@dyq:HEAD and others change their '
        'precision while they run, see below',
    )
    parser.add_argument(
        '--packed',
        nargs='+',
        default=[],
        metavar='NAME=FOLDER',
        help='packed bundles made of --bundle, by the name --configs calls them',
    )
    parser.add_argument('--tasks', nargs='+', metavar='TASK', help='default: all of the benchmark')
    parser.add_argument(
        '--per-task',
        type=int,
        default=10,
        help='episodes per task and configuration (default: %(default)s)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=EVALUATION_SEED,
        help='first environment seed (default: %(default)s)',
    )
    parser.add_argument(
        '--instructions',
        choices=INSTRUCTIONS,
        default='train',
        help='sentences seen in training, a held-out paraphrase, or those of another task',
    )
    parser.add_argument(
        '--open-loop',
        type=int,
        default=24,
        help='episodes replayed for open-loop drift (default: %(default)s)',
    )
    parser.add_argument('--execution-horizon', type=int, help="default: the policy's own")
    parser.add_argument(
        '--processes', type=int, help='workers, one thread each (default: all cores)'
    )
    parser.add_argument('--out', type=Path, default=Path('out/eval'), help='default: %(default)s')
    precision_options.add_arguments(parser)
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument('--resume', action='store_true', help='keep the finished episodes in --out')
    kept.add_argument('--overwrite', action='store_true', help='delete those episodes first')


@dataclass(frozen=True)
class Plan:
    """
    A checked evaluation.

    Attributes:
        bundle: The policy.
        source: Where the policies are loaded from.
        configs: What to compare; every head has its reference in it, first.
        added: References that the user did not list.
        tasks: Names of the tasks.
        processes: Number of workers.
    """

    bundle: Bundle
    source: PolicySource
    configs: tuple[Config, ...]
    added: tuple[Config, ...]
    tasks: tuple[str, ...]
    processes: int


def make_plan(args: argparse.Namespace) -> Plan:
    """
    Check every option.

    Raises:
        ConfigError: Anything is unknown or out of range; every offender is listed.
    """
    problems: list[str] = []
    bundle = None
    try:
        bundle = open_bundle(args.bundle)
        problems += _misfits(bundle)
        if bundle.is_packed:
            problems.append(
                f'--bundle {args.bundle}: packed, so it has no fp32 reference; give the bundle it '
                f'was made of, and this one as --packed NAME={args.bundle}'
            )
    except BundleError as error:
        problems.append(f'--bundle: {error}')
    source = PolicySource(
        args.bundle,
        parse_packed(args.packed, problems),
        args.execution_horizon,
        precision_options.read_options(args, problems),
    )
    configs = _parse_configs(args.configs, source if bundle else None, problems)
    problems += [f'--packed {line}' for line in (source.strangers() if bundle else ())]
    tasks = tuple(dict.fromkeys(args.tasks or [task.name for task in TASKS]))
    known = [task.name for task in TASKS]
    problems += [_unknown('--tasks', name, known) for name in tasks if name not in known]
    lowest = {'per_task': 1, 'processes': 1, 'execution_horizon': 1, 'open_loop': 0}
    for option, low in lowest.items():
        value = getattr(args, option)
        if value is not None and value < low:
            problems.append(f'--{option.replace("_", "-")} {value}: must be at least {low}')
    if args.seed < EVALUATION_SEED:
        problems.append(
            f'--seed {args.seed}: seeds below {EVALUATION_SEED} belong to training and calibration'
        )
    horizon = bundle.spec.horizon if bundle else None
    if horizon and (args.execution_horizon or 0) > horizon:
        problems.append(
            f'--execution-horizon {args.execution_horizon}: a chunk of {bundle.spec.name!r} has '
            f'{horizon} actions'
        )
    if problems or bundle is None:
        raise ConfigError('nothing was run:\n  ' + '\n  '.join(problems))
    complete = tuple(dict.fromkeys(c for config in configs for c in (config.reference, config)))
    added = tuple(config for config in complete if config not in configs)
    processes = args.processes or len(os.sched_getaffinity(0))
    return Plan(bundle, source, complete, added, tasks, processes)


@dataclass(frozen=True)
class Evaluated:
    """
    A finished evaluation.

    Attributes:
        plan: What was run.
        episodes: Of every configuration.
        store: Their records.
    """

    plan: Plan
    episodes: 'list[Episode]'
    store: ResultStore


def run_episodes(args: argparse.Namespace) -> Evaluated | None:
    """
    Run all episodes that are not finished; None: it was interrupted, and what is done is kept.

    Raises:
        ConfigError: An option is wrong; nothing was run.
        SimulatorError: The simulator cannot render, or a worker died. Finished episodes are kept.
    """
    plan = make_plan(args)
    # Imported here so that wrong options are reported without a simulator.
    from vlaq_ros.sim.rollout import default_episodes

    episodes = default_episodes(plan.tasks, args.per_task, args.seed, args.instructions)
    mode = 'resume' if args.resume else 'overwrite' if args.overwrite else 'new'
    store = ResultStore(args.out, identity_of(args, plan), mode)
    for config in plan.added:
        print(f'{config.name} was not listed; it is run as the reference of head {config.head!r}')
    if not _run_jobs(plan, args, episodes, store):
        done = sum(len(records) for records in store.records.values())
        print(
            f'interrupted: {done} of {len(episodes) * len(plan.configs)} episodes are kept in '
            f'{args.out}; continue with --resume'
        )
        return None
    return Evaluated(plan, episodes, store)


def run(args: argparse.Namespace) -> int:
    """
    Run the evaluation and write its report; return the exit status.

    Raises:
        ConfigError, SimulatorError: See `run_episodes`.
    """
    found = run_episodes(args)
    if found is None:
        return INTERRUPTED
    from vlaq_ros.sim.plots import draw_report
    from vlaq_ros.sim.report import summarize
    from vlaq_ros.sim.tables import write_report

    rows = summarize(found.store, found.plan.configs, found.episodes)
    tables = write_report(args.out, rows, describe_run(args, found.plan))
    print('\n\n'.join(table.to_text() for table in tables))
    written = ['report.json', 'report.md']
    try:
        written += [path.name for path in draw_report(args.out, rows)]
    except MissingDependencyError as error:
        print(f'\nno plots: {error}')
    print(f'\nwritten to {args.out}: {", ".join(written)}')
    return 0


def _run_jobs(
    plan: Plan, args: argparse.Namespace, episodes: list['Episode'], store: ResultStore
) -> bool:
    """Run what is not finished; return whether it ran to the end."""
    from tqdm import tqdm

    from vlaq_ros.sim.workers import Finished, WorkerPool

    jobs = list(_jobs(plan, args, episodes, store))
    total = len(episodes) * len(plan.configs)
    left = sum(len(job.configs) for job in jobs)
    if not left:
        return True
    quiet_s = 0.2 if sys.stderr.isatty() else 30.0
    processes = min(plan.processes, len(jobs))
    bar = tqdm(total=total, initial=total - left, unit='episode', mininterval=quiet_s)
    try:
        with bar, WorkerPool(processes, plan.source) as pool:
            for message in pool.run(jobs):
                if isinstance(message, Finished):
                    store.append(message.config, message.record)
                    bar.update()
                else:
                    store.set_memory(message.config, message.memory)
    except KeyboardInterrupt:
        return False
    return True


def _jobs(
    plan: Plan, args: argparse.Namespace, episodes: list['Episode'], store: ResultStore
) -> Iterator['Job']:
    from vlaq_ros.sim.workers import Job

    for number, episode in enumerate(episodes):
        key = (episode.task, episode.seed, episode.index)
        todo = tuple(c for c in plan.configs if key not in store.records.get(c, {}))
        if todo:
            finished = {
                config: record.precision
                for config in plan.configs
                if (record := store.records.get(config, {}).get(key)) and record.precision
            }
            yield Job(episode, todo, number < args.open_loop, finished)


def _parse_configs(
    texts: list[str], source: PolicySource | None, problems: list[str]
) -> tuple[Config, ...]:
    configs: dict[Config, None] = {}
    for text in texts:
        precision, separator, head = text.partition(':')
        if not separator:
            problems.append(f'--configs {text!r}: write PRECISION:HEAD, e.g. w4:flow')
            continue
        config = Config(precision, head)
        if source is not None:
            problems += [f'--configs {text!r}: {line}' for line in source.problems(config)]
        configs[config] = None
    for config in configs:
        if (like := like_of(config)) and like not in configs:
            problems.append(f'--configs {config.name!r}: it repeats {like.name}, list that too')
    return tuple(configs)


def _misfits(bundle: Bundle) -> Iterator[str]:
    """Yield what keeps this policy from driving the simulated arm."""
    try:
        from vlaq_ros.sim.robot import ACTION_SPEC, CAMERAS, STATE_NAMES
    except MissingDependencyError as error:
        yield str(error)
        return
    spec, name = bundle.spec, f'bundle {bundle.spec.name!r}'
    for camera in spec.cameras:
        if camera.name not in CAMERAS:
            yield f'{name} needs a camera {camera.name!r}; the simulator has {", ".join(CAMERAS)}'
    if spec.state.names != STATE_NAMES:
        yield f'{name} reads the state {spec.state.names}; the simulator has {STATE_NAMES}'
    if spec.action.period_ns != ACTION_SPEC.period_ns or not spec.action.delta:
        yield (
            f'{name} acts every {spec.action.period_ns / 1e6:g} ms with delta={spec.action.delta};'
            f' the simulator takes increments every {ACTION_SPEC.period_ns / 1e6:g} ms'
        )


def _unknown(where: str, value: str, known: Any) -> str:
    close = get_close_matches(value, known, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    return f'{where} {value!r} is unknown. Known: {", ".join(known)}.{hint}'
