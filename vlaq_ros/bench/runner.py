"""Run the jobs one after the other, collect their rows, and say how long it will still take."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vlaq_ros.bench.plan import Job

QUIET_S = 20.0  # between two lines where nobody sees a line change
STOP_S = 5.0
LAST_LINES = 6


class Progress:
    """One line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, jobs: Sequence[Job], stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._left_s = sum(step.expected_s for job in jobs for step in job.steps)
        self._done_s = 0.0
        self._start = time.monotonic()
        self._said_at = -QUIET_S
        self._is_open = False

    def begin(self, job: Job, name: str) -> None:
        """Say what is being measured now."""
        elapsed = time.monotonic() - self._start
        text = f'{job.title}: {name}  [{minutes(elapsed)}, about {minutes(self.left_s)} left]'
        if self._stream.isatty():
            self._stream.write(f'\r\033[K{text}')
            self._stream.flush()
            self._is_open = True
        elif time.monotonic() - self._said_at >= QUIET_S:
            self._said_at = time.monotonic()
            print(text, file=self._stream, flush=True)

    def finish(self, expected_s: float) -> None:
        """Count a step, measured or not, as done."""
        self._done_s += expected_s
        self._left_s -= expected_s

    @property
    def left_s(self) -> float:
        """Expected time left [s], at the pace so far."""
        pace = (time.monotonic() - self._start) / self._done_s if self._done_s > 0 else 1.0
        return max(self._left_s, 0.0) * pace

    def close(self) -> None:
        """End the line that is being rewritten."""
        if self._is_open:
            self._stream.write('\r\033[K')
            self._stream.flush()
            self._is_open = False


def minutes(seconds: float) -> str:
    """Return m:ss."""
    whole = round(seconds)
    return f'{whole // 60}:{whole % 60:02d}'


def run_job(
    job: Job, progress: Progress, keep_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, str]]:
    """
    Measure a job in a process of its own.

    Args:
        job: What to measure.
        progress: Told of every step.
        keep_row: Called with every row as it comes.

    Returns:
        What could not be measured: title of the job, step, reason.
    """
    failed, current = [], -1
    with tempfile.TemporaryFile('w+', encoding='utf-8') as noise, _process(job, noise) as process:
        for line in process.stdout:
            answer = json.loads(line)
            if 'started' in answer:
                if current >= 0:
                    progress.finish(job.steps[current].expected_s)
                current = answer['started']
                progress.begin(job, job.steps[current].name)
            elif 'row' in answer:
                keep_row(answer['row'])
            else:
                name = job.steps[answer['step']].name
                failed.append(_failure(job, name, answer['failed']))
        if process.wait():
            noise.seek(0)
            last = ' | '.join(noise.read().strip().splitlines()[-LAST_LINES:])
            name = job.steps[max(current, 0)].name
            failed.append(_failure(job, name, f'exit code {process.returncode}: {last}'))
    for step in job.steps[max(current, 0) :]:
        progress.finish(step.expected_s)
    return failed


@contextmanager
def _process(job: Job, noise: Any) -> Iterator[subprocess.Popen]:
    """Start the worker and hand it the job; it does not outlive this block."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'vlaq_ros.bench.worker'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        text=True,
        env={**os.environ, **job.environment()},
    )
    try:
        process.stdin.write(json.dumps(job.to_json()))
        process.stdin.close()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def _failure(job: Job, step: str, reason: str) -> dict[str, str]:
    return {'job': job.title, 'step': step, 'reason': reason}
