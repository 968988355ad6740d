"""Drift against closed forms: constant biases, a turned wrist, and what is not commanded."""

import math

import numpy as np
import pytest

from vlaq_ros.kinematics import lie
from vlaq_ros.kinematics.actions import to_target_pose
from vlaq_ros.kinematics.drift import closed_loop_drift, integrate, open_loop_drift
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose

ALL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)
RNG = np.random.default_rng(0)


def make_spec(names=ALL_NAMES, frame='base', delta=True):
    """Return a spec of these dimensions; units and bounds play no role here."""
    size = len(names)
    return ActionSpec(names, ('1',) * size, frame, delta, 25_000_000, (-1,) * size, (1,) * size)


def make_actions(steps=8, names=ALL_NAMES):
    """Return steps of about 1 cm and 0.1 rad."""
    scale = [0.01 if name in POSITION_NAMES else 0.1 for name in names]
    return RNG.normal(size=(steps, len(names))) * scale


frames = pytest.mark.parametrize('frame', ['base', 'tool'])


@frames
def test_a_policy_has_no_drift_against_itself(frame):
    actions = make_actions()
    drift = open_loop_drift(actions, actions, make_spec(frame=frame))
    assert drift.position_per_step_m == drift.position_accumulated_m == 0.0
    assert drift.rotation_per_step_rad == pytest.approx(0.0, abs=1e-15)
    assert drift.rotation_accumulated_rad == pytest.approx(0.0, abs=1e-14)
    assert drift.gripper_disagreement == 0.0
    assert drift.steps == 8


@frames
@pytest.mark.parametrize('steps', [1, 8, 50])
def test_a_bias_of_2_mm_per_step_adds_up_to_2_mm_times_the_steps(frame, steps):
    names = (*POSITION_NAMES, GRIPPER_NAME)
    reference = make_actions(steps, names)
    biased = reference + np.array([0.0, 0.002, 0.0, 0.0])
    drift = open_loop_drift(biased, reference, make_spec(names, frame))
    assert drift.position_per_step_m == pytest.approx(0.002)
    assert drift.position_accumulated_m == pytest.approx(0.002 * steps)


def test_the_drift_per_step_is_the_mean_and_not_the_worst():
    reference = np.zeros((3, 3))
    error = np.array([[0.001, 0, 0], [0, 0.002, 0], [0, 0, -0.006]])
    drift = open_loop_drift(reference + error, reference, make_spec(POSITION_NAMES))
    assert drift.position_per_step_m == pytest.approx(0.003)
    assert drift.position_accumulated_m == pytest.approx(np.linalg.norm([1, 2, -6]) / 1000)


def test_errors_of_changing_sign_show_per_step_but_do_not_add_up():
    reference = np.zeros((8, 3))
    error = np.tile([[0.003, 0, 0], [-0.003, 0, 0]], (4, 1))
    drift = open_loop_drift(reference + error, reference, make_spec(POSITION_NAMES))
    assert drift.position_per_step_m == pytest.approx(0.003)
    assert drift.position_accumulated_m == pytest.approx(0.0, abs=1e-15)


@frames
def test_a_constant_twist_error_about_the_same_axis_adds_up_to_its_angle(frame):
    reference = np.zeros((10, 7))
    reference[:, 5] = 0.05
    drifting = reference.copy()
    drifting[:, 5] += 0.02
    drift = open_loop_drift(drifting, reference, make_spec(frame=frame))
    assert drift.rotation_per_step_rad == pytest.approx(0.02)
    assert drift.rotation_accumulated_rad == pytest.approx(0.2)
    assert drift.position_accumulated_m == 0.0


def test_rotations_are_composed_and_not_added():
    """Half a turn too much is half a turn, and a whole turn too much is none."""
    reference, turning = np.zeros((10, 7)), np.zeros((10, 7))
    turning[:, 3] = 0.2 * np.pi
    assert open_loop_drift(turning[:5], reference[:5], make_spec()).rotation_accumulated_rad == (
        pytest.approx(np.pi)
    )
    assert open_loop_drift(turning, reference, make_spec()).rotation_accumulated_rad == (
        pytest.approx(0.0, abs=1e-12)
    )


def test_rotations_about_different_axes_are_compared_by_their_true_angle():
    quarter_x, quarter_y = np.zeros((1, 7)), np.zeros((1, 7))
    quarter_x[0, 3] = quarter_y[0, 4] = np.pi / 2
    drift = open_loop_drift(quarter_x, quarter_y, make_spec())
    assert drift.rotation_per_step_rad == pytest.approx(2 * np.pi / 3)
    assert drift.rotation_accumulated_rad == pytest.approx(2 * np.pi / 3)


def test_a_wrist_turned_wrongly_leads_the_tool_frame_astray_and_not_the_base_frame():
    """After a wrong quarter turn 10 cm lead sideways: the ends are a diagonal apart."""
    reference = np.zeros((11, 7))
    reference[1:, 0] = 0.01
    turned = reference.copy()
    turned[0, 5] = np.pi / 2
    in_tool = open_loop_drift(turned, reference, make_spec(frame='tool'))
    in_base = open_loop_drift(turned, reference, make_spec(frame='base'))
    assert in_tool.position_accumulated_m == pytest.approx(0.1 * math.sqrt(2))
    assert in_base.position_accumulated_m == pytest.approx(0.0, abs=1e-15)
    assert in_tool.position_per_step_m == in_base.position_per_step_m == 0.0
    for drift in (in_tool, in_base):
        assert drift.rotation_accumulated_rad == pytest.approx(np.pi / 2)


@frames
def test_the_accumulated_drift_is_the_same_from_every_start(frame):
    spec = make_spec(frame=frame)
    quantized, reference = make_actions(), make_actions()
    start = Pose([0.1, 0.6, 0.2], lie.quat_normalize(RNG.normal(size=4)))
    ends = [integrate(actions, spec, start)[-1] for actions in (quantized, reference)]
    drift = open_loop_drift(quantized, reference, spec)
    distance = np.linalg.norm(ends[0].position - ends[1].position)
    angle = lie.angle_between(ends[0].quat_xyzw, ends[1].quat_xyzw)
    assert drift.position_accumulated_m == pytest.approx(distance)
    assert drift.rotation_accumulated_rad == pytest.approx(angle)


@frames
def test_drift_is_symmetric(frame):
    spec = make_spec(frame=frame)
    first, second = make_actions(), make_actions()
    forth, back = open_loop_drift(first, second, spec), open_loop_drift(second, first, spec)
    assert forth.position_accumulated_m == pytest.approx(back.position_accumulated_m)
    assert forth.rotation_accumulated_rad == pytest.approx(back.rotation_accumulated_rad)


def test_a_policy_without_rotation_has_no_rotation_drift_rather_than_zero():
    names = (*POSITION_NAMES, GRIPPER_NAME)
    drift = open_loop_drift(make_actions(8, names), make_actions(8, names), make_spec(names))
    assert math.isnan(drift.rotation_per_step_rad)
    assert math.isnan(drift.rotation_accumulated_rad)
    assert math.isfinite(drift.position_accumulated_m)


def test_one_commanded_rotation_axis_is_enough_for_a_rotation_drift():
    names = ('ee_x', 'ee_rz')
    drift = open_loop_drift(np.array([[0.0, 0.1]]), np.zeros((1, 2)), make_spec(names))
    assert drift.rotation_accumulated_rad == pytest.approx(0.1)


def test_gripper_disagreement_is_the_share_of_steps_clearly_on_different_sides_of_half_open():
    quantized, reference = np.zeros((4, 1)), np.zeros((4, 1))
    quantized[:, 0] = [0.9, 0.1, 0.5, 0.52]
    reference[:, 0] = [0.8, 0.7, 0.39, 0.49]  # the last two only hover about half open
    drift = open_loop_drift(quantized, reference, make_spec((GRIPPER_NAME,)))
    assert drift.gripper_disagreement == 0.5


def test_a_policy_without_gripper_has_no_disagreement_rather_than_zero():
    drift = open_loop_drift(np.zeros((4, 3)), np.zeros((4, 3)), make_spec(POSITION_NAMES))
    assert math.isnan(drift.gripper_disagreement)


def test_absolute_actions_are_compared_as_targets_and_do_not_add_up():
    spec = make_spec(POSITION_NAMES, delta=False)
    reference = RNG.normal(size=(8, 3))
    drift = open_loop_drift(reference + np.array([0.002, 0, 0]), reference, spec)
    assert drift.position_per_step_m == pytest.approx(0.002)
    assert drift.position_accumulated_m == pytest.approx(0.002)


@frames
def test_integration_composes_every_action_with_the_pose_before(frame):
    spec, actions = make_spec(frame=frame), make_actions(3)
    pose = Pose([0.1, 0.6, 0.2], lie.so3_exp([0.3, 0.2, 0.1]))
    poses = integrate(actions, spec, pose)
    assert len(poses) == 3
    for action, reached in zip(actions, poses):
        pose = to_target_pose(action, spec, pose)
        np.testing.assert_array_equal(reached.position, pose.position)
        np.testing.assert_array_equal(reached.quat_xyzw, pose.quat_xyzw)


@pytest.mark.parametrize(
    ('quantized', 'reference'),
    [((8, 7), (7, 7)), ((8, 7), (8, 6)), ((0, 7), (0, 7)), ((7,), (7,))],
    ids=['lengths', 'dimensions', 'empty', 'one row'],
)
def test_sequences_that_cannot_be_compared_are_a_programming_error(quantized, reference):
    with pytest.raises(ValueError, match=r'must both be \[steps, dim\] with at least one step'):
        open_loop_drift(np.zeros(quantized), np.zeros(reference), make_spec())


def test_a_non_finite_action_is_a_programming_error_and_never_a_drift():
    actions = make_actions()
    actions[3, 6] = np.nan
    with pytest.raises(ValueError, match='7 finite numbers'):
        open_loop_drift(actions, make_actions(), make_spec())


def test_closed_loop_drift_of_an_arm_that_falls_behind_steadily():
    """The reference moves at 10 mm per step and the other arm at 9 mm per step."""
    step = np.arange(21)[:, np.newaxis] * np.array([1.0, 0, 0])
    drift = closed_loop_drift(0.009 * step, 0.010 * step)
    assert drift.mean_m == pytest.approx(0.010)
    assert drift.max_m == pytest.approx(0.020)
    assert drift.median_m == pytest.approx(0.010)
    assert drift.at_step_12_m == pytest.approx(0.012)
    assert drift.steps == 21


def test_an_excursion_shows_in_the_mean_and_the_maximum_but_not_in_the_median():
    positions = np.zeros((5, 3))
    positions[2] = [0.3, 0.4, 0]
    drift = closed_loop_drift(positions, np.zeros((5, 3)))
    assert (drift.mean_m, drift.median_m, drift.max_m) == (pytest.approx(0.1), 0.0, 0.5)


def test_the_comparison_ends_with_the_shorter_episode():
    far = np.concatenate([np.zeros((13, 3)), np.ones((5, 3))])
    for pair in ((far, np.zeros((13, 3))), (np.zeros((13, 3)), far)):
        drift = closed_loop_drift(*pair)
        assert (drift.max_m, drift.at_step_12_m, drift.steps) == (0.0, 0.0, 13)


def test_an_episode_that_ended_before_the_early_step_has_no_value_there():
    assert math.isnan(closed_loop_drift(np.zeros((12, 3)), np.zeros((12, 3))).at_step_12_m)


@pytest.mark.parametrize(
    ('positions', 'message'),
    [
        (np.zeros((5, 2)), r'positions_q must be \[steps, 3\], got \[5, 2\]'),
        (np.zeros((0, 3)), r'positions_q must be \[steps, 3\], got \[0, 3\]'),
        (np.full((5, 3), np.nan), 'positions_q is not finite'),
    ],
    ids=['2d', 'empty', 'NaN'],
)
def test_positions_that_are_none_are_a_programming_error(positions, message):
    with pytest.raises(ValueError, match=message):
        closed_loop_drift(positions, np.zeros((5, 3)))
