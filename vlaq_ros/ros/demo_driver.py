"""
Drives a simulator node and a policy node through episodes, as an operator would.

Everything goes over topics, services and parameters; every wait ends, and says what it waited for.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vlaq_ros.errors import BringupError
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import NodeProcess, wait_until
from vlaq_ros.ros.conversions import to_nanoseconds, to_pixels
from vlaq_ros.ros.interfaces import ActionChunk, EpisodeStatus, PolicyStatus, PrecisionState
from vlaq_ros.sim.rollout import Episode

START_S = 120.0  # a process that imports torch or a simulator on a busy machine
CONFIGURE_S = 180.0
ANSWER_S = 60.0  # the first episode of a task compiles its scene
STALL_S = 60.0
_QUEUE = 500
_GAP_NS = 500_000_000  # a reset takes more simulated time than this, a step less


@dataclass(frozen=True)
class RosEpisode:
    """
    What was seen of one episode on the topics.

    Attributes:
        episode: What was asked for.
        success: Whether the simulator reported success.
        aborted: Whether it ended before success and before the step limit.
        steps: Policy steps executed.
        wall_s: Wall time from the reset to the end [s].
        stamps_ns: [steps + 1] simulated time of the positions [ns].
        positions: [steps + 1, 3] hand position at the start and after every step [m].
        pictures: Spectator view, RGB uint8 [height, width, 3], from start to end.
        inference_s: Seconds of every inference.
    """

    episode: Episode
    success: bool
    aborted: bool
    steps: int
    wall_s: float
    stamps_ns: NDArray[np.int64]
    positions: NDArray[np.float64]
    pictures: tuple[NDArray[np.uint8], ...]
    inference_s: tuple[float, ...]


class DemoDriver:
    """A node that operates the two others; a context manager."""

    def __init__(self, simulator: NodeProcess, policy: NodeProcess) -> None:
        self._processes = (simulator, policy)
        self._simulator, self._policy = (simulator,), (policy,)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('demo')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._status = PolicyStatus()
        self._episode = EpisodeStatus()
        self._poses: dict[int, NDArray[np.float64]] = {}
        self._pictures: dict[int, Image] = {}
        self._inference_s: list[float] = []
        self.precision: PrecisionState | None = None
        self.latency_ms: dict[str, tuple[float, float]] = {}
        self.policy_memory: dict[str, str] = {}
        self._subscribe()
        self._instruction = self._node.create_publisher(String, 'instruction', qos.LATCHED)
        self._change_state = self._node.create_client(ChangeState, 'policy/change_state')
        self._policy_reset = self._node.create_client(Trigger, 'policy/reset')
        self._sim_reset = self._node.create_client(Trigger, 'sim/reset')
        self._sim_parameters = self._node.create_client(SetParameters, 'sim/set_parameters')

    def __enter__(self) -> 'DemoDriver':
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def bring_up(self) -> None:
        """
        Configure and activate the policy, and find the simulator.

        Raises:
            BringupError: A node died, refused or did not answer.
        """
        self._find(self._change_state, 'the policy node', self._policy)
        for number, name, limit_s in (
            (Transition.TRANSITION_CONFIGURE, 'configure', CONFIGURE_S),
            (Transition.TRANSITION_ACTIVATE, 'activate', ANSWER_S),
        ):
            request = ChangeState.Request(transition=Transition(id=number))
            what = f'the policy to {name}'
            answer = self._call(self._change_state, request, what, limit_s, self._policy)
            if not answer.success:
                self._spin_for(0.5)  # its status says why
                raise BringupError(
                    f'the policy refused to {name}: {self._status.reason or "no reason given"}. '
                    f'{self._policy[0].last_words()}'
                )
        self._find(self._sim_reset, 'the simulator node', self._simulator)
        self._find(self._sim_parameters, 'the parameters of the simulator', self._simulator)

    def run(self, episode: Episode) -> RosEpisode:
        """
        Give the instruction, start the episode and wait until it is over.

        Raises:
            BringupError: A node died, refused or did not answer.
        """
        self._instruct(episode.instruction)
        self._trigger(self._policy_reset, 'the policy to reset', self._policy)
        self._set_sim_parameters(
            task=episode.task,
            seed=episode.seed,
            index=episode.index,
            instruction=episode.instruction,
        )
        last_epoch = self._episode.epoch
        for record in (self._poses, self._pictures, self._inference_s):
            record.clear()
        started = time.monotonic()
        self._trigger(self._sim_reset, f'the simulator to start {episode.task}', self._simulator)
        self._wait_for_end(episode, last_epoch)
        wall_s = time.monotonic() - started
        end_ns = to_nanoseconds(self._episode.header.stamp)
        self._wait(lambda: end_ns in self._poses, ANSWER_S, 'the last pose of the episode')
        self._spin_for(0.1)  # the last picture
        return self._collect(episode, end_ns, wall_s)

    def _collect(self, episode: Episode, end_ns: int, wall_s: float) -> RosEpisode:
        stamps = np.array(sorted(stamp for stamp in self._poses if stamp <= end_ns))
        gaps = np.flatnonzero(np.diff(stamps) > _GAP_NS)
        stamps = stamps[gaps[-1] + 1 :] if len(gaps) else stamps
        shown = sorted(stamp for stamp in self._pictures if stamps[0] <= stamp <= end_ns)
        status = self._episode
        return RosEpisode(
            episode,
            success=status.success,
            aborted=not status.success and status.step < status.max_steps,
            steps=status.step,
            wall_s=wall_s,
            stamps_ns=stamps,
            positions=np.array([self._poses[stamp] for stamp in stamps]),
            pictures=tuple(to_pixels(self._pictures[stamp]) for stamp in shown),
            inference_s=tuple(self._inference_s),
        )

    def _instruct(self, sentence: str) -> None:
        self._instruction.publish(String(data=sentence))
        self._wait(
            lambda: self._status.instruction == sentence,
            ANSWER_S,
            f'the policy to take the instruction {sentence!r}',
        )

    def _wait_for_end(self, episode: Episode, last_epoch: int) -> None:
        def progress() -> tuple:
            status = self._episode
            return (status.epoch, status.step, status.done)

        def is_over() -> bool:
            return self._episode.epoch > last_epoch and self._episode.done

        while not is_over():
            before = progress()
            self._wait(
                lambda before=before: is_over() or progress() != before,
                STALL_S,
                f'step {self._episode.step + 1} of {episode.task} (policy: '
                f'{self._status.reason or "no reason given for standing still"})',
            )

    def _set_sim_parameters(self, **values: Any) -> None:
        request = SetParameters.Request(
            parameters=[Parameter(n, value=v).to_parameter_msg() for n, v in values.items()]
        )
        what = 'the simulator to take its parameters'
        answer = self._call(self._sim_parameters, request, what, ANSWER_S, self._simulator)
        reasons = [result.reason for result in answer.results if not result.successful]
        if reasons:
            raise BringupError(f'the simulator refused its parameters: {"; ".join(reasons)}')

    def _trigger(self, client: Any, what: str, processes: Sequence[NodeProcess]) -> None:
        answer = self._call(client, Trigger.Request(), what, ANSWER_S, processes)
        if not answer.success:
            raise BringupError(f'waited for {what}, but: {answer.message}')

    def _find(self, client: Any, what: str, processes: Sequence[NodeProcess]) -> None:
        self._wait(client.service_is_ready, START_S, f'{what} to appear', processes)

    def _call(
        self,
        client: Any,
        request: Any,
        what: str,
        limit_s: float,
        processes: Sequence[NodeProcess],
    ) -> Any:
        future = client.call_async(request)
        self._wait(future.done, limit_s, what, processes)
        return future.result()

    def _wait(
        self,
        is_true: Callable[[], Any],
        limit_s: float,
        what: str,
        processes: Sequence[NodeProcess] | None = None,
    ) -> None:
        step = partial(self._executor.spin_once, timeout_sec=0.05)
        wait_until(is_true, limit_s, what, step=step, processes=processes or self._processes)

    def _spin_for(self, duration_s: float) -> None:
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.02)

    # --- what is recorded

    def _subscribe(self) -> None:
        for message_type, topic, callback, profile in (
            (PolicyStatus, 'policy/status', self._on_status, qos.LATCHED),
            (PrecisionState, 'policy/precision', self._on_precision, qos.LATCHED),
            (EpisodeStatus, 'episode', self._on_episode, qos.LATCHED),
            (PoseStamped, 'ee_pose', self._on_pose, _QUEUE),
            (Image, 'spectator/image_raw', self._on_picture, _QUEUE),
            (ActionChunk, 'policy/action_chunk', self._on_chunk, _QUEUE),
            (DiagnosticArray, '/diagnostics', self._on_diagnostics, _QUEUE),
        ):
            self._node.create_subscription(message_type, topic, callback, profile)

    def _on_status(self, msg: PolicyStatus) -> None:
        self._status = msg

    def _on_precision(self, msg: PrecisionState) -> None:
        self.precision = msg

    def _on_episode(self, msg: EpisodeStatus) -> None:
        self._episode = msg

    def _on_pose(self, msg: PoseStamped) -> None:
        at = msg.pose.position
        self._poses[to_nanoseconds(msg.header.stamp)] = np.array([at.x, at.y, at.z])

    def _on_picture(self, msg: Image) -> None:
        self._pictures[to_nanoseconds(msg.header.stamp)] = msg

    def _on_chunk(self, msg: ActionChunk) -> None:
        self._inference_s.append(to_nanoseconds(msg.inference_time) * 1e-9)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name == 'policy: memory':
                self.policy_memory = values
            elif status.name == 'policy: inference latency':
                self.latency_ms = {
                    key.split(' p50')[0]: tuple(float(ms) for ms in value.split('/')[:2])
                    for key, value in values.items()
                    if 'p50/p95' in key
                }
