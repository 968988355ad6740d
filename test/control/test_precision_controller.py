"""Rules are combined by the highest, capped by the deadline, and safety overrides both."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.control.precision import PrecisionInputs, PrecisionMenu, Reason, SafetyEvent
from vlaq_ros.control.precision_controller import (
    GripperWatch,
    GroupRules,
    PrecisionController,
    SafetyFloor,
    SafetyOptions,
)
from vlaq_ros.control.precision_dyq import DyqOptions, DyqRule
from vlaq_ros.control.precision_rules import (
    DriftOptions,
    DriftRule,
    LatencyOptions,
    LatencyRule,
    StaticRule,
)
from vlaq_ros.errors import ConfigError

LLM = PrecisionMenu.from_names('w4a4', 'w4a8', 'w8a16')
EXPERT = PrecisionMenu.from_names('w4a8', 'w8a16')
SECOND = 1_000_000_000
EVENTS = frozenset({SafetyEvent.GRIPPER})


def make_controller(dwell_s=1.0):
    """Return a controller of two groups: one by motion, drift and deadline, one by motion."""
    llm = GroupRules(
        LLM,
        (
            DyqRule(LLM, (0.2, 0.5), DyqOptions(1)),
            DriftRule(LLM, DriftOptions(lower_after=1)),
        ),
        LatencyRule(LLM, LatencyOptions(raise_after=1, retry_after=1)),
    )
    expert = GroupRules(EXPERT, (DyqRule(EXPERT, (0.3,), DyqOptions(1)),))
    return PrecisionController({'llm': llm, 'expert': expert}, SafetyOptions(dwell_s))


def decide(controller, active, **inputs):
    decisions = controller.decide(PrecisionInputs(**{'now_ns': 0, **inputs}), active)
    return {name: decision.level for name, decision in decisions.items()}


def test_each_group_follows_its_own_menu_and_boundaries():
    controller = make_controller()
    levels = decide(controller, controller.top, sensitivities=(0.25,), drift_m=0.001)
    assert levels == {'llm': LLM.levels[1], 'expert': EXPERT.bottom}


def test_the_highest_demand_of_the_rules_counts_and_names_its_reason():
    """Motion asks for the bottom, the drift rule has lowered by one level only."""
    controller = make_controller()
    inputs = PrecisionInputs(0, (0.0,), drift_m=0.001)
    decision = controller.decide(inputs, controller.top)['llm']
    assert (decision.level, decision.reason) == (LLM.levels[1], Reason.DRIFT_LOWERED)
    raised = controller.decide(PrecisionInputs(0, (0.9,), drift_m=0.001), controller.top)['llm']
    assert (raised.level, raised.reason) == (LLM.top, Reason.FULL_PRECISION)


def test_the_deadline_caps_what_the_rules_ask_for():
    controller = make_controller()
    inputs = PrecisionInputs(0, (0.9,), drift_m=0.1, latency_s=0.2, deadline_s=0.1)
    decision = controller.decide(inputs, controller.top)['llm']
    assert (decision.level, decision.reason) == (LLM.levels[1], Reason.LATE)


def test_a_deadline_rule_alone_starts_at_the_top():
    group = GroupRules(LLM, (), LatencyRule(LLM, LatencyOptions()))
    controller = PrecisionController({'llm': group}, SafetyOptions())
    assert decide(controller, controller.top) == controller.top


@pytest.mark.parametrize('event', SafetyEvent, ids=str)
def test_safety_overrides_the_deadline_in_every_group_and_is_the_reason(event):
    controller = make_controller()
    inputs = PrecisionInputs(
        0, (0.0,), drift_m=0.0, latency_s=9.0, deadline_s=0.1, events=frozenset({event})
    )
    decisions = controller.decide(inputs, controller.top)
    assert {name: d.level for name, d in decisions.items()} == controller.top
    assert {d.reason.value for d in decisions.values()} == {event.value}


def test_the_top_is_held_for_the_dwell_time_and_no_longer():
    controller = make_controller(dwell_s=0.5)
    calm = {'sensitivities': (0.0,)}
    assert decide(controller, controller.top, **calm, now_ns=0)['expert'] == EXPERT.bottom
    found = [
        decide(
            controller,
            controller.top,
            **calm,
            now_ns=SECOND + tenth * SECOND // 10,
            events=EVENTS if tenth == 0 else frozenset(),
        )['expert']
        for tenth in range(8)
    ]
    assert found == [EXPERT.top] * 5 + [EXPERT.bottom] * 3


def test_a_new_event_begins_the_dwell_anew():
    floor = SafetyFloor(SafetyOptions(1.0))
    assert floor.update(0, EVENTS)
    assert floor.update(SECOND - 1, EVENTS)
    assert floor.update(2 * SECOND - 2, frozenset())
    assert floor.update(2 * SECOND - 1, frozenset()) is None


def test_without_dwell_only_the_decision_that_is_told_is_covered():
    floor = SafetyFloor(SafetyOptions(0.0))
    assert floor.update(0, EVENTS) is SafetyEvent.GRIPPER
    assert floor.update(0, frozenset()) is None


def test_a_clock_that_jumps_backwards_protects_longer_and_not_for_ever():
    floor = SafetyFloor(SafetyOptions(1.0))
    floor.update(100 * SECOND, EVENTS)
    assert floor.update(5 * SECOND, frozenset()) is SafetyEvent.GRIPPER
    assert floor.update(6 * SECOND - 1, frozenset()) is SafetyEvent.GRIPPER
    assert floor.update(6 * SECOND, frozenset()) is None


def test_of_several_events_the_first_named_is_reported_and_all_protect():
    floor = SafetyFloor(SafetyOptions(1.0))
    both = frozenset({SafetyEvent.ESTOP_CLEARED, SafetyEvent.CONTACT})
    assert floor.update(0, both) is SafetyEvent.CONTACT


def test_after_a_reset_no_event_of_the_last_episode_counts():
    controller = make_controller()
    decide(controller, controller.top, events=EVENTS)
    controller.reset()
    assert decide(controller, controller.top, sensitivities=(0.0,))['expert'] == EXPERT.bottom


@pytest.mark.parametrize(
    ('openings', 'transitions'),
    [
        ([0.0, 0.4, 0.5, 0.9, 0.4], [False, False, True, False, True]),
        ([1.0, None, 1.0, None, 0.0], [False, False, False, False, True]),
        ([None, None], [False, False]),
    ],
    ids=['crosses half', 'not commanded meanwhile', 'no gripper'],
)
def test_a_gripper_transition_is_a_command_across_half_open(openings, transitions):
    watch = GripperWatch()
    assert [watch.update(opening) for opening in openings] == transitions


def test_the_first_gripper_command_of_an_episode_is_no_transition():
    watch = GripperWatch()
    watch.update(0.0)
    watch.reset()
    assert not watch.update(1.0)


inputs = st.builds(
    PrecisionInputs,
    now_ns=st.integers(0, 10 * SECOND),
    sensitivities=st.lists(
        st.one_of(st.none(), st.floats(0, 2), st.just(math.nan)), max_size=4
    ).map(tuple),
    drift_m=st.one_of(st.none(), st.floats(0, 0.02), st.just(math.nan)),
    drift_rad=st.one_of(st.none(), st.floats(0, 0.2)),
    latency_s=st.one_of(st.none(), st.floats(0, 0.3)),
    deadline_s=st.one_of(st.none(), st.just(0.1)),
    events=st.frozensets(st.sampled_from(SafetyEvent), max_size=1),
)


@given(st.lists(inputs, max_size=40))
@settings(deadline=None)
def test_no_combination_of_rules_goes_below_a_safety_floor(sequence):
    """With time rising, every decision within a second of an event is at the top."""
    controller, event_ns = make_controller(), None
    active = controller.top
    for one in sorted(sequence, key=lambda value: value.now_ns):
        decisions = controller.decide(one, active)
        active = {name: decision.level for name, decision in decisions.items()}
        event_ns = one.now_ns if one.events else event_ns
        assert all(active[name] in group.menu for name, group in controller.groups.items())
        if event_ns is not None and one.now_ns - event_ns < SECOND:
            assert active == controller.top


def test_levels_of_other_groups_are_a_programming_error():
    with pytest.raises(ValueError, match=r"groups \['llm'\], this controller decides for"):
        make_controller().decide(PrecisionInputs(0), {'llm': LLM.top})


def test_nothing_to_decide_by_is_a_programming_error():
    with pytest.raises(ValueError, match='at least one rule'):
        GroupRules(LLM, ())
    with pytest.raises(ValueError, match='at least one module group'):
        PrecisionController({}, SafetyOptions())


@pytest.mark.parametrize('dwell_s', [-0.1, math.nan, math.inf, '1'], ids=str)
def test_a_dwell_time_out_of_range_is_refused(dwell_s):
    with pytest.raises(ConfigError, match='dwell_s = .* must be from 0 to 3600 s'):
        SafetyOptions(dwell_s)


def test_a_static_rule_holds_its_level_whatever_happens_but_safety():
    group = GroupRules(LLM, (StaticRule(LLM.bottom),))
    controller = PrecisionController({'llm': group}, SafetyOptions())
    assert decide(controller, controller.top, sensitivities=(2.0,))['llm'] == LLM.bottom
    assert decide(controller, controller.top, events=EVENTS)['llm'] == LLM.top
