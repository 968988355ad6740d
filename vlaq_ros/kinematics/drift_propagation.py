"""
One step of a drift: how the one so far is carried on, and how the error of an action comes in.

With T the pose of the reference and xi the drift in its own frame (T Exp(xi) is where the other
arm is), to first order xi' = carry xi + gain e for the error e of one action: translation and
rotation vector. In the tool frame carry is Ad(D)^-1 with D the motion of the step (first-order
propagation as in Sola, Deray and Atchuthan, arXiv:1812.01537). Increments about the base axes do
not turn with the tool; absolute actions carry nothing on.
"""

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.kinematics.actions import select_dimensions
from vlaq_ros.kinematics.lie import inverse, quat_to_matrix, skew, so3_exp, so3_left_jacobian
from vlaq_ros.types import POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose


def se3_adjoint(pose: Pose) -> NDArray:
    """Return Ad [6, 6] with T Exp(xi) = Exp(Ad xi) T, linear part first (Sola et al., app. D)."""
    rotation = quat_to_matrix(pose.quat_xyzw)
    adjoint = np.zeros((6, 6))
    adjoint[:3, :3] = adjoint[3:, 3:] = rotation
    adjoint[:3, 3:] = skew(pose.position) @ rotation
    return adjoint


def step_matrices(
    action: NDArray, spec: ActionSpec, pose: Pose, reached: Pose
) -> tuple[NDArray, NDArray]:
    """
    Return the matrices [6, 6] that carry the drift over one step and bring in its error.

    Args:
        action: [dim] in the units of the spec.
        spec: What it means.
        pose: Of the reference before the step.
        reached: Of the reference after it.
    """
    turn = select_dimensions(action, spec, ROTATION_NAMES)
    jacobian = so3_left_jacobian(turn)  # its transpose is the right Jacobian
    R_before, R_after = quat_to_matrix(pose.quat_xyzw), quat_to_matrix(reached.quat_xyzw)
    carry, gain = np.zeros((6, 6)), np.zeros((6, 6))
    if not spec.delta:
        gain[:3, :3], gain[3:, 3:] = R_after.T, jacobian.T
    elif spec.frame == 'tool':
        step = Pose(select_dimensions(action, spec, POSITION_NAMES), so3_exp(turn))
        carry = se3_adjoint(inverse(step))
        gain[:3, :3] = quat_to_matrix(step.quat_xyzw).T
        gain[3:, 3:] = jacobian.T
    else:
        carry[:3, :3], carry[3:, 3:] = R_after.T @ R_before, np.eye(3)
        gain[:3, :3], gain[3:, 3:] = R_after.T, R_after.T @ jacobian
    return carry, gain
