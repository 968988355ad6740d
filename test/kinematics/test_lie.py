"""Rotations and poses obey the group laws; exp and log are inverse to the ends of their range."""

import numpy as np
import pytest

from vlaq_ros.kinematics import lie
from vlaq_ros.types import Pose

RNG = np.random.default_rng(0)
AXES = {
    'x': np.array([1.0, 0.0, 0.0]),
    'y': np.array([0.0, -1.0, 0.0]),
    'z': np.array([0.0, 0.0, 1.0]),
    'oblique': np.array([2.0, -1.0, 2.0]) / 3.0,
}
ANGLES = [0.0, 1e-300, 1e-12, 1e-6, 0.0099, 0.0101, 0.5, 2.0, np.pi - 1e-6, np.pi - 1e-9]
POSES = [Pose(RNG.normal(size=3), lie.quat_normalize(RNG.normal(size=4))) for _ in range(6)]

every_axis = pytest.mark.parametrize('axis', AXES.values(), ids=AXES)
every_angle = pytest.mark.parametrize('angle', ANGLES, ids='{:.6g}'.format)


def matrix_of(pose):
    """Return the homogeneous matrix [4, 4] of a pose."""
    matrix = np.eye(4)
    matrix[:3, :3] = lie.quat_to_matrix(pose.quat_xyzw)
    matrix[:3, 3] = pose.position
    return matrix


def exp_series(matrix):
    """Return the matrix exponential by its definition as a power series."""
    total, term = np.eye(len(matrix)), np.eye(len(matrix))
    for k in range(1, 60):
        term = term @ matrix / k
        total = total + term
    return total


def assert_same_pose(first, second):
    """Compare two poses; a quaternion and its negative are one rotation."""
    np.testing.assert_allclose(matrix_of(first), matrix_of(second), atol=1e-12)


@every_axis
@every_angle
def test_exp_of_a_rotation_vector_is_the_power_series_of_its_skew_matrix(axis, angle):
    quat = lie.so3_exp(angle * axis)
    np.testing.assert_allclose(
        lie.quat_to_matrix(quat), exp_series(lie.skew(angle * axis)), atol=1e-12
    )
    assert np.linalg.norm(quat) == pytest.approx(1.0, abs=1e-15)


@every_axis
@every_angle
def test_log_of_exp_gives_the_rotation_vector_back(axis, angle):
    vector = angle * axis
    np.testing.assert_allclose(lie.so3_log(lie.so3_exp(vector)), vector, rtol=1e-12, atol=0)


@every_axis
def test_at_half_a_turn_the_log_is_pi_long_along_the_axis(axis):
    vector = lie.so3_log(lie.so3_exp(np.pi * axis))
    assert np.linalg.norm(vector) == pytest.approx(np.pi)
    assert abs(vector @ axis) == pytest.approx(np.pi)


@every_axis
def test_past_half_a_turn_the_log_takes_the_shorter_way_round(axis):
    vector = lie.so3_log(lie.so3_exp((np.pi + 0.1) * axis))
    np.testing.assert_allclose(vector, -(np.pi - 0.1) * axis, atol=1e-12)


@every_axis
@every_angle
def test_a_quaternion_and_its_negative_have_the_same_log(axis, angle):
    quat = lie.so3_exp(angle * axis)
    np.testing.assert_array_equal(lie.so3_log(-quat), lie.so3_log(quat))


@every_axis
@every_angle
def test_the_matrix_of_a_quaternion_gives_it_back_with_positive_w(axis, angle):
    quat = lie.so3_exp(angle * axis)
    for same in (quat, -quat):
        np.testing.assert_allclose(lie.matrix_to_quat(lie.quat_to_matrix(same)), quat, atol=1e-12)


@every_axis
def test_a_half_turn_survives_the_matrix(axis):
    matrix = lie.quat_to_matrix(lie.so3_exp(np.pi * axis))
    np.testing.assert_allclose(lie.quat_to_matrix(lie.matrix_to_quat(matrix)), matrix, atol=1e-12)


def test_the_quaternion_order_is_that_of_ros():
    quarter_turn_left = lie.so3_exp([0, 0, np.pi / 2])
    np.testing.assert_allclose(quarter_turn_left, [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    np.testing.assert_allclose(
        lie.rotate(quarter_turn_left, np.array([1, 0, 0])), [0, 1, 0], atol=1e-15
    )


@pytest.mark.parametrize('first', POSES[:3], ids=range(3))
@pytest.mark.parametrize('second', POSES[3:], ids=range(3))
def test_products_of_quaternions_and_poses_are_products_of_their_matrices(first, second):
    product = lie.quat_multiply(first.quat_xyzw, second.quat_xyzw)
    np.testing.assert_allclose(
        lie.quat_to_matrix(product),
        lie.quat_to_matrix(first.quat_xyzw) @ lie.quat_to_matrix(second.quat_xyzw),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        matrix_of(lie.compose(first, second)), matrix_of(first) @ matrix_of(second), atol=1e-12
    )


@pytest.mark.parametrize('pose', POSES, ids=range(6))
def test_a_pose_and_its_inverse_cancel_on_both_sides(pose):
    assert_same_pose(lie.compose(pose, lie.inverse(pose)), lie.IDENTITY)
    assert_same_pose(lie.compose(lie.inverse(pose), pose), lie.IDENTITY)


@pytest.mark.parametrize('pose', POSES, ids=range(6))
def test_the_identity_changes_nothing(pose):
    assert_same_pose(lie.compose(pose, lie.IDENTITY), pose)
    assert_same_pose(lie.compose(lie.IDENTITY, pose), pose)


def test_composition_is_associative():
    a, b, c = POSES[:3]
    assert_same_pose(lie.compose(lie.compose(a, b), c), lie.compose(a, lie.compose(b, c)))


def test_a_transformed_point_is_the_product_with_the_matrix():
    point = np.array([0.1, 0.2, 0.3])
    expected = (matrix_of(POSES[0]) @ [*point, 1.0])[:3]
    np.testing.assert_allclose(lie.transform(POSES[0], point), expected)


def test_a_long_chain_stays_rigid():
    step = Pose([0.001, 0, 0], lie.so3_exp([0.01, 0.02, -0.01]) * (1 + 1e-6))
    pose = lie.IDENTITY
    for _ in range(2000):
        pose = lie.compose(pose, step)
    assert np.linalg.norm(pose.quat_xyzw) == pytest.approx(1.0, abs=1e-12)


@every_axis
@every_angle
def test_exp_of_a_twist_is_the_power_series_of_its_matrix(axis, angle):
    tangent = np.array([0.3, -0.2, 0.5, *(angle * axis)])
    generator = np.zeros((4, 4))
    generator[:3, :3] = lie.skew(tangent[3:])
    generator[:3, 3] = tangent[:3]
    np.testing.assert_allclose(matrix_of(lie.se3_exp(tangent)), exp_series(generator), atol=1e-12)


@every_axis
@every_angle
def test_log_of_exp_gives_the_twist_back(axis, angle):
    tangent = np.array([0.3, -0.2, 0.5, *(angle * axis)])
    np.testing.assert_allclose(lie.se3_log(lie.se3_exp(tangent)), tangent, atol=1e-11)


@pytest.mark.parametrize('pose', POSES, ids=range(6))
def test_exp_of_log_gives_the_pose_back(pose):
    assert_same_pose(lie.se3_exp(lie.se3_log(pose)), pose)


@every_axis
@pytest.mark.parametrize('angle', [0.0, 1e-3, 0.0099, 0.0101, 1.0, 3.0])
def test_the_left_jacobian_is_the_derivative_of_exp(axis, angle):
    vector, step = angle * axis, 1e-6
    columns = []
    for unit in np.eye(3):
        ahead = lie.so3_exp(vector + step * unit)
        behind = lie.so3_exp(vector - step * unit)
        turned = lie.quat_multiply(ahead, lie.quat_conjugate(behind))
        columns.append(lie.so3_log(turned) / (2 * step))
    np.testing.assert_allclose(lie.so3_left_jacobian(vector), np.stack(columns, axis=1), atol=1e-8)


@every_axis
@every_angle
def test_the_inverse_of_the_left_jacobian_is_its_inverse(axis, angle):
    product = lie.so3_left_jacobian(angle * axis) @ lie.so3_left_jacobian_inverse(angle * axis)
    np.testing.assert_allclose(product, np.eye(3), atol=1e-11)


@every_angle
def test_the_angle_between_two_orientations_is_that_of_the_rotation_between_them(angle):
    start = POSES[0].quat_xyzw
    turned = lie.quat_multiply(start, lie.so3_exp(angle * AXES['oblique']))
    assert lie.angle_between(start, turned) == pytest.approx(angle, abs=1e-15)
    assert lie.angle_between(start, -turned) == pytest.approx(angle, abs=1e-15)


def test_arrays_are_handled_row_by_row():
    vectors = RNG.normal(size=(2, 5, 3))
    quats = lie.so3_exp(vectors)
    assert quats.shape == (2, 5, 4)
    for place in np.ndindex(2, 5):
        np.testing.assert_array_equal(quats[place], lie.so3_exp(vectors[place]))
        np.testing.assert_array_equal(lie.so3_log(quats)[place], lie.so3_log(quats[place]))
        np.testing.assert_array_equal(
            lie.angle_between(quats[0, 0], quats)[place],
            lie.angle_between(quats[0, 0], quats[place]),
        )


@pytest.mark.parametrize(
    'quat', [np.zeros(4), np.array([0, 0, np.nan, 1]), np.array([np.inf, 0, 0, 1])], ids=str
)
def test_what_is_no_rotation_cannot_be_normalized(quat):
    with pytest.raises(ValueError, match='no rotation can be read from the quaternion'):
        lie.quat_normalize(quat)
