"""
The process that measures: reads a job on standard input, answers with one JSON object per line.

    {"started": 2}                 step number 2 begins
    {"row": {...}}                 one measured value with everything that identifies it
    {"failed": "...", "step": 2}   the step could not be finished; the next one follows

The section is a function that gets the job and one step and yields rows. Whatever libraries print
goes to standard error.
"""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from vlaq_ros.bench.plan import Job, Step

Row = dict[str, Any]
Section = Callable[[Job, Step], Iterator[Row]]


def main() -> None:
    """Run the job on standard input."""
    answers = os.fdopen(os.dup(1), 'w', encoding='utf-8', buffering=1)
    os.dup2(2, 1)  # what a library prints must not end up between the answers
    warnings.simplefilter('ignore')  # torch announces at every call what it will remove
    job = Job.from_json(json.load(sys.stdin))
    try:
        measure = _section(job)
        for number, step in enumerate(job.steps):
            _answer(answers, started=number)
            try:
                for row in measure(job, step):
                    _answer(answers, row=row)
            except Exception as error:  # noqa: BLE001  one step that fails leaves the others
                traceback.print_exc()
                _answer(answers, failed=f'{type(error).__name__}: {error}', step=number)
    except KeyboardInterrupt:
        sys.exit(130)


def _section(job: Job) -> Section:
    import torch

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    return import_module(f'vlaq_ros.bench.{job.section}').measure_step


def _answer(stream: Any, **values: Any) -> None:
    stream.write(json.dumps(values) + '\n')
    stream.flush()


if __name__ == '__main__':
    main()
