"""
Where an action leads: the pose of the end effector after one row of a chunk.

Increments follow the convention of the policies: the position moves by the translation and the
orientation turns by the rotation vector, both about the axes of the base or both about those of
the tool at the start of the step. The two are not coupled into a screw motion.
"""

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.lie import quat_multiply, quat_normalize, rotate, so3_exp
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose


def select_dimensions(actions: NDArray, spec: ActionSpec, names: tuple[str, ...]) -> NDArray:
    """Return the columns [..., len(names)] of actions [..., dim]; zero where not commanded."""
    actions = np.asarray(actions, dtype=np.float64)
    chosen = np.zeros((*actions.shape[:-1], len(names)))
    for place, column in enumerate(spec.columns(names)):
        if column is not None:
            chosen[..., place] = actions[..., column]
    return chosen


def gripper_openings(actions: NDArray, spec: ActionSpec) -> NDArray | None:
    """Return the gripper column [...] of actions [..., dim], None when none is commanded."""
    if GRIPPER_NAME not in spec.names:
        return None
    return select_dimensions(actions, spec, (GRIPPER_NAME,))[..., 0]


def to_target_pose(action: NDArray, spec: ActionSpec, anchor: Pose) -> Pose:
    """
    Return the pose that one action asks for.

    Args:
        action: [action_dim] one row of a chunk, in the units of `spec`.
        spec: What the dimensions mean.
        anchor: Where the increment starts, in the base frame. An absolute action keeps the
            position axes and the orientation of the anchor that it does not command.

    Raises:
        ConfigError: An absolute action is given in the tool frame, or commands a part of the
            rotation vector only.
        ValueError: The action has another size than the spec, or is not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (spec.dim,) or not np.isfinite(action).all():
        raise ValueError(f'action must be {spec.dim} finite numbers, got {action.tolist()}')
    if not spec.delta:
        return _absolute_target(action, spec, anchor)
    quat = anchor.quat_xyzw
    translation = select_dimensions(action, spec, POSITION_NAMES)
    if spec.frame == 'tool':
        translation = rotate(quat, translation)
    position = anchor.position + translation
    if not spec.has_rotation:
        return Pose(position, quat)
    turn = so3_exp(select_dimensions(action, spec, ROTATION_NAMES))
    factors = (turn, quat) if spec.frame == 'base' else (quat, turn)
    return Pose(position, quat_normalize(quat_multiply(*factors)))


def _absolute_target(action: NDArray, spec: ActionSpec, anchor: Pose) -> Pose:
    commanded = [name for name in ROTATION_NAMES if name in spec.names]
    if spec.frame != 'base':
        raise ConfigError(
            "absolute actions must be in frame 'base': a pose in 'tool' has no origin"
        )
    if len(commanded) not in (0, 3):
        raise ConfigError(
            f'absolute actions need all of {ROTATION_NAMES} or none, got {commanded}'
        )
    position = np.array(anchor.position)
    for axis, column in enumerate(spec.columns(POSITION_NAMES)):
        if column is not None:
            position[axis] = action[column]
    if not commanded:
        return Pose(position, anchor.quat_xyzw)
    return Pose(position, so3_exp(select_dimensions(action, spec, ROTATION_NAMES)))
