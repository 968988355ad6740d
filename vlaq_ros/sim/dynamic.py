"""
A policy whose precision changes during an episode, decided as the node decides.

The controller, the transaction of a change, the motion proxies and the watch of the gripper are
those of the node, called in the order of its lockstep: what was executed, decide, prepare, swap,
infer, judge. Between two inferences simulated time passes; during one it stands still. So nothing
is ever late here: the rule `latency` sees how long inferences really took on this machine and
chooses levels by that, but a late chunk is not played late. A change whose first inference fails
ends the episode instead of going back.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.commands import to_command
from vlaq_ros.control.precision import (
    Decision,
    PrecisionInputs,
    PrecisionLevel,
    Reason,
    SafetyEvent,
    level_names,
)
from vlaq_ros.control.precision_controller import GripperWatch
from vlaq_ros.control.precision_occupancy import Occupancy
from vlaq_ros.control.precision_switch import PrecisionSwitch
from vlaq_ros.control.precision_transaction import PrecisionTransaction
from vlaq_ros.errors import PolicyError
from vlaq_ros.kinematics.motion import MotionTracker
from vlaq_ros.policies.base import MemoryReport, Policy
from vlaq_ros.policies.drift_monitor import DriftMonitor, DriftReading
from vlaq_ros.sim.precision_run import PrecisionRun, counted_run
from vlaq_ros.types import ActionChunk, Observation

LATENCY_WINDOW = 50
LATENCY_QUANTILE = 0.95


class Chooser(Protocol):
    """What decides: a `PrecisionController`, or `RandomLevels`, for its `groups`."""

    groups: Mapping[str, object]

    def reset(self) -> None:
        """Begin a new episode."""

    def decide(
        self, inputs: PrecisionInputs, active: Mapping[str, PrecisionLevel]
    ) -> dict[str, Decision]:
        """Return the decision for every module group it decides for."""


class RandomLevels:
    """
    Levels of another run of the episode in random order: the control for rules that know when.

    Every level is used as often as there, so that both execute the same mean bits; a longer
    episode begins a new order. All groups are ordered alike: they are high together. There is no
    safety floor: what a floor has used is among the levels.
    """

    def __init__(self) -> None:
        self.prepare(None, 0)

    @property
    def groups(self) -> Mapping[str, list[PrecisionLevel]]:
        """The levels of every group, lowest first."""
        return self._levels

    def prepare(self, run: PrecisionRun | None, seed: int) -> None:
        """Use the levels of this run in the next episode; None: stay at the present ones."""
        shares = {} if run is None else run.shares
        self._levels = {
            group: [
                level
                for level in sorted(map(PrecisionLevel.from_name, each))
                for _ in range(round(each[str(level)] * run.inferences))
            ]
            for group, each in shares.items()
        }
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Begin the same order again: an episode repeats."""
        self._rng = np.random.default_rng(self._seed)
        self._order: list[int] = []

    def decide(
        self, inputs: PrecisionInputs, active: Mapping[str, PrecisionLevel]
    ) -> dict[str, Decision]:
        """Return the next level of every group."""
        if not self._levels:
            return {}
        if not self._order:
            self._order = self._rng.permutation(len(next(iter(self._levels.values())))).tolist()
        place = self._order.pop()
        return {
            group: Decision(levels[place], Reason.STATIC, 'in random order')
            for group, levels in self._levels.items()
        }


class MeasuredDrift:
    """
    Drift of every k-th chunk against full precision, with nothing delayed (source `shadow`).

    Args:
        monitor: Measures.
        reference: Full-precision policy that answers the same observations.
        every: Chunks from one comparison to the next, k.
    """

    def __init__(self, monitor: DriftMonitor, reference: Policy, every: int) -> None:
        self._monitor = monitor
        self._reference = reference
        self._every = every
        self._count = 0

    def reset(self) -> None:
        """Begin a new episode; its first chunk is compared."""
        self._monitor.reset()
        self._reference.reset()
        self._count = 0

    def measure(self, chunk: ActionChunk, observation: Observation) -> DriftReading | None:
        """Return the drift of a chunk, None when it is not its turn."""
        self._count += 1
        if (self._count - 1) % self._every:
            return None
        return self._monitor.measured(chunk, self._reference.infer(observation), 'shadow')


class DynamicPolicy:
    """
    See the module; a `Policy` that must be told of every executed action.

    Args:
        policy: Loaded policy with levels.
        chooser: Decides the levels.
        make_tracker: Returns a motion tracker for a new episode.
        drift: Measures drift; None: the rules get none.
        deadline_s: When an inference is late, for the rule `latency` [s]; None: never.
    """

    def __init__(
        self,
        policy: Policy,
        chooser: Chooser,
        make_tracker: Callable[[], MotionTracker],
        drift: MeasuredDrift | None = None,
        deadline_s: float | None = None,
    ) -> None:
        self.spec = policy.spec
        self.head = policy.head
        self.chooser = chooser
        self._policy = policy
        self._make_tracker = make_tracker
        self._drift = drift
        self._deadline_s = deadline_s
        self._latency_s: dict[str, deque[float]] = {}
        self._gripper = GripperWatch()
        self._transaction = PrecisionTransaction(policy.active_levels)
        self._switch = PrecisionSwitch(self._transaction, policy)
        self._forget()

    @property
    def precision(self) -> str:
        """What it runs at now."""
        return self._policy.precision

    def reset(self) -> None:
        """Begin a new episode; measured latencies stay, as in a node."""
        self._policy.reset()
        self.chooser.reset()
        if self._drift is not None:
            self._drift.reset()
        self._forget()

    def executed(self, action: NDArray) -> None:
        """Note one executed action [action_dim], in the units of the spec."""
        command = to_command(action, self.spec.action)
        increment = command.twist * self.spec.action.period_s
        if self._gripper.update(command.gripper):
            self._events.add(SafetyEvent.GRIPPER)
        self._sensitivities.append(self._tracker.update(increment).sensitivity)

    def infer(self, observation: Observation) -> ActionChunk:
        """
        Choose the levels, run the policy, measure drift where it is wanted.

        Raises:
            PolicyError: As `Policy.infer`, or a change of the precision failed.
        """
        now_ns = observation.observed_ns
        active = self._transaction.active
        known = {group: active[group] for group in self.chooser.groups}
        decisions = self.chooser.decide(self._inputs(now_ns), known)
        self._occupancy.record_reasons(decisions)
        self._change(decisions, now_ns)
        self._occupancy.record(now_ns, self._transaction.active)
        error = 'the policy refused'
        try:
            chunk = self._policy.infer(observation)
            error = '' if np.isfinite(chunk.actions).all() else 'actions are not finite'
        finally:
            self._switch.after_inference(now_ns, error)
        if error:
            raise PolicyError(error)
        window = self._latency_s.setdefault(chunk.precision, deque(maxlen=LATENCY_WINDOW))
        window.append(chunk.inference_s)
        if self._drift is not None:
            self._reading = self._drift.measure(chunk, observation)
        return chunk

    def memory(self) -> MemoryReport:
        """Return the storage of the loaded weights."""
        return self._policy.memory()

    def run_so_far(self) -> PrecisionRun | None:
        """Return what the running episode ran at; None before its first inference."""
        return counted_run(self._occupancy, self._policy.executed_weights)

    def _inputs(self, now_ns: int) -> PrecisionInputs:
        """Return what is known since the last decision, and begin to collect anew."""
        known = self._latency_s.get(self._policy.precision)
        drift = None if self._reading is None else self._reading.drift
        inputs = PrecisionInputs(
            now_ns,
            tuple(self._sensitivities),
            drift_m=None if drift is None else drift.position_accumulated_m,
            drift_rad=None if drift is None else drift.rotation_accumulated_rad,
            latency_s=float(np.quantile(known, LATENCY_QUANTILE)) if known else None,
            deadline_s=self._deadline_s,
            events=frozenset(self._events),
        )
        self._sensitivities, self._events, self._reading = [], set(), None
        return inputs

    def _change(self, decisions: Mapping[str, Decision], now_ns: int) -> None:
        wanted = {**self._transaction.active}
        wanted.update({group: decision.level for group, decision in decisions.items()})
        reason = '; '.join(f'{name} {each.detail}' for name, each in decisions.items())
        if self._transaction.request(wanted, reason, now_ns):
            self._switch.prepare(now_ns)
        if not self._switch.before_inference(now_ns) or self._transaction.active != wanted:
            why = self._transaction.history[-1].reason
            self._switch.after_inference(now_ns)
            raise PolicyError(f'precision {level_names(wanted)} was not reached: {why}')

    def _forget(self) -> None:
        self._occupancy = Occupancy()
        self._tracker = self._make_tracker()
        self._gripper.reset()
        self._sensitivities: list[float | None] = []
        self._events: set[SafetyEvent] = set()
        self._reading: DriftReading | None = None
