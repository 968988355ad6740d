"""Ticks that stay away are noticed on a clock of their own."""

import pytest

from vlaq_ros.control.tick_watch import TickWatch, tick_limit_s


@pytest.mark.parametrize(
    ('rate_hz', 'limit_s'), [(1.0, 3.0), (10.0, 0.3), (20.0, 0.15), (500.0, 0.15)]
)
def test_three_periods_may_be_missed_and_a_loaded_machine_has_time(rate_hz, limit_s):
    assert tick_limit_s(rate_hz) == pytest.approx(limit_s)


def test_ticks_that_come_are_no_problem_however_long_they_go_on():
    watch = TickWatch(0.15, steady_s=100.0)
    for count in range(50):
        now_s = 100.0 + 0.125 * count
        assert watch.problem(now_s) == ''
        watch.ticked(now_s)


def test_the_limit_counts_from_the_last_tick_or_the_beginning():
    watch = TickWatch(0.5, steady_s=10.0)
    assert watch.problem(10.5) == ''
    assert watch.problem(10.75).startswith('no control tick for 0.8 s: ')
    watch.ticked(20.0)
    assert watch.problem(20.5) == ''
    assert watch.problem(22.0).startswith('no control tick for 2.0 s: ')


def test_the_problem_says_the_way_out_and_ends_with_a_tick():
    watch = TickWatch(0.5, steady_s=0.0)
    assert watch.problem(1.0).endswith('deactivate and activate when it does not go on')
    watch.ticked(1.0)
    assert watch.problem(1.0) == ''
