"""Precision by measured drift and by the deadline: when it moves, and when it must not."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.control.precision import PrecisionInputs, PrecisionLevel, PrecisionMenu, Reason
from vlaq_ros.control.precision_rules import (
    DriftOptions,
    DriftRule,
    LatencyOptions,
    LatencyRule,
    StaticRule,
)
from vlaq_ros.errors import ConfigError

MENU = PrecisionMenu.from_names('w4a8', 'w8a8', 'w8a16')
LOW, MIDDLE, TOP = MENU.levels
SMALL, WARN, LARGE = 0.001, 0.007, 0.02


def make_drift_rule(lower_after=3, silence_after=100):
    return DriftRule(
        MENU, DriftOptions(0.005, 0.01, 0.05, 0.1, lower_after, silence_after=silence_after)
    )


def follow(rule, drifts_m):
    """Return the decisions for drift in position alone, each carried out before the next one."""
    active, decisions = MENU.top, []
    for drift_m in drifts_m:
        decisions.append(rule.decide(PrecisionInputs(0, drift_m=drift_m), active))
        active = decisions[-1].level
    return decisions


def levels(decisions):
    return [decision.level for decision in decisions]


def test_a_static_rule_always_says_the_same():
    rule = StaticRule(LOW)
    rule.reset()
    decision = rule.decide(PrecisionInputs(0, (0.9,), drift_m=9.0), TOP)
    assert (decision.level, decision.reason) == (LOW, Reason.STATIC)


def test_small_drift_lowers_one_level_after_so_many_measurements():
    found = follow(make_drift_rule(), [SMALL] * 10)
    assert levels(found) == [TOP, TOP] + [MIDDLE] * 3 + [LOW] * 5
    assert found[1].reason == Reason.DRIFT_HELD
    assert found[1].detail == 'drift 0.001 m at w8a16 is small: 2 of 3'
    assert found[2].reason == Reason.DRIFT_LOWERED


def test_large_drift_raises_one_level_at_once():
    found = follow(make_drift_rule(lower_after=1), [SMALL, SMALL, LARGE, LARGE, LARGE])
    assert levels(found) == [MIDDLE, LOW, MIDDLE, TOP, TOP]
    assert [d.reason for d in found[2:]] == [Reason.DRIFT_RAISED] * 2 + [Reason.DRIFT_HELD]


def test_drift_between_the_limits_holds_the_level_and_begins_the_count_anew():
    found = follow(make_drift_rule(), [SMALL, SMALL, WARN, SMALL, SMALL, SMALL])
    assert levels(found) == [TOP] * 5 + [MIDDLE]


def test_rotation_alone_raises_too_and_what_is_not_commanded_plays_no_role():
    rule = make_drift_rule(lower_after=1)
    lowered = rule.decide(PrecisionInputs(0, drift_m=SMALL, drift_rad=math.nan), TOP)
    assert lowered.level == MIDDLE
    raised = rule.decide(PrecisionInputs(0, drift_m=SMALL, drift_rad=0.2), MIDDLE)
    assert (raised.level, raised.reason) == (TOP, Reason.DRIFT_RAISED)
    assert raised.detail == 'drift 0.001 m, 0.2 rad at w8a8 is over the raise limit'


@pytest.mark.parametrize('missing', [None, math.nan], ids=str)
def test_without_measurements_the_level_is_held_and_given_up_after_a_while(missing):
    rule = make_drift_rule(lower_after=1, silence_after=3)
    found = follow(rule, [SMALL, missing, missing, missing, missing])
    assert levels(found) == [MIDDLE] * 4 + [TOP]
    assert found[-1].reason == Reason.DRIFT_UNKNOWN


def test_drift_measured_at_a_higher_level_is_no_reason_for_a_lower_one():
    rule = make_drift_rule(lower_after=1)
    rule.decide(PrecisionInputs(0, drift_m=SMALL), TOP)
    inputs = PrecisionInputs(0, drift_m=SMALL)
    assert [rule.decide(inputs, TOP).level for _ in range(5)] == [MIDDLE] * 5
    assert rule.decide(inputs, MIDDLE).level == LOW


def test_a_late_measurement_of_the_level_before_raises_no_further():
    """The swap takes a while: until then drift is still measured at the lower level."""
    rule = make_drift_rule(lower_after=1)
    follow(rule, [SMALL, SMALL])
    inputs = PrecisionInputs(0, drift_m=LARGE)
    assert [rule.decide(inputs, LOW).level for _ in range(3)] == [MIDDLE] * 3


def test_after_a_reset_both_rules_begin_at_the_top():
    drift, latency = make_drift_rule(lower_after=1), make_latency_rule()
    follow(drift, [SMALL] * 4)
    race(latency, [0.2, 0.2])
    drift.reset()
    latency.reset()
    assert drift.decide(PrecisionInputs(0), LOW).level == TOP
    assert latency.decide(PrecisionInputs(0), LOW).level == TOP


@given(st.lists(st.sampled_from([SMALL, WARN, LARGE, None, math.nan, math.inf]), max_size=80))
@settings(deadline=None)
def test_drift_moves_by_one_level_raises_at_once_and_never_lowers_early(drifts):
    rule = make_drift_rule()
    active, small = TOP, 0
    for drift_m in drifts:
        level = rule.decide(PrecisionInputs(0, drift_m=drift_m), active).level
        assert abs(MENU.levels.index(level) - MENU.levels.index(active)) <= 1
        is_known = drift_m is not None and not math.isnan(drift_m)
        if is_known and drift_m > 0.01:
            assert level == MENU.above(active)
        if is_known:
            small = small + 1 if drift_m <= 0.005 else 0
        if level < active:
            assert small >= 3
        active = level


def make_latency_rule(raise_after=3, retry_after=10):
    return LatencyRule(MENU, LatencyOptions(0.1, 0.3, raise_after, retry_after))


def race(rule, latencies_s, deadline_s=0.1):
    """Return the decisions for latencies, each decision carried out before the next one."""
    active, decisions = MENU.top, []
    for latency_s in latencies_s:
        inputs = PrecisionInputs(0, latency_s=latency_s, deadline_s=deadline_s)
        decisions.append(rule.decide(inputs, active))
        active = decisions[-1].level
    return decisions


def test_a_late_inference_lowers_at_once_as_far_as_the_menu_goes():
    found = race(make_latency_rule(), [0.095, 0.2, 0.2])
    assert levels(found) == [MIDDLE, LOW, LOW]
    assert found[0].reason == Reason.LATE
    assert found[0].detail == '5% of the deadline of 100 ms is left at w8a16'


def test_a_margin_between_the_limits_holds_the_level():
    assert levels(race(make_latency_rule(), [0.2] + [0.08] * 30)) == [MIDDLE] * 31


def test_time_to_spare_raises_after_so_many_decisions_but_not_to_what_was_late_lately():
    """The top is late in the first decision and may be tried again in the eleventh."""
    found = race(make_latency_rule(), [0.2] + [0.05] * 12)
    assert levels(found) == [MIDDLE] * 10 + [TOP] * 3
    assert found[10].reason == Reason.MARGIN_RAISED


def test_a_level_that_was_never_late_is_tried_as_soon_as_there_is_time():
    rule = make_latency_rule(retry_after=1)
    found = race(rule, [0.2, 0.2] + [0.05] * 7)
    assert levels(found) == [MIDDLE, LOW, LOW, LOW, MIDDLE, MIDDLE, MIDDLE, TOP, TOP]


def test_one_narrow_margin_begins_the_count_anew():
    found = race(make_latency_rule(retry_after=1), [0.2, 0.05, 0.05, 0.08, 0.05, 0.05, 0.05])
    assert levels(found) == [MIDDLE] * 6 + [TOP]


@pytest.mark.parametrize(
    ('latency_s', 'deadline_s'), [(None, 0.1), (0.2, None)], ids=['no latency', 'no deadline']
)
def test_without_a_latency_or_a_deadline_nothing_changes(latency_s, deadline_s):
    found = race(make_latency_rule(), [latency_s] * 5, deadline_s)
    assert levels(found) == [TOP] * 5


def test_a_latency_that_is_no_number_counts_as_late():
    assert levels(race(make_latency_rule(), [math.nan])) == [MIDDLE]


def test_a_level_that_another_rule_keeps_low_is_no_evidence_of_time_for_more():
    rule = make_latency_rule(raise_after=1, retry_after=1)
    race(rule, [0.2, 0.2])
    inputs = PrecisionInputs(0, latency_s=0.01, deadline_s=0.1)
    assert rule.decide(inputs, LOW).level == MIDDLE
    assert [rule.decide(inputs, LOW).level for _ in range(5)] == [MIDDLE] * 5


def test_lateness_measured_before_the_swap_lowers_only_once():
    rule = make_latency_rule()
    inputs = PrecisionInputs(0, latency_s=0.2, deadline_s=0.1)
    assert [rule.decide(inputs, TOP).level for _ in range(4)] == [MIDDLE] * 4


def test_a_deadline_that_is_none_is_a_programming_error():
    with pytest.raises(ValueError, match='deadline_s must be positive, got 0'):
        make_latency_rule().decide(PrecisionInputs(0, latency_s=0.1, deadline_s=0.0), TOP)


def test_a_level_that_is_always_late_is_retried_only_after_the_retry_time():
    """The top takes 0.2 s and the level below 0.05 s, for ever: no swinging between them."""
    rule, active, at_top = make_latency_rule(retry_after=50), TOP, 0
    for _ in range(500):
        latency_s = 0.2 if active == TOP else 0.05
        inputs = PrecisionInputs(0, latency_s=latency_s, deadline_s=0.1)
        at_top += active == TOP
        active = rule.decide(inputs, active).level
    assert 9 <= at_top <= 10


@pytest.mark.parametrize(
    ('make', 'names'),
    [
        (lambda: DriftOptions(0.01, 0.01, -1, 0.1, 0, 1.5), 'warn_m warn_rad lower_after silence'),
        (lambda: DriftOptions(warn_m='a', raise_rad=math.inf), 'warn_m raise_rad'),
        (lambda: LatencyOptions(0.5, 0.4, 0, 0), 'low_margin raise_after retry_after'),
        (lambda: LatencyOptions(high_margin=1.0), 'high_margin'),
    ],
    ids=['drift', 'drift types', 'latency', 'margin'],
)
def test_every_option_out_of_range_is_listed(make, names):
    with pytest.raises(ConfigError) as error:
        make()
    for name in names.split():
        assert name in str(error.value)


def test_a_level_outside_the_menu_is_measured_against_its_neighbours():
    rule = make_drift_rule()
    other = PrecisionLevel(4, 2)
    assert rule.decide(PrecisionInputs(0, drift_m=LARGE), other).level == TOP
