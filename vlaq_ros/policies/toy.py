"""
A tiny deterministic policy for tests and dry runs: no network, no weights worth the name.

Its actions are a fixed smooth function of the mean brightness of each camera, the state and the
words, so every input matters and every result can be computed by hand.
"""

import copy
import time
import zlib
from collections.abc import Mapping

import numpy as np

from vlaq_ros.control.precision import GROUPS, PrecisionLevel
from vlaq_ros.errors import PolicyError
from vlaq_ros.nn.precision import Precision
from vlaq_ros.policies.base import MemoryReport, SelfTestReport
from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.policies.precision import FLOAT_PRECISIONS, NESTED, QUANTIZED_PRECISIONS, SCHEMES
from vlaq_ros.policies.self_test import run_self_test
from vlaq_ros.policies.spec import CameraSpec, PolicySpec, PromptSpec, StateSpec
from vlaq_ros.policies.switching import FLOAT_WEIGHTS, ONE_VIEW, ONLY_4, LevelSwitch
from vlaq_ros.policies.validation import check_observation
from vlaq_ros.types import ActionChunk, ActionSpec, Observation


class ToyPolicy:
    """See the module. Precision only rounds the actions: 8-bit weights to 1/255 of their range."""

    def __init__(self, spec: PolicySpec, precision: str = 'fp32', head: str = 'flow') -> None:
        self.spec = spec
        self.precisions = (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)
        self.head = head
        self.measured_levels = None
        self._low = np.array(spec.action.low)
        self._span = np.array(spec.action.high) - self._low
        self._switch = _level_switch(precision)

    @property
    def precision(self) -> str:
        """Name of what it runs at; see `Policy.precision`."""
        return self._switch.name

    @property
    def levels(self) -> Mapping[str, tuple[PrecisionLevel, ...]]:
        """What every module group can be switched to."""
        return self._switch.levels

    @property
    def active_levels(self) -> Mapping[str, PrecisionLevel]:
        """The level of every module group now."""
        return self._switch.active

    @property
    def level_limits(self) -> str:
        """Why there are no other levels."""
        return self._switch.limits

    @property
    def executed_weights(self) -> Mapping[str, Mapping[int, int]]:
        """One of 8 bits for every group, so that shares of precision can be computed by hand."""
        return {group: {8: 1} for group in self.levels}

    def prepare_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Refuse levels that do not exist; see `Policy.prepare_precision`."""
        self._switch.prepare(levels)

    def apply_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Switch; see `Policy.apply_precision`."""
        self._switch.apply(levels)

    def reset(self) -> None:
        """Do nothing: no memory."""

    def twin(self) -> 'ToyPolicy':
        """Return the same formula with levels of its own."""
        twin = copy.copy(self)
        twin._switch = copy.deepcopy(self._switch)
        return twin

    def check_instruction(self, instruction: str) -> None:
        """Accept every sentence that is not empty: it only seeds the formula."""
        if not instruction.strip():
            raise PolicyError('the instruction is empty')

    def infer(self, observation: Observation) -> ActionChunk:
        """Return the chunk; see `Policy.infer`."""
        started = time.perf_counter()
        check_observation(observation, self.spec)
        self.check_instruction(observation.instruction)
        words = zlib.crc32(observation.instruction.encode()) / 2**32
        brightness = np.mean([image.mean() / 255.0 for image in observation.images.values()])
        phase = 2 * np.pi * words + 2.0 * brightness + observation.state.sum()
        steps = np.arange(self.spec.horizon)[:, None] / self.spec.horizon
        share = 0.5 + 0.4 * np.sin(phase + steps + np.arange(self.spec.action.dim))
        if self.active_levels:
            steps = 2 ** self.active_levels['expert'].weight_bits - 1
            share = np.round(share * steps) / steps
        actions = self._low + self._span * share
        if not np.isfinite(actions).all():
            raise PolicyError('toy policy: actions are not finite')
        return ActionChunk(
            actions,
            self.spec.action,
            observation.observed_ns,
            observation.instruction,
            self.precision,
            self.head,
            stage_s={'inference': time.perf_counter() - started},
        )

    def self_test(self) -> SelfTestReport:
        """Run the checks every policy runs; no golden actions."""
        first, last = self.spec.prompt.vocabulary[2], self.spec.prompt.vocabulary[-1]
        return run_self_test(self, (first, last), golden=None)

    def memory(self) -> MemoryReport:
        """Return zeros: there are no weights."""
        return MemoryReport(0, 0, 0, 0, '')


def _level_switch(name: str) -> LevelSwitch:
    if name not in SCHEMES:
        return LevelSwitch({}, {}, name, FLOAT_WEIGHTS)
    scheme = SCHEMES[name]
    precisions = {group: Precision(scheme.widths, scheme.activation_bits) for group in GROUPS}
    widths, limits = {4: ((4,), ONLY_4), 8: ((8,), ONE_VIEW)}[scheme.widths]
    if name == NESTED:
        widths, limits = (4, 8), ''
    return LevelSwitch(precisions, dict.fromkeys(GROUPS, widths), name, limits)


def load(bundle: Bundle, precision: str, head: str, threads: int | None) -> ToyPolicy:
    """Build the policy; its weights file is not read."""
    return ToyPolicy(bundle.spec, precision, head)


def toy_spec() -> PolicySpec:
    """Return the spec of the shipped toy bundle: that of the simulated robot."""
    return PolicySpec(
        family='toy',
        name='toy',
        cameras=(CameraSpec('front', 96, 96), CameraSpec('wrist', 64, 64)),
        state=StateSpec(
            ('hand_x', 'hand_y', 'hand_z', 'gripper_opening'),
            ('m', 'm', 'm', '1'),
            (0.0, 0.6, 0.2, 0.5),
            (0.1, 0.1, 0.1, 0.3),
        ),
        prompt=PromptSpec(
            ('<pad>', '<unk>', 'reach', 'the', 'goal', 'open', 'drawer', 'wait'), 14
        ),
        action=ActionSpec(
            names=('ee_x', 'ee_y', 'ee_z', 'gripper'),
            units=('m', 'm', 'm', '1'),
            frame='base',
            delta=True,
            period_ns=25_000_000,
            low=(-0.02, -0.02, -0.02, 0.0),
            high=(0.02, 0.02, 0.02, 1.0),
        ),
        action_mean=(0.0, 0.0, 0.0, 0.5),
        action_std=(0.01, 0.01, 0.01, 0.5),
        horizon=8,
        execution_horizon=6,
        heads=('flow', 'token'),
        sampler_steps=5,
        license='Apache-2.0',
        provenance={'weights': 'none: the toy policy is a formula'},
    )
