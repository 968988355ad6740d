"""Errors that were there at calibration, and errors that change nothing noticeable."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.control.drift_alarm import DriftLevel, DriftLimits
from vlaq_ros.errors import MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.kinematics.predicted_drift import PredictedDrift
from vlaq_ros.policies.toy import toy_spec
from vlaq_ros.sim.drift_detection import Outcome, detect, detect_all
from vlaq_ros.sim.drift_known import compare_known
from vlaq_ros.sim.drift_readings import error_samples, read, with_fault
from vlaq_ros.sim.drift_runs import CHOOSE, JUDGE, StudyRun
from vlaq_ros.sim.drift_series import StudySeries
from vlaq_ros.sim.faults import FAULTS, TURNING

ACTION = toy_spec().action
ROWS = toy_spec().execution_horizon
LIMITS = DriftLimits(0.003, 0.007, 0.05, 0.15, 0.3, 0.6)
CHUNKS = 8
RNG = np.random.default_rng(3)
ACTIONS = np.column_stack([RNG.uniform(-0.01, 0.01, (20, 3)), RNG.uniform(0.0, 1.0, 20)])


def make_run(split=JUDGE, index=0, fault='', onset=-1, opening=1.0):
    """Return an episode along x with a healthy scatter of 0.1 mm per step."""
    rng = np.random.default_rng([index, *split.encode()])
    reference = np.zeros((CHUNKS, ROWS, 4))
    reference[..., 0], reference[..., 3] = 0.01, opening
    judged = reference.copy()
    judged[..., :3] += rng.normal(0.0, 1e-4, (CHUNKS, ROWS, 3))
    if fault:
        for chunk in judged[onset:]:
            chunk[:] = FAULTS[fault].change(chunk, ACTION)
    names = split, 'w8a8', fault, onset, 'reach', 100, index
    return StudyRun(*names, True, CHUNKS * ROWS, judged, {'fp32': reference})


@pytest.fixture
def runs():
    """Return healthy episodes of both splits, and two of the judged ones with every error."""
    healthy = [make_run(split, index) for split in (CHOOSE, JUDGE) for index in range(4)]
    wrong = [make_run(JUDGE, index, fault, 3) for fault in FAULTS for index in (1, 3)]
    return [*healthy, *wrong]


@pytest.fixture
def series(runs):
    samples = [one for run in runs if run.split == CHOOSE for one in error_samples(run)]
    return StudySeries(runs, ACTION, PredictedDrift.fit(samples, ACTION))


# --- errors that were there at calibration


@pytest.mark.parametrize('fault', FAULTS)
def test_an_error_that_begins_at_run_time_reaches_no_prediction(series, fault):
    healthy = series.of(JUDGE, 'w8a8', '', 'predicted', 0.5)
    for one, twin in zip(series.of(JUDGE, 'w8a8', fault, 'predicted', 0.5), healthy[1::2]):
        np.testing.assert_allclose(one.window, twin.window, rtol=1e-6)
        assert detect(one, LIMITS, DriftLevel.WARN).outcome is Outcome.MISSED


def test_a_bias_that_calibration_saw_is_predicted_from_the_first_chunk(series):
    """Six rows of 2 mm are 12 mm, and the scatter adds a few percent at most."""
    found = series.calibrated('w8a8', FAULTS['bias-2mm'], 0.5)
    assert len(found) == 2  # the twins of the episodes with the error
    for one in found:
        assert one.onset == 0
        np.testing.assert_allclose(one.window[:, 0], ROWS * 0.002, rtol=0.05)
        assert not one.window[:, 2].any()  # the gripper agrees
        error = detect(one, LIMITS, DriftLevel.ERROR)
        assert (error.outcome, error.chunks, error.delay_s) == (Outcome.DETECTED, 0.0, 0.0)


def test_a_wrist_that_calibration_saw_is_known_by_what_it_did_there(series):
    """Steps of 10 mm along x, turned by 20 degrees: each ends 2 sin(10 degrees) x 10 mm away."""
    (one, _) = series.calibrated('w8a8', FAULTS['wrist-20deg'], 0.5)
    expected = ROWS * 2 * math.sin(math.radians(10)) * 0.01
    np.testing.assert_allclose(one.window[:, 0], expected, rtol=0.05)


def test_a_flipped_gripper_that_calibration_saw_is_predicted_and_nothing_else(series):
    (one, _) = series.calibrated('w8a8', FAULTS['gripper'], 0.5)
    healthy = series.of(JUDGE, 'w8a8', '', 'predicted', 0.5)[1]
    np.testing.assert_array_equal(one.window[:, 2], 1.0)
    np.testing.assert_allclose(one.window[:, 0], healthy.window[:, 0], rtol=1e-9)
    assert detect(one, LIMITS, DriftLevel.ERROR).chunks == 0.0


def test_a_turn_that_calibration_saw_is_predicted_in_the_synthetic_stream(series):
    """0.05 rad about one axis in each of six rows; the small turns between them bend it little."""
    found = series.calibrated('w8a8', TURNING, 0.5)
    assert len(found) == 4
    for one in found:
        np.testing.assert_allclose(one.window[:, 1], ROWS * 0.05, rtol=0.1)


def test_an_episode_has_the_error_throughout_and_its_references_stay():
    run = make_run()
    wrong = with_fault(run, ACTION, FAULTS['bias-1mm'])
    np.testing.assert_allclose(wrong.judged - run.judged, [[[0.001, 0, 0, 0]] * ROWS] * CHUNKS)
    assert wrong.references is run.references
    assert (wrong.fault, wrong.onset, run.fault) == ('bias-1mm', 0, '')


@pytest.mark.parametrize(
    ('fault', 'signal', 'size'),
    [
        (FAULTS['bias-2mm'], 'm', ROWS * 0.002),
        (FAULTS['gripper'], 'gripper', 1.0),
        (TURNING, 'rad', ROWS * 0.05),
    ],
)
def test_the_prediction_of_a_known_error_is_compared_with_what_is_measured(
    series, fault, signal, size
):
    known = series.known('w8a8', fault)
    assert known.signal == signal
    assert known.predicted == pytest.approx((size, size), rel=0.1)
    assert known.expected == pytest.approx(size, rel=0.1)
    assert known.measured == pytest.approx((size,) * 3, rel=0.1)
    assert known.chunks == CHUNKS * (4 if fault is TURNING else 2)


def test_readings_are_compared_by_the_mean_that_a_prediction_is():
    measured = read(make_run(), ACTION, 'shadow')
    drift = np.full((CHUNKS, 3), math.nan)
    drift[:, 0], drift[:, 2] = [0.004] * 4 + [0.008] * 4, 0.0
    found = compare_known([measured], [replace(measured, drift=drift)], LIMITS)
    assert found.signal == 'm'
    assert found.expected == pytest.approx(math.sqrt((0.004**2 + 0.008**2) / 2))
    assert found.measured[1] == pytest.approx(0.006)
    drift[:, 2] = [1.0] * 6 + [0.0] * 2
    found = compare_known([measured], [replace(measured, drift=drift)], LIMITS)
    assert (found.signal, found.expected, found.predicted) == ('gripper', 0.75, (0.0, 0.0))


# --- errors that change nothing noticeable


@pytest.mark.parametrize('fault', [*FAULTS.values()], ids=FAULTS)
def test_an_error_on_top_of_itself_changes_as_much_as_it_did_at_first(fault):
    once = fault.change(ACTIONS, ACTION)
    first, second = once - ACTIONS, fault.change(once, ACTION) - once
    sizes = [np.linalg.norm(change[:, :3], axis=1) for change in (first, second)]
    np.testing.assert_allclose(*sizes, atol=1e-15)
    np.testing.assert_allclose(np.abs(first[:, 3]), np.abs(second[:, 3]), atol=1e-15)


@pytest.mark.parametrize(
    ('opening', 'shows'),
    [(0.5, False), (0.46, False), (0.54, False), (0.44, True), (0.56, True), (1.0, True)],
)
def test_of_a_gripper_about_half_open_there_is_nothing_to_flip(opening, shows):
    wrong = np.array(ACTIONS)
    wrong[:, 3] = 0.5
    wrong[7, 3] = opening
    assert FAULTS['gripper'].shows(wrong, ACTION) is shows
    assert FAULTS['bias-0.5mm'].shows(wrong, ACTION)
    assert FAULTS['wrist-10deg'].shows(wrong, ACTION)


def test_only_what_is_commanded_once_it_began_counts():
    run = make_run(fault='gripper', onset=3)
    run.judged[3:, :, 3] = 0.48
    assert not read(run, ACTION, 'shadow').shows
    run.judged[-1, -1, 3] = 0.0
    assert read(run, ACTION, 'shadow').shows
    assert read(make_run(opening=0.5), ACTION, 'shadow').shows  # no error to be hidden


def test_what_changes_nothing_is_neither_noticed_nor_missed():
    wrong = read(make_run(fault='gripper', onset=3), ACTION, 'shadow')
    hovering = read(make_run(fault='gripper', onset=3, opening=0.5), ACTION, 'shadow')
    alarmed = replace(wrong, shows=False)
    missed = replace(wrong, window=np.zeros_like(wrong.window))
    found = detect_all([wrong, hovering, alarmed, missed], LIMITS, DriftLevel.WARN)
    assert (found.injected, found.nothing, found.counted, found.detected) == (4, 2, 2, 1)
    assert found.rate == 0.5
    assert detect(alarmed, LIMITS, DriftLevel.WARN).outcome is Outcome.NOTHING


def test_a_prediction_leaves_out_the_same_episodes(runs):
    hovering = [make_run(JUDGE, 9, opening=0.5), make_run(JUDGE, 9, 'gripper', 3, opening=0.5)]
    samples = [one for run in runs if run.split == CHOOSE for one in error_samples(run)]
    series = StudySeries([*runs, *hovering], ACTION, PredictedDrift.fit(samples, ACTION))
    found = series.calibrated('w8a8', FAULTS['gripper'], 0.5)
    assert [one.shows for one in found] == [True, True, False]
