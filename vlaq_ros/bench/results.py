"""
What was measured, on disk: `kernels.json`, one entry per section.

A section holds the machine it was measured on, the time, its rows, what could not be measured and
whether it ran to the end. Measuring a section again replaces it and leaves the others.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaq_ros.errors import ConfigError
from vlaq_ros.sim.results import write_atomically

FILE_NAME = 'kernels.json'
FORMAT = 1
Row = dict[str, Any]


@dataclass
class Section:
    """One section; see the module."""

    machine: dict[str, Any]
    measured_at: str
    rows: list[Row] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    is_complete: bool = False

    def timed(self, **values: Any) -> list[Row]:
        """Return the rows with a time and with these values."""
        return [row for row in select(self.rows, **values) if row.get('seconds') is not None]


@dataclass
class Results:
    """All sections by name."""

    sections: dict[str, Section] = field(default_factory=dict)

    @staticmethod
    def load(folder: Path) -> 'Results':
        """
        Read the results in a folder; empty when there are none.

        Raises:
            ConfigError: The file is not one of these.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            return Results()
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
            if values['format'] != FORMAT:
                raise ConfigError(f'{path} has format {values["format"]}, expected {FORMAT}')
            return Results({name: Section(**entry) for name, entry in values['sections'].items()})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{path} holds no results of `vlaq bench`: {error}') from error

    def save(self, folder: Path) -> Path:
        """Write the file and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        sections = {name: vars(section) for name, section in self.sections.items()}
        lines = json.dumps({'format': FORMAT, 'sections': sections}, indent=1, allow_nan=False)
        write_atomically(folder / FILE_NAME, lines + '\n')
        return folder / FILE_NAME


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Return the rows that have all these values; `in_` stands for `in`."""
    wanted = {name.rstrip('_'): value for name, value in values.items()}
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
