"""
`vlaq demo`: a quantized policy drives the simulated arm through ROS 2, once per task.

Simulator and policy run as two processes that talk over DDS, from the parameter files that the
launch files use. Meanwhile the full-precision policy runs the same episodes without ROS, and the
report compares the two.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from vlaq_ros.errors import ConfigError, VlaqError, unknown_name
from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.policies.bundle import Bundle, open_bundle
from vlaq_ros.policies.precision import PACKED, precisions
from vlaq_ros.ros.bringup import NodeProcess, config_file, isolate
from vlaq_ros.ros.demo_driver import DemoDriver, RosEpisode
from vlaq_ros.ros.demo_report import Comparison, DemoReport
from vlaq_ros.ros.parameters import table
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.sim.results import Config, Record
from vlaq_ros.sim.rollout import Episode, default_episodes
from vlaq_ros.sim.source import PolicySource
from vlaq_ros.sim.tasks import TASKS
from vlaq_ros.sim.workers import Finished, Job, Loaded, WorkerPool

REFERENCE_S = 900.0
_TASK_NAMES = tuple(task.name for task in TASKS)
_DECIDED = {'autostart', 'bundle', 'head', 'lockstep', 'precision', 'threads'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq demo`."""
    add = parser.add_argument
    add('--precision', default='', help='default: w8, or of a packed bundle as it was stored')
    add('--head', default='', help='action head (default: the first of the bundle)')
    add('--tasks', default='', help=f'comma-separated, from: {", ".join(_TASK_NAMES)}')
    add('--bundle', default='metaworld', help='directory or shipped name (default: metaworld)')
    add('--reference', default='metaworld', help='float bundle that a packed one was made of')
    add('--realtime', action='store_true', help='free-running at real time instead of in lockstep')
    add('--seed', type=int, default=100, help='environment seed (default: 100, never trained on)')
    add(
        '--set',
        nargs='+',
        default=[],
        metavar='NAME=VALUE',
        help='parameters of the policy node, e.g. drift.source=shadow drift.warn_m=0.005',
    )
    add('--out', type=Path, default=Path('out'), help='folder for pictures and numbers')


def run(args: argparse.Namespace) -> int:
    """
    Run the demo; return 0 when it ran, whatever the arm achieved.

    Raises:
        VlaqError: An option is wrong, or a node died, refused or did not answer.
    """
    episodes = default_episodes(_tasks(args.tasks), per_task=1, seed=args.seed)
    args.set = policy_overrides(args.set)
    bundle = open_bundle(args.bundle)
    spec = bundle.spec
    args.precision = args.precision or (PACKED if bundle.is_packed else 'w8')
    if args.precision not in precisions(bundle):
        what = f'precision of bundle {args.bundle!r}'
        raise ConfigError(unknown_name(what, args.precision, precisions(bundle)))
    source, ours = _source(args, bundle)
    head = args.head or spec.heads[0]
    if head not in spec.heads:
        raise ConfigError(
            f'--head {head!r} is not one of {args.bundle!r}: {", ".join(spec.heads)}'
        )
    if strangers := source.strangers():
        raise ConfigError(f'--reference {args.reference!r}: {strangers[0]}')
    logs = args.out / 'log'
    logs.mkdir(parents=True, exist_ok=True)
    where = isolate(os.environ)
    # Also where a shell has started this in the background, which ignores Ctrl-C.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            report = _perform(stack, args, source, ours, head, episodes, logs, where)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    report.wall_s = time.monotonic() - started
    print(report.tables())
    for path in report.write(args.out):
        print(f'wrote {path}')
    return 0


def policy_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """
    Return name -> value of `NAME=VALUE` texts; values are written as in YAML.

    Raises:
        ConfigError: Texts of another form, parameters that the policy node has not got, or those
            that the demo itself decides; all of them are listed.
    """
    found, problems = {}, []
    known = {one.name for one in table(PolicyParameters)}
    for text in texts:
        name, separator, value = text.partition('=')
        if not separator:
            problems.append(f'--set {text!r}: write NAME=VALUE, e.g. drift.source=shadow')
        elif name in _DECIDED:
            problems.append(f'--set {text!r}: the demo decides {name}; see its other options')
        elif name not in known:
            problems.append(f'--set: {unknown_name("parameter", name, sorted(known))}')
        else:
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                problems.append(f'--set {text!r}: {value!r} is no YAML value ({error})')
    if problems:
        raise ConfigError('\n'.join(problems))
    return found


def _source(args: argparse.Namespace, bundle: Bundle) -> tuple[PolicySource, str]:
    """Return where the run without ROS finds its policies, and the name of the shown one."""
    if not bundle.is_packed:
        return PolicySource(args.bundle), args.precision
    name = PACKED if args.precision == PACKED else f'{PACKED}@{args.precision}'
    return PolicySource(args.reference, {PACKED: args.bundle}), name


def _perform(
    stack: ExitStack,
    args: argparse.Namespace,
    source: PolicySource,
    shown: str,
    head: str,
    episodes: Sequence[Episode],
    logs: Path,
    where: str,
) -> DemoReport:
    """Start everything, run every episode, and collect what was measured."""
    mode = 'in real time' if args.realtime else 'in lockstep'
    print(
        f'bundle {args.bundle!r}, precision {args.precision}, head {head!r}, {mode}, {where}; '
        f'logs in {logs}',
        flush=True,
    )
    simulator = stack.enter_context(_start_simulator(args, logs))
    policy = stack.enter_context(_start_policy(args, head, logs))
    reference = ReferenceRun(source, shown, head, episodes)
    stack.callback(reference.close)
    driver = stack.enter_context(DemoDriver(simulator, policy))
    driver.bring_up()
    print('both nodes are up; one episode per task:', flush=True)
    seen = []
    for episode in episodes:
        seen.append(driver.run(episode))
        print(_progress(seen[-1]), flush=True)
    resident = {node.name: node.resident_bytes() for node in (simulator, policy)}
    if not reference.is_done:
        print('waiting for the full-precision run of the same episodes', flush=True)
    records = reference.result(REFERENCE_S)
    full, ours = reference.configs[0], reference.configs[-1]
    return DemoReport(
        bundle=args.bundle,
        precision=ours.precision,
        head=head,
        realtime=args.realtime,
        comparisons=tuple(
            Comparison(ros, records.get((ours, _key(ros))), records[full, _key(ros)])
            for ros in seen
        ),
        latency_ms=driver.latency_ms,
        resident_bytes=resident,
        memory=reference.memory,
        kernel=driver.precision.kernel if driver.precision else '',
        overrides=args.set,
    )


def _start_simulator(args: argparse.Namespace, logs: Path) -> NodeProcess:
    return NodeProcess(
        'sim',
        'vlaq_ros.ros.sim_node',
        logs,
        parameter_file=config_file('sim_node.yaml'),
        parameters={
            'auto_start': False,
            'lockstep': not args.realtime,
            'lockstep_timeout_s': 60.0,
            'spectator': True,
        },
        remappings={
            topic: f'policy/{topic}'
            for topic in ('delta_twist_cmds', 'pose_target_cmds', 'gripper_cmds')
        },
        environment=os.environ,
    )


def _start_policy(args: argparse.Namespace, head: str, logs: Path) -> NodeProcess:
    bundle = str(Path(args.bundle).resolve()) if Path(args.bundle).is_dir() else args.bundle
    return NodeProcess(
        'policy',
        'vlaq_ros.ros.policy_node',
        logs,
        parameter_file=config_file('policy_node.yaml'),
        parameters={
            'use_sim_time': True,
            'autostart': False,
            'lockstep': not args.realtime,
            'bundle': bundle,
            'precision': args.precision,
            'head': head,
            'threads': 1,
            **args.set,
        },
        remappings={},
        environment=os.environ,
    )


class ReferenceRun:
    """
    The same episodes without ROS, in a process of its own, at full and at the shown precision.

    Attributes:
        configs: The full-precision configuration, and the shown one where it is another.
        memory: Precision -> storage of its weights, as far as loaded.
    """

    def __init__(
        self, source: PolicySource, precision: str, head: str, episodes: Sequence[Episode]
    ) -> None:
        self.configs = tuple(Config(name, head) for name in dict.fromkeys(('fp32', precision)))
        jobs = [
            Job(episode, self.configs, open_loop=len(self.configs) > 1) for episode in episodes
        ]
        self.memory: dict[str, MemoryReport] = {}
        self._records: dict[tuple[Config, tuple], Record] = {}
        self._error: Exception | None = None
        self._pool = WorkerPool(1, source)
        self._thread = threading.Thread(target=self._collect, args=(jobs,), daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether all episodes are finished, or the run has failed."""
        return not self._thread.is_alive()

    def result(self, timeout_s: float) -> dict[tuple[Config, tuple], Record]:
        """
        Wait for the end and return the records by configuration and episode.

        Raises:
            VlaqError: The run failed or took longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.2)  # short, so that Ctrl-C is heard
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise VlaqError(f'the run without ROS did not finish within {timeout_s:.0f} s')
        return self._records

    def close(self) -> None:
        """End the process."""
        self._pool.close()

    def _collect(self, jobs: Sequence[Job]) -> None:
        try:
            for message in self._pool.run(jobs):
                if isinstance(message, Loaded):
                    self.memory[message.config.precision] = message.memory
                elif isinstance(message, Finished):
                    self._records[message.config, message.record.key] = message.record
        except Exception as error:  # handed over to the thread that asks for the result
            self._error = error


def _tasks(names: str) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in names.split(',') if name.strip()) or _TASK_NAMES
    unknown = [name for name in chosen if name not in _TASK_NAMES]
    if unknown:
        raise ConfigError(f'--tasks names {unknown}. Known: {", ".join(_TASK_NAMES)}')
    return chosen


def _key(ros: RosEpisode) -> tuple[str, int, int]:
    return ros.episode.task, ros.episode.seed, ros.episode.index


def _progress(ros: RosEpisode) -> str:
    verdict = 'aborted' if ros.aborted else 'success' if ros.success else 'no success'
    return (
        f'  {ros.episode.task:22}{verdict:11}{ros.steps:4} steps {ros.wall_s:6.1f} s   '
        f'{ros.episode.instruction!r}'
    )


def _terminate(signum: int, _: Any) -> None:
    """Leave through the clean-up, as for Ctrl-C."""
    sys.exit(128 + signum)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vlaq demo` as a module."""
    parser = argparse.ArgumentParser(prog='vlaq demo', description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except VlaqError as error:
        print(f'vlaq demo: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    raise SystemExit(main())
