"""The simulated robot: lockstep, stamps, refusals, resets, and parity with the ROS-free loop."""

import numpy as np
import pytest

from vlaq_ros.errors import MissingDependencyError

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')
pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import config_file
from vlaq_ros.ros.conversions import (
    gripper_message,
    to_nanoseconds,
    to_pixels,
    to_pose,
    twist_message,
)
from vlaq_ros.ros.interfaces import EpisodeStatus
from vlaq_ros.ros.parameters import table
from vlaq_ros.ros.sim_node import RESET_NS, SimNode
from vlaq_ros.ros.sim_parameters import SimParameters
from vlaq_ros.sim.robot import PERIOD_NS, SimRobot
from vlaq_ros.sim.rollout import Episode, run_episode
from vlaq_ros.types import EndEffectorCommand

pytestmark = pytest.mark.ros
STREAMS = {
    'front/image_raw': Image,
    'wrist/image_raw': Image,
    'front/camera_info': CameraInfo,
    'ee_pose': PoseStamped,
    'joint_states': JointState,
    'episode': EpisodeStatus,
}


@pytest.fixture(scope='module')
def arm():
    """Return one simulated arm for all tests: compiling a scene is the slow part."""
    return SimRobot()


class Operator:
    """Listens to everything the simulator says and commands it."""

    def __init__(self, graph, sim):
        self.graph, self.sim = graph, sim
        self.node = node = graph.node('operator')
        self.heard = {topic: [] for topic in (*STREAMS, '/clock', '/diagnostics', 'instruction')}
        for topic, message_type in STREAMS.items():
            profile = qos.LATCHED if topic == 'episode' else 100
            node.create_subscription(message_type, topic, self.heard[topic].append, profile)
        for topic, message_type in (('/clock', Clock), ('/diagnostics', DiagnosticArray)):
            node.create_subscription(message_type, topic, self.heard[topic].append, 100)
        node.create_subscription(String, 'instruction', self.heard['instruction'].append, 1)
        self.twist_pub = node.create_publisher(TwistStamped, 'delta_twist_cmds', qos.COMMAND)
        self.target_pub = node.create_publisher(PoseStamped, 'pose_target_cmds', qos.COMMAND)
        self.gripper_pub = node.create_publisher(JointState, 'gripper_cmds', qos.COMMAND)
        publishers = (self.twist_pub, self.target_pub, self.gripper_pub)
        graph.spin_until(
            lambda: all(p.get_subscription_count() for p in publishers) and self.heard['/clock'],
            what='the simulator',
        )

    @property
    def now_ns(self):
        return to_nanoseconds(self.heard['/clock'][-1].clock)

    @property
    def status(self):
        return self.heard['episode'][-1]

    def stamps(self, topic):
        """Return the stamps heard, without repetitions."""
        return sorted({to_nanoseconds(msg.header.stamp) for msg in self.heard[topic]})

    def newest(self, topic):
        return self.heard[topic][-1]

    def wait(self, condition, what):
        self.graph.spin_until(condition, timeout_s=60.0, what=what)

    def wait_for_refusals(self, **counts):
        refused = self.sim._intake.refused
        self.wait(lambda: all(refused[r] == n for r, n in counts.items()), f'refusals {counts}')

    def act(self, velocity, opening, stamp_ns=None, frame='base'):
        """Send both commands of a step, stamped now."""
        stamp_ns = self.now_ns if stamp_ns is None else stamp_ns
        command = EndEffectorCommand(np.r_[velocity, 0.0, 0.0, 0.0], opening)
        self.gripper_pub.publish(gripper_message('gripper', 0.1 * opening, stamp_ns))
        self.twist_pub.publish(twist_message(command, frame, stamp_ns))

    def step(self, velocity, opening):
        """Do one step of lockstep and wait until it is over."""
        before = self.now_ns
        self.act(velocity, opening)
        self.wait(lambda: self.now_ns > before, 'a step')

    def reset(self, **parameters):
        if parameters:
            assert all(result.successful for result in self.set(**parameters))
        epoch = self.status.epoch
        answer = self.graph.call(self.node, Trigger, 'sim/reset')
        assert answer.success, answer.message
        self.wait(lambda: self.status.epoch > epoch, 'the new episode')
        start_ns = to_nanoseconds(self.status.header.stamp)
        self.wait(lambda: self.now_ns == start_ns, 'the clock of the new episode')

    def set(self, **parameters):
        request = SetParameters.Request(
            parameters=[Parameter(n, value=v).to_parameter_msg() for n, v in parameters.items()]
        )
        return self.graph.call(self.node, SetParameters, 'sim/set_parameters', request).results


@pytest.fixture
def operator(graph, arm):
    """Return a function that starts the simulator and somebody who operates it."""

    def start(**parameters):
        values = {'task': 'reach', 'lockstep': True, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        sim = graph.add(SimNode(arm, context=graph.context, parameter_overrides=overrides))
        return Operator(graph, sim)

    return start


def random_commands(steps):
    generator = np.random.default_rng(0)
    return zip(generator.uniform(-0.8, 0.8, (steps, 3)), generator.uniform(0.0, 1.0, steps))


def test_lockstep_moves_the_arm_exactly_as_the_same_commands_do_without_ros(operator, arm):
    expected = []
    arm.reset('reach', 100, 3)
    for velocity, opening in random_commands(10):
        arm.step(EndEffectorCommand(np.r_[velocity, np.zeros(3)], opening))
        expected.append((arm.render('front'), arm.ee_pose(), arm.state()))

    person = operator(index=3)
    for (velocity, opening), (image, pose, state) in zip(random_commands(10), expected):
        person.step(velocity, opening)
        np.testing.assert_array_equal(to_pixels(person.newest('front/image_raw')), image)
        seen = to_pose(person.newest('ee_pose'))
        np.testing.assert_array_equal(seen.position, pose.position)
        np.testing.assert_array_equal(seen.quat_xyzw, pose.quat_xyzw)
        joints = person.newest('joint_states')
        assert joints.position[joints.name.index('gripper')] == pytest.approx(0.1 * state[3])
    assert person.status.step == 10


def test_a_step_carries_one_stamp_and_the_clock_only_goes_forward(operator):
    person = operator()
    for velocity, opening in random_commands(4):
        person.step(velocity, opening)
    person.reset()
    person.step(np.zeros(3), 1.0)
    stamps = person.stamps('ee_pose')
    for topic in STREAMS:
        assert person.stamps(topic)[-3:] == stamps[-3:], topic
    clock = [to_nanoseconds(msg.clock) for msg in person.heard['/clock']]
    assert clock == sorted(clock)
    assert set(np.diff(stamps)) == {PERIOD_NS, RESET_NS}
    frames = {topic: person.newest(topic).header.frame_id for topic in STREAMS}
    assert frames['front/image_raw'] == frames['front/camera_info'] == 'front_optical_frame'
    assert frames['ee_pose'] == 'base'


def test_camera_info_describes_the_image_that_was_sent(operator):
    person = operator()
    person.wait(lambda: person.heard['front/camera_info'], 'camera_info')
    image, info = person.newest('front/image_raw'), person.newest('front/camera_info')
    assert (info.height, info.width) == (image.height, image.width) == (96, 96)
    # 136 px sensor, window from column 28 and row 26: the axis is not in the middle of the image.
    assert (info.k[2], info.k[5]) == (67.5 - 28, 67.5 - 26)
    assert info.k[0] == info.k[4] == pytest.approx(68 / np.tan(np.radians(60) / 2))
    assert info.roi.width == 0


def test_one_command_alone_does_not_advance_time_and_the_step_is_sent_again(operator):
    person = operator()
    now_ns = person.now_ns
    person.gripper_pub.publish(gripper_message('gripper', 0.1, now_ns))
    heard = len(person.heard['front/image_raw'])
    person.wait(lambda: len(person.heard['front/image_raw']) > heard, 'the repetition')
    assert person.now_ns == now_ns
    assert person.status.step == 0


def test_bad_commands_are_refused_by_reason_and_do_not_move_the_arm(operator):
    person = operator()
    now_ns = person.now_ns
    person.act(np.array([np.nan, 0.0, 0.0]), np.nan)
    person.wait_for_refusals(not_finite=2)
    person.act(np.zeros(3), 1.5, frame='tool0')
    person.wait_for_refusals(wrong_frame=1, out_of_range=1)
    person.act(np.zeros(3), 1.0, stamp_ns=now_ns + PERIOD_NS)
    person.wait_for_refusals(from_the_future=2)
    person.gripper_pub.publish(gripper_message('thumb', 0.1, now_ns))
    person.wait_for_refusals(wrong_joint=1)
    assert person.now_ns == now_ns

    def reported():
        return {
            pair.key: pair.value
            for array in person.heard['/diagnostics'][-1:]
            for status in array.status
            for pair in status.values
        }

    person.wait(lambda: reported().get('refused wrong_joint') == '1', 'the report')
    assert reported()['refused out_of_range'] == '1'
    assert reported()['refused not_finite'] == '2'


def test_an_episode_without_answers_is_aborted_and_the_reason_reported(operator):
    person = operator(lockstep_timeout_s=0.3)
    person.step(np.zeros(3), 1.0)
    person.wait(lambda: person.status.done, 'the abort')
    assert not person.status.success
    assert person.status.step == 1

    def errors():
        statuses = [status for array in person.heard['/diagnostics'] for status in array.status]
        return [status.message for status in statuses if 'aborted' in status.message]

    person.wait(errors, 'the report')
    assert 'lockstep_timeout_s=0.3' in errors()[0]


def test_reset_starts_the_episode_that_the_parameters_name(operator):
    person = operator()
    person.reset(seed=101, index=7, instruction='touch the goal')
    status = person.status
    assert (status.task, status.seed, status.index) == ('reach', 101, 7)
    assert (status.instruction, status.step, status.done) == ('touch the goal', 0, False)
    assert status.max_steps == 80


@pytest.mark.parametrize(
    ('parameters', 'complaint'),
    [({'task': 'reech'}, "Did you mean 'reach'"), ({'index': 50}, '50')],
    ids=['task', 'index'],
)
def test_an_episode_that_does_not_exist_is_refused_when_it_is_named(
    operator, parameters, complaint
):
    (result,) = operator().set(**parameters)
    assert not result.successful
    assert complaint in result.reason


def test_nothing_is_simulated_before_a_reset_when_it_shall_wait_for_one(graph, arm):
    overrides = [
        Parameter('task', value='reach'),
        Parameter('auto_start', value=False),
        Parameter('lockstep', value=True),
    ]
    sim = graph.add(SimNode(arm, context=graph.context, parameter_overrides=overrides))
    clocks = []
    sim.create_subscription(Clock, '/clock', clocks.append, 10)
    graph.spin_for(0.3)
    assert not clocks
    assert graph.call(graph.node('operator'), Trigger, 'sim/reset').success
    graph.spin_until(lambda: clocks, what='the clock')


def test_free_running_the_arm_follows_a_command_until_it_times_out(operator, arm):
    person = operator(lockstep=False, command_timeout_s=0.1, camera_every=40)
    start = to_pose(person.newest('ee_pose')).position
    person.act(np.array([-0.4, 0.0, 0.0]), 1.0)
    sent_ns = person.now_ns

    def moved_since(seconds):
        later = sent_ns + round(seconds * 1e9)
        person.wait(lambda: person.now_ns >= later, f'{seconds} s of simulated time')
        return to_pose(person.newest('ee_pose')).position - start

    # The command is older than 0.1 s after four or five steps of 10 mm; the hand lags a little.
    stopped = moved_since(0.6)
    assert -0.07 < stopped[0] < -0.03
    np.testing.assert_allclose(moved_since(0.9), stopped, atol=1e-3)


def test_the_next_index_follows_by_itself_with_its_sentence(operator):
    person = operator(
        auto_reset='next_index', publish_instruction=True, lockstep_timeout_s=0.2, index=49
    )
    person.wait(lambda: person.heard['instruction'], 'the sentence')
    person.step(np.zeros(3), 1.0)  # then no more answers: aborted, which ends the episode too
    person.wait(lambda: person.status.epoch == 2, 'the next episode')
    assert (person.status.seed, person.status.index) == (101, 0)
    assert person.sim.get_parameter('index').value == 0
    person.wait(lambda: len(person.heard['instruction']) == 2, 'the next sentence')
    assert person.heard['instruction'][-1].data == 'reach the goal'


def test_the_parameter_file_shows_the_defaults_of_the_node():
    (values,) = yaml.safe_load(config_file('sim_node.yaml').read_text()).values()
    assert values['ros__parameters'] == {row.name: row.default for row in table(SimParameters)}


def test_the_closed_loop_over_topics_gives_the_same_actions_as_without_ros(operator, graph, arm):
    """One policy, one start: every chunk and every position is the same, bit by bit."""
    episode = Episode('reach', 100, 5, 'reach the goal')
    without_ros = run_episode(arm, load_policy('toy', precision='w8'), episode)

    person = operator(auto_start=True, index=5)
    node = graph.policy(
        load_policy('toy', precision='w8'),
        remaps=[
            '/policy/delta_twist_cmds:=/delta_twist_cmds',
            '/policy/gripper_cmds:=/gripper_cmds',
        ],
        lockstep=True,
    )
    from vlaq_ros.ros.interfaces import ActionChunk

    chunks = []
    person.node.create_subscription(ActionChunk, 'policy/action_chunk', chunks.append, 100)
    sentence = person.node.create_publisher(String, 'instruction', qos.LATCHED)
    assert node.bring_up(), node.failure
    sentence.publish(String(data=episode.instruction))
    person.wait(lambda: person.status.done, 'the end of the episode')
    end_ns = to_nanoseconds(person.status.header.stamp)
    person.wait(lambda: person.stamps('ee_pose')[-1] == end_ns, 'the last pose')

    poses = {to_nanoseconds(m.header.stamp): to_pose(m) for m in person.heard['ee_pose']}
    positions = [poses[stamp].position for stamp in sorted(poses)]
    np.testing.assert_array_equal(positions, without_ros.positions)
    assert person.status.success == without_ros.success
    assert len(chunks) == len(without_ros.chunks)
    for over_topics, direct in zip(chunks, without_ros.chunks):
        np.testing.assert_array_equal(
            np.reshape(over_topics.actions, direct.actions.shape), direct.actions
        )
