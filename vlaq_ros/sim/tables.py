"""
The report of an evaluation as tables: plain text for the screen, Markdown and JSON for files.

A rise or fall in success is called that only where the paired test says so; everything else is
printed as a tie.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.sim.precision_tables import precision_tables
from vlaq_ros.sim.report import Row
from vlaq_ros.sim.results import Config, write_atomically
from vlaq_ros.sim.statistics import SIGNIFICANT
from vlaq_ros.sim.table import NOTHING, Table, millimetres

FLOOR_PRECISION = 'w8'
PUBLISHED_EPISODES = 200  # fewer per row are for development only
UNPACKED_BITS = {'fp32': 32.0, 'bf16': 16.0}
REFERENCE_KERNEL = 'reference'
NOT_APPLICABLE = 'n/a'
_BUSY = 'The machine had more to do than it has cores, which inflates these times'
_SLOW = (
    'The reference kernels define the result and unpack the weights at every call: these times '
    'say nothing about the speed that quantization can reach.'
)


def make_tables(rows: Sequence[Row], run: dict[str, Any]) -> list[Table]:
    """
    Return the tables: success, by task, drift, precision while running, memory, latency.

    Args:
        rows: One per configuration.
        run: What `describe_run` returns.
    """
    drift = [_drift(rows)] if any(row.paired for row in rows) else []
    running = precision_tables(rows, run)
    return [
        _success(rows, run),
        _tasks(rows),
        *drift,
        *running,
        _memory(rows),
        _latency(rows, run),
    ]


def write_report(folder: Path, rows: Sequence[Row], run: dict[str, Any]) -> list[Table]:
    """Write `report.json` and `report.md` to `folder` and return the tables."""
    tables = make_tables(rows, run)
    values = {
        'run': run,
        'success_and_drift': [_success_json(row) for row in rows],
        'precision_while_running': [
            {'config': row.config.name, **row.precision.to_json()} for row in rows if row.precision
        ],
        'memory': [{'config': row.config.name, **_memory_json(row)} for row in rows],
        'latency': [
            {
                'config': row.config.name,
                'kernel': _kernel(row),
                'inferences': row.inferences,
                'p50_s': row.p50_s,
                'p95_s': row.p95_s,
            }
            for row in rows
        ],
    }
    text = json.dumps(without_nan(values), indent=1, allow_nan=False) + '\n'
    write_atomically(folder / 'report.json', text)
    write_atomically(folder / 'report.md', _markdown(tables, run))
    return tables


def _success(rows: Sequence[Row], run: dict[str, Any]) -> Table:
    return Table(
        f'Closed-loop success: {len(run["tasks"])} tasks x {run["per_task"]} episodes, '
        f'sentences: {run["instructions"]}',
        ('config', 'success', '95 % interval', 'lost/gained', 'p', 'verdict'),
        tuple(_success_cells(row) for row in rows),
        tuple(_success_notes(rows, run)),
    )


def _success_cells(row: Row) -> tuple[str, ...]:
    low, high = row.interval
    cells = (
        row.config.name,
        f'{row.successes}/{row.episodes} = {100 * row.rate:.1f} %',
        f'{100 * low:.1f} to {100 * high:.1f}',
    )
    if row.paired is None:
        return (*cells, NOTHING, NOTHING, 'reference')
    paired = row.paired
    return (*cells, f'{paired.lost}/{paired.gained}', _p_value(paired.p_value), paired.verdict)


def _success_notes(rows: Sequence[Row], run: dict[str, Any]) -> Iterator[str]:
    yield (
        'Each row is compared with the fp32 run of its own head over the same starts; '
        'lost/gained: episodes that only the reference or only this row solved.'
    )
    yield (
        f'p: exact two-sided McNemar, not corrected for the number of rows; p >= {SIGNIFICANT:g} '
        'is a tie, whichever rate is higher.'
    )
    if run['instructions'] == 'wrong':
        yield (
            'Control with the sentence of another task: a policy that obeys the words scores low '
            'here.'
        )
    stopped = [f'{row.config.name} {row.stopped}' for row in rows if row.stopped]
    if stopped:
        yield f'Episodes stopped by the policy, counted as failed: {", ".join(stopped)}.'
    if rows[0].episodes < PUBLISHED_EPISODES:
        yield (
            f'{rows[0].episodes} episodes per row: for development; publish with at least '
            f'{PUBLISHED_EPISODES}.'
        )


def _drift(rows: Sequence[Row]) -> Table:
    compared = [row for row in rows if row.paired is not None]
    return Table(
        'Drift against the reference [mm]: closed loop (CL) and open loop (OL)',
        (
            'config',
            'CL step 12',
            'CL mean (median)',
            'CL max',
            'OL per step',
            'OL at the end',
            'rotation',
        ),
        tuple((row.config.name, *_closed_cells(row), *_open_cells(row)) for row in compared),
        tuple(_drift_notes(compared)),
    )


def _closed_cells(row: Row) -> tuple[str, ...]:
    drift = row.closed_loop
    if drift is None:
        return (NOTHING,) * 3
    mean = f'{millimetres(drift.mean_m)} ({millimetres(drift.median_m)})'
    return millimetres(drift.at_step_12_m), mean, millimetres(drift.max_m)


def _open_cells(row: Row) -> tuple[str, ...]:
    drift = row.open_loop
    if drift is None:
        return NOTHING, NOTHING, NOT_APPLICABLE
    angle = drift.rotation_per_step_rad
    return (
        millimetres(drift.position_per_step_m, 2),
        millimetres(drift.position_accumulated_m),
        f'{angle:.4f} rad' if math.isfinite(angle) else NOT_APPLICABLE,
    )


def _drift_notes(compared: Sequence[Row]) -> Iterator[str]:
    yield (
        'CL: distance of the hand to that of the reference run from the same start, until the '
        'shorter episode ends; at step 12, mean over time (median over episodes), maximum.'
    )
    replayed = max((row.open_loop.episodes for row in compared if row.open_loop), default=0)
    if replayed:
        yield (
            'OL: difference of the actions on the very observations of the reference run, per '
            f'step and composed to the end ({replayed} episodes).'
        )
    if any(row.config.precision == FLOOR_PRECISION for row in compared):
        yield f'{FLOOR_PRECISION} is the noise floor: contacts amplify any difference.'
    else:
        yield f'No {FLOOR_PRECISION} row: the noise floor of the drift is unknown here.'
    if all(_rotation_is_missing(row) for row in compared):
        yield 'rotation n/a: these policies command no rotation.'


def _rotation_is_missing(row: Row) -> bool:
    return row.open_loop is None or not math.isfinite(row.open_loop.rotation_per_step_rad)


def _tasks(rows: Sequence[Row]) -> Table:
    tasks = list(rows[0].per_task)
    return Table(
        'Success by task [%]',
        ('task', *(row.config.name for row in rows)),
        tuple((task, *(_percent(*row.per_task[task]) for row in rows)) for task in tasks),
    )


def _memory(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        report = row.memory
        if report is None:
            cells.append((row.config.name, *[NOTHING] * 4))
            continue
        bits = _bits(row.config, report)
        cells.append(
            (
                row.config.name,
                f'{report.weight_bytes:,}',
                str(report.quantized_layers),
                f'{report.quantized_weights:,}',
                f'{bits:.2f}' if math.isfinite(bits) else NOT_APPLICABLE,
            )
        )
    return Table(
        'Memory: bytes of weights resident in one process',
        ('config', 'all weights [bytes]', 'packed layers', 'packed weights', 'bits per weight'),
        tuple(cells),
        (
            'bits per weight: mean over the packed layers, scales included; '
            'the width of storage where nothing is packed.',
        ),
    )


def _latency(rows: Sequence[Row], run: dict[str, Any]) -> Table:
    kernels = [kernel for kernel in dict.fromkeys(map(_kernel, rows)) if kernel]
    slow = [kernel for kernel in kernels if kernel.startswith(REFERENCE_KERNEL)]
    named = 'reference kernels' if slow == kernels else 'kernels as named below'
    return Table(
        f'Latency of one inference: {named}, {run["cpu"]}, 1 thread, '
        f'{run["processes"]} at a time on {run["cores"]} cores',
        ('config', 'p50 [ms]', 'p95 [ms]', 'inferences'),
        tuple(
            (
                row.config.name,
                *(f'{1e3 * s:.2f}' if row.inferences else NOTHING for s in (row.p50_s, row.p95_s)),
                str(row.inferences),
            )
            for row in rows
        ),
        (
            *([_SLOW] if slow else []),
            *(f'packed layers: {kernel}' for kernel in kernels),
            *([f'{_BUSY} (load {run["load"]:.1f}).'] if run['load'] > run['cores'] + 0.5 else []),
        ),
    )


def _kernel(row: Row) -> str:
    return row.memory.kernel if row.memory else ''


def _success_json(row: Row) -> dict[str, Any]:
    closed = row.closed_loop
    return {
        'config': row.config.name,
        'reference': None if row.paired is None else row.config.reference.name,
        'successes': row.successes,
        'episodes': row.episodes,
        'wilson_95': list(row.interval),
        'per_task': {task: list(counts) for task, counts in row.per_task.items()},
        'stopped': row.stopped,
        'paired': row.paired and {**asdict(row.paired), 'verdict': row.paired.verdict},
        'closed_loop': closed and {**asdict(closed), 'quartiles_m': closed.quartiles_m.tolist()},
        'open_loop': row.open_loop and asdict(row.open_loop),
    }


def _memory_json(row: Row) -> dict[str, Any]:
    if row.memory is None:
        return {}
    return {**asdict(row.memory), 'bits_per_weight': _bits(row.config, row.memory)}


def _bits(config: Config, report: MemoryReport) -> float:
    if report.quantized_weights:
        return report.mean_bits_per_weight
    return UNPACKED_BITS.get(config.precision, math.nan)


def _markdown(tables: Sequence[Table], run: dict[str, Any]) -> str:
    versions = ', '.join(f'{name} {number}' for name, number in run['versions'].items())
    bundle = run['bundle']
    head = [
        f'## Evaluation of bundle `{bundle["name"]}`',
        '',
        f'- Bundle sha256: `{bundle["sha256"]}`',
        f'- Command: `{run["command"]}`',
        f'- Machine: {run["cpu"]}, {run["cores"]} cores, {run["system"]}',
        f'- Versions: {versions}',
        '',
    ]
    return '\n'.join([*head, *(table.to_markdown() for table in tables)])


def without_nan(values: Any) -> Any:
    """Return `values` with NaN as None, which JSON can hold."""
    if isinstance(values, dict):
        return {key: without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _percent(successes: int, episodes: int) -> str:
    return f'{100 * successes / episodes:.0f}'


def _p_value(p: float) -> str:
    return f'{p:.2f}' if p >= 0.1 else f'{p:.4f}' if p >= 0.001 else f'{p:.0e}'
