"""
The policy node with its reference elsewhere: whatever that does, the arm gets its commands.

Every tick is watched: one command for each, in order, while the reference answers nonsense, is
killed or paused. What happened is named on /diagnostics, and reports come back by themselves.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from diagnostic_msgs.msg import DiagnosticArray

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.policies.drift_monitor import DriftMonitor
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import NodeProcess, config_file
from vlaq_ros.ros.conversions import to_nanoseconds
from vlaq_ros.ros.drift_control import DriftControl, DriftParts
from vlaq_ros.ros.interfaces import (
    ActionChunk,
    DriftReport,
    PolicyStatus,
    ReferenceRequest,
)
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.types import Observation

pytestmark = pytest.mark.ros
TICK_NS = 20_000_000
BUNDLE_HASH = 'f00d' * 16  # what the fake policy's bundle is called


class Watch:
    """Lets time pass tick by tick and sees to it that every tick has its command."""

    def __init__(self, graph, robot, node):
        self.graph, self.robot, self.node = graph, robot, node
        self.reports, self.diagnosis = [], None
        robot.node.create_subscription(DriftReport, 'policy/drift', self.reports.append, 50)
        robot.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        graph.spin_until(
            lambda: node.count_subscribers('policy/drift') == 1, what='discovery of ~/drift'
        )
        self.graph.spin_until(self._has_command, what='the command of this tick')
        self.robot.sent.clear()
        self.first = len(robot.statuses)
        self.ticks = []

    def _on_diagnostics(self, msg):
        for status in msg.status:
            if status.name == 'policy: drift':
                self.diagnosis = status

    def _has_command(self):
        commands = self.robot.commands()
        return commands and to_nanoseconds(commands[-1].header.stamp) == self.robot.now_ns

    def tick(self):
        robot = self.robot
        robot.now_ns += TICK_NS
        robot.sense()
        robot.tell_time()
        self.graph.spin_until(self._has_command, what='a command')
        self.ticks.append(robot.now_ns)
        self.graph.spin_until(
            lambda: not self.node._loop._worker.is_busy, what='the end of the inference'
        )

    def run(self, ticks=40):
        for _ in range(ticks):
            self.tick()

    def run_until(self, condition, what):
        deadline = time.monotonic() + 90.0  # a process beside it may still be starting
        while not condition():
            assert time.monotonic() < deadline, f'{what} did not happen; {self.diagnosis}'
            self.tick()

    def counts(self):
        values = {} if self.diagnosis is None else {p.key: p.value for p in self.diagnosis.values}
        return {name: int(value) for name, value in values.items() if value.isdigit()}

    def check_commands(self):
        """One command per tick, in order, and the arm was never stopped."""
        stamps = [to_nanoseconds(msg.header.stamp) for msg in self.robot.commands()]
        assert stamps == self.ticks
        states = {status.state for status in self.robot.statuses[self.first :]}
        assert states <= {PolicyStatus.RUNNING}


class Liar:
    """A reference for the fake policy that answers as a test wants."""

    def __init__(self, graph, spec):
        self.spec, self.change, self.asked = spec, lambda msg: msg, 0
        self.node = node = graph.node('liar')
        self.answers = node.create_publisher(
            ActionChunk, 'reference/reference_chunk', qos.REFERENCE
        )
        self.statuses = node.create_publisher(PolicyStatus, 'reference/status', qos.LATCHED)
        node.create_subscription(
            ReferenceRequest, 'policy/reference_request', self._on_request, qos.REFERENCE
        )
        self.say(BUNDLE_HASH)

    def say(self, bundle_hash):
        self.statuses.publish(
            PolicyStatus(state=PolicyStatus.WAITING, bundle='fake', bundle_hash=bundle_hash)
        )

    def _on_request(self, request):
        self.asked += 1
        actions = np.full((self.spec.horizon, 4), 0.001)
        msg = ActionChunk(
            names=list(self.spec.action.names),
            units=list(self.spec.action.units),
            delta=True,
            horizon=len(actions),
            actions=actions.ravel().tolist(),
            sequence=request.sequence,
            epoch=request.epoch,
            instruction=request.instruction,
            head=request.head,
            precision='fp32',
        )
        msg.header = request.header
        msg.step_duration.nanosec = self.spec.action.period_ns
        msg = self.change(msg)
        if msg is not None:
            self.answers.publish(msg)


@pytest.fixture
def watching(graph, running, spec):
    """Bring up robot, policy and liar; return the watch and the liar."""

    def bring_up(**parameters):
        liar = Liar(graph, spec)
        robot, node = running(drift__source='remote', **parameters)
        graph.spin_until(
            lambda: not node._loop.drift.trouble or liar.asked, what='the reference is found'
        )
        return Watch(graph, robot, node), liar

    return bring_up


def wrong(**fields):
    def change(msg):
        for name, value in fields.items():
            setattr(msg, name, value)
        return msg

    return change


def another_stamp(msg):
    msg.header.stamp.sec += 1
    return msg


@pytest.mark.parametrize(
    ('change', 'outcome'),
    [
        (wrong(epoch=77), 'other epoch'),
        (wrong(sequence=10**6), 'unknown sequence'),
        (wrong(horizon=2, actions=[0.0] * 8), 'other shape'),
        (wrong(names=['ee_x', 'ee_y', 'ee_z', 'ee_rz']), 'other shape'),
        (wrong(actions=[float('nan')] * 32), 'not finite'),
        (wrong(instruction='close'), 'other question'),
        (another_stamp, 'other stamp'),
    ],
    ids=['epoch', 'sequence', 'horizon', 'names', 'nan', 'instruction', 'stamp'],
)
def test_wrong_answers_never_touch_the_commands_and_are_named(watching, change, outcome):
    watch, liar = watching()
    liar.change = change
    watch.run_until(lambda: watch.counts().get(outcome, 0) >= 3, outcome)
    assert outcome in watch.diagnosis.message
    assert watch.diagnosis.level > b'\x00'
    assert all(report.source == 'remote' for report in watch.reports)
    reports = len(watch.reports)
    watch.run(20)
    assert len(watch.reports) == reports
    liar.change = lambda msg: msg
    watch.run_until(lambda: len(watch.reports) > reports + 2, 'reports after the recovery')
    watch.run_until(lambda: outcome not in watch.diagnosis.message, 'the end of the warning')
    watch.check_commands()


def test_a_reference_with_another_bundle_is_named_on_diagnostics(watching):
    watch, liar = watching()
    liar.say('beef' * 16)
    watch.run_until(lambda: watch.counts().get('other bundle', 0) >= 3, 'other bundle')
    assert "the reference node has 'fake' (beefbeefbeef)" in watch.diagnosis.message
    reports = len(watch.reports)
    liar.say(BUNDLE_HASH)
    watch.run_until(lambda: len(watch.reports) > reports + 2, 'reports after the recovery')
    watch.check_commands()


def test_late_answers_are_named_and_change_nothing(watching):
    watch, liar = watching(drift__remote_timeout_s=0.05)
    kept = []
    liar.change = lambda msg: kept.append(msg)  # None: nothing is sent
    watch.run_until(lambda: watch.counts().get('unanswered', 0) >= 2, 'unanswered')
    time.sleep(0.1)  # twice the limit: now all of them are late, however quick this machine is
    reports = len(watch.reports)
    for msg in kept[:-3]:
        liar.answers.publish(msg)
    watch.run_until(lambda: watch.counts().get('late', 0) >= 1, 'late')
    assert len(watch.reports) == reports
    watch.check_commands()


def test_without_any_reference_the_operator_is_told(graph, running):
    robot, node = running(drift__source='remote')
    watch = Watch(graph, robot, node)
    watch.run_until(lambda: watch.counts().get('no reference', 0) >= 3, 'no reference')
    assert 'no reference node listens on /policy/reference_request' in watch.diagnosis.message
    assert watch.reports == []
    watch.check_commands()


def test_a_reference_that_never_answers_costs_no_memory(fake_policy, spec):
    class Silent:
        name, trouble, counts = 'remote', '', Counter()

        def submit(self, observation, chunk):
            self.counts['asked'] += 1

    control = DriftControl(spec, PolicyParameters(), DriftParts(Silent()))
    seen = Observation({}, np.zeros(4), 'open', 7)
    chunk = fake_policy.infer(seen)
    for number in range(3000):
        control.accepted(seen, replace(chunk, sequence=number), number)
    assert Silent.counts['asked'] == 3000
    assert len(control._accepted_ns) <= 1024


# --- the toy policy and its reference in a process of its own


@pytest.fixture
def toy_robot(monkeypatch, graph):
    """Give the robot of these tests the cameras of the toy policy."""
    toy = load_policy('toy').spec
    monkeypatch.setitem(vars(sys.modules[type(graph).__module__]), 'SPEC', toy)


class Remembering:
    """The toy policy, which remembers what it saw by the stamp."""

    def __init__(self, policy):
        self._policy, self.seen = policy, {}
        self.may_answer = threading.Event()  # the harness waits for an inference under way
        self.may_answer.set()

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def infer(self, observation):
        self.seen[observation.observed_ns] = observation
        return self._policy.infer(observation)


@pytest.fixture
def quantized():
    return Remembering(load_policy('toy', precision='w4'))


@pytest.fixture
def start_reference(ros_domain, tmp_path):
    running = []

    def start():
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(
            NodeProcess(
                'reference',
                'vlaq_ros.ros.reference_node',
                folder,
                parameter_file=config_file('reference_node.yaml'),
                parameters={'bundle': 'toy', 'autostart': True},
                remappings={},
                environment=os.environ,
            )
        )
        return running[-1]

    yield start
    for node in running:
        if node._process.poll() is None:
            os.killpg(node._process.pid, signal.SIGCONT)
        node.stop()


@pytest.fixture
def watching_toy(graph, running, toy_robot, quantized, start_reference):
    """Bring up robot, quantized policy and reference process; return watch and process."""

    def bring_up(**parameters):
        process = start_reference()
        robot, node = running(
            text='open the drawer',
            policy=quantized,
            bundle='toy',
            drift__source='remote',
            drift__remote_timeout_s=0.5,
            **parameters,
        )
        node._loop.drift._parts.source._bundle_hash = ''  # the harness invents its digest
        watch = Watch(graph, robot, node)
        watch.run_until(lambda: watch.reports, 'the first report')
        return watch, process

    return bring_up


def test_reports_equal_a_reference_in_this_process_bit_for_bit(watching_toy, quantized):
    watch, _ = watching_toy()
    rng = np.random.default_rng(1)
    for count in range(2, 14):  # what a busy machine answers too late is not reported
        watch.robot.position = (rng.normal([0.0, 0.6, 0.2], 0.05)).tolist()
        watch.run_until(lambda count=count: len(watch.reports) >= count, 'the next report')
    full, again = load_policy('toy'), load_policy('toy', precision='w4')
    monitor = DriftMonitor(full.spec.action, 6, DriftLimits(), 0.5)
    for report in watch.reports:
        seen = quantized.seen[to_nanoseconds(report.header.stamp)]
        chunk = replace(again.infer(seen), sequence=report.sequence, epoch=report.epoch)
        reading = monitor.measured(chunk, full.infer(seen), 'remote')
        drift = reading.drift
        assert (report.precision, report.reference_precision) == ('w4', 'fp32')
        assert report.position_per_step == drift.position_per_step_m > 0.0
        assert report.position_accumulated == drift.position_accumulated_m
        assert report.gripper_disagreement == drift.gripper_disagreement
        assert report.window_position == reading.window_m
        assert report.window_gripper == reading.window_gripper
        assert np.array_equal(report.jerk_ratio, reading.jerk_ratio, equal_nan=True)
    watch.check_commands()


def test_killed_it_is_missed_by_nobody_and_started_again_it_is_found(
    watching_toy, start_reference
):
    watch, process = watching_toy()
    os.killpg(process._process.pid, signal.SIGKILL)
    process._process.wait()
    watch.run_until(lambda: watch.counts().get('unanswered', 0) >= 3, 'unanswered')
    watch.run_until(lambda: 'no usable answer for' in watch.diagnosis.message, 'the warning')
    reports = len(watch.reports)
    watch.run()
    assert len(watch.reports) == reports
    start_reference()
    watch.run_until(lambda: len(watch.reports) > reports + 3, 'reports after the new start')
    watch.run_until(lambda: 'no usable answer' not in watch.diagnosis.message, 'the end of it')
    watch.check_commands()


def test_paused_it_is_late_and_after_that_reports_go_on(watching_toy, graph):
    watch, process = watching_toy()
    source = watch.node._loop.drift._parts.source
    os.killpg(process._process.pid, signal.SIGSTOP)
    asked = source.counts['asked']
    watch.run_until(lambda: source.counts['asked'] > asked, 'a question meanwhile')
    graph.spin_for(0.6)
    os.killpg(process._process.pid, signal.SIGCONT)
    graph.spin_until(lambda: source.counts['late'], what='the late answer')
    os.killpg(process._process.pid, signal.SIGSTOP)
    watch.run_until(lambda: watch.counts().get('unanswered', 0) >= 4, 'unanswered')
    assert watch.counts()['late'] >= 1
    reports = len(watch.reports)
    os.killpg(process._process.pid, signal.SIGCONT)
    watch.run_until(lambda: len(watch.reports) > reports + 3, 'reports after the pause')
    watch.check_commands()
