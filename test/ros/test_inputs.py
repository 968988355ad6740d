"""What the policy sees: every message is stored or dropped with its reason, nothing is lost."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vlaq_ros.errors import MissingDependencyError, StaleInputError
from vlaq_ros.ros import inputs, qos
from vlaq_ros.ros.conversions import to_stamp
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.ros.parameters import build
from vlaq_ros.ros.policy_parameters import PolicyParameters

pytestmark = pytest.mark.ros
MS = 1_000_000
START_MS = 10_000


class Feed:
    """Inputs that get their messages from the test, without DDS; stamps in ms."""

    def __init__(self, node, spec, **parameters):
        config = build(PolicyParameters, {k.replace('__', '.'): v for k, v in parameters.items()})
        self.inputs = Inputs(node, spec, config, lambda: None, lambda: None)
        self.inputs.enabled = True
        self.inputs._assembler.put_instruction('open')

    def image(self, name, stamp_ms, height=None, width=None):
        default = {'front': (8, 6), 'wrist': (4, 4)}[name]
        height, width = height or default[0], width or default[1]
        msg = Image(height=height, width=width, encoding='rgb8', step=3 * width)
        msg.data = bytes(3 * width * height)
        msg.header.stamp = to_stamp(stamp_ms * MS)
        self.inputs._on_image(name, msg)

    def pose(self, stamp_ms, x=0.0):
        msg = PoseStamped()
        msg.header.stamp, msg.header.frame_id = to_stamp(stamp_ms * MS), 'base'
        msg.pose.position.x, msg.pose.orientation.w = float(x), 1.0
        self.inputs._on_pose(msg)

    def joints(self, stamp_ms):
        msg = JointState(name=['gripper'], position=[0.04])
        msg.header.stamp = to_stamp(stamp_ms * MS)
        self.inputs._on_joints(msg)


@pytest.fixture
def make_feed(graph, spec):
    node = graph.node('listener')
    return lambda **parameters: Feed(node, spec, **parameters)


def test_fast_joint_states_and_a_late_pose_make_a_state(make_feed):
    """The last 8 joint states were all newer than a pose 12 ms late: there was never a state."""
    feed = make_feed()
    for now_ms in range(START_MS, START_MS + 200):
        feed.joints(now_ms)
        if now_ms % 20 == 12:
            feed.pose(now_ms - 12, x=now_ms)
    for name in ('front', 'wrist'):
        feed.image(name, now_ms)
    state = feed.inputs.observation(now_ms * MS).state
    np.testing.assert_allclose(state, [START_MS + 192, 0.0, 0.0, 0.4])


def test_a_fast_pose_is_still_known_at_the_time_of_an_old_observation(make_feed):
    """Only the last 64 poses were kept: at 1 kHz an inference of 0.1 s outlasted them."""
    feed = make_feed()
    for now_ms in range(START_MS, START_MS + 1000):
        feed.pose(now_ms, x=now_ms)
    assert feed.inputs.pose((START_MS + 300) * MS).position[0] == START_MS + 300


def test_an_image_of_another_size_is_dropped_and_both_sizes_are_named(make_feed):
    """It reached the policy, whose refusals in a row ended in a fault until ~/reset."""
    feed = make_feed()
    feed.pose(START_MS)
    feed.joints(START_MS)
    feed.image('front', START_MS, height=48, width=64)
    feed.image('wrist', START_MS)
    with pytest.raises(StaleInputError) as caught:
        feed.inputs.require(START_MS * MS)
    assert str(caught.value) == (
        "front: nothing received yet (camera 'front' sends images of 64 x 48 px (width x height), "
        'the policy expects 6 x 8 px: resize them before)'
    )
    assert feed.inputs.dropped == {'front': 1}
    (missing,) = feed.inputs.missing()  # what lockstep shows: it said only `front`
    assert missing.startswith("front (camera 'front' sends images of 64 x 48 px")
    feed.image('front', START_MS)
    feed.inputs.require(START_MS * MS)


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (RuntimeError('bad code'), 'RuntimeError: bad code'),
        (MissingDependencyError('install cv2'), 'install cv2'),
    ],
    ids=['any exception', 'no decoder'],
)
def test_whatever_a_decoder_raises_drops_the_message(make_feed, monkeypatch, error, reason):
    """Only an `ImageError` was caught: any other exception of a decoder ended the node."""

    def explode(msg):
        raise error

    monkeypatch.setattr(inputs, 'to_pixels', explode)
    feed = make_feed()
    feed.image('front', START_MS)
    assert feed.inputs.trouble == {'front': reason}
    assert feed.inputs.dropped == {'front': 1}


def test_a_camera_of_10_hz_is_usable_until_its_next_image_with_the_defaults(make_feed):
    """A spread of 0.1 s between image and newest state stopped the arm before each next image."""
    feed = make_feed()
    for now_ms in range(START_MS, START_MS + 500, 5):
        feed.joints(now_ms)
        feed.pose(now_ms, x=now_ms)
        if (now_ms - START_MS) % 100 == 40:  # each image takes 40 ms to arrive
            for name in ('front', 'wrist'):
                feed.image(name, now_ms - 40)
        if now_ms >= START_MS + 40:
            observation = feed.inputs.observation(now_ms * MS)
            assert observation.state[0] * MS == observation.observed_ns


def test_a_silent_topic_is_named_while_another_one_of_the_state_arrives(make_feed, monkeypatch):
    """Each pose put the merged state again, which hid that the joint states had ended."""
    now_s = 100.0
    monkeypatch.setattr(inputs.time, 'monotonic', lambda: now_s)
    feed = make_feed(age__silence_s=1.0)
    feed.joints(START_MS)
    for _ in range(20):
        feed.pose(START_MS)  # the ROS clock stands: the same stamp again and again
        now_s += 0.1
    assert feed.inputs.silence() == 'joint_states: nothing arrived for 2.0 s'
    feed.joints(START_MS)
    assert feed.inputs.silence() == ''


def test_an_old_latched_sentence_does_not_replace_a_newer_stop(graph, make_feed, monkeypatch):
    """A latched sentence that was delivered late, or again, moved the arm after a stop."""
    monkeypatch.setattr(inputs, '_LOOK_FOR_LATCHED_S', 3600.0)
    latched = graph.node('operator').create_publisher(String, 'instruction', qos.LATCHED)
    latched.publish(String(data='open'))
    seen = make_feed().inputs
    plain = graph.node('joystick').create_publisher(String, 'instruction', 1)
    graph.spin_until(lambda: plain.get_subscription_count() == 1, what='discovery')
    plain.publish(String(data='close'))
    graph.spin_until(lambda: seen.instruction == 'close', what='sentence')
    plain.publish(String(data=''))
    graph.spin_until(lambda: seen.instruction == '', what='stop')
    seen._look_for_latched()
    graph.spin_until(lambda: latched.get_subscription_count() == 2, what='latched subscription')
    graph.spin_for(0.5)
    assert (seen.instruction, seen.instruction_count) == ('', 1)
    latched.publish(String(data='open'))  # a new one counts
    graph.spin_until(lambda: seen.instruction == 'open', what='new sentence')
