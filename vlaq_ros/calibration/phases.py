"""
What the arm is doing, read from a recording: approach, fine motion, grasp, transport, or nothing.

Calibration samples are balanced over these phases, because errors of a quantized policy matter
most where motion is slow and precise, and such steps are a minority of any recording. Definition,
for every step of an episode:

    speed      v = |x(t+1) - x(t-1)| / (time between), of the recorded end effector
    fineness   M = 1 - v / mu, mu = 95th percentile of v over all recordings
    grasp      the gripper moves by a tenth of its recorded range within a quarter second around
    idle       not grasp, v below 2 % of mu: nothing to learn from, never sampled
    fine       not grasp, M at least 0.75
    transport  faster, with the gripper in the closed half of its range
    approach   faster, with the gripper open, or without a gripper

Speed and fineness are those of DyQ-VLA (arXiv:2603.07904), taken from the executed motion; the
bounds are ours. Where a policy senses no position, v is the speed of its joints [rad/s].
"""

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.policies.spec import StateSpec

SCALE_QUANTILE = 0.95
FINE_FROM = 0.75
IDLE_BELOW = 0.02
GRASP_SHARE = 0.1
GRASP_WINDOW_S = 0.25
_SMALLEST_RANGE = 1e-6


class Phase(str, Enum):
    """What the arm is doing at a step."""

    APPROACH = 'approach'
    FINE = 'fine'
    GRASP = 'grasp'
    TRANSPORT = 'transport'
    IDLE = 'idle'

    __str__ = str.__str__


def motion_columns(state: StateSpec) -> tuple[list[int], int | None]:
    """Return the columns of the position (else of the joints), and that of the gripper."""
    grippers = [i for i, name in enumerate(state.names) if 'gripper' in name]
    columns: list[int] = []
    for unit in ('m', 'rad'):
        columns = columns or [
            i for i, u in enumerate(state.units) if u == unit and i not in grippers
        ]
    return columns, grippers[0] if grippers else None


def speeds(stamps_ns: NDArray[np.int64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the speed [n] of positions [n, dim] by central differences, one-sided at the ends."""
    if len(positions) < 2:
        return np.zeros(len(positions))
    before = np.maximum(np.arange(len(positions)) - 1, 0)
    after = np.minimum(np.arange(len(positions)) + 1, len(positions) - 1)
    seconds = (stamps_ns[after] - stamps_ns[before]) / 1e9
    return np.linalg.norm(positions[after] - positions[before], axis=1) / seconds


def speed_scale(all_speeds: Sequence[NDArray[np.float64]]) -> float:
    """Return mu: the speed that counts as fast in these recordings."""
    joined = np.concatenate([*all_speeds, np.zeros(0)])
    return float(np.quantile(joined, SCALE_QUANTILE)) if len(joined) else 0.0


def phases_of(
    stamps_ns: NDArray[np.int64],
    speed: NDArray[np.float64],
    scale: float,
    gripper: NDArray[np.float64] | None,
    gripper_range: tuple[float, float],
) -> list[Phase]:
    """
    Return the phase of every step of one episode.

    Args:
        stamps_ns: [n] when each step was observed.
        speed: [n] of the end effector.
        scale: mu, in the unit of `speed`; positive.
        gripper: [n] opening; None: there is no gripper.
        gripper_range: Smallest and largest opening of all recordings.
    """
    low, high = gripper_range
    if gripper is None or high - low < _SMALLEST_RANGE:
        is_grasp = is_closed = np.zeros(len(speed), dtype=bool)
    else:
        is_grasp = _travel_around(stamps_ns, gripper) >= GRASP_SHARE * (high - low)
        is_closed = gripper < (low + high) / 2
    fineness = 1.0 - speed / scale
    kinds = np.where(is_closed, Phase.TRANSPORT.value, Phase.APPROACH.value)
    kinds = np.where(fineness >= FINE_FROM, Phase.FINE.value, kinds)
    kinds = np.where(speed < IDLE_BELOW * scale, Phase.IDLE.value, kinds)
    return [Phase(kind) for kind in np.where(is_grasp, Phase.GRASP.value, kinds)]


def _travel_around(stamps_ns: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray:
    """Return how far values range within the window around each step."""
    half_ns = round(GRASP_WINDOW_S * 1e9 / 2)
    first = np.searchsorted(stamps_ns, stamps_ns - half_ns, side='left')
    last = np.searchsorted(stamps_ns, stamps_ns + half_ns, side='right')
    return np.array([np.ptp(values[a:b]) for a, b in zip(first, last)])
