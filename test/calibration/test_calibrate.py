"""`vlaq calibrate`: killed and resumed, short of disk, interrupted, and what it tells."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from vlaq_ros import cli
from vlaq_ros.calibration.checkpoint import WorkFolder, digest_of
from vlaq_ros.calibration.methods import METHODS, bind_method, find_method, option_names
from vlaq_ros.calibration.progress import STAGES, Progress
from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy


@pytest.fixture
def arguments(tiny_bundle, tiny_bag, tmp_path):
    """Options of a small calibration to `<tmp_path>/packed`."""
    return [
        *('--bag', str(tiny_bag), '--bundle', str(tiny_bundle), '--method', 'gptq'),
        *('--bits', '5', '--group-size', '16', '--samples', '16', '--held-out', '8'),
        *('--tolerance', 'drift_m=1', 'gripper=1', '--out', str(tmp_path / 'packed')),
    ]


def start(arguments, before=None):
    return subprocess.Popen(
        [sys.executable, '-m', 'vlaq_ros.cli', 'calibrate', *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
        env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
    )


def test_it_calibrates_and_says_what_came_of_it(arguments, tmp_path, capsys):
    assert cli.main(['calibrate', *arguments]) == 0
    text = capsys.readouterr().out
    assert 'PASSED: within the tolerance' in text
    assert '(5' in text or 'budget 5' in text
    assert load_policy(tmp_path / 'packed').self_test().passed
    assert not (tmp_path / 'packed.work').exists()


def test_a_missed_tolerance_is_exit_code_1_with_a_bundle_all_the_same(arguments, tmp_path, capsys):
    code = cli.main(['calibrate', *arguments, '--tolerance', 'drift_m=1e-9', '--promotions', '0'])
    assert code == 1
    assert 'MISSED the tolerance' in capsys.readouterr().out
    assert not open_bundle(tmp_path / 'packed').quantization['within_tolerance']


def test_a_killed_run_leaves_no_bundle_and_goes_on_to_the_same_bytes(arguments, tmp_path):
    packed, whole = tmp_path / 'packed', tmp_path / 'whole'
    process = start([*arguments, '--progress', 'json'])
    for line in process.stdout:
        if json.loads(line)['stage'] == 'verification':
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not packed.exists()
    again = start(arguments)
    assert '--resume' in again.communicate()[1]
    assert again.returncode == 2
    assert cli.main(['calibrate', *arguments, '--resume']) == 0
    assert cli.main(['calibrate', *arguments[:-1], str(whole)]) == 0
    assert open_bundle(packed).digest == open_bundle(whole).digest


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM], ids=['Ctrl-C', 'terminate'])
def test_an_interrupt_says_how_to_go_on(arguments, tmp_path, signum):
    process = start([*arguments, '--progress', 'json'])
    for line in process.stdout:
        if json.loads(line)['stage'] == 'sensitivity':
            break
    process.send_signal(signum)
    _, words = process.communicate()
    assert process.returncode == 130
    assert '--resume' in words
    assert 'Traceback' not in words
    assert not (tmp_path / 'packed').exists()


def test_a_full_disk_is_reported_with_what_to_do(arguments, tmp_path):
    def allow_small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    process = start(arguments, allow_small_files_only)
    _, words = process.communicate()
    assert process.returncode == 2, words
    assert 'cannot be written' in words
    assert 'Free some space' in words
    assert '--resume' in words
    assert not (tmp_path / 'packed').exists()


def test_progress_as_json_names_stages_in_order(arguments, capsys):
    assert cli.main(['calibrate', *arguments, '--progress', 'json']) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(line['stage'] for line in lines)) == list(STAGES)
    assert all(0 <= line['done'] <= line['total'] for line in lines)
    assert lines[0]['remaining_s'] < 0  # nothing is known before the first run
    assert lines[-1]['remaining_s'] == 0.0


def test_an_unknown_method_names_the_nearest(arguments, capsys):
    arguments[arguments.index('gptq')] = 'gtpq'
    assert cli.main(['calibrate', *arguments]) == 2
    assert "Did you mean 'gptq'" in capsys.readouterr().err


def test_a_malformed_pair_is_refused(arguments, capsys):
    code = cli.main(['calibrate', *arguments, '--option', 'mode', '--tolerance', 'drift=1'])
    assert code == 2
    message = capsys.readouterr().err
    assert "--option 'mode': write NAME=VALUE" in message
    assert 'drift_m, drift_rad, gripper' in message


def test_help_lists_every_method_with_its_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(['calibrate', '--help'])
    text = capsys.readouterr().out
    for name, row in METHODS.items():
        assert name in text
        assert row.summary in text


@pytest.mark.parametrize('name', METHODS)
def test_every_method_of_the_table_exists_and_its_defaults_can_be_said(name):
    options = {
        option: str(default).lower() if isinstance(default, bool) else str(default)
        for option, default in option_names(name).items()
    }
    assert callable(bind_method(name, options))
    assert find_method(name.replace('_', '-')) == METHODS[name]


def test_an_unknown_option_lists_those_there_are():
    with pytest.raises(ConfigError, match='Known: clip, act_order'):
        bind_method('gptq', {'order': 'true'})


def test_a_part_is_found_under_the_same_digest_only(tmp_path):
    import torch

    made = []

    def make():
        made.append(len(made))
        return {'x': torch.arange(3.0)}, {'n': len(made)}

    folder = WorkFolder(tmp_path, {'policy': 'a'})
    first = folder.recall('part', {'bits': 4}, make)
    again = WorkFolder(tmp_path, {'policy': 'a'}).recall('part', {'bits': 4}, make)
    assert torch.equal(first[0]['x'], again[0]['x'])
    assert (again[1], made) == ({'n': 1}, [0])
    folder.recall('part', {'bits': 8}, make)
    WorkFolder(tmp_path, {'policy': 'b'}).recall('part', {'bits': 4}, make)
    assert made == [0, 1, 2]


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ({'a': 1}, {'a': 1.0}),
        ({'a': [1, 2]}, {'a': [12]}),
        ({'a': ['b', 'c']}, {'a': ['bc']}),
        ({'a': None}, {'a': 'None'}),
        ({'a': {'b': 1}, 'c': 2}, {'a': {'b': 1, 'c': 2}}),
    ],
    ids=['type', 'length', 'join', 'none', 'nesting'],
)
def test_what_differs_has_another_digest(one, other):
    assert digest_of(one) != digest_of(other)


def test_the_order_of_a_table_has_no_digest():
    assert digest_of({'a': 1, 'b': 2}) == digest_of({'b': 2, 'a': 1})


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_time_left_is_that_of_the_runs_left_at_the_pace_so_far():
    clock, told = Clock(), []
    progress = Progress(told.append, clock)
    progress.expect({'method': 10, 'packing': 5})
    progress.begin('method', 10)
    assert progress.remaining_s < 0.0
    for _ in range(4):
        clock.now += 2.0
        progress.step()
    assert progress.remaining_s == pytest.approx((6 + 5) * 2.0)
    progress.begin('packing', 5)
    assert progress.remaining_s == pytest.approx(5 * 2.0)
    progress.end()
    assert progress.remaining_s == 0.0
    assert progress.spent_s['method'] == pytest.approx(8.0)


def test_more_steps_than_announced_do_not_count_backwards():
    clock, told = Clock(), []
    progress = Progress(told.append, clock)
    progress.begin('verification', 1)
    for _ in range(3):
        clock.now += time.get_clock_info('monotonic').resolution + 1.0
        progress.step()
    assert [(s.done, s.total) for s in told][-1] == (3, 3)
