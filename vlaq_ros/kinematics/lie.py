"""
Rotations and rigid transforms: SO(3) as unit quaternions, SE(3) as poses.

Equation numbers refer to Sola, Deray and Atchuthan, 'A micro Lie theory for state estimation in
robotics', arXiv:1812.01537. Quaternions are xyzw as in ROS; q and -q are the same rotation, and
every result here is the same for both. A tangent of SE(3) has the linear part first, as a twist in
ROS; angles stay accurate near 0 and near pi. Functions of arrays take any leading dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.types import Pose

IDENTITY = Pose(np.zeros(3))
"""The pose that changes nothing."""

_SMALL_ANGLE = 1e-2  # [rad]: below it the series used here are exact to double precision


def quat_normalize(quat_xyzw: NDArray) -> NDArray:
    """
    Return the unit quaternion [..., 4] of the same rotation.

    Raises:
        ValueError: A quaternion is zero or not finite.
    """
    quat = np.asarray(quat_xyzw, dtype=np.float64)
    norm = np.linalg.norm(quat, axis=-1, keepdims=True)
    if not (np.isfinite(norm).all() and (norm > 0.0).all()):
        raise ValueError(f'no rotation can be read from the quaternion {quat.tolist()}')
    return quat / norm


def quat_multiply(first: NDArray, second: NDArray) -> NDArray:
    """Return the product [..., 4] of two quaternions: rotate by `second`, then by `first`."""
    u, a = first[..., :3], first[..., 3:]
    v, b = second[..., :3], second[..., 3:]
    vector = a * v + b * u + np.cross(u, v)
    scalar = a * b - (u * v).sum(axis=-1, keepdims=True)
    return np.concatenate([vector, scalar], axis=-1)


def quat_conjugate(quat_xyzw: NDArray) -> NDArray:
    """Return the inverse rotation [..., 4] of a unit quaternion, eq. (140)."""
    return quat_xyzw * np.array([-1.0, -1.0, -1.0, 1.0])


def rotate(quat_xyzw: NDArray, vector: NDArray) -> NDArray:
    """Return a vector [..., 3] rotated by a unit quaternion [..., 4], eq. (136)."""
    axis, w = quat_xyzw[..., :3], quat_xyzw[..., 3:]
    return vector + 2.0 * np.cross(axis, np.cross(axis, vector) + w * vector)


def quat_to_matrix(quat_xyzw: NDArray) -> NDArray:
    """Return the rotation matrix [3, 3] of a unit quaternion [4]."""
    return rotate(quat_xyzw, np.eye(3)).T


def matrix_to_quat(matrix: NDArray) -> NDArray:
    """
    Return the unit quaternion [4] with w >= 0 of a rotation matrix [3, 3].

    The largest of the four squared components is the pivot, so that nothing is divided by a small
    number (Shepperd, 1978).
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = matrix
    trace = m00 + m11 + m22
    candidates = np.array(  # row i: 4 * q[i] * q
        [
            [1.0 + 2.0 * m00 - trace, m01 + m10, m02 + m20, m21 - m12],
            [m01 + m10, 1.0 + 2.0 * m11 - trace, m12 + m21, m02 - m20],
            [m02 + m20, m12 + m21, 1.0 + 2.0 * m22 - trace, m10 - m01],
            [m21 - m12, m02 - m20, m10 - m01, 1.0 + trace],
        ]
    )
    quat = quat_normalize(candidates[np.argmax(np.diag(candidates))])
    return -quat if quat[3] < 0.0 else quat


def so3_exp(rotation_vector: NDArray) -> NDArray:
    """Return the unit quaternion [..., 4] of a rotation vector [..., 3] in rad, eq. (132)."""
    vector = np.asarray(rotation_vector, dtype=np.float64)
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    half_sinc = 0.5 * np.sinc(0.5 * angle / np.pi)  # sin(angle / 2) / angle, smooth at zero
    return np.concatenate([half_sinc * vector, np.cos(0.5 * angle)], axis=-1)


def so3_log(quat_xyzw: NDArray) -> NDArray:
    """
    Return the rotation vector [..., 3] in rad, at most pi long, of a quaternion, eq. (133).

    The arc tangent is accurate where the arc cosine of a trace is not: near 0 and near pi.
    """
    quat = np.asarray(quat_xyzw, dtype=np.float64)
    quat = np.where(quat[..., 3:] < 0.0, -quat, quat)  # the shorter way round
    sine = np.linalg.norm(quat[..., :3], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quat[..., 3:])
    is_zero = sine == 0.0
    return np.where(is_zero, 2.0, angle / np.where(is_zero, 1.0, sine)) * quat[..., :3]


def angle_between(first: NDArray, second: NDArray) -> NDArray:
    """Return the angle [...] in rad, 0 to pi, that takes one orientation to the other."""
    return np.linalg.norm(so3_log(quat_multiply(quat_conjugate(first), second)), axis=-1)


def skew(vector: NDArray) -> NDArray:
    """Return the matrix [3, 3] whose product with w is the cross product of `vector` and w."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def so3_left_jacobian(rotation_vector: NDArray) -> NDArray:
    """Return J_l [3, 3] with exp(v + dv) = exp(J_l dv) exp(v), eq. (145); also V in eq. (174)."""
    angle = float(np.linalg.norm(rotation_vector))
    cross = skew(rotation_vector)
    if angle < _SMALL_ANGLE:
        cubic = 1.0 / 6.0 - angle**2 / 120.0 + angle**4 / 5040.0
    else:
        cubic = (angle - np.sin(angle)) / angle**3
    quadratic = 0.5 * np.sinc(0.5 * angle / np.pi) ** 2  # (1 - cos(angle)) / angle^2
    return np.eye(3) + quadratic * cross + cubic * cross @ cross


def so3_left_jacobian_inverse(rotation_vector: NDArray) -> NDArray:
    """Return the inverse [3, 3] of the left Jacobian for angles below 2 pi, eq. (146)."""
    angle = float(np.linalg.norm(rotation_vector))
    cross = skew(rotation_vector)
    if angle < _SMALL_ANGLE:
        factor = 1.0 / 12.0 + angle**2 / 720.0 + angle**4 / 30240.0
    else:  # (1 + cos) / sin is the cotangent of the half angle, which is finite at pi
        factor = 1.0 / angle**2 - 1.0 / (2.0 * angle * np.tan(0.5 * angle))
    return np.eye(3) - 0.5 * cross + factor * cross @ cross


def compose(first: Pose, second: Pose) -> Pose:
    """
    Return the product of two poses, T_a_c of T_a_b and T_b_c, eq. (171).

    The quaternion is normalized, so that long chains stay rigid.
    """
    position = first.position + rotate(first.quat_xyzw, second.position)
    return Pose(position, quat_normalize(quat_multiply(first.quat_xyzw, second.quat_xyzw)))


def inverse(pose: Pose) -> Pose:
    """Return the pose that undoes another, eq. (170)."""
    quat = quat_conjugate(pose.quat_xyzw)
    return Pose(-rotate(quat, pose.position), quat)


def transform(pose: Pose, point: NDArray) -> NDArray:
    """Return a point [..., 3] given in the inner frame in the outer one, eq. (175)."""
    return pose.position + rotate(pose.quat_xyzw, point)


def se3_exp(tangent: NDArray) -> Pose:
    """Return the pose that a constant twist [6] reaches after one second, eq. (172)."""
    tangent = np.asarray(tangent, dtype=np.float64)
    return Pose(so3_left_jacobian(tangent[3:]) @ tangent[:3], so3_exp(tangent[3:]))


def se3_log(pose: Pose) -> NDArray:
    """Return the constant twist [6] that reaches a pose within one second, eq. (173)."""
    angular = so3_log(pose.quat_xyzw)
    return np.concatenate([so3_left_jacobian_inverse(angular) @ pose.position, angular])
