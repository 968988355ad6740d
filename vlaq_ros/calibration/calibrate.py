"""
`vlaq calibrate`: bags of a robot at work -> a quantized bundle, verified on held-out steps.

Everything is checked before anything long begins. Ctrl-C or a kill loses at most the stage that
was running; `--resume` goes on. With `--progress json` every step is one line of JSON on the
standard output, for programs that start this one, such as the calibration node.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaq_ros.calibration.job import CalibrationJob, check_job
from vlaq_ros.calibration.methods import AUTO, BEST, METHODS, method_name
from vlaq_ros.calibration.progress import STAGES, Progress, Standing
from vlaq_ros.calibration.quantize import add_group_size
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.errors import ConfigError
from vlaq_ros.quant.scheme import ACTIVATION_BITS

_QUIET_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq calibrate`."""
    width = max(map(len, METHODS))
    listing = '\n'.join(f'  {name:{width}}  {row.summary}' for name, row in METHODS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f'methods:\n{listing}\n\nBags are recorded with `record.launch.py`.'
    parser.add_argument(
        '--bag', nargs='+', type=Path, required=True, metavar='BAG', help='recordings of the robot'
    )
    parser.add_argument('--bundle', default='metaworld', help='folder or name of a float bundle')
    parser.add_argument(
        '--method',
        default=AUTO,
        help=f'one of those below (default: %(default)s, which is {BEST})',
    )
    parser.add_argument(
        '--bits',
        type=float,
        default=4.0,
        help='budget in bits per weight of the quantized layers, scales included '
        '(default: %(default)s)',
    )
    add_group_size(parser)
    parser.add_argument(
        '--activation-bits',
        type=int,
        choices=ACTIVATION_BITS,
        default=16,
        help='inputs of packed layers, rounded per token (default: %(default)s)',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the packed bundle')
    _add_sampling(parser)
    _add_judging(parser)
    parser.add_argument(
        '--option',
        nargs='+',
        default=[],
        metavar='NAME=VALUE',
        help='options of the method, e.g. mode=paper',
    )
    parser.add_argument(
        '--work', type=Path, help='folder of finished parts, kept (default: OUT.work, removed)'
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument('--resume', action='store_true', help='go on where a run was interrupted')
    kept.add_argument('--overwrite', action='store_true', help='begin anew; replace a bundle')
    parser.add_argument('--progress', choices=('bar', 'json', 'none'), default='bar')


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--samples', type=int, default=128, help='to calibrate with (default: %(default)s)'
    )
    parser.add_argument(
        '--held-out',
        type=int,
        default=64,
        help='of other episodes, to judge with (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='default: %(default)s')
    parser.add_argument(
        '--topics',
        nargs='+',
        default=[],
        metavar='STREAM=TOPIC',
        help='for topics of the bags that are called otherwise',
    )
    parser.add_argument(
        '--instruction', default='', help='the sentence of all bags, instead of those in them'
    )


def _add_judging(parser: argparse.ArgumentParser) -> None:
    limits = Tolerance()
    parser.add_argument(
        '--heads', nargs='+', default=[], metavar='HEAD', help='action heads that count'
    )
    parser.add_argument(
        '--tolerance',
        nargs='+',
        default=[],
        metavar='NAME=LIMIT',
        help='on held-out steps: '
        + ', '.join(f'{name}={limit:g}' for name, limit in vars(limits).items()),
    )
    parser.add_argument(
        '--promotions',
        type=int,
        default=16,
        help='most steps back towards more bits when it is missed (default: %(default)s)',
    )


def job_of(args: argparse.Namespace) -> CalibrationJob:
    """
    Return the job that the options describe.

    Raises:
        ConfigError: Options of the form NAME=VALUE are not; all of them are listed.
    """
    problems: list[str] = []
    options = _pairs('--option', args.option, problems)
    topics = _pairs('--topics', args.topics, problems)
    limits = _pairs('--tolerance', args.tolerance, problems)
    tolerance = Tolerance()
    try:
        tolerance = Tolerance(**{name: float(limit) for name, limit in limits.items()})
    except (TypeError, ValueError) as error:
        problems.append(f'--tolerance: {error}; known are {", ".join(vars(Tolerance()))}')
    if problems:
        raise ConfigError('nothing was run:\n  ' + '\n  '.join(problems))
    return CalibrationJob(
        bags=tuple(args.bag),
        out=args.out,
        bundle=args.bundle,
        method=method_name(args.method),
        bits=args.bits,
        group_size=args.group_size,
        activation_bits=args.activation_bits,
        samples=args.samples,
        held_out=args.held_out,
        seed=args.seed,
        heads=tuple(args.heads),
        tolerance=tolerance,
        promotions=args.promotions,
        options=options,
        topics=topics,
        instruction=args.instruction,
        work=args.work,
        resume=args.resume,
        overwrite=args.overwrite,
    )


def _pairs(option: str, texts: Sequence[str], problems: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, value = text.partition('=')
        if not (name and separator and value):
            problems.append(f'{option} {text!r}: write NAME=VALUE')
        found[name] = value
    return found


def run(args: argparse.Namespace) -> int:
    """
    Calibrate; return 0, or 1 when the result misses the tolerance.

    Raises:
        ConfigError: Options are wrong; all of them are listed and nothing was run.
        VlaqError: See `pipeline.calibrate`.
    """
    checked = check_job(job_of(args))
    from vlaq_ros.calibration.level_tables import level_lines
    from vlaq_ros.calibration.pipeline import calibrate
    from vlaq_ros.calibration.report import write_report

    signal.signal(signal.SIGTERM, _interrupt)
    sink = _SINKS[args.progress]()
    progress = Progress(sink.tell)
    try:
        found = calibrate(checked, progress)
        progress.begin('report', 1)
        written = write_report(checked.job.report_folder, found, progress.spent_s)
        progress.end()
    except KeyboardInterrupt:
        sink.close()
        print(
            f'interrupted: what was finished is kept in {checked.job.work_folder}; continue with '
            '--resume',
            file=sys.stderr,
        )
        return 130
    sink.close()
    lines = summary(found.record)
    if found.levels is not None:
        lines += level_lines(found.levels)
    lines.append(f'bundle {checked.job.out}, report {written}')
    print('\n'.join(lines), file=sys.stderr if args.progress == 'json' else sys.stdout)
    return 0 if found.verification.passed else 1


def summary(record: Mapping[str, Any]) -> list[str]:
    """Return the result in a few lines."""
    lines = [
        f'{record["method"]}: {record["mean_bits_per_weight"]:.3f} bits per weight, scales '
        f'included ({record["packed_bytes"]:,} bytes), budget {record["budget_bits"]:g}',
        f'action error per step, in standard deviations: {record["predicted_error"]:.4f} by '
        f'adding up single sensitivities, {record["verified_error"]:.4f} verified jointly',
    ]
    for head, found in record['verified'].items():
        lines.append(f'{head}: drift {1e3 * found["drift_m"]:.2f} mm per chunk on held-out steps')
    verdict = 'PASSED' if record['within_tolerance'] else 'MISSED the tolerance'
    return [*lines, f'{verdict}: {record["verdict"]}']


class _Bar:
    """A progress bar per stage on the standard error, with the time left for the whole run."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._message = ''

    def tell(self, standing: Standing) -> None:
        from tqdm import tqdm

        if standing.message != self._message:
            self.close()
            self._message = standing.message
            self._bar = tqdm(
                desc=f'{list(STAGES).index(standing.stage) + 1}/{len(STAGES)} {standing.message}',
                total=standing.total,
                bar_format='{desc} {bar:20} {n_fmt}/{total_fmt}, {elapsed}{postfix}',
            )
        self._bar.total, self._bar.n = standing.total, standing.done
        self._bar.set_postfix_str(_time_left(standing.remaining_s), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """A line per stage, and one now and then, where the standard error is no terminal."""

    def __init__(self) -> None:
        self._message = ''
        self._told_s = 0.0

    def tell(self, standing: Standing) -> None:
        now = time.monotonic()
        if standing.message == self._message and now - self._told_s < _QUIET_S:
            return
        self._message, self._told_s = standing.message, now
        counted = f'{standing.done} of {standing.total}' if standing.done else ''
        parts = (standing.message, counted, _time_left(standing.remaining_s))
        print(', '.join(part for part in parts if part), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _time_left(seconds: float) -> str:
    return f'about {seconds:.0f} s left in all' if seconds >= 0.0 else ''


def _bar_or_lines() -> _Bar | _Lines:
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Json:
    """A line of JSON per step on the standard output."""

    def tell(self, standing: Standing) -> None:
        print(json.dumps(asdict(standing)), flush=True)

    def close(self) -> None:
        pass


class _Nothing:
    def tell(self, standing: Standing) -> None:
        pass

    def close(self) -> None:
        pass


_SINKS = {'bar': _bar_or_lines, 'json': _Json, 'none': _Nothing}


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
