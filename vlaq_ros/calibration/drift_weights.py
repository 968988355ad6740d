"""
How much an error in each action dimension moves the arm away: one weight per dimension, mean 1.

`chain_weights` is DA-PTQ as published (arXiv 2604.11572): the dimensions of an action are read as
the joint angles of a virtual planar chain, and weighted by its damped inverse Jacobian. Cartesian
increments and a gripper command are no joint angles, and the weights depend on the order of the
dimensions; treat them as a fixed weighting. `pose_weights` is the physical alternative: the pose
error that a unit error leaves behind when the actions are really composed on SE(3).

Numpy only.
"""

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import SchemeError
from vlaq_ros.kinematics.drift import integrate
from vlaq_ros.kinematics.lie import angle_between
from vlaq_ros.types import ActionSpec

DAMPING = 3e-4
TRANSLATION_WEIGHT = 1.8
ROTATION_WEIGHT = 0.15
_STEP = 1e-4


def chain_jacobian(increments: NDArray) -> NDArray[np.float64]:
    """
    Return the Jacobian [3, dim] of the tip (x, y, angle) of a planar chain of unit links.

    The angle of link k is the sum of the increments up to k; increment j turns all links from j.
    """
    angles = np.cumsum(np.asarray(increments, dtype=float))
    dx = -np.cumsum(np.sin(angles)[::-1])[::-1]
    dy = np.cumsum(np.cos(angles)[::-1])[::-1]
    return np.stack([dx, dy, np.ones(len(angles))])


def chain_weights(
    actions: NDArray,
    damping: float = DAMPING,
    translation: float = TRANSLATION_WEIGHT,
    rotation: float = ROTATION_WEIGHT,
) -> NDArray[np.float64]:
    """
    Return the published weight of every dimension, mean 1.

    Args:
        actions: [n, dim] normalized actions of the full-precision policy.
        damping: lambda of J^T (J J^T + lambda I)^-1.
        translation: Weight of the two coordinates of the tip.
        rotation: Weight of its angle.
    """
    actions = _filled(actions)
    coordinate = np.array([translation, translation, rotation])
    total = np.zeros(actions.shape[1])
    for increments in actions:
        J = chain_jacobian(increments)
        inverse = J.T @ np.linalg.inv(J @ J.T + damping * np.eye(3))  # [dim, 3]
        total += np.abs(inverse) @ coordinate
    return total / total.mean()


def pose_weights(
    chunks: NDArray,
    spec: ActionSpec,
    scale: NDArray,
    translation: float = 1.0,
    rotation: float = 1.0,
    lever_m: float = 0.1,
) -> NDArray[np.float64]:
    """
    Return the mean pose drift per unit error of every dimension, mean 1 over those that move.

    One dimension of one action at a time is changed by a small share of its scale, all actions of
    the chunk are composed, and the end poses compared. A dimension that moves no pose, such as a
    gripper, gets weight 1.

    Args:
        chunks: [n, horizon, dim] actions of the full-precision policy, in the units of `spec`.
        spec: Meaning of the dimensions.
        scale: [dim] what counts as a unit error.
        translation: Weight of a metre of drift.
        rotation: Weight of a radian of drift times `lever_m`.
        lever_m: Length [m] at which an angle becomes a distance.
    """
    chunks, scale = np.asarray(chunks, dtype=float), np.asarray(scale, dtype=float)
    if chunks.ndim != 3:
        raise SchemeError(f'chunks must be [n, horizon, dim], got {list(chunks.shape)}')
    _filled(chunks.reshape(-1, chunks.shape[-1]))
    drift = np.zeros(chunks.shape[-1])
    for chunk in chunks:
        end = integrate(chunk, spec)[-1]
        for dim in range(len(drift)):
            for step in range(len(chunk)):
                changed = chunk.copy()
                changed[step, dim] += _STEP * scale[dim]
                moved = integrate(changed, spec)[-1]
                metres = np.linalg.norm(moved.position - end.position)
                radians = float(angle_between(moved.quat_xyzw, end.quat_xyzw))
                drift[dim] += translation * metres + rotation * lever_m * radians
    moves = drift > 1e-9 * drift.max()
    if not moves.any():
        return np.ones_like(drift)
    return np.where(moves, drift / drift[moves].mean(), 1.0)


def _filled(actions: NDArray) -> NDArray[np.float64]:
    actions = np.asarray(actions, dtype=float)
    if actions.ndim != 2 or not actions.size or not np.isfinite(actions).all():
        raise SchemeError(
            f'drift weights need finite actions [n, dim] with n > 0, got {list(actions.shape)}'
        )
    return actions
