"""Shares of inferences and of time, whatever the clock does."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.control.precision import Decision, PrecisionLevel, Reason
from vlaq_ros.control.precision_occupancy import Occupancy

LOW, HIGH = PrecisionLevel(4, 8), PrecisionLevel(8, 16)
SECOND = 1_000_000_000


def make_run():
    """Three inferences low for 1 s each, one high for 6 s, then a pause."""
    occupancy = Occupancy()
    for second, level in ((0, LOW), (1, LOW), (2, LOW), (3, HIGH)):
        occupancy.record(second * SECOND, {'llm': level})
    occupancy.pause(9 * SECOND)
    return occupancy


def test_time_belongs_to_the_level_that_was_active():
    occupancy = make_run()
    assert occupancy.share_of_inferences('llm') == {LOW: 0.75, HIGH: 0.25}
    assert occupancy.share_of_time('llm') == pytest.approx({LOW: 1 / 3, HIGH: 2 / 3})
    assert occupancy.changes('llm') == 1


def test_a_pause_counts_for_no_level():
    occupancy = make_run()
    before = occupancy.share_of_time('llm')
    occupancy.record(100 * SECOND, {'llm': LOW})
    assert occupancy.share_of_time('llm') == before
    occupancy.record(103 * SECOND, {'llm': LOW})
    assert occupancy.share_of_time('llm')[LOW] == pytest.approx(0.5)


def test_a_clock_that_jumps_backwards_adds_no_time_and_goes_on_from_there():
    occupancy = Occupancy()
    for second, level in ((10, LOW), (5, HIGH), (6, LOW)):
        occupancy.record(second * SECOND, {'llm': level})
    assert occupancy.share_of_time('llm') == {HIGH: 1.0}


def test_before_the_first_inference_there_are_no_shares():
    occupancy = Occupancy()
    occupancy.pause(5)
    assert occupancy.share_of_inferences('llm') == occupancy.share_of_time('llm') == {}
    assert occupancy.to_dict() == {}


def test_groups_are_counted_apart():
    occupancy = Occupancy()
    occupancy.record(0, {'llm': LOW, 'expert': HIGH})
    occupancy.record(1, {'llm': HIGH, 'expert': HIGH})
    assert (occupancy.changes('llm'), occupancy.changes('expert')) == (1, 0)
    assert occupancy.share_of_time('llm') == {LOW: 1.0}
    assert occupancy.share_of_time('expert') == {HIGH: 1.0}


def test_reasons_are_counted_and_everything_fits_a_json_report():
    occupancy = make_run()
    for reason in (Reason.MOTION, Reason.MOTION, Reason.GRIPPER):
        occupancy.record_reasons({'llm': Decision(LOW, reason, '')})
    report = json.loads(json.dumps(occupancy.to_dict()))['llm']
    assert report['reasons'] == {'motion': 2, 'gripper': 1}
    assert report['share_of_inferences'] == {'w4a8': 0.75, 'w8a16': 0.25}
    assert (report['inferences'], report['time_s'], report['changes']) == (4, 9.0, 1)


levels = st.builds(PrecisionLevel, st.sampled_from((4, 8)), st.sampled_from((2, 4, 8, 16)))


@given(st.lists(st.tuples(st.integers(0, 10**12), levels), min_size=1))
@settings(deadline=None)
def test_shares_sum_to_one(records):
    occupancy = Occupancy()
    for now_ns, level in records:
        occupancy.record(now_ns, {'llm': level})
    assert sum(occupancy.share_of_inferences('llm').values()) == pytest.approx(1.0)
    times = occupancy.share_of_time('llm')
    has_passed = any(b[0] > a[0] for a, b in zip(records[:-1], records[1:]))
    assert sum(times.values()) == pytest.approx(1.0 if has_passed else 0.0)
