"""
Errors of known size in the actions of a policy, to see whether and when drift notices them.

They are in the actions alone: whoever answers the same observations a second time has not got
them. A fault of the stored weights would reach a reference that reads the same store.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import unknown_name
from vlaq_ros.kinematics.drift import CLEARLY_APART
from vlaq_ros.kinematics.lie import rotate, so3_exp
from vlaq_ros.policies.base import Policy
from vlaq_ros.types import (
    GRIPPER_NAME,
    POSITION_NAMES,
    ROTATION_NAMES,
    ActionChunk,
    ActionSpec,
    Observation,
)

Change = Callable[[NDArray, ActionSpec], NDArray]


@dataclass(frozen=True)
class Fault:
    """
    One error.

    Attributes:
        name: For options and tables.
        text: What it does, with its size.
        change: Returns the actions [n, dim] with the error; applied to its own result it changes
            as much as it did the first time.
    """

    name: str
    text: str
    change: Change

    def shows(self, wrong: NDArray, spec: ActionSpec) -> bool:
        """
        Return whether actions [n, dim] that have the error differ noticeably from what they were.

        They do not where nothing but the gripper changed, and nowhere by a tenth
        (`kinematics.drift.CLEARLY_APART`): about half open there is nothing to flip.
        """
        change = np.abs(self.change(wrong, spec) - wrong)
        gripper = np.array([name == GRIPPER_NAME for name in spec.names])
        return bool(change[:, ~gripper].any() or (change[:, gripper] >= CLEARLY_APART).any())


def bias(names: tuple[str, ...], sizes: tuple[float, ...]) -> Change:
    """Return what adds a constant to some dimensions of every action."""

    def change(actions: NDArray, spec: ActionSpec) -> NDArray:
        wrong = np.array(actions)
        for column, size in zip(spec.columns(names), sizes):
            wrong[:, column] += size
        return wrong

    return change


def flipped_gripper(actions: NDArray, spec: ActionSpec) -> NDArray:
    """Return the actions with the gripper open where it shall be closed, and the other way."""
    wrong = np.array(actions)
    (column,) = spec.columns((GRIPPER_NAME,))
    wrong[:, column] = 1.0 - wrong[:, column]
    return wrong


def rotated_wrist(angle_rad: float) -> Change:
    """Return what turns all commanded translations about z, as a wrist mounted askew does."""
    quat = so3_exp(np.array([0.0, 0.0, angle_rad]))

    def change(actions: NDArray, spec: ActionSpec) -> NDArray:
        wrong = np.array(actions)
        columns = spec.columns(POSITION_NAMES)
        wrong[:, columns] = rotate(quat, wrong[:, columns])
        return wrong

    return change


FAULTS = {
    fault.name: fault
    for fault in (
        Fault('bias-0.5mm', '0.5 mm per step in x', bias(POSITION_NAMES[:1], (0.0005,))),
        Fault('bias-1mm', '1 mm per step in x', bias(POSITION_NAMES[:1], (0.001,))),
        Fault('bias-2mm', '2 mm per step in x', bias(POSITION_NAMES[:1], (0.002,))),
        Fault('gripper', 'gripper open for closed and closed for open', flipped_gripper),
        Fault(
            'wrist-10deg', 'translations turned by 10 degrees about z', rotated_wrist(np.pi / 18)
        ),
        Fault(
            'wrist-20deg', 'translations turned by 20 degrees about z', rotated_wrist(np.pi / 9)
        ),
    )
}
"""What is injected into closed-loop episodes."""

TURNING = Fault('turn-0.05rad', '0.05 rad per step about z', bias(ROTATION_NAMES[2:], (0.05,)))
"""What is injected into the synthetic stream of actions with rotation."""

ALL_FAULTS = {**FAULTS, TURNING.name: TURNING}


def find_fault(name: str) -> Fault:
    """
    Return the fault of this name.

    Raises:
        ValueError: There is none; the message lists the known names.
    """
    if name not in FAULTS:
        raise ValueError(unknown_name('fault', name, FAULTS))
    return FAULTS[name]


class FaultyPolicy:
    """
    A policy whose chunks are wrong from one inference of the episode on; see `Policy`.

    Args:
        policy: The healthy one.
        fault: What goes wrong; None: nothing.
        onset: Number of the first wrong inference, from 0.
    """

    def __init__(self, policy: Policy, fault: Fault | None = None, onset: int = 0) -> None:
        self.spec = policy.spec
        self._policy = policy
        self._fault = fault
        self._onset = onset
        self._count = 0

    def reset(self) -> None:
        """Begin a new episode, healthy."""
        self._policy.reset()
        self._count = 0

    def infer(self, observation: Observation) -> ActionChunk:
        """Return the chunk of the policy, wrong from the onset on."""
        chunk = self._policy.infer(observation)
        self._count += 1
        if self._fault is None or self._count <= self._onset:
            return chunk
        return replace(chunk, actions=self._fault.change(chunk.actions, chunk.spec))
