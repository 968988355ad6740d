"""Training on a handful of demonstrations: it learns, resumes, and leaves a bundle that loads."""

import argparse
import json

import numpy as np
import pytest

from vlaq_ros.errors import ConfigError, MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.sim import train
from vlaq_ros.sim.demonstrations import Demonstration, save
from vlaq_ros.sim.reproduce import finish
from vlaq_ros.sim.robot import CAMERAS


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Noise for pictures, and one constant action per task: enough to be learned by heart."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp('shards')
    episodes = []
    for task in (0, 1):
        images = {n: rng.integers(0, 255, (4, c.height, c.width, 3)) for n, c in CAMERAS.items()}
        actions = np.tile([0.01 * (1 - 2 * task), 0.0, 0.005, float(task)], (8, 1))
        episodes.append(
            Demonstration(
                task,
                np.arange(0, 8, 2),
                images['front'].astype(np.uint8),
                images['wrist'].astype(np.uint8),
                rng.normal(size=(4, 4)).astype(np.float32),
                rng.normal(size=(4, 6)).astype(np.float32),
                actions.astype(np.float32),
            )
        )
    save(folder / 'a.npz', episodes)
    return folder


def options(shards, out, *extra):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    fixed = ['--batch', '8', '--processes', '1', '--save-every', '5']
    return parser.parse_args([str(shards), str(out), *fixed, *extra])


@pytest.fixture(scope='module')
def trained(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    train.run(options(shards, out, '--steps', '30', '--stop-after', '10'))
    train.run(options(shards, out, '--steps', '30', '--resume'))
    return out


def test_a_stopped_run_goes_on_to_the_last_step(trained):
    spec = json.loads((trained / 'bundle' / 'policy.json').read_text())
    assert spec['provenance']['steps'] == 30


def test_the_losses_fall(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'LOG_EVERY', 20)
    monkeypatch.setattr(train, 'WARM_UP_STEPS', 5)
    train.run(options(shards, tmp_path, '--steps', '60'))
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [20, 40, 60]
    assert lines[-1]['token'] < 0.7 * lines[0]['token']
    assert lines[-1]['flow'] < lines[0]['flow']


def test_the_bundle_loads_and_passes_its_self_test_once_finished(trained, tmp_path):
    finish(trained / 'bundle', tmp_path / 'bundle')
    for precision in ('fp32', 'w8'):
        policy = load_policy(tmp_path / 'bundle', precision=precision)
        chunk = policy.infer(synthetic_observation(policy.spec, 'reach the goal'))
        assert np.isfinite(chunk.actions).all()
        assert 'golden' in [name for name, _, _ in policy.self_test().checks]


def test_two_processes_train_together(shards, tmp_path):
    args = options(shards, tmp_path, '--steps', '2')
    args.processes = 2
    train.run(args)
    assert (tmp_path / 'bundle' / 'MANIFEST.json').exists()


def test_an_earlier_run_is_not_overwritten(trained, shards):
    with pytest.raises(ConfigError, match='--resume'):
        train.run(options(shards, trained, '--steps', '5'))
