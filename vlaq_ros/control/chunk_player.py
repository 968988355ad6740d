"""
Which action of the current chunk is due now.

Rows are picked by the clock and never by counting, so a slow inference skips what is already late.
A newer chunk replaces the older one at once: there is no blending, no queue and no filter between
the policy and the limits. Every chunk that is dropped is counted by reason.

`accept` may be called from the inference thread while the tick calls the other methods.
"""

import threading
from enum import Enum

from numpy.typing import NDArray

from vlaq_ros.errors import StaleChunkError
from vlaq_ros.types import ActionChunk, ActionSpec


class ChunkRejection(str, Enum):
    """Why a chunk was dropped."""

    OTHER_EPOCH = 'other_epoch'
    OLD_SEQUENCE = 'old_sequence'

    __str__ = str.__str__


class ChunkPlayer:
    """
    Plays the newest chunk of the current reset epoch.

    Attributes:
        spec: What the actions mean; chunks with another spec are a programming error.
        execution_horizon: Rows to execute before a new chunk is wanted. The later rows bridge a
            slow inference.
    """

    def __init__(self, spec: ActionSpec, execution_horizon: int) -> None:
        if execution_horizon < 1:
            raise ValueError(f'execution_horizon must be at least 1, got {execution_horizon}')
        self.spec = spec
        self.execution_horizon = execution_horizon
        self._lock = threading.Lock()
        self._chunk: ActionChunk | None = None
        self._epoch = 0
        self._rejected = dict.fromkeys(ChunkRejection, 0)

    @property
    def chunk(self) -> ActionChunk | None:
        """The chunk being played, None before the first of this epoch."""
        return self._chunk

    @property
    def epoch(self) -> int:
        """The reset epoch whose chunks are accepted."""
        return self._epoch

    @property
    def rejected(self) -> dict[ChunkRejection, int]:
        """Number of dropped chunks by reason, since construction."""
        with self._lock:
            return dict(self._rejected)

    def accept(self, chunk: ActionChunk) -> bool:
        """
        Take over a chunk, unless it is of another epoch or not newer than the current one.

        Returns:
            Whether the chunk is played from now on.

        Raises:
            ValueError: The chunk was made for another action spec.
        """
        if chunk.spec != self.spec:
            raise ValueError(f'the chunk has spec {chunk.spec}, this player has {self.spec}')
        with self._lock:
            if chunk.epoch != self._epoch:
                self._rejected[ChunkRejection.OTHER_EPOCH] += 1
                return False
            if self._chunk is not None and chunk.sequence <= self._chunk.sequence:
                self._rejected[ChunkRejection.OLD_SEQUENCE] += 1
                return False
            self._chunk = chunk
            return True

    def clear(self, epoch: int) -> None:
        """Drop the current chunk and accept only chunks of `epoch` from now on."""
        with self._lock:
            self._chunk = None
            self._epoch = epoch

    def row_at(self, now_ns: int) -> int:
        """
        Return the row of the current chunk that is due at `now_ns`.

        Raises:
            StaleChunkError: There is no chunk, or `now_ns` lies before its start or past its end.
        """
        return self._due(now_ns)[1]

    def action_at(self, now_ns: int) -> NDArray:
        """
        Return the action [action_dim] that is due at `now_ns`, in the units of the spec.

        Raises:
            StaleChunkError: There is no chunk, or `now_ns` lies before its start or past its end.
        """
        chunk, row = self._due(now_ns)
        return chunk.actions[row]

    def needs_inference(self, now_ns: int) -> bool:
        """Whether a new chunk is wanted: the execution horizon of the current one is used up."""
        chunk = self._chunk
        if chunk is None:
            return True
        row = (now_ns - chunk.observed_ns) // self.spec.period_ns
        return not 0 <= row < min(self.execution_horizon, len(chunk.actions))

    def _due(self, now_ns: int) -> tuple[ActionChunk, int]:
        chunk = self._chunk  # one read: the inference thread may replace it at any time
        now = f'no action for t={_milliseconds(now_ns)} ms'
        if chunk is None:
            raise StaleChunkError(f'{now}: no chunk was accepted yet in epoch {self._epoch}')
        row = (now_ns - chunk.observed_ns) // self.spec.period_ns
        if not 0 <= row < len(chunk.actions):
            raise StaleChunkError(
                f'{now}: the chunk covers {len(chunk.actions)} periods of '
                f'{_milliseconds(self.spec.period_ns)} ms from '
                f't={_milliseconds(chunk.observed_ns)} ms'
            )
        return chunk, row


def _milliseconds(duration_ns: int) -> str:
    return f'{duration_ns / 1e6:.3f}'.rstrip('0').rstrip('.')
