"""
What is known about the precision of a running policy: shares of levels, latency, changes.

Inferences are noted on the inference thread and everything else on the executor thread. No rclpy,
as in `control_loop`.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.control.precision_account import NO_REQUESTS, Account
from vlaq_ros.control.precision_occupancy import Occupancy
from vlaq_ros.types import ActionChunk

_WINDOW = 50


@dataclass(frozen=True)
class PrecisionReport:
    """
    What ~/precision says about changes.

    Attributes:
        requested: Levels that were asked for last, as text.
        reason: Why the last change happened, or did not.
        since_ns: When that was, on the control clock.
        changes, rolled_back: Number of changes by how they ended.
        share_of_inferences, share_of_time: By `<group> <level>`.
        latency_s: Median of the last inferences by precision [s].
        account: What has become of every request, of the rules and of accepted calls.
    """

    requested: str
    reason: str
    since_ns: int
    changes: int
    rolled_back: int
    share_of_inferences: Mapping[str, float]
    share_of_time: Mapping[str, float]
    latency_s: Mapping[str, float]
    account: Account = NO_REQUESTS


class PrecisionRecord:
    """Counts what ran at which level, and how long the last inferences of a precision took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._occupancy = Occupancy()
        self._latency_s: dict[str, deque[float]] = {}

    def inferring(self, now_ns: int, active: Mapping[str, PrecisionLevel]) -> None:
        """Note an inference that starts at `now_ns` with these levels, on its thread."""
        with self._lock:
            self._occupancy.record(now_ns, active)

    def pause(self, now_ns: int) -> None:
        """End the time of the current levels, at the end of an episode."""
        with self._lock:
            self._occupancy.pause(now_ns)

    def measured(self, chunk: ActionChunk) -> None:
        """Note how long an inference took."""
        window = self._latency_s.setdefault(chunk.precision, deque(maxlen=_WINDOW))
        window.append(chunk.inference_s)

    def slow_s(self, precision: str) -> float | None:
        """Return what 95 % of the last inferences stayed below [s]; None: there was none."""
        known = self._latency_s.get(precision)
        return float(np.quantile(known, 0.95)) if known else None

    def median_s(self) -> dict[str, float]:
        """Return the median of the last inferences by precision [s]."""
        return {name: float(np.median(each)) for name, each in self._latency_s.items()}

    def shares(self, groups: Iterable[str]) -> tuple[dict[str, float], dict[str, float]]:
        """Return the shares of inferences and of time of these groups, by `<group> <level>`."""
        inferences, times = {}, {}
        with self._lock:
            for group in groups:
                for shares, found in (
                    (self._occupancy.share_of_inferences(group), inferences),
                    (self._occupancy.share_of_time(group), times),
                ):
                    found.update({f'{group} {level}': share for level, share in shares.items()})
        return inferences, times
