"""
One row of an action chunk as a velocity command for the end effector.

An increment per step becomes the twist that covers it in one period. Dimensions that the policy
does not command stay at rest. Nothing is limited here: `control.limits` decides what may be sent.
"""

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ConfigError
from vlaq_ros.types import (
    GRIPPER_NAME,
    POSITION_NAMES,
    ROTATION_NAMES,
    ActionSpec,
    EndEffectorCommand,
)

HOLD = EndEffectorCommand(np.zeros(6), gripper=None)
"""Stand still and keep the gripper as it is."""


def to_command(action: NDArray, spec: ActionSpec) -> EndEffectorCommand:
    """
    Return the command that carries out one action within one period.

    Args:
        action: [action_dim] one row of a chunk, in the units of `spec`.
        spec: What the dimensions mean.

    Raises:
        ConfigError: The policy commands absolute poses, which are no velocities.
        ValueError: The action has another size than the spec.
    """
    if not spec.delta:
        raise ConfigError(
            'a policy with absolute end-effector actions cannot be sent as a twist: '
            'choose an output of target poses, or a policy whose actions are increments'
        )
    action = np.asarray(action, dtype=np.float64)
    if action.shape != (spec.dim,):
        raise ValueError(f'action must be [{spec.dim}], got {list(action.shape)}')
    twist = np.zeros(6)
    for axis, column in enumerate(spec.columns(POSITION_NAMES + ROTATION_NAMES)):
        if column is not None:
            twist[axis] = action[column] / spec.period_s
    (column,) = spec.columns((GRIPPER_NAME,))
    gripper = None if column is None else float(action[column])
    return EndEffectorCommand(twist, gripper, spec.frame)
