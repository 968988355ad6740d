"""`vlaq eval`: options are checked first, results repeat, nothing is lost or left behind."""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vlaq_ros.errors import ConfigError, MissingDependencyError, SimulatorError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.sim import evaluate, workers
from vlaq_ros.sim.results import Config, ResultStore
from vlaq_ros.sim.rollout import default_episodes
from vlaq_ros.sim.source import PolicySource

OPTIONS = [
    *('--bundle', 'toy', '--configs', 'w4:flow', '--tasks', 'reach', '--per-task', '2'),
    *('--open-loop', '1', '--processes', '1'),
]


def whole_process(test):
    """Mark a test that starts workers, each of which imports the simulator."""
    return pytest.mark.slow(pytest.mark.timeout(300)(test))


def parse(*options):
    """Return parsed options."""
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


@pytest.fixture(scope='module')
def finished(simulator, tmp_path_factory):
    """Return the folder of a finished run of two episodes."""
    folder = tmp_path_factory.mktemp('eval')
    assert evaluate.run(parse(*OPTIONS, '--out', folder)) == 0
    return folder


def read(folder, name):
    """Return the lines of one result file without the times, which are never the same."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    for line in lines:
        line.pop('inference_s')
    return sorted(lines, key=lambda line: line['index'])


def wait_for(condition, seconds):
    """Return whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


def group_members(group):
    """Return the command lines of the living processes of a process group."""
    members = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            state, _, owner = (path / 'stat').read_text().rpartition(')')[2].split()[:3]
            if int(owner) == group and state != 'Z':
                members.append((path / 'cmdline').read_text().replace('\0', ' '))
        except OSError:  # it ended meanwhile
            continue
    return members


def test_every_wrong_option_is_listed_before_anything_runs(tmp_path):
    args = parse(
        *('--bundle', 'toy', '--configs', 'w3:flow', 'w4:flw', 'w4', 'fp32:flow'),
        *('--tasks', 'reach', 'pusch', '--per-task', 0, '--seed', 11, '--processes', 0),
        *('--execution-horizon', 99, '--out', tmp_path / 'out'),
    )
    with pytest.raises(ConfigError) as raised:
        evaluate.run(args)
    for text in (
        "'w3:flow': no precision named 'w3'. Known: fp32, bf16, w8, w8a8, w4, w4a8",
        "'w4:flw': no head named 'flw'. Known: flow, token. Did you mean 'flow'?",
        "'w4': write PRECISION:HEAD",
        "--tasks 'pusch' is unknown",
        "Did you mean 'push'?",
        '--per-task 0: must be at least 1',
        '--processes 0: must be at least 1',
        '--seed 11: seeds below 100 belong to training',
        '--execution-horizon 99: a chunk of',
    ):
        assert text in str(raised.value)
    assert not (tmp_path / 'out').exists()


def test_an_unknown_bundle_is_listed_with_the_other_problems():
    args = parse('--bundle', 'nowhere', '--tasks', 'juggle')
    with pytest.raises(ConfigError, match="(?s)no bundle at 'nowhere'.*'juggle' is unknown"):
        evaluate.make_plan(args)


def test_missing_references_are_added_in_front_of_their_head():
    plan = evaluate.make_plan(parse('--bundle', 'toy', '--configs', 'w8:token', 'w4:flow'))
    names = [config.name for config in plan.configs]
    assert names == ['fp32:token', 'w8:token', 'fp32:flow', 'w4:flow']
    assert [config.name for config in plan.added] == ['fp32:token', 'fp32:flow']


def test_listed_references_are_not_added_again():
    plan = evaluate.make_plan(parse('--bundle', 'toy', '--configs', 'w8:flow', 'fp32:flow'))
    assert [config.name for config in plan.configs] == ['fp32:flow', 'w8:flow']
    assert plan.added == ()


@whole_process
def test_a_run_writes_its_report_and_the_added_reference(finished):
    report = json.loads((finished / 'report.json').read_text())
    assert [row['config'] for row in report['success_and_drift']] == ['fp32:flow', 'w4:flow']
    assert {path.name for path in finished.glob('*.jsonl')} == {
        'fp32-flow.jsonl',
        'w4-flow.jsonl',
    }
    assert report['run']['bundle']['name']
    assert report['run']['cpu']
    w4 = report['success_and_drift'][1]
    assert w4['closed_loop']['episodes'] == 2
    assert w4['open_loop']['episodes'] == 1
    assert w4['open_loop']['position_per_step_m'] > 0
    assert w4['open_loop']['rotation_per_step_rad'] is None


@whole_process
def test_resuming_a_finished_run_starts_no_worker(finished, monkeypatch):
    monkeypatch.setattr(workers, 'WorkerPool', None)
    assert evaluate.run(parse(*OPTIONS, '--out', finished, '--resume')) == 0


@whole_process
def test_a_resumed_run_gives_the_same_episodes_in_a_new_process(finished):
    """Half of the second file is lost; its reference must be replayed for the open loop."""
    before = read(finished, 'w4-flow.jsonl')
    path = finished / 'w4-flow.jsonl'
    lost = [line for line in path.read_text().splitlines(True) if '"index":0' not in line]
    path.write_text(''.join(lost) + '{"torn')
    assert evaluate.run(parse(*OPTIONS, '--out', finished, '--resume')) == 0
    assert read(finished, 'w4-flow.jsonl') == before


def test_the_rounding_toy_equals_the_reference_where_rounding_does_nothing(robot):
    """A no-op: the reference compared with itself has no drift at all."""
    runner = workers.EpisodeRunner(PolicySource('toy'))
    episode = default_episodes(('reach',), 1)[0]
    config = Config('fp32', 'flow')
    list(runner.run(workers.Job(episode, (config,), open_loop=True)))
    reference = runner._roll_out(config, workers.Job(episode, (), True), keep=True)
    drift = runner._replay(config, reference)
    assert drift['position_per_step_m'] == drift['position_accumulated_m'] == 0.0
    assert drift['steps'] == reference.steps
    assert 'rotation_per_step_rad' not in drift


def test_a_policy_that_refuses_to_act_fails_the_episode(robot, monkeypatch):
    from vlaq_ros.errors import PolicyError
    from vlaq_ros.policies.toy import ToyPolicy

    whole = ToyPolicy.infer

    def infer(self, observation):
        if self.precision == 'w4':
            raise PolicyError('actions are not finite')
        return whole(self, observation)

    monkeypatch.setattr(ToyPolicy, 'infer', infer)
    episode = default_episodes(('reach',), 1)[0]
    configs = (Config('w4', 'flow'), Config('fp32', 'flow'))
    job = workers.Job(episode, configs, open_loop=False)
    messages = list(workers.EpisodeRunner(PolicySource('toy')).run(job))
    records = {m.config: m.record for m in messages if isinstance(m, workers.Finished)}
    assert records[Config('w4', 'flow')].stopped == 'actions are not finite'
    assert not records[Config('w4', 'flow')].success
    assert records[Config('fp32', 'flow')].stopped == ''


@whole_process
def test_an_error_in_a_worker_reaches_the_user(simulator):
    job = workers.Job(default_episodes(('reach',), 1)[0], (Config('fp32', 'nose'),), False)
    source = PolicySource('toy')
    with workers.WorkerPool(1, source) as pool, pytest.raises(ConfigError, match="'nose'"):
        list(pool.run([job]))
    assert not multiprocessing.active_children()


@whole_process
def test_a_worker_that_dies_is_reported_with_its_episode(simulator):
    configs = (Config('fp32', 'flow'), Config('w8', 'flow'))
    jobs = [workers.Job(e, configs, False) for e in default_episodes(('reach',), 50)]
    with workers.WorkerPool(1, PolicySource('toy')) as pool:
        messages = pool.run(jobs)
        next(messages)
        multiprocessing.active_children()[0].kill()
        with pytest.raises(SimulatorError, match="exit status -9 .*task='reach'"):
            list(messages)
    assert not multiprocessing.active_children()


@whole_process
def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(simulator, tmp_path):
    options = [*OPTIONS, '--per-task', '50', '--processes', '2', '--out', str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, '-c', 'from vlaq_ros.cli import main; raise SystemExit(main())']
        + ['eval', *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert wait_for((tmp_path / 'w4-flow.jsonl').exists, 120)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == evaluate.INTERRUPTED
    assert 'are kept in' in output
    assert '--resume' in output
    assert wait_for(lambda: not group_members(process.pid), 10), group_members(process.pid)
    identity = json.loads((tmp_path / 'run.json').read_text())['identity']
    records = ResultStore(tmp_path, identity, 'resume').records
    assert records[Config('w4', 'flow')]
    assert all(np.isfinite(r.positions).all() for r in records[Config('w4', 'flow')].values())
