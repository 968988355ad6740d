"""
Ticks without a command: was /clock uneven, was the processor busy, or was the node late by itself?

The node ticks on /clock, of which rclpy keeps the newest message only. Two messages that arrive
close together, because the simulator was late or the node was not running, are one tick to it;
the command that falls out is not sent later, since late commands in a burst would be worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_EVEN = 0.5, 1.5
"""Time between two messages of an even /clock, in periods."""


@dataclass(frozen=True)
class Skipped:
    """
    Steps from command to command that are longer than a tick; see `Skipped.of`.

    Attributes:
        ticks: Ticks of /clock that no command carries.
        over_one: Steps of more than one tick.
        over_two: Steps of more than two ticks: more than one tick was skipped in a row.
        over_one_even, over_two_even: Those of them during which /clock arrived evenly, so that it
            does not explain them.
    """

    ticks: int
    over_one: int
    over_two: int
    over_one_even: int
    over_two_even: int

    @classmethod
    def of(
        cls,
        commands_ns: Sequence[int],
        clock: Sequence[tuple[float, int]],
        period_s: float,
        speed: float = 1.0,
    ) -> 'Skipped':
        """
        Compare commands with /clock at the same receiver.

        /clock is even from one command to the next when every tick arrived and each came half a
        period to one and a half after the one before.

        Args:
            commands_ns: Stamps of the commands in the order of their arrival.
            clock: Arrival on a steady clock [s] and stamp [ns] of /clock.
            period_s: Time between two stamps [s].
            speed: Seconds of the stamps per second of the steady clock.
        """
        period_ns, known = round(period_s * 1e9), {stamp: at_s for at_s, stamp in clock}
        skipped = [
            (before, round((after - before) / period_ns) - 1)
            for before, after in zip(commands_ns, commands_ns[1:])
            if after - before > 1.5 * period_ns
        ]
        shortest_s, longest_s = (limit * period_s / speed for limit in _EVEN)

        def is_even(begin_ns: int, ticks: int) -> bool:
            arrivals_s = [known.get(begin_ns + k * period_ns) for k in range(ticks + 2)]
            if None in arrivals_s:
                return False
            waits_s = np.diff(arrivals_s)
            return bool(((waits_s >= shortest_s) & (waits_s <= longest_s)).all())

        even = [ticks for begin_ns, ticks in skipped if is_even(begin_ns, ticks)]
        return cls(
            ticks=sum(ticks for _, ticks in skipped),
            over_one=len(skipped),
            over_two=sum(ticks > 1 for _, ticks in skipped),
            over_one_even=len(even),
            over_two_even=sum(ticks > 1 for ticks in even),
        )


@dataclass(frozen=True)
class Processor:
    """
    What the kernel gave to one thread.

    Attributes:
        ran_s: Time on a processor [s].
        waited_s: Time that it was ready to run and no processor was free for it [s].
    """

    ran_s: float
    waited_s: float

    @classmethod
    def of(cls, process: int) -> 'Processor | None':
        """Return the times of the main thread of a process so far; None: nobody counts them."""
        try:
            text = Path(f'/proc/{process}/task/{process}/schedstat').read_text(encoding='ascii')
        except OSError:  # not Linux, or a kernel without scheduler statistics
            return None
        ran_ns, waited_ns, *_ = (int(word) for word in text.split())
        return cls(ran_ns * 1e-9, waited_ns * 1e-9)

    def since(self, before: 'Processor | None') -> 'Processor | None':
        """Return the times since `before`; None: those are unknown."""
        if before is None:
            return None
        return Processor(self.ran_s - before.ran_s, self.waited_s - before.waited_s)
