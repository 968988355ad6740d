"""
The vocabulary between the parts: observations, action chunks, commands and poses.

Frozen, numpy only, SI units. Stamps are integer nanoseconds on the clock of the robot (simulated
or real). Arrays are copied and made read-only when a value is built, so that a value can be
handed to another thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

POSITION_NAMES = ('ee_x', 'ee_y', 'ee_z')
ROTATION_NAMES = ('ee_rx', 'ee_ry', 'ee_rz')
GRIPPER_NAME = 'gripper'


def _frozen(array: object, dtype: type | None = None) -> NDArray:
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True)
class Pose:
    """
    A rigid transform, e.g. of the end effector in the base frame.

    Attributes:
        position: [3] in metres.
        quat_xyzw: [4] unit quaternion in ROS order.
    """

    position: NDArray[np.float64]
    quat_xyzw: NDArray[np.float64] = field(default_factory=lambda: np.array([0.0, 0.0, 0.0, 1.0]))

    def __post_init__(self) -> None:
        object.__setattr__(self, 'position', _frozen(self.position, np.float64))
        object.__setattr__(self, 'quat_xyzw', _frozen(self.quat_xyzw, np.float64))


@dataclass(frozen=True)
class Observation:
    """
    What the policy sees at one instant.

    Attributes:
        images: Camera name -> uint8 [height, width, 3], RGB, as the camera delivered it.
        state: [state_dim]; names and units are in the spec of the policy.
        instruction: The sentence to follow.
        observed_ns: Stamp of the observation on the control clock.
        image_ns: Camera name -> stamp of its image; empty where nobody needs it.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float64]
    instruction: str
    observed_ns: int
    image_ns: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images = {name: _frozen(image, np.uint8) for name, image in self.images.items()}
        object.__setattr__(self, 'images', MappingProxyType(images))
        object.__setattr__(self, 'image_ns', MappingProxyType(dict(self.image_ns)))
        object.__setattr__(self, 'state', _frozen(self.state, np.float64))


@dataclass(frozen=True)
class ActionSpec:
    """
    What the numbers of an action mean.

    Attributes:
        names: One per dimension. The end effector is `ee_x ee_y ee_z` (position) and `ee_rx ee_ry
            ee_rz` (rotation vector); the gripper is `gripper`, 0 closed to 1 open.
        units: One per dimension: `m`, `rad` or `1`.
        frame: `base` or `tool`: the frame the end-effector dimensions are expressed in.
        delta: True when the end-effector dimensions are increments per step.
        period_ns: Time between two actions of a chunk.
        low: [action_dim] smallest value the policy can mean, in `units`.
        high: [action_dim] largest value the policy can mean, in `units`.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    frame: str
    delta: bool
    period_ns: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.units), len(self.low), len(self.high)}
        if len(sizes) != 1 or not self.names:
            raise ValueError(f'names, units, low and high must have one length, got {sizes}')
        known = {*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME}
        unknown = [name for name in self.names if name not in known]
        if unknown or len(set(self.names)) != len(self.names):
            raise ValueError(
                f'action names must be distinct and from {sorted(known)}: {self.names}'
            )
        if self.frame not in ('base', 'tool'):
            raise ValueError(f"action frame must be 'base' or 'tool', got {self.frame!r}")
        if self.period_ns <= 0:
            raise ValueError(f'action period must be positive, got {self.period_ns} ns')
        if not all(np.isfinite([*self.low, *self.high])) or any(
            low >= high for low, high in zip(self.low, self.high)
        ):
            raise ValueError(
                f'action bounds must be finite with low < high: {self.low} {self.high}'
            )

    @property
    def dim(self) -> int:
        """Number of action dimensions."""
        return len(self.names)

    @property
    def period_s(self) -> float:
        """Time between two actions of a chunk [s]."""
        return self.period_ns * 1e-9

    @property
    def has_rotation(self) -> bool:
        """Whether the policy commands any rotation."""
        return any(name in ROTATION_NAMES for name in self.names)

    def columns(self, names: tuple[str, ...]) -> list[int | None]:
        """Return the column of each name, None for those this policy does not command."""
        return [self.names.index(name) if name in self.names else None for name in names]


@dataclass(frozen=True)
class ActionChunk:
    """
    Actions predicted from one observation; row k is due at `observed_ns + k * period_ns`.

    Attributes:
        actions: [horizon, action_dim] in the units of `spec`.
        spec: What the columns mean.
        observed_ns: Stamp of the observation that was answered.
        instruction: The sentence that was followed.
        precision: Precision level of the weights, e.g. `w8`.
        head: Action head used, e.g. `flow`.
        sequence: Number of the inference.
        epoch: Reset epoch.
        stage_s: Stage name -> seconds, e.g. preprocess, prefill, action.
    """

    actions: NDArray[np.float64]
    spec: ActionSpec
    observed_ns: int
    instruction: str
    precision: str
    head: str
    sequence: int = 0
    epoch: int = 0
    stage_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        actions = _frozen(self.actions, np.float64)
        if actions.ndim != 2 or actions.shape[1] != self.spec.dim or not len(actions):
            raise ValueError(f'actions must be [horizon, {self.spec.dim}], got {actions.shape}')
        object.__setattr__(self, 'actions', actions)
        object.__setattr__(self, 'stage_s', MappingProxyType(dict(self.stage_s)))

    @property
    def inference_s(self) -> float:
        """Time from observation to actions in physical units [s]."""
        return float(sum(self.stage_s.values()))


@dataclass(frozen=True)
class EndEffectorCommand:
    """
    What the arm shall do until the next tick.

    Attributes:
        twist: [6] linear [m/s] then angular [rad/s], expressed in `frame`.
        gripper: Opening, 0 closed to 1 open; None when the policy commands no gripper.
        frame: `base` or `tool`.
    """

    twist: NDArray[np.float64]
    gripper: float | None
    frame: str = 'base'

    def __post_init__(self) -> None:
        twist = _frozen(self.twist, np.float64)
        if twist.shape != (6,):
            raise ValueError(f'twist must be [6], got {twist.shape}')
        object.__setattr__(self, 'twist', twist)
