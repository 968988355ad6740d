"""
The policy node: images and a sentence in, commands for the arm out.

Subscriptions store, the tick decides, a worker infers; see `control_loop`. This file holds the
lifecycle, the services and what is announced. Everything is stopped before it is taken apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from std_srvs.srv import Trigger

from vlaq_ros.control.drift_alarm import DriftLevel
from vlaq_ros.control.supervisor import ControlState
from vlaq_ros.errors import ConfigError, PolicyError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import diagnostics, drift_setup, policy_status, qos
from vlaq_ros.ros.control_loop import ControlLoop
from vlaq_ros.ros.conversions import precision_message, switchable
from vlaq_ros.ros.drift_control import DriftParts
from vlaq_ros.ros.drift_sources import ReferenceSource
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.ros.interfaces import PrecisionState, SetPrecision
from vlaq_ros.ros.lifecycle import ManagedNode, run_node
from vlaq_ros.ros.lockstep import LockstepLoop
from vlaq_ros.ros.outputs import Outputs
from vlaq_ros.ros.parameters import NodeParameters
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.ros.precision_rules import mismatches
from vlaq_ros.ros.remote_reference import RemoteReference

_WATCH_PERIOD_S = 0.05
_FLUSH_S = 0.2


class PolicyNode(ManagedNode):
    """
    See the module docstring; topics, services and parameters are in the README.

    Args:
        load_policy: Loads a bundle; see `registry.load_policy`.
        digest: Returns the sha256 that identifies a bundle.
        origin: Returns the digest of the float bundle that a packed one was made of, else None.
        options: Of `rclpy.node.Node`.
    """

    def __init__(
        self,
        *,
        load_policy: Callable[..., Policy] = load_policy,
        digest: Callable[[str], str] = lambda bundle: open_bundle(bundle).digest,
        origin: Callable[[str], str | None] = lambda bundle: open_bundle(bundle).origin,
        **options: Any,
    ) -> None:
        super().__init__('policy', **options)
        self._load_policy = load_policy
        self._digest = digest
        self._origin = origin
        self._config: PolicyParameters | None = None
        self._policy: Policy | None = None
        self._inputs: Inputs | None = None
        self._outputs: Outputs | None = None
        self._loop: ControlLoop | None = None
        self._bundle_hash = ''
        self._self_test: tuple[bool | None, str] = (None, 'not run')
        self._timers_while_active: list = []
        self._commands_before = 0
        self._told_drift = DriftLevel.OK
        self._epoch = self._sequence = 0  # of the last loop: they grow as long as the node lives
        self._settings = NodeParameters(
            self,
            PolicyParameters,
            is_configured=lambda: self._loop is not None,
            check=self._mismatches,
            apply=lambda config: self._loop.apply(config),
        )
        for sentence in self._settings.unknown_overrides():
            self.get_logger().warning(sentence)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._wake = self.create_guard_condition(self._on_inference_done)
        self._status = policy_status.StatusAnnouncer(self)
        self._precision_pub = self.create_publisher(PrecisionState, '~/precision', qos.LATCHED)
        self._diagnostics_pub = self.create_publisher(
            DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS
        )
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(Trigger, '~/self_test', self._on_self_test)
        self.create_service(SetPrecision, '~/set_precision', self._on_set_precision)
        self.create_timer(1.0, self._on_diagnostics_timer)
        backward = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        self._jumps = self.get_clock().create_jump_callback(backward, post_callback=self._on_jump)
        if self.get_parameter('autostart').value:
            self._autostart = self.create_timer(0.0, self._on_autostart, clock=self._steady)
        self._announce()

    # --- lifecycle

    def set_up(self) -> None:
        """Read the parameters, load and test the policy, connect."""
        config = self._settings.read()
        if config.lockstep and not self.get_parameter('use_sim_time').value:
            raise ConfigError(
                "parameter 'lockstep' = True needs 'use_sim_time' = True: only a simulator waits "
                'for the answer'
            )
        self._bundle_hash = self._digest(config.bundle)
        self._policy = policy = self._load_policy(
            config.bundle,
            precision=config.precision,
            head=config.head or None,
            threads=config.threads or None,
        )
        problems = self._mismatches(config)
        if problems:
            raise ConfigError('\n'.join(problems))
        self._test_policy(is_required=config.self_test)
        drift = self._drift_parts(config)
        loop_type = LockstepLoop if config.lockstep else ControlLoop
        self._config = config
        on_stored = self._on_stored if config.lockstep else lambda: None
        self._inputs = Inputs(self, policy.spec, config, on_stored, self._on_instruction)
        self._outputs = Outputs(self, config)
        self._loop = loop_type(
            policy,
            config,
            self._inputs,
            self._outputs,
            self._wake.trigger,
            is_simulated_time=self.get_parameter('use_sim_time').value,
            epoch=self._epoch,
            sequence=self._sequence,
            drift=drift,
        )
        self._loop.supervisor.since_ns = self._now_ns()
        self._commands_before = 0
        self._loop.precision.since_ns = self._now_ns()
        self._announce_precision()
        self.get_logger().info(
            f'configured: bundle {policy.spec.name!r} ({self._bundle_hash[:12]}), precision '
            f'{policy.precision}, head {policy.head!r}, drift source {config.drift.source}; '
            f'{self._self_test[1]}'
        )
        self._announce()

    def start(self) -> None:
        """Begin to act on the tick."""
        self._loop.activate(self._now_ns())
        period_s = 1.0 / self._config.command.rate_hz
        self._timers_while_active = [
            self.create_timer(period_s, self._on_tick),
            self.create_timer(_WATCH_PERIOD_S, self._on_watch, clock=self._steady),
        ]
        self._announce()

    def halt(self, reason: str) -> None:
        """Send the stop command as the last one."""
        for timer in self._timers_while_active:
            self.destroy_timer(timer)
        self._timers_while_active = []
        if self._loop is not None:
            self._loop.deactivate(reason, self._now_ns())
            self._outputs.flush(_FLUSH_S)
        self._announce()

    def tear_down(self) -> None:
        """Release the policy and disconnect."""
        if self._loop is not None:
            self._epoch, self._sequence = self._loop.epoch, self._loop.sequence
        for part in (self._loop, self._inputs, self._outputs):
            if part is not None:
                part.close()
        self._loop = self._inputs = self._outputs = self._policy = self._config = None
        self._told_drift = DriftLevel.OK
        self._bundle_hash = ''
        self._announce()

    def destroy_node(self) -> None:
        """Stop listening to the clock, then destroy the node."""
        self._jumps.unregister()
        if self._loop is not None:
            self._loop.close()
        super().destroy_node()

    # --- callbacks

    def _on_autostart(self) -> None:
        self.destroy_timer(self._autostart)
        self.bring_up()

    def _on_stored(self) -> None:
        if self._loop is not None:
            self._loop.stored()
            self._announce()

    def _on_instruction(self) -> None:
        if self._loop is not None:
            self._loop.instruction_changed(self._now_ns())
        self._announce()

    def _on_inference_done(self) -> None:
        if self._loop is not None:
            self._loop.collect(self._now_ns())
            self._announce()

    def _on_tick(self) -> None:
        if self._loop is not None:
            self._loop.tick(self._now_ns())
            self._announce()

    def _on_watch(self) -> None:
        if self._loop is None:
            return
        now_ns = self._now_ns()
        if now_ns == 0 and self.get_parameter('use_sim_time').value:
            self._loop.hold('no time received on /clock (use_sim_time is true)', now_ns)
        else:
            self._loop.watch(now_ns)
        self._announce()

    def _on_jump(self, jump: TimeJump) -> None:
        if self._loop is None:
            return
        self.get_logger().warning(
            f'the clock jumped by {jump.delta.nanoseconds / 1e9:.3f} s: '
            'inputs and chunk are forgotten'
        )
        self._loop.clock_went_back(self._now_ns())
        self._announce()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._loop is None:
            response.message = f'nothing to reset: the node is {self.lifecycle}'
            return response
        self._loop.reset(self._now_ns())
        self._announce()
        response.success = True
        response.message = f'epoch {self._loop.epoch}'
        return response

    def _on_self_test(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        if self.lifecycle == 'inactive' and self._loop.is_inferring:
            response.message = (
                'refused while the last inference still runs: call again when it has ended'
            )
        elif self.lifecycle == 'inactive':
            self._test_policy(is_required=False)
            response.success = bool(self._self_test[0])
            response.message = self._self_test[1]
        elif self.lifecycle == 'active':
            response.message = (
                f'refused while active: deactivate first. The last result: {self._self_test[1]}'
            )
        else:
            response.message = f'no policy is loaded: the node is {self.lifecycle}'
        return response

    def _on_set_precision(
        self, request: SetPrecision.Request, response: SetPrecision.Response
    ) -> SetPrecision.Response:
        if self._loop is None:
            response.message = f'refused: no policy is loaded: the node is {self.lifecycle}'
            return response
        response.available = switchable(self._policy)
        if len(request.groups) != len(request.levels):
            response.message = (
                f'refused: {len(request.groups)} groups have {len(request.levels)} levels'
            )
            return response
        groups = dict(zip(request.groups, request.levels))
        response.accepted, response.message = self._loop.precision.set_levels(
            request.level, groups, self._now_ns()
        )
        return response

    def _on_diagnostics_timer(self) -> None:
        now_ns = self._now_ns()
        statuses = [diagnostics.control(self.lifecycle, self.failure, self._loop)]
        if self._loop is not None:
            statuses += self._policy_diagnostics(now_ns)
            if self._policy.levels and self.lifecycle == 'active':
                self._announce_precision()
        self._publish_diagnostics(statuses, now_ns)
        self._announce()

    # --- what is announced

    def _policy_diagnostics(self, now_ns: int) -> list:
        inputs, outputs, loop, policy = self._inputs, self._outputs, self._loop, self._policy
        rate_hz = outputs.sent - self._commands_before  # this runs once a second
        self._commands_before = outputs.sent
        publishers = {stream: self.count_publishers(t) for stream, t in inputs.topics.items()}
        is_running = loop.supervisor.state is ControlState.RUNNING
        memory = policy.memory()
        return [
            diagnostics.image_age(inputs, self._config, now_ns, publishers),
            diagnostics.instruction(inputs),
            diagnostics.latency(loop, policy.spec.action.period_s),
            diagnostics.command_rate(outputs, self._config, rate_hz, is_running),
            diagnostics.memory(memory),
            diagnostics.precision(policy, memory.kernel, loop.precision),
            diagnostics.drift(loop.drift, now_ns),
            diagnostics.self_test(*self._self_test),
            diagnostics.qos({**inputs.unmatched, **outputs.unmatched}),
        ]

    def _announce(self) -> None:
        if self._loop is None:
            reason = self.failure or self.lifecycle
            msg = policy_status.unloaded(reason, self._epoch, self._sequence, self._now_ns())
        else:
            name = self._policy.spec.name
            msg = policy_status.loaded(self._loop, self._inputs, name, self._bundle_hash)
            if self._loop.precision.collect(self._now_ns()):
                self._announce_precision()
            self._announce_drift()
        self._status.announce(msg)

    def _announce_drift(self) -> None:
        """Tell a level at once that may be over before the diagnostics of the next second."""
        control = self._loop.drift
        level = DriftLevel.OK if control.last is None else control.last.level
        if level is not self._told_drift:
            self._told_drift, now_ns = level, self._now_ns()
            self._publish_diagnostics([diagnostics.drift(control, now_ns)], now_ns)

    def _publish_diagnostics(self, statuses: Sequence[DiagnosticStatus], now_ns: int) -> None:
        name = self.get_fully_qualified_name().lstrip('/')
        hardware_id = f'{self._policy.spec.name} {self._bundle_hash[:12]}' if self._policy else ''
        self._diagnostics_pub.publish(diagnostics.array(name, hardware_id, now_ns, statuses))

    def _announce_precision(self) -> None:
        report = self._loop.precision.report()
        self._precision_pub.publish(precision_message(self._policy, report))

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _mismatches(self, config: PolicyParameters) -> list[str]:
        if self._policy is None:
            return []
        found = config.mismatches(self._policy.spec)
        found = [*found, *drift_setup.mismatches(config.drift, self._policy)]
        return [*found, *mismatches(config.dynamic_precision, self._policy, config.drift)]

    def _drift_parts(self, config: PolicyParameters) -> DriftParts:
        setup = drift_setup.DriftSetup(
            self._load_policy,
            self._digest,
            self._origin,
            self._remote_reference,
            self._wake.trigger,
        )
        return setup.make(self._policy, config)

    def _remote_reference(self, policy: Policy, config: PolicyParameters) -> ReferenceSource:
        command, frame = config.command, policy.spec.action.frame
        return RemoteReference(
            self,
            policy.spec,
            bundle_hash=self._origin(config.bundle) or self._bundle_hash,
            remote_node=config.drift.remote_node,
            timeout_s=config.drift.remote_timeout_s,
            frame_id=command.base_frame if frame == 'base' else command.tool_frame,
            wake=self._wake.trigger,
        )

    def _test_policy(self, *, is_required: bool) -> None:
        if not is_required and self.lifecycle == 'unconfigured':
            self._self_test = (None, 'self-test switched off')
            return
        report = self._policy.self_test()
        text = f'self-test passed: {len(report.checks)} checks'
        if not report.passed:
            text = f'self-test failed:\n{report.failures()}'
        self._self_test = (report.passed, text)
        if is_required and not report.passed:
            raise PolicyError(text)


def main(args: Sequence[str] | None = None) -> int:
    """Run the policy node until Ctrl-C."""
    return run_node(PolicyNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
