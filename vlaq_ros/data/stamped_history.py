"""
Messages of the last moments, found again by their exact stamp.

For whoever is asked about something that was published a moment ago. Age counts from the arrival,
on a steady clock: stamps may jump back, as those of a looped bag do.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class _Kept(NamedTuple):
    value: Any
    size_bytes: int
    arrived_s: float


class StampedHistory:
    """
    Values by stream and stamp; the oldest are forgotten. Not thread-safe.

    Args:
        keep_s: How long a value is kept [s].
        max_bytes: Largest sum of all sizes; the newest value is kept whatever its size.
        steady: Returns seconds of a clock that never stops or jumps.

    Attributes:
        size_bytes: Sum of the sizes of what is kept.

    Raises:
        ValueError: A limit is not positive.
    """

    def __init__(
        self, keep_s: float, max_bytes: int, steady: Callable[[], float] = time.monotonic
    ) -> None:
        if not keep_s > 0.0 or not max_bytes > 0:
            raise ValueError(f'keep_s={keep_s} and max_bytes={max_bytes} must be positive')
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._steady = steady
        self._kept: dict[tuple[str, int], _Kept] = {}  # in the order of arrival
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, stream: str, stamp_ns: int, value: Any, size_bytes: int) -> None:
        """Keep a value; an earlier one of the same stream and stamp is replaced."""
        self._forget_one((stream, stamp_ns))
        self._kept[stream, stamp_ns] = _Kept(value, size_bytes, self._steady())
        self.size_bytes += size_bytes
        self._forget_old()

    def find(self, stamps_ns: Mapping[str, int]) -> dict[str, Any] | None:
        """Return the value of every stream at its stamp, None when one of them is not there."""
        if self.missing(stamps_ns):
            return None
        return {stream: self._kept[stream, at].value for stream, at in stamps_ns.items()}

    def missing(self, stamps_ns: Mapping[str, int]) -> list[str]:
        """Return the streams that have no value at their stamp."""
        self._forget_old()
        return [stream for stream, at in stamps_ns.items() if (stream, at) not in self._kept]

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.size_bytes = 0

    def _forget_old(self) -> None:
        limit_s = self._steady() - self._keep_s
        while self._kept:
            key, oldest = next(iter(self._kept.items()))
            is_full = self.size_bytes > self._max_bytes and len(self._kept) > 1
            if oldest.arrived_s >= limit_s and not is_full:
                return
            self._forget_one(key)

    def _forget_one(self, key: tuple[str, int]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.size_bytes -= kept.size_bytes
