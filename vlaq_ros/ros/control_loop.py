"""
What happens on a control tick: ask for inference, pick the action that is due, check it, send it.

Everything here runs on the executor thread; what the inference thread does is in `inference`. No
rclpy: inputs, outputs and clock are handed in, so that the order of stops and commands can be
tested without a graph.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from numpy.typing import NDArray

from vlaq_ros.control.chunk_player import ChunkPlayer
from vlaq_ros.control.commands import to_command
from vlaq_ros.control.latency import LatencyWindow
from vlaq_ros.control.limits import RefusedCommandError, require_finite
from vlaq_ros.control.supervisor import ControlState, Supervisor
from vlaq_ros.control.tick_watch import TickWatch, tick_limit_s
from vlaq_ros.errors import PolicyError, StaleChunkError, StaleInputError, UnsafeActionError
from vlaq_ros.policies.base import Policy
from vlaq_ros.ros.drift_control import DriftControl, DriftParts
from vlaq_ros.ros.inference import Inference, Inferred, Request
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.ros.outputs import Outputs
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.ros.pose_follower import PoseFollower
from vlaq_ros.ros.pose_targets import PoseTarget, pose_targets
from vlaq_ros.ros.precision_control import PrecisionControl
from vlaq_ros.ros.worker import Worker
from vlaq_ros.types import ActionChunk, Observation, Pose

NO_INSTRUCTION = 'instruction: none given; publish a sentence on `instruction`'


class ControlLoop:
    """
    Real-time control with one policy.

    Args:
        policy: Loaded policy.
        config: Parameters of the node.
        inputs: Observations and the instruction.
        outputs: Commands.
        wake: Makes the executor thread call `collect`; called on the worker thread.
        steady: Returns seconds of a clock that never stops or jumps.
        is_simulated_time: Whether ticks come as slowly as a simulator computes.
        epoch: Last epoch of the node's earlier loops; this one goes on from there.
        sequence: Last chunk of the node's earlier loops.
        drift: What drift is measured with; None: it is not.

    Attributes:
        supervisor: Whether the arm may move, and why not.
        player: The chunk being executed.
        latency: Durations of the last inferences by stage.
        counts: Refusals, clamps, failed inferences and dropped results, by reason.
        limits: The check before every command.
        last_error: Text of the last failed inference.
        instruction_problem: Why the sentence in force cannot be followed; empty: it can.
        sequence: Chunks produced.
        epoch: Grows with every reset; results of an earlier epoch are dropped.
        precision: What the policy runs at, and why.
        drift: How far it is from its reference, and what follows.
    """

    def __init__(
        self,
        policy: Policy,
        config: PolicyParameters,
        inputs: Inputs,
        outputs: Outputs,
        wake: Callable[[], None],
        steady: Callable[[], float] = time.monotonic,
        is_simulated_time: bool = False,
        epoch: int = 0,
        sequence: int = 0,
        drift: DriftParts | None = None,
    ) -> None:
        spec = policy.spec
        self.supervisor = Supervisor(config.stop_repeat_s)
        self.player = ChunkPlayer(spec.action, config.execution_horizon or spec.execution_horizon)
        self.latency = LatencyWindow()
        self.counts: Counter[str] = Counter()
        self.limits = config.limits.to_limits()
        self.last_error = ''
        self.instruction_problem = NO_INSTRUCTION
        self.sequence = sequence
        self.epoch = epoch
        self.precision = PrecisionControl(policy, config, wake, steady)
        self.drift = DriftControl(spec, config, drift, steady)
        self._policy = policy
        self._config = config
        self._inputs = inputs
        self._outputs = outputs
        self._steady = steady
        limit_s = tick_limit_s(config.command.rate_hz)
        self._ticks = TickWatch(config.age.silence_s if is_simulated_time else limit_s, steady())
        self._errors_in_a_row = 0
        self._lacks_observation = False
        tick_s = 1.0 / config.command.rate_hz
        self._poses = PoseFollower(policy.spec.action.period_s if config.lockstep else tick_s)
        self._stop_pose: Pose | None = None
        self._was_stopped = False
        inference = Inference(policy, inputs, self.precision.infer, self.drift.beside)
        self._worker: Worker[Request, Inferred | None] = Worker(
            inference.answer, wake, 'inference'
        )

    @property
    def is_inferring(self) -> bool:
        """Whether the policy is in use on the worker thread, be it for a result to be dropped."""
        return self._worker.is_busy

    def apply(self, config: PolicyParameters) -> None:
        """Use the parameters that may change while running."""
        limits = config.limits.to_limits()
        if limits != self.limits:
            self._poses.limits_changed()
        self.limits = limits
        self.supervisor.stop_repeat_s = config.stop_repeat_s
        self.precision.apply(config)
        self.drift.apply(config)

    def activate(self, now_ns: int) -> None:
        """Begin: wait for the first complete observation."""
        self._inputs.clear()
        self._inputs.enabled = True
        self.instruction_problem = self._why_no_instruction()
        self._ticks.ticked(self._steady())
        self.supervisor.activate(now_ns)
        self._was_stopped = False
        self._new_epoch(now_ns)

    def deactivate(self, reason: str, now_ns: int) -> None:
        """Send the stop command as the last one, and ignore what is still being computed."""
        was_active = self.supervisor.state is not ControlState.INACTIVE
        self._inputs.enabled = False
        self.supervisor.deactivate(reason, now_ns)
        self._new_epoch(now_ns)
        if was_active:
            self._send_stop(now_ns)
        self._stop_pose = None

    def close(self) -> None:
        """End the worker thread; an inference that hangs is left behind."""
        self.precision.close()
        self.drift.close()
        self._worker.close(timeout_s=5.0)

    def reset(self, now_ns: int) -> None:
        """Stop, forget the chunk and everything the policy remembers; leave a fault."""
        self.supervisor.reset(now_ns)
        self._errors_in_a_row = 0
        self._start_over('reset', now_ns)

    def clock_went_back(self, now_ns: int) -> None:
        """Forget everything that was stamped in another time."""
        self.counts['clock jumps'] += 1
        self._inputs.forget(now_ns)
        self._start_over('the clock was changed', now_ns)

    def instruction_changed(self, now_ns: int) -> None:
        """Follow the new sentence from the next inference on; stop at once when that cannot be."""
        self.instruction_problem = self._why_no_instruction()
        if self.instruction_problem:
            self._start_over(self.instruction_problem, now_ns)

    def tick(self, now_ns: int) -> None:
        """Run once per command period."""
        self._ticks.ticked(self._steady())
        self.collect(now_ns)
        if self.supervisor.state is ControlState.FAULT:
            self._repeat_stop(now_ns)
            return
        try:
            self._require_inputs(now_ns)
            self._ask_for_inference(now_ns)  # also while drift holds: only readings end that
            if self.drift.stop:
                self.hold(self.drift.stop, now_ns)
                return
            row = self.player.row_at(now_ns)
            self._command(row, now_ns)
        except UnsafeActionError as error:
            self.fault(str(error), now_ns)
        except StaleInputError as error:
            self.hold(str(error), now_ns)
        except StaleChunkError as error:
            self.hold(self._why_no_action(str(error), now_ns), now_ns)

    def watch(self, now_ns: int) -> None:
        """Run on a steady timer: stop when nothing arrives, even while the ROS clock stands."""
        self.collect(now_ns)
        problem = self._inputs.silence() or self._ticks.problem(self._steady())
        if problem:
            self.hold(problem, now_ns)
        else:
            self._repeat_stop(now_ns)

    def collect(self, now_ns: int) -> None:
        """Take over what the worker has finished."""
        for request, result in self._worker.collect():
            if request.epoch != self.epoch:
                self.counts['dropped: other epoch'] += 1
            elif isinstance(result, StaleInputError) or result is None:
                self._lacks_observation = True  # the tick says which inputs are missing
            elif isinstance(result, Exception):
                self._failed(result, now_ns)
            else:
                self._accept(*result, now_ns)
        for told in self.drift.collect(now_ns):
            self._outputs.send_drift(told, self._policy.spec.action.frame)
        if self.drift.stop and self.supervisor.state is ControlState.RUNNING:
            self.hold(self.drift.stop, now_ns)

    def hold(self, reason: str, now_ns: int) -> None:
        """Stop until motion is possible again."""
        self._note_stop()
        self.supervisor.hold(reason, now_ns, self._steady())
        self._repeat_stop(now_ns)

    def fault(self, reason: str, now_ns: int) -> None:
        """Stop until ~/reset."""
        self._note_stop()
        self.supervisor.fault(reason, now_ns, self._steady())
        self._repeat_stop(now_ns)

    def _note_stop(self) -> None:
        if self.supervisor.state is ControlState.RUNNING:
            self._was_stopped = True
            self.precision.stopped()

    def _require_inputs(self, now_ns: int) -> None:
        if self.instruction_problem:
            raise StaleInputError(self.instruction_problem)
        silence = self._inputs.silence()
        if silence:
            raise StaleInputError(silence)
        self._inputs.require(now_ns)

    def _why_no_instruction(self) -> str:
        """Say why the sentence in force cannot be followed; empty: it can."""
        if not self._inputs.instruction:
            return NO_INSTRUCTION
        try:
            self._policy.check_instruction(self._inputs.instruction)
        except PolicyError as error:
            return f'instruction refused: {error}'
        return ''

    def _ask_for_inference(self, now_ns: int) -> None:
        is_wanted = self._config.replan == 'continuous' or self.player.needs_inference(now_ns)
        if is_wanted and not self._worker.is_busy:
            self._submit(now_ns)

    def _submit(self, now_ns: int) -> None:
        self.precision.decide(now_ns, self.drift.take(), self.drift.floor)
        chunk = self.player.chunk
        last_observed_ns = None if chunk is None else chunk.observed_ns
        self._worker.submit(
            Request(now_ns, self.epoch, last_observed_ns, self._outputs.wants_pose)
        )

    def _accept(
        self, chunk: ActionChunk, start: Pose | None, observation: Observation, now_ns: int
    ) -> None:
        """Check all rows before the first one is executed."""
        self.sequence += 1
        chunk = replace(chunk, sequence=self.sequence)
        try:
            require_finite(chunk)
            targets = self._plan_targets(chunk, start)
        except UnsafeActionError as error:
            self._count_refusal(error)
            self.fault(str(error), now_ns)
            return
        self._errors_in_a_row = 0
        self._lacks_observation = False
        self.latency.add({'decode': self._inputs.decode_s, **chunk.stage_s})
        self.precision.measured(chunk)
        if self.supervisor.state is not ControlState.FAULT and self.player.accept(chunk):
            self._poses.follow(targets)
            self._outputs.send_chunk(chunk)
            self.drift.accepted(observation, chunk, now_ns, self.precision.phase)

    def _plan_targets(self, chunk: ActionChunk, start: Pose | None) -> list[PoseTarget]:
        if not self._outputs.wants_pose:
            return []
        if start is None:
            raise UnsafeActionError('no measured pose at the time of the observation')
        return pose_targets(chunk, start, self.limits)

    def _failed(self, error: Exception, now_ns: int) -> None:
        self.counts['failed inferences'] += 1
        self._errors_in_a_row += 1
        self.last_error = f'{type(error).__name__}: {error}'
        if self.precision.fault:
            self.fault(self.precision.fault, now_ns)
        elif self._errors_in_a_row >= self._config.max_inference_errors:
            self.fault(
                f'{self._errors_in_a_row} inferences in a row failed, the last with '
                f'{self.last_error}',
                now_ns,
            )

    def _command(self, row: int, now_ns: int) -> None:
        """Send the action of one row of the current chunk, if motion is allowed."""
        chunk = self.player.chunk
        if self._outputs.wants_pose:
            self._command_pose(chunk, row, now_ns)
            return
        command = to_command(chunk.actions[row], chunk.spec)
        try:
            pose = self._inputs.pose(now_ns)
            command, limited = self.limits.check(command, pose, chunk.spec.period_s)
        except UnsafeActionError as error:
            self._count_refusal(error)
            raise
        self._count_limited(limited)
        if self.supervisor.run(now_ns):
            self._outputs.send_twist(command, now_ns)
            increment = command.twist * chunk.spec.period_s
            self._executed(increment, command.gripper, (chunk.sequence, row))

    def _command_pose(self, chunk: ActionChunk, row: int, now_ns: int) -> None:
        """Send the target of one row, or as much of the way there as the speed limits allow."""
        is_moving = self.supervisor.state is ControlState.RUNNING and self._poses.has_sent
        start = None if is_moving else self._inputs.pose(now_ns)
        if start is None and not is_moving:
            raise UnsafeActionError('no measured pose to start from')
        try:
            step = self._poses.step(chunk, row, now_ns, start, self.limits)
        except UnsafeActionError as error:
            self._count_refusal(error)
            raise
        self._count_limited(step.limited)
        if self.supervisor.run(now_ns):
            self._stop_pose = None
            self._outputs.send_pose(step.pose, step.gripper, now_ns)
            self._poses.sent(step, now_ns)
            self._executed(step.increment, step.gripper, step.row)

    def _executed(self, increment: NDArray, gripper: float | None, row: tuple[int, int]) -> None:
        resumed, self._was_stopped = self._was_stopped, False
        self.precision.executed(increment, gripper, row, resumed=resumed)

    def _repeat_stop(self, now_ns: int) -> None:
        if not self.supervisor.must_send_stop(self._steady()):
            self._stop_pose = None
        elif self._send_stop(now_ns):
            self.supervisor.stop_sent()

    def _send_stop(self, now_ns: int) -> bool:
        """Stop where the stop began: an arm that sags must not take the target with it."""
        if self._stop_pose is None:
            self._stop_pose = self._inputs.pose(now_ns)
        return self._outputs.send_stop(self._stop_pose, now_ns)

    def _start_over(self, reason: str, now_ns: int) -> None:
        """Stop at once what moves, and forget the chunk."""
        self._new_epoch(now_ns)
        self.hold(reason, now_ns)

    def _new_epoch(self, now_ns: int) -> None:
        self.precision.new_epoch(now_ns)
        self.epoch += 1
        self.player.clear(self.epoch)
        self.drift.new_epoch(self.epoch)
        self._poses.forget()

    def _why_no_action(self, text: str, now_ns: int) -> str:
        if self._errors_in_a_row:
            return f'inference failed: {self.last_error}'
        chunk = self.player.chunk
        if chunk is None:
            return 'waiting for an inference'
        if self._lacks_observation:
            ages = self._inputs.ages_s(now_ns).items()
            shown = ', '.join(f'{name} {age_s * 1e3:.0f} ms' for name, age_s in ages if age_s)
            return f'{text}; there is no newer observation: the last samples are {shown} old'
        covered_s = len(chunk.actions) * chunk.spec.period_s
        if chunk.inference_s > covered_s:
            text += f'; an inference takes {chunk.inference_s:.3f} s, longer than the whole chunk'
        return text

    def _count_limited(self, reasons: Iterable[str]) -> None:
        self.counts.update(f'limited: {reason}' for reason in reasons)

    def _count_refusal(self, error: UnsafeActionError) -> None:
        reasons = error.reasons if isinstance(error, RefusedCommandError) else ('pose',)
        self.counts.update(f'refused: {reason}' for reason in reasons)
