"""Precision that changes in the real node: asked for, decided, refused, rolled back."""

import threading
from collections import Counter

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.srv', reason='needs the built services of vlaq_ros')

from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from vlaq_ros.control.precision import PrecisionMenu, level_names
from vlaq_ros.control.precision_account import Outcome
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.errors import PolicyError
from vlaq_ros.kinematics.motion import MotionScale
from vlaq_ros.kinematics.predicted_drift import PredictedDrift
from vlaq_ros.policies.levels import BundleLevels, HeadLevels
from vlaq_ros.ros import qos
from vlaq_ros.ros.conversions import to_nanoseconds
from vlaq_ros.ros.interfaces import PolicyStatus, PrecisionState, SetPrecision

pytestmark = pytest.mark.ros
MENU = PrecisionMenu.from_names('w4a8', 'w4a16', 'w8a8', 'w8a16')


class Switching:
    """Makes the fake policy switchable, and keeps what it was told."""

    def __init__(self, policy):
        self.policy = policy
        self.prepared, self.applied, self.threads = [], [], []
        self.fail_prepare = self.fail_infer = self.fail_apply = lambda levels: None
        self.may_prepare = threading.Event()
        self.may_prepare.set()
        policy.levels = dict.fromkeys(('llm', 'expert'), MENU.levels)
        policy.active_levels = dict.fromkeys(policy.levels, MENU.top)
        policy.level_limits = ''
        self._infer = policy.infer
        policy.prepare_precision, policy.apply_precision = self.prepare, self.apply
        policy.infer = self.infer

    def prepare(self, levels):
        self.threads.append(threading.current_thread().name)
        self.may_prepare.wait(20.0)
        self.prepared.append(level_names(levels))
        self.fail_prepare(levels)

    def apply(self, levels):
        self.fail_apply(levels)
        self.applied.append(level_names(levels))
        self.policy.active_levels = dict(levels)
        self.policy.precision = level_names(levels)

    def infer(self, observation):
        chunk = self._infer(observation)
        self.fail_infer(self.policy.active_levels)
        return chunk


@pytest.fixture
def switching(fake_policy):
    return Switching(fake_policy)


@pytest.fixture
def moving(running, graph, switching):
    """Bring the node up; return robot, node and what ~/precision has said."""

    def bring_up(**parameters):
        robot, node = running(**parameters)
        said = []
        robot.node.create_subscription(
            PrecisionState, 'policy/precision', said.append, qos.LATCHED
        )
        graph.spin_until(lambda: said, what='~/precision')
        return robot, node, said

    return bring_up


def ask(graph, robot, level='', **groups):
    request = SetPrecision.Request(level=level, groups=list(groups), levels=list(groups.values()))
    return graph.call(robot.node, SetPrecision, 'policy/set_precision', request)


def fail_at(name):
    def fail(levels):
        if str(levels['llm']) == name:
            raise PolicyError(f'{name} does not work')

    return fail


def test_a_level_is_prepared_aside_swapped_and_confirmed(moving, graph, switching):
    robot, node, said = moving()
    assert said[-1].switchable == [
        f'{g} {level}' for g in ('llm', 'expert') for level in MENU.levels
    ]
    assert (said[-1].reason, said[-1].changes) == ('configured', 0)
    answer = ask(graph, robot, 'w4a8')
    assert answer.accepted, answer.message
    robot.run_until(lambda: said[-1].changes == 1, node, what='confirmation')
    assert switching.applied == ['expert w4a8, llm w4a8']
    assert set(switching.threads) == {'precision'}
    assert (said[-1].reason, said[-1].rolled_back) == ('~/set_precision', 0)
    assert said[-1].requested == said[-1].precision == 'expert w4a8, llm w4a8'
    assert to_nanoseconds(said[-1].header.stamp) <= robot.now_ns
    assert robot.state == PolicyStatus.RUNNING


def test_groups_are_set_on_their_own(moving, graph, switching):
    robot, node, said = moving()
    assert ask(graph, robot, llm='w4a8').accepted
    robot.run_until(lambda: said[-1].changes == 1, node, what='confirmation')
    assert switching.applied == ['expert w8a16, llm w4a8']


@pytest.mark.parametrize(
    ('level', 'groups', 'why'),
    [
        ('w3a8', {}, 'w3a8'),
        ('w8a4', {}, 'llm w8a4 is not available: llm has w4a8, w4a16, w8a8, w8a16'),
        ('soon', {}, "'soon' is not understood"),
        ('', {'legs': 'w4a8'}, 'module groups: llm, expert'),
        ('', {}, 'give either a level, or groups'),
        ('w4a8', {'llm': 'w4a8'}, 'give either a level, or groups'),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(moving, graph, switching, level, groups, why):
    robot, *_ = moving()
    answer = ask(graph, robot, level, **groups)
    assert not answer.accepted
    assert why in answer.message
    assert 'expert w4a8' in answer.available
    assert switching.prepared == []


def test_a_fixed_precision_and_a_node_without_policy_say_so(graph, fake_policy, make_robot):
    robot = make_robot()
    node = graph.policy(fake_policy)
    assert 'no policy is loaded' in ask(graph, robot, 'w4a8').message
    assert node.trigger_configure()
    answer = ask(graph, robot, 'w4a8')
    assert (answer.accepted, answer.available) == (False, [])
    assert answer.message == 'refused: fp32 is fixed: it is float'


@pytest.mark.parametrize('where', ['fail_prepare', 'fail_apply', 'fail_infer'])
def test_a_failure_in_the_middle_rolls_back_and_the_arm_goes_on(moving, graph, switching, where):
    robot, node, said = moving()
    setattr(switching, where, fail_at('w4a8'))
    commands, states = len(robot.commands()), len(robot.statuses)
    assert ask(graph, robot, 'w4a8').accepted
    robot.run_until(lambda: said[-1].rolled_back == 1, node, what='roll-back')
    assert 'w4a8 does not work' in said[-1].reason
    assert said[-1].changes == 0
    assert set(switching.policy.active_levels.values()) == {MENU.top}
    assert {status.state for status in robot.statuses[states:]} <= {PolicyStatus.RUNNING}
    assert node._loop.counts['failed inferences'] == 0
    assert len(robot.commands()) > commands


def test_actions_that_are_not_finite_after_a_swap_roll_it_back(moving, graph, switching):
    robot, node, said = moving()

    def spoil(actions):
        bad = switching.policy.active_levels['llm'].weight_bits == 4
        return actions * np.nan if bad else actions

    switching.policy.change = spoil
    assert ask(graph, robot, 'w4a8').accepted
    robot.run_until(lambda: said[-1].rolled_back == 1, node, what='roll-back')
    assert 'not finite' in said[-1].reason
    assert robot.state == PolicyStatus.RUNNING


def test_when_the_way_back_fails_the_arm_stops_for_good(moving, graph, switching):
    robot, node, _ = moving()

    def fail_always(levels):
        raise PolicyError('the device is gone')

    switching.fail_apply = fail_always
    assert ask(graph, robot, 'w4a8').accepted
    robot.run_until(lambda: robot.state == PolicyStatus.FAULT, node, what='fault')
    assert 'precision of the policy is unknown' in robot.statuses[-1].reason
    assert 'the device is gone' in robot.statuses[-1].reason
    assert not ask(graph, robot, 'w8a16').accepted
    graph.call(robot.node, Trigger, 'policy/reset')
    robot.run_until(lambda: robot.state == PolicyStatus.FAULT, node, what='fault again')


def test_commands_go_on_while_a_change_is_prepared(moving, graph, switching):
    robot, node, said = moving()
    switching.may_prepare.clear()
    assert ask(graph, robot, 'w4a8').accepted
    commands = len(robot.commands())
    robot.pass_time(0.5, node)
    graph.spin_for(0.1)
    assert len(robot.commands()) - commands >= 20
    assert robot.state == PolicyStatus.RUNNING
    assert switching.applied == []
    switching.may_prepare.set()
    robot.run_until(lambda: said[-1].changes == 1, node, what='confirmation')


def dynamic(**values):
    given = {'policy': 'dyq', 'levels': ['w4a8', 'w8a16'], 'boundaries': [0.5], **values}
    return {f'dynamic_precision__{name}': value for name, value in given.items()}


def test_coarse_motion_lowers_a_grasp_and_a_stop_raise(moving, graph, switching):
    """1 to 6 mm per step against 1 mm: coarse, so that only events ask for the top."""
    robot, node, said = moving(**dynamic(translation_m=0.001, lower_after=2, dwell_s=0.4))
    control = node._loop.precision
    low = 'expert w4a8, llm w4a8'
    robot.run_until(lambda: said[-1].precision == low, node, what='low level')
    assert 'motion' in said[-1].reason
    assert 0.0 < sum(said[-1].share_of_inferences) <= 2.0 + 1e-6

    def close(actions):
        actions[:, 3] = 0.0
        return actions

    switching.policy.change = close
    high = 'expert w8a16, llm w8a16'
    robot.run_until(lambda: said[-1].precision == high, node, what='top at the grasp')
    assert 'gripper' in said[-1].reason
    robot.run_until(lambda: said[-1].precision == low, node, what='low level again')
    graph.call(robot.node, Trigger, 'policy/reset')
    robot.run_until(lambda: said[-1].precision == high, node, what='top after the stop')
    assert 'stop_recovery' in said[-1].reason
    assert control.report().rolled_back == 0


def test_rules_change_while_the_arm_moves_and_wrong_ones_never(moving, graph, switching):
    robot, node, said = moving(**dynamic(translation_m=0.001, lower_after=1, dwell_s=0.0))
    robot.run_until(lambda: 'w4a8' in said[-1].precision, node, what='low level')

    def set_to(**values):
        given = [Parameter(f'dynamic_precision.{n}', value=v) for n, v in values.items()]
        return node.set_parameters_atomically(given)

    result = set_to(levels=['w8a2', 'w4a8'])
    assert not result.successful
    assert 'llm w8a2 is not available' in result.reason
    assert 'expert w8a2 is not available' in result.reason
    assert 'must be 2 numbers' in set_to(levels=['w4a8', 'w8a8', 'w8a16']).reason
    assert 'must rise' in set_to(levels=['w8a16', 'w4a8']).reason
    assert set_to(levels=['w8a8', 'w8a16']).successful
    robot.run_until(lambda: 'w8a8' in said[-1].precision, node, what='the new level')


def test_rules_that_do_not_fit_the_bundle_are_refused_at_configure(graph, fake_policy):
    node = graph.policy(fake_policy, **dynamic())
    assert not node.bring_up()
    assert 'needs levels to choose from, and precision fp32 is fixed' in node.failure


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        (None, 'cannot be read'),
        ('{}', 'format'),
        (
            '{"format": 1, "rules": ["drift"], "groups": {"llm": {"levels": ["w8a16"]}}}',
            "rule 'drift' needs measured drift",
        ),
        (
            '{"format": 1, "rules": ["latency"], "groups": {"arm": {"levels": ["w8a2"]}}}',
            'arm w8a2 is not available',
        ),
    ],
)
def test_a_wrong_file_is_refused_at_configure(graph, switching, tmp_path, text, why):
    path = tmp_path / 'rules.json'
    if text is not None:
        path.write_text(text)
    node = graph.policy(switching.policy, dynamic_precision__file=str(path))
    assert not node.bring_up()
    assert why in node.failure


def test_the_deadline_lowers_the_precision(moving, switching):
    switching.policy.stage_s = {'inference': 0.2}  # 8 - 6 rows of 25 ms bridge 0.05 s
    robot, node, said = moving(**dynamic(policy='latency'))
    robot.run_until(lambda: 'w4a8' in said[-1].precision, node, what='low level')
    assert 'late' in said[-1].reason


def test_a_pinned_level_yields_to_safety_only_and_auto_ends_it(moving, graph, switching):
    robot, node, said = moving(**dynamic(translation_m=0.001, lower_after=1, dwell_s=0.2))
    robot.run_until(lambda: 'w4a8' in said[-1].precision, node, what='low level')
    assert ask(graph, robot, 'w8a8').accepted
    robot.run_until(lambda: 'w8a8' in said[-1].precision, node, what='pinned level')
    graph.call(robot.node, Trigger, 'policy/reset')
    robot.run_until(lambda: 'w8a16' in said[-1].precision, node, what='top after the stop')
    robot.run_until(lambda: 'w8a8' in said[-1].precision, node, what='pinned level again')
    assert ask(graph, robot, 'auto').accepted
    robot.run_until(lambda: 'w4a8' in said[-1].precision, node, what='low level again')


def test_random_switches_leave_no_gap_in_the_commands(moving, graph, switching):
    robot, node, said = moving(replan='continuous')
    rng = np.random.default_rng(0)
    first = robot.now_ns
    for _ in range(60):
        names = rng.choice([str(level) for level in MENU.levels], 2)
        ask(graph, robot, llm=str(names[0]), expert=str(names[1]))
        robot.pass_time(0.04, node)
    graph.spin_until(
        lambda: to_nanoseconds(robot.commands()[-1].header.stamp) > robot.now_ns - 60_000_000
    )
    stamps = [to_nanoseconds(m.header.stamp) for m in robot.commands()]
    gaps = np.diff([stamp for stamp in stamps if stamp >= first])
    assert Counter(status.state for status in robot.statuses)[PolicyStatus.HOLDING] == 0
    assert gaps.max() <= 2 * 20_000_000  # one tick of 50 Hz may be lost to the test's own clock
    report = node._loop.precision.report()
    assert report.changes > 5
    assert report.account.requests == 60
    assert report.account.is_balanced
    assert report.account.outcomes[Outcome.CONFIRMED] == report.changes


def test_every_accepted_call_is_one_request_with_one_outcome_and_a_refused_one_is_none(
    moving, graph, switching
):
    robot, node, said = moving()
    switching.may_prepare.clear()
    assert ask(graph, robot, 'w4a8').accepted
    assert ask(graph, robot, 'w4a8').accepted  # under way already
    assert ask(graph, robot, 'w8a8').accepted  # takes its place
    assert ask(graph, robot, 'auto').accepted
    assert not ask(graph, robot, 'w3a8').accepted
    assert not ask(graph, robot).accepted
    account = node._loop.precision.report().account
    assert (account.requests, account.under_way) == (4, 1)
    switching.may_prepare.set()
    robot.run_until(lambda: said[-1].changes == 1, node, what='confirmation')
    account = node._loop.precision.report().account
    assert {outcome: n for outcome, n in account.outcomes.items() if n} == {
        Outcome.CONFIRMED: 1,
        Outcome.OVERTAKEN: 1,
        Outcome.UNCHANGED: 1,
        Outcome.AUTOMATIC: 1,
    }


def test_auto_for_one_group_does_not_keep_another_from_its_level(moving, graph, switching):
    robot, node, said = moving()
    answer = ask(graph, robot, llm='auto', expert='w4a8')
    assert 'under way' in answer.message
    robot.run_until(lambda: said[-1].changes == 1, node, what='confirmation')
    assert switching.applied == ['expert w4a8, llm w8a16']
    account = node._loop.precision.report().account
    assert (account.requests, account.outcomes[Outcome.AUTOMATIC]) == (1, 0)


def measured_levels(spec, boundaries=(0.5,), head='flow'):
    """Return what a calibration would have stored: w4a8 for coarse motion, w8a16 else."""
    menu = PrecisionMenu.from_names('w4a8', 'w8a16')
    groups = dict.fromkeys(('llm', 'expert'), GroupParameters(menu, boundaries))
    rules = ('static',) if boundaries is None else ('dyq',)
    fits = dict.fromkeys(groups, {} if boundaries else {'why': '5 samples are too few'})
    found = HeadLevels(
        {}, PrecisionParameters(rules, groups), fits, PredictedDrift(spec.action, {}, {})
    )
    return BundleLevels(menu, MotionScale(0.001, None), {head: found})


def test_levels_boundaries_and_normalizers_come_from_the_bundle(moving, graph, switching):
    """1 to 6 mm per step against the 1 mm of the bundle; the levels of the parameters differ."""
    switching.policy.measured_levels = measured_levels(switching.policy.spec)
    other = {'levels': ['w8a8', 'w8a16'], 'boundaries': [0.0], 'translation_m': 9.0}
    robot, node, said = moving(
        **dynamic(levels_from='bundle', lower_after=2, dwell_s=0.4, **other)
    )
    low = 'expert w4a8, llm w4a8'
    robot.run_until(lambda: said[-1].precision == low, node, what='low level')
    assert 'motion' in said[-1].reason

    def set_to(**values):
        given = [Parameter(f'dynamic_precision.{n}', value=v) for n, v in values.items()]
        return node.set_parameters_atomically(given)

    assert set_to(levels_from='parameters', boundaries=[0.5]).successful
    robot.run_until(lambda: 'w8a16' in said[-1].precision, node, what='fine against 9 m')
    assert set_to(levels_from='bundle').successful
    robot.run_until(lambda: said[-1].precision == low, node, what='low level again')
    switching.policy.measured_levels = None
    refused = set_to(lower_after=3)
    assert not refused.successful
    assert 'holds no measured levels' in refused.reason


@pytest.mark.parametrize(
    ('stored', 'why'),
    [
        (None, 'holds no measured levels: calibrate it with `vlaq calibrate --method nested`'),
        ({'head': 'token'}, "holds none of head 'flow'"),
        (
            {'boundaries': None},
            'llm has no boundaries, 5 samples are too few: calibrate with more',
        ),
    ],
    ids=['none', 'head', 'boundaries'],
)
def test_a_bundle_without_what_the_rule_needs_is_refused_with_the_way_out(
    graph, switching, stored, why
):
    policy = switching.policy
    policy.measured_levels = stored and measured_levels(policy.spec, **stored)
    node = graph.policy(policy, **dynamic(levels_from='bundle'))
    assert not node.bring_up()
    assert why in node.failure


def test_a_file_and_the_bundle_exclude_each_other(graph, switching, tmp_path):
    node = graph.policy(
        switching.policy, **dynamic(levels_from='bundle', file=str(tmp_path / 'a'))
    )
    assert not node.bring_up()
    assert "'dynamic_precision.levels_from' = 'bundle' exclude each other" in node.failure
