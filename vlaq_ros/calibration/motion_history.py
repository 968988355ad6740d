"""
The motion of a recorded arm before a step, read as the running node reads it: sensitivity S.

The node reads S from the steps it commands (`kinematics.motion`). A recording tells what the arm
has done, whoever moved it, and commands of this policy only by chance. So the *measured* motion is
read: positions of the end effector, interpolated on the control clock, whose differences go step
by step through the same tracker. Arms lag, and measured steps are shorter than commanded ones; so
they are divided by a normalizer of their own, the 95th percentile of all steps recorded. S says
how fine motion is compared with that arm's coarse motion, and its boundaries are used with steps
that are commanded and divided by the 95th percentile of those. Reconstruction: DyQ-VLA
(arXiv:2603.07904) does not say which motion thresholds are fitted to.

There is no S within the first steps of an episode or after a longer gap, as in the node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.calibration.phases import motion_columns
from vlaq_ros.kinematics.motion import (
    MIN_TRANSLATION_M,
    NORMALIZER_QUANTILE,
    MotionScale,
    MotionTracker,
)
from vlaq_ros.policies.spec import PolicySpec

MAX_GAP_PERIODS = 4
"""Positions further apart than this are not connected by a line."""


class Track(NamedTuple):
    """Positions [n, 3] [m] of the end effector in one episode, and their stamps [n]."""

    stamps_ns: NDArray[np.int64]
    positions: NDArray[np.float64]


class _Piece(NamedTuple):
    ends_ns: NDArray[np.int64]  # when each step was done
    steps: NDArray[np.float64]  # [n, 6] as `MotionTracker.update` takes them


def position_columns(spec: PolicySpec) -> tuple[list[int], str]:
    """Return the columns x, y, z of the state; or none, and why the motion cannot be read."""
    columns, _ = motion_columns(spec.state)
    if spec.action.has_rotation:
        return [], 'the policy commands rotation, and its state does not tell the orientation'
    if len(columns) != 3 or any(spec.state.units[column] != 'm' for column in columns):
        return [], 'the state of the policy does not tell the position of the end effector'
    return columns, ''


def motion_before(
    tracks: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], spec: PolicySpec
) -> tuple[float | None, list[list[float | None]]]:
    """
    Return the length of a long measured step [m], and S at every step of every track.

    Args:
        tracks: Stamps [n] and states [n, state_dim] of one episode each.
        spec: The policy.

    Returns:
        None where it is not known: see `position_columns`; or the arm stood still.
    """
    nothing: list[list[float | None]] = [[None] * len(stamps_ns) for stamps_ns, _ in tracks]
    columns, _ = position_columns(spec)
    if not columns:
        return None, nothing
    period_ns = spec.action.period_ns
    placed = [Track(stamps_ns, states[:, columns]) for stamps_ns, states in tracks]
    pieces = [_pieces(track, period_ns) for track in placed]
    steps = [piece.steps[:, :3] for several in pieces for piece in several]
    lengths = np.linalg.norm(np.concatenate([np.zeros((0, 3)), *steps]), axis=1)
    step_m = float(np.quantile(lengths, NORMALIZER_QUANTILE)) if len(lengths) else 0.0
    if step_m < MIN_TRANSLATION_M:
        return None, nothing
    scale = MotionScale(step_m, None)
    return step_m, [
        _sensitivities(track.stamps_ns, several, period_ns, scale)
        for track, several in zip(placed, pieces)
    ]


def _sensitivities(
    stamps_ns: NDArray[np.int64], pieces: Sequence[_Piece], period_ns: int, scale: MotionScale
) -> list[float | None]:
    """Return S at every stamp of a track; None where too little motion is known before it."""
    found: list[float | None] = [None] * len(stamps_ns)
    for piece in pieces:
        tracker = MotionTracker(scale)
        readings = [tracker.update(step).sensitivity for step in piece.steps]
        done = np.searchsorted(piece.ends_ns, stamps_ns, side='right')
        first_ns, last_ns = piece.ends_ns[0] - period_ns, piece.ends_ns[-1] + period_ns
        for row, (stamp_ns, count) in enumerate(zip(stamps_ns, done)):
            if first_ns <= stamp_ns < last_ns and count:
                found[row] = readings[count - 1]
    return found


def _pieces(track: Track, period_ns: int) -> list[_Piece]:
    """Return the steps of every stretch without a gap, on the control clock."""
    gaps = np.flatnonzero(np.diff(track.stamps_ns) > MAX_GAP_PERIODS * period_ns) + 1
    pieces = []
    for rows in np.split(np.arange(len(track.stamps_ns)), gaps):
        stamps_ns = track.stamps_ns[rows]
        if not len(rows) or stamps_ns[-1] - stamps_ns[0] < period_ns:
            continue
        ticks_ns = np.arange(stamps_ns[0], stamps_ns[-1] + 1, period_ns)
        since_ns = (stamps_ns - stamps_ns[0]).astype(np.float64)
        places = [
            np.interp((ticks_ns - stamps_ns[0]).astype(np.float64), since_ns, column)
            for column in track.positions[rows].T
        ]
        steps = np.diff(np.stack(places, axis=1), axis=0)
        pieces.append(_Piece(ticks_ns[1:], np.pad(steps, ((0, 0), (0, 3)))))
    return pieces
