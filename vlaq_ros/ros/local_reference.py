"""
A second policy in this process as the reference: the sources `shadow` and `higher`.

In real time it works beside the first one and out of its way, on what it can keep up with. In
lockstep it answers everything in turn, so that the same start gives the same readings. No rclpy.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from vlaq_ros.policies.background import stay_in_background
from vlaq_ros.policies.base import Policy
from vlaq_ros.ros.drift_sources import Compared
from vlaq_ros.ros.worker import Worker
from vlaq_ros.types import ActionChunk, Observation


class Asked(NamedTuple):
    """An observation that waits for the reference, and the chunk that is judged."""

    observation: Observation
    chunk: ActionChunk


class EpochPolicy:
    """
    A policy that forgets what it remembers whenever the epoch changes; for one thread.

    Args:
        policy: Loaded policy.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._epoch: int | None = None

    def infer(self, observation: Observation, epoch: int) -> ActionChunk:
        """Return the chunk for an observation of an epoch; raises as `Policy.infer`."""
        if epoch != self._epoch:
            self._policy.reset()
            self._epoch = epoch
        return replace(self._policy.infer(observation), epoch=epoch)


class ThreadedReference:
    """
    A second policy in this process that never delays the first one.

    It has a thread of its own that yields to all others, and rests after every inference so that
    it is busy for no more than its duty. What it cannot keep up with is dropped: of the
    observations that wait the newest is answered.

    Args:
        name: See `ReferenceSource`.
        policy: The reference; from now on nobody else may use it.
        duty: Share of the time that it may be busy, above 0 to 1.
        wake: Makes the executor thread call `collect`; called on the thread of the reference.
    """

    def __init__(
        self, name: str, policy: Policy, duty: float, wake: Callable[[], None] = lambda: None
    ) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.trouble = ''
        self.duty = duty
        self._policy = EpochPolicy(policy)
        self._epoch = 0
        self._busy_s = 0.0
        self._worker: Worker[Asked, ActionChunk] = Worker(
            self._answer, wake, f'{name} reference', stay_in_background, self._rest_s
        )

    def submit(self, observation: Observation, chunk: ActionChunk) -> None:
        """Ask; see `ReferenceSource`."""
        self.counts['asked'] += 1
        self.counts['dropped'] += self._worker.submit(Asked(observation, chunk))

    def collect(self) -> list[Compared]:
        """Return the pairs since the last call; see `ReferenceSource`."""
        pairs = []
        for asked, result in self._worker.collect():
            if asked.chunk.epoch != self._epoch:
                self.counts['other epoch'] += 1
            elif isinstance(result, Exception):
                self.counts['failed'] += 1
                self.trouble = f'{type(result).__name__}: {result}'
            else:
                self.counts['answered'] += 1
                self.trouble = ''
                pairs.append(Compared(asked.chunk, result))
        return pairs

    def new_epoch(self, epoch: int) -> None:
        """Forget what is under way; see `ReferenceSource`."""
        self._epoch = epoch
        self.counts['withdrawn'] += self._worker.withdraw()

    def close(self) -> None:
        """End the thread; an inference that hangs is left behind."""
        self._worker.close(timeout_s=5.0)

    def _answer(self, asked: Asked) -> ActionChunk:
        started = time.perf_counter()
        try:
            return self._policy.infer(asked.observation, asked.chunk.epoch)
        finally:
            self._busy_s = time.perf_counter() - started

    def _rest_s(self) -> float:
        return self._busy_s * (1.0 / self.duty - 1.0)


class InlineReference:
    """
    A second policy that answers every observation right after the first one, on its thread.

    For lockstep, where a simulator waits: every chunk is compared, in order, before the next
    decision, so that the same start gives the same readings however fast either side computes.

    Args:
        name: See `ReferenceSource`.
        policy: The reference; from now on nobody else may use it.
    """

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.trouble = ''
        self._policy = EpochPolicy(policy)
        self._answers: dict[tuple[int, int], ActionChunk | Exception] = {}
        self._pairs: list[Compared] = []

    def answer(self, observation: Observation, epoch: int) -> None:
        """Run the reference, on the inference thread; `submit` finds its answer."""
        try:
            answer = self._policy.infer(observation, epoch)
        except Exception as error:  # then the drift is not known, and the robot goes on
            answer = error
        self._answers[epoch, observation.observed_ns] = answer

    def submit(self, observation: Observation, chunk: ActionChunk) -> None:
        """Take the answer that is there already; see `ReferenceSource`."""
        self.counts['asked'] += 1
        answer = self._answers.pop((chunk.epoch, chunk.observed_ns), None)
        self._forget_before(chunk.epoch)
        if isinstance(answer, ActionChunk):
            self.counts['answered'] += 1
            self.trouble = ''
            self._pairs.append(Compared(chunk, answer))
            return
        self.counts['failed'] += 1
        self.trouble = f'{type(answer).__name__}: {answer}' if answer else 'nobody was asked'

    def collect(self) -> list[Compared]:
        """Return the pairs since the last call; see `ReferenceSource`."""
        pairs, self._pairs = self._pairs, []
        return pairs

    def new_epoch(self, epoch: int) -> None:
        """Forget what was not collected; see `ReferenceSource`."""
        self.counts['withdrawn'] += len(self._pairs)
        self._pairs = []
        self._forget_before(epoch)

    def close(self) -> None:
        """Do nothing: there is no thread."""

    def _forget_before(self, epoch: int) -> None:
        for key in [key for key in self._answers.copy() if key[0] < epoch]:
            self._answers.pop(key, None)
