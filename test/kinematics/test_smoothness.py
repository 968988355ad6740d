"""Jerk and spectral arc length against closed forms and their invariances."""

import math

import numpy as np
import pytest

from vlaq_ros.kinematics.smoothness import jerk_ratio, mean_squared_jerk, spectral_arc_length

PERIOD_S = 0.025


def minimum_jerk(steps=80):
    """Return the bell-shaped velocities [steps, 3] of an oblique minimum-jerk reach."""
    t = np.linspace(0, 1, steps)[:, np.newaxis]
    return 30 * (t**2 - 2 * t**3 + t**4) * np.array([[0.2, -0.1, 0.05]])


def ripple(steps=80, amplitude=0.05, frequency_hz=6.0):
    """Return a shake along x."""
    t = np.arange(steps) * PERIOD_S
    return amplitude * np.sin(2 * np.pi * frequency_hz * t)[:, np.newaxis] * [[1, 0, 0]]


def test_the_jerk_of_a_quadratic_velocity_is_its_second_derivative():
    t = np.arange(20)[:, np.newaxis] * PERIOD_S
    velocities = t**2 * np.array([[3.0, 0.0, 4.0]])  # jerk (6, 0, 8)
    assert mean_squared_jerk(velocities, PERIOD_S) == pytest.approx(100.0)


def test_a_constant_acceleration_has_no_jerk():
    velocities = np.arange(20)[:, np.newaxis] * np.array([[0.1, 0.2, 0.3]])
    assert mean_squared_jerk(velocities, PERIOD_S) == pytest.approx(0.0, abs=1e-20)


def test_twice_the_shake_is_four_times_the_squared_jerk():
    assert jerk_ratio(2 * ripple(), ripple()) == pytest.approx(4.0)
    assert jerk_ratio(ripple(), ripple()) == 1.0


def test_the_jerk_ratio_is_a_mean_and_does_not_grow_with_length():
    alternating = np.tile([[1.0], [-1.0]], (40, 1))
    assert jerk_ratio(alternating, alternating[:20]) == pytest.approx(1.0)


def test_a_reference_without_jerk_has_no_finite_ratio():
    still = np.zeros((10, 3))
    assert jerk_ratio(ripple(), still) == math.inf
    assert math.isnan(jerk_ratio(still, still))


def test_a_minimum_jerk_reach_is_nearly_as_smooth_as_a_spectrum_can_be():
    """Straight down from 1 to the threshold is sqrt(1 + 0.95 ** 2) = 1.38 long."""
    smoothness = spectral_arc_length(minimum_jerk(), PERIOD_S)
    assert -1.55 < smoothness < -1.38


def test_a_shake_makes_it_less_smooth_and_more_of_it_even_less():
    levels = [
        spectral_arc_length(minimum_jerk() + ripple(amplitude=amplitude), PERIOD_S)
        for amplitude in (0.0, 0.05, 0.1, 0.2)
    ]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] - levels[-1] > 0.5


@pytest.mark.parametrize('factor', [1e-3, 1e3], ids=['slower', 'faster'])
def test_smoothness_does_not_depend_on_amplitude(factor):
    velocities = minimum_jerk() + ripple()
    assert spectral_arc_length(factor * velocities, PERIOD_S) == pytest.approx(
        spectral_arc_length(velocities, PERIOD_S)
    )


def test_smoothness_does_not_depend_on_duration():
    assert spectral_arc_length(minimum_jerk(160), PERIOD_S) == pytest.approx(
        spectral_arc_length(minimum_jerk(80), PERIOD_S), abs=0.02
    )


def test_smoothness_does_not_depend_on_direction():
    assert spectral_arc_length(-minimum_jerk()[:, ::-1], PERIOD_S) == pytest.approx(
        spectral_arc_length(minimum_jerk(), PERIOD_S)
    )


def test_a_shake_across_the_way_counts_as_well():
    across = ripple(amplitude=0.3) @ np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    smooth = spectral_arc_length(minimum_jerk(), PERIOD_S)
    assert spectral_arc_length(minimum_jerk() + across, PERIOD_S) < smooth - 0.1


def test_shaking_above_the_highest_frequency_is_not_seen():
    shaken = minimum_jerk() + ripple(amplitude=0.06, frequency_hz=17.0)
    smooth = spectral_arc_length(minimum_jerk(), PERIOD_S)
    assert spectral_arc_length(shaken, PERIOD_S) == pytest.approx(smooth, abs=0.05)
    assert spectral_arc_length(shaken, PERIOD_S, 20.0) < smooth - 0.1


def test_what_stands_still_has_no_smoothness():
    assert math.isnan(spectral_arc_length(np.zeros((10, 3)), PERIOD_S))


@pytest.mark.parametrize(
    ('velocities', 'message'),
    [
        (np.zeros((2, 3)), r'\[at least 3, dim\] and finite, got \[2, 3\]'),
        (np.zeros(10), r'\[at least 3, dim\] and finite, got \[10\]'),
        (np.full((5, 3), np.nan), 'and finite'),
    ],
    ids=['too short', 'one dimension', 'NaN'],
)
def test_velocities_that_are_none_are_a_programming_error(velocities, message):
    with pytest.raises(ValueError, match=message):
        mean_squared_jerk(velocities, PERIOD_S)


@pytest.mark.parametrize('period_s', [0.0, -1.0, math.nan], ids=str)
def test_a_period_that_is_not_positive_is_a_programming_error(period_s):
    with pytest.raises(ValueError, match='period_s must be positive'):
        spectral_arc_length(minimum_jerk(), period_s)
