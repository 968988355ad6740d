"""
How far a quantized policy is from its reference, in metres and radians.

Open loop, both answer the same observations and their actions are compared: one by one (per step)
and after composing all of them on SE(3) from one start (accumulated). Chunk after chunk this gives
a stream, over a window or an episode; evaluation, calibration and the node measure it here. Closed
loop, the positions of two arms that started alike are compared over time. What a policy does not
command is NaN, never 0: no drift in rotation and no rotation are different findings.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.kinematics.actions import gripper_openings, select_dimensions, to_target_pose
from vlaq_ros.kinematics.lie import (
    IDENTITY,
    angle_between,
    quat_multiply,
    quat_normalize,
    rotate,
    so3_exp,
)
from vlaq_ros.kinematics.motion import step_increments
from vlaq_ros.kinematics.smoothness import jerk_ratio, spectral_arc_length
from vlaq_ros.types import POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose

EARLY_STEP = 12
"""The policy step at which closed-loop drift is compared before failures and chaos mix in."""

_HALF_OPEN = 0.5
CLEARLY_APART = 0.1
"""Difference from which two gripper openings disagree: a policy that does not use its gripper may
hover about half open, and a little less is then nothing else than a little more."""


@dataclass(frozen=True)
class Drift:
    """
    Difference of two sequences of actions.

    Attributes:
        position_per_step_m: Mean distance between single actions [m].
        position_accumulated_m: Distance between the poses after all actions [m].
        rotation_per_step_rad: Mean angle between single actions [rad]; NaN: none commanded.
        rotation_accumulated_rad: Angle between the poses after all actions [rad]; NaN as above.
        gripper_disagreement: Share of steps clearly on different sides of half open; NaN: none
            commanded.
        steps: Number of actions compared.
    """

    position_per_step_m: float
    position_accumulated_m: float
    rotation_per_step_rad: float
    rotation_accumulated_rad: float
    gripper_disagreement: float
    steps: int


@dataclass(frozen=True)
class StreamDrift:
    """
    Difference of two streams of chunks; the executed part of each chunk counts.

    Attributes:
        whole: All actions composed from one start: what is reached when nothing corrects it.
        position_per_chunk_m: Mean over the chunks of the drift accumulated in one chunk [m].
        rotation_per_chunk_rad: The same for the rotation [rad]; NaN: none commanded.
        jerk_ratio: Mean squared linear jerk over that of the reference; NaN with fewer than three
            velocities, without positions, and when neither stream has any.
        angular_jerk_ratio: The same for the rotation.
        sparc: Smoothness of the linear velocity, closer to 0 is smoother; NaN with fewer than two
            velocities, without positions, and at rest.
        reference_sparc: The same of the reference.
        chunks: Number of chunks.
    """

    whole: Drift
    position_per_chunk_m: float
    rotation_per_chunk_rad: float
    jerk_ratio: float
    angular_jerk_ratio: float
    sparc: float
    reference_sparc: float
    chunks: int


@dataclass(frozen=True)
class ClosedLoopDrift:
    """
    Distance between two arms over time.

    Attributes:
        mean_m: Over all rows [m].
        max_m: Largest distance [m].
        median_m: Over all rows [m].
        at_step_12_m: In row 12, counted from the start in row 0 [m]; NaN when there is none.
        steps: Number of rows compared.
    """

    mean_m: float
    max_m: float
    median_m: float
    at_step_12_m: float
    steps: int


def integrate(actions: NDArray, spec: ActionSpec, start: Pose = IDENTITY) -> list[Pose]:
    """
    Return the pose after every action [n, dim], each composed with the one before.

    Raises:
        ConfigError: The spec leaves the meaning of an absolute action open.
        ValueError: The actions do not fit the spec, or are not finite.
    """
    poses = []
    for action in actions:
        start = to_target_pose(action, spec, start)
        poses.append(start)
    return poses


def open_loop_drift(quantized: NDArray, reference: NDArray, spec: ActionSpec) -> Drift:
    """
    Compare two sequences of actions [n, dim] that answer the same observations.

    The start pose plays no role: distances and angles are the same from every start.

    Raises:
        ConfigError: The spec leaves the meaning of an absolute action open.
        ValueError: The two differ in shape, are empty or not finite.
    """
    quantized, reference = np.asarray(quantized), np.asarray(reference)
    if quantized.shape != reference.shape or quantized.ndim != 2 or not len(quantized):
        raise ValueError(
            'quantized and reference must both be [steps, dim] with at least one step, '
            f'got {list(quantized.shape)} and {list(reference.shape)}'
        )
    is_finite = np.isfinite(quantized).all() and np.isfinite(reference).all()
    if quantized.shape[1] != spec.dim or not is_finite:
        raise ValueError(
            f'every action must be {spec.dim} finite numbers, got actions of '
            f'{quantized.shape[1]} numbers, finite: {is_finite}'
        )
    step_m = np.linalg.norm(
        select_dimensions(quantized, spec, POSITION_NAMES)
        - select_dimensions(reference, spec, POSITION_NAMES),
        axis=1,
    )
    step_rad = angle_between(
        so3_exp(select_dimensions(quantized, spec, ROTATION_NAMES)),
        so3_exp(select_dimensions(reference, spec, ROTATION_NAMES)),
    )
    end, end_reference = _end_pose(quantized, spec), _end_pose(reference, spec)
    end_rad = angle_between(end.quat_xyzw, end_reference.quat_xyzw)
    return Drift(
        position_per_step_m=float(step_m.mean()),
        position_accumulated_m=float(np.linalg.norm(end.position - end_reference.position)),
        rotation_per_step_rad=float(step_rad.mean()) if spec.has_rotation else np.nan,
        rotation_accumulated_rad=float(end_rad) if spec.has_rotation else np.nan,
        gripper_disagreement=gripper_disagreement(quantized, reference, spec),
        steps=len(quantized),
    )


def stream_drift(chunks: Iterable[tuple[NDArray, NDArray]], spec: ActionSpec) -> StreamDrift:
    """
    Compare two streams, given as pairs (quantized, reference) of executed rows [n, dim].

    Raises:
        ConfigError: The spec leaves the meaning of an absolute action open.
        ValueError: There is no chunk, or the two of a pair differ in shape, are empty or not
            finite.
    """
    chunks = list(chunks)
    if not chunks:
        raise ValueError('a stream needs at least one chunk')
    return _join(chunks, [open_loop_drift(*pair, spec) for pair in chunks], spec)


def _join(
    chunks: list[tuple[NDArray, NDArray]], single: list[Drift], spec: ActionSpec
) -> StreamDrift:
    quantized, reference = (np.concatenate(stream) for stream in zip(*chunks))
    velocities = step_increments(quantized, spec) / spec.period_s
    velocities_ref = step_increments(reference, spec) / spec.period_s
    is_long = len(velocities) >= 3  # what is not commanded stands still, without jerk: NaN
    linear, linear_ref = velocities[:, :3], velocities_ref[:, :3]
    angular, angular_ref = velocities[:, 3:], velocities_ref[:, 3:]
    return StreamDrift(
        whole=single[0] if len(single) == 1 else open_loop_drift(quantized, reference, spec),
        position_per_chunk_m=float(np.mean([drift.position_accumulated_m for drift in single])),
        rotation_per_chunk_rad=float(np.mean([d.rotation_accumulated_rad for d in single])),
        jerk_ratio=jerk_ratio(linear, linear_ref) if is_long else np.nan,
        angular_jerk_ratio=jerk_ratio(angular, angular_ref) if is_long else np.nan,
        sparc=_sparc(linear, spec),
        reference_sparc=_sparc(linear_ref, spec),
        chunks=len(chunks),
    )


class DriftWindow:
    """
    Drift of the chunks of the last while, or of the whole episode.

    Args:
        spec: What the actions mean.
        window_ns: Chunks whose observation is this much older than the newest are forgotten; None:
            all since `reset` are kept.
    """

    def __init__(self, spec: ActionSpec, window_ns: int | None = None) -> None:
        if window_ns is not None and window_ns <= 0:
            raise ValueError(f'window_ns must be positive, got {window_ns}')
        self.spec = spec
        self.window_ns = window_ns
        self._chunks: deque[tuple[int, tuple[NDArray, NDArray], Drift]] = deque()

    def reset(self) -> None:
        """Begin a new episode."""
        self._chunks.clear()

    def add(self, quantized: NDArray, reference: NDArray, observed_ns: int) -> StreamDrift:
        """
        Take the executed rows [n, dim] of one chunk and of its reference; return the drift now.

        An observation before the last one means that the clock was set back, e.g. by a looped bag:
        the window starts again with it.

        Raises:
            ConfigError: The spec leaves the meaning of an absolute action open.
            ValueError: The two differ in shape, are empty or not finite; the window is unchanged.
        """
        pair = np.array(quantized), np.array(reference)
        single = open_loop_drift(*pair, self.spec)
        chunks = self._chunks
        if chunks and observed_ns < chunks[-1][0]:
            chunks.clear()
        chunks.append((observed_ns, pair, single))
        while self.window_ns is not None and observed_ns - chunks[0][0] >= self.window_ns:
            chunks.popleft()
        return _join([pair for _, pair, _ in chunks], [drift for *_, drift in chunks], self.spec)


def closed_loop_drift(positions_q: NDArray, positions_ref: NDArray) -> ClosedLoopDrift:
    """
    Compare the positions [steps, 3] in m of two arms that started alike, row by row.

    The comparison ends with the shorter of the two.

    Raises:
        ValueError: The positions are not [steps, 3], are empty or not finite.
    """
    quantized, reference = np.asarray(positions_q), np.asarray(positions_ref)
    for name, positions in (('positions_q', quantized), ('positions_ref', reference)):
        if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
            raise ValueError(f'{name} must be [steps, 3], got {list(positions.shape)}')
        if not np.isfinite(positions).all():
            raise ValueError(f'{name} is not finite')
    steps = min(len(quantized), len(reference))
    distance = np.linalg.norm(quantized[:steps] - reference[:steps], axis=1)
    return ClosedLoopDrift(
        mean_m=float(distance.mean()),
        max_m=float(distance.max()),
        median_m=float(np.median(distance)),
        at_step_12_m=float(distance[EARLY_STEP]) if steps > EARLY_STEP else np.nan,
        steps=steps,
    )


def _end_pose(actions: NDArray, spec: ActionSpec) -> Pose:
    """Return the last pose of `integrate` from the identity, in log2(n) vectorized products."""
    if not spec.delta:
        return to_target_pose(actions[-1], spec, IDENTITY)
    position = select_dimensions(actions, spec, POSITION_NAMES)
    quat = so3_exp(select_dimensions(actions, spec, ROTATION_NAMES))
    if spec.frame == 'base':  # later turns come first, and do not turn the translations
        quat, position, total = quat[::-1], np.zeros_like(position), position.sum(axis=0)
    else:
        total = np.zeros(3)
    while len(quat) > 1:
        even = len(quat) // 2 * 2
        first, second = slice(0, even, 2), slice(1, even, 2)
        joined = position[first] + rotate(quat[first], position[second])
        position = np.concatenate([joined, position[even:]])
        quat = np.concatenate([quat_multiply(quat[first], quat[second]), quat[even:]])
    return Pose(total + position[0], quat_normalize(quat[0]))


def gripper_disagreement(quantized: NDArray, reference: NDArray, spec: ActionSpec) -> float:
    """
    Return the share of actions [n, dim] whose openings are clearly on different sides of one half.

    NaN: the policy commands no gripper.
    """
    return float(np.mean(grippers_disagree(quantized, reference, spec)))


def grippers_disagree(quantized: NDArray, reference: NDArray, spec: ActionSpec) -> NDArray:
    """
    Return for each of the actions [n, dim] 1.0 where the openings clearly disagree, else 0.0.

    Clearly: on different sides of one half, and a tenth apart. NaN: the policy commands no
    gripper.
    """
    first, second = gripper_openings(quantized, spec), gripper_openings(reference, spec)
    if first is None or second is None:
        return np.full(len(quantized), np.nan)
    differs = (first >= _HALF_OPEN) != (second >= _HALF_OPEN)
    return (differs & (np.abs(first - second) >= CLEARLY_APART)).astype(np.float64)


def _sparc(velocities: NDArray, spec: ActionSpec) -> float:
    return spectral_arc_length(velocities, spec.period_s) if len(velocities) >= 2 else float('nan')
