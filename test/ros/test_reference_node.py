"""The reference node: what it answers, what it does not, and what it says about it."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from vlaq_ros.data.observation_hash import observation_hash
from vlaq_ros.errors import ConfigError, PolicyError
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import config_file
from vlaq_ros.ros.conversions import to_nanoseconds, to_stamp
from vlaq_ros.ros.interfaces import ActionChunk, PolicyStatus, ReferenceRequest
from vlaq_ros.ros.parameters import build, table
from vlaq_ros.ros.reference_answers import ANSWERED, ASKED, OUTCOMES, ReferenceAnswers
from vlaq_ros.ros.reference_node import ReferenceNode
from vlaq_ros.ros.reference_parameters import ReferenceParameters
from vlaq_ros.types import Observation

pytestmark = pytest.mark.ros
TOY = load_policy('toy')
CAMERAS = [camera.name for camera in TOY.spec.cameras]
STATE = np.array([0.01, 0.62, 0.21, 1.0 / 3.0])
BUNDLE_HASH = open_bundle('toy').digest


def pixels(camera, at_ns):
    rng = np.random.default_rng([at_ns, CAMERAS.index(camera.name)])
    return rng.integers(0, 256, (camera.height, camera.width, 3), np.uint8)


def image_message(camera, at_ns):
    msg = Image(height=camera.height, width=camera.width, encoding='rgb8', step=3 * camera.width)
    msg.data = pixels(camera, at_ns).tobytes()
    msg.header.stamp = to_stamp(at_ns)
    return msg


def observed(at_ns):
    images = {camera.name: pixels(camera, at_ns) for camera in TOY.spec.cameras}
    return Observation(images, STATE, 'open the drawer', at_ns)


def question(sequence, at_ns, epoch=1, **changes):
    values = {
        'sequence': sequence,
        'epoch': epoch,
        'instruction': 'open the drawer',
        'head': TOY.head,
        'bundle_hash': BUNDLE_HASH,
        'cameras': CAMERAS,
        'image_stamps': [to_stamp(at_ns)] * len(CAMERAS),
        'state': STATE.tolist(),
        'observation_hash': observation_hash(observed(at_ns), CAMERAS),
        **changes,
    }
    msg = ReferenceRequest(**values)
    msg.header.stamp, msg.header.frame_id = to_stamp(at_ns), 'base'
    return msg


class SlowPolicy:
    """The toy policy, which a test can make wait or fail."""

    spec, precision, head = TOY.spec, TOY.precision, TOY.head

    def __init__(self):
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.error = None
        self.resets = 0

    def reset(self):
        self.resets += 1

    def infer(self, observation):
        self.may_answer.wait(20.0)
        if self.error is not None:
            raise self.error
        return TOY.infer(observation)


class Desk:
    """The rules without a graph: time passes when the test says so."""

    def __init__(self, **parameters):
        self.now_s = 0.0
        self.policy = SlowPolicy()
        self.done = threading.Event()
        config = build(ReferenceParameters, parameters)
        self.answers = ReferenceAnswers(
            self.policy, BUNDLE_HASH, config, self.done.set, lambda: self.now_s
        )

    def see(self, at_ns, cameras=CAMERAS):
        for camera in TOY.spec.cameras:
            if camera.name in cameras:
                self.answers.store(camera.name, image_message(camera, at_ns))

    def answer(self):
        """Return the sequences of what is answered once the worker is at rest."""
        found = []
        while self.answers.is_inferring or self.done.is_set():
            assert self.done.wait(20.0), 'no inference ended'
            self.done.clear()
            found += self.answers.collect()
        return [msg.sequence for msg in found]

    def counted(self):
        return {name: count for name, count in self.answers.counts.items() if count}


@pytest.fixture
def desk():
    made = []

    def make(**parameters):
        made.append(Desk(**parameters))
        return made[-1]

    yield make
    for one in made:
        one.policy.may_answer.set()
        one.answers.close()


def test_a_question_waits_for_images_that_are_still_on_their_way(desk):
    desk = desk()
    desk.answers.ask(question(1, 7))
    desk.see(7, ['front'])
    assert desk.answers.waiting == 1
    desk.now_s += 0.2
    desk.see(7, ['wrist'])
    assert desk.answer() == [1]
    assert desk.counted() == {ASKED: 1, ANSWERED: 1}


def test_images_that_never_come_end_the_wait_and_are_named(desk):
    desk = desk(image_wait_s=0.5)
    desk.see(7, ['front'])
    desk.see(8)
    desk.answers.ask(question(1, 7))
    desk.now_s += 0.6
    desk.answers.advance()
    assert desk.counted() == {ASKED: 1, 'without image': 1}
    assert 'no image of wrist at 0.000 s within 0.5 s' in desk.answers.trouble
    desk.answers.ask(question(2, 8))
    assert desk.answer() == [2]
    assert desk.answers.trouble == ''


def test_the_newest_question_is_answered_and_older_ones_are_given_up(desk):
    desk = desk()
    desk.policy.may_answer.clear()
    for number in range(1, 5):
        desk.see(number)
        desk.answers.ask(question(number, number))
    desk.policy.may_answer.set()
    assert desk.answer() == [1, 4]
    assert desk.counted() == {ASKED: 4, ANSWERED: 2, 'skipped: busy': 2}


def test_images_of_a_waiting_question_outlive_the_history(desk):
    desk = desk(history_s=1.0)
    desk.policy.may_answer.clear()
    for number in (1, 2):
        desk.see(number)
        desk.answers.ask(question(number, number))
    desk.now_s += 30.0
    desk.answers.advance()
    desk.policy.may_answer.set()
    assert desk.answer() == [1, 2]


def test_no_more_than_a_few_questions_wait(desk):
    desk = desk(image_wait_s=1.0)
    for number in range(1, 21):
        desk.answers.ask(question(number, number))
    assert desk.answers.waiting == 8
    assert desk.counted() == {ASKED: 20, 'skipped: busy': 12}
    desk.now_s += 1.1
    desk.answers.advance()
    assert desk.counted() == {ASKED: 20, 'skipped: busy': 12, 'without image': 8}


@pytest.mark.parametrize(
    ('changes', 'outcome', 'why'),
    [
        (
            {'bundle_hash': 'f00d' * 16},
            'other bundle',
            f'f00df00df00d, this is {BUNDLE_HASH[:12]}',
        ),
        ({'head': 'token'}, 'other cameras, head or noise', "head 'token', this policy runs"),
        ({'cameras': CAMERAS[::-1]}, 'other cameras, head or noise', 'this policy has'),
        ({'image_stamps': []}, 'other cameras, head or noise', 'with 0 stamps'),
        ({'noise_seed': 3}, 'other cameras, head or noise', 'seed 3'),
        ({'observation_hash': 'ab' * 32}, 'other hash', 'abababababab at the policy'),
        ({'state': [0.0] * 4}, 'other hash', 'images and state'),
        ({'instruction': ''}, 'failed', 'the instruction is empty'),
    ],
)
def test_what_is_not_the_same_question_has_no_answer(desk, changes, outcome, why):
    desk = desk()
    desk.see(7)
    desk.answers.ask(question(1, 7, **changes))
    assert desk.answer() == []
    assert desk.counted() == {ASKED: 1, outcome: 1}
    assert why in desk.answers.trouble
    desk.answers.ask(question(2, 7))
    assert desk.answer() == [2]


def test_any_bundle_may_answer_when_none_is_named(desk):
    desk = desk()
    desk.see(7)
    desk.answers.ask(question(1, 7, bundle_hash=''))
    assert desk.answer() == [1]


def test_an_image_of_another_size_is_a_failure_with_both_sizes(desk):
    desk = desk()
    desk.see(7, ['front'])
    camera = TOY.spec.cameras[1]
    msg = Image(height=2, width=3, encoding='rgb8', step=9, data=bytes(18))
    msg.header.stamp = to_stamp(7)
    desk.answers.store(camera.name, msg)
    desk.answers.ask(question(1, 7))
    assert desk.answer() == []
    assert desk.counted() == {ASKED: 1, 'failed': 1}
    assert '3 x 2 px' in desk.answers.trouble


def test_a_reset_ends_what_is_under_way_and_resets_the_policy(desk):
    desk = desk()
    desk.policy.may_answer.clear()
    desk.see(7)
    desk.answers.ask(question(1, 7, epoch=4))
    desk.answers.ask(question(2, 7, epoch=4))
    desk.answers.ask(question(3, 7, epoch=5))
    desk.policy.may_answer.set()
    assert desk.answer() == [3]
    assert desk.counted() == {ASKED: 3, ANSWERED: 1, 'skipped: other epoch': 2}
    assert desk.policy.resets == 2


def test_a_policy_node_that_is_started_again_is_answered(desk):
    """It counts epochs and chunks from the beginning, and may reach the same numbers."""
    desk = desk()
    desk.see(7)
    for epoch, sequence in ((3, 90), (1, 1), (1, 2), (1, 1)):
        desk.answers.ask(question(sequence, 7, epoch=epoch))
        assert desk.answer() == [sequence]
    assert desk.policy.resets == 3


def test_a_failing_policy_is_reported_and_tried_again(desk):
    desk = desk()
    desk.see(7)
    desk.policy.error = PolicyError('the device is gone')
    desk.answers.ask(question(1, 7))
    assert desk.answer() == []
    assert desk.answers.trouble == 'failed: PolicyError: the device is gone'
    desk.policy.error = None
    desk.answers.ask(question(2, 7))
    assert desk.answer() == [2]


def test_every_question_ends_in_one_outcome(desk):
    """Questions, images and pauses in random order: the books balance and nothing is left."""
    desk = desk(image_wait_s=0.3)
    rng = np.random.default_rng(3)
    for number in range(1, 200):
        at = int(rng.integers(1, 40))
        match rng.integers(0, 5):
            case 0 | 1:
                desk.answers.ask(question(number, at, epoch=1 + number // 70))
            case 2 | 3:
                desk.see(at, list(rng.permutation(CAMERAS)[: rng.integers(1, 3)]))
            case _:
                desk.now_s += 0.1
                desk.answers.collect()
    desk.answer()
    desk.now_s += 1.0
    desk.answers.advance()
    desk.answer()
    counts = dict(desk.answers.counts)
    asked = counts.pop(ASKED)
    assert desk.answers.waiting == 0
    assert asked == sum(counts.values())
    assert counts[ANSWERED] > 0  # how many depends on how quick the thread is
    assert set(counts) < set(OUTCOMES)


# --- the node


class Asker:
    """A node that stands for robot and policy."""

    def __init__(self, graph, image_type=Image, suffix=''):
        self.graph = graph
        self.node = node = graph.node('asker')
        self.images = {
            name: node.create_publisher(image_type, f'{name}/image_raw{suffix}', qos.SENSOR_OUT)
            for name in CAMERAS
        }
        self.requests = node.create_publisher(
            ReferenceRequest, 'policy/reference_request', qos.REFERENCE
        )
        self.chunks, self.statuses, self.diagnostics = [], [], {}
        node.create_subscription(
            ActionChunk, 'reference/reference_chunk', self.chunks.append, qos.REFERENCE
        )
        node.create_subscription(
            PolicyStatus, 'reference/status', self.statuses.append, qos.LATCHED
        )
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def _on_diagnostics(self, msg):
        self.diagnostics = {status.name: status for status in msg.status}

    def find(self):
        topics = (*self.images.values(), self.requests)
        self.graph.spin_until(
            lambda: (
                all(p.get_subscription_count() for p in topics)
                and self.node.count_publishers('reference/reference_chunk')
                and self.statuses
            ),
            what='discovery',
        )

    def ask(self, sequence, at_ns, **changes):
        for camera in TOY.spec.cameras:
            self.images[camera.name].publish(image_message(camera, at_ns))
        self.requests.publish(question(sequence, at_ns, **changes))

    def counts(self):
        status = self.diagnostics.get('reference: questions')
        values = {} if status is None else {pair.key: pair.value for pair in status.values}
        return {name: int(values[name]) for name in OUTCOMES if name in values}


@pytest.fixture
def make_node(graph):
    def make(**parameters):
        values = {'bundle': 'toy', **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        return graph.add(
            ReferenceNode(context=graph.context, parameter_overrides=overrides, cli_args=[])
        )

    return make


def test_the_answer_is_what_the_full_precision_policy_does_bit_for_bit(graph, make_node):
    asker, node = Asker(graph), make_node()
    assert node.bring_up(), node.failure
    asker.find()
    for number in range(1, 6):
        at_ns = 25_000_000 * number
        asker.ask(number, at_ns, epoch=3)
        graph.spin_until(lambda: asker.chunks, what='answer')
        answer = asker.chunks.pop()
        expected = TOY.infer(observed(at_ns))
        assert list(answer.actions) == expected.actions.ravel().tolist()
        assert to_nanoseconds(answer.header.stamp) == at_ns
        assert (answer.sequence, answer.epoch, answer.precision) == (number, 3, 'fp32')
        assert (answer.header.frame_id, answer.head) == ('base', 'flow')


def test_it_says_on_diagnostics_and_status_what_became_of_questions(graph, make_node):
    asker, node = Asker(graph), make_node(image_wait_s=0.01)
    assert node.bring_up(), node.failure
    asker.find()
    assert asker.statuses[-1].bundle_hash == BUNDLE_HASH
    asker.ask(1, 7)
    graph.spin_until(lambda: asker.chunks, what='answer')
    asker.ask(2, 8, observation_hash='ab' * 32)
    graph.spin_until(lambda: asker.counts().get('other hash'), what='other hash')
    asker.ask(3, 9, bundle_hash='f00d' * 16)
    asker.requests.publish(question(4, 10))
    graph.spin_until(lambda: asker.counts().get('without image'), what='without image')
    assert asker.counts() == {
        **dict.fromkeys(OUTCOMES, 0),
        'asked': 4,
        'answered': 1,
        'other hash': 1,
        'other bundle': 1,
        'without image': 1,
    }
    status = asker.diagnostics['reference: questions']
    assert status.level in (b'\x00', b'\x01')
    assert status.hardware_id == f'toy {BUNDLE_HASH[:12]}'
    graph.spin_until(lambda: 'no image of' in asker.statuses[-1].reason, what='the reason')


def test_it_answers_only_while_it_is_active_and_forgets_what_was_before(graph, make_node):
    asker, node = Asker(graph), make_node()
    assert node.trigger_configure()
    asker.find()
    asker.ask(1, 7)
    graph.spin_for(0.2)
    assert node.trigger_activate()
    asker.requests.publish(question(2, 7))
    graph.spin_until(lambda: asker.counts().get('without image'), what='no image of before')
    assert asker.chunks == []
    asker.ask(3, 8)
    graph.spin_until(lambda: asker.chunks, what='answer')
    assert node.trigger_deactivate()
    assert asker.statuses
    graph.spin_until(
        lambda: asker.statuses[-1].state == PolicyStatus.INACTIVE, what='inactive status'
    )
    assert node.trigger_cleanup()
    assert node.bring_up(), node.failure
    asker.find()
    asker.ask(4, 9)
    graph.spin_until(lambda: len(asker.chunks) == 2, what='answer after a new start')


def test_compressed_images_are_decoded_as_at_the_policy(graph, make_node):
    import cv2

    from vlaq_ros.data.images import decode_compressed

    asker = Asker(graph, CompressedImage, '/compressed')
    node = make_node(image_transport='compressed')
    assert node.bring_up(), node.failure
    asker.find()
    images = {}
    for camera in TOY.spec.cameras:
        data = cv2.imencode('.jpg', pixels(camera, 7))[1].tobytes()
        msg = CompressedImage(format='rgb8; jpeg compressed bgr8', data=data)
        msg.header.stamp = to_stamp(7)
        images[camera.name] = decode_compressed(msg.format, data)
        asker.images[camera.name].publish(msg)
    seen = Observation(images, STATE, 'open the drawer', 7)
    asker.requests.publish(question(1, 7, observation_hash=observation_hash(seen, CAMERAS)))
    graph.spin_until(lambda: asker.chunks, what='answer')
    assert list(asker.chunks[0].actions) == TOY.infer(seen).actions.ravel().tolist()


def test_it_refuses_to_configure_with_all_reasons(make_node):
    node = make_node(image_wait_s=3.0, policy='')
    assert not node.bring_up()
    assert "'policy' must not be empty" in node.failure
    assert "must be below 'history_s'" in node.failure


def test_a_bundle_that_does_not_exist_is_refused_at_configure(make_node):
    node = make_node(bundle='nowhere')
    assert not node.bring_up()
    assert 'nowhere' in node.failure


def test_the_parameter_file_shows_the_defaults_of_the_node():
    (values,) = yaml.safe_load(config_file('reference_node.yaml').read_text()).values()
    expected = {row.name: row.default for row in table(ReferenceParameters)}
    assert values['ros__parameters'] == expected


def test_parameters_have_bounds():
    with pytest.raises(ConfigError, match='history_mb'):
        build(ReferenceParameters, {'history_mb': 0.0})


def test_the_process_starts_by_itself_and_ends_with_ctrl_c(ros_domain):
    command = [sys.executable, '-m', 'vlaq_ros.ros.reference_node', '--ros-args']
    command += ['-p', 'autostart:=true', '-p', 'bundle:=toy']
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if 'configured: bundle' in line:
            break
    process.send_signal(signal.SIGINT)
    seen.append(process.stdout.read())
    assert process.wait(60.0) == 0, ''.join(seen)
    assert "configured: bundle 'toy'" in ''.join(seen)
