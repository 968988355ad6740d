"""
How much of a run was spent at which precision.

A result without loss means little when most of the run was at full precision, so every report of
dynamic precision shows these shares: of the inferences and of the time between them.
"""

from collections.abc import Mapping

from vlaq_ros.control.precision import Decision, PrecisionLevel, Reason


class Occupancy:
    """Counts inferences, time, changes and reasons, for every module group on its own."""

    def __init__(self) -> None:
        self._inferences: dict[str, dict[PrecisionLevel, int]] = {}
        self._time_ns: dict[str, dict[PrecisionLevel, int]] = {}
        self._reasons: dict[str, dict[Reason, int]] = {}
        self._changes: dict[str, int] = {}
        self._last: dict[str, PrecisionLevel] = {}
        self._last_ns: int | None = None

    def record(self, now_ns: int, active: Mapping[str, PrecisionLevel]) -> None:
        """
        Count one inference that starts at `now_ns` with these levels.

        The time since the last one belongs to the levels of the last one. A clock that jumps
        backwards adds no time.
        """
        self._add_time(now_ns)
        for group, level in active.items():
            counts = self._inferences.setdefault(group, {})
            counts[level] = counts.get(level, 0) + 1
            before = self._last.get(group, level)
            self._changes[group] = self._changes.get(group, 0) + (level != before)
        self._last, self._last_ns = dict(active), now_ns

    def record_reasons(self, decisions: Mapping[str, Decision]) -> None:
        """Count why the levels were chosen."""
        for group, decision in decisions.items():
            counts = self._reasons.setdefault(group, {})
            counts[decision.reason] = counts.get(decision.reason, 0) + 1

    def pause(self, now_ns: int) -> None:
        """End the time of the current levels, e.g. at the end of an episode."""
        self._add_time(now_ns)
        self._last_ns = None

    def share_of_inferences(self, group: str) -> dict[PrecisionLevel, float]:
        """Return the share of each level, lowest first; empty before the first inference."""
        return _shares(self._inferences.get(group, {}))

    def share_of_time(self, group: str) -> dict[PrecisionLevel, float]:
        """Return the share of each level, lowest first; empty while no time has passed."""
        return _shares(self._time_ns.get(group, {}))

    def reasons(self, group: str) -> dict[Reason, int]:
        """Return how many decisions had each reason."""
        return dict(self._reasons.get(group, {}))

    def changes(self, group: str) -> int:
        """Return how many inferences ran at another level than the one before."""
        return self._changes.get(group, 0)

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Return everything for a JSON report, by group."""
        return {
            group: {
                'inferences': sum(counts.values()),
                'time_s': sum(self._time_ns.get(group, {}).values()) * 1e-9,
                'changes': self.changes(group),
                'share_of_inferences': _by_name(self.share_of_inferences(group)),
                'share_of_time': _by_name(self.share_of_time(group)),
                'reasons': {str(name): n for name, n in self.reasons(group).items()},
            }
            for group, counts in self._inferences.items()
        }

    def _add_time(self, now_ns: int) -> None:
        if self._last_ns is None or now_ns <= self._last_ns:
            return
        for group, level in self._last.items():
            times = self._time_ns.setdefault(group, {})
            times[level] = times.get(level, 0) + now_ns - self._last_ns


def _shares(counts: Mapping[PrecisionLevel, int]) -> dict[PrecisionLevel, float]:
    total = sum(counts.values())
    return {level: counts[level] / total for level in sorted(counts)}


def _by_name(shares: Mapping[PrecisionLevel, float]) -> dict[str, float]:
    return {str(level): share for level, share in shares.items()}
