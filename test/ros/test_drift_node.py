"""Drift in the running node: what ~/drift and /diagnostics say, and what the arm does about it."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from std_srvs.srv import Trigger

from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.errors import PolicyError
from vlaq_ros.kinematics.predicted_drift import ANY_PHASE, ErrorStatistics, PredictedDrift
from vlaq_ros.policies.levels import BundleLevels, HeadLevels
from vlaq_ros.ros import drift_control, qos
from vlaq_ros.ros.conversions import to_nanoseconds
from vlaq_ros.ros.interfaces import DriftReport, PolicyStatus, PrecisionState, SetPrecision

pytestmark = pytest.mark.ros
MENU = PrecisionMenu.from_names('w4a8', 'w8a16')
ROWS = 6  # executed of the eight of a chunk


class Offset:
    """Makes a policy end `metres` beside the path after the executed rows."""

    def __init__(self, policy, metres=0.0):
        self.metres = metres
        policy.change = self

    def __call__(self, actions):
        actions[:, 1] += self.metres / ROWS
        return actions


@pytest.fixture
def shadow(fake_policy):
    return type(fake_policy)()


@pytest.fixture
def drifting(running, graph, shadow):
    """Bring the node up with a shadow; return robot, node, readings and drift diagnostics."""

    def bring_up(**drift):
        given = {'source': 'shadow', 'duty': 1.0, 'warn_m': 0.01, 'error_m': 0.02}
        given |= {'window_s': 0.1, 'calm_after': 2, **drift}
        others = {name: given.pop(name) for name in list(given) if '__' in name}
        parameters = {f'drift__{name}': value for name, value in given.items()}
        robot, node = running(shadow=shadow, **parameters, **others)
        said, told = [], []
        robot.node.create_subscription(DriftReport, 'policy/drift', said.append, 50)

        def note(msg):
            told.extend(one for one in msg.status if one.name == 'policy: drift')

        robot.node.create_subscription(DiagnosticArray, '/diagnostics', note, 10)
        graph.spin_until(
            lambda: (
                node.count_subscribers('policy/drift') and node.count_subscribers('/diagnostics')
            ),
            what='discovery of ~/drift',
        )
        return robot, node, said, told

    return bring_up


def is_stopped(robot):
    """Whether the arm stands still because of drift, and not for another reason."""
    return robot.state == PolicyStatus.HOLDING and robot.statuses[-1].reason.startswith('drift')


def ask(graph, robot, level):
    request = SetPrecision.Request(level=level)
    return graph.call(robot.node, SetPrecision, 'policy/set_precision', request)


def test_a_report_is_the_comparison_of_both_chunks(drifting, shadow):
    offset = Offset(shadow, 0.003)
    robot, node, said, _ = drifting(warn_m=0.002, error_m=0.1)
    robot.run_until(lambda: len(said) >= 3, node, what='reports')
    offset.metres = 0.0
    chunks = {chunk.sequence: chunk for chunk in robot.chunks}
    assert {msg.source for msg in said} == {'shadow'}
    for msg in said[:2]:
        chunk = chunks[msg.sequence]
        assert msg.header == chunk.header
        assert (msg.epoch, msg.steps) == (chunk.epoch, ROWS)
        assert (msg.precision, msg.reference_precision) == ('fp32', 'fp32')
        assert msg.position_per_step == pytest.approx(0.003 / ROWS)
        assert msg.position_accumulated == pytest.approx(0.003)
        assert msg.window_position == pytest.approx(0.003)
        assert (msg.gripper_disagreement, msg.window_gripper) == (0.0, 0.0)
        nothing = ('rotation_per_step', 'rotation_accumulated', 'window_rotation')
        nothing += ('position_deviation', 'rotation_deviation')
        assert all(math.isnan(getattr(msg, name)) for name in nothing)
        assert msg.smoothness < 0.0
        assert msg.reference_smoothness < 0.0
        assert to_nanoseconds(msg.window) == 100_000_000
        assert 0 <= to_nanoseconds(msg.delay) < 1_000_000_000
        assert (msg.level, msg.reason) == (DriftReport.WARN, 'position 3.00 mm over 2.00 mm')


def test_the_topic_is_reliable_and_there_only_with_a_source(drifting):
    robot, node, _, _ = drifting()
    (info,) = node.get_publishers_info_by_topic(node.resolve_topic_name('~/drift'))
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.set_parameters([Parameter('drift.source', value='none')])[0].successful
    assert node.bring_up(), node.failure
    assert node.get_publishers_info_by_topic(node.resolve_topic_name('~/drift')) == []


def test_diagnostics_follow_the_level_up_and_down(drifting, shadow):
    offset = Offset(shadow, 0.015)
    robot, node, said, told = drifting()
    robot.run_until(
        lambda: told and told[-1].level == DiagnosticStatus.WARN, node, what='the warning'
    )
    assert told[-1].message == 'WARN: position 15.00 mm over 10.00 mm'
    values = {pair.key: pair.value for pair in told[-1].values}
    assert values['source'] == 'shadow'
    assert values['position of the window [mm]'] == '15.000'
    assert values['rotation of the window [rad]'] == 'nan'
    assert int(values['answered']) >= int(values['readings']) >= 1
    assert 0.0 <= float(values['age of the last reading [s]']) < 10.0
    offset.metres = 0.0
    robot.run_until(
        lambda: told[-1].level == DiagnosticStatus.OK, node, what='OK after calm readings'
    )
    robot.run_until(lambda: said[-1].level == DriftReport.OK, node, what='the same on ~/drift')


def test_an_alarm_that_is_shorter_than_a_second_is_on_diagnostics_as_well(drifting, graph, shadow):
    offset = Offset(shadow)
    robot, node, said, told = drifting()
    (regular,) = (one for one in node.timers if one.callback == node._on_diagnostics_timer)
    regular.cancel()
    robot.run_until(lambda: said, node, what='the first report')
    told.clear()
    offset.metres = 0.015
    robot.run_until(lambda: told, node, what='the warning')
    offset.metres = 0.0
    robot.run_until(lambda: len(told) > 1, node, what='its end')
    assert [one.level for one in told] == [DiagnosticStatus.WARN, DiagnosticStatus.OK]
    assert told[0].message == f'WARN: {next(r.reason for r in said if r.level)}'
    offset.metres = 0.015
    robot.run_until(lambda: len(told) > 2, node, what='the second warning')
    graph.call(robot.node, Trigger, 'policy/reset')
    robot.run_until(lambda: len(told) > 3, node, what='its end with the episode')
    assert [one.level for one in told[2:]] == [DiagnosticStatus.WARN, DiagnosticStatus.OK]
    assert told[3].message == 'no reading yet'


def test_a_slow_reference_costs_no_command_and_what_it_drops_is_counted(drifting, shadow):
    robot, node, said, _ = drifting()
    robot.run_until(lambda: said, node, what='the first report')
    shadow.may_answer.clear()
    counts = node._loop.drift.counts
    robot.run_until(lambda: len(shadow.observations) > counts['answered'], node, what='a question')
    commands, chunks, reports = len(robot.commands()), len(robot.chunks), len(said)
    robot.pass_time(1.0, node)
    robot.graph.spin_for(0.05)
    assert len(robot.commands()) - commands >= 40  # of 50: the clock of the test may skip some
    assert len(robot.chunks) - chunks >= 5
    assert len(said) - reports <= 1  # one that was on its way
    assert robot.state == PolicyStatus.RUNNING
    counts = node._loop.drift.counts
    assert counts['dropped'] >= 3
    shadow.may_answer.set()
    robot.run_until(lambda: len(said) - reports >= 3, node, what='reports again')
    assert np.all(np.diff([msg.sequence for msg in said]) > 0)
    counts = node._loop.drift.counts
    assert counts['asked'] - counts['answered'] - counts['dropped'] in (0, 1, 2)


def test_nothing_from_before_a_reset_is_told(drifting, shadow, graph):
    robot, node, said, _ = drifting()
    robot.run_until(lambda: said, node, what='the first report')
    shadow.may_answer.clear()
    asked = len(shadow.observations)
    robot.run_until(lambda: len(shadow.observations) > asked, node, what='a question')
    graph.call(robot.node, Trigger, 'policy/reset')
    epoch, reports = node._loop.epoch, len(said)
    shadow.may_answer.set()
    robot.run_until(lambda: len(said) > reports, node, what='a report')
    assert {msg.epoch for msg in said[reports:]} == {epoch}
    assert node._loop.drift.counts['other epoch'] == 1
    assert shadow.resets == 2


def test_a_reference_that_fails_or_is_silent_is_a_warning_and_no_stop(
    drifting, shadow, monkeypatch
):
    monkeypatch.setattr(drift_control, 'STALLED_S', 0.0)
    robot, node, said, told = drifting(reaction='stop')
    shadow.error = PolicyError('no memory')
    robot.run_until(
        lambda: told and 'PolicyError: no memory' in told[-1].message, node, what='the failure'
    )
    assert told[-1].level == DiagnosticStatus.WARN
    shadow.error = None
    shadow.may_answer.clear()
    robot.run_until(
        lambda: told[-1].message.startswith('no answer of the reference for'),
        node,
        what='the silence',
    )
    assert told[-1].level == DiagnosticStatus.WARN
    assert robot.state == PolicyStatus.RUNNING
    shadow.may_answer.set()


def test_stop_holds_the_arm_until_both_agree_again(drifting, shadow):
    offset = Offset(shadow)
    robot, node, said, _ = drifting(reaction='stop')
    robot.run_until(lambda: said, node, what='a report')
    offset.metres = 0.03
    robot.run_until(lambda: is_stopped(robot), node, what='the stop')
    reason = robot.statuses[-1].reason
    assert reason.startswith('drift ERROR (shadow): position 30.00 mm over 20.00 mm')
    robot.pass_time(0.1, node)
    robot.graph.spin_for(0.05)
    assert robot.commands()[-1].twist.linear.x == 0.0
    reports = len(said)
    robot.run_until(lambda: len(said) > reports + 2, node, what='readings while it stands')
    assert is_stopped(robot)
    offset.metres = 0.0
    robot.run_until(lambda: robot.state == PolicyStatus.RUNNING, node, what='motion')
    robot.run_until(lambda: said[-1].level == DriftReport.OK, node, what='the last report')


def test_a_reset_ends_the_stop_until_the_next_reading_that_is_too_far(drifting, shadow, graph):
    offset = Offset(shadow)
    robot, node, said, _ = drifting(reaction='stop')
    offset.metres = 0.03
    robot.run_until(lambda: is_stopped(robot), node, what='the stop')
    shadow.may_answer.clear()
    graph.call(robot.node, Trigger, 'policy/reset')
    robot.run_until(lambda: robot.state == PolicyStatus.RUNNING, node, what='motion')
    shadow.may_answer.set()
    robot.run_until(lambda: is_stopped(robot), node, what='the next stop')
    graph.spin_until(lambda: said[-1].epoch == node._loop.epoch, what='the report of it')


@pytest.fixture
def switchable(fake_policy):
    """Give the policy levels; the lower one is `metres` off, and the shadow never."""
    policy = fake_policy
    policy.levels = dict.fromkeys(('llm', 'expert'), MENU.levels)
    policy.active_levels = dict.fromkeys(policy.levels, MENU.top)
    offset = Offset(policy)
    offset.low = 0.0

    def apply(levels):
        policy.active_levels = dict(levels)
        policy.precision = str(levels['llm'])
        offset.metres = offset.low if levels['llm'] == MENU.bottom else 0.0

    policy.apply_precision = apply
    infer = policy.infer
    policy.infer = lambda seen: _renamed(infer(seen), policy.precision)
    policy.precision = str(MENU.top)
    return offset


def _renamed(chunk, precision):
    return replace(chunk, precision=precision)


def listen(robot, graph):
    said = []
    robot.node.create_subscription(PrecisionState, 'policy/precision', said.append, qos.LATCHED)
    graph.spin_until(lambda: said, what='~/precision')
    return said


def test_raise_runs_at_the_top_until_it_is_calm_and_then_goes_back(drifting, graph, switchable):
    robot, node, _, _ = drifting(reaction='raise')
    said = listen(robot, graph)
    switchable.low = 0.015
    assert ask(graph, robot, 'w4a8').accepted
    robot.run_until(lambda: said[-1].precision == 'w4a8', node, what='the low level')
    robot.run_until(lambda: said[-1].precision == 'w8a16', node, what='the top')
    assert said[-1].reason == 'drift_alarm: drift WARN: position 15.00 mm over 10.00 mm'
    switchable.low = 0.0
    robot.run_until(lambda: said[-1].precision == 'w4a8', node, what='the low level again')
    assert said[-1].reason == 'no drift alarm any more'
    assert robot.state == PolicyStatus.RUNNING


def test_levels_that_are_asked_for_during_an_alarm_wait_for_its_end(
    drifting, graph, switchable, shadow
):
    offset = Offset(shadow, 0.015)
    robot, node, reports, _ = drifting(reaction='raise')
    said = listen(robot, graph)
    robot.run_until(lambda: reports and reports[-1].level == 1, node, what='the alarm')
    robot.pass_time(0.3, node)
    answer = ask(graph, robot, 'w4a8')
    assert (answer.accepted, answer.message) == (True, 'accepted, in force when drift is OK again')
    account = node._loop.precision.report().account
    assert account.outcomes['left to automatic'] == 1
    assert account.is_balanced
    robot.pass_time(0.3, node)
    assert said[-1].precision == 'w8a16'
    offset.metres = 0.0
    robot.run_until(lambda: said[-1].precision == 'w4a8', node, what='the level asked for')


def test_the_rule_drift_lowers_while_it_is_small_and_raises_when_it_is_not(
    drifting, graph, switchable
):
    robot, node, _, _ = drifting(
        dynamic_precision__policy='drift',
        dynamic_precision__levels=['w4a8', 'w8a16'],
        dynamic_precision__lower_after=2,
        dynamic_precision__dwell_s=0.0,
    )
    said = listen(robot, graph)
    robot.run_until(lambda: said[-1].precision == 'w4a8', node, what='the low level')
    assert 'drift_lowered' in said[-1].reason
    switchable.low = switchable.metres = 0.015
    robot.run_until(lambda: said[-1].precision == 'w8a16', node, what='the high level')
    assert 'drift_raised' in said[-1].reason
    assert 'drift 0.015 m at w4a8 is over the raise limit' in said[-1].reason


def test_limits_and_reaction_change_while_it_moves_and_wrong_ones_never(drifting, shadow):
    Offset(shadow, 0.003)
    robot, node, said, _ = drifting()
    robot.run_until(lambda: said, node, what='a report')
    assert said[-1].level == DriftReport.OK

    def set_to(**values):
        given = [Parameter(f'drift.{n}', value=v) for n, v in values.items()]
        return node.set_parameters_atomically(given)

    assert 'warn_m = 0.05 must be positive and below error_m = 0.02' in set_to(warn_m=0.05).reason
    assert "'drift.source' is read at configure" in set_to(source='higher').reason
    assert 'needs levels to raise, and precision fp32 is fixed' in set_to(reaction='raise').reason
    assert "'drift.reaction' = 'fly' is not known" in set_to(reaction='fly').reason
    assert set_to(warn_m=0.001, error_m=0.002, reaction='stop').successful
    robot.run_until(lambda: is_stopped(robot), node, what='the stop')
    robot.run_until(lambda: said[-1].level == DriftReport.ERROR, node, what='its report')
    assert set_to(reaction='report').successful
    robot.run_until(lambda: robot.state == PolicyStatus.RUNNING, node, what='motion')


@pytest.mark.parametrize(
    ('parameters', 'why'),
    [
        ({'drift__source': 'higher'}, "'drift.source' = 'higher' needs levels, and precision"),
        ({'drift__source': 'predicted'}, "'drift.source' = 'predicted' needs levels"),
        ({'drift__source': 'mirror'}, "'drift.source' = 'mirror' is not known"),
        ({'drift__reaction': 'stop'}, "needs a 'drift.source'"),
        (
            {'dynamic_precision__policy': 'drift'},
            "'dynamic_precision.policy' = 'drift' needs measured drift",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_configure(graph, fake_policy, parameters, why):
    node = graph.policy(fake_policy, **parameters)
    assert not node.bring_up()
    assert why in node.failure
    assert node.lifecycle == 'unconfigured'


def test_a_prediction_is_published_with_its_uncertainty(running, graph, fake_policy, switchable):
    known = {('w8a16', ANY_PHASE): ErrorStatistics(np.zeros(6), np.diag([1e-6, *[0.0] * 5]), 9)}
    model = PredictedDrift(fake_policy.spec.action, known, {'w8a16': 0.0})
    head = HeadLevels({'w8a16': None}, None, {}, model)
    fake_policy.measured_levels = BundleLevels(None, None, {'flow': head})
    robot, node = running(drift__source='predicted')
    said = []
    robot.node.create_subscription(DriftReport, 'policy/drift', said.append, 50)
    robot.run_until(lambda: said, node, what='a report')
    assert (said[-1].source, said[-1].reference_precision) == ('predicted', 'fp32')
    assert said[-1].position_accumulated == pytest.approx(math.sqrt(ROWS) * 1e-3)
    assert said[-1].position_deviation == pytest.approx(math.sqrt(ROWS) * 1e-3)
    assert math.isnan(said[-1].gripper_disagreement)


def test_the_thread_of_the_reference_ends_with_the_configuration(drifting):
    def threads():
        return [t.name for t in threading.enumerate() if t.name == 'shadow reference']

    _, node, _, _ = drifting()
    assert threads() == ['shadow reference']
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert threads() == []
