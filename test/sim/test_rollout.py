"""Closed-loop episodes: pairing, determinism, and when the policy is asked."""

import numpy as np
import pytest

from vlaq_ros.errors import MissingDependencyError, SimulatorError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.sim.rollout import Episode, default_episodes, run_episode
from vlaq_ros.sim.tasks import find_task

REACH = Episode('reach', 100, 0, 'reach the goal')


def test_fewer_episodes_per_task_are_a_prefix():
    many = default_episodes(('reach', 'push'), 34)
    assert many[:20] == default_episodes(('reach', 'push'), 10)
    assert len(set(many)) == 68


def test_the_training_sentences_take_turns():
    sentences = [e.instruction for e in default_episodes(('reach',), 4)]
    assert sentences[:3] == list(find_task('reach').sentences)
    assert sentences[3] == sentences[0]


def test_the_held_out_sentence_is_none_of_the_training_sentences():
    for episode in default_episodes(('reach', 'drawer-open'), 2, instruction='held-out'):
        assert episode.instruction == find_task(episode.task).held_out


def test_the_wrong_sentence_belongs_to_the_opposite_task():
    for episode in default_episodes(('drawer-open', 'window-open'), 3, instruction='wrong'):
        opposite = find_task(find_task(episode.task).opposite)
        assert episode.instruction in opposite.sentences


def test_the_next_seed_follows_after_fifty_variants():
    episodes = default_episodes(('reach',), 52, seed=100)
    assert (episodes[49].seed, episodes[49].index) == (100, 49)
    assert (episodes[50].seed, episodes[50].index) == (101, 0)


def test_an_unknown_task_is_refused_with_the_known_names():
    with pytest.raises(SimulatorError, match="no task named 'juggle'.*reach"):
        default_episodes(('juggle',), 1)


def test_the_policy_is_asked_once_per_execution_horizon(robot, constant_policy):
    policy = constant_policy()
    result = run_episode(robot, policy, REACH, execution_horizon=5)
    assert result.steps == find_task('reach').max_steps == 80
    assert not result.success
    assert policy.inferences == len(result.chunks) == 16
    assert [chunk.sequence for chunk in result.chunks] == list(range(16))
    assert result.stage_s['action'] == (0.002,) * 16
    assert policy.resets == 1


def test_positions_start_at_the_reset_and_follow_the_commands(robot, constant_policy):
    result = run_episode(robot, constant_policy(delta=(0.0, 0.0, -0.004)), REACH)
    assert result.positions.shape == (result.steps + 1, 3)
    assert result.actions.shape == (result.steps, 4)
    moved = result.positions[10] - result.positions[0]
    assert moved[2] == pytest.approx(-0.04, abs=0.015)
    np.testing.assert_allclose(result.actions[0], [0.0, 0.0, -0.004, 1.0])


def test_observations_are_kept_only_when_asked_for(robot, constant_policy):
    assert run_episode(robot, constant_policy(), REACH).observations == ()
    kept = run_episode(robot, constant_policy(), REACH, keep_observations=True)
    assert len(kept.observations) == len(kept.chunks)
    for observation, chunk in zip(kept.observations, kept.chunks):
        assert observation.observed_ns == chunk.observed_ns


def test_on_step_sees_every_step(robot, constant_policy):
    seen = []
    result = run_episode(
        robot, constant_policy(), REACH, on_step=lambda robot, chunk: seen.append(robot.step_count)
    )
    assert seen == list(range(result.steps))


@pytest.mark.parametrize('task', ['reach', 'drawer-open', 'button-press-topdown'])
def test_the_scripted_expert_succeeds_and_the_episode_ends_there(robot, expert_policy, task):
    episode = Episode(task, 100, 3, find_task(task).sentences[0])
    result = run_episode(robot, expert_policy, episode)
    assert result.success
    assert result.steps < find_task(task).max_steps


def test_an_episode_does_not_depend_on_what_ran_before(robot, expert_policy):
    """Pairing rests on this: the same start and actions give the same bits."""
    first = run_episode(robot, expert_policy, REACH, keep_observations=True)
    run_episode(robot, expert_policy, Episode('push', 100, 1, 'push the puck to the goal'))
    run_episode(robot, expert_policy, Episode('reach', 101, 7, 'reach the goal'))
    again = run_episode(robot, expert_policy, REACH, keep_observations=True)
    assert np.array_equal(first.positions, again.positions)
    for left, right in zip(first.observations, again.observations):
        assert np.array_equal(left.state, right.state)
        for name in left.images:
            assert np.array_equal(left.images[name], right.images[name])
