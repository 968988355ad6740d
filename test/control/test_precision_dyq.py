"""Raising is immediate, lowering waits exactly K decisions, and a chunk counts by its worst."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.control.precision import PrecisionInputs, PrecisionMenu, Reason
from vlaq_ros.control.precision_dyq import (
    NEVER,
    DelayedLowering,
    DyqOptions,
    DyqRule,
    menu_boundaries,
)
from vlaq_ros.errors import ConfigError

MENU = PrecisionMenu.from_names('w4a2', 'w4a4', 'w4a8', 'w4a16')
A2, A4, A8, FP = MENU.levels
EDGES = (0.1, 0.25, 0.5)


def make_rule(delay=4, menu=MENU, edges=EDGES):
    return DyqRule(menu, edges, DyqOptions(delay))


def decide(rule, *sensitivities):
    inputs = PrecisionInputs(0, tuple(sensitivities))
    return rule.decide(inputs, rule.menu.top)


def run(rule, sensitivities):
    return [decide(rule, value).level for value in sensitivities]


@pytest.mark.parametrize(
    ('sensitivity', 'level'),
    [(0.0, A2), (0.1, A2), (0.11, A4), (0.25, A4), (0.26, A8), (0.5, A8), (0.51, FP), (9.0, FP)],
)
def test_the_table_of_the_paper_is_closed_above(sensitivity, level):
    assert make_rule().target(sensitivity) == level


def test_it_begins_at_the_top_before_anything_was_executed():
    decision = decide(make_rule())
    assert (decision.level, decision.reason) == (FP, Reason.WARM_UP)


@pytest.mark.parametrize('unknown', [None, math.nan, math.inf], ids=str)
def test_an_unknown_sensitivity_is_full_precision_at_once(unknown):
    rule = make_rule(delay=1)
    assert decide(rule, 0.0).level == A2
    decision = decide(rule, 0.0, unknown)
    assert (decision.level, decision.reason) == (FP, Reason.WARM_UP)


def test_after_an_unknown_sensitivity_lowering_takes_its_time_again():
    rule = make_rule(delay=2)
    assert run(rule, [0.0, 0.0, None, 0.0, 0.0]) == [FP, A2, FP, FP, A2]


def test_the_largest_sensitivity_of_the_executed_part_counts_and_not_the_mean():
    rule = make_rule(delay=1)
    assert decide(rule, 0.0, 0.3, 0.0, 0.0).level == A8


def test_lowering_takes_exactly_four_decisions_by_default():
    assert DyqOptions().lower_after == 4
    assert run(make_rule(), [0.0] * 5) == [FP, FP, FP, A2, A2]


def test_raising_is_immediate_and_may_skip_levels():
    rule = make_rule(delay=1)
    assert run(rule, [0.0, 0.9, 0.0, 0.2, 0.3]) == [A2, FP, A2, A4, A8]


def test_one_higher_demand_begins_the_delay_anew():
    rule = make_rule(delay=3)
    assert run(rule, [0.0, 0.0, 0.6, 0.0, 0.0, 0.0]) == [FP, FP, FP, FP, FP, A2]


def test_it_falls_to_the_highest_level_that_was_wanted_during_the_delay():
    rule = make_rule(delay=3)
    assert run(rule, [0.0, 0.3, 0.0, 0.0, 0.0, 0.0]) == [FP, FP, A8, A8, A8, A2]


def test_without_an_executed_action_nothing_changes_and_no_delay_passes():
    rule = make_rule(delay=2)
    decide(rule, 0.0)
    assert [decide(rule).level for _ in range(10)] == [FP] * 10
    assert decide(rule, 0.0).level == A2


def test_every_decision_says_why():
    rule = make_rule(delay=2)
    found = [decide(rule, value) for value in (0.7, 0.3, 0.3, 0.3)]
    assert [decision.reason for decision in found] == [
        Reason.FULL_PRECISION,
        Reason.LOWER_DELAYED,
        Reason.MOTION,
        Reason.MOTION,
    ]
    assert found[0].detail == 'S = 0.7 is over 0.5'
    assert found[1].detail == 'S = 0.3 allows w4a8: 1 of 2'


def test_after_a_reset_it_begins_at_the_top_again():
    rule = make_rule(delay=2)
    run(rule, [0.0] * 5)
    rule.reset()
    assert decide(rule).reason == Reason.WARM_UP
    assert run(rule, [0.0, 0.0]) == [FP, A2]


def test_a_level_that_is_never_admitted_is_not_used_even_at_rest():
    rule = make_rule(delay=1, edges=(NEVER, NEVER, 0.5))
    assert decide(rule, 0.0).level == A8


def test_a_menu_of_one_level_never_changes():
    rule = make_rule(menu=PrecisionMenu.from_names('w4a8'), edges=())
    assert decide(rule, 0.9).level == decide(rule, 0.0).level == rule.menu.top


sensitivities = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)


@given(sensitivities, st.integers(1, 6))
@settings(deadline=None)
def test_the_level_is_never_below_what_the_motion_asks_for(values, delay):
    rule = make_rule(delay)
    for value in values:
        assert decide(rule, value).level >= rule.target(value)


@given(sensitivities, st.integers(1, 6))
@settings(deadline=None)
def test_every_fall_follows_exactly_k_lower_targets_and_every_rise_none(values, delay):
    """The level is recomputed from the history alone, without a counter."""
    rule = make_rule(delay)
    targets = [rule.target(value) for value in values]
    level, since = FP, -1  # `since`: last decision that was no lower target
    for now, target in enumerate(targets):
        if target >= level:
            level, since = target, now
        elif now - since == delay:
            level, since = max(targets[since + 1 : now + 1]), now
        assert decide(rule, values[now]).level == level


@given(sensitivities)
@settings(deadline=None)
def test_more_sensitivity_never_gives_less_precision(values):
    rule = make_rule()
    levels = [rule.target(value) for value in sorted(values)]
    assert levels == sorted(levels)


@pytest.mark.parametrize(
    ('names', 'edges'),
    [
        (('w4a2', 'w4a4', 'w4a8', 'w4a16'), (0.1, 0.25, 0.5)),
        (('w4a4', 'w4a8', 'w4a16'), (0.25, 0.5)),
        (('w4a8', 'w8a16'), (0.5,)),
        (('w4a4', 'w4a16'), (0.25,)),
    ],
    ids=['paper', 'llm', 'expert', 'no 8 bits'],
)
def test_a_shorter_menu_uses_the_thresholds_of_the_paper_upwards(names, edges):
    menu = PrecisionMenu.from_names(*names)
    assert menu_boundaries(menu, 0.1, 0.25, 0.5) == edges
    full, short = make_rule(), make_rule(menu=menu, edges=edges)
    for value in (0.0, 0.15, 0.3, 0.7):
        assert short.target(value).activation_bits >= full.target(value).activation_bits


def test_levels_of_one_activation_width_have_no_threshold_between_them():
    with pytest.raises(ConfigError, match='do not rise in activation width'):
        menu_boundaries(PrecisionMenu.from_names('w4a8', 'w8a8'), 0.1, 0.2, 0.5)


@pytest.mark.parametrize(
    ('edges', 'message'),
    [
        ((0.1, 0.5), 'must be 3 numbers: one between every two of w4a2, w4a4, w4a8, w4a16'),
        ((0.1, math.nan, 0.5), 'must be finite numbers'),
        ((0.1, '0.2', 0.5), 'must be finite numbers'),
        ((0.3, 0.2, 0.5), 'must not fall'),
    ],
    ids=['count', 'NaN', 'text', 'order'],
)
def test_boundaries_that_do_not_fit_are_refused(edges, message):
    with pytest.raises(ConfigError, match=message):
        make_rule(edges=edges)


@pytest.mark.parametrize('delay', [0, -1, 2.0, True])
def test_a_delay_is_a_whole_number_of_decisions(delay):
    with pytest.raises(ConfigError, match='lower_after = .* must be a whole number, at least 1'):
        DyqOptions(delay)


def test_a_hysteresis_without_delay_is_a_programming_error():
    with pytest.raises(ValueError, match='lower_after must be at least 1'):
        DelayedLowering(FP, 0)
