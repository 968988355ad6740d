"""`vlaq bench` from the command line to the files: faults, interrupts, processes that die."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vlaq_ros import cli
from vlaq_ros.bench import command, runner
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.runner import Progress, minutes, run_job


def job(section, *steps):
    return Job(section, 1, '', False, (1, 0.0), steps)


def gpu_step():
    return Step('tiny', 1.0, {'in': 8, 'out': 8, 'tokens': 1})


def quiet(*jobs):
    return Progress(jobs, io.StringIO())


def test_every_wrong_option_is_named_at_once(capsys, tmp_path):
    arguments = ['bench', 'kernel', '--shapes', '8', '--tokens', '0', '--output', str(tmp_path)]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    for fault in ("no section named 'kernel'", '--shapes', '--tokens'):
        assert fault in message
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing_is_refused(capsys, tmp_path):
    assert cli.main(['bench', '--report', '--output', str(tmp_path)]) == 2
    assert 'nothing was measured' in capsys.readouterr().err


def test_rows_of_a_process_arrive_one_by_one():
    measured = job('gpu', gpu_step(), gpu_step())
    rows = []
    assert run_job(measured, quiet(measured), rows.append) == []
    assert [row['in'] for row in rows] == [8, 8]


def test_a_step_that_fails_is_reported_and_the_next_one_runs():
    measured = job('gpu', Step('broken', 1.0, {}), gpu_step())
    rows = []
    (failure,) = run_job(measured, quiet(measured), rows.append)
    assert failure['step'] == 'broken'
    assert 'KeyError' in failure['reason']
    assert len(rows) == 1


def test_a_process_that_dies_is_a_failure_with_its_last_words():
    measured = job('no_such_section', gpu_step())
    (failure,) = run_job(measured, quiet(measured), list().append)
    assert 'exit code 1' in failure['reason']
    assert 'no_such_section' in failure['reason']


def fake_run(rows, stop_at):
    """Return a `run_job` that gives one row per job and is interrupted at one of them."""

    def run(measured, progress, keep_row):
        keep_row({'section': measured.section, 'name': 'gpu', 'seconds': None, 'reason': 'none'})
        rows.append(measured)
        if len(rows) == stop_at:
            raise KeyboardInterrupt
        return []

    return run


def test_an_interrupt_keeps_what_was_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, 'run_job', fake_run([], stop_at=1))
    assert cli.main(['bench', 'gpu', '--output', str(tmp_path)]) == command.INTERRUPTED
    stored = json.loads((tmp_path / 'kernels.json').read_text())['sections']['gpu']
    assert len(stored['rows']) == 1
    assert not stored['is_complete']
    assert 'interrupted' in capsys.readouterr().out


def test_measuring_a_section_again_leaves_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(command, 'run_job', fake_run([], stop_at=-1))
    for name in ('gpu', 'switching'):
        monkeypatch.setattr(command, 'make_tables', lambda results: [])
        monkeypatch.setattr(command, 'write_report', lambda results, folder: [])
        assert cli.main(['bench', name, '--output', str(tmp_path)]) == 0
    stored = json.loads((tmp_path / 'kernels.json').read_text())['sections']
    assert {name: entry['is_complete'] for name, entry in stored.items()} == {
        'gpu': True,
        'switching': True,
    }


def test_the_gpu_section_runs_from_end_to_end(tmp_path, capsys):
    arguments = ['gpu', '--shapes', '64x32', '--tokens', '1', '--output', str(tmp_path)]
    assert cli.main(['bench', *arguments]) == 0
    assert (tmp_path / 'kernels.md').is_file()
    assert 'GPU' in capsys.readouterr().out


def test_ctrl_c_ends_the_measuring_process_too(tmp_path):
    """An orphan would go on burning the core that the next measurement needs."""
    code = 'import sys; from vlaq_ros.cli import main; sys.exit(main(sys.argv[1:]))'
    arguments = ['bench', 'kernels', '--threads', '1', '--rivals', 'torch']
    arguments += ['--shapes', '256x128', '--tokens', '1,2,3,4,5,6,7,8', '--output', str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, '-c', code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if 'kernels: ' in line:
            break
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == command.INTERRUPTED, rest
    assert (tmp_path / 'kernels.json').is_file()
    with pytest.raises(ProcessLookupError):  # nobody is left in the group
        os.killpg(process.pid, 0)


def test_the_time_left_follows_the_pace_so_far(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runner.time, 'monotonic', lambda: now[0])
    measured = job('gpu', *[Step(str(i), 10.0) for i in range(4)])
    progress = quiet(measured)
    assert progress.left_s == 40.0
    now[0] += 20.0  # twice as slow as expected
    progress.finish(10.0)
    assert progress.left_s == 60.0
    for _ in range(3):
        progress.finish(10.0)
    assert progress.left_s == 0.0


def test_lines_are_few_where_nobody_watches(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runner.time, 'monotonic', lambda: now[0])
    measured = job('gpu', gpu_step())
    stream = io.StringIO()
    progress = Progress([measured], stream)
    for second in range(60):
        now[0] = float(second)
        progress.begin(measured, 'tiny')
    assert len(stream.getvalue().splitlines()) == 60 / runner.QUIET_S


def test_minutes_are_readable():
    assert [minutes(s) for s in (0.2, 59.6, 61, 3600)] == ['0:00', '1:00', '1:01', '60:00']
