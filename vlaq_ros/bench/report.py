"""
The results as tables for the screen and for Markdown, and the files of a report.

Three claims are kept apart: how long a call takes, what is resident in memory, and (elsewhere)
what a policy still achieves.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlaq_ros.bench import model_tables
from vlaq_ros.bench.plots import draw_plots
from vlaq_ros.bench.ratios import BF16, FP32, INT8_LIBRARIES, MIXES, Point, points, typical
from vlaq_ros.bench.results import Results, Section, select
from vlaq_ros.bench.targets import target_table
from vlaq_ros.sim.results import write_atomically
from vlaq_ros.sim.tables import Table

REPORT = 'kernels.md'
NOTHING = '-'
BUSY_LOAD = 0.5
LEADING = ('W2A8', 'W4A8', 'W8A8', 'W8A8 capped to 4', *MIXES)
OF_THE_FLOOR = (*LEADING, 'bf16 rows', 'W4A16', 'W8A16')
_OPERATIONS_PER_BYTE = 24  # about where reading and multiplying take equally long


def make_tables(results: Results) -> list[Table]:
    """Return the tables of all sections, in the order of the report, and the verdicts."""
    makers: dict[str, Callable[[Section], Iterator[Table]]] = {
        'kernels': _kernel_tables,
        'layers': model_tables.layer_tables,
        'policy': model_tables.policy_tables,
        'memory': model_tables.memory_tables,
        'switching': model_tables.switching_tables,
        'gpu': model_tables.gpu_tables,
    }
    tables = [
        table
        for name, make in makers.items()
        if name in results.sections
        for table in make(results.sections[name])
    ]
    verdicts = target_table(results)
    return [*tables, verdicts] if verdicts else tables


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write the numbers, the tables and the plots to `folder`; return the paths."""
    written = [results.save(folder)]
    parts = ['## Measurements of `vlaq bench`', '']
    for machine, names in _machines(results):
        parts += [f'Machine of {", ".join(names)}:', '', *machine_lines(machine), '']
    parts += [table.to_markdown() for table in make_tables(results)]
    for name, section in results.sections.items():
        parts += [f'- not measured ({name}): {f["step"]}: {f["reason"]}' for f in section.failed]
        parts += [] if section.is_complete else [f'- `{name}` was interrupted: rows are missing']
    write_atomically(folder / REPORT, '\n'.join(parts) + '\n')
    return [*written, folder / REPORT, *draw_plots(results, folder)]


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """Return the machine as a list in Markdown that is also readable on a screen."""
    versions = ', '.join(f'{name} {number}' for name, number in machine['versions'].items())
    return [
        f'- {machine["cpu"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB; '
        f'{" ".join(machine["instructions"])}',
        f'- governor {machine["governor"]}, huge pages {machine["huge_pages"]}, '
        f'load at the start {machine["load"]}',
        f'- {machine["system"]}, Python {machine["python"]}, {versions}',
        f'- `{machine["command"]}`',
    ]


def _machines(results: Results) -> list[tuple[dict[str, Any], list[str]]]:
    """Return the different machines with the sections measured on each."""
    found: list[tuple[dict[str, Any], list[str]]] = []
    for name, section in results.sections.items():
        same = next((names for machine, names in found if machine == section.machine), None)
        if same is None:
            found.append((section.machine, [name]))
        else:
            same.append(name)
    return found


def _kernel_tables(section: Section) -> Iterator[Table]:
    groups = points(section.rows)
    full = next(iter(groups), None)
    for (threads, isa), found in groups.items():
        limited = full is not None and isa != full[1]
        where = f'{threads} thread{"s" if threads > 1 else ""}, {isa}'
        baseline = FP32 if limited else BF16
        for tokens in _all_tokens(found):
            here = [point for point in found if point.tokens == tokens]
            notes = _busy(section) if threads > 1 else _errors(here) if limited else ()
            yield _times(here, f'{_tokens(tokens)}, {where}', baseline, notes)
        if limited:
            continue
        yield _against_bf16(found, where)
        yield _of_the_floor(found, where)
        yield _mixing(found, where)
    yield from _ceilings(section)


def _times(found: Sequence[Point], where: str, baseline: str, notes: tuple[str, ...]) -> Table:
    names = list(dict.fromkeys(name for point in found for name in point.rows))
    return Table(
        f'Time of one linear layer [us] (times faster than {baseline}): {where}',
        ('kernel', *(point.shape for point in found)),
        tuple((name, *(_time(point, name, baseline) for point in found)) for name in names),
        notes,
    )


def _errors(found: Sequence[Point]) -> tuple[str, ...]:
    """Return how exact 8 bits are: without VNNI the products of some libraries saturate."""
    errors = {
        name: typical(point.rows[name]['error'] for point in found if name in point.rows)
        for name in ('W8A8', *INT8_LIBRARIES)
    }
    shown = ', '.join(f'{name} {error:.4f}' for name, error in errors.items() if error is not None)
    return (f'error against the float weight, random normal weights: {shown}',) if shown else ()


def _busy(section: Section) -> tuple[str, ...]:
    """Return a warning when other programs shared the cores: wall time is not fair then."""
    load = section.machine['load']
    if load <= BUSY_LOAD:
        return ()
    return (
        f'the machine had other work (load {load} at the start): threads waited for others that '
        'did not run, OpenMP most of all. Not fit to compare.',
    )


def _time(point: Point, name: str, baseline: str) -> str:
    seconds = point.seconds(name)
    if seconds is None:
        return NOTHING
    ratio = point.ratio(name, baseline)
    return f'{1e6 * seconds:,.0f}' + ('' if ratio is None else f' ({ratio:.2f})')


def _against_bf16(found: Sequence[Point], where: str) -> Table:
    baselines = ('', BF16, FP32)  # '' stands for the best bf16 of the point

    def cell(point: Point, name: str) -> str:
        ratios = [point.ratio(name, other or point.best_bf16() or '') for other in baselines]
        return NOTHING if None in ratios else ' / '.join(f'{ratio:.2f}' for ratio in ratios)

    best = [f'{t}: {", ".join(_best_bf16(found, t))}' for t in _all_tokens(found)]
    return Table(
        f'Times faster than the best bf16 / stock torch bf16 / torch fp32: {where}',
        ('kernel, tokens', *_shapes(found)),
        _grid(found, LEADING, cell),
        ('the best bf16 by tokens: ' + '; '.join(best),),
    )


def _of_the_floor(found: Sequence[Point], where: str) -> Table:
    def cell(point: Point, name: str) -> str:
        row = point.rows.get(name)
        if row is None:
            return NOTHING
        share = f'{100 * point.floor_share(name):.0f} %'
        if row['read_bytes'] >= row['operations'] / _OPERATIONS_PER_BYTE:
            return f'{share} ({row["read_bytes"] / row["seconds"] / 1e9:.0f} GB/s)'
        return f'{share} ({row["operations"] / row["seconds"] / 1e9:,.0f} GOP/s)'

    errors = [
        (name, typical(point.rows[name]['error'] for point in found if name in point.rows))
        for name in OF_THE_FLOOR
    ]
    shown = ', '.join(f'{name} {error:.4f}' for name, error in errors if error is not None)
    return Table(
        f'Share of what the processor can do: {where}',
        ('kernel, tokens', *_shapes(found)),
        _grid(found, OF_THE_FLOOR, cell),
        (
            'floor: the weights read at the measured bandwidth, or the multiply-adds at the '
            'measured peak, whichever takes longer; 100 % cannot be beaten. GB/s of packed '
            'weights where a call reads more than it computes, GOP/s elsewhere.',
            f'error against the float weight, random normal weights (median): {shown}',
        ),
    )


def _grid(
    found: Sequence[Point], names: Sequence[str], cell: Callable[[Point, str], str]
) -> tuple[tuple[str, ...], ...]:
    """Return one line per name and number of tokens, one column per shape."""
    places = {(point.shape, point.tokens): point for point in found}
    lines = []
    for name in names:
        for count in _all_tokens(found):
            points_here = [places.get((shape, count)) for shape in _shapes(found)]
            cells = [NOTHING if point is None else cell(point, name) for point in points_here]
            if set(cells) != {NOTHING}:
                lines.append((f'{name}, {count}', *cells))
    return tuple(lines)


def _shapes(found: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.shape for point in found))


def _all_tokens(found: Sequence[Point]) -> list[int]:
    return sorted({point.tokens for point in found})


def _best_bf16(found: Sequence[Point], tokens: int) -> list[str]:
    names = [point.best_bf16() for point in found if point.tokens == tokens]
    return sorted({name for name in names if name})


def _mixing(found: Sequence[Point], where: str) -> Table:
    def cell(mix: str, shape: str, count: int) -> str:
        overhead = typical(
            point.mixing_overhead(mix)
            for point in found
            if (point.shape, point.tokens) == (shape, count)
        )
        return NOTHING if overhead is None else f'{100 * overhead:+.0f}'

    rows = [
        (f'{mix}, {shape}', *(cell(mix, shape, count) for count in _all_tokens(found)))
        for mix in MIXES
        for shape in _shapes(found)
    ]
    return Table(
        f'Price of mixing widths in one layer [%]: {where}',
        ('mix', *(_tokens(count) for count in _all_tokens(found))),
        tuple(rows),
        ('against the mean of the uniform layers, weighted by their share of the channels',),
    )


def _ceilings(section: Section) -> Iterator[Table]:
    found = select(section.rows, name='ceilings')
    groups = dict.fromkeys((row['threads'], row['isa'], row['source']) for row in found)
    rows = []
    for threads, isa, source in groups:
        here = select(found, threads=threads, isa=isa, source=source)
        read = typical(row['read_bytes_s'] for row in here)
        kinds = [typical(row['operations_s'].get(k) for row in here) for k in _KINDS]
        cells = [NOTHING if rate is None else f'{rate / 1e9:,.0f}' for rate in kinds]
        rows.append((f'{threads}, {isa}', f'{read / 1e9:.1f}', *cells, source))
    if rows:
        yield Table(
            'Ceilings measured in the same rounds (median over the rounds of all points)',
            ('threads, instructions', 'read [GB/s]', *(f'{k} [GOP/s]' for k in _KINDS), 'by'),
            tuple(rows),
            _remarks(section),
        )


def _remarks(section: Section) -> tuple[str, ...]:
    """Return what must be known about contenders, and which of them refused."""
    said: dict[str, list[str]] = {}
    for row in section.rows:
        if row.get('remark'):
            verb = '' if row.get('seconds') is not None else 'refused, '
            said.setdefault(f'{row["name"]}: {verb}{row["remark"]}', []).append(row['name'])
    return tuple(sorted(said))


_KINDS = ('fp32', 'bf16', 'int8')


def _tokens(count: int) -> str:
    return '1 token' if count == 1 else f'{count} tokens'
