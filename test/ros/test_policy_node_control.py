"""The policy node over DDS on simulated time: motion, stops, faults, resets."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

import numpy as np
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from vlaq_ros.errors import PolicyError
from vlaq_ros.ros.conversions import to_nanoseconds
from vlaq_ros.ros.interfaces import PolicyStatus

pytestmark = pytest.mark.ros

RUNNING, HOLDING, FAULT = PolicyStatus.RUNNING, PolicyStatus.HOLDING, PolicyStatus.FAULT
WAITING = PolicyStatus.WAITING


def speeds(robot):
    return [round(msg.twist.linear.x, 6) for msg in robot.commands()]


def is_stop(msg):
    linear, angular = msg.twist.linear, msg.twist.angular
    numbers = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
    return numbers == (0.0,) * 6


def test_commands_are_rows_of_the_chunk_by_the_clock_stamped_now(running):
    robot, node = running()
    robot.sent.clear()
    robot.pass_time(0.1, node)
    robot.graph.spin_until(lambda: len(robot.commands()) >= 3)
    for msg in robot.commands():
        assert round(msg.twist.linear.x / 0.04, 6) in range(1, 9)  # row k: (k + 1) mm per 25 ms
        assert msg.header.frame_id == 'base'
        assert to_nanoseconds(msg.header.stamp) % 20_000_000 == 0
    gripper = robot.commands('gripper')
    assert all(list(msg.name) == ['gripper'] for msg in gripper)
    assert all(list(msg.position) == [0.05] for msg in gripper)


def test_a_chunk_is_stamped_with_its_observation(running, fake_policy):
    robot, node = running()
    robot.run_until(lambda: len(robot.chunks) >= 2, node)
    first, second = robot.chunks[:2]
    assert to_nanoseconds(first.header.stamp) == fake_policy.observations[0].observed_ns
    assert (second.sequence, second.epoch) == (first.sequence + 1, first.epoch)
    assert first.instruction == 'open'
    assert first.horizon == 8
    np.testing.assert_allclose(np.array(first.actions).reshape(8, 4)[:, 3], 0.5)


def test_the_state_is_assembled_from_topics_in_the_units_of_the_policy(running, fake_policy):
    running()
    np.testing.assert_allclose(fake_policy.observations[0].state, [0.1, 0.2, 0.3, 0.4])


def test_horizon_replanning_infers_once_per_execution_horizon(running, fake_policy):
    robot, node = running()
    before = len(fake_policy.observations)
    robot.pass_time(1.5, node)
    assert 6 <= len(fake_policy.observations) - before <= 12  # every 150 ms, rounded up to 160


def test_continuous_replanning_infers_on_every_observation(running, fake_policy):
    robot, node = running(replan='continuous')
    before = len(fake_policy.observations)
    robot.run_until(lambda: len(fake_policy.observations) >= before + 10, node)
    stamps = [observation.observed_ns for observation in fake_policy.observations]
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize(
    ('killed', 'named'),
    [
        ({'cameras': ('front',)}, 'wrist'),
        ({'cameras': ()}, 'front'),
        ({'joints': False}, 'joint_states'),
        ({'pose': False}, 'ee_pose'),
    ],
    ids=['one camera', 'all cameras', 'joint states', 'pose'],
)
def test_a_silent_stream_stops_the_arm_within_its_age_limit_and_motion_resumes(
    running, killed, named
):
    robot, node = running(age__image_s=0.15, age__state_s=0.15, age__spread_s=0.5)
    robot.pass_time(0.04, node)
    killed_ns = robot.now_ns
    robot.run_until(lambda: robot.state == HOLDING, node, what='hold', **killed)
    stopped_ns = to_nanoseconds(robot.statuses[-1].header.stamp)
    assert stopped_ns - killed_ns <= 190_000_000  # the limit, and two ticks
    assert named in robot.statuses[-1].reason
    assert 'limit 150 ms' in robot.statuses[-1].reason or 'no pose' in robot.statuses[-1].reason
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')
    robot.run_until(lambda: robot.state == RUNNING, node, what='resume')
    robot.graph.spin_until(lambda: not is_stop(robot.commands()[-1]), what='motion')


def test_a_camera_that_dies_within_its_age_limit_is_named_when_the_chunk_ends(running):
    robot, node = running(age__image_s=5.0, age__spread_s=5.0)
    robot.run_until(lambda: robot.state == HOLDING, node, what='hold', cameras=('wrist',))
    assert 'no newer observation' in robot.statuses[-1].reason
    assert 'front 2' in robot.statuses[-1].reason  # its age: 200 ms and a bit


def test_the_stop_is_repeated_and_then_silent(running):
    robot, node = running(stop_repeat_s=0.3)
    robot.run_until(lambda: robot.state == HOLDING, node, cameras=())
    robot.graph.spin_for(0.5)
    stops = [msg for msg in robot.commands() if is_stop(msg)]
    assert len(stops) >= 3
    robot.sent.clear()
    robot.pass_time(0.1, node, cameras=())
    robot.graph.spin_for(0.1)
    assert robot.commands() == []


def test_a_value_that_is_not_finite_is_never_sent_and_faults_until_reset(running, fake_policy):
    robot, node = running()

    def break_last_row(actions):
        actions[7, 1] = np.nan
        return actions

    fake_policy.change = break_last_row
    robot.run_until(lambda: robot.state == FAULT, node, what='fault')
    assert 'not finite in rows [7]' in robot.statuses[-1].reason
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')
    assert all(np.isfinite(msg.twist.linear.y) for msg in robot.commands())
    fake_policy.change = lambda actions: actions
    robot.pass_time(0.3, node)
    assert robot.state == FAULT  # not by itself
    epoch = robot.statuses[-1].epoch
    answer = robot.graph.call(robot.node, Trigger, 'policy/reset')
    assert (answer.success, answer.message) == (True, f'epoch {epoch + 1}')
    robot.run_until(lambda: robot.state == RUNNING, node, what='motion after reset')
    assert robot.statuses[-1].epoch == epoch + 1


def test_repeated_inference_failures_fault_and_one_does_not(running, fake_policy):
    robot, node = running(max_inference_errors=2)
    fake_policy.error = PolicyError('the state is not finite')
    robot.run_until(lambda: robot.state == FAULT, node, what='fault')
    assert '2 inferences in a row failed' in robot.statuses[-1].reason
    assert 'the state is not finite' in robot.statuses[-1].reason
    fake_policy.error = None
    robot.graph.call(robot.node, Trigger, 'policy/reset')
    robot.run_until(lambda: robot.state == RUNNING, node)


def test_an_action_over_the_limit_is_clamped_and_counted(running):
    robot, node = running(limits__max_linear_speed=0.1)
    robot.pass_time(0.3, node)
    assert max(speeds(robot)) == pytest.approx(0.1)
    assert node._loop.counts['limited: linear_speed'] > 0


def test_an_action_over_the_limit_is_refused_when_told_so(running):
    robot, node = running(limits__on_exceed='refuse')
    node.set_parameters([Parameter('limits.max_linear_speed', value=0.1)])
    robot.run_until(lambda: robot.state == FAULT, node, what='fault')
    assert 'is above 0.1 m/s' in robot.statuses[-1].reason
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')


def test_a_new_sentence_is_followed_from_the_next_inference_and_echoed(running, fake_policy):
    robot, node = running()
    robot.say('  close  ')
    robot.run_until(lambda: robot.statuses[-1].instruction == 'close', node)
    assert robot.statuses[-1].instruction_count == 2
    robot.run_until(lambda: robot.chunks[-1].instruction == 'close', node)
    assert fake_policy.observations[-1].instruction == 'close'


def test_an_empty_sentence_stops_and_a_new_one_moves_again(running):
    robot, node = running()
    robot.say(' ')
    robot.run_until(lambda: robot.state == HOLDING, node, what='hold')
    assert robot.statuses[-1].reason.startswith('instruction: none given')
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')
    robot.say('open')
    robot.run_until(lambda: robot.state == RUNNING, node, what='motion')


def test_when_the_clock_goes_back_everything_of_the_other_time_is_forgotten(running, fake_policy):
    robot, node = running()
    epoch = robot.statuses[-1].epoch
    robot.now_ns = 1_000_000_000
    robot.tell_time()
    robot.graph.spin_until(lambda: robot.statuses[-1].epoch > epoch, what='new epoch')
    robot.run_until(
        lambda: robot.state == RUNNING and robot.chunks[-1].epoch > epoch, node, what='motion'
    )
    assert to_nanoseconds(robot.chunks[-1].header.stamp) < 10_000_000_000
    assert fake_policy.resets >= 2


def test_an_inference_that_outlasts_the_chunk_stops_the_arm_and_says_so(running, fake_policy):
    robot, node = running()
    fake_policy.may_answer.clear()
    robot.run_until(lambda: robot.state == HOLDING, node, what='hold')
    assert 'the chunk covers 8 periods of 25 ms' in robot.statuses[-1].reason
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')
    fake_policy.may_answer.set()
    robot.run_until(lambda: robot.state == RUNNING, node, what='resume')


def test_when_time_stands_still_the_steady_clock_stops_the_arm(running):
    robot, node = running(age__silence_s=0.3)
    # no sensor and no /clock from here on: every ROS timer is frozen
    robot.graph.spin_until(lambda: robot.state == HOLDING, what='hold')
    assert 'nothing arrived for' in robot.statuses[-1].reason
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')


def test_target_poses_start_at_the_measured_pose_and_the_stop_holds_it(running):
    robot, node = running(command__type='pose')
    robot.graph.spin_until(lambda: robot.commands('pose'), what='target pose')
    first = robot.commands('pose')[0]
    moved_mm = round((first.pose.position.x - 0.1) * 1e3)
    assert moved_mm in (1, 3, 6, 10)  # 1 + 2 + ... rows
    assert first.pose.position.y == pytest.approx(0.2)
    assert first.header.frame_id == 'base'
    assert robot.commands('twist') == []
    robot.position = [0.11, 0.2, 0.3]
    robot.run_until(lambda: robot.state == HOLDING, node, cameras=())
    robot.graph.spin_until(
        lambda: robot.commands('pose')[-1].pose.position.x == pytest.approx(0.11), what='hold'
    )


def test_compressed_images_are_the_same_observation(running, fake_policy):
    running(image_transport='compressed')
    assert (fake_policy.observations[0].images['front'] == 40).all()


def test_a_broken_image_is_dropped_and_named(running):
    robot, node = running(age__image_s=0.15)
    from sensor_msgs.msg import Image

    def send_broken():
        robot.cameras['front'].publish(
            Image(height=8, width=6, encoding='rgb8', step=18, data=b'1')
        )
        return robot.state == HOLDING

    robot.run_until(send_broken, node, what='hold', cameras=('wrist',))
    assert 'bytes of data' in robot.statuses[-1].reason


def test_deactivating_sends_the_stop_last_and_nothing_after_it(running):
    robot, node = running()
    node.trigger_deactivate()
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')
    robot.graph.spin_until(lambda: robot.state == PolicyStatus.INACTIVE, what='status')
    count = len(robot.sent)
    robot.pass_time(0.2, node)
    robot.graph.spin_for(0.1)
    assert len(robot.sent) == count
    assert robot.sent[-1][0] == 'twist'


def test_a_result_that_comes_after_deactivation_is_not_published(running, fake_policy):
    robot, node = running(replan='continuous')
    fake_policy.may_answer.clear()
    asked = len(fake_policy.observations)
    robot.run_until(lambda: len(fake_policy.observations) > asked, node, what='inference')
    node.trigger_deactivate()
    robot.graph.spin_until(lambda: is_stop(robot.commands()[-1]), what='stop')
    sent, chunks = len(robot.sent), len(robot.chunks)
    fake_policy.may_answer.set()
    robot.graph.spin_for(0.2)
    assert (len(robot.sent), len(robot.chunks)) == (sent, chunks)
