"""In lockstep every chunk has a reading before the next decision, and the same ones every time."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from vlaq_ros.kinematics.drift import open_loop_drift
from vlaq_ros.policies.toy import ToyPolicy
from vlaq_ros.ros.conversions import chunk_from_message, to_nanoseconds
from vlaq_ros.ros.interfaces import DriftReport, PolicyStatus
from vlaq_ros.types import Observation

pytestmark = pytest.mark.ros
PERIOD_NS = 25_000_000
STEPS, ROWS = 60, 6


@pytest.fixture
def lockstep(graph, spec, make_robot):
    """Return a function that brings up robot and node with the toy policy and its own levels."""

    def bring_up(source, precision='w4', **drift):
        robot, said = make_robot(), []
        given = {'source': source, 'window_s': 0.3, **drift}
        node = graph.policy(
            ToyPolicy(spec, precision),
            shadow=ToyPolicy(spec, 'fp32'),
            lockstep=True,
            self_test=False,  # it needs two words, and this spec has one
            **{f'drift__{name}': value for name, value in given.items()},
        )
        assert node.bring_up(), node.failure
        robot.node.create_subscription(DriftReport, 'policy/drift', said.append, 50)
        publishers = [*robot.cameras.values(), robot.pose_pub, robot.joint_pub, robot.text_pub]
        graph.spin_until(
            lambda: (
                all(p.get_subscription_count() for p in publishers)
                and node._outputs.has_listeners()
                and node.count_subscribers('policy/drift')
                and robot.statuses
            ),
            what='discovery',
        )
        robot.say('open')
        graph.spin_until(lambda: robot.statuses[-1].instruction == 'open', what='instruction')
        return robot, node, said

    return bring_up


def episode(robot, said, delay_s=0.0):
    """Reset, step, and return the chunks and reports of the episode."""
    robot.graph.call(robot.node, Trigger, 'policy/reset')
    del said[:], robot.chunks[:]
    for k in range(STEPS):
        robot.now_ns += PERIOD_NS
        robot.position = [0.1 + 0.01 * k, 0.2, 0.3]
        robot.sense()
        robot.tell_time()
        robot.graph.spin_until(
            lambda: any(
                to_nanoseconds(m.header.stamp) == robot.now_ns for m in robot.commands()[-3:]
            ),
            what='answer',
        )
        robot.graph.spin_for(delay_s)
    robot.graph.spin_until(lambda: len(said) == len(robot.chunks), what='the last report')
    return list(robot.chunks), list(said)


def numbers(report):
    return [
        report.position_per_step,
        report.position_accumulated,
        report.gripper_disagreement,
        report.window_position,
        report.window_gripper,
        report.smoothness,
        report.reference_smoothness,
        report.level,
        to_nanoseconds(report.delay),
    ]


@pytest.mark.parametrize('source', ['shadow', 'higher'])
def test_the_same_episode_has_the_same_readings_however_fast_it_runs(lockstep, source):
    robot, _, said = lockstep(source, precision='nested' if source == 'higher' else 'w4')
    fast, slow = episode(robot, said), episode(robot, said, delay_s=0.005)
    for chunks, reports in (fast, slow):
        assert len(chunks) == STEPS // ROWS
        assert [r.sequence for r in reports] == [c.sequence for c in chunks]
    assert np.array_equal(
        [numbers(r) for r in fast[1]], [numbers(r) for r in slow[1]], equal_nan=True
    )
    assert {to_nanoseconds(r.delay) for r in fast[1]} == {0}
    is_off = [r.position_accumulated > 0.0 for r in fast[1]]
    assert all(is_off) if source == 'shadow' else not any(is_off)


def test_reports_are_what_an_offline_comparison_of_the_chunks_finds(lockstep, spec):
    robot, _, said = lockstep('shadow')
    chunks, reports = episode(robot, said)
    reference = ToyPolicy(spec, 'fp32')
    first_ns = robot.now_ns - (STEPS - 1) * PERIOD_NS
    images = {c.name: np.full((c.height, c.width, 3), 40, np.uint8) for c in spec.cameras}
    found = []
    for chunk, report in zip(chunks, reports):
        judged = chunk_from_message(chunk, spec.action)
        k = (judged.observed_ns - first_ns) // PERIOD_NS
        state = [0.1 + 0.01 * k, 0.2, 0.3, 0.4]
        answer = reference.infer(Observation(images, state, 'open', judged.observed_ns))
        found.append(open_loop_drift(judged.actions[:ROWS], answer.actions[:ROWS], spec.action))
        assert report.position_accumulated == pytest.approx(found[-1].position_accumulated_m)
        assert report.position_per_step == pytest.approx(found[-1].position_per_step_m)
        window = [one.position_accumulated_m for one in found[-2:]]  # 0.3 s are two chunks
        assert report.window_position == pytest.approx(np.mean(window))
        assert (report.precision, report.reference_precision) == ('w4', 'fp32')


def test_a_stop_gives_no_answer_until_a_reset(lockstep):
    """The simulator waits, so nothing new can be compared: somebody has to look."""
    robot, node, said = lockstep('shadow', warn_m=1e-6, error_m=2e-6, reaction='stop')
    robot.now_ns += PERIOD_NS
    robot.sense()
    robot.tell_time()
    robot.graph.spin_until(
        lambda: (
            robot.statuses[-1].state == PolicyStatus.WAITING
            and robot.statuses[-1].reason.startswith('drift ERROR (shadow)')
        ),
        what='the stop',
    )
    robot.graph.spin_for(0.1)
    assert robot.commands() == []
    assert len(said) == 1
    node.set_parameters_atomically([Parameter('drift.reaction', value='report')])
    robot.sense()
    robot.graph.spin_until(lambda: len(robot.commands()) == 1, what='the answer')
