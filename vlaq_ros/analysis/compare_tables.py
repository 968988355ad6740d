"""
The comparison of calibration methods as tables: success, drift and bytes, budget by budget.

A row is compared with full precision, and with round-to-nearest at the same budget, over the same
episodes. A rise or fall is called that only where the exact paired test says so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.sim.report import Row, summarize
from vlaq_ros.sim.results import Config, ResultStore, write_atomically
from vlaq_ros.sim.rollout import Episode
from vlaq_ros.sim.statistics import Paired, compare
from vlaq_ros.sim.table import NOTHING, Table, millimetres

BASELINE = 'rtn'


class CalibrationSetting(Protocol):
    """What the tables need to know of a calibration; see `compare.Setting`."""

    name: str
    method: str
    budget: float
    group_size: int | None
    options: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """
    One method at one budget with one head.

    Attributes:
        setting: How it was calibrated.
        head: Action head.
        bits: Bits per weight of the packed layers, scales included.
        row: What the evaluation found.
        baseline: Against round-to-nearest at the same budget; None for it itself, or without one.
    """

    setting: CalibrationSetting
    head: str
    bits: float
    row: Row
    baseline: Paired | None


def compare_cells(
    settings: Sequence[CalibrationSetting],
    bundles: Mapping[str, Bundle],
    heads: Sequence[str],
    store: ResultStore,
    episodes: Sequence[Episode],
) -> list[Cell]:
    """Return one cell per head and setting, all of whose episodes are finished."""
    cells = []
    for head in heads:
        baselines = {s.budget: Config(s.name, head) for s in settings if s.method == BASELINE}
        for setting in settings:
            config = Config(setting.name, head)
            row = summarize(store, [config], episodes)[0]
            other = baselines.get(setting.budget, config)
            against = None if other == config else compare(*_outcomes(store, config, other))
            bits = bundles[setting.name].quantization['mean_bits_per_weight']
            cells.append(Cell(setting, head, bits, row, against))
    return cells


def write_comparison(
    folder: Path,
    cells: Sequence[Cell],
    references: Sequence[Row],
    run: Mapping[str, Any],
    calibration: Mapping[str, Any],
) -> Path:
    """Write `comparison.json` and `comparison.md`; return the path of the latter."""
    values = {
        'run': dict(run),
        'calibration': dict(calibration),
        'references': [
            {'config': row.config.name, 'successes': row.successes, 'episodes': row.episodes}
            for row in references
        ],
        'cells': [_plain(cell) for cell in cells],
    }
    write_atomically(folder / 'comparison.json', json.dumps(values, indent=1) + '\n')
    head = [
        '## Calibration methods at equal bytes',
        '',
        f'- Bundle sha256: `{run["bundle"]["sha256"]}`',
        f'- Command: `{run["command"]}`',
        f'- Machine: {run["cpu"]}, {run["cores"]} cores',
        f'- Calibration: {", ".join(f"{k} {v}" for k, v in calibration.items())}',
        '',
    ]
    tables = make_tables(cells, references)
    text = '\n'.join([*head, *(table.to_markdown() for table in tables)])
    write_atomically(folder / 'comparison.md', text)
    return folder / 'comparison.md'


def make_tables(cells: Sequence[Cell], references: Sequence[Row]) -> list[Table]:
    """Return an overview of success and of drift per head, then a table per head and budget."""
    tables = []
    for head in dict.fromkeys(cell.head for cell in cells):
        own = [cell for cell in cells if cell.head == head]
        reference = next(row for row in references if row.config.head == head)
        tables += [
            _overview(f'Success [%], {head} head', own, _rate, _reference_note(reference)),
            _overview(
                f'Closed-loop drift, mean (median) over episodes [mm], {head} head', own, _drift
            ),
            _overview(f'Open-loop error per step [mm], {head} head', own, _open_loop),
        ]
    for head in dict.fromkeys(cell.head for cell in cells):
        for budget in dict.fromkeys(cell.setting.budget for cell in cells):
            tables.append(
                _detail(
                    f'{budget:g} bits per weight, {head} head',
                    [c for c in cells if c.head == head and c.setting.budget == budget],
                )
            )
    return tables


def _overview(title: str, cells: Sequence[Cell], show: Any, note: str = '') -> Table:
    budgets = list(dict.fromkeys(cell.setting.budget for cell in cells))
    methods = list(dict.fromkeys(cell.setting.method for cell in cells))
    found = {(cell.setting.method, cell.setting.budget): show(cell) for cell in cells}
    return Table(
        title,
        ('method', *(f'{budget:g} bits' for budget in budgets)),
        tuple((m, *(found.get((m, b), NOTHING) for b in budgets)) for m in methods),
        (note,) if note else (),
    )


def _rate(cell: Cell) -> str:
    paired = cell.row.paired
    mark = {'tie': '', 'worse': ' -', 'better': ' +'}[paired.verdict]
    return f'{100 * cell.row.rate:.1f}{mark}'


def _drift(cell: Cell) -> str:
    drift = cell.row.closed_loop
    if drift is None:
        return NOTHING
    return f'{millimetres(drift.mean_m)} ({millimetres(drift.median_m)})'


def _open_loop(cell: Cell) -> str:
    drift = cell.row.open_loop
    return NOTHING if drift is None else millimetres(drift.position_per_step_m, 2)


def _reference_note(row: Row) -> str:
    return (
        f'full precision {100 * row.rate:.1f} ({row.successes} of {row.episodes}); `-`: worse, '
        '`+`: better by the exact paired McNemar test at 0.05, not corrected for the number of '
        'cells; no mark: a tie'
    )


def _detail(title: str, cells: Sequence[Cell]) -> Table:
    return Table(
        title,
        (
            'method',
            'bits with scales',
            'inputs per scale',
            'success',
            '95 % interval',
            'against fp32: lost/gained, p',
            f'against {BASELINE}: lost/gained, p',
            'drift CL mean (median) [mm]',
            'OL per step [mm]',
            'packed layers resident [bytes]',
        ),
        tuple(_detail_cells(cell) for cell in cells),
    )


def _detail_cells(cell: Cell) -> tuple[str, ...]:
    row, setting = cell.row, cell.setting
    low, high = row.interval
    return (
        setting.method,
        f'{cell.bits:.3f}',
        'all' if setting.group_size is None else str(setting.group_size),
        f'{row.successes}/{row.episodes} = {100 * row.rate:.1f} %',
        f'{100 * low:.1f} to {100 * high:.1f}',
        _paired(row.paired),
        _paired(cell.baseline),
        _drift(cell),
        _open_loop(cell),
        f'{row.memory.quantized_bytes:,}' if row.memory else NOTHING,
    )


def _paired(paired: Paired | None) -> str:
    if paired is None:
        return NOTHING
    p = f'{paired.p_value:.2f}' if paired.p_value >= 0.01 else f'{paired.p_value:.0e}'
    return f'{paired.lost}/{paired.gained}, {p}: {paired.verdict}'


def _outcomes(
    store: ResultStore, config: Config, other: Config
) -> tuple[dict[Any, bool], dict[Any, bool]]:
    first, second = (
        {key: record.success for key, record in store.records[c].items()} for c in (config, other)
    )
    return first, second


def _plain(cell: Cell) -> dict[str, Any]:
    row, setting = cell.row, cell.setting
    closed, opened = row.closed_loop, row.open_loop
    return {
        'method': setting.method,
        'budget': setting.budget,
        'group_size': setting.group_size,
        'options': dict(setting.options),
        'head': cell.head,
        'bits_with_scales': cell.bits,
        'successes': row.successes,
        'episodes': row.episodes,
        'wilson_95': list(row.interval),
        'against_fp32': _pair_json(row.paired),
        f'against_{BASELINE}': _pair_json(cell.baseline),
        'closed_loop_mean_m': closed and closed.mean_m,
        'closed_loop_median_m': closed and closed.median_m,
        'open_loop_step_m': opened and opened.position_per_step_m,
        'resident_packed_bytes': row.memory and row.memory.quantized_bytes,
        'per_task': {task: list(counts) for task, counts in row.per_task.items()},
    }


def _pair_json(paired: Paired | None) -> dict[str, Any] | None:
    if paired is None:
        return None
    return {
        'lost': paired.lost,
        'gained': paired.gained,
        'p_value': paired.p_value,
        'verdict': paired.verdict,
    }
