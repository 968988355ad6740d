"""Motion before a recorded step: on the control clock, as the node reads it, never over a gap."""

import dataclasses

import numpy as np
import pytest

from vlaq_ros.calibration.motion_history import MAX_GAP_PERIODS, motion_before, position_columns
from vlaq_ros.kinematics.motion import MotionOptions
from vlaq_ros.policies.toy import toy_spec

SPEC = toy_spec()
PERIOD_NS = SPEC.action.period_ns
WINDOW = MotionOptions().fineness_window


def straight(steps, length_m, every=1, start_ns=10**9):
    """Return stamps and states of an arm that moves `length_m` per control period along x."""
    ticks = np.arange(0, steps + 1, every)
    states = np.zeros((len(ticks), len(SPEC.state.names)))
    states[:, 0] = ticks * length_m
    return start_ns + ticks * PERIOD_NS, states


@pytest.mark.parametrize('every', [1, 2, 3])
def test_steps_are_those_of_the_control_clock_whatever_was_recorded(every):
    coarse, fine = straight(60, 0.02, every), straight(60, 0.005, every)
    length_m, (in_coarse, in_fine) = motion_before([coarse, fine], SPEC)
    assert length_m == pytest.approx(0.02)
    assert in_coarse[-1] == pytest.approx(0.0, abs=1e-9)
    assert in_fine[-1] == pytest.approx(1.0 - 0.005 / 0.02)


def test_there_is_none_until_the_window_is_full_and_then_always():
    _, [found] = motion_before([straight(30, 0.01)], SPEC)
    assert [value is None for value in found] == [row < WINDOW for row in range(31)]


def test_a_gap_begins_anew_and_no_line_is_drawn_through_it():
    stamps_ns, states = straight(60, 0.01)
    keep = np.r_[0:30, 30 + MAX_GAP_PERIODS : 61]
    _, [found] = motion_before([(stamps_ns[keep], states[keep])], SPEC)
    after = found[30:]
    assert all(value is not None for value in found[WINDOW:30])
    assert [value is None for value in after] == [row < WINDOW for row in range(len(after))]


def test_only_motion_before_a_step_counts():
    stamps_ns, states = straight(40, 0.01)
    later = states.copy()
    later[31:, 0] += 0.5
    both = [
        motion_before([(stamps_ns, s), straight(60, 0.01)], SPEC)[1][0] for s in (states, later)
    ]
    assert both[0][:31] == both[1][:31]
    assert both[0][31:] != both[1][31:]


def test_an_arm_that_stands_still_and_a_single_step_have_no_history():
    assert motion_before([straight(30, 0.0)], SPEC) == (None, [[None] * 31])
    assert motion_before([straight(0, 0.01)], SPEC) == (None, [[None]])


def test_a_policy_whose_motion_the_state_does_not_tell_gets_none_and_why():
    names = (*SPEC.action.names, 'ee_rz')
    action = dataclasses.replace(
        SPEC.action,
        names=names,
        units=(*SPEC.action.units, 'rad'),
        low=(*SPEC.action.low, -1.0),
        high=(*SPEC.action.high, 1.0),
    )
    turning = dataclasses.replace(
        SPEC,
        action=action,
        action_mean=(*SPEC.action_mean, 0.0),
        action_std=(*SPEC.action_std, 1.0),
    )
    columns, why = position_columns(turning)
    assert not columns
    assert 'does not tell the orientation' in why
    assert motion_before([straight(30, 0.01)], turning) == (None, [[None] * 31])
