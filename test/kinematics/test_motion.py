"""Motion proxies against the formulas of the paper, evaluated naively; warm-up; robots at rest."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics import lie
from vlaq_ros.kinematics.motion import (
    MIN_ROTATION_RAD,
    MotionOptions,
    MotionReading,
    MotionScale,
    MotionTracker,
    OnlineMotionScale,
    fit_motion_scale,
    motion_phase,
    read_episode,
    step_increments,
)
from vlaq_ros.kinematics.running_quantile import RunningQuantile
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec

ALL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)
RNG = np.random.default_rng(3)
SCALE = MotionScale(0.02, 0.1)


def make_spec(names=ALL_NAMES, delta=True):
    size = len(names)
    return ActionSpec(names, ('1',) * size, 'base', delta, 50_000_000, (-1,) * size, (1,) * size)


def make_steps(count=40):
    """Return steps [count, 6] of about 1 cm and 0.05 rad."""
    return RNG.normal(size=(count, 6)) * np.repeat([0.01, 0.05], 3)


def naive_sensitivity(steps, scale, weight, long_window, short_window):
    """Evaluate the formulas of the paper by loops, NaN during warm-up."""
    result = []
    for t in range(len(steps)):
        if t + 1 < long_window or t < short_window:
            result.append(math.nan)
            continue
        fineness = [
            1.0 - math.hypot(*steps[i, :3]) / scale.translation_m
            for i in range(t - long_window + 1, t + 1)
        ]
        jerk = [
            math.hypot(*(steps[i, 3:] - steps[i - 1, 3:])) / scale.rotation_rad
            for i in range(t - short_window + 1, t + 1)
        ]
        mean = weight * sum(fineness) / long_window + (1 - weight) * sum(jerk) / short_window
        result.append(max(0.0, mean))
    return result


@pytest.mark.parametrize(
    ('weight', 'long_window', 'short_window'),
    [(0.5, 10, 5), (0.8, 3, 7), (0.0, 1, 1), (1.0, 4, 2)],
    ids=['default', 'short before long', 'jerk only', 'fineness only'],
)
def test_the_sensitivity_is_the_formula_of_the_paper(weight, long_window, short_window):
    steps = make_steps()
    tracker = MotionTracker(SCALE, MotionOptions(weight, long_window, short_window))
    found = [tracker.update(step).sensitivity for step in steps]
    expected = naive_sensitivity(steps, SCALE, weight, long_window, short_window)
    warm = [value is not None for value in found]
    assert warm == [not math.isnan(value) for value in expected]
    np.testing.assert_allclose(
        [v for v in found if v is not None], [v for v in expected if v == v], atol=1e-12
    )


def test_there_is_no_sensitivity_until_both_windows_are_full():
    """The tenth step fills the long window; the jerk window is full after the sixth."""
    tracker = MotionTracker(SCALE)
    readings = [tracker.update(step) for step in make_steps(11)]
    assert [r.fineness is not None for r in readings].index(True) == 9
    assert [r.jerk is not None for r in readings].index(True) == 5
    assert [r.sensitivity is not None for r in readings].index(True) == 9


def test_after_a_reset_the_windows_fill_again_and_no_jerk_spans_two_episodes():
    tracker, steps = MotionTracker(SCALE), make_steps()
    for step in steps:
        tracker.update(step + 5.0)
    tracker.reset()
    fresh = MotionTracker(SCALE)
    assert [tracker.update(s) for s in steps] == [fresh.update(s) for s in steps]


def test_a_robot_at_rest_is_as_fine_as_can_be_and_has_no_jerk():
    tracker = MotionTracker(SCALE)
    readings = [tracker.update(np.zeros(6)) for _ in range(20)]
    assert (readings[-1].fineness, readings[-1].jerk, readings[-1].sensitivity) == (1.0, 0.0, 0.5)


def test_fast_steady_motion_needs_no_precision():
    """Twice the normalizer is M = -1; a steady turn has no jerk; S is clipped at zero."""
    tracker = MotionTracker(SCALE)
    step = np.array([0.04, 0, 0, 0, 0, 0.3])
    reading = [tracker.update(step) for _ in range(10)][-1]
    assert reading.fineness == pytest.approx(-1.0)
    assert (reading.jerk, reading.sensitivity) == (0.0, 0.0)


def test_one_abrupt_turn_counts_twice_in_the_short_window():
    """It changes the rotation when it begins and when it ends."""
    tracker = MotionTracker(SCALE)
    steps = np.zeros((12, 6))
    steps[10, 4] = 0.1
    assert [tracker.update(s) for s in steps][-1].jerk == pytest.approx(2 / 5)


def test_without_rotation_the_sensitivity_is_the_fineness_and_without_translation_the_jerk():
    step = np.array([0.005, 0, 0, 0, 0, 0])
    fine = MotionTracker(MotionScale(0.02, None))
    assert [fine.update(step) for _ in range(10)][-1].sensitivity == pytest.approx(0.75)
    turning = MotionTracker(MotionScale(None, 0.1))
    steps = np.zeros((6, 6))
    steps[1::2, 3] = 0.05
    assert [turning.update(s) for s in steps][-1].sensitivity == pytest.approx(0.5)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6), max_size=30))
@settings(deadline=None, max_examples=50)
def test_every_sensitivity_is_finite_and_not_negative(steps):
    tracker, online = MotionTracker(SCALE), MotionTracker(OnlineMotionScale(make_spec()))
    for step in steps:
        for reading in (tracker.update(np.array(step)), online.update(np.array(step))):
            value = reading.sensitivity
            assert value is None or 0.0 <= value < math.inf


@pytest.mark.parametrize(
    'step', [np.zeros(5), np.full(6, np.nan), np.full(6, np.inf)], ids=['size', 'NaN', 'inf']
)
def test_a_step_that_is_none_is_a_programming_error(step):
    with pytest.raises(ValueError, match='an executed step is 6 finite numbers'):
        MotionTracker(SCALE).update(step)


def test_the_normalizers_are_percentiles_inside_episodes():
    episodes = [RNG.normal(size=(n, 7)) * 0.01 for n in (30, 1, 50)]
    scale = fit_motion_scale(episodes, make_spec())
    lengths = [math.hypot(*row[:3]) for actions in episodes for row in actions]
    jerks = [math.hypot(*(b[3:6] - a[3:6])) for e in episodes for a, b in zip(e[:-1], e[1:])]
    assert scale.translation_m == pytest.approx(np.percentile(lengths, 95))
    assert scale.rotation_rad == pytest.approx(np.percentile(jerks, 95))


def test_a_wrist_that_never_turned_gets_a_small_normalizer_and_no_wrist_none():
    actions = np.zeros((30, 7))
    actions[:, 0] = 0.01
    assert fit_motion_scale([actions], make_spec()) == MotionScale(0.01, MIN_ROTATION_RAD)
    bare = make_spec((*POSITION_NAMES, GRIPPER_NAME))
    assert fit_motion_scale([actions[:, [0, 1, 2, 6]]], bare) == MotionScale(0.01, None)


@pytest.mark.parametrize(
    ('episodes', 'message'),
    [
        ([], '0 executed actions in 0 episodes are too few'),
        ([np.zeros((1, 7)), np.zeros((1, 7))], '2 executed actions in 2 episodes are too few'),
        ([np.zeros((40, 7))], 'the arm stands still in these episodes'),
        ([np.full((40, 7), np.nan)], 'not finite'),
    ],
    ids=['no episodes', 'single actions', 'at rest', 'NaN'],
)
def test_episodes_without_motion_give_no_normalizers(episodes, message):
    with pytest.raises(ConfigError, match=message):
        fit_motion_scale(episodes, make_spec())


def test_absolute_actions_are_read_as_the_steps_between_them():
    """The turn from 0.3 to 0.5 rad about one axis is 0.2 rad, also when far from zero."""
    names = (*POSITION_NAMES, *ROTATION_NAMES)
    poses = np.array([[0.1, 0, 0, 0, 0, 0.3], [0.1, 0.02, 0, 0, 0, 0.5]])
    steps = step_increments(poses, make_spec(names, delta=False))
    np.testing.assert_allclose(steps, [[0, 0.02, 0, 0, 0, 0.2]], atol=1e-15)
    turn = lie.so3_log(lie.quat_multiply(lie.so3_exp([0, 0, 2.9]), lie.so3_exp([0, 0.4, 0])))
    poses = np.array([[0, 0, 0, 0, 0, 2.9], [0, 0, 0, *turn]])
    steps = step_increments(poses, make_spec(names, delta=False))
    np.testing.assert_allclose(steps[0, 3:], [0, 0.4, 0], atol=1e-12)


def test_recorded_actions_give_the_same_readings_as_live_steps():
    actions = RNG.normal(size=(25, 7)) * 0.01
    tracker = MotionTracker(SCALE)
    live = [tracker.update(row[:6]) for row in actions]
    assert read_episode(actions, make_spec(), SCALE) == live


def test_online_normalizers_approach_those_of_all_data():
    steps = make_steps(4000)
    online = OnlineMotionScale(make_spec())
    tracker = MotionTracker(online)
    for step in steps:
        tracker.update(step)
    fitted = fit_motion_scale([np.pad(steps, ((0, 0), (0, 1)))], make_spec())
    assert online.scale.translation_m == pytest.approx(fitted.translation_m, rel=0.03)
    assert online.scale.rotation_rad == pytest.approx(fitted.rotation_rad, rel=0.03)


def test_a_robot_that_has_not_moved_yet_has_no_online_normalizers():
    online = OnlineMotionScale(make_spec())
    tracker = MotionTracker(online)
    readings = [tracker.update(np.zeros(6)) for _ in range(50)]
    assert online.scale is None
    assert all(reading.sensitivity is None for reading in readings)


@pytest.mark.parametrize('draw', ['normal', 'exponential', 'uniform'])
@pytest.mark.parametrize('quantile', [0.5, 0.95])
def test_the_running_quantile_is_close_to_the_exact_one(draw, quantile):
    values = getattr(np.random.default_rng(5), draw)(size=5000)
    running = RunningQuantile(quantile)
    for value in values:
        running.add(value)
    shares = np.mean(values <= running.value)
    assert shares == pytest.approx(quantile, abs=0.01)
    assert running.count == 5000


def test_the_running_quantile_reproduces_the_worked_example_of_its_paper():
    """Twenty observations of table I of Jain and Chlamtac: the median estimate is 4.44."""
    values = [0.02, 0.15, 0.74, 3.39, 0.83, 22.37, 10.15, 15.43, 38.62, 15.92]
    values += [34.60, 10.28, 1.47, 0.40, 0.05, 11.39, 0.27, 0.42, 0.09, 11.37]
    running = RunningQuantile(0.5)
    for value in values:
        running.add(value)
    assert running.value == pytest.approx(4.44, abs=0.005)


def test_the_running_quantile_of_a_constant_stream_is_the_constant():
    running = RunningQuantile(0.95)
    for _ in range(100):
        running.add(0.25)
    assert running.value == 0.25


def test_before_five_values_there_is_no_quantile_and_nan_is_refused():
    running = RunningQuantile(0.5)
    for value in (1.0, 2.0, 3.0, 4.0):
        running.add(value)
    assert running.value is None
    with pytest.raises(ValueError, match='finite'):
        running.add(math.nan)


@pytest.mark.parametrize('value', [SCALE, MotionScale(0.02, None), MotionOptions(0.3, 8, 4)])
def test_parameters_survive_a_json_file(value):
    assert type(value).from_dict(json.loads(json.dumps(value.to_dict()))) == value


def test_every_offending_value_is_listed():
    with pytest.raises(ConfigError) as error:
        MotionOptions(2.0, 0, 2.5)
    for name in ('fineness_weight = 2.0', 'fineness_window = 0', 'jerk_window = 2.5'):
        assert name in str(error.value)
    with pytest.raises(ConfigError) as error:
        MotionScale.from_dict({'translation_m': 0.1, 'lambda': 1, 'nu': 2})
    for name in ("'lambda' is unknown", "'nu' is unknown", "'rotation_rad' is missing"):
        assert name in str(error.value)
    with pytest.raises(ConfigError) as error:
        MotionScale(-1.0, math.nan)
    assert 'translation_m = -1.0' in str(error.value)
    assert 'rotation_rad = nan' in str(error.value)
    with pytest.raises(ConfigError, match='both absent'):
        MotionScale(None, None)


@pytest.mark.parametrize(
    ('sensitivity', 'gripper_moves', 'phase'),
    [(0.1, False, 'coarse'), (0.5, False, 'coarse'), (0.6, False, 'fine'), (0.1, True, 'gripper')],
)
def test_a_phase_is_a_grasp_or_told_by_the_sensitivity(sensitivity, gripper_moves, phase):
    reading = MotionReading(None, None, sensitivity)
    assert motion_phase(reading, gripper_moves) == phase


def test_during_warm_up_the_phase_is_fine():
    assert motion_phase(MotionReading(None, None, None), False) == 'fine'
