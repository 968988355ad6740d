"""The reference on another machine, as the policy node sees it: what is used, and what is not."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from sensor_msgs.msg import Image

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.drift_monitor import DriftMonitor
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import NodeProcess, config_file
from vlaq_ros.ros.conversions import chunk_message, to_nanoseconds, to_stamp
from vlaq_ros.ros.interfaces import ActionChunk, PolicyStatus, ReferenceRequest
from vlaq_ros.ros.remote_reference import RemoteReference
from vlaq_ros.types import Observation

pytestmark = pytest.mark.ros
PERIOD_NS = 150_000_000
BUNDLE_HASH = open_bundle('toy').digest
FULL, QUANTIZED = load_policy('toy'), load_policy('toy', precision='w4')
SPEC = FULL.spec


def observed(number, epoch=1):
    """Return what the robot sees before inference `number` of an epoch."""
    rng = np.random.default_rng([number, epoch])
    at_ns = (1000 * epoch + number) * PERIOD_NS
    images = {
        camera.name: rng.integers(0, 256, (camera.height, camera.width, 3), np.uint8)
        for camera in SPEC.cameras
    }
    return Observation(
        images,
        rng.normal(SPEC.state.mean, 0.05),
        'open the drawer',
        at_ns,
        dict.fromkeys(images, at_ns),
    )


def judged(number, epoch=1):
    """Return the chunk of the quantized policy for it."""
    return replace(QUANTIZED.infer(observed(number, epoch)), sequence=number, epoch=epoch)


def answer_of(request, **changes):
    """Return what a good reference answers, with some fields changed."""
    chunk = replace(
        FULL.infer(observed(request.sequence, request.epoch)),
        sequence=request.sequence,
        epoch=request.epoch,
    )
    msg = chunk_message(chunk, request.header.frame_id)
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


class Setup:
    """A source, a robot that publishes what it sees, and a clock that a test moves."""

    def __init__(self, graph, **options):
        self.graph, self.now_s, self.woken = graph, 50.0, 0
        self.node = graph.node('policy')
        self.images = {
            c.name: self.node.create_publisher(Image, f'{c.name}/image_raw', qos.SENSOR_OUT)
            for c in SPEC.cameras
        }
        values = {'bundle_hash': BUNDLE_HASH, 'remote_node': 'reference', 'timeout_s': 1.0}
        self.source = RemoteReference(
            self.node,
            SPEC,
            frame_id='base',
            wake=self._wake,
            **{'steady': lambda: self.now_s, **values, **options},
        )
        self.source.new_epoch(1)

    def _wake(self):
        self.woken += 1

    def ask(self, number, epoch=1):
        seen = observed(number, epoch)
        for camera in SPEC.cameras:
            image = seen.images[camera.name]
            msg = Image(height=camera.height, width=camera.width, encoding='rgb8')
            msg.step, msg.data = 3 * camera.width, image.tobytes()
            msg.header.stamp = to_stamp(seen.observed_ns)
            self.images[camera.name].publish(msg)
        self.source.submit(seen, judged(number, epoch))

    def counted(self):
        return {name: count for name, count in self.source.counts.items() if count}


class FakeReference:
    """Hears questions, and answers what a test wants."""

    def __init__(self, graph, bundle_hash=BUNDLE_HASH):
        self.graph, self.heard = graph, []
        self.node = graph.node('fake_reference')
        self.answers = self.node.create_publisher(
            ActionChunk, 'reference/reference_chunk', qos.REFERENCE
        )
        self.statuses = self.node.create_publisher(PolicyStatus, 'reference/status', qos.LATCHED)
        self.node.create_subscription(
            ReferenceRequest, 'policy/reference_request', self.heard.append, qos.REFERENCE
        )
        self.say(bundle_hash)

    def say(self, bundle_hash=BUNDLE_HASH, reason='', state=PolicyStatus.WAITING):
        self.statuses.publish(
            PolicyStatus(state=state, reason=reason, bundle='toy', bundle_hash=bundle_hash)
        )


@pytest.fixture
def setup(graph):
    return Setup(graph)


@pytest.fixture
def fake(graph, setup):
    fake = FakeReference(graph)
    graph.spin_until(lambda: not setup.source.trouble and setup.source._status, what='discovery')
    return fake


def ask_and_answer(setup, fake, number, asked_in=1, **changes):
    """Ask, answer with these changes, and wait until the answer was judged."""
    setup.ask(number, asked_in)
    setup.graph.spin_until(
        lambda: fake.heard and fake.heard[-1].sequence == number, what=f'question {number}'
    )
    send(setup, fake, answer_of(fake.heard[-1], **changes))


def send(setup, fake, msg):
    seen = []
    judge = setup.source._judge
    setup.source._judge = lambda msg: seen.append(msg) or judge(msg)
    fake.answers.publish(msg)
    setup.graph.spin_until(lambda: seen, what='the answer')
    setup.source._judge = judge


def test_the_question_says_everything_but_the_pixels(setup, fake, graph):
    setup.ask(1)
    graph.spin_until(lambda: fake.heard, what='question')
    (asked,) = fake.heard
    seen = observed(1)
    assert (asked.sequence, asked.epoch, asked.instruction) == (1, 1, 'open the drawer')
    assert (asked.head, asked.bundle_hash, asked.noise_seed) == ('flow', BUNDLE_HASH, 0)
    assert list(asked.cameras) == list(seen.images)
    assert [to_nanoseconds(stamp) for stamp in asked.image_stamps] == [seen.observed_ns] * 2
    assert list(asked.state) == seen.state.tolist()
    assert to_nanoseconds(asked.header.stamp) == seen.observed_ns
    assert asked.header.frame_id == 'base'


def test_a_good_answer_is_collected_once_and_wakes_the_node(setup, fake):
    ask_and_answer(setup, fake, 1)
    assert setup.woken == 1
    ((chunk, reference),) = setup.source.collect()
    assert setup.source.collect() == []
    assert (chunk.sequence, chunk.precision, reference.precision) == (1, 'w4', 'fp32')
    assert np.array_equal(reference.actions, FULL.infer(observed(1)).actions)
    assert setup.counted() == {'asked': 1, 'answered': 1}
    assert setup.source.trouble == ''


@pytest.mark.parametrize(
    ('changes', 'outcome', 'why'),
    [
        ({'epoch': 7}, 'other epoch', 'it is of epoch 7, now is 1'),
        ({'sequence': 99}, 'unknown sequence', 'chunk 99 was not asked about'),
        ({'instruction': 'close it'}, 'other question', 'close it'),
        ({'head': 'token'}, 'other question', 'token'),
        ({'horizon': 2, 'actions': [0.0] * 8}, 'other shape', '(2, 4)'),
        ({'horizon': 0, 'actions': []}, 'other shape', ''),
        ({'actions': [0.0] * 7}, 'other shape', 'reshape'),
        ({'names': ['ee_x', 'ee_y', 'gripper']}, 'other shape', 'names'),
        ({'units': ['rad'] * 4}, 'other shape', 'units'),
        ({'delta': False}, 'other shape', 'delta'),
        ({'actions': [0.0] * 31 + [float('nan')]}, 'not finite', 'chunk 1'),
        ({'actions': [float('inf')] * 32}, 'not finite', 'chunk 1'),
    ],
)
def test_an_answer_that_does_not_fit_is_counted_by_its_reason_and_never_used(
    setup, fake, changes, outcome, why
):
    ask_and_answer(setup, fake, 1, **changes)
    assert setup.source.collect() == []
    assert setup.counted() == {'asked': 1, outcome: 1}
    assert outcome in setup.source.trouble
    assert why in setup.source.trouble
    send(setup, fake, answer_of(fake.heard[-1]))  # the question is still open
    assert len(setup.source.collect()) == 1
    assert setup.source.trouble == ''


def test_an_answer_about_another_instant_is_refused(setup, fake):
    setup.ask(1)
    setup.graph.spin_until(lambda: fake.heard, what='question')
    msg = answer_of(fake.heard[-1])
    msg.header.stamp.nanosec += 1
    send(setup, fake, msg)
    assert setup.counted() == {'asked': 1, 'other stamp': 1}


def test_the_same_answer_twice_counts_once(setup, fake):
    ask_and_answer(setup, fake, 1)
    send(setup, fake, answer_of(fake.heard[-1]))
    assert len(setup.source.collect()) == 1
    assert setup.counted() == {'asked': 1, 'answered': 1, 'duplicate': 1}


def test_answers_out_of_order_are_refused(setup, fake, graph):
    for number in (1, 2):
        setup.ask(number)
    graph.spin_until(lambda: len(fake.heard) == 2, what='questions')
    for request in reversed(fake.heard):
        send(setup, fake, answer_of(request))
    assert [pair.chunk.sequence for pair in setup.source.collect()] == [2]
    assert setup.counted() == {'asked': 2, 'answered': 1, 'out of order': 1}


def test_a_late_answer_is_refused_and_the_silence_before_it_is_told(setup, fake, graph):
    setup.ask(1)
    graph.spin_until(lambda: fake.heard, what='question')
    setup.now_s += 0.9
    assert setup.source.trouble == ''
    fake.say(reason='without image: no image of wrist')
    graph.spin_until(lambda: setup.source._status.reason, what='status')
    setup.now_s += 0.4
    assert 'no usable answer for 1.3 s; without image: no image of wrist' in setup.source.trouble
    send(setup, fake, answer_of(fake.heard[-1]))
    assert setup.source.collect() == []
    assert setup.counted() == {'asked': 1, 'unanswered': 1, 'late': 1}
    assert 'chunk 1 came after 1 s (drift.remote_timeout_s)' in setup.source.trouble
    ask_and_answer(setup, fake, 2)
    assert len(setup.source.collect()) == 1
    assert setup.source.trouble == ''


def test_nothing_of_an_earlier_epoch_is_collected(setup, fake):
    ask_and_answer(setup, fake, 1)
    setup.ask(2)
    setup.graph.spin_until(lambda: len(fake.heard) == 2, what='question')
    setup.source.new_epoch(2)
    assert setup.source.collect() == []
    send(setup, fake, answer_of(fake.heard[-1]))
    assert setup.source.collect() == []
    ask_and_answer(setup, fake, 3, asked_in=2)
    assert [pair.chunk.sequence for pair in setup.source.collect()] == [3]
    assert setup.counted() == {'asked': 3, 'answered': 1, 'withdrawn': 2, 'other epoch': 1}


def test_what_waits_is_bounded(setup, fake):
    for number in range(1, 51):
        setup.ask(number)
    assert setup.counted() == {'asked': 50, 'dropped': 18}
    setup.now_s += 1.5
    assert setup.source.collect() == []
    assert setup.counted() == {'asked': 50, 'dropped': 18, 'unanswered': 32}


def test_without_a_reference_nothing_is_sent_and_the_operator_is_told_what_to_start(setup, graph):
    setup.ask(1)
    assert setup.counted() == {'asked': 1, 'no reference': 1}
    assert 'no reference node listens on /policy/reference_request' in setup.source.trouble
    assert '/reference/reference_chunk' in setup.source.trouble
    listener = graph.node('bag_recorder')
    listener.create_subscription(ReferenceRequest, 'policy/reference_request', print, 10)
    graph.spin_until(setup.source._requests.get_subscription_count, what='discovery')
    assert 'no reference node' in setup.source.trouble  # who records does not answer


def test_a_reference_with_another_bundle_is_named_and_not_believed(setup, fake, graph):
    fake.say(bundle_hash='f00d' * 16)
    graph.spin_until(lambda: setup.source.trouble, what='status')
    assert setup.source.trouble == (
        f"other bundle: the reference node has 'toy' (f00df00df00d), asked for is "
        f'{BUNDLE_HASH[:12]}'
    )
    ask_and_answer(setup, fake, 1)
    assert setup.source.collect() == []
    assert setup.counted() == {'asked': 1, 'other bundle': 1}


def test_a_reference_that_is_not_active_is_named(setup, fake, graph):
    fake.say(state=PolicyStatus.INACTIVE, reason='cannot load')
    graph.spin_until(lambda: setup.source.trouble, what='status')
    assert setup.source.trouble == 'the reference node is not active: cannot load'


def test_an_observation_without_stamps_of_its_images_cannot_be_asked_about(setup, fake):
    setup.source.submit(replace(observed(1), image_ns={}), judged(1))
    assert setup.counted() == {'asked': 1, 'no image stamps': 1}


def test_a_middleware_that_fails_is_a_failure_and_no_more(setup, fake, monkeypatch):
    def fail(msg):
        raise RuntimeError('the context is gone')

    with monkeypatch.context() as patch:
        patch.setattr(setup.source._requests, 'publish', fail)
        setup.ask(1)
    assert setup.counted() == {'asked': 1, 'failed': 1}
    assert setup.source.trouble == 'cannot ask: RuntimeError: the context is gone'
    ask_and_answer(setup, fake, 2)
    assert len(setup.source.collect()) == 1


def test_it_leaves_the_graph_when_it_is_closed(setup, fake, graph):
    setup.source.close()
    graph.spin_until(
        lambda: not fake.node.count_publishers('policy/reference_request'), what='the end'
    )


# --- a reference in a process of its own


@pytest.fixture
def start_reference(ros_domain, tmp_path):
    """Return a function that starts a reference node as its own process."""
    running = []

    def start(**parameters):
        folder = tmp_path / str(len(running))
        folder.mkdir()
        node = NodeProcess(
            'reference',
            'vlaq_ros.ros.reference_node',
            folder,
            parameter_file=config_file('reference_node.yaml'),
            parameters={'bundle': 'toy', 'autostart': True, **parameters},
            remappings={},
            environment=os.environ,
        )
        running.append(node)
        return node

    yield start
    for node in running:
        os.killpg(node._process.pid, signal.SIGCONT) if node._process.poll() is None else None
        node.stop()


def answered(setup, number):
    """Ask about one chunk after the other until there is an answer; return the pairs."""
    for attempt in range(100):
        setup.ask(number + attempt)
        until_s = setup.now_s + 1.2  # a question that is lost shall not be waited for
        while not setup.woken and setup.now_s < until_s:
            setup.graph.executor.spin_once(timeout_sec=0.02)
            setup.now_s += 0.01
        setup.woken = 0
        pairs = setup.source.collect()
        if pairs:
            return pairs
    raise AssertionError(f'no answer: {setup.source.trouble}, {setup.counted()}')


def ready(setup):
    setup.graph.spin_until(
        lambda: not setup.source.trouble and setup.source._status, 60.0, 'the reference node'
    )


def test_the_drift_is_that_of_a_reference_in_this_process_bit_for_bit(
    graph, setup, start_reference
):
    start_reference(image_wait_s=1.9)
    ready(setup)
    remote, local = (DriftMonitor(SPEC.action, 6, DriftLimits(), 1.0) for _ in range(2))
    for number in range(1, 21):
        for chunk, reference in answered(setup, 100 * number):
            there = remote.measured(chunk, reference, 'remote')
            here = FULL.infer(observed(chunk.sequence))
            same = local.measured(judged(chunk.sequence), here, 'remote')
            assert repr(there) == repr(same)  # NaN is not equal to itself
            assert there.drift.position_accumulated_m > 0.0
    assert setup.source.counts['answered'] == 20


def test_killed_and_started_again_it_answers_again_by_itself(graph, setup, start_reference):
    first = start_reference()
    ready(setup)
    answered(setup, 1)
    os.killpg(first._process.pid, signal.SIGKILL)
    first._process.wait()
    setup.ask(200)
    graph.spin_for(0.2)
    setup.now_s += 1.5
    assert setup.source.collect() == []
    assert setup.source.counts['unanswered'] == 1
    assert 'no usable answer for 1.5 s' in setup.source.trouble
    start_reference()
    assert answered(setup, 300)[0].reference.precision == 'fp32'
    assert setup.source.trouble == ''


def test_paused_it_answers_late_and_recovers_by_itself(graph, setup, start_reference):
    node = start_reference()
    ready(setup)
    answered(setup, 1)
    os.killpg(node._process.pid, signal.SIGSTOP)
    setup.ask(200)
    graph.spin_for(0.2)
    setup.now_s += 1.5
    setup.source.collect()
    assert 'no usable answer for 1.5 s' in setup.source.trouble
    os.killpg(node._process.pid, signal.SIGCONT)
    graph.spin_until(lambda: setup.source.counts['late'], what='the late answer')
    assert setup.source.collect() == []
    answered(setup, 300)
    assert setup.source.trouble == ''


def test_another_bundle_is_told_by_both_sides(graph, start_reference):
    setup = Setup(graph, bundle_hash='f00d' * 16)
    start_reference()
    graph.spin_until(lambda: 'other bundle' in setup.source.trouble, 60.0, 'status')
    setup.ask(1)
    graph.spin_until(
        lambda: 'asked for bundle f00df00df00d' in setup.source._status.reason,
        what='the reason of the reference',
    )
    assert setup.source.collect() == []
