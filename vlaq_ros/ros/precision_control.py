"""
Precision that changes while the policy runs: decided before an inference, swapped between two.

Decisions are taken on the executor thread from what was commanded. A change is prepared on a
thread of its own, beside inference and commands; in lockstep right before the inference, so that
the same start gives the same changes. The first inference after the swap judges it. When it
fails, the levels from before are in force again and answer the same observation, so that a change
that does not work costs no chunk. No rclpy, as in `control_loop`.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.precision import (
    PrecisionInputs,
    PrecisionLevel,
    Reason,
    SafetyEvent,
    level_names,
)
from vlaq_ros.control.precision_account import NO_REQUESTS, Account, Outcome
from vlaq_ros.control.precision_controller import PrecisionController
from vlaq_ros.control.precision_switch import PrecisionSwitch
from vlaq_ros.control.precision_transaction import PrecisionTransaction, Stage
from vlaq_ros.errors import ConfigError, PolicyError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.drift_monitor import DriftReading
from vlaq_ros.ros.commanded_motion import CommandedMotion
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.ros.precision_report import PrecisionRecord, PrecisionReport
from vlaq_ros.ros.precision_rules import motion_scale, rules_of, unavailable
from vlaq_ros.ros.worker import Worker
from vlaq_ros.types import ActionChunk, Observation

AUTO = 'auto'
"""As a level of ~/set_precision: as the rules decide."""


class PrecisionControl:
    """
    Decides, changes and reports the precision of one policy.

    Args:
        policy: Loaded policy.
        config: Parameters of the node; they were checked with `precision_rules`.
        wake: Called when a change was prepared, on another thread; it must not block.
        steady: Returns seconds of a clock that never stops or jumps.

    Attributes:
        since_ns: When the last change ended, on the control clock.
    """

    def __init__(
        self,
        policy: Policy,
        config: PolicyParameters,
        wake: Callable[[], None],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._config = config
        self._steady = steady
        self._is_lockstep = config.lockstep
        spec = policy.spec
        horizon = min(config.execution_horizon or spec.execution_horizon, spec.horizon)
        self._spare_s = max(spec.horizon - horizon, 1) * spec.action.period_s
        self._record = PrecisionRecord()
        self._switch: PrecisionSwitch | None = None
        self._preparing: Worker[int, bool] | None = None
        self._pinned: dict[str, PrecisionLevel] = {}
        self._below_floor: dict[str, PrecisionLevel] | None = None
        self._requested = dict(policy.active_levels)
        self._last_sequence = self._left_to_automatic = 0
        self._reason, self.since_ns = 'configured', 0
        self._motion = CommandedMotion(motion_scale(config.dynamic_precision, policy))
        self._controller = self._make_controller()
        if policy.levels:
            self._switch = PrecisionSwitch(PrecisionTransaction(policy.active_levels), policy)
            if not self._is_lockstep:
                self._preparing = Worker(self._switch.prepare, wake, 'precision')

    @property
    def fault(self) -> str:
        """Why nobody knows which precision the policy has; empty: it is known."""
        if self._switch is None or self._switch.transaction.active is not None:
            return ''
        why = self._switch.transaction.history[-1].reason
        return f'the precision of the policy is unknown: {why}; clean up and configure again'

    @property
    def phase(self) -> str:
        """Phase of the motion before the inference that was asked for last."""
        return self._motion.phase

    def close(self) -> None:
        """End the thread that prepares."""
        if self._preparing is not None:
            self._preparing.close(timeout_s=5.0)

    def apply(self, config: PolicyParameters) -> None:
        """Decide by these parameters from now on; what the rules remembered is forgotten."""
        before, self._config = self._config, config
        is_same = before.dynamic_precision == config.dynamic_precision
        by_drift = config.dynamic_precision.policy == 'drift'
        if is_same and not (by_drift and before.drift != config.drift):
            return
        self._motion.rescale(motion_scale(config.dynamic_precision, self._policy))
        self._controller = self._make_controller()

    # --- what the arm does, on the executor thread

    def executed(
        self, increment: NDArray, gripper: float | None, row: tuple[int, int], *, resumed: bool
    ) -> None:
        """Note what was commanded; see `CommandedMotion.executed`."""
        self._motion.executed(increment, gripper, row, resumed=resumed)

    def stopped(self) -> None:
        """Note that the arm was stopped while it moved: it recovers at full precision."""
        self._motion.stopped()

    def new_epoch(self, now_ns: int) -> None:
        """Begin a new episode."""
        self._record.pause(now_ns)
        self._motion.new_epoch()
        if self._controller is not None:
            self._controller.reset()

    # --- changes

    def decide(self, now_ns: int, drift: DriftReading | None = None, floor: str = '') -> None:
        """
        Choose the levels of the inference that is asked for now, on the executor thread.

        Args:
            now_ns: On the control clock.
            drift: A reading that no decision has seen yet; it counts for the level it is about.
            floor: Why every group shall run at its highest level; empty: as the rules decide.
        """
        commanded = self._motion.take()
        if self._switch is None or (active := self._switch.transaction.active) is None:
            return
        decisions = {}
        if self._controller is not None:
            is_about_now = drift is not None and drift.precision == self._policy.precision
            inputs = PrecisionInputs(
                now_ns,
                commanded.sensitivities,
                drift_m=drift.drift.position_accumulated_m if is_about_now else None,
                drift_rad=drift.drift.rotation_accumulated_rad if is_about_now else None,
                latency_s=self._record.slow_s(self._policy.precision),
                deadline_s=self._config.dynamic_precision.deadline_s or self._spare_s,
                events=commanded.events,
            )
            groups = self._controller.groups
            decisions = self._controller.decide(inputs, {name: active[name] for name in groups})
        if floor:
            self._raise_all(active, floor, now_ns)
            return
        wanted, reasons = {**active, **(self._below_floor or {}), **self._pinned}, []
        if self._below_floor is not None:
            self._below_floor = None
            reasons.append('no drift alarm any more')
        elif not decisions:
            return
        for name, decision in decisions.items():
            if name not in self._pinned or decision.reason.value in set(SafetyEvent):
                wanted[name] = decision.level
                reasons.append(f'{name} {decision.reason}: {decision.detail}')
        self._request(wanted, '; '.join(reasons) or '~/set_precision', now_ns)

    def _raise_all(self, active: Mapping[str, PrecisionLevel], why: str, now_ns: int) -> None:
        """Run at the top, of the rules where they choose, until there is no floor any more."""
        if self._below_floor is None:
            self._below_floor = dict(self._requested)
        top = {name: max(each) for name, each in self._policy.levels.items()}
        if self._controller is not None:
            top |= self._controller.top
        self._request({**active, **top}, f'{Reason.DRIFT_ALARM}: {why}', now_ns)

    def set_levels(self, level: str, groups: Mapping[str, str], now_ns: int) -> tuple[bool, str]:
        """
        Ask for levels by name until others are asked for; `auto` leaves them to the rules again.

        Args:
            level: For every group; empty: see `groups`.
            groups: Level by module group, where `level` is empty.
            now_ns: On the control clock.

        Every call that is accepted counts as one request in `report().account`.

        Returns:
            Whether it is accepted, and what happens now or why not.
        """
        if bool(level) == bool(groups):
            return False, 'refused: give either a level, or groups with one level each'
        if self._switch is None or self.fault:
            why = self.fault or f'{self._policy.precision} is fixed: {self._policy.level_limits}'
            return False, f'refused: {why}'
        names = dict.fromkeys(self._policy.levels, level) if level else dict(groups)
        pinned, problems = dict(self._pinned), []
        for group, name in names.items():
            if name == AUTO and group in self._policy.levels:
                pinned.pop(group, None)
                continue
            try:
                pinned[group] = PrecisionLevel.from_name(name)
                if pinned[group] not in self._policy.levels.get(group, ()):
                    problems.append(unavailable(self._policy, group, pinned[group]))
            except ConfigError as error:
                problems.append(f'{group}: {error}')
        if problems:
            return False, '\n'.join(('refused:', *problems))
        self._pinned = pinned
        if set(names.values()) == {AUTO} and self._controller is None:
            self._left_to_automatic += 1
            return True, "nothing changes: 'dynamic_precision.policy' is static"
        if self._below_floor is not None:
            self._below_floor |= pinned
            self._left_to_automatic += 1
            return True, 'accepted, in force when drift is OK again'
        wanted = {**self._requested, **pinned}
        text = level_names(wanted)
        if not self._request(wanted, '~/set_precision', now_ns):
            return True, f'{text}: in force or under way already, or it failed just now'
        return True, f'{text}: under way, in force from the next inference that finds it prepared'

    def infer(self, observation: Observation, now_ns: int) -> ActionChunk:
        """
        Swap what is due and run the policy, on the inference thread.

        Raises:
            PolicyError: As `Policy.infer`, or nobody knows which precision the policy has.
        """
        if self._switch is None:
            return self._policy.infer(observation)
        if self._is_lockstep:
            self._switch.prepare(self._switch_ns(now_ns))
        while True:
            if not self._switch.before_inference(self._switch_ns(now_ns)):
                raise PolicyError(self.fault)
            change = self._switch.transaction.change
            is_fresh = change is not None and change.stage is Stage.SWAPPED
            error = ''
            self._record.inferring(now_ns, self._switch.transaction.active)
            try:
                chunk = self._policy.infer(observation)
                if is_fresh and not np.isfinite(chunk.actions).all():
                    error = 'actions are not finite'
                    continue
                return chunk
            except Exception as raised:
                error = str(raised) or type(raised).__name__
                if not is_fresh:
                    raise
            finally:
                self._switch.after_inference(self._switch_ns(now_ns), error)

    def collect(self, now_ns: int) -> bool:
        """Take over what has become of changes; return whether anything has."""
        if self._switch is None:
            return False
        finished = [
            one for one in self._switch.transaction.history if one.sequence > self._last_sequence
        ]
        for change in finished:
            self._last_sequence = change.sequence
            self.since_ns, self._reason = now_ns, change.reason
            if change.stage is not Stage.CONFIRMED:
                self._reason = f'{level_names(change.levels)} {change.stage}: {change.reason}'
        if self._preparing is not None:
            self._preparing.collect()
            waiting = self._switch.transaction.change  # one that waited behind the finished one
            if finished and waiting is not None and waiting.stage is Stage.REQUESTED:
                self._preparing.submit(self._switch_ns(now_ns))
        return bool(finished)

    def measured(self, chunk: ActionChunk) -> None:
        """Note how long an inference took."""
        self._record.measured(chunk)

    def report(self) -> PrecisionReport:
        """Return what has happened so far."""
        counts = {} if self._switch is None else self._switch.transaction.counts
        inferences, times = self._record.shares(self._policy.levels)
        return PrecisionReport(
            requested=self._name_of(self._requested),
            reason=self._reason,
            since_ns=self.since_ns,
            changes=counts.get(Stage.CONFIRMED, 0),
            rolled_back=counts.get(Stage.ROLLED_BACK, 0) + counts.get(Stage.FAILED, 0),
            share_of_inferences=inferences,
            share_of_time=times,
            latency_s=self._record.median_s(),
            account=self._account(),
        )

    def _make_controller(self) -> PrecisionController | None:
        config = self._config
        rules = rules_of(config.dynamic_precision, self._policy, config.drift)
        return None if rules is None else rules.controller()

    def _account(self) -> Account:
        known = NO_REQUESTS if self._switch is None else self._switch.transaction.account
        left = self._left_to_automatic
        outcomes = {**known.outcomes, Outcome.AUTOMATIC: left}
        return Account(known.requests + left, known.under_way, outcomes)

    def _request(self, wanted: dict[str, PrecisionLevel], reason: str, now_ns: int) -> bool:
        self._requested = wanted
        steady_ns = self._switch_ns(now_ns)
        is_new = self._switch.transaction.request(wanted, reason, steady_ns)
        if is_new and self._preparing is not None:
            self._preparing.submit(steady_ns)
        return is_new

    def _switch_ns(self, now_ns: int) -> int:
        """Return steady time; in lockstep that of the control clock, which nothing disturbs."""
        return now_ns if self._is_lockstep else round(self._steady() * 1e9)

    def _name_of(self, levels: Mapping[str, PrecisionLevel]) -> str:
        if levels == dict(self._policy.active_levels):
            return self._policy.precision
        names = {str(level) for level in levels.values()}
        return names.pop() if len(names) == 1 else level_names(levels)
