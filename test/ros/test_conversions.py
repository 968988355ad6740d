"""Messages and values: what goes in comes out, in the order and units of both sides."""

import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from sensor_msgs.msg import Image

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.control.supervisor import ControlState
from vlaq_ros.errors import ImageError
from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.ros import conversions
from vlaq_ros.ros.interfaces import PolicyStatus
from vlaq_ros.ros.precision_report import PrecisionReport
from vlaq_ros.types import ActionChunk, EndEffectorCommand, Pose

pytestmark = pytest.mark.ros


@pytest.fixture(autouse=True)
def probe_again():
    conversions.image_bridge.cache_clear()
    yield
    conversions.image_bridge.cache_clear()


def image(encoding='rgb8', channels=3):
    data = bytes(range(2 * 3 * channels))
    return Image(height=2, width=3, encoding=encoding, step=3 * channels, data=data)


@pytest.mark.parametrize('stamp_ns', [0, 1, 999_999_999, 1_000_000_000, 1_795_217_906_788_393_344])
def test_stamps_survive_exactly(stamp_ns):
    assert conversions.to_nanoseconds(conversions.to_stamp(stamp_ns)) == stamp_ns


def test_a_duration_is_rounded_to_the_nanosecond():
    assert conversions.to_nanoseconds(conversions.to_duration(0.025)) == 25_000_000


def test_a_pose_survives():
    pose = Pose(np.array([1.0, 2.0, 3.0]), np.array([0.5, -0.5, 0.5, 0.5]))
    msg = conversions.pose_message(pose, 'base', 5)
    assert (msg.header.frame_id, msg.header.stamp.nanosec) == ('base', 5)
    back = conversions.to_pose(msg)
    np.testing.assert_array_equal(back.position, pose.position)
    np.testing.assert_array_equal(back.quat_xyzw, pose.quat_xyzw)


def test_a_twist_is_linear_first():
    msg = conversions.twist_message(EndEffectorCommand(np.arange(6.0), None), 'tool0', 7)
    linear, angular = msg.twist.linear, msg.twist.angular
    assert (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z) == (0, 1, 2, 3, 4, 5)
    assert msg.header.frame_id == 'tool0'


def test_a_chunk_survives(spec):
    actions = np.arange(32.0).reshape(8, 4) / 100
    chunk = ActionChunk(
        actions, spec.action, 123, 'open', 'w8', 'flow', 4, 2, {'prefill': 0.01, 'action': 0.02}
    )
    msg = conversions.chunk_message(chunk, 'base')
    assert msg.header.frame_id == 'base'
    back = conversions.chunk_from_message(msg, spec.action)
    np.testing.assert_array_equal(back.actions, actions)
    for name in ('observed_ns', 'instruction', 'precision', 'head', 'sequence', 'epoch'):
        assert getattr(back, name) == getattr(chunk, name)
    assert back.inference_s == pytest.approx(0.03)


def test_a_chunk_of_another_spec_is_refused(spec):
    chunk = ActionChunk(np.zeros((8, 4)), spec.action, 0, 'open', 'w8', 'flow')
    msg = conversions.chunk_message(chunk, 'base')
    msg.names = ['ee_z', 'ee_y', 'ee_x', 'gripper']
    with pytest.raises(ValueError, match='expected'):
        conversions.chunk_from_message(msg, spec.action)


REPORT = PrecisionReport(
    requested='w8a8',
    reason='llm late: no time is left',
    since_ns=9,
    changes=3,
    rolled_back=1,
    share_of_inferences={'llm w4a8': 0.25, 'llm w8a8': 0.75},
    share_of_time={'llm w8a8': 1.0},
    latency_s={'w4a8': 0.5},
)


def test_the_precision_message_carries_bits_bytes_and_changes():
    policy = SimpleNamespace(
        precision='w4a8',
        precisions=('fp32', 'w4a8'),
        levels={'llm': (PrecisionLevel(4, 8), PrecisionLevel(8, 8))},
        memory=lambda: MemoryReport(1000, 500, 1000, 3, 'reference', activation_bits=8.0),
    )
    msg = conversions.precision_message(policy, REPORT)
    assert (msg.precision, msg.weight_bytes, msg.quantized_layers) == ('w4a8', 1000, 3)
    assert (msg.mean_bits_per_weight, msg.activation_bits) == (4.0, 8.0)
    assert msg.available == ['fp32', 'w4a8']
    assert msg.switchable == msg.level == ['llm w4a8', 'llm w8a8']
    assert list(msg.share_of_inferences) == [0.25, 0.75]
    assert list(msg.share_of_time) == [0.0, 1.0]
    assert (msg.requested, msg.reason) == (REPORT.requested, REPORT.reason)
    assert (msg.changes, msg.rolled_back, msg.header.stamp.nanosec) == (3, 1, 9)
    assert (msg.measured, list(msg.latency)) == (['w4a8'], [0.5])


@pytest.mark.parametrize(('precision', 'bits'), [('fp32', 32.0), ('bf16', 16.0)])
def test_float_weights_meet_float_inputs(precision, bits):
    policy = SimpleNamespace(
        precision=precision,
        precisions=(precision,),
        levels={},
        memory=lambda: MemoryReport(9, 0, 0, 0, ''),
    )
    assert conversions.precision_message(policy, REPORT).activation_bits == bits


def test_control_states_are_those_of_the_message():
    assert {state.name: state.value for state in ControlState} == {
        name: getattr(PolicyStatus, name)
        for name in ('INACTIVE', 'WAITING', 'RUNNING', 'HOLDING', 'FAULT')
    }


def test_an_image_is_decoded_to_rgb():
    pixels = conversions.to_pixels(image('bgr8'))
    assert pixels.shape == (2, 3, 3)
    assert pixels[0, 0].tolist() == [2, 1, 0]


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ImageError, match='unknown image encoding'):
        conversions.to_pixels(image('rgb9'))


def fake_bridge(monkeypatch, decode):
    module = types.ModuleType('cv_bridge')
    module.CvBridge = lambda: types.SimpleNamespace(imgmsg_to_cv2=decode)
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)


def test_a_working_cv_bridge_is_used_for_plain_encodings_only(monkeypatch):
    used = []

    def decode(msg, encoding):
        used.append((msg.encoding, encoding))
        return conversions.decode_pixels(msg)

    fake_bridge(monkeypatch, decode)
    assert conversions.image_bridge()[1] == 'cv_bridge'
    used.clear()
    conversions.to_pixels(image())
    conversions.to_pixels(image('rgb16', 6))
    assert used == [('rgb8', 'rgb8')]


def test_a_cv_bridge_that_ignores_row_padding_is_not_used(monkeypatch):
    def decode(msg, encoding):
        return np.frombuffer(bytes(msg.data)[:6], np.uint8).reshape(2, 1, 3)[..., ::-1]

    fake_bridge(monkeypatch, decode)
    assert conversions.image_bridge() == (None, 'own decoder: cv_bridge misreads padded rows')


def test_a_cv_bridge_that_fails_is_not_used(monkeypatch):
    def decode(msg, encoding):
        raise AttributeError('newbyteorder')

    fake_bridge(monkeypatch, decode)
    bridge, why = conversions.image_bridge()
    assert bridge is None
    assert 'newbyteorder' in why
