"""The levels of a bundle as tables, for the report and for `vlaq inspect`."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vlaq_ros.control.precision_dyq import NEVER
from vlaq_ros.policies.levels import BundleLevels, HeadLevels
from vlaq_ros.types import ActionSpec

NOTHING = '-'


class Table(NamedTuple):
    """
    A table.

    Attributes:
        title: What it shows.
        header: Names of the columns.
        rows: Cells, as many as the header has.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def level_tables(levels: BundleLevels, spec: ActionSpec) -> Iterator[Table]:
    """Yield for each head what the levels cost, then when each is used."""
    for head, found in levels.heads.items():
        nearest = levels.record.get('rounded_to_nearest', {}).get(head, {})
        yield Table(
            f'{head} head: error on {_samples(found)} held-out samples',
            (
                'level',
                'tolerance',
                'step [mm]',
                'drift [mm]',
                'nearest [mm]',
                'RMS [mm]',
                'predicted',
                *(f'{name} [{_unit(unit)}]' for name, unit in zip(spec.names, spec.units)),
            ),
            [
                (
                    name,
                    f'{"kept" if one.within_tolerance else "MISSED"} ({100 * one.excess:.0f} %)',
                    _number(1e3 * one.step_m),
                    _number(1e3 * one.drift_m),
                    _number(1e3 * nearest[name]['drift_m']) if name in nearest else NOTHING,
                    _number(1e3 * one.rms_m),
                    f'{_number(one.prediction_ratio)} of it',
                    *(_error(error, unit) for error, unit in zip(one.error, spec.units)),
                )
                for name, one in found.measured.items()
            ],
        )
        yield Table(
            f'{head} head: levels by motion sensitivity S', ('group', 'levels'), _used(found)
        )


def level_page(levels: BundleLevels, spec: ActionSpec) -> Iterator[str]:
    """Yield the lines of a section in Markdown."""
    yield from ('## Levels for changing precision', '')
    for table in level_tables(levels, spec):
        yield from (f'{table.title}:', '', *markdown_table(table.header, table.rows))
    yield (
        'Drift is the mean over whole chunks, `nearest` that of rounding to nearest; the root '
        'mean square is that of executed rows, which the error model predicts. A level is offered '
        'where it keeps the tolerance with all groups at it and with its group alone. As for S: '
        f'{motion_text(levels)}.'
    )
    yield ''


def level_lines(levels: BundleLevels) -> list[str]:
    """Return a line for each head: the drift of every level with all groups at it."""
    lines = []
    for head, found in levels.heads.items():
        parts = [
            f'{level} {1e3 * one.drift_m:.2f} mm{"" if one.within_tolerance else " MISSED"}'
            for level, one in (
                (level, found.measured[str(level)]) for level in levels.ladder.levels
            )
        ]
        lines.append(f'{head} by level: {", ".join(parts)}')
    return lines


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, the first column to the left and the others to the right."""
    yield '| ' + ' | '.join(header) + ' |'
    yield '| ' + ' | '.join(['---', *['---:'] * (len(header) - 1)]) + ' |'
    for row in rows:
        yield '| ' + ' | '.join(row) + ' |'
    yield ''


def motion_text(levels: BundleLevels) -> str:
    """Return the normalizers of the motion in words."""
    if levels.motion is None:
        return 'no motion was commanded: normalizers are learned while the robot works'
    parts = []
    if levels.motion.translation_m is not None:
        parts.append(f'a step of {1e3 * levels.motion.translation_m:.2f} mm')
    if levels.motion.rotation_rad is not None:
        parts.append(f'a change of rotation of {1e3 * levels.motion.rotation_rad:.2f} mrad')
    return f'coarse, in commanded motion, is {" and ".join(parts)}'


def _used(head: HeadLevels) -> list[tuple[str, ...]]:
    rows = []
    for name, group in head.precision.groups.items():
        levels = list(map(str, group.menu.levels))
        if group.boundaries is None:
            why = head.fits.get(name, {}).get('why', 'not fitted')
            rows.append((name, f'{", ".join(levels)}; no boundaries: {why}'))
            continue
        parts, low = [], 0.0
        for level, edge in zip(levels, group.boundaries):
            if edge == NEVER or edge <= low:
                parts.append(f'{level} never')
                continue
            parts.append(f'{level} to {edge:.3f}')
            low = edge
        rows.append((name, ', '.join([*parts, f'{levels[-1]} above'])))
    return rows


def _samples(head: HeadLevels) -> int:
    return max(level.samples for level in head.measured.values())


def _unit(unit: str) -> str:
    return {'m': 'mm', 'rad': 'mrad'}.get(unit, 'of 1')


def _error(error: float, unit: str) -> str:
    return f'{error:.4f}' if unit == '1' else _number(1e3 * error)


def _number(value: float) -> str:
    return f'{value:.3f}' if math.isfinite(value) else NOTHING
