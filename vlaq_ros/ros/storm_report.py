"""
What a storm of switches has shown: gaps in the commands, memory, and what became of the changes.

Pure numbers, so that tables and verdicts can be tested without a robot.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vlaq_ros.control.precision_account import Outcome
from vlaq_ros.ros.storm_ticks import Processor, Skipped

_MIB = 2**20


@dataclass(frozen=True)
class Gaps:
    """
    Time between the messages of one topic, as they arrived and as they are stamped.

    Attributes:
        messages: How many there were.
        spanned_s: From the first stamp to the last [s].
        median_s, p99_s, largest_s: Of the times between two arrivals [s].
        over: Times between two arrivals above two periods: more than one tick was missed.
        largest_stamp_s: Largest step from stamp to stamp [s].
        over_stamps: Steps from stamp to stamp above two periods.
        repeated: Stamps that equal the one before, as those of a stop while the clock stands.
        back: Stamps that are before the one before.
    """

    messages: int
    spanned_s: float
    median_s: float
    p99_s: float
    largest_s: float
    over: int
    largest_stamp_s: float
    over_stamps: int
    repeated: int
    back: int

    @classmethod
    def of(
        cls,
        arrivals_s: Sequence[float],
        stamps_ns: Sequence[int],
        period_s: float,
        speed: float = 1.0,
    ) -> 'Gaps':
        """
        Return the gaps of messages in the order of their arrival; none: all zero.

        Args:
            arrivals_s: When they arrived, on a steady clock [s].
            stamps_ns: Their stamps.
            period_s: Time between two stamps [s].
            speed: Seconds of the stamps per second of the steady clock.
        """
        waits, steps = np.diff(arrivals_s), np.diff(np.array(stamps_ns, dtype=np.int64)) * 1e-9
        limit_s = 2.0 * period_s + 1e-9
        known = waits if len(waits) else np.zeros(1)
        return cls(
            messages=len(stamps_ns),
            spanned_s=float(steps.sum()),
            median_s=float(np.quantile(known, 0.5)),
            p99_s=float(np.quantile(known, 0.99)),
            largest_s=float(waits.max(initial=0.0)),
            over=int((waits * speed > limit_s).sum()),
            largest_stamp_s=float(steps.max(initial=0.0)),
            over_stamps=int((steps > limit_s).sum()),
            repeated=int((steps == 0.0).sum()),
            back=int((steps < 0.0).sum()),
        )


@dataclass(frozen=True)
class Phase:
    """
    One part of the run.

    Attributes:
        name: `without switches` or `with switches`.
        seconds: How long it took [s].
        commands: Of the arm commands, at the receiver.
        clock: Of /clock, which the ticks of the policy node follow: a simulator that is late
            makes commands late as well.
        stops: Times that the arm was stopped.
        skipped: Ticks of /clock without a command.
        inference_s: Duration of an inference, p50, p99 and largest [s].
        processor: What the thread of the node that ticks got of it; None: nobody counts that.
    """

    name: str
    seconds: float
    commands: Gaps
    clock: Gaps
    stops: int
    skipped: Skipped
    inference_s: Sequence[float] = (0.0, 0.0, 0.0)
    processor: Processor | None = None

    @property
    def speed(self) -> float:
        """Simulated seconds per second; below 1 the machine cannot keep up."""
        return self.clock.spanned_s / self.seconds if self.seconds > 0.0 else 0.0


@dataclass(frozen=True)
class Memory:
    """Memory of the policy node at one time [byte]."""

    at_s: float
    resident: int
    private: int


@dataclass(frozen=True)
class StormReport:
    """
    Everything that was seen.

    Attributes:
        settings: What was asked for.
        period_s: Time between two ticks [s].
        speed: Simulated seconds per second that were asked for.
        phases: Without switches first.
        calls: Calls of ~/set_precision by what was answered.
        outcomes: What the node says has become of the accepted calls; names as of `Outcome`.
        injected: Failures that were injected, by kind; all of them must be rolled back.
        weight_bytes: Precision -> all sizes of the weights that were told at it [byte].
        memory: Samples of the node, in order.
        why: Reasons of stops and of changes that failed.
    """

    settings: Mapping[str, Any]
    period_s: float
    speed: float
    phases: Sequence[Phase]
    calls: Mapping[str, int]
    outcomes: Mapping[str, int]
    injected: Mapping[str, int]
    weight_bytes: Mapping[str, Sequence[int]]
    memory: Sequence[Memory]
    why: Sequence[str] = field(default_factory=tuple)

    def stages(self) -> dict[str, Memory]:
        """Return the median memory of the first, middle and last tenth of the storm."""
        tenth = max(1, len(self.memory) // 10)
        middle = (len(self.memory) - tenth) // 2
        parts = {
            'start': self.memory[:tenth],
            'middle': self.memory[middle : middle + tenth],
            'end': self.memory[-tenth:],
        }
        return {
            name: Memory(
                *(median(getattr(m, f) for m in part) for f in ('at_s', 'resident', 'private'))
            )
            for name, part in parts.items()
            if part
        }

    def verdicts(self) -> dict[str, bool]:
        """Return what must hold whatever the load; gaps are for the reader to judge."""
        sizes = {size for each in self.weight_bytes.values() for size in each}
        return {
            'weights take the same bytes at every precision': len(sizes) == 1,
            'stamps of commands never go back': not any(p.commands.back for p in self.phases),
            'the arm was never stopped': not any(phase.stops for phase in self.phases),
            'no call stayed unanswered': not self.calls.get('unanswered'),
            'every accepted call had exactly one outcome': (
                sum(self.outcomes.values()) == self.calls.get('accepted', 0)
            ),
            'every change that failed was rolled back': not self.outcomes.get(Outcome.FAULT),
            'failed changes are the injected ones': (
                self.outcomes.get(Outcome.ROLLED_BACK, 0) == sum(self.injected.values())
            ),
        }

    @property
    def passed(self) -> bool:
        """Whether all verdicts are good."""
        return all(self.verdicts().values())

    def tables(self) -> str:
        """Return the report for the screen and for Markdown."""
        lists = [[f'{"yes" if ok else "NO"}: {text}' for text, ok in self.verdicts().items()]]
        lists += [self.why] if self.why else []
        return '\n\n'.join(
            [
                self._gap_table(),
                self._tick_table(),
                self._change_table(),
                self._memory_table(),
                *('\n'.join(f'- {line}' for line in lines) for lines in lists),
            ]
        )

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        stages = {name: asdict(memory) for name, memory in self.stages().items()}
        content = {**asdict(self), 'stages': stages, 'verdicts': self.verdicts()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')

    def _gap_table(self) -> str:
        tick_ms = 1e3 * self.period_s
        rows = [
            f'| a tick is {tick_ms:g} ms | messages | median / p99 / largest gap [ms] '
            f'| over {2 * tick_ms / self.speed:g} ms | largest gap of stamps [ms] '
            f'| over {2 * tick_ms:g} ms | repeated |',
            '|---|---|---|---|---|---|---|',
        ]
        for phase in self.phases:
            for what, gaps in (('commands', phase.commands), ('/clock', phase.clock)):
                rows.append(
                    f'| {what} {phase.name} | {gaps.messages} '
                    f'| {_ms(gaps.median_s, gaps.p99_s, gaps.largest_s)} | {gaps.over} '
                    f'| {_ms(gaps.largest_stamp_s)} | {gaps.over_stamps} | {gaps.repeated} |'
                )
        rows += [
            '',
            f'| phase | duration [s] | simulated s per s, of {self.speed:g} '
            '| inference p50 / p99 / largest [ms] | stops | per minute |',
            '|---|---|---|---|---|---|',
        ]
        for phase in self.phases:
            per_minute = 60.0 * phase.stops / phase.seconds
            rows.append(
                f'| {phase.name} | {phase.seconds:.0f} | {phase.speed:.2f} '
                f'| {_ms(*phase.inference_s)} | {phase.stops} | {per_minute:.1f} |'
            )
        return '\n'.join(rows)

    def _tick_table(self) -> str:
        rows = [
            '| phase | ticks without a command | steps over one tick, /clock even meanwhile '
            '| over two ticks, /clock even meanwhile | thread of the ticks ran / waited for a '
            'processor [s] |',
            '|---|---|---|---|---|',
        ]
        for phase in self.phases:
            found, given = phase.skipped, phase.processor
            times = f'{given.ran_s:.1f} / {given.waited_s:.1f}' if given else 'unknown'
            rows.append(
                f'| {phase.name} | {found.ticks} | {found.over_one}, {found.over_one_even} '
                f'| {found.over_two}, {found.over_two_even} | {times} |'
            )
        return '\n'.join(rows)

    def _change_table(self) -> str:
        rows = {f'calls {name}': count for name, count in self.calls.items()}
        rows |= {f'outcome: {name}': count for name, count in self.outcomes.items()}
        rows['outcomes together'] = sum(self.outcomes.values())
        rows |= {f'failures injected: {kind}': count for kind, count in self.injected.items()}
        rows['precisions seen'] = len(self.weight_bytes)
        sizes = {size for each in self.weight_bytes.values() for size in each}
        rows['bytes of weights'] = ', '.join(map(str, sorted(sizes)))
        lines = (f'| {name} | {value} |' for name, value in rows.items())
        return '\n'.join(['| what | count |', '|---|---|', *lines])

    def _memory_table(self) -> str:
        stages = self.stages()
        rows = ['| memory of the node | resident [MiB] | private [MiB] |', '|---|---|---|']
        for name, memory in stages.items():
            rows.append(
                f'| {name} ({memory.at_s:.0f} s) | {memory.resident / _MIB:.2f} '
                f'| {memory.private / _MIB:.2f} |'
            )
        if stages:
            resident, private = (
                (getattr(stages['end'], f) - getattr(stages['start'], f)) / _MIB
                for f in ('resident', 'private')
            )
            rows.append(f'| growth | {resident:+.2f} | {private:+.2f} |')
        return '\n'.join(rows)


def _ms(*seconds: float) -> str:
    return ' / '.join(f'{1e3 * one:.1f}' for one in seconds)
