"""Rounds, rotation of copies and the figure that counts, on a clock that the test moves."""

import pytest

from vlaq_ros.bench import stopwatch
from vlaq_ros.bench.stopwatch import Case, Effort, copies_for, measure, summarize


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless `clock.advance` moves it."""

    class Clock:
        now = 0.0

        def advance(self, seconds):
            self.now += seconds

    fake = Clock()
    monkeypatch.setattr(stopwatch, 'now_s', lambda threads: fake.now)
    return fake


def test_copies_fill_the_cold_size_and_are_never_fewer_than_two():
    assert copies_for(stopwatch.COLD_BYTES // 4) == 4
    assert copies_for(stopwatch.COLD_BYTES // 4 + 1) == 4
    assert copies_for(stopwatch.COLD_BYTES // 4 - 1) == 5
    assert copies_for(10 * stopwatch.COLD_BYTES) == 2
    assert copies_for(1) == stopwatch.MOST_COPIES


def test_a_case_takes_its_copies_in_turn_across_runs():
    order = []
    case = Case('a', [lambda i=i: order.append(i) for i in range(3)])
    case.run(2)
    case.run(4)
    assert order == [0, 1, 2, 0, 1, 2]


def test_all_copies_are_warm_before_the_first_sample(clock):
    def first_call_is_slow():
        seen = set()

        def call(i):
            clock.advance(0.001 if i in seen else 0.05)
            seen.add(i)

        return [lambda i=i: call(i) for i in range(4)]

    timings = measure([Case('a', first_call_is_slow())], 1, Effort(3, 0.004))
    assert timings['a'].high == pytest.approx(0.001)


def test_cases_alternate_within_a_round(clock):
    order = []

    def call(name):
        order.append(name)
        clock.advance(0.01)

    cases = [Case(name, [lambda name=name: call(name)]) for name in 'ab']
    measure(cases, 1, Effort(3, 0.01))
    assert ''.join(order[-6:]) == 'ababab'


def test_one_thread_counts_the_median_of_round_means(clock):
    # 2 calls warm up, then rounds of one call each
    durations = iter([1.0, 0.1, 0.1, 0.9, 0.2])
    case = Case('a', [lambda: clock.advance(next(durations))])
    timing = measure([case], 1, Effort(3, 0.1))['a']
    assert timing.seconds == pytest.approx(0.2)
    assert (timing.low, timing.high) == (pytest.approx(0.1), pytest.approx(0.9))
    assert timing.calls == 3


def test_several_threads_count_the_tenth_percentile_of_single_calls():
    timing = summarize([float(i) for i in range(1, 101)], threads=2)
    assert timing.seconds == 11.0
    assert timing.calls == 100


@pytest.mark.parametrize(
    ('seconds', 'effort', 'expected'),
    [
        pytest.param((1.0, 0.05), Effort(7, 0.05), (stopwatch.SLOW_ROUNDS, 7), id='slow'),
        pytest.param((0.0005, 0.002), Effort(5, 0.0), (9, 5), id='short'),
    ],
)
def test_slow_cases_get_fewer_rounds_and_short_ones_more(clock, seconds, effort, expected):
    cases = [Case(f'{s} s', [lambda s=s: clock.advance(s)]) for s in seconds]
    timings = measure(cases, 1, effort)
    assert tuple(timings[case.name].calls for case in cases) == expected


def test_warming_up_ends_when_it_takes_long(clock):
    calls = []
    case = Case('a', [lambda: (calls.append(1), clock.advance(1.0))] * 50)
    measure([case], 1, Effort(1, 0.0))
    assert len(calls) == 3  # one to warm up, one to see how long it takes, one round
