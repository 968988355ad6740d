"""Scripted experts become demonstrations in the units of the policy."""

import numpy as np
import pytest

from vlaq_ros.errors import ConfigError, SimulatorError
from vlaq_ros.sim.tasks import TASKS, find_task

demonstrations = pytest.importorskip(
    'vlaq_ros.sim.demonstrations', reason='needs mujoco and metaworld'
)
robot_module = pytest.importorskip('vlaq_ros.sim.robot')


@pytest.fixture(scope='module')
def episode():
    rng = np.random.default_rng(0)
    try:
        return demonstrations.demonstrate(
            robot_module.SimRobot(), find_task('reach'), 0, 0, rng, None
        )
    except SimulatorError as error:
        pytest.skip(f'MuJoCo cannot render here: {error}')


def test_actions_are_within_the_range_of_the_policy(episode):
    spec = robot_module.ACTION_SPEC
    assert (episode.actions >= np.array(spec.low) - 1e-6).all()
    assert (episode.actions <= np.array(spec.high) + 1e-6).all()
    assert episode.actions[:, :3].any()


def test_observations_are_recorded_at_every_second_step(episode):
    assert set(np.diff(episode.steps)) == {demonstrations.RECORD_EVERY}
    assert len(episode.front) == len(episode.wrist) == len(episode.state) == len(episode.steps)


def test_state_shows_the_hand_where_the_expert_moved_it(episode):
    assert np.ptp(episode.state[:, :3], axis=0).max() > 0.03


def test_environment_action_becomes_metres_and_opening():
    action = demonstrations.to_action(np.array([1.0, -0.5, 3.0, -1.0]))
    assert action == pytest.approx([0.02, -0.01, 0.02, 1.0])


def test_shards_come_back_with_the_chunk_that_follows_each_observation(episode, tmp_path):
    dataset = pytest.importorskip('vlaq_ros.sim.dataset')
    demonstrations.save(tmp_path / 'a.npz', [episode, episode])
    data = dataset.load_shards(tmp_path)
    count = len(episode.steps)
    assert len(data) == 2 * count
    assert (data.task == TASKS.index(find_task('reach'))).all()
    for row in (0, count - 1, count + 1):
        first = episode.steps[row % count]
        wanted = np.minimum(first + np.arange(dataset.HORIZON), len(episode.actions) - 1)
        assert np.array_equal(data.chunk[row], episode.actions[wanted])


def test_folder_without_shards_says_how_to_make_some(tmp_path):
    dataset = pytest.importorskip('vlaq_ros.sim.dataset')
    with pytest.raises(ConfigError, match='vlaq collect'):
        dataset.load_shards(tmp_path)
