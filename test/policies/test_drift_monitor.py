"""Drift chunk by chunk: what a reading says, over the window, measured and predicted."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.control.drift_alarm import DriftLevel, DriftLimits
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.drift import open_loop_drift, stream_drift
from vlaq_ros.kinematics.predicted_drift import ANY_PHASE, ErrorStatistics, PredictedDrift
from vlaq_ros.policies.drift_monitor import DriftMonitor
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionChunk, ActionSpec

PERIOD_NS = 50_000_000
SECOND = 1_000_000_000
ALL = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)
HORIZON = 4
LIMITS = DriftLimits(0.01, 0.02, calm_after=2)


def make_spec(names=ALL):
    size = len(names)
    return ActionSpec(names, ('1',) * size, 'base', True, PERIOD_NS, (-1,) * size, (1,) * size)


def chunk(actions, observed_ns=0, precision='w4a8', sequence=0, spec=None):
    spec = spec or make_spec()
    return ActionChunk(actions, spec, observed_ns, 'go', precision, 'flow', sequence, epoch=2)


def pair(bias_m, observed_ns, rows=6, gripper=(0.9, 0.9), **kwargs):
    """Return a chunk that is off by `bias_m` along y in every row, and its reference."""
    reference = np.zeros((rows, 7))
    reference[:, 0], reference[:, 6] = 0.01, gripper[1]
    actions = reference.copy()
    actions[:, 1] += bias_m
    actions[:, 6] = gripper[0]
    return chunk(actions, observed_ns, **kwargs), chunk(reference, observed_ns, 'fp32')


@pytest.fixture
def monitor():
    return DriftMonitor(make_spec(), HORIZON, LIMITS, window_s=1.0)


def test_a_reading_tells_whose_it_is_and_compares_the_executed_rows_only(monitor):
    judged, reference = pair(0.001, 5 * SECOND, sequence=7)
    reading = monitor.measured(judged, reference, 'shadow')
    assert (reading.sequence, reading.epoch, reading.observed_ns) == (7, 2, 5 * SECOND)
    assert (reading.source, reading.precision, reading.reference_precision) == (
        'shadow',
        'w4a8',
        'fp32',
    )
    assert reading.drift.steps == HORIZON
    assert reading.drift.position_per_step_m == pytest.approx(0.001)
    assert reading.drift.position_accumulated_m == pytest.approx(HORIZON * 0.001)
    assert reading.window_m == pytest.approx(HORIZON * 0.001)
    assert (reading.window_rad, reading.window_gripper) == (0.0, 0.0)
    assert math.isnan(reading.deviation_m)
    assert math.isnan(reading.deviation_rad)


def test_one_definition_with_offline_drift_on_random_streams(monitor):
    rng = np.random.default_rng(5)
    spec, pairs = make_spec(), []
    for k in range(12):
        actions = rng.normal(size=(2, 6, 7)) * 0.01
        judged, reference = (chunk(a, k * 300_000_000) for a in actions)
        reading = monitor.measured(judged, reference, 'shadow')
        pairs.append(tuple(a[:HORIZON] for a in actions))
        window = pairs[-4:]  # observed at -0.9, -0.6, -0.3 and 0 s; one second ago is out
        assert reading.drift == open_loop_drift(*pairs[-1], spec)
        singles = [open_loop_drift(*one, spec) for one in window]
        stream = stream_drift(window, spec)
        assert reading.window_m == pytest.approx(stream.position_per_chunk_m)
        assert reading.window_rad == pytest.approx(stream.rotation_per_chunk_rad)
        assert reading.window_gripper == pytest.approx(
            np.mean([one.gripper_disagreement for one in singles])
        )
        assert reading.jerk_ratio == pytest.approx(stream.jerk_ratio)
        assert reading.smoothness == pytest.approx(stream.sparc)
        assert reading.reference_smoothness == pytest.approx(stream.reference_sparc)


def test_the_level_follows_the_mean_of_the_window_not_a_single_chunk(monitor):
    """Limit 10 mm: one chunk of 24 mm among three of 4 mm is 9 mm in the mean."""
    for k in range(3):
        monitor.measured(*pair(0.001, k * 200_000_000), 'shadow')
    reading = monitor.measured(*pair(0.006, 600_000_000), 'shadow')
    assert reading.window_m == pytest.approx(0.009)
    assert reading.level is DriftLevel.OK
    reading = monitor.measured(*pair(0.006, 800_000_000), 'shadow')
    assert reading.window_m == pytest.approx(0.012)
    assert (reading.level, reading.reason) == (DriftLevel.WARN, 'position 12.00 mm over 10.00 mm')


def test_a_disagreement_of_the_gripper_is_an_alarm_of_its_own(monitor):
    reading = monitor.measured(*pair(0.0, 0, gripper=(0.4, 0.6)), 'shadow')
    assert reading.window_gripper == 1.0
    assert reading.level is DriftLevel.ERROR


def test_a_clock_that_was_set_back_begins_a_new_window(monitor):
    monitor.measured(*pair(0.002, 50 * SECOND), 'shadow')
    reading = monitor.measured(*pair(0.001, 49 * SECOND), 'shadow')
    assert reading.window_m == pytest.approx(HORIZON * 0.001)
    again = monitor.measured(*pair(0.003, 49 * SECOND + 1), 'shadow')
    assert again.window_m == pytest.approx(HORIZON * 0.002)


def test_a_reset_forgets_window_and_level(monitor):
    assert monitor.measured(*pair(0.02, 0), 'shadow').level is DriftLevel.ERROR
    monitor.reset()
    reading = monitor.measured(*pair(0.0, 1), 'shadow')
    assert (reading.level, reading.window_m) == (DriftLevel.OK, 0.0)


def test_limits_and_window_change_while_it_runs(monitor):
    monitor.measured(*pair(0.002, 0), 'shadow')
    monitor.change(DriftLimits(warn_m=0.001, error_m=0.002), window_s=0.1)
    reading = monitor.measured(*pair(0.001, 200_000_000), 'shadow')
    assert reading.window_m == pytest.approx(HORIZON * 0.001)
    assert reading.level is DriftLevel.ERROR
    with pytest.raises(ConfigError, match=r'window_s = 0\.0 must be positive'):
        monitor.change(LIMITS, 0.0)


def test_rotation_and_gripper_that_are_not_commanded_are_nan_and_raise_nothing():
    spec = make_spec(POSITION_NAMES)
    monitor = DriftMonitor(spec, HORIZON, LIMITS)
    actions = np.full((6, 3), 0.001)
    reading = monitor.measured(
        chunk(actions, spec=spec), chunk(np.zeros((6, 3)), spec=spec), 'higher'
    )
    assert math.isnan(reading.window_rad)
    assert math.isnan(reading.window_gripper)
    assert math.isnan(reading.drift.gripper_disagreement)
    assert reading.level is DriftLevel.OK


@pytest.mark.parametrize(
    ('change', 'why'),
    [
        (lambda c: replace(c, observed_ns=1), 'answers the observation at 0 ns, its reference'),
        (lambda c: replace(c, actions=c.actions * np.nan), 'finite'),
        (lambda c: replace(c, actions=c.actions[:2]), r'must both be \[steps, dim\]'),
    ],
    ids=['stamp', 'nan', 'shape'],
)
def test_a_reference_that_cannot_be_compared_is_refused_and_leaves_no_trace(monitor, change, why):
    judged, reference = pair(0.001, 0)
    with pytest.raises(ValueError, match=why):
        monitor.measured(judged, change(reference), 'shadow')
    assert monitor.measured(judged, reference, 'shadow').window_m == pytest.approx(0.004)


def test_impossible_horizons_and_windows_are_refused():
    with pytest.raises(ConfigError, match='horizon = 0'):
        DriftMonitor(make_spec(), 0, LIMITS)
    for window_s in (0.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match='window_s'):
            DriftMonitor(make_spec(), 1, LIMITS, window_s)


def model(bias_m=0.0, deviation_m=0.0, correlation=0.0, gripper=math.nan):
    mean = np.array([bias_m, 0, 0, 0, 0, 0])
    covariance = np.diag([deviation_m**2, 0, 0, 0, 0, 0])
    known = {('w4a8', ANY_PHASE): ErrorStatistics(mean, covariance, 100, gripper)}
    return PredictedDrift(make_spec(), known, {'w4a8': correlation})


def test_a_bias_is_predicted_without_uncertainty(monitor):
    judged, _ = pair(0.0, 3 * SECOND, sequence=4)
    reading = monitor.predicted(judged, model(bias_m=0.002), 'w4a8')
    assert (reading.source, reading.reference_precision, reading.sequence) == (
        'predicted',
        'fp32',
        4,
    )
    assert reading.drift.position_per_step_m == pytest.approx(0.002)
    assert reading.drift.position_accumulated_m == pytest.approx(HORIZON * 0.002)
    assert reading.deviation_m == pytest.approx(0.0, abs=1e-9)
    assert reading.window_m == pytest.approx(HORIZON * 0.002)
    assert reading.drift.steps == HORIZON


def test_independent_errors_grow_with_the_root_of_the_steps(monitor):
    reading = monitor.predicted(pair(0.0, 0)[0], model(deviation_m=0.003), 'w4a8')
    assert reading.drift.position_per_step_m == pytest.approx(0.003)
    assert reading.deviation_m == pytest.approx(math.sqrt(HORIZON) * 0.003)
    assert reading.drift.position_accumulated_m == pytest.approx(reading.deviation_m)


def test_a_prediction_warns_by_its_window_and_knows_no_jerk_and_no_gripper_of_an_old_file(monitor):
    reading = monitor.predicted(pair(0.0, 0)[0], model(bias_m=0.003), 'w4a8')
    assert reading.level is DriftLevel.WARN
    for name in ('window_gripper', 'jerk_ratio', 'smoothness', 'reference_smoothness'):
        assert math.isnan(getattr(reading, name))


def test_a_gripper_that_was_on_the_other_side_in_calibration_is_an_alarm(monitor):
    judged = [pair(0.0, k * 100_000_000, gripper=(1.0, 1.0))[0] for k in range(2)]
    reading = monitor.predicted(judged[0], model(gripper=0.5), 'w4a8')
    assert reading.drift.gripper_disagreement == pytest.approx(0.5)
    assert (reading.level, reading.reason) == (DriftLevel.WARN, 'gripper 50% over 30%')
    reading = monitor.predicted(judged[1], model(gripper=0.9), 'w4a8')
    assert reading.window_gripper == pytest.approx(0.7)
    assert reading.level is DriftLevel.ERROR


def test_a_level_that_was_not_measured_is_refused(monitor):
    with pytest.raises(ConfigError, match='w2a2'):
        monitor.predicted(pair(0.0, 0)[0], model(), 'w2a2')


def test_without_rotation_a_prediction_has_none():
    spec = make_spec(POSITION_NAMES)
    monitor = DriftMonitor(spec, HORIZON, LIMITS)
    known = {('w4a8', ANY_PHASE): ErrorStatistics(np.zeros(6), np.zeros((6, 6)), 10)}
    errors = PredictedDrift(spec, known, {'w4a8': 0.0})
    reading = monitor.predicted(chunk(np.zeros((6, 3)), spec=spec), errors, 'w4a8')
    assert math.isnan(reading.window_rad)
    assert math.isnan(reading.deviation_rad)
