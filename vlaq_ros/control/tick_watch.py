"""
Whether the control ticks still come.

Ticks follow the clock of the robot, which may stand still or be set back; what moves then goes on
moving. This looks at a steady clock instead.
"""

_MIN_LIMIT_S, _LIMIT_PERIODS = 0.15, 3


def tick_limit_s(rate_hz: float) -> float:
    """Return how long ticks of this rate may stay away on a loaded machine [s]."""
    return max(_MIN_LIMIT_S, _LIMIT_PERIODS / rate_hz)


class TickWatch:
    """
    Notices that no tick comes.

    Args:
        limit_s: Longest time between two ticks [s].
        steady_s: Now, on a clock that never stops or jumps [s]; so are all times here.
    """

    def __init__(self, limit_s: float, steady_s: float) -> None:
        self._limit_s = limit_s
        self._ticked_s = steady_s

    def ticked(self, steady_s: float) -> None:
        """Note a tick, or that ticks begin now."""
        self._ticked_s = steady_s

    def problem(self, steady_s: float) -> str:
        """Say that the ticks do not come; empty: they do."""
        stalled_s = steady_s - self._ticked_s
        if stalled_s <= self._limit_s:
            return ''
        return (
            f'no control tick for {stalled_s:.1f} s: the ROS clock stands still or was set back; '
            'deactivate and activate when it does not go on'
        )
