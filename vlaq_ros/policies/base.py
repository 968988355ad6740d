"""
The protocol every policy family fulfils, and the small values it answers with.

`infer` is called from one thread at a time and never from a ROS callback. It returns physical
units or raises `PolicyError`; it never returns a guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.policies.levels import BundleLevels
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.types import ActionChunk, Observation


@dataclass(frozen=True)
class SelfTestReport:
    """
    Whether the loaded policy behaves like a policy.

    Attributes:
        checks: (name, passed, detail) of each check that ran.
    """

    checks: tuple[tuple[str, bool, str], ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(passed for _, passed, _ in self.checks)

    def failures(self) -> str:
        """Return one line per failed check."""
        return '\n'.join(f'{name}: {detail}' for name, passed, detail in self.checks if not passed)


@dataclass(frozen=True)
class MemoryReport:
    """
    Storage of a loaded policy, from the real tensors.

    Attributes:
        weight_bytes: All parameters and buffers.
        quantized_bytes: The packed layers alone: codes, scales and zero points.
        quantized_weights: Number of weights held in packed layers.
        quantized_layers: Number of packed layers.
        kernel: Kernel that multiplies them, with the reason it was chosen; empty when none.
        activation_bits: Mean width of the inputs of the packed layers, by their weights; 0 when
            nothing is packed.
    """

    weight_bytes: int
    quantized_bytes: int
    quantized_weights: int
    quantized_layers: int
    kernel: str
    activation_bits: float = 0.0

    @property
    def mean_bits_per_weight(self) -> float:
        """Bits per quantized weight, scales included; NaN when nothing is quantized."""
        if not self.quantized_weights:
            return math.nan
        return 8.0 * self.quantized_bytes / self.quantized_weights


class Policy(Protocol):
    """
    A loaded policy.

    Attributes:
        spec: What it expects and delivers.
        precision: What it runs at: one of `precisions`, or after a switch the levels.
        precisions: What its bundle can be loaded at, the default first.
        head: Action head.
        levels: What every module group can be switched to while loaded, lowest first; empty where
            the precision is fixed.
        active_levels: The level of each of these groups now.
        level_limits: Why there are no other levels, for refusals; empty when nothing is missing.
        executed_weights: Quantized weights that an inference with this head reads, by module group
            and stored width.
        measured_levels: What a calibration has stored about its levels; None: nothing.
    """

    spec: PolicySpec
    precision: str
    precisions: tuple[str, ...]
    head: str
    levels: Mapping[str, tuple[PrecisionLevel, ...]]
    active_levels: Mapping[str, PrecisionLevel]
    level_limits: str
    executed_weights: Mapping[str, Mapping[int, int]]
    measured_levels: BundleLevels | None

    def reset(self) -> None:
        """Forget everything remembered from earlier observations."""

    def check_instruction(self, instruction: str) -> None:
        """
        Return when the policy can read this sentence. Pure and quick; callable from any thread.

        Raises:
            PolicyError: The sentence is empty, too long, or has words the policy does not know.
        """

    def infer(self, observation: Observation) -> ActionChunk:
        """
        Return the action chunk for one observation.

        Raises:
            PolicyError: A camera is missing or has the wrong shape, the state has the wrong size
                or is not finite, the instruction is empty or too long, or the output is not
                finite.
        """

    def prepare_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """
        Do everything slow before a switch; may run beside `infer` and does not disturb it.

        Raises:
            PolicyError: Groups or levels that this policy has not got; all are listed.
        """

    def apply_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """
        Run at these levels from now on; between two inferences. Loads and allocates nothing.

        Raises:
            PolicyError: As `prepare_precision`; nothing is changed.
        """

    def twin(self) -> 'Policy':
        """
        Return this policy a second time: the same weights, byte for byte the same memory.

        Levels and whatever is remembered between observations are its own. Both may run at the
        same time on different threads, each at its level.
        """

    def self_test(self) -> SelfTestReport:
        """Check golden actions, image and instruction sensitivity, and finiteness."""

    def memory(self) -> MemoryReport:
        """Return the storage of the loaded weights."""
