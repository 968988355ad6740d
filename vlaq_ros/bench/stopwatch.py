"""
Time of short calls on a machine that has other things to do.

What is compared is measured in the same rounds, one after the other, so that a change of the
machine falls on everything alike. With one thread the time is CPU time of the process, which a
neighbour cannot inflate, and the median of the rounds counts. With several it is wall time, and
the 10th percentile of the single calls counts: a barrier that waits for a thread that is not
running says nothing about the kernel.

Every case has several copies of its weights and takes them in turn, so that they come from memory
as they do in a model, not from the cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

COLD_BYTES = 128 << 20
"""Copies of the weights of a case fill at least this much: several times any cache."""
MOST_COPIES = 1024
"""More are not made: weights below an eighth of a megabyte are cached in any model."""
MOST_CALLS = 2000
WARM_UP_S = 0.15
SHORT_S = 1e-3
SLOW_S = 0.1
SLOW_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """
    How long to measure.

    Attributes:
        rounds: Number of interleaved rounds.
        round_s: Time of one case in one round, if its calls are shorter than that [s].
    """

    rounds: int = 7
    round_s: float = 0.05


@dataclass(frozen=True)
class Timing:
    """
    Seconds of one call.

    Attributes:
        seconds: The figure: median of rounds (CPU time), or 10th percentile of calls (wall time).
        low, high: Smallest and largest sample.
        calls: Number of calls measured.
    """

    seconds: float
    low: float
    high: float
    calls: int


@dataclass
class Case:
    """
    One thing to time.

    Attributes:
        name: Unique among what is compared.
        calls: The same work on different copies of the weights, taken in turn.
    """

    name: str
    calls: Sequence[Callable[[], object]]
    _next: int = field(default=0, repr=False)

    def run(self, count: int) -> None:
        """Make `count` calls."""
        calls, place = self.calls, self._next
        for _ in range(count):
            calls[place]()
            place += 1
            if place == len(calls):
                place = 0
        self._next = place


def copies_for(call_bytes: int) -> int:
    """Return how many copies of `call_bytes` are cold when taken in turn; at least 2."""
    return min(MOST_COPIES, max(2, -(-COLD_BYTES // max(call_bytes, 1))))


def measure(cases: Sequence[Case], threads: int, effort: Effort) -> dict[str, Timing]:
    """
    Time all cases in interleaved rounds.

    A case whose call takes longer than a tenth of a second gets three rounds, one of less than a
    millisecond nearly twice as many as the others: it waits for memory, which neighbours use too.

    Args:
        cases: What to compare; warmed up before.
        threads: Threads that the cases use; decides the clock.
        effort: How long to measure.
    """
    counts, rounds = {}, {}
    for case in cases:
        _warm_up(case, threads)
        seconds = _seconds(case, 1, threads)[0]
        counts[case.name] = min(MOST_CALLS, max(1, int(effort.round_s / max(seconds, 1e-7))))
        rounds[case.name] = _rounds(seconds, effort.rounds)
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(max(rounds.values(), default=0)):
        for case in cases:
            if turn < rounds[case.name]:
                samples[case.name] += _seconds(case, counts[case.name], threads)
    per_sample = counts if threads == 1 else dict.fromkeys(counts, 1)
    return {
        name: summarize(values, threads, calls=len(values) * per_sample[name])
        for name, values in samples.items()
    }


def summarize(samples: Sequence[float], threads: int, calls: int | None = None) -> Timing:
    """Return the figure of the samples [s]: one per round (one thread) or per call (several)."""
    ordered = np.sort(samples)
    figure = np.median(ordered) if threads == 1 else ordered[len(ordered) // 10]
    count = len(ordered) if calls is None else calls
    return Timing(float(figure), float(ordered[0]), float(ordered[-1]), count)


def now_s(threads: int) -> float:
    """Return the clock that fits a number of threads [s]."""
    return time.process_time() if threads == 1 else time.perf_counter()


def _rounds(seconds: float, usual: int) -> int:
    if seconds < SHORT_S:
        return 2 * usual - 1
    return usual if seconds < SLOW_S else min(SLOW_ROUNDS, usual)


def _warm_up(case: Case, threads: int) -> None:
    """Call every copy once, as some libraries finish their set-up then; not for long, though."""
    start = now_s(threads)
    for _ in case.calls:
        case.run(1)
        if now_s(threads) - start > WARM_UP_S:
            break


def _seconds(case: Case, count: int, threads: int) -> list[float]:
    """Return the mean of `count` calls (one thread), or every call by itself (several)."""
    if threads == 1:
        start = now_s(threads)
        case.run(count)
        return [(now_s(threads) - start) / count]
    samples = []
    for _ in range(count):
        start = now_s(threads)
        case.run(1)
        samples.append(now_s(threads) - start)
    return samples
