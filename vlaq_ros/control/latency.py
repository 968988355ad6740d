"""
How long inferences took lately, stage by stage.

A window of the last inferences, not a lifetime average: an operator wants to know how late the
policy is now. Percentiles are latencies that really occurred (nearest rank), never interpolated.
The sum of the stages of each inference is kept as a stage of its own, because the percentile of a
sum is not the sum of percentiles.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TOTAL_STAGE = 'total'


@dataclass(frozen=True)
class StageLatency:
    """
    Latency of one stage within the window.

    Attributes:
        count: Inferences that had this stage.
        p50_s, p95_s, p99_s: Percentiles [s].
        max_s: Longest [s].
    """

    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


class LatencyWindow:
    """
    The stage times of the last `size` inferences. All methods may be called from any thread.

    A stage that no inference of the window had, e.g. of a head that was switched off, disappears.
    """

    def __init__(self, size: int = 200) -> None:
        if size < 1:
            raise ValueError(f'size must be at least 1, got {size}')
        self._window: deque[dict[str, float]] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, stage_s: Mapping[str, float]) -> None:
        """
        Record the stage times of one inference [s].

        Raises:
            ValueError: There are none, a time is negative or not finite, or a stage is named
                `total`.
        """
        bad = {name: time for name, time in stage_s.items() if not 0.0 <= time < math.inf}
        if bad or not stage_s or TOTAL_STAGE in stage_s:
            raise ValueError(
                f'stage times must be finite, not negative and not named {TOTAL_STAGE!r}, '
                f'got {dict(stage_s)}'
            )
        with self._lock:
            self._window.append({**stage_s, TOTAL_STAGE: sum(stage_s.values())})

    def summary(self) -> dict[str, StageLatency] | None:
        """Return the latency of every stage, `total` last; None when nothing was recorded."""
        with self._lock:
            window = list(self._window)
        if not window:
            return None
        stages = dict.fromkeys(name for record in window for name in record)
        del stages[TOTAL_STAGE]
        return {
            stage: _summarize([record[stage] for record in window if stage in record])
            for stage in (*stages, TOTAL_STAGE)
        }

    def clear(self) -> None:
        """Forget all inferences, e.g. after the precision has changed."""
        with self._lock:
            self._window.clear()


def _summarize(times_s: list[float]) -> StageLatency:
    p50_s, p95_s, p99_s = np.percentile(times_s, (50, 95, 99), method='inverted_cdf')
    return StageLatency(len(times_s), float(p50_s), float(p95_s), float(p99_s), max(times_s))
