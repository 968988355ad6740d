"""
`vlaq calibrate` as a process of its own: what it says while it runs, and how it ended.

The tensors live there and not in a node: it can be ended at any time, its memory is gone with it,
and a callback never waits for it.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlaq_ros.ros.bringup import end_group, start_bound

PASSED, MISSED, INTERRUPTED = 0, 1, 130
_PATIENCE_S = 10.0
_LINES = 12


class CalibrationProcess:
    """
    One run.

    Args:
        arguments: Options of `vlaq calibrate`.
        log: File for everything it says.
        environment: Environment variables of the process.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        command = [sys.executable, '-m', 'vlaq_ros.cli', 'calibrate', *arguments]
        with log.open('wb') as file:
            self._process = start_bound(
                [*command, '--progress', 'json'], stdout=file, environment=environment
            )
        self._log = log.open('rb')
        self._rest = b''
        self._words: list[str] = []
        self._asked_at: float | None = None

    def standings(self) -> list[dict[str, Any]]:
        """Return what was said about progress since the last call, oldest first."""
        found = []
        lines = (self._rest + self._log.read()).split(b'\n')
        self._rest = lines.pop()
        for line in lines:
            text = line.decode(errors='replace')
            try:
                found.append(json.loads(text) if text.startswith('{') else None)
            except ValueError:
                found.append(None)
            if found[-1] is None:
                found.pop()
                self._words = [*self._words, text][-_LINES:]
        return found

    def status(self) -> int | None:
        """Return the exit status, None while it runs; insists where asking was not enough."""
        late = self._asked_at is not None and time.monotonic() - self._asked_at > _PATIENCE_S
        if late and self._process.poll() is None:
            end_group(self._process)
        return self._process.poll()

    def words(self) -> str:
        """Return the last lines that were not about progress."""
        text = '\n'.join(self._words).strip()
        return text.removeprefix('vlaq: ') or 'it said nothing'

    def ask_to_end(self) -> None:
        """Ask it to end soon, keeping what it has finished."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End it now, and everything it has started."""
        end_group(self._process)
        self._log.close()
