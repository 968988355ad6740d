"""
Questions of a policy node, and what a reference policy answers to the very same observation.

A question names images by their stamps, and brings the rest. It waits shortly for images that are
still on their way. The newest question whose images are there is answered; older ones are given
up, so that a slow reference is never late for all of them. Pixels and state must have the hash of
those that the policy saw.

Everything runs on the executor thread except `_infer`, which runs on the worker thread.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from vlaq_ros.data.messages import require_size
from vlaq_ros.data.observation_hash import observation_hash
from vlaq_ros.data.stamped_history import StampedHistory
from vlaq_ros.errors import MessageError
from vlaq_ros.policies.base import Policy
from vlaq_ros.ros.conversions import chunk_message, to_nanoseconds, to_pixels
from vlaq_ros.ros.interfaces import ActionChunk as ActionChunkMessage
from vlaq_ros.ros.interfaces import ReferenceRequest
from vlaq_ros.ros.reference_parameters import ReferenceParameters
from vlaq_ros.ros.worker import Worker
from vlaq_ros.types import ActionChunk, Observation

ASKED, ANSWERED = 'asked', 'answered'
BUSY, OTHER_EPOCH = 'skipped: busy', 'skipped: other epoch'
NO_IMAGE, OTHER_BUNDLE = 'without image', 'other bundle'
OTHER_QUESTION, OTHER_HASH = 'other cameras, head or noise', 'other hash'
FAILED = 'failed'
OUTCOMES = (
    ASKED,
    ANSWERED,
    BUSY,
    OTHER_EPOCH,
    NO_IMAGE,
    OTHER_BUNDLE,
    OTHER_QUESTION,
    OTHER_HASH,
    FAILED,
)
"""What becomes of questions; every one that was asked ends in exactly one of the others."""

_QUEUE = 8


class OtherObservationError(MessageError):
    """Pixels or state are not those that the policy saw."""


class Question(NamedTuple):
    """A request, the messages of its images by camera, and the epoch as counted here."""

    request: ReferenceRequest
    images: Mapping[str, Image | CompressedImage]
    epoch: int


@dataclass
class _Waiting:
    request: ReferenceRequest
    stamps_ns: dict[str, int]
    asked_s: float
    images: dict[str, Any] | None = None


class ReferenceAnswers:
    """
    See the module docstring.

    Args:
        policy: Loaded reference policy.
        bundle_hash: Of its bundle.
        config: Parameters of the node.
        wake: Makes the executor thread call `collect`; called on the worker thread.
        steady: Returns seconds of a clock that never stops or jumps.

    Attributes:
        counts: Questions by what became of them; see `OUTCOMES`.
        trouble: Why the last question was not answered; empty after an answer.
        history: Images as they arrived.
        inference_s: Duration of the last inference [s].
    """

    def __init__(
        self,
        policy: Policy,
        bundle_hash: str,
        config: ReferenceParameters,
        wake: Callable[[], None],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.trouble = ''
        self.history = StampedHistory(config.history_s, round(config.history_mb * 1e6), steady)
        self.inference_s = 0.0
        self._policy = policy
        self._policy_epoch: int | None = None
        self._bundle_hash = bundle_hash
        self._wait_s = config.image_wait_s
        self._steady = steady
        self._sizes = {c.name: (c.height, c.width) for c in policy.spec.cameras}
        self._asked_last: tuple[int, int] | None = None  # epoch and sequence of the policy node
        self._epoch = 0  # grows: a policy node that is started again counts from 1
        self._waiting: list[_Waiting] = []
        self._worker: Worker[Question, ActionChunk] = Worker(self._infer, wake, 'reference')

    @property
    def waiting(self) -> int:
        """Questions that wait for images or for the policy."""
        return len(self._waiting)

    @property
    def is_inferring(self) -> bool:
        """Whether the policy is in use on the worker thread."""
        return self._worker.is_busy

    def store(self, camera: str, msg: Image | CompressedImage) -> None:
        """Keep an image as it arrived; it is decoded when it is asked for."""
        self.history.put(camera, to_nanoseconds(msg.header.stamp), msg, len(msg.data))
        self.advance()

    def ask(self, request: ReferenceRequest) -> None:
        """Take a question; `collect` has the answer some time later, or `counts` why not."""
        self.counts[ASKED] += 1
        epoch, sequence = self._asked_last or (request.epoch, -1)
        if request.epoch != epoch or request.sequence <= sequence:
            self._new_epoch('the policy was reset')
        self._asked_last = request.epoch, request.sequence
        outcome, why = self._refusal(request)
        if outcome:
            self._count(outcome, why)
            return
        stamps = dict(zip(request.cameras, map(to_nanoseconds, request.image_stamps)))
        self._waiting.append(_Waiting(request, stamps, self._steady()))
        if len(self._waiting) > _QUEUE:
            self._skip([self._waiting.pop(0)], BUSY, f'more than {_QUEUE} questions wait')
        self.advance()

    def advance(self) -> None:
        """Begin with the newest question whose images are there; give up what waits too long."""
        for one in self._waiting:
            if one.images is None:
                one.images = self.history.find(one.stamps_ns)
        self._begin()
        late_s = self._steady() - self._wait_s
        late = [one for one in self._waiting if one.images is None and one.asked_s < late_s]
        for one in late:
            self._waiting.remove(one)
            self._count(NO_IMAGE, self._missing(one))

    def collect(self) -> list[ActionChunkMessage]:
        """Return the answers since the last call, and begin with the next question."""
        answers = []
        for question, result in self._worker.collect():
            if question.epoch != self._epoch:
                self._count(OTHER_EPOCH, 'the policy was reset')
            elif isinstance(result, OtherObservationError):
                self._count(OTHER_HASH, str(result))
            elif isinstance(result, Exception):
                self._count(FAILED, f'{type(result).__name__}: {result}')
            else:
                self.counts[ANSWERED] += 1
                self.trouble = ''
                self.inference_s = result.inference_s
                answers.append(chunk_message(result, question.request.header.frame_id))
        self.advance()
        return answers

    def forget(self) -> None:
        """Give up all questions and forget all images."""
        self._new_epoch('the reference node was deactivated')
        self.history.clear()

    def close(self) -> None:
        """End the worker thread; an inference that hangs is left behind."""
        self._worker.close(timeout_s=5.0)

    def _new_epoch(self, why: str) -> None:
        self._skip(self._waiting, OTHER_EPOCH, why)
        self._waiting = []
        self._epoch += 1

    def _begin(self) -> None:
        ready = [i for i, one in enumerate(self._waiting) if one.images is not None]
        if not ready or self._worker.is_busy:
            return
        older, chosen = self._waiting[: ready[-1]], self._waiting[ready[-1]]
        self._waiting = self._waiting[ready[-1] + 1 :]
        self._skip([one for one in older if one.images], BUSY, 'a newer question is answered')
        for one in older:
            if one.images is None:
                self._count(NO_IMAGE, self._missing(one))
        self._worker.submit(Question(chosen.request, chosen.images, self._epoch))

    def _infer(self, question: Question) -> ActionChunk:
        """Run the policy on the worker thread, on what the other policy saw."""
        request = question.request
        images = {name: to_pixels(msg) for name, msg in question.images.items()}
        for name, image in images.items():
            require_size(name, image.shape[:2], self._sizes[name])
        state, at = np.array(request.state), to_nanoseconds(request.header.stamp)
        observation = Observation(images, state, request.instruction, at)
        found = observation_hash(observation, self._sizes)
        if found != request.observation_hash:
            raise OtherObservationError(
                f'images and state of question {request.sequence} have the hash {found[:12]} '
                f'here and {request.observation_hash[:12]} at the policy: another transport, '
                'decoder, or a node between that changes images'
            )
        if question.epoch != self._policy_epoch:
            self._policy.reset()
            self._policy_epoch = question.epoch
        chunk = self._policy.infer(observation)
        return replace(chunk, sequence=request.sequence, epoch=request.epoch)

    def _refusal(self, request: ReferenceRequest) -> tuple[str, str]:
        """Return the outcome and why, where a question cannot be answered; empty: it can."""
        if request.bundle_hash and request.bundle_hash != self._bundle_hash:
            return OTHER_BUNDLE, (
                f'asked for bundle {request.bundle_hash[:12]}, this is {self._bundle_hash[:12]}'
            )
        cameras, stamps = list(request.cameras), list(request.image_stamps)
        if cameras != list(self._sizes) or len(stamps) != len(cameras):
            return OTHER_QUESTION, (
                f'asked about cameras {cameras} with {len(stamps)} stamps, this policy has '
                f'{list(self._sizes)}'
            )
        if request.head != self._policy.head:
            return OTHER_QUESTION, (
                f'asked for head {request.head!r}, this policy runs {self._policy.head!r}'
            )
        if request.noise_seed:
            return OTHER_QUESTION, (
                f'asked for noise of seed {request.noise_seed}, this policy starts from its mean'
            )
        return '', ''

    def _missing(self, one: _Waiting) -> str:
        names = self.history.missing(one.stamps_ns)
        shown = ', '.join(f'{name} at {one.stamps_ns[name] / 1e9:.3f} s' for name in names)
        return f'no image of {shown} within {self._wait_s:g} s'

    def _skip(self, several: list[_Waiting], outcome: str, why: str) -> None:
        for _ in several:
            self._count(outcome, why)

    def _count(self, outcome: str, why: str) -> None:
        self.counts[outcome] += 1
        self.trouble = f'{outcome}: {why}'
