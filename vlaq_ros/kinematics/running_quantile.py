"""Quantiles of a stream that is too long to keep."""

import numpy as np


class RunningQuantile:
    """
    Estimate of a quantile of a stream in constant memory.

    The P-squared algorithm: five markers, moved along a parabola through their neighbours (Jain
    and Chlamtac, 'The P2 algorithm', Comm. ACM 28:10, 1985).
    """

    def __init__(self, quantile: float) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f'quantile must lie between 0 and 1, got {quantile}')
        self.count = 0
        self._heights: list[float] = []
        self._positions = [1.0, 2.0, 3.0, 4.0, 5.0]
        self._desired = [
            1.0,
            1.0 + 2.0 * quantile,
            1.0 + 4.0 * quantile,
            3.0 + 2.0 * quantile,
            5.0,
        ]
        self._steps = (0.0, quantile / 2.0, quantile, (1.0 + quantile) / 2.0, 1.0)

    @property
    def value(self) -> float | None:
        """The estimate, None before the fifth value."""
        return self._heights[2] if self.count >= 5 else None

    def add(self, value: float) -> None:
        """
        Take the next value of the stream into account.

        Raises:
            ValueError: The value is not finite.
        """
        if not np.isfinite(value):
            raise ValueError(f'a quantile needs finite values, got {value}')
        heights, positions = self._heights, self._positions
        self.count += 1
        if self.count <= 5:
            heights.append(float(value))
            heights.sort()
            return
        heights[0], heights[4] = min(heights[0], value), max(heights[4], value)
        cell = sum(value >= height for height in heights[1:4])  # left marker of its interval
        for i in range(5):
            positions[i] += i > cell
            self._desired[i] += self._steps[i]
        for i in (1, 2, 3):
            gap = self._desired[i] - positions[i]
            if gap >= 1.0 and positions[i + 1] - positions[i] > 1.0:
                self._move(i, 1)
            elif gap <= -1.0 and positions[i - 1] - positions[i] < -1.0:
                self._move(i, -1)

    def _move(self, i: int, sign: int) -> None:
        q, n = self._heights, self._positions
        right = (n[i] - n[i - 1] + sign) * (q[i + 1] - q[i]) / (n[i + 1] - n[i])
        left = (n[i + 1] - n[i] - sign) * (q[i] - q[i - 1]) / (n[i] - n[i - 1])
        height = q[i] + sign * (right + left) / (n[i + 1] - n[i - 1])
        if not q[i - 1] < height < q[i + 1]:  # the parabola overshoots: along the chord
            height = q[i] + sign * (q[i + sign] - q[i]) / (n[i + sign] - n[i])
        q[i] = height
        n[i] += sign
