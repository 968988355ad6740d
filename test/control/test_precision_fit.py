"""Boundaries against closed forms: where errors of a known shape cross the bound."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.control.precision_dyq import NEVER, DyqOptions, DyqRule
from vlaq_ros.control.precision_fit import fit_boundaries
from vlaq_ros.errors import ConfigError

MENU = PrecisionMenu.from_names('w4a2', 'w4a4', 'w4a8', 'w4a16')
A2, A4, A8, FP = MENU.levels
S = np.linspace(0.0, 1.0, 2001)


def constant(a2, a4, a8):
    return {A2: np.full(S.size, a2), A4: np.full(S.size, a4), A8: np.full(S.size, a8)}


def test_constant_errors_cross_the_bound_where_the_formula_says():
    """E = D / (S + eta) gives S = D / E - eta; the last one is the 90th percentile by design."""
    fit = fit_boundaries(S, constant(4.0, 2.0, 1.0), MENU)
    budget = 1.0 * (0.9 + 0.05)
    assert fit.budget == pytest.approx(budget)
    expected = [budget / error - 0.05 for error in (4.0, 2.0, 1.0)]
    np.testing.assert_allclose(fit.boundaries, expected, atol=0.02)  # pools are 0.1 wide


def test_more_pools_come_closer_to_the_formula():
    fit = fit_boundaries(S, constant(4.0, 2.0, 1.0), MENU, pools=200)
    np.testing.assert_allclose(fit.boundaries, [0.1875, 0.425, 0.9], atol=1e-3)


def test_errors_that_grow_with_the_sensitivity_cross_earlier():
    errors = {A2: 4.0 * (1 + S), A4: 2.0 * (1 + S), A8: 1.0 * (1 + S)}
    fit = fit_boundaries(S, errors, MENU, budget=1.0, pools=200)
    for level, edge in zip((4.0, 2.0, 1.0), fit.boundaries):
        assert level * (1 + edge) == pytest.approx(1.0 / (edge + 0.05), rel=1e-2)


def test_a_level_that_is_too_inaccurate_at_rest_is_never_used():
    fit = fit_boundaries(S, constant(100.0, 2.0, 1.0), MENU)
    assert fit.boundaries[0] == NEVER
    rule = DyqRule(MENU, fit.boundaries, DyqOptions())
    assert rule.target(0.0) == A4


def test_a_level_that_is_always_accurate_is_used_as_far_as_samples_reach():
    fit = fit_boundaries(S, constant(4.0, 2.0, 0.0), MENU, budget=1.0)
    assert fit.boundaries[2] == 1.0
    assert DyqRule(MENU, fit.boundaries, DyqOptions()).target(1.01) == FP


def test_a_lower_level_never_outlasts_a_higher_one():
    """By chance 4 bits did worse than 2 in these samples: then 2 bits are given up too."""
    fit = fit_boundaries(S, constant(2.0, 4.0, 1.0), MENU)
    assert fit.boundaries[0] == fit.boundaries[1]
    assert fit.boundaries[1] == pytest.approx(0.1875, abs=0.02)


def test_pools_average_out_what_single_samples_do():
    rng = np.random.default_rng(0)
    noisy = {level: e * rng.exponential(size=S.size) for level, e in ((A2, 4), (A4, 2), (A8, 1))}
    fit = fit_boundaries(S, noisy, MENU, budget=0.95)
    np.testing.assert_allclose(fit.boundaries, [0.1875, 0.425, 0.9], atol=0.1)


def test_equal_sensitivities_stay_in_one_pool():
    """Most samples are clipped at zero: the pools are fewer, and none is empty."""
    clipped = np.maximum(0.0, np.linspace(-3.0, 1.0, 400))
    errors = {level: np.ones(400) for level in (A2, A4, A8)}
    fit = fit_boundaries(clipped, errors, MENU)
    assert fit.counts[0] >= 300
    assert sum(fit.counts) == 400
    assert min(fit.counts) > 0
    assert list(fit.sensitivities) == sorted(set(fit.sensitivities))


def test_the_order_of_the_samples_plays_no_role():
    rng = np.random.default_rng(1)
    errors = {level: rng.random(S.size) for level in (A2, A4, A8)}
    order = rng.permutation(S.size)
    shuffled = {level: values[order] for level, values in errors.items()}
    first, second = fit_boundaries(S, errors, MENU), fit_boundaries(S[order], shuffled, MENU)
    np.testing.assert_allclose(first.boundaries, second.boundaries, rtol=1e-9)


def test_the_unit_of_the_errors_plays_no_role():
    first = fit_boundaries(S, constant(4.0, 2.0, 1.0), MENU)
    second = fit_boundaries(S, constant(4e-6, 2e-6, 1e-6), MENU)
    np.testing.assert_allclose(first.boundaries, second.boundaries, rtol=1e-9)


@given(st.integers(0, 10**6), st.integers(20, 200), st.booleans())
@settings(deadline=None, max_examples=100)
def test_boundaries_fit_the_rule_whatever_the_samples_are(seed, count, has_ties):
    rng = np.random.default_rng(seed)
    sensitivities = rng.exponential(0.3, count)
    if has_ties:
        sensitivities = np.round(sensitivities, 1)
    errors = {level: rng.exponential(scale, count) for level, scale in ((A2, 3), (A4, 2), (A8, 1))}
    fit = fit_boundaries(sensitivities, errors, MENU)
    assert list(fit.boundaries) == sorted(fit.boundaries)
    rule = DyqRule(MENU, fit.boundaries, DyqOptions())
    assert rule.target(sensitivities.max() + 1e-9) == FP


def test_pools_hold_their_means_and_the_report_is_json():
    errors = {A2: S, A4: 2 * S, A8: 3 * S}
    fit = fit_boundaries(S, errors, MENU)
    np.testing.assert_allclose(fit.errors[A4], 2 * np.array(fit.sensitivities))
    bound = fit.budget / (np.array(fit.sensitivities) + 0.05)
    np.testing.assert_allclose(fit.bound, bound)
    report = json.loads(json.dumps(fit.to_dict()))
    assert report['errors']['w4a8'] == list(fit.errors[A8])
    assert report['boundaries'] == list(fit.boundaries)


def test_every_problem_of_the_samples_is_listed():
    errors = {A2: np.ones(3), A8: np.array([1.0, -1.0, np.nan, 1.0])}
    with pytest.raises(ConfigError) as error:
        fit_boundaries(np.array([0.1, -0.1, np.nan, 0.2]), errors, MENU, softening=0.0, budget=-1)
    for text in (
        '4 samples are too few for 10 pools',
        '2 of 4 sensitivities are negative or not finite',
        'the errors of w4a2 are [3], the sensitivities [4]',
        'the errors of w4a4 are absent',
        'some errors of w4a8 are negative or not finite',
        'softening = 0.0',
        'budget = -1',
    ):
        assert text in str(error.value)


def test_a_menu_of_one_level_has_nothing_to_fit():
    with pytest.raises(ConfigError, match='w4a8 has one level'):
        fit_boundaries(S, {}, PrecisionMenu.from_names('w4a8'))
