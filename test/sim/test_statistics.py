"""Intervals and paired tests, against published values, brute force and their own laws."""

import itertools
import math

import numpy as np
import pytest

from vlaq_ros.sim.statistics import compare, mcnemar_p, percentile, wilson_interval


@pytest.mark.parametrize(
    ('successes', 'episodes', 'low', 'high'),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (152, 160, 0.9044, 0.9744),
    ],
)
def test_wilson_interval_matches_published_values(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize('episodes', [1, 7, 160])
def test_wilson_interval_lies_in_zero_to_one_and_contains_the_rate(episodes):
    for successes in range(episodes + 1):
        low, high = wilson_interval(successes, episodes)
        assert 0.0 <= low <= successes / episodes <= high <= 1.0
        assert low < high


def test_wilson_interval_solves_its_defining_equation():
    low, high = wilson_interval(37, 50)
    for end in (low, high):
        deviation = abs(37 / 50 - end) / math.sqrt(end * (1.0 - end) / 50)
        assert deviation == pytest.approx(1.959963984540054)


def test_wilson_interval_mirrors_failures():
    low, high = wilson_interval(3, 40)
    assert wilson_interval(37, 40) == pytest.approx((1.0 - high, 1.0 - low))


@pytest.mark.parametrize(('successes', 'episodes'), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes, episodes):
    with pytest.raises(ValueError, match=f'{successes} successes of {episodes} episodes'):
        wilson_interval(successes, episodes)


@pytest.mark.parametrize('discordant', range(9))
def test_mcnemar_equals_the_count_over_all_coin_flips(discordant):
    """Under the null every discordant episode is a fair coin: count what is as extreme or more."""
    flips = [sum(f) for f in itertools.product((0, 1), repeat=discordant)]
    for lost in range(discordant + 1):
        distance = abs(2 * lost - discordant)
        extreme = sum(abs(2 * heads - discordant) >= distance for heads in flips)
        assert mcnemar_p(lost, discordant - lost) == pytest.approx(extreme / len(flips))


@pytest.mark.parametrize(
    ('lost', 'gained', 'p'),
    [(0, 0, 1.0), (1, 1, 1.0), (2, 5, 0.453125), (13, 2, 0.00738525), (65, 0, 2.0 * 0.5**65)],
)
def test_mcnemar_of_known_counts(lost, gained, p):
    assert mcnemar_p(lost, gained) == pytest.approx(p, rel=1e-5)
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained)


def test_mcnemar_survives_thousands_of_discordant_episodes():
    assert mcnemar_p(3000, 3000) == 1.0
    assert mcnemar_p(5000, 10) < 1e-300


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match='lost=-1'):
        mcnemar_p(-1, 2)


def test_a_rise_in_success_is_a_tie_without_significance():
    """The 4-bit run that once looked 1.9 points better than full precision: 2 lost, 5 gained."""
    reference = {i: i >= 5 for i in range(160)}
    outcome = {i: not 100 <= i < 102 for i in range(160)}
    paired = compare(outcome, reference)
    assert (paired.episodes, paired.lost, paired.gained) == (160, 2, 5)
    assert sum(outcome.values()) > sum(reference.values())
    assert paired.verdict == 'tie'


def test_a_significant_difference_names_its_direction():
    good = dict.fromkeys(range(20), True)
    bad = {i: i >= 6 for i in range(20)}
    assert compare(bad, good).p_value == pytest.approx(0.03125)
    assert compare(bad, good).verdict == 'worse'
    assert compare(good, bad).verdict == 'better'


def test_only_common_episodes_are_compared():
    paired = compare({1: True, 2: False}, {2: True, 3: True})
    assert (paired.episodes, paired.lost, paired.gained) == (1, 1, 0)


def test_a_run_against_itself_is_a_tie():
    outcome = {i: i % 3 == 0 for i in range(30)}
    paired = compare(outcome, outcome)
    assert (paired.lost, paired.gained, paired.p_value, paired.verdict) == (0, 0, 1.0, 'tie')


def test_percentile_interpolates_and_of_nothing_is_nan():
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile(list(np.arange(101.0)), 95) == 95.0
    assert math.isnan(percentile([], 50))
