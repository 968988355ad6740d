"""
Listens to a policy node like a controller does, and asks it for other precisions all the time.

What is heard is kept as numbers: when each command arrived and how it is stamped.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock

from vlaq_ros.control.precision_account import Account
from vlaq_ros.errors import BringupError
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import NodeProcess, wait_until
from vlaq_ros.ros.conversions import to_nanoseconds
from vlaq_ros.ros.diagnostics import read_account
from vlaq_ros.ros.interfaces import ActionChunk, PolicyStatus, PrecisionState, SetPrecision
from vlaq_ros.ros.precision_control import AUTO
from vlaq_ros.ros.storm_report import Gaps, Memory, Phase
from vlaq_ros.ros.storm_ticks import Processor, Skipped

START_S = 180.0
ANSWER_S = 20.0
OVERTAKEN = 'was asked for'
_RELIABLE = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(
    depth=50,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
_WAITING = 8  # a service keeps 10 requests and drops the oldest
_SHOWN = 20
_SAMPLE_S = 2.0


class StormListener:
    """
    A node beside the policy node; a context manager.

    Args:
        policy: Process of the policy node, whose memory is watched.
        processes: All nodes; when one ends, so does the run.
        seed: Of the choice of precisions.

    Attributes:
        calls: Calls of ~/set_precision by what was answered.
        status, precision: The last messages; None: none came yet.
        account: What the node last told about its requests; None: it has not yet.
        weight_bytes: Precision -> sizes of the weights that were told at it [byte].
        memory: Samples of the policy node during the storm.
        stops: Times that the arm was stopped.
        why: Reasons of stops, of refusals and of changes that failed.
    """

    def __init__(self, policy: NodeProcess, processes: Sequence[NodeProcess], seed: int) -> None:
        self._processes = processes
        self._rng = np.random.default_rng(seed)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node('storm')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._client = self._node.create_client(SetPrecision, 'policy/set_precision')
        self._arrived: dict[str, list[tuple[float, int]]] = {'commands': [], 'clock': []}
        self._calls: list[tuple[Any, float]] = []
        self._began_s = self._sampled_s = 0.0
        self._process = psutil.Process(policy._process.pid)
        self._inference_s: list[float] = []
        self.calls: Counter[str] = Counter()
        self.status: PolicyStatus | None = None
        self.precision: PrecisionState | None = None
        self.account: Account | None = None
        self.weight_bytes: dict[str, set[int]] = {}
        self.memory: list[Memory] = []
        self.stops = 0
        self.why: list[str] = []
        for message_type, topic, callback, profile in (
            (TwistStamped, 'policy/delta_twist_cmds', self._on_command, _RELIABLE),
            (Clock, '/clock', self._on_clock, _RELIABLE),
            (ActionChunk, 'policy/action_chunk', self._on_chunk, _RELIABLE),
            (PolicyStatus, 'policy/status', self._on_status, qos.LATCHED),
            (PrecisionState, 'policy/precision', self._on_precision, _LATCHED),
            (DiagnosticArray, '/diagnostics', self._on_diagnostics, _RELIABLE),
        ):
            self._node.create_subscription(message_type, topic, callback, profile)

    def __enter__(self) -> 'StormListener':
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    @property
    def is_running(self) -> bool:
        """Whether the arm is commanded."""
        return self.status is not None and self.status.state == PolicyStatus.RUNNING

    def wait(self, is_true: Callable[[], Any], what: str, limit_s: float = START_S) -> None:
        """Wait for something; raise `BringupError` when it does not happen or a node ends."""
        wait_until(is_true, limit_s, what, step=self._step, processes=self._processes)

    def bring_up(self) -> None:
        """Wait until the arm is commanded."""
        self.wait(lambda: self.is_running and self.precision, 'the policy to command the arm')
        self.wait(self._client.service_is_ready, '~/set_precision')
        if not self.precision.switchable:
            raise BringupError('the policy has no levels to switch to')
        self.wait(lambda: self.account, 'the account of requests on /diagnostics')

    def phase(self, name: str, period_s: float, speed: float, run: Callable[[], None]) -> Phase:
        """Run one part and return what was heard meanwhile; see `Gaps.of`."""
        for heard in self._arrived.values():
            heard.clear()
        self._inference_s.clear()
        stops, began_s = self.stops, time.monotonic()
        processor = Processor.of(self._process.pid)
        run()
        given = Processor.of(self._process.pid)
        gaps = {
            topic: Gaps.of([at for at, _ in heard], [stamp for _, stamp in heard], period_s, speed)
            for topic, heard in self._arrived.items()
        }
        took_s = time.monotonic() - began_s
        inference_s = np.quantile(self._inference_s or [0.0], (0.5, 0.99, 1.0)).tolist()
        commands_ns = [stamp for _, stamp in self._arrived['commands']]
        return Phase(
            name,
            took_s,
            gaps['commands'],
            gaps['clock'],
            stops=self.stops - stops,
            skipped=Skipped.of(commands_ns, self._arrived['clock'], period_s, speed),
            inference_s=inference_s,
            processor=given and given.since(processor),
        )

    def listen(self, seconds: float) -> None:
        """Only listen."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._step()
        self._check()

    def storm(self, switches: int, rate_hz: float, between: Callable[[int], None]) -> None:
        """
        Ask for random precisions at random times.

        Args:
            switches: How many times.
            rate_hz: How often on average; the times between are exponentially distributed.
            between: Called with the number of calls so far, before each one.
        """
        self.memory.clear()
        self._began_s = due_s = time.monotonic()
        for number in range(switches):
            between(number)
            due_s = max(due_s + self._rng.exponential(1.0 / rate_hz), time.monotonic())
            while time.monotonic() < due_s or len(self._calls) >= _WAITING:
                self._step()
            self._ask(self._random_request())
            if number % 100 == 0:
                self._check()
        self.wait(lambda: not self._calls, 'the last answers', ANSWER_S)
        self.listen(2.0)

    def settle(self, before: Account, limit_s: float) -> dict[str, int]:
        """
        Wait until the node accounts for every call that it accepted.

        Args:
            before: What it had told before the first call.
            limit_s: How long to wait at most [s].

        Returns:
            Number of calls by outcome; their sum is wrong when the node lost or invented one.
        """
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s and (
            self.account.under_way
            or self.account.requests - before.requests < self.calls['accepted']
        ):
            self._step()
        self._check()
        outcomes = self.account.outcomes
        return {str(name): outcomes[name] - before.outcomes[name] for name in outcomes}

    def fail(self, inject: Callable[[], None], is_injected: Callable[[], bool]) -> None:
        """
        Let the next change fail, and wait until it is rolled back.

        Args:
            inject: Prepares the failure.
            is_injected: Whether it has happened.
        """
        self.wait(lambda: not self._calls, 'the answers so far', ANSWER_S)
        self.listen(1.0)  # what is under way ends
        before = self.precision.rolled_back
        inject()
        now, levels = self.precision.precision, self._common_levels()
        other = next(level for level in levels[:-1] if level not in now)
        self._ask(SetPrecision.Request(level=other))
        self.wait(
            lambda: is_injected() and self.precision.rolled_back > before,
            'the injected failure to be rolled back',
            ANSWER_S,
        )

    def _levels(self) -> list[tuple[str, str]]:
        return [tuple(name.split()) for name in self.precision.switchable]

    def _common_levels(self) -> list[str]:
        """Return the levels that every group has, lowest first."""
        pairs = self._levels()
        groups = {group for group, _ in pairs}
        names = dict.fromkeys(level for _, level in pairs)
        return [name for name in names if all((group, name) in pairs for group in groups)]

    def _random_request(self) -> SetPrecision.Request:
        """Half of them set all groups apart, the others one group, all groups alike, or `auto`."""
        pairs = self._levels()
        groups = list(dict.fromkeys(group for group, _ in pairs))
        levels = {group: [level for g, level in pairs if g == group] for group in groups}
        kind = self._rng.random()
        if kind < 0.05:
            return SetPrecision.Request(level=AUTO)
        if kind < 0.2:
            return SetPrecision.Request(level=str(self._rng.choice(self._common_levels())))
        chosen = groups if kind < 0.7 else [str(self._rng.choice(groups))]
        wanted = [str(self._rng.choice(levels[group])) for group in chosen]
        return SetPrecision.Request(groups=chosen, levels=wanted)

    def _ask(self, request: SetPrecision.Request) -> None:
        self.calls['asked'] += 1
        self._calls.append((self._client.call_async(request), time.monotonic()))

    def _step(self) -> None:
        self._executor.spin_once(timeout_sec=0.01)
        now_s = time.monotonic()
        self._sample(now_s)
        for call in self._calls.copy():
            future, asked_s = call
            if future.done():
                self._calls.remove(call)
                self._answered(future.result())
            elif now_s - asked_s > ANSWER_S:
                self._calls.remove(call)
                self.calls['unanswered'] += 1

    def _answered(self, answer: SetPrecision.Response) -> None:
        if not answer.accepted:
            self.calls['refused'] += 1
            self._note(f'refused: {answer.message}')
            return
        self.calls['accepted'] += 1
        changes = 'under way, in force' in answer.message
        self.calls['accepted, a change' if changes else 'accepted, no change'] += 1

    def _check(self) -> None:
        for process in self._processes:
            process.check()

    def _sample(self, now_s: float) -> None:
        """Look at the memory of the policy node, in all phases alike: looking costs it time."""
        if now_s - self._sampled_s >= _SAMPLE_S:
            self._sampled_s = now_s
            try:
                info = self._process.memory_full_info()
            except psutil.NoSuchProcess:
                self._check()  # says which node has ended, and its last words
                raise
            self.memory.append(Memory(now_s - self._began_s, info.rss, info.uss))

    def _note(self, text: str) -> None:
        if text not in self.why and len(self.why) < _SHOWN:
            self.why.append(text)

    def _on_command(self, msg: TwistStamped) -> None:
        self._arrived['commands'].append((time.monotonic(), to_nanoseconds(msg.header.stamp)))

    def _on_clock(self, msg: Clock) -> None:
        self._arrived['clock'].append((time.monotonic(), to_nanoseconds(msg.clock)))

    def _on_chunk(self, msg: ActionChunk) -> None:
        self._inference_s.append(to_nanoseconds(msg.inference_time) * 1e-9)

    def _on_status(self, msg: PolicyStatus) -> None:
        was_running, self.status = self.is_running, msg
        if was_running and not self.is_running:
            self.stops += 1
            self._note(f'stopped: {msg.reason}')

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        self.account = read_account(msg) or self.account

    def _on_precision(self, msg: PrecisionState) -> None:
        self.precision = msg
        self.weight_bytes.setdefault(msg.precision, set()).add(msg.weight_bytes)
        has_failed = ' rolled_back: ' in msg.reason or ' failed: ' in msg.reason
        if has_failed and OVERTAKEN not in msg.reason:
            self._note(msg.reason)
