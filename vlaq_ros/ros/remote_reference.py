"""
The reference of the drift on another machine: a question for every chunk, over a topic.

The question names the images by their stamps, since the reference node receives the same camera
topics, and brings everything else. Nothing waits for an answer. One that does not match its
question exactly is counted by the reason and never used; one that does not come is forgotten.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from rclpy.node import Node

from vlaq_ros.data.observation_hash import observation_hash
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.ros import qos
from vlaq_ros.ros.conversions import chunk_from_message, to_nanoseconds, to_stamp
from vlaq_ros.ros.drift_sources import Compared
from vlaq_ros.ros.interfaces import ActionChunk as ActionChunkMessage
from vlaq_ros.ros.interfaces import PolicyStatus, ReferenceRequest
from vlaq_ros.types import ActionChunk, Observation

ASKED, ANSWERED, DROPPED, WITHDRAWN = 'asked', 'answered', 'dropped', 'withdrawn'
LATE, OTHER_EPOCH, FAILED = 'late', 'other epoch', 'failed'
NO_REFERENCE, NO_STAMPS, UNANSWERED = 'no reference', 'no image stamps', 'unanswered'
UNKNOWN, DUPLICATE, DISORDER = 'unknown sequence', 'duplicate', 'out of order'
OTHER_STAMP, OTHER_QUESTION, OTHER_BUNDLE = 'other stamp', 'other question', 'other bundle'
OTHER_SHAPE, NOT_FINITE = 'other shape', 'not finite'

_WAITING = 32
_REMEMBERED = 256


class _Asked(NamedTuple):
    chunk: ActionChunk
    asked_s: float


class RemoteReference:
    """
    Asks a reference node; a `ReferenceSource`.

    Args:
        node: Owner of publisher and subscriptions.
        spec: Of the judged policy.
        bundle_hash: Of the float bundle that shall answer; empty: any.
        remote_node: Name of the reference node, with its namespace if any.
        timeout_s: Answers that take longer are late [s].
        frame_id: Frame of the actions.
        wake: Makes the executor thread call `collect`.
        steady: Returns seconds of a clock that never stops or jumps.

    Attributes:
        counts: As in `ReferenceSource`. Questions end as `answered`, `unanswered` within
            `timeout_s`, `withdrawn` at a reset, `dropped` because too many waited, or were not
            sent for `no reference`, `no image stamps` or `failed`. Answers that are not used are
            `late`, of an `other epoch`, of an `unknown sequence`, `duplicate`, `out of order`, of
            an `other stamp`, `other question` (sentence or head), `other bundle` or `other
            shape`, or `not finite`.
    """

    name = 'remote'

    def __init__(
        self,
        node: Node,
        spec: PolicySpec,
        *,
        bundle_hash: str,
        remote_node: str,
        timeout_s: float,
        frame_id: str,
        wake: Callable[[], None],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._spec = spec
        self._cameras = [camera.name for camera in spec.cameras]
        self._bundle_hash = bundle_hash
        self._timeout_s = timeout_s
        self._frame_id = frame_id
        self._wake = wake
        self._steady = steady
        self.counts: Counter[str] = Counter()
        self._epoch: int | None = None
        self._waiting: dict[int, _Asked] = {}  # by sequence, in the order they were asked
        self._ended: dict[int, str] = {}  # sequence -> what an answer to it counts as
        self._last_answered = -1
        self._ready: list[Compared] = []
        self._in_vain_since_s: float | None = None  # asked since then without a usable answer
        self._refusal = ''
        self._status: PolicyStatus | None = None
        self._requests = node.create_publisher(
            ReferenceRequest, '~/reference_request', **qos.overridable(qos.REFERENCE)
        )
        self._inbox = [
            node.create_subscription(message_type, f'{remote_node}/{topic}', callback, profile)
            for message_type, topic, callback, profile in (
                (ActionChunkMessage, 'reference_chunk', self._on_answer, qos.REFERENCE),
                (PolicyStatus, 'status', self._on_status, qos.LATCHED),
            )
        ]
        self._answer_topic = self._inbox[0].topic_name

    @property
    def trouble(self) -> str:
        """Why there are no answers; empty: nothing is wrong."""
        if not self._is_there():
            return (
                f'no reference node listens on {self._requests.topic_name} and answers on '
                f'{self._answer_topic}: start one (reference.launch.py) in the same ROS domain'
            )
        if self._has_other_bundle():
            theirs, name = self._status.bundle_hash[:12], self._status.bundle
            return (
                f'other bundle: the reference node has {name!r} ({theirs}), asked for is '
                f'{self._bundle_hash[:12]}'
            )
        if self._status is not None and self._status.state == PolicyStatus.INACTIVE:
            return f'the reference node is not active: {self._status.reason}'
        silent_s = 0.0
        if self._in_vain_since_s is not None:
            silent_s = self._steady() - self._in_vain_since_s
        if silent_s <= self._timeout_s:
            return self._refusal
        said = '' if self._status is None else self._status.reason
        text = f'no usable answer for {silent_s:.1f} s'
        return '; '.join(part for part in (text, self._refusal, said) if part)

    def submit(self, observation: Observation, chunk: ActionChunk) -> None:
        """Ask for the reference of a chunk; see `ReferenceSource`."""
        self.counts[ASKED] += 1
        if chunk.epoch != self._epoch:
            self.new_epoch(chunk.epoch)
        self._expire()
        if any(name not in observation.image_ns for name in self._cameras):
            self.counts[NO_STAMPS] += 1
        elif not self._is_there():
            self.counts[NO_REFERENCE] += 1
        else:
            self._ask(observation, chunk)

    def collect(self) -> list[Compared]:
        """Return the pairs since the last call; see `ReferenceSource`."""
        self._expire()
        ready, self._ready = self._ready, []
        self.counts[ANSWERED] += len(ready)
        return ready

    def new_epoch(self, epoch: int) -> None:
        """Forget what is under way."""
        self._epoch = epoch
        self.counts[WITHDRAWN] += len(self._waiting) + len(self._ready)
        self._waiting.clear()
        self._ended.clear()
        self._ready.clear()
        self._last_answered = -1
        self._in_vain_since_s = None
        self._refusal = ''

    def close(self) -> None:
        """Unsubscribe."""
        for subscription in self._inbox:
            self._node.destroy_subscription(subscription)
        self._node.destroy_publisher(self._requests)

    def _ask(self, observation: Observation, chunk: ActionChunk) -> None:
        try:
            self._requests.publish(self._question(observation, chunk))
        except Exception as error:  # whatever the middleware raises, the arm goes on
            self.counts[FAILED] += 1
            self._refusal = f'cannot ask: {type(error).__name__}: {error}'
            return
        now_s = self._steady()
        self._waiting[chunk.sequence] = _Asked(chunk, now_s)
        if self._in_vain_since_s is None:
            self._in_vain_since_s = now_s
        if len(self._waiting) > _WAITING:
            self._give_up(next(iter(self._waiting)), DROPPED)

    def _question(self, observation: Observation, chunk: ActionChunk) -> ReferenceRequest:
        msg = ReferenceRequest(
            sequence=chunk.sequence,
            epoch=chunk.epoch,
            instruction=observation.instruction,
            head=chunk.head,
            bundle_hash=self._bundle_hash,
            cameras=self._cameras,
            image_stamps=[to_stamp(observation.image_ns[name]) for name in self._cameras],
            state=observation.state.tolist(),
            observation_hash=observation_hash(observation, self._cameras),
        )
        msg.header.stamp, msg.header.frame_id = to_stamp(chunk.observed_ns), self._frame_id
        return msg

    def _on_answer(self, msg: ActionChunkMessage) -> None:
        self._expire()
        outcome, why = self._judge(msg)
        if outcome:
            self.counts[outcome] += 1
            self._refusal = f'answer refused, {outcome}: {why}'
            return
        asked = self._waiting.pop(msg.sequence)
        self._end(msg.sequence, DUPLICATE)
        self._last_answered = msg.sequence
        self._ready.append(Compared(asked.chunk, chunk_from_message(msg, self._spec.action)))
        self._refusal = ''
        waiting = iter(self._waiting.values())
        self._in_vain_since_s = next((one.asked_s for one in waiting), None)
        self._wake()

    def _on_status(self, msg: PolicyStatus) -> None:
        self._status = msg

    def _judge(self, msg: ActionChunkMessage) -> tuple[str, str]:
        """Return what an answer counts as and why, where it cannot be used; empty: it can."""
        name = f'chunk {msg.sequence}'
        if msg.epoch != self._epoch:
            return OTHER_EPOCH, f'it is of epoch {msg.epoch}, now is {self._epoch}'
        if msg.sequence in self._ended:
            limit = f'{self._timeout_s:g} s (drift.remote_timeout_s)'
            outcome = self._ended[msg.sequence]
            text = f'came after {limit}' if outcome == LATE else 'was answered before'
            return outcome, f'{name} {text}'
        if msg.sequence not in self._waiting:
            return UNKNOWN, f'{name} was not asked about'
        if msg.sequence < self._last_answered:
            return DISORDER, f'{name} came after {self._last_answered}'
        if self._has_other_bundle():
            return OTHER_BUNDLE, f'the reference has {self._status.bundle_hash[:12]}'
        chunk = self._waiting[msg.sequence].chunk
        stamp_ns = to_nanoseconds(msg.header.stamp)
        if stamp_ns != chunk.observed_ns:
            return OTHER_STAMP, f'{name} is of {chunk.observed_ns} ns, the answer of {stamp_ns} ns'
        if (msg.instruction, msg.head) != (chunk.instruction, chunk.head):
            ours = f'{chunk.instruction!r} with head {chunk.head!r}'
            return OTHER_QUESTION, f'{name} followed {ours}, not {msg.instruction!r}, {msg.head!r}'
        try:
            actions = chunk_from_message(msg, self._spec.action).actions
        except ValueError as error:
            return OTHER_SHAPE, str(error)
        if actions.shape != chunk.actions.shape:
            return OTHER_SHAPE, f'{name} is {chunk.actions.shape}, the answer {actions.shape}'
        if not np.isfinite(actions).all():
            return NOT_FINITE, f'values of the answer to {name}'
        return '', ''

    def _is_there(self) -> bool:
        """Whether somebody hears questions and somebody gives answers."""
        is_heard = self._requests.get_subscription_count() > 0
        return is_heard and self._node.count_publishers(self._answer_topic) > 0

    def _has_other_bundle(self) -> bool:
        theirs = '' if self._status is None else self._status.bundle_hash
        return bool(self._bundle_hash and theirs and theirs != self._bundle_hash)

    def _expire(self) -> None:
        limit_s = self._steady() - self._timeout_s
        for sequence in [s for s, one in self._waiting.items() if one.asked_s < limit_s]:
            self._give_up(sequence, UNANSWERED)

    def _give_up(self, sequence: int, outcome: str) -> None:
        del self._waiting[sequence]
        self.counts[outcome] += 1
        self._end(sequence, LATE)

    def _end(self, sequence: int, answer_counts_as: str) -> None:
        self._ended[sequence] = answer_counts_as
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
