"""What the inference thread does for one request, without the thread."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from vlaq_ros.errors import PolicyError, StaleInputError
from vlaq_ros.ros.inference import Inference, Request
from vlaq_ros.types import Observation, Pose

PERIOD_NS = 25_000_000


class Senses:
    """One observation, seen `age_ns` before it is asked for; in the place of `Inputs`."""

    age_ns, problem, is_measured = 0, '', True

    def observation(self, now_ns):
        if self.problem:
            raise StaleInputError(self.problem)
        return Observation({}, np.zeros(4), 'open', now_ns - self.age_ns)

    def pose(self, now_ns):
        return Pose(np.array([now_ns * 1e-9, 0.0, 0.0])) if self.is_measured else None


@pytest.fixture
def bench(fake_policy):
    """Return the inference between fakes, and in order what was done."""
    senses, done = Senses(), []
    reset = fake_policy.reset
    fake_policy.reset = lambda: (done.append('reset'), reset())

    def infer(observation, now_ns):
        done.append(('infer', now_ns))
        return fake_policy.infer(observation)

    def beside(observation, epoch):
        done.append(('beside', observation.observed_ns, epoch))

    inference = Inference(fake_policy, senses, infer, beside)
    return SimpleNamespace(inference=inference, senses=senses, done=done, policy=fake_policy)


def ask(bench, now_ns=PERIOD_NS, epoch=1, last_observed_ns=None, needs_pose=False):
    return bench.inference.answer(Request(now_ns, epoch, last_observed_ns, needs_pose))


def test_the_answer_carries_its_epoch_and_where_the_arm_was_when_it_was_seen(bench):
    bench.senses.age_ns = 5_000_000
    chunk, start, observation = ask(bench, epoch=7)
    assert (chunk.epoch, chunk.observed_ns) == (7, 20_000_000)
    assert observation is bench.policy.observations[0]
    assert start.position[0] == pytest.approx(0.020)


def test_the_policy_is_reset_once_per_epoch_before_it_looks(bench):
    for epoch in (1, 1, 2):
        ask(bench, epoch=epoch)
    kinds = [done if done == 'reset' else done[0] for done in bench.done]
    assert kinds == ['reset', *['infer', 'beside'] * 2, 'reset', 'infer', 'beside']


def test_an_observation_that_was_answered_is_not_inferred_again(bench):
    assert ask(bench, last_observed_ns=PERIOD_NS) is None
    assert bench.done == ['reset']
    assert ask(bench, last_observed_ns=0) is not None


def test_a_pose_that_is_needed_and_not_known_is_missed_before_the_inference(bench):
    bench.senses.is_measured = False
    with pytest.raises(StaleInputError, match='no measured pose at the time of the observation'):
        ask(bench, needs_pose=True)
    assert bench.policy.observations == []
    assert ask(bench).start is None  # twists do without


def test_the_reference_answers_after_the_policy_and_not_for_a_failed_inference(bench):
    ask(bench, epoch=3)
    assert bench.done[-2:] == [('infer', PERIOD_NS), ('beside', PERIOD_NS, 3)]
    bench.policy.error = PolicyError('broken')
    with pytest.raises(PolicyError, match='broken'):
        ask(bench, epoch=3)
    assert bench.done[-1] == ('infer', PERIOD_NS)


def test_inputs_that_are_missing_are_told_as_they_are(bench):
    bench.senses.problem = 'front: 300 ms old, limit 250 ms'
    with pytest.raises(StaleInputError, match='front: 300 ms old'):
        ask(bench)
    assert bench.policy.observations == []
