"""The order of what goes on the wire, without a graph: recorded calls instead of messages."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from vlaq_ros.control.supervisor import ControlState
from vlaq_ros.errors import StaleInputError
from vlaq_ros.ros.control_loop import ControlLoop
from vlaq_ros.ros.outputs import Outputs
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.types import EndEffectorCommand, Observation, Pose

PERIOD_NS = 25_000_000


class Wire:
    """Keeps what was sent, in order; in the place of `Outputs`."""

    wants_pose = False

    def __init__(self):
        self.sent = []

    def send_twist(self, command, stamp_ns):
        self.sent.append(('move', stamp_ns, command.twist[0]))

    def send_pose(self, pose, gripper, stamp_ns):
        self.sent.append(('pose', stamp_ns, pose.position[0]))

    def send_stop(self, pose, stamp_ns):
        place = (pose.position[0],) if self.wants_pose else ()
        self.sent.append(('stop', stamp_ns, *place))
        return True

    def send_chunk(self, chunk):
        self.sent.append(('chunk', chunk.sequence))


class Senses:
    """Always has an observation of now, unless a test says otherwise; in the place of `Inputs`."""

    instruction, enabled, decode_s, problem = 'open', False, 0.0, None
    x_m = 0.0

    def require(self, now_ns):
        if self.problem:
            raise StaleInputError(self.problem)

    def observation(self, now_ns):
        return Observation({}, np.zeros(4), self.instruction, now_ns)

    def silence(self):
        return ''

    def pose(self, now_ns):
        return Pose(np.array([self.x_m, 0.0, 0.0]))

    def ages_s(self, now_ns):
        return {}

    def clear(self):
        pass

    def forget(self, now_ns):
        pass


@pytest.fixture
def bench(fake_policy):
    """Return the loop between fakes, and a tick that waits for the inference it started."""
    wire, senses, done, steady = Wire(), Senses(), threading.Semaphore(0), [0.0]
    loop = ControlLoop(
        fake_policy, PolicyParameters(), senses, wire, done.release, lambda: steady[0]
    )
    loop.activate(0)

    def tick(now_ns):
        before = len(fake_policy.observations)
        steady[0] = now_ns / 1e9
        loop.tick(now_ns)
        if loop._worker.is_busy or len(fake_policy.observations) > before:
            assert done.acquire(timeout=10.0)

    yield SimpleNamespace(
        loop=loop, wire=wire, senses=senses, tick=tick, policy=fake_policy, steady=steady
    )
    loop.close()


@pytest.fixture
def pose_bench(bench):
    """Return the bench with target poses as output."""
    bench.wire.wants_pose = True
    return bench


def places(bench, kind='pose'):
    return [sent[2] for sent in bench.wire.sent if sent[0] == kind]


def limit_speed(bench, speed):
    config = PolicyParameters()
    limits = replace(config.limits, max_linear_speed=speed)
    bench.loop.apply(replace(config, limits=limits))


def test_nothing_moves_before_the_first_chunk_and_then_rows_follow_the_clock(bench):
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    assert bench.wire.sent[0] == ('chunk', 1)
    assert [s[1:] for s in bench.wire.sent[1:]] == [
        (PERIOD_NS, pytest.approx(0.08)),  # row 1: 2 mm per 25 ms
        (2 * PERIOD_NS, pytest.approx(0.12)),
    ]


def test_when_deactivated_the_stop_is_the_last_thing_sent(bench):
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.loop.deactivate('deactivated', 3 * PERIOD_NS)
    assert bench.wire.sent[-1] == ('stop', 3 * PERIOD_NS)
    count = len(bench.wire.sent)
    bench.loop.tick(4 * PERIOD_NS)
    bench.loop.watch(5 * PERIOD_NS)
    assert len(bench.wire.sent) == count


def test_a_stale_input_is_followed_by_stops_only(bench):
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.wire.sent.clear()
    bench.senses.problem = 'front: 300 ms old, limit 250 ms'
    for k in range(3, 60):
        bench.tick(k * PERIOD_NS)
    assert {s[0] for s in bench.wire.sent} == {'stop'}
    assert len(bench.wire.sent) == 41  # for one second, both ends included
    assert bench.loop.supervisor.reason == bench.senses.problem


def test_one_stop_is_sent_when_it_shall_not_be_repeated(bench):
    """The clock was read twice, so that a stop repeated for 0 s was over before it was sent."""
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.wire.sent.clear()
    bench.loop.supervisor.stop_repeat_s = 0.0
    clock = iter(range(1000))
    bench.loop._steady = lambda: float(next(clock))  # time passes between two readings
    bench.loop.hold('stale', 3 * PERIOD_NS)
    bench.loop.hold('stale', 4 * PERIOD_NS)
    assert bench.wire.sent == [('stop', 3 * PERIOD_NS)]


def test_when_ticks_stop_while_sensors_go_on_the_watch_stops_the_arm(bench):
    """A ROS clock that was set back froze the tick, and the last motion stayed in force."""
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.wire.sent.clear()
    bench.steady[0] += 0.14
    bench.loop.watch(-5 * PERIOD_NS)
    assert bench.wire.sent == []
    bench.steady[0] += 0.02
    bench.loop.watch(-5 * PERIOD_NS)
    assert bench.wire.sent == [('stop', -5 * PERIOD_NS)]
    assert bench.loop.supervisor.state is ControlState.HOLDING
    assert bench.loop.supervisor.reason.startswith('no control tick for 0.2 s')
    bench.tick(10 * PERIOD_NS)
    bench.tick(11 * PERIOD_NS)
    assert bench.wire.sent[-1][0] == 'move'


def test_in_simulated_time_a_slow_clock_is_no_stall_but_a_silent_one_is(fake_policy):
    steady = [0.0]
    config, wire = PolicyParameters(), Wire()
    loop = ControlLoop(fake_policy, config, Senses(), wire, lambda: None, lambda: steady[0], True)
    loop.activate(0)
    loop.supervisor.run(0)
    steady[0] = config.age.silence_s - 0.1
    loop.watch(0)
    assert wire.sent == []
    steady[0] = config.age.silence_s + 0.1
    loop.watch(0)
    assert wire.sent == [('stop', 0)]
    loop.close()


@pytest.mark.parametrize('what', ['reset', 'clock_went_back'])
def test_a_new_start_while_moving_stops_at_once(bench, what):
    """Nothing was sent, and the last motion stayed in force until the next tick held."""
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.wire.sent.clear()
    getattr(bench.loop, what)(2 * PERIOD_NS)
    assert bench.wire.sent == [('stop', 2 * PERIOD_NS)]


def test_a_late_first_target_keeps_the_speed_limit_from_the_measured_pose(pose_bench):
    """The target of row 5, 13 mm away, was sent at once although 2 mm per tick are allowed."""
    limit_speed(pose_bench, 0.1)
    pose_bench.policy.change = lambda actions: np.clip(actions, 0.0, 0.0025)
    pose_bench.tick(0)
    pose_bench.loop.player.execution_horizon = 8
    for k in (5, 6, 7):
        pose_bench.tick(k * PERIOD_NS)
    assert places(pose_bench) == pytest.approx([0.002, 0.0045, 0.007])
    assert pose_bench.loop.counts['limited: linear_speed'] == 3


def test_a_hold_inside_a_chunk_goes_on_from_the_measured_pose(pose_bench):
    """The arm had stayed where the hold began, and the next target was several rows away."""
    pose_bench.loop.player.execution_horizon = 8
    limit_speed(pose_bench, 0.4)
    pose_bench.tick(0)
    pose_bench.tick(PERIOD_NS)
    pose_bench.senses.problem = 'front: 300 ms old, limit 250 ms'
    for k in (2, 3, 4):
        pose_bench.tick(k * PERIOD_NS)
    pose_bench.senses.problem, pose_bench.senses.x_m = None, 0.001
    pose_bench.tick(5 * PERIOD_NS)
    assert places(pose_bench)[-1] == pytest.approx(0.001 + 0.4 * 0.02)


def test_a_lower_speed_limit_acts_on_the_chunk_that_is_executed(pose_bench):
    """The targets were planned with the old limit and sent as they were."""
    pose_bench.loop.player.execution_horizon = 8
    for k in range(4):
        pose_bench.tick(k * PERIOD_NS)
    assert places(pose_bench)[-1] == pytest.approx(0.010)  # 1 + 2 + 3 + 4 mm
    limit_speed(pose_bench, 0.04)
    for k in range(4, 8):
        pose_bench.tick(k * PERIOD_NS)
    assert np.diff(places(pose_bench)[-5:]) == pytest.approx(0.001)
    assert pose_bench.loop._poses.targets[7].pose.position[0] == pytest.approx(0.014)


def test_a_limit_that_refuses_from_now_on_refuses_the_rest_of_the_chunk(pose_bench):
    pose_bench.loop.player.execution_horizon = 8
    for k in range(4):
        pose_bench.tick(k * PERIOD_NS)
    config = PolicyParameters()
    limits = replace(config.limits, max_linear_speed=0.04, on_exceed='refuse')
    pose_bench.loop.apply(replace(config, limits=limits))
    pose_bench.tick(4 * PERIOD_NS)
    assert pose_bench.loop.supervisor.state is ControlState.FAULT
    assert pose_bench.loop.counts['refused: linear_speed'] == 1
    assert pose_bench.wire.sent[-1][0] == 'stop'


def test_the_stop_repeats_the_pose_at_which_it_began(pose_bench):
    """Each repetition was the pose measured then, so a sagging arm sank with its target."""
    for k in range(3):
        pose_bench.tick(k * PERIOD_NS)
    pose_bench.senses.problem = 'front: 300 ms old, limit 250 ms'
    for k in range(3, 6):
        pose_bench.senses.x_m = 0.01 - 0.001 * k
        pose_bench.tick(k * PERIOD_NS)
    pose_bench.loop.fault('broken', 6 * PERIOD_NS)
    pose_bench.loop.deactivate('deactivated', 7 * PERIOD_NS)
    assert places(pose_bench, 'stop') == pytest.approx([0.007] * 5)


def test_a_new_stop_begins_where_the_arm_is_then(pose_bench):
    for k in range(3):
        pose_bench.tick(k * PERIOD_NS)
    pose_bench.loop.hold('one', 3 * PERIOD_NS)
    pose_bench.tick(3 * PERIOD_NS)
    pose_bench.senses.x_m = 0.005
    pose_bench.loop.hold('another', 4 * PERIOD_NS)
    assert places(pose_bench, 'stop') == pytest.approx([0.0, 0.005])


def test_an_image_from_before_the_first_pose_is_waited_out(pose_bench):
    """It ended in a fault, which only ~/reset left, although the next image had a pose."""
    measured = pose_bench.senses.pose
    pose_bench.senses.pose = lambda now_ns: measured(now_ns) if now_ns > 0 else None
    deadline = time.monotonic() + 10.0
    for k in range(4):
        pose_bench.loop.tick(k * PERIOD_NS)
        while pose_bench.loop.is_inferring and time.monotonic() < deadline:
            time.sleep(0.001)
        pose_bench.loop.collect(k * PERIOD_NS)
        assert pose_bench.loop.supervisor.state is not ControlState.FAULT
    assert pose_bench.policy.observations[0].observed_ns == PERIOD_NS
    assert pose_bench.wire.sent[-1][0] == 'pose'


def test_target_poses_start_where_the_arm_was_when_it_was_seen(pose_bench):
    """The pose was looked up when the result came; at 1 kHz it was forgotten: a fault."""
    measured = pose_bench.senses.pose
    pose_bench.policy.may_answer.clear()
    pose_bench.loop.tick(0)
    while not pose_bench.policy.observations:
        time.sleep(0.001)
    pose_bench.senses.pose = lambda now_ns: measured(now_ns) if now_ns > 0 else None
    pose_bench.senses.x_m = 0.5
    pose_bench.policy.may_answer.set()
    pose_bench.tick(PERIOD_NS)
    pose_bench.loop.collect(PERIOD_NS)
    assert pose_bench.loop.supervisor.state is not ControlState.FAULT
    assert pose_bench.loop._poses.targets[0].pose.position[0] == pytest.approx(0.001)


def test_a_sentence_the_policy_refuses_stops_at_once_and_is_no_failed_inference(bench):
    """The old motion went on while inferences failed one by one, up to a fault."""
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.wire.sent.clear()
    epoch, bench.policy.unknown = bench.loop.epoch, ('fly',)
    bench.senses.instruction = 'fly'
    bench.loop.instruction_changed(2 * PERIOD_NS)
    assert bench.wire.sent == [('stop', 2 * PERIOD_NS)]
    assert bench.loop.epoch == epoch + 1
    asked = len(bench.policy.observations)
    for k in range(3, 30):
        bench.tick(k * PERIOD_NS)
    assert bench.loop.supervisor.state is ControlState.HOLDING
    assert bench.loop.supervisor.reason.startswith("instruction refused: 'fly' has words")
    assert len(bench.policy.observations) == asked
    assert bench.loop.counts['failed inferences'] == 0
    bench.senses.instruction = 'close'
    bench.loop.instruction_changed(29 * PERIOD_NS)
    for k in range(30, 33):
        bench.tick(k * PERIOD_NS)
    assert bench.wire.sent[-1][0] == 'move'


def test_an_unsafe_chunk_is_not_published_and_not_executed(bench):
    for k in range(3):
        bench.tick(k * PERIOD_NS)
    bench.policy.change = lambda actions: actions * np.nan
    for k in range(3, 9):
        bench.tick(k * PERIOD_NS)
    kinds = [s[0] for s in bench.wire.sent]
    assert kinds.count('chunk') == 1
    assert kinds[-1] == 'stop'
    assert 'stop' not in kinds[: kinds.index('stop')]
    assert 'move' not in kinds[kinds.index('stop') :]
    assert bench.loop.counts['refused: not_finite'] == 1


def test_an_answer_to_a_question_from_before_a_reset_is_dropped(bench):
    bench.policy.may_answer.clear()
    bench.loop.tick(0)
    bench.loop.reset(0)
    bench.policy.may_answer.set()
    bench.tick(PERIOD_NS)
    deadline = time.monotonic() + 10.0
    while not bench.loop.counts and time.monotonic() < deadline:
        bench.loop.collect(PERIOD_NS)
    assert bench.loop.counts['dropped: other epoch'] == 1


def test_the_same_observation_is_not_inferred_twice(bench):
    bench.tick(0)
    bench.senses.observation = lambda now_ns: Observation({}, np.zeros(4), 'open', 0)
    for k in range(1, 12):
        bench.tick(k * PERIOD_NS)
    assert len(bench.policy.observations) == 1
    assert bench.loop.sequence == 1


def test_the_gripper_goes_before_the_arm():
    order = []

    def publisher(kind):
        return SimpleNamespace(publish=lambda msg: order.append(kind))

    outputs = object.__new__(Outputs)
    outputs._config, outputs._gripper_sent, outputs.sent = PolicyParameters(), None, 0
    outputs._arm, outputs._gripper = publisher('arm'), publisher('gripper')
    outputs.send_twist(EndEffectorCommand(np.zeros(6), 0.5), 0)
    outputs.send_twist(EndEffectorCommand(np.zeros(6), 0.5), PERIOD_NS)  # unchanged
    outputs.send_twist(EndEffectorCommand(np.zeros(6), 0.2), 2 * PERIOD_NS)
    outputs.send_twist(EndEffectorCommand(np.zeros(6), 0.2), 30 * PERIOD_NS)  # repeated
    assert order == ['gripper', 'arm', 'arm', 'gripper', 'arm', 'gripper', 'arm']
