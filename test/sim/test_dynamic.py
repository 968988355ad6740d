"""Precision that changes during an episode: as the node decides, repeatable, and recorded."""

from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.control.precision import PrecisionInputs, PrecisionLevel, PrecisionMenu
from vlaq_ros.control.precision_controller import SafetyOptions
from vlaq_ros.control.precision_dyq import DyqOptions
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.control.precision_rules import DriftOptions
from vlaq_ros.errors import ConfigError, PolicyError
from vlaq_ros.kinematics.motion import MotionScale
from vlaq_ros.policies.drift_monitor import DriftMonitor
from vlaq_ros.policies.toy import ToyPolicy, toy_spec
from vlaq_ros.sim.dynamic import MeasuredDrift, RandomLevels
from vlaq_ros.sim.precision_options import PrecisionOptions, Rules, static_level
from vlaq_ros.sim.precision_run import PrecisionRun
from vlaq_ros.types import Observation

SPEC = toy_spec()
PERIOD_NS = SPEC.action.period_ns
ROWS = SPEC.execution_horizon
MENU = PrecisionMenu.from_names('w4a8', 'w8a16')
GROUPS = dict.fromkeys(('llm', 'expert'), GroupParameters(MENU, (0.5,)))
SCALE = MotionScale(0.01, None)


def make_rules(*names, **options):
    """Return rules over two levels: fine motion needs the upper one, no delay."""
    values = {'dyq': DyqOptions(1), 'safety': SafetyOptions(0.3), **options}
    return Rules(PrecisionParameters(names or ('dyq',), GROUPS, **values), SCALE, 'rules.json')


def observe(step, brightness=0):
    """Return an observation at a policy step."""
    images = {
        camera.name: np.full((camera.height, camera.width, 3), brightness, np.uint8)
        for camera in SPEC.cameras
    }
    return Observation(images, np.array([0.0, 0.6, 0.2, 0.5]), 'reach', step * PERIOD_NS)


def drive(policy, actions):
    """Play actions [n, 4] whatever the policy answers; return the level of each inference."""
    levels = []
    policy.reset()
    for first in range(0, len(actions), ROWS):
        levels.append(policy.infer(observe(first)).precision)
        for action in actions[first : first + ROWS]:
            policy.executed(action)
    return levels


def motion(*parts):
    """Return actions: (steps, step length [m], gripper opening) one after the other."""
    rows = [[length_m, 0.0, 0.0, opening] for n, length_m, opening in parts for _ in range(n)]
    return np.array(rows)


def nested():
    """Return the toy policy with levels of 4- and 8-bit weights."""
    return ToyPolicy(SPEC, 'nested')


@pytest.fixture
def dyq():
    """Return that policy under the rule of DyQ-VLA."""
    return make_rules().make_policy(nested(), 'dyq', None, None)


def test_fast_motion_runs_low_fine_motion_and_a_grasp_high(dyq):
    levels = drive(dyq, motion((30, 0.01, 1.0), (30, 0.001, 1.0), (30, 0.01, 1.0)))
    high = 'nested'  # its name where nothing was changed: w8a16
    assert levels[:3] == [high] * 3  # the window is full in the middle of the second chunk
    assert levels[3:6] == ['w4a8'] * 3
    assert levels[7:11] == [high] * 4  # half of the window is fine in the sixth
    assert levels[-1] == 'w4a8'
    grasp = drive(dyq, motion((30, 0.01, 1.0), (36, 0.01, 0.0)))
    assert grasp[4:] == ['w4a8', 'w4a8', high, high, 'w4a8', 'w4a8', 'w4a8']  # 0.3 s: two chunks


def test_an_episode_repeats_whatever_ran_before(dyq):
    actions = motion((20, 0.01, 1.0), (25, 0.002, 0.0), (20, 0.01, 0.0))
    first, run = drive(dyq, actions), dyq.run_so_far()
    drive(dyq, motion((60, 0.01, 1.0)))
    assert drive(dyq, actions) == first
    assert dyq.run_so_far() == run
    assert run.inferences == len(first)
    assert 4.0 < run.weight_bits < 8.0
    low = first.count('w4a8') / len(first)
    assert run.shares['llm']['w4a8'] == pytest.approx(low)
    assert run.activation_bits == pytest.approx(16 - 8 * low)


def test_the_node_decides_the_same_for_the_same_motion(dyq):
    control = pytest.importorskip('vlaq_ros.ros.precision_control')
    from vlaq_ros.ros.policy_parameters import PolicyParameters
    from vlaq_ros.ros.precision_parameters import DynamicPrecisionParameters

    config = PolicyParameters(
        lockstep=True,
        dynamic_precision=DynamicPrecisionParameters(
            policy='dyq',
            levels=('w4a8', 'w8a16'),
            boundaries=(0.5,),
            translation_m=0.01,
            lower_after=2,
            dwell_s=0.3,
        ),
    )
    generator = np.random.default_rng(5)
    lengths_m = np.abs(np.cumsum(generator.normal(0.0, 0.002, 300))) % 0.012
    openings = (np.cumsum(generator.random(300) < 0.03) % 2).astype(float)
    actions = np.stack([lengths_m, 0 * lengths_m, 0 * lengths_m, openings], axis=1)
    rules = make_rules(dyq=DyqOptions(2))
    ours = drive(rules.make_policy(nested(), 'dyq', None, None), actions)
    policy, theirs = nested(), []
    node = control.PrecisionControl(policy, config, wake=lambda: None)
    node.new_epoch(0)
    for first in range(0, len(actions), ROWS):
        now_ns = first * PERIOD_NS
        node.decide(now_ns)
        theirs.append(node.infer(observe(first), now_ns).precision)
        for row, action in enumerate(actions[first : first + ROWS]):
            increment = np.r_[action[:3], np.zeros(3)]
            node.executed(increment, action[3], (first, row), resumed=False)
    assert ours == theirs
    assert len(set(ours)) == 2


def make_drift(every=1, **limits):
    """Return the rule `drift` over the toy policy, which rounds coarsely at 4 bits."""
    reference = ToyPolicy(SPEC, 'fp32')
    monitor = DriftMonitor(SPEC.action, ROWS, DriftLimits())
    rules = make_rules('drift', drift=DriftOptions(lower_after=2, **limits))
    return rules.make_policy(nested(), 'drift', MeasuredDrift(monitor, reference, every), None)


def test_small_drift_lowers_and_large_drift_raises_one_chunk_later():
    still = motion((60, 0.0, 1.0))
    tolerant = drive(make_drift(warn_m=0.1, raise_m=0.2), still)
    assert tolerant == ['nested'] * 2 + ['w4a8'] * 8  # two small readings of the chunks before
    strict = drive(make_drift(warn_m=1e-3, raise_m=1.1e-3), still)
    assert strict[2:4] == ['w4a8', 'nested']


def test_drift_of_every_third_chunk_is_noticed_later():
    levels = drive(make_drift(every=3, warn_m=0.1, raise_m=0.2), motion((60, 0.0, 1.0)))
    assert levels.index('w4a8') == 4  # chunks 0 and 3 were compared


def test_a_deadline_that_no_level_meets_lowers_and_none_at_all_does_not():
    still = motion((48, 0.0, 1.0))
    late = drive(make_rules('latency').make_policy(nested(), 'latency', None, 1e-9), still)
    assert late[0] == 'nested'  # nothing was measured yet
    assert set(late[1:]) == {'w4a8'}
    easy = drive(make_rules('latency').make_policy(nested(), 'latency', None, 1e3), still)
    assert set(easy) == {'nested'}


def test_a_change_that_fails_is_told_with_its_reason(dyq, monkeypatch):
    def refuse(self, levels):
        raise PolicyError('out of memory')

    drive(dyq, motion((24, 0.01, 1.0)))
    monkeypatch.setattr(ToyPolicy, 'apply_precision', refuse)
    with pytest.raises(PolicyError, match='w8a16 was not reached: not swapped: out of memory'):
        drive(dyq, motion((18, 0.01, 1.0)))


def draw(chooser, n):
    """Return n decisions in one episode."""
    chooser.reset()
    return [chooser.decide(PrecisionInputs(0), {}) for _ in range(n)]


def test_random_order_uses_every_level_as_often_is_high_together_and_repeats():
    shares = {'llm': {'w4a8': 0.7, 'w8a16': 0.3}, 'expert': {'w4a8': 0.6, 'w8a16': 0.4}}
    chooser = RandomLevels()
    chooser.prepare(PrecisionRun(10, shares, 0.0, 0.0), 7)
    drawn = draw(chooser, 10)
    llm, expert = ([each[group].level for each in drawn] for group in ('llm', 'expert'))
    assert llm.count(MENU.bottom) == 7
    assert expert.count(MENU.bottom) == 6
    assert all(low >= high for high, low in zip(llm, expert))  # high where the other is high
    assert llm != sorted(llm)
    assert draw(chooser, 10) == drawn
    longer = [each['llm'].level for each in draw(chooser, 20)]
    assert longer[:10] == llm
    assert longer[10:].count(MENU.bottom) == 7
    chooser.prepare(PrecisionRun(10, shares, 0.0, 0.0), 8)
    assert draw(chooser, 10) != drawn


def test_rules_that_do_not_fit_are_refused_with_every_reason():
    unfitted = replace(
        make_rules(),
        parameters=PrecisionParameters(('static',), {'hand': GroupParameters(MENU)}),
    )
    assert any("rule 'dyq' needs boundaries" in line for line in unfitted.problems('dyq'))
    assert "no module group 'hand'" in unfitted.problems('drift')[0]
    assert PrecisionOptions().problems('dyq', None)[0].startswith('it has no rules')
    latency = PrecisionOptions().problems('latency', make_rules('latency'))
    assert latency == ['give --deadline-ms: how long an inference may take on this machine']
    assert PrecisionOptions(deadline_s=0.1).problems('latency', make_rules('latency')) == []
    with pytest.raises(ConfigError, match='(?s)llm w4a8 is not available.*expert w4a8 is not'):
        make_rules().make_policy(ToyPolicy(SPEC, 'w8'), 'dyq', None, None)


def test_names_of_levels():
    assert static_level('w8a16') == PrecisionLevel(8, 16)
    assert static_level('dyq') is None
