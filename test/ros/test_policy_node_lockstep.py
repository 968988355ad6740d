"""Lockstep over DDS: each complete observation is answered once, and nothing else is sent."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from std_srvs.srv import Trigger

from vlaq_ros.control.chunk_player import ChunkPlayer
from vlaq_ros.ros.conversions import to_nanoseconds
from vlaq_ros.types import Observation

pytestmark = pytest.mark.ros
PERIOD_NS = 25_000_000


@pytest.fixture
def lockstep(graph, fake_policy, make_robot):
    robot = make_robot()
    node = graph.policy(fake_policy, lockstep=True)
    assert node.bring_up(), node.failure
    publishers = [*robot.cameras.values(), robot.pose_pub, robot.joint_pub, robot.text_pub]
    graph.spin_until(
        lambda: (
            all(p.get_subscription_count() for p in publishers)
            and node._outputs.has_listeners()
            and robot.statuses
        ),
        what='discovery',
    )
    return robot, node


def stamps(robot, kind):
    return [to_nanoseconds(msg.header.stamp) for msg in robot.commands(kind)]


def step(robot):
    robot.now_ns += PERIOD_NS
    robot.sense()
    robot.tell_time()
    robot.graph.spin_until(lambda: robot.now_ns in stamps(robot, 'twist'), what='answer')


def test_every_stamp_is_answered_once_with_the_actions_of_the_loop_without_ros(
    lockstep, fake_policy, spec
):
    robot, _ = lockstep
    robot.say('open')
    first_ns = robot.now_ns + PERIOD_NS
    for _ in range(20):
        step(robot)
        robot.sense()  # sent again, as after a lost answer
    robot.graph.spin_for(0.1)
    fresh = type(fake_policy)()
    expected = [first_ns + k * PERIOD_NS for k in range(20)]
    assert stamps(robot, 'twist') == stamps(robot, 'gripper') == expected
    player, speeds = ChunkPlayer(spec.action, spec.execution_horizon), []
    for now_ns in expected:
        if player.needs_inference(now_ns):
            player.clear(0)
            player.accept(fresh.infer(Observation({}, [0.0] * 4, 'open', now_ns)))
        speeds.append(player.action_at(now_ns)[0] / 0.025)
    assert [m.twist.linear.x for m in robot.commands()] == pytest.approx(speeds)
    assert len(fake_policy.observations) == 4  # 20 steps, six per chunk


def test_without_a_sentence_there_is_no_answer_and_the_waiting_stamp_is_answered_after_it(
    lockstep,
):
    robot, _ = lockstep
    robot.now_ns += PERIOD_NS
    robot.sense()
    robot.tell_time()
    robot.graph.spin_until(lambda: 'none given' in robot.statuses[-1].reason, what='reason')
    assert robot.sent == []
    robot.say('open')
    robot.graph.spin_until(lambda: stamps(robot, 'twist') == [robot.now_ns], what='answer')


def test_a_refused_sentence_gets_no_answer_and_the_next_one_does(lockstep, fake_policy):
    """It was handed to the policy again and again until there were too many failures."""
    robot, node = lockstep
    fake_policy.unknown = ('fly',)
    robot.say('fly')
    robot.now_ns += PERIOD_NS
    robot.sense()
    robot.tell_time()
    robot.graph.spin_until(
        lambda: robot.statuses[-1].reason.startswith('instruction refused'), what='reason'
    )
    assert robot.sent == []
    assert fake_policy.observations == []
    robot.say('open')
    robot.graph.spin_until(lambda: stamps(robot, 'twist') == [robot.now_ns], what='answer')
    assert node._loop.counts['failed inferences'] == 0


def test_an_incomplete_observation_is_not_answered(lockstep):
    robot, _ = lockstep
    robot.say('open')
    step(robot)
    robot.now_ns += PERIOD_NS
    robot.sense(cameras=('front',))
    robot.tell_time()
    robot.graph.spin_for(0.3)
    assert robot.now_ns not in stamps(robot, 'twist')
    robot.sense(cameras=('wrist',), pose=False, joints=False)
    robot.graph.spin_until(lambda: robot.now_ns in stamps(robot, 'twist'), what='answer')


def test_after_a_reset_the_next_observation_gets_a_new_inference(lockstep, fake_policy):
    robot, _ = lockstep
    robot.say('open')
    step(robot)
    robot.graph.call(robot.node, Trigger, 'policy/reset')
    count = len(fake_policy.observations)
    step(robot)
    assert len(fake_policy.observations) == count + 1
    assert fake_policy.resets == 2


def test_a_simulator_that_starts_again_is_answered_from_its_first_stamp(lockstep):
    robot, _ = lockstep
    robot.say('open')
    step(robot)
    step(robot)
    robot.sent.clear()
    robot.now_ns = PERIOD_NS
    for _ in range(3):
        step(robot)
    assert stamps(robot, 'twist') == [2 * PERIOD_NS, 3 * PERIOD_NS, 4 * PERIOD_NS]


def test_a_refused_chunk_is_not_answered_and_reported(lockstep, fake_policy):
    robot, node = lockstep
    fake_policy.change = lambda actions: actions * float('nan')
    robot.say('open')
    robot.now_ns += PERIOD_NS
    robot.sense()
    robot.tell_time()
    robot.graph.spin_until(lambda: 'not finite' in robot.statuses[-1].reason, what='fault')
    robot.graph.spin_for(0.1)
    assert robot.sent == []


def test_lockstep_needs_simulated_time(graph, fake_policy):
    node = graph.policy(fake_policy, lockstep=True, use_sim_time=False)
    assert not node.bring_up()
    assert "'lockstep' = True needs 'use_sim_time' = True" in node.failure
    assert node.lifecycle == 'unconfigured'
