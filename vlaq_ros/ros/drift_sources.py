"""
Where the reference of the drift comes from: whoever answers the observations a second time.

A source is told every observation with the chunk that answered it, and gives back pairs of judged
chunk and reference when it has them. It may be as slow as it likes: only the newest observation
waits for it, and whatever it cannot keep up with is dropped and counted. No rclpy.
"""

from collections import Counter
from typing import NamedTuple, Protocol

from vlaq_ros.types import ActionChunk, Observation


class Compared(NamedTuple):
    """A judged chunk and what the reference answers to the same observation."""

    chunk: ActionChunk
    reference: ActionChunk


class ReferenceSource(Protocol):
    """
    Answers observations a second time; every method is called on the executor thread.

    Attributes:
        name: One of `drift_monitor.SOURCES`.
        counts: `asked` (observations that were submitted), `answered` (pairs that were collected),
            `dropped` (replaced by a newer observation while they waited), `late` (answers that
            came too long after their question), `failed` (the reference refused or raised),
            `withdrawn` (under way at a reset), `other epoch` (answers from before a reset), and
            what else a source likes to count.
        trouble: Why there are no answers, for the operator; empty: nothing is wrong.
    """

    name: str
    counts: Counter[str]
    trouble: str

    def submit(self, observation: Observation, chunk: ActionChunk) -> None:
        """
        Ask for the reference of a chunk that was accepted; never blocks.

        Args:
            observation: Exactly what the policy got, as it got it.
            chunk: Its answer, with its sequence and epoch.
        """

    def collect(self) -> list[Compared]:
        """
        Return the pairs since the last call, oldest first; never blocks.

        Both of a pair carry the same `observed_ns`, and the reference its own `precision`. A
        source that has something to collect wakes the node with the function it was given.
        """

    def new_epoch(self, epoch: int) -> None:
        """Forget what is under way: nothing of an earlier epoch may be collected after this."""

    def close(self) -> None:
        """Release threads, subscriptions and weights."""
