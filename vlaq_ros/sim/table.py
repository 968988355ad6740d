"""A table of a report, for the screen and for Markdown."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = '-'


@dataclass(frozen=True)
class Table:
    """A table with a title above and notes below; every cell is text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return aligned columns, the first to the left and the others to the right."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows)]
        lines = [self.title, '']
        for cells in (self.header, *self.rows):
            first, *others = [
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths))
            ]
            lines.append('  '.join(['  ' + first, *others]).rstrip())
        for note in self.notes:
            lines.append(textwrap.fill(note, 96, initial_indent='  * ', subsequent_indent='    '))
        return '\n'.join(lines)

    def to_markdown(self) -> str:
        """Return a Markdown section."""
        lines = [f'### {self.title}', '', _pipe(self.header)]
        lines.append(_pipe(('---', *['---:'] * (len(self.header) - 1))))
        lines += [_pipe(row) for row in self.rows]
        if self.notes:
            lines += ['', *(f'- {note}' for note in self.notes)]
        return '\n'.join(lines) + '\n'


def millimetres(length_m: float, digits: int = 1) -> str:
    """Return a length in millimetres; `NOTHING` where there is none."""
    return f'{1e3 * length_m:.{digits}f}' if math.isfinite(length_m) else NOTHING


def _pipe(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'
