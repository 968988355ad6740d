"""
`vlaq drift`: analyse a recorded run offline and draw it.

Every recorded chunk is compared with what a reference policy answers to the observation of that
chunk, by the definition of drift that the node uses while it runs; where the bag holds the node's
own drift reports, they must be the same numbers.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlaq_ros.analysis.drift_job import CheckedJob, DriftJob, check_job
from vlaq_ros.analysis.drift_live import LiveComparison, compare_live
from vlaq_ros.analysis.drift_measure import measure
from vlaq_ros.analysis.drift_page import sureness_text, table_rows
from vlaq_ros.analysis.drift_report import write_report
from vlaq_ros.analysis.drift_summary import summarize
from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.errors import ConfigError

_SHOWN = 10
_TERMINAL = (0, 1, 2, 3, 4, 6, 7, 9, 10, 11)

_LIMIT_HELP = {
    'm': 'position accumulated over one chunk [m]',
    'rad': 'rotation accumulated over one chunk [rad]',
    'gripper': 'share of steps whose gripper commands disagree',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq drift`."""
    parser.add_argument('bag', type=Path, metavar='BAG', help='recording of the policy at work')
    parser.add_argument(
        '--reference',
        metavar='BUNDLE',
        help='bundle whose answers count as right: folder or name (default: metaworld)',
    )
    parser.add_argument(
        '--bundle',
        metavar='BUNDLE',
        help='the bundle that was recorded: proves that observations are those of the node, and '
        'is the reference where no other is given (default: the recorded one, if it is here)',
    )
    parser.add_argument(
        '--no-replay',
        action='store_true',
        help='do not run the recorded bundle again to prove the observations',
    )
    parser.add_argument(
        '--precision',
        default='fp32',
        help='what the reference runs at: a precision of its bundle, or a level such as w8a16 '
        '(default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, default=Path('out/drift'), help='default: %(default)s')
    parser.add_argument(
        '--policy', default='', help='name of the policy node, where the bag holds several'
    )
    parser.add_argument(
        '--horizon',
        type=int,
        default=0,
        help='executed actions of a chunk (default: as recorded, else as the bundle says)',
    )
    parser.add_argument(
        '--window-s',
        type=float,
        default=0.0,
        help='how long a chunk counts [s] (default: as recorded, else 2)',
    )
    defaults = DriftLimits()
    for unit, text in _LIMIT_HELP.items():
        for level in ('warn', 'error'):
            name = f'{level}_{unit}'
            parser.add_argument(
                f'--{level}-{unit}',
                type=float,
                help=f'{level.upper()} above this {text} (default: {getattr(defaults, name):g})',
            )
    parser.add_argument(
        '--calm-after',
        type=int,
        help=f'calm chunks before the level falls by one (default: {defaults.calm_after})',
    )
    parser.add_argument(
        '--topics',
        nargs='+',
        default=[],
        metavar='STREAM=TOPIC',
        help='for topics of the bag that are called otherwise',
    )


def job_of(args: argparse.Namespace) -> DriftJob:
    """
    Return the job that the options describe.

    Raises:
        ConfigError: Options contradict each other; all of them are listed.
    """
    problems = []
    topics = dict(text.partition('=')[::2] for text in args.topics)
    if not all(name and topic for name, topic in topics.items()):
        problems.append(f'--topics {" ".join(args.topics)}: write STREAM=TOPIC')
    limits = None
    given = {f.name: getattr(args, f.name, None) for f in fields(DriftLimits)}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        limits = DriftLimits(**given) if given else None
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError('nothing was run:\n' + '\n'.join(f'- {text}' for text in problems))
    return DriftJob(
        bag=args.bag,
        reference=args.reference or args.bundle or 'metaworld',
        precision=args.precision,
        bundle=args.bundle or '',
        is_replayed=not args.no_replay,
        policy=args.policy,
        horizon=args.horizon,
        window_s=args.window_s,
        limits=limits,
        topics=topics,
    )


def run(args: argparse.Namespace) -> int:
    """
    Analyse; return 0, or 1 when the node reported other numbers.

    Raises:
        VlaqError: The bag or the bundle cannot be used; all that is wrong is listed.
    """
    checked = check_job(job_of(args))
    print(_plan(checked), file=sys.stderr, flush=True)
    with _progress(len(checked.found)) as tell:
        judged = measure(checked, tell)
    live = compare_live(judged)
    values = summarize(judged, live)
    written = write_report(args.out, judged, values)
    print('\n'.join(_aligned(table_rows(values))))
    print('\n'.join(_verdict(values, live)))
    for path in written:
        print(f'wrote {path}')
    return 0 if live.passed else 1


def _plan(checked: CheckedJob) -> str:
    """Return what will be done, and what of the bag cannot be read."""
    missing = sum(bool(one.problem) for one in checked.found)
    lines = [
        f'{len(checked.chunks)} chunks of {checked.bag.name}, {missing} without observation; '
        f'reference {checked.bundle.spec.name} at {checked.job.precision}, '
        f'{checked.horizon} executed actions, window {checked.window_s:g} s'
    ]
    lines += [f'note: {note}' for note in checked.notes]
    return '\n'.join(lines)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(total=total, desc='asking the reference', unit='chunk', disable=None) as bar:

        def tell(done: int, _: int) -> None:
            bar.update(done - bar.n)

        yield tell


def _verdict(values: Mapping[str, Any], live: LiveComparison) -> Iterator[str]:
    yield sureness_text(values)
    for why, count in values['overall']['without_reading'].items():
        yield f'not judged: {count} x {why}'
    yield ''
    yield live.verdict
    for name, one in live.largest.items():
        yield f'  {name:22} {live.numbers[name]:4} numbers, largest difference {one.size:.3g}'
    for why, count in live.left_out.items():
        yield f'  not compared: {count} x {why}'
    if live.remark:
        yield f'  {live.remark}'
    for one in live.wrong[:_SHOWN]:
        yield (
            f'  DIFFERS: {one.field} of chunk {one.sequence}, epoch {one.epoch}: '
            f'{one.live:.9g} live, {one.offline:.9g} now (observation {one.sureness})'
        )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the table of episodes for a terminal, without the wide columns of the page."""
    short = [[cell for i, cell in enumerate(row) if i in _TERMINAL] for row in rows]
    widths = [max(len(row[i]) for row in short) for i in range(len(_TERMINAL))]
    for row in short:
        yield '  '.join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        )
