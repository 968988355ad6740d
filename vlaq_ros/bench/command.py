"""
`vlaq bench`: what the kernels do on this machine, against what else there is and what is possible.

Nothing is downloaded and nothing is changed. An interrupt keeps what was measured.
"""

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlaq_ros.bench.machine import describe_machine
from vlaq_ros.bench.plan import (
    EXTRA_SECTIONS,
    SECTIONS,
    Job,
    Request,
    make_jobs,
    parse_counts,
    parse_shapes,
)
from vlaq_ros.bench.report import machine_lines, make_tables, write_report
from vlaq_ros.bench.results import Results, Section
from vlaq_ros.bench.runner import Progress, minutes, run_job
from vlaq_ros.errors import ConfigError, MissingDependencyError, unknown_name
from vlaq_ros.kernels import native_library

ALL = 'all'
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vlaq bench`."""
    parser.add_argument(
        'sections',
        nargs='*',
        default=[ALL],
        metavar='SECTION',
        help=f'{", ".join((*SECTIONS, *EXTRA_SECTIONS))}, or {ALL} (default): all but gpu',
    )
    parser.add_argument(
        '--quick', action='store_true', help='a few points in about four minutes; not to publish'
    )
    parser.add_argument(
        '--shapes', help='layers of the kernel section, such as 960x2560,2048x8192'
    )
    parser.add_argument('--tokens', help='tokens per call of the kernel section, such as 1,64')
    parser.add_argument('--threads', help='thread counts of the kernel section (default: 1,2)')
    parser.add_argument(
        '--rivals',
        choices=('installed', 'torch'),
        default='installed',
        help='onnxruntime and OpenVINO where they are installed, or torch alone',
    )
    parser.add_argument(
        '--output', type=Path, default=Path('out/bench'), help='default: %(default)s'
    )
    parser.add_argument(
        '--report', action='store_true', help='measure nothing; tables and plots of --output again'
    )


def run(args: argparse.Namespace) -> int:
    """
    Measure, print and store; 1 when something could not be measured, 130 when interrupted.

    Raises:
        ConfigError: An option is wrong, or `--output` holds something else.
    """
    results = Results.load(args.output)
    if args.report:
        if not results.sections:
            raise ConfigError(f'--report: nothing was measured in {args.output} yet')
        _show(results, tuple(results.sections))
        return _write(results, args.output)
    request = make_request(args)
    jobs = make_jobs(request)
    expected = sum(step.expected_s for job in jobs for step in job.steps)
    machine = describe_machine()
    print('\n'.join(machine_lines(machine)))
    print(f'\n{len(jobs)} processes, about {minutes(expected)} on a machine like 2 cores of EPYC')
    finished = _measure(jobs, results, machine, args.output)
    _show(results, request.sections)
    _write(results, args.output)
    if not finished:
        print('interrupted: what was measured before is kept')
        return INTERRUPTED
    return int(any(results.sections[name].failed for name in request.sections))


def make_request(args: argparse.Namespace) -> Request:
    """
    Check the options.

    Raises:
        ConfigError: Anything is unknown or out of range; every offender is listed.
    """
    problems: list[str] = []
    known = (*SECTIONS, *EXTRA_SECTIONS, ALL)
    problems += [unknown_name('section', s, known) for s in args.sections if s not in known]

    def parsed(parse: Any, *arguments: str) -> Any:
        if arguments[-1] is None:
            return None
        try:
            return parse(*arguments)
        except ConfigError as error:
            problems.append(str(error))
            return None

    shapes = parsed(parse_shapes, args.shapes)
    tokens = parsed(parse_counts, '--tokens', args.tokens)
    threads = parsed(parse_counts, '--threads', args.threads)
    if problems:
        raise ConfigError('nothing was measured:\n  ' + '\n  '.join(problems))
    named = [name for s in args.sections for name in (SECTIONS if s == ALL else (s,))]
    return Request(
        sections=tuple(dict.fromkeys(named)),
        quick=args.quick,
        shapes=shapes,
        tokens=tokens,
        threads=threads,
        rivals=args.rivals == 'installed',
        isas=_isas(),
    )


def _isas() -> tuple[str, ...]:
    try:
        return native_library.available_isas()
    except MissingDependencyError:
        return ()


def _measure(jobs: list[Job], results: Results, machine: dict[str, Any], folder: Path) -> bool:
    """Run the jobs into `results`, saving after each; return whether they ran to the end."""
    progress = Progress(jobs)
    begun: set[str] = set()
    left = [job.section for job in jobs]
    try:
        for job in jobs:
            if job.section not in begun:
                begun.add(job.section)
                now = datetime.now(timezone.utc).isoformat(timespec='seconds')
                results.sections[job.section] = Section(machine, now)
            section = results.sections[job.section]
            section.failed += run_job(job, progress, section.rows.append)
            left.remove(job.section)
            section.is_complete = job.section not in left
            results.save(folder)
    except KeyboardInterrupt:
        results.save(folder)
        return False
    finally:
        progress.close()
    return True


def _show(results: Results, names: tuple[str, ...]) -> None:
    shown = Results({n: results.sections[n] for n in names if n in results.sections})
    for table in make_tables(shown):
        print('\n' + table.to_text())
    for name, section in shown.sections.items():
        for failure in section.failed:
            print(f'\n{name} not measured: {failure["step"]}: {failure["reason"]}')


def _write(results: Results, folder: Path) -> int:
    for path in write_report(results, folder):
        print(path)
    return 0
