"""A whole episode: executed commands in, precision of the policy out, as a node wires it."""

import numpy as np
import pytest

from vlaq_ros.control.precision import PrecisionInputs, PrecisionMenu, Reason, SafetyEvent
from vlaq_ros.control.precision_controller import GripperWatch
from vlaq_ros.control.precision_occupancy import Occupancy
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.control.precision_switch import PrecisionSwitch
from vlaq_ros.control.precision_transaction import PrecisionTransaction, Stage
from vlaq_ros.kinematics.motion import MotionScale, MotionTracker

LLM = PrecisionMenu.from_names('w4a4', 'w4a8', 'w8a16')
EXPERT = PrecisionMenu.from_names('w4a8', 'w8a16')
EXECUTED = 5
PERIOD_NS = 50_000_000


class Policy:
    """Remembers the levels it is told."""

    def __init__(self, levels):
        self.levels = dict(levels)

    def prepare_precision(self, levels):
        pass

    def apply_precision(self, levels):
        self.levels = dict(levels)


def run_episode(steps, openings):
    """Execute steps [n, 6], five per inference; return levels, reasons and occupancy."""
    parameters = PrecisionParameters(
        ('dyq',),
        {'llm': GroupParameters(LLM, (0.1, 0.4)), 'expert': GroupParameters(EXPERT, (0.4,))},
    )
    controller, occupancy = parameters.controller(), Occupancy()
    policy = Policy(controller.top)
    switch = PrecisionSwitch(PrecisionTransaction(controller.top), policy)
    tracker, watch = MotionTracker(MotionScale(0.02, None)), GripperWatch()
    sensitivities, events, levels, reasons = (), set(), [], []
    for first in range(0, len(steps), EXECUTED):
        now_ns = first * PERIOD_NS
        inputs = PrecisionInputs(now_ns, sensitivities, events=frozenset(events))
        decisions = controller.decide(inputs, switch.transaction.active)
        occupancy.record_reasons(decisions)
        wanted = {name: decision.level for name, decision in decisions.items()}
        if switch.transaction.request(wanted, decisions['llm'].detail, now_ns):
            switch.prepare(now_ns)
        assert switch.before_inference(now_ns)
        occupancy.record(now_ns, switch.transaction.active)
        levels.append(dict(policy.levels))
        reasons.append(decisions['llm'].reason)
        switch.after_inference(now_ns)
        chunk = slice(first, first + EXECUTED)
        sensitivities = tuple(tracker.update(step).sensitivity for step in steps[chunk])
        events = {SafetyEvent.GRIPPER for opening in openings[chunk] if watch.update(opening)}
    occupancy.pause(len(steps) * PERIOD_NS)
    return levels, reasons, occupancy, switch.transaction


def make_reach_and_grasp():
    """60 fast steps, 30 fine ones, then the gripper closes and 60 fast steps carry away."""
    speeds = np.repeat([0.02, 0.005, 0.02], [60, 30, 60])
    openings = np.repeat([1.0, 0.0], [90, 60])
    return speeds[:, np.newaxis] * np.eye(6)[0], openings


def test_fast_motion_runs_low_fine_motion_and_the_grasp_at_the_top():
    levels, reasons, *_ = run_episode(*make_reach_and_grasp())
    assert levels[0] == {'llm': LLM.top, 'expert': EXPERT.top}
    assert reasons[:2] == [Reason.WARM_UP, Reason.WARM_UP]
    assert levels[11] == {'llm': LLM.bottom, 'expert': EXPERT.bottom}
    assert levels[14]['llm'] == LLM.top  # fine since step 60, the window full at step 70
    assert Reason.FULL_PRECISION in reasons[12:18]
    after_grasp = reasons.index(Reason.GRIPPER)
    assert after_grasp == 19  # the inference after the chunk in which the gripper closed
    dwell = range(after_grasp, after_grasp + 4)  # 1 s is four chunks of 0.25 s
    assert all(levels[k] == {'llm': LLM.top, 'expert': EXPERT.top} for k in dwell)
    assert levels[-1] == {'llm': LLM.bottom, 'expert': EXPERT.bottom}


def test_the_shares_of_an_episode_sum_to_one_and_every_change_was_confirmed():
    _, reasons, occupancy, transaction = run_episode(*make_reach_and_grasp())
    for group in ('llm', 'expert'):
        assert sum(occupancy.share_of_time(group).values()) == pytest.approx(1.0)
        assert sum(occupancy.share_of_inferences(group).values()) == pytest.approx(1.0)
        assert sum(occupancy.reasons(group).values()) == len(reasons)
    assert transaction.counts[Stage.ROLLED_BACK] == transaction.counts[Stage.FAILED] == 0
    assert transaction.counts[Stage.CONFIRMED] >= occupancy.changes('llm') > 0
    assert 0.0 < occupancy.share_of_time('llm')[LLM.bottom] < 1.0


def test_an_arm_at_rest_is_at_the_top_and_nothing_is_undefined():
    levels, reasons, occupancy, _ = run_episode(np.zeros((100, 6)), np.zeros(100))
    assert occupancy.share_of_time('llm') == {LLM.top: 1.0}
    assert reasons[-1] == Reason.FULL_PRECISION
    assert len(levels) == 20
