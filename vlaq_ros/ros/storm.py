"""
`vlaq storm`: change the precision thousands of times while the simulated arm is commanded.

Simulator and policy run as two processes at real time, or slower where the machine cannot keep up
with it; the policy runs at precision `nested` and infers all the time. A third process asks for
random levels over DDS, receives the commands as a controller does, and measures; a load may keep
the processor busy meanwhile. What must hold whatever the load decides about the exit status; gaps
in the commands are compared with those without switches.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlaq_ros.errors import ConfigError, VlaqError
from vlaq_ros.ros.bringup import NodeProcess, config_file, end_group, isolate, start_bound
from vlaq_ros.ros.storm_listener import ANSWER_S, StormListener
from vlaq_ros.ros.storm_policy import KINDS, VARIABLE
from vlaq_ros.ros.storm_report import StormReport

REPORT = 'switch_storm.json'
COMMAND_HZ = 40.0  # the rate of the simulated clock, which the ticks of the policy node follow
_NICE = 10
_LOAD = f'import os\nos.nice({_NICE})\nwhile True:\n    sum(range(100000))'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq storm`."""
    add = parser.add_argument
    add('--switches', type=int, default=1000, help='calls of ~/set_precision (default: 1000)')
    add('--rate', type=float, default=20.0, help='calls per second on average (default: 20)')
    add('--quiet', type=float, default=20.0, help='seconds without switches before (default: 20)')
    add('--load', type=int, default=1, help=f'busy processes at nice {_NICE} (default: 1)')
    add('--speed', type=float, default=1.0, help='simulated seconds per second (default: 1)')
    add('--failures', type=int, default=0, help='changes that are made to fail (default: 0)')
    add('--bundle', default='metaworld', help='directory or shipped name (default: metaworld)')
    add('--threads', type=int, default=1, help='threads of the policy (default: 1)')
    add('--seed', type=int, default=0, help='of the choice of levels (default: 0)')
    add('--out', type=Path, default=Path('out/storm'), help='folder for numbers and logs')


def run(args: argparse.Namespace) -> int:
    """
    Run the storm; return 0 when all that must hold did, else 1.

    Raises:
        VlaqError: An option is wrong, or a node died, refused or did not answer.
    """
    problems = [
        f'--{name} {value} must be {limit}'
        for name, value, ok, limit in (
            ('switches', args.switches, args.switches >= 1, 'at least 1'),
            ('rate', args.rate, 0.0 < args.rate <= 1000.0, 'above 0 and at most 1000'),
            ('quiet', args.quiet, args.quiet > 0.0, 'positive'),
            ('load', args.load, 0 <= args.load <= 1024, 'from 0 to 1024'),
            ('speed', args.speed, 0.01 <= args.speed <= 10.0, 'from 0.01 to 10'),
            ('failures', args.failures, 0 <= args.failures <= args.switches, 'at most --switches'),
        )
        if not ok
    ]
    if problems:
        raise ConfigError('\n'.join(problems))
    logs = args.out / 'log'
    logs.mkdir(parents=True, exist_ok=True)
    where = isolate(os.environ)
    print(f'{args.switches} switches at {args.rate:g} Hz, {where}; logs in {logs}', flush=True)
    with ExitStack() as stack:
        stack.enter_context(_signals())
        report = _perform(stack, args, logs)
    print(report.tables())
    report.write(args.out / REPORT)
    print(f'wrote {args.out / REPORT}')
    return 0 if report.passed else 1


def _perform(stack: ExitStack, args: argparse.Namespace, logs: Path) -> StormReport:
    order = logs / 'failure'
    order.unlink(missing_ok=True)
    nodes = [stack.enter_context(start(args, logs, order)) for start in (_simulator, _policy)]
    listener = stack.enter_context(StormListener(nodes[-1], nodes, args.seed))
    listener.bring_up()
    for _ in range(args.load):
        stack.callback(end_group, _start_load())
    period_s = 1.0 / COMMAND_HZ
    listener.listen(2.0)
    quiet = listener.phase(
        'without switches', period_s, args.speed, lambda: listener.listen(args.quiet)
    )
    print(f'{args.quiet:g} s without switches are over', flush=True)
    before = listener.account
    injected: Counter[str] = Counter()
    between = _between(args, listener, order, injected)
    storm = listener.phase(
        'with switches',
        period_s,
        args.speed,
        lambda: listener.storm(args.switches, args.rate, between),
    )
    outcomes = listener.settle(before, ANSWER_S + 2.0 / args.speed)  # told once a simulated second
    return StormReport(
        settings={
            **{name: value for name, value in vars(args).items() if name != 'out'},
            'processors': os.cpu_count(),
            'load at the end': list(os.getloadavg()),
            'kernel': listener.precision.kernel,
        },
        period_s=period_s,
        speed=args.speed,
        phases=(quiet, storm),
        calls=dict(listener.calls),
        outcomes=outcomes,
        injected=dict(injected),
        weight_bytes={name: sorted(each) for name, each in listener.weight_bytes.items()},
        memory=tuple(listener.memory),
        why=tuple(listener.why),
    )


def _between(
    args: argparse.Namespace, listener: StormListener, order: Path, injected: Counter[str]
) -> Callable[[int], None]:
    """Return what happens before a call: progress, and failures at even distances."""
    at = {round(args.switches * (k + 0.5) / args.failures) for k in range(args.failures)}
    every = max(1, args.switches // 10)

    def between(number: int) -> None:
        if number % every == 0:
            print(f'  {number} of {args.switches} calls', flush=True)
        if number in at:
            kind = KINDS[sum(injected.values()) % len(KINDS)]
            listener.fail(
                lambda: order.write_text(kind, encoding='utf-8'), lambda: not order.exists()
            )
            injected[kind] += 1

    return between


def _simulator(args: argparse.Namespace, logs: Path, _: Path) -> NodeProcess:
    return NodeProcess(
        'sim',
        'vlaq_ros.ros.sim_node',
        logs,
        parameter_file=config_file('sim_node.yaml'),
        parameters={'publish_instruction': True, 'real_time_factor': args.speed},
        remappings={
            topic: f'policy/{topic}'
            for topic in ('delta_twist_cmds', 'pose_target_cmds', 'gripper_cmds')
        },
        environment=os.environ,
    )


def _policy(args: argparse.Namespace, logs: Path, order: Path) -> NodeProcess:
    bundle = str(Path(args.bundle).resolve()) if Path(args.bundle).is_dir() else args.bundle
    module = 'storm_policy' if args.failures else 'policy_node'
    return NodeProcess(
        'policy',
        f'vlaq_ros.ros.{module}',
        logs,
        parameter_file=config_file('policy_node.yaml'),
        parameters={
            'use_sim_time': True,
            'autostart': True,
            'bundle': bundle,
            'precision': 'nested',
            'replan': 'continuous',
            'threads': args.threads,
            'command.rate_hz': COMMAND_HZ,
        },
        remappings={},
        environment={**os.environ, VARIABLE: str(order.resolve())},
    )


def _start_load() -> subprocess.Popen:
    command = [sys.executable, '-c', _LOAD]
    return start_bound(command, stdout=subprocess.DEVNULL, environment=os.environ)


@contextmanager
def _signals() -> Iterator[None]:
    """Leave through the clean-up at Ctrl-C and SIGTERM, also where a shell ignores Ctrl-C."""

    def terminate(signum: int, _: object) -> None:
        sys.exit(128 + signum)

    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vlaq storm` as a module."""
    parser = argparse.ArgumentParser(prog='vlaq storm', description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except VlaqError as error:
        print(f'vlaq storm: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    raise SystemExit(main())
