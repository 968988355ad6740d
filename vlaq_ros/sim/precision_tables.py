"""The tables about precision that changes while an episode runs: what was executed, and where."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.sim.precision_options import LIKE, MODES, RANDOM
from vlaq_ros.sim.precision_run import PrecisionRun
from vlaq_ros.sim.report import Row
from vlaq_ros.sim.results import Config
from vlaq_ros.sim.table import NOTHING, Table, millimetres
from vlaq_ros.sim.tasks import PRECISE_TASKS

_INTEGER_UNITS_BITS = 8
_SHOWN_REASONS = 4


def precision_tables(rows: Sequence[Row], run: dict[str, Any]) -> list[Table]:
    """Return the tables, none when no configuration has changed its precision while running."""
    shown = [row for row in rows if row.precision is not None]
    if not any(_mode(row.config) for row in shown):
        return []
    tables = [_executed(shown, run), _reasons(shown)]
    tasks = rows[0].per_task
    if 0 < sum(task in PRECISE_TASKS for task in tasks) < len(tasks):
        tables.append(_fine_and_coarse(rows))
    return tables


def _executed(rows: Sequence[Row], run: dict[str, Any]) -> Table:
    return Table(
        'Precision while running',
        (
            'config',
            'success',
            'weight bits',
            'activation bits',
            'occupancy by level',
            'changes per episode',
        ),
        tuple(
            (
                row.config.name,
                f'{100 * row.rate:.1f} %',
                f'{row.precision.weight_bits:.2f}',
                f'{row.precision.activation_bits:.2f}',
                _occupancy(row.precision),
                f'{row.precision.changes / row.episodes:.1f}',
            )
            for row in rows
        ),
        tuple(_executed_notes(rows, run)),
    )


def _executed_notes(rows: Sequence[Row], run: dict[str, Any]) -> Iterator[str]:
    yield (
        'weight bits, activation bits: what was executed, mean over all inferences, every '
        'quantized weight that the head reads counting alike (without scales); occupancy: share '
        'of the inferences at each level, by module group where they differ; changes: of all '
        'groups.'
    )
    modes = {_mode(row.config) for row in rows}
    if RANDOM in modes:
        yield (
            f'{RANDOM} runs at the levels of {LIKE} in the same episode, in random order: what is '
            'better than it knows when precision is needed.'
        )
    if 'latency' in modes:
        yield (
            'latency: levels chosen by the time that inferences took on this machine; simulated '
            'time stands still during an inference, so no chunk is played late, and the row says '
            'nothing about another machine.'
        )
    if 'drift' in modes:
        yield (
            'drift: full precision answers the same observations at no delay; what that costs is '
            'in no column.'
        )
    widths = {
        PrecisionLevel.from_name(name).activation_bits
        for row in rows
        for levels in row.precision.shares.values()
        for name in levels
    }
    if narrow := sorted(bits for bits in widths if bits < _INTEGER_UNITS_BITS):
        yield (
            f'a{" and a".join(map(str, narrow))}: activations are rounded to that range and '
            f'multiplied on {_INTEGER_UNITS_BITS}-bit units.'
        )
    if origins := dict.fromkeys(run.get('precision_rules', {}).values()):
        yield f'rules from {", ".join(origins)}; what they are is in the JSON report.'


def _occupancy(run: PrecisionRun) -> str:
    """Return e.g. `w4a8 30 %, w8a8 70 %`, by group where the groups differ."""
    texts = {
        group: ', '.join(
            f'{level} {100 * shares[level]:.0f} %'
            for level in sorted(shares, key=PrecisionLevel.from_name)
        )
        for group, shares in run.shares.items()
    }
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return '; '.join(f'{group}: {text}' for group, text in texts.items())


def _reasons(rows: Sequence[Row]) -> Table:
    cells = [
        (row.config.name, group, _most(row.precision, group))
        for row in rows
        if _mode(row.config) and _mode(row.config) != RANDOM
        for group in row.precision.reasons
    ]
    return Table(
        'Why a level was chosen [% of the decisions]',
        ('config', 'group', 'reasons'),
        tuple(cells),
        ('Reasons as ~/precision names them; most frequent first.',),
    )


def _most(run: PrecisionRun, group: str) -> str:
    counts = run.reasons[group]
    total = sum(counts.values())
    ranked = sorted(counts, key=lambda name: -counts[name])[:_SHOWN_REASONS]
    return ', '.join(f'{name} {100 * counts[name] / total:.0f}' for name in ranked)


def _fine_and_coarse(rows: Sequence[Row]) -> Table:
    tasks = rows[0].per_task
    fine = [task for task in tasks if task in PRECISE_TASKS]
    coarse = [task for task in tasks if task not in PRECISE_TASKS]
    return Table(
        'Fine and coarse tasks',
        ('config', 'fine: success', 'coarse: success', 'fine: CL mean', 'coarse: CL mean'),
        tuple(
            (
                row.config.name,
                *(_rate(row.per_task[task] for task in chosen) for chosen in (fine, coarse)),
                *(_drift(row, chosen) for chosen in (fine, coarse)),
            )
            for row in rows
        ),
        (
            f'fine: {", ".join(fine)}; coarse: {", ".join(coarse)}. Split by task: also a coarse '
            'task has fine phases, and the other way round.',
            'CL mean: closed-loop drift [mm] as in the table above, tasks counting alike.',
        ),
    )


def _rate(counts: Iterable[tuple[int, int]]) -> str:
    successes, episodes = map(sum, zip(*counts))
    return f'{successes}/{episodes} = {100 * successes / episodes:.1f} %'


def _drift(row: Row, tasks: Sequence[str]) -> str:
    means = [row.drift_by_task[task] for task in tasks if task in row.drift_by_task]
    return millimetres(float(np.mean(means))) if means else NOTHING


def _mode(config: Config) -> str:
    """Return how a configuration changes its precision, empty when it does not."""
    mode = config.precision.partition('@')[2]
    return mode if mode in MODES else ''
