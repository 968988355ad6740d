"""The same stamped messages give the same observations live and from a bag, bit for bit."""

import importlib

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')
pytest.importorskip('rosbags', reason='needs rosbags')

import cv2
import numpy as np
from rclpy.serialization import deserialize_message

from vlaq_ros.data.bag_observations import BagObservations
from vlaq_ros.data.bag_streams import StreamLayout
from vlaq_ros.data.bags import Bag
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.ros.parameters import build
from vlaq_ros.ros.policy_parameters import PolicyParameters

pytestmark = pytest.mark.ros
MS = 1_000_000
PERIOD_NS = 20 * MS


def lively_messages(arm, transport, rng):
    """Record 3 s: own rates, jitter, late arrivals, lost and unusable messages, two sentences."""
    events = []
    for stamp_ms in np.arange(1000.0, 4000.0, 10.0):
        joint_ms = stamp_ms + rng.uniform(0, 2)
        events.append((joint_ms + rng.uniform(0, 5), 'joints', joint_ms))
        if stamp_ms % 20 == 0:
            events.append((stamp_ms + rng.uniform(5, 40), 'pose', stamp_ms))
    for camera, period_ms in (('front', 33.3), ('wrist', 50.0)):
        for stamp_ms in np.arange(1003.0, 4000.0, period_ms):
            is_lost = rng.random() < 0.1 or camera == 'wrist' and 2000 < stamp_ms < 2400
            if not is_lost:
                events.append((stamp_ms + rng.uniform(20, 70), camera, stamp_ms))
    events += [(900.0, 'say', 'open'), (3100.0, 'say', 'close')]
    for number, (log_ms, kind, value) in enumerate(sorted(events, key=lambda event: event[0])):
        if kind == 'say':
            arm.say(value, log_ms)
        elif kind == 'joints':
            arm.joints(value, gripper=np.nan if number % 97 == 0 else rng.random(), log_ms=log_ms)
        elif kind == 'pose':
            frame = 'world' if number % 89 == 0 else 'base'
            arm.pose(value, rng.random(3), frame=frame, log_ms=log_ms)
        elif transport == 'raw':
            encoding = 'rgb9' if number % 61 == 0 else rng.choice(['rgb8', 'bgr8'])
            pixels = rng.integers(0, 251)
            arm.image(kind, value, value=pixels, encoding=str(encoding), log_ms=log_ms)
        else:
            height, width = {'front': (8, 6), 'wrist': (4, 4)}[kind]
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            arm.jpeg(kind, value, cv2.imencode('.jpg', pixels)[1].tobytes(), log_ms=log_ms)


def message_class(type_name):
    package, _, name = type_name.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)


class Live:
    """The inputs of a node that get the messages of a bag from rclpy, without DDS."""

    def __init__(self, node, spec, transport):
        config = build(PolicyParameters, {'image_transport': transport})
        self.inputs = Inputs(node, spec, config, lambda: None, lambda: None)
        self.inputs.enabled = True

    def receive(self, topic, message):
        name = topic.strip('/').partition('/')[0]
        if name in ('front', 'wrist'):
            self.inputs._on_image(name, message)
        elif name == 'ee_pose':
            self.inputs._on_pose(message)
        elif name == 'joint_states':
            self.inputs._on_joints(message)
        else:
            self.inputs._on_text(message, {'source_timestamp': 0})

    def observe(self, now_ns):
        try:
            return self.inputs.observation(now_ns)
        except Exception as error:
            return str(error)


def live_observations(live, bag):
    """Return tick -> observation or refusal; a tick is taken when the newest stamp passes it."""
    seen = {}
    clock_ns, tick_ns = 0, None
    for raw in bag.messages():
        message = deserialize_message(raw.data, message_class(bag.topics()[raw.topic].type))
        if not hasattr(message, 'header'):
            while tick_ns is not None and tick_ns <= clock_ns:
                seen[tick_ns] = live.observe(tick_ns)
                tick_ns += PERIOD_NS
            live.receive(raw.topic, message)
            continue
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if tick_ns is None and 'front' in raw.topic:
            tick_ns = stamp_ns
        while tick_ns is not None and tick_ns < stamp_ns:
            seen[tick_ns] = live.observe(tick_ns)
            tick_ns += PERIOD_NS
        clock_ns = max(clock_ns, stamp_ns)
        live.receive(raw.topic, message)
    return seen


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_live_and_bag_see_the_same(graph, spec, recorded_arm, tmp_path, transport):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        lively_messages(arm, transport, np.random.default_rng(4))
    bag = Bag(arm.path)
    live = Live(graph.node('listener'), spec, transport)
    expected = live_observations(live, bag)

    layout = StreamLayout({c.name: (c.height, c.width) for c in spec.cameras})
    reader = BagObservations(bag, layout, PERIOD_NS)
    scan = reader.scan()
    loaded = {step.now_ns: seen for step, seen in reader.load(scan.steps)}

    assert len(loaded) == len(scan.steps) > 60
    usable = {now_ns: seen for now_ns, seen in expected.items() if not isinstance(seen, str)}
    for now_ns, seen in loaded.items():
        twin = usable[now_ns]
        assert (seen.observed_ns, seen.instruction) == (twin.observed_ns, twin.instruction)
        assert seen.state.tobytes() == twin.state.tobytes()
        assert list(seen.images) == list(twin.images)
        for camera, image in seen.images.items():
            assert image.tobytes() == twin.images[camera].tobytes()
    # What the bag leaves out is a tick that shows the image of the tick before once more.
    assert {s.observed_ns for s in usable.values()} == {s.observed_ns for s in loaded.values()}
    begin_ns, end_ns = min(usable), max(usable)
    refused = {t for t in expected if t not in usable and begin_ns < t < end_ns}
    in_gaps = {t for g in scan.gaps for t in range(g.start_ns, g.end_ns + 1, PERIOD_NS)}
    assert in_gaps == refused
    assert refused
    assert {t.strip('/').partition('/')[0]: n for t, n in scan.dropped.items()} == dict(
        live.inputs.dropped
    )
    assert {'open', 'close'} == {seen.instruction for seen in loaded.values()}


def test_the_layout_of_a_bag_has_the_defaults_of_the_node():
    parameters = PolicyParameters()
    layout = StreamLayout({'front': (8, 6)})
    assert (layout.sources, layout.scales) == (parameters.state.sources, parameters.state.scales)
    assert layout.base_frame == parameters.command.base_frame
    age = parameters.age
    assert (layout.image_age_s, layout.state_age_s, layout.spread_s) == (
        age.image_s,
        age.state_s,
        age.spread_s,
    )
