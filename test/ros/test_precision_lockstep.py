"""In lockstep the same episode gives the same levels, however fast either side computes."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.srv', reason='needs the built services of vlaq_ros')

from std_srvs.srv import Trigger

from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.ros.conversions import to_nanoseconds

pytestmark = pytest.mark.ros
MENU = PrecisionMenu.from_names('w4a8', 'w8a16')
PERIOD_NS = 25_000_000


@pytest.fixture
def lockstep(graph, fake_policy, make_robot):
    policy, levels = fake_policy, []
    policy.levels = dict.fromkeys(('llm', 'expert'), MENU.levels)
    policy.active_levels = dict.fromkeys(policy.levels, MENU.top)
    infer = policy.infer

    def infer_and_note(observation):
        levels.append(str(policy.active_levels['llm']))
        return infer(observation)

    policy.infer = infer_and_note
    robot = make_robot()
    node = graph.policy(
        policy,
        lockstep=True,
        dynamic_precision__policy='dyq',
        dynamic_precision__levels=['w4a8', 'w8a16'],
        dynamic_precision__translation_m=0.001,
        dynamic_precision__lower_after=2,
        dynamic_precision__dwell_s=0.3,
    )
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
    robot.say('open')
    graph.spin_until(lambda: robot.statuses[-1].instruction == 'open', what='instruction')
    return robot, node, levels


def episode(robot, node, levels, delay_s):
    """Reset, step 60 times, and return the levels of the inferences."""
    del levels[:]
    robot.graph.call(robot.node, Trigger, 'policy/reset')
    for _ in range(60):
        robot.now_ns += PERIOD_NS
        robot.sense()
        robot.tell_time()
        robot.graph.spin_until(
            lambda: any(
                to_nanoseconds(m.header.stamp) == robot.now_ns for m in robot.commands()[-3:]
            ),
            what='answer',
        )
        robot.graph.spin_for(delay_s)
    return list(levels)


def test_the_same_episode_has_the_same_levels(lockstep):
    robot, node, levels = lockstep
    episode(robot, node, levels, 0.0)  # its first motion is no recovery from a stop
    fast = episode(robot, node, levels, 0.0)
    slow = episode(robot, node, levels, 0.01)
    assert fast == slow
    assert len(fast) == 10  # 60 steps, six per chunk
    assert fast[0] == 'w8a16'
    assert fast[-1] == 'w4a8'
