"""Predicted drift against closed forms and against trajectories drawn at random."""

import json
import math
import re

import numpy as np
import pytest

from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics import lie
from vlaq_ros.kinematics.drift import open_loop_drift
from vlaq_ros.kinematics.drift_propagation import se3_adjoint
from vlaq_ros.kinematics.predicted_drift import (
    ANY_PHASE,
    ErrorSample,
    ErrorStatistics,
    PredictedDrift,
)
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose

ALL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)
STEPS, RUNS = 12, 10_000


def make_spec(names=ALL_NAMES, frame='base', delta=True):
    size = len(names)
    return ActionSpec(names, ('1',) * size, frame, delta, 50_000_000, (-1,) * size, (1,) * size)


def make_actions(steps=STEPS, seed=1):
    """Return steps of about 2 cm and 0.3 rad: a strongly curved path."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, 7)) * np.repeat([0.02, 0.3, 0.0], [3, 3, 1])


def make_statistics(seed=2, scale=1.0):
    """Return a biased error of about 0.4 mm and 4 mrad with all axes correlated."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(6, 6)) * np.repeat([2e-4, 2e-3], 3)[:, np.newaxis] * scale
    mean = rng.normal(size=6) * np.repeat([1e-4, 1e-3], 3) * scale
    return ErrorStatistics(mean, root @ root.T, 100)


def make_model(spec, correlation=0.0, **statistics):
    statistics = statistics or {'any': make_statistics()}
    table = {('w4a8', phase): error for phase, error in statistics.items()}
    return PredictedDrift(spec, table, {'w4a8': correlation})


def rodrigues(vectors):
    """Return rotation matrices [n, 3, 3] of rotation vectors [n, 3]."""
    angle = np.linalg.norm(vectors, axis=1)[:, np.newaxis, np.newaxis]
    x, y, z = (vectors / np.maximum(angle[:, :, 0], 1e-300)).T
    o = np.zeros_like(x)
    cross = np.array([[o, -z, y], [z, o, -x], [-y, x, o]]).transpose(2, 0, 1)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def walk(actions, frame, turn, position):
    """Return orientations [n, 3, 3] and positions [n, 3] after actions [steps, n, 6]."""
    for row in actions:
        step, spin = row[:, :3], rodrigues(row[:, 3:])
        if frame == 'tool':
            position = position + np.einsum('nij,nj->ni', turn, step)
            turn = turn @ spin
        else:
            position, turn = position + step, spin @ turn
    return turn, position


def draw_drifts(actions, frame, start, errors):
    """Return drifts [n, 6] in the tool frame of the reference for errors [steps, n, 6]."""
    rotation = lie.quat_to_matrix(start.quat_xyzw)[np.newaxis]
    begin = rotation, start.position[np.newaxis]
    exact = actions[:, np.newaxis, :6]
    turn, position = walk(exact, frame, *begin)
    turn_q, position_q = walk(exact + errors, frame, *begin)
    relative = turn[0].T @ turn_q
    sine = 0.5 * np.stack(
        [relative[:, i, j] - relative[:, j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=1
    )
    length = np.linalg.norm(sine, axis=1, keepdims=True)
    angle = np.arcsin(length) / length * sine
    return np.concatenate([(position_q - position) @ turn[0], angle], axis=1)


@pytest.mark.parametrize('frame', ['base', 'tool'])
@pytest.mark.parametrize('correlation', [0.0, 0.8], ids=['independent', 'correlated'])
def test_mean_and_covariance_are_those_of_random_trajectories(frame, correlation):
    """10 000 runs leave about 1 % of chance in each entry; small errors keep it linear."""
    rng = np.random.default_rng(7)
    phases = ['fine'] * 5 + ['coarse'] * 7
    statistics = {'fine': make_statistics(2, 0.5), 'coarse': make_statistics(3)}
    model = make_model(make_spec(frame=frame), correlation, **statistics)
    start = Pose([0.3, -0.1, 0.2], lie.so3_exp([0.4, -0.9, 0.2]))
    z = rng.normal(size=(STEPS, RUNS, 6))
    for k in range(1, STEPS):
        z[k] = correlation * z[k - 1] + math.sqrt(1 - correlation**2) * z[k]
    errors = np.empty_like(z)
    for k, phase in enumerate(phases):
        values, vectors = np.linalg.eigh(statistics[phase].covariance)
        root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
        errors[k] = statistics[phase].mean + z[k] @ root
    drifts = draw_drifts(make_actions(), frame, start, errors)
    forecast = model.predict(make_actions(), ['w4a8'] * STEPS, phases, start)
    spread = np.sqrt(np.diag(forecast.covariance))
    np.testing.assert_allclose(drifts.mean(0) / spread, forecast.mean / spread, atol=0.05)
    normalized = np.cov(drifts, rowvar=False) / np.outer(spread, spread)
    np.testing.assert_allclose(
        normalized, forecast.covariance / np.outer(spread, spread), atol=0.05
    )
    rms_m = math.sqrt((drifts[:, :3] ** 2).sum(1).mean())
    rms_rad = math.sqrt((drifts[:, 3:] ** 2).sum(1).mean())
    assert forecast.position_rms_m == pytest.approx(rms_m, rel=0.02)
    assert forecast.rotation_rms_rad == pytest.approx(rms_rad, rel=0.02)


def predict_straight(correlation, steps=20, mean=0.0):
    covariance = np.diag([1e-6, 0, 0, 0, 0, 0])
    error = ErrorStatistics(np.array([mean, 0, 0, 0, 0, 0]), covariance, 9)
    model = make_model(make_spec(), correlation, any=error)
    return model.predict(np.zeros((steps, 7)), ['w4a8'] * steps, ['fine'] * steps)


def test_independent_errors_grow_with_the_root_of_the_steps_and_a_bias_with_the_steps():
    assert predict_straight(0.0).position_rms_m == pytest.approx(1e-3 * math.sqrt(20))
    assert predict_straight(0.0, mean=0.01).mean[0] == pytest.approx(0.2)
    assert predict_straight(0.0).rotation_rms_rad == 0.0


def test_correlated_errors_add_up_as_an_autoregression_does():
    """The variance of a sum of AR(1) values: n + 2 sum (n - k) rho^k, in units of one."""
    variance = 20 + 2 * sum((20 - k) * 0.8**k for k in range(1, 20))
    assert predict_straight(0.8).position_rms_m == pytest.approx(1e-3 * math.sqrt(variance))


def test_a_wrong_angle_leads_a_long_straight_way_of_the_tool_astray_but_not_of_the_base():
    """One error of 1 mrad about z, then 1 m along x: 1 mm sideways in the tool frame."""
    error = {
        'gripper': ErrorStatistics(np.array([0, 0, 0, 0, 0, 1e-3]), np.zeros((6, 6)), 9),
        'any': ErrorStatistics(np.zeros(6), np.zeros((6, 6)), 9),
    }
    actions = np.zeros((2, 7))
    actions[1, 0] = 1.0
    means = {}
    for frame in ('tool', 'base'):
        model = make_model(make_spec(frame=frame), **error)
        means[frame] = model.predict(actions, ['w4a8'] * 2, ['gripper', 'any']).mean
    np.testing.assert_allclose(means['tool'], [0, 1e-3, 0, 0, 0, 1e-3], atol=1e-15)
    np.testing.assert_allclose(means['base'], [0, 0, 0, 0, 0, 1e-3], atol=1e-15)


@pytest.mark.parametrize('frame', ['base', 'tool'])
def test_the_predicted_distance_is_the_same_from_every_start(frame):
    model = make_model(make_spec(frame=frame))
    arguments = make_actions(), ['w4a8'] * STEPS, ['fine'] * STEPS
    here = model.predict(*arguments)
    there = model.predict(*arguments, Pose([1, 2, 3], lie.so3_exp([0.5, 1.0, -0.4])))
    if frame == 'tool':
        np.testing.assert_allclose(here.covariance, there.covariance, atol=1e-15)
    assert here.position_rms_m == pytest.approx(there.position_rms_m)
    assert here.rotation_rms_rad == pytest.approx(there.rotation_rms_rad)


def test_of_absolute_actions_only_the_last_error_remains():
    spec = make_spec((*POSITION_NAMES, *ROTATION_NAMES), delta=False)
    model = make_model(spec)
    actions = make_actions()[:, :6]
    whole = model.predict(actions, ['w4a8'] * STEPS, ['fine'] * STEPS)
    last = model.predict(actions[-1:], ['w4a8'], ['fine'])
    np.testing.assert_allclose(whole.mean, last.mean, atol=1e-18)
    np.testing.assert_allclose(whole.covariance, last.covariance, atol=1e-18)
    difference = lie.compose(
        lie.inverse(Pose(actions[-1, :3], lie.so3_exp(actions[-1, 3:]))),
        Pose(
            actions[-1, :3] + make_statistics().mean[:3],
            lie.so3_exp(actions[-1, 3:] + make_statistics().mean[3:]),
        ),
    )
    np.testing.assert_allclose(last.mean, lie.se3_log(difference), atol=5e-6)


def test_the_adjoint_moves_a_small_motion_to_the_other_side_of_a_pose():
    rng = np.random.default_rng(4)
    pose = Pose(rng.normal(size=3), lie.so3_exp(rng.normal(size=3)))
    xi = rng.normal(size=6) * 0.3
    left = lie.compose(pose, lie.se3_exp(xi))
    right = lie.compose(lie.se3_exp(se3_adjoint(pose) @ xi), pose)
    np.testing.assert_allclose(left.position, right.position, atol=1e-12)
    assert lie.angle_between(left.quat_xyzw, right.quat_xyzw) < 1e-12


def make_samples(correlation, chunks=600, steps=10, seed=5):
    """Return chunks whose errors have known statistics in two phases."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(chunks):
        z = rng.normal(size=(steps, 6))
        for k in range(1, steps):
            z[k] = correlation * z[k - 1] + math.sqrt(1 - correlation**2) * z[k]
        phases = ['fine'] * 4 + ['coarse'] * (steps - 4)
        deviation = np.where(np.arange(steps) < 4, 1e-4, 4e-4)[:, np.newaxis]
        reference = rng.normal(size=(steps, 7))
        quantized = reference.copy()
        quantized[:, :6] += 2e-4 + deviation * z
        samples.append(ErrorSample('w4a8', phases, quantized, reference))
    return samples


def test_a_fit_finds_the_statistics_that_the_samples_were_drawn_from():
    model = PredictedDrift.fit(make_samples(0.6), make_spec())
    for phase, deviation in (('fine', 1e-4), ('coarse', 4e-4)):
        error = model.error_at('w4a8', phase)
        np.testing.assert_allclose(error.mean, 2e-4, atol=0.1 * deviation)
        np.testing.assert_allclose(
            error.covariance, np.eye(6) * deviation**2, atol=deviation**2 / 5
        )
    assert model.error_at('w4a8', 'fine').count == 2400
    assert model.correlation['w4a8'] == pytest.approx(0.6, abs=0.05)
    assert model.levels == ('w4a8',)


def test_errors_of_different_chunks_are_not_taken_for_neighbours():
    """Every chunk has one constant error of its own: nothing varies inside, all is correlated."""
    rng = np.random.default_rng(6)
    samples = []
    for _ in range(200):
        quantized = np.tile(rng.normal(size=7), (5, 1))
        samples.append(ErrorSample('w4a8', ['fine'] * 5, quantized, np.zeros((5, 7))))
    assert PredictedDrift.fit(samples, make_spec()).correlation['w4a8'] == 0.99
    single = [ErrorSample('w4a8', ['fine'], s.quantized[:1], np.zeros((1, 7))) for s in samples]
    assert PredictedDrift.fit(single, make_spec()).correlation['w4a8'] == 0.0


def test_a_phase_that_was_not_seen_has_the_statistics_of_all():
    model = PredictedDrift.fit(make_samples(0.0, chunks=5), make_spec())
    assert model.error_at('w4a8', 'gripper') is model.error_at('w4a8', ANY_PHASE)
    assert model.error_at('w4a8', ANY_PHASE).count == 50


def test_a_level_that_was_not_measured_is_refused_by_name():
    model = PredictedDrift.fit(make_samples(0.0, chunks=2), make_spec())
    with pytest.raises(ConfigError, match="level named 'w4a4'. Known: w4a8"):
        model.error_at('w4a4', 'fine')


def test_what_is_not_commanded_has_no_error():
    names = (*POSITION_NAMES, GRIPPER_NAME)
    rng = np.random.default_rng(8)
    sample = ErrorSample('w4a8', ['fine'] * 30, rng.normal(size=(30, 4)), np.zeros((30, 4)))
    spec = make_spec(names)
    forecast = PredictedDrift.fit([sample], spec).predict(np.zeros((3, 4)), ['w4a8'] * 3, 'abc')
    assert forecast.position_rms_m > 0.0
    assert forecast.rotation_rms_rad == 0.0


def test_a_model_survives_a_json_file():
    model = PredictedDrift.fit(make_samples(0.3, chunks=5), make_spec())
    again = PredictedDrift.from_dict(json.loads(json.dumps(model.to_dict())), make_spec())
    arguments = make_actions(), ['w4a8'] * STEPS, ['fine', 'coarse', 'gripper'] * 4
    np.testing.assert_array_equal(
        model.predict(*arguments).covariance, again.predict(*arguments).covariance
    )
    assert again.correlation == model.correlation


GRIPPERS = (
    ('fine', [0.0, 0.45, 0.9, 0.9, 0.3], [1.0, 0.52, 0.1, 0.8, 0.55]),  # 3 of 5 clearly disagree
    ('coarse', [1.0, 1.0, 0.56, 0.44, 1.0], [0.0, 1.0, 0.48, 0.51, 0.9]),  # 1 of 5
)


def gripper_samples(names=ALL_NAMES):
    """Return two chunks that move alike; their grippers are those of `GRIPPERS`."""
    samples = []
    for phase, *openings in GRIPPERS:
        pair = np.zeros((2, 5, len(names)))
        pair[:, :, 0] = [[0.01], [0.02]]
        if GRIPPER_NAME in names:
            pair[:, :, -1] = openings
        samples.append(ErrorSample('w4a8', [phase] * 5, *pair))
    return samples


def test_the_share_of_disagreeing_grippers_is_counted_by_phase_and_is_a_mean_over_the_steps():
    model = PredictedDrift.fit(gripper_samples(), make_spec())
    shares = [model.error_at('w4a8', phase).gripper for phase in ('fine', 'coarse', 'other')]
    assert shares == pytest.approx([3 / 5, 1 / 5, 4 / 10])
    forecast = model.predict(make_actions(4), ['w4a8'] * 4, ['fine', 'coarse', 'coarse', 'other'])
    assert forecast.gripper_disagreement == pytest.approx((0.6 + 0.2 + 0.2 + 0.4) / 4)


def test_the_share_is_what_a_reference_measures_on_the_same_actions():
    spec, samples = make_spec(), gripper_samples()
    measured = [open_loop_drift(s.quantized, s.reference, spec) for s in samples]
    model = PredictedDrift.fit(samples, spec)
    for one, (phase, *_) in zip(measured, GRIPPERS):
        assert model.error_at('w4a8', phase).gripper == one.gripper_disagreement


def test_a_policy_without_gripper_has_no_share_rather_than_zero():
    names = (*POSITION_NAMES, *ROTATION_NAMES)
    spec = make_spec(names)
    model = PredictedDrift.fit(gripper_samples(names), spec)
    assert math.isnan(model.error_at('w4a8', 'fine').gripper)
    data = model.to_dict()
    assert not any('gripper' in entry for entry in data['statistics'])
    again = PredictedDrift.from_dict(data, spec)
    forecast = again.predict(make_actions(2)[:, :6], ['w4a8'] * 2, ['fine'] * 2)
    assert math.isnan(forecast.gripper_disagreement)


def test_a_file_keeps_the_share_and_one_without_it_still_loads_and_predicts_none():
    data = json.loads(json.dumps(PredictedDrift.fit(gripper_samples(), make_spec()).to_dict()))
    steps = make_actions(2), ['w4a8'] * 2, ['fine'] * 2
    new = PredictedDrift.from_dict(data, make_spec()).predict(*steps)
    assert new.gripper_disagreement == pytest.approx(0.6)
    for entry in data['statistics']:
        del entry['gripper']
    old = PredictedDrift.from_dict(data, make_spec()).predict(*steps)
    assert math.isnan(old.gripper_disagreement)
    np.testing.assert_array_equal(old.mean, new.mean)
    np.testing.assert_array_equal(old.covariance, new.covariance)


@pytest.mark.parametrize('share', [-0.01, 1.01, math.nan, math.inf])
def test_a_share_of_the_gripper_that_is_none_is_refused(share):
    data = PredictedDrift.fit(gripper_samples(), make_spec()).to_dict()
    data['statistics'][0]['gripper'] = share
    why = f'w4a8 fine has gripper {share}, which must be a share from 0 to 1'
    with pytest.raises(ConfigError, match=re.escape(why)):
        PredictedDrift.from_dict(data, make_spec())


def test_a_share_of_a_gripper_that_is_not_commanded_is_refused():
    data = PredictedDrift.fit(gripper_samples(), make_spec()).to_dict()
    with pytest.raises(ConfigError, match='w4a8 fine has a gripper, which the policy does not'):
        PredictedDrift.from_dict(data, make_spec((*POSITION_NAMES, *ROTATION_NAMES)))


def test_a_gripper_that_is_not_finite_is_no_agreement():
    sample = gripper_samples()[0]
    sample.quantized[2, -1] = math.nan
    with pytest.raises(ConfigError, match='some actions at level w4a8 are not finite'):
        PredictedDrift.fit([sample], make_spec())


def test_every_defect_of_a_file_is_listed():
    data = PredictedDrift.fit(make_samples(0.3, chunks=5), make_spec()).to_dict()
    data = json.loads(json.dumps(data))
    data['correlation']['w4a4'] = 2.0
    data['statistics'][0]['mean'] = [0.0]
    data['statistics'][1]['covariance'][0][0] = math.nan
    with pytest.raises(ConfigError) as error:
        PredictedDrift.from_dict(data, make_spec())
    for text in ('must hold 6 and 6 x 6', 'not finite', 'correlation 2', 'no statistics of phase'):
        assert text in str(error.value)
    with pytest.raises(ConfigError, match='not understood .KeyError'):
        PredictedDrift.from_dict({}, make_spec())


def test_every_level_without_enough_samples_is_listed():
    one = np.zeros((1, 7))
    samples = [ErrorSample(level, ['fine'], one, one) for level in ('w4a4', 'w4a8')]
    samples.append(ErrorSample('w8a8', ['fine'] * 2, np.full((2, 7), np.nan), np.zeros((2, 7))))
    with pytest.raises(ConfigError) as error:
        PredictedDrift.fit(samples, make_spec())
    for text in ('level w4a4 are too few', 'level w4a8 are too few', 'level w8a8 are not finite'):
        assert text in str(error.value)
    with pytest.raises(ConfigError, match='no measured actions'):
        PredictedDrift.fit([], make_spec())


def test_arrays_of_different_lengths_are_a_programming_error():
    model = make_model(make_spec())
    with pytest.raises(ValueError, match='got 3, 2 and 3'):
        model.predict(np.zeros((3, 7)), ['w4a8'] * 2, ['fine'] * 3)
    with pytest.raises(ValueError, match='got 0, 0 and 0'):
        model.predict(np.zeros((0, 7)), [], [])
    with pytest.raises(ValueError, match='one phase per step'):
        PredictedDrift.fit([ErrorSample('w4a8', [], np.zeros((1, 7)), np.zeros((1, 7)))], None)
