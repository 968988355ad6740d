"""
What a policy would have seen: the observations of a bag, sampled on the control clock.

The code that assembles them is that of the running node: messages are stored in the order of their
arrival, the newest sample stamped at or before a tick counts, and a tick with a missing or stale
stream has no observation. The clock is the newest header stamp so far: when it passes a tick, the
tick is taken. Receive times only serve as a check.

A bag is read twice: `scan` finds out what there is, without keeping a pixel; `load` decodes the
images of the steps that were chosen, and no others.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.data.bag_intake import BagIntake, EpisodeMark
from vlaq_ros.data.bag_streams import StreamLayout, find_streams
from vlaq_ros.data.bags import Bag
from vlaq_ros.data.messages import to_nanoseconds
from vlaq_ros.data.resample import IncompleteObservationError
from vlaq_ros.errors import BagError, MessageError
from vlaq_ros.types import Observation

LONG_PAUSE_NS = 2_000_000_000
"""Without `EpisodeStatus`, a new episode begins after a pause of this length."""
_TRIED = 50  # some robots send several kinds of messages on one topic
_SHOWN = 10


class Step(NamedTuple):
    """
    One tick with a complete observation.

    Attributes:
        now_ns: The tick.
        observed_ns: Stamp of the observation.
        state: [state_dim].
        instruction: The sentence in force.
        image_ns: Camera -> stamp of its image.
        episode: Number of the episode within the bag.
    """

    now_ns: int
    observed_ns: int
    state: NDArray[np.float64]
    instruction: str
    image_ns: Mapping[str, int]
    episode: int


class Gap(NamedTuple):
    """Ticks in a row without an observation: the first, the last, and why the first had none."""

    start_ns: int
    end_ns: int
    reason: str


@dataclass(frozen=True)
class BagScan:
    """
    What a bag holds for a policy.

    Attributes:
        steps: In order of time.
        gaps: Where there was no observation within an episode.
        gap_share: Share of the control periods within episodes that had none.
        ticks: Control periods that the recording covers, also between episodes.
        dropped: Topic -> messages that could not be used.
        trouble: Topic -> why the last of them was dropped.
        offset_s: Topic -> median of receive time minus header stamp [s].
        losses: What of the bag could not be read.
    """

    steps: tuple[Step, ...]
    gaps: tuple[Gap, ...]
    gap_share: float
    ticks: int
    dropped: Mapping[str, int]
    trouble: Mapping[str, str]
    offset_s: Mapping[str, float]
    losses: tuple[str, ...]


class BagObservations:
    """
    The observations of one bag.

    Args:
        bag: The bag.
        layout: What the policy takes from the robot.
        period_ns: Control period.
        names: Stream -> topic, for topics that are called otherwise; see `find_streams`.
        instruction: The sentence of the whole bag, instead of those in it.

    Raises:
        BagError: The bag does not hold what the layout needs, or none of it can be used.
    """

    def __init__(
        self,
        bag: Bag,
        layout: StreamLayout,
        period_ns: int,
        names: Mapping[str, str] | None = None,
        instruction: str = '',
    ) -> None:
        if period_ns <= 0:
            raise ValueError(f'period_ns must be positive, got {period_ns}')
        self.bag = bag
        self._layout = layout
        self._period_ns = period_ns
        self._instruction = instruction
        self.streams = find_streams(bag, layout, names, needs_instruction=not instruction)
        self._check_first_messages()

    def scan(self) -> BagScan:
        """
        Read the bag once and return every step it has, without pixels.

        Raises:
            BagError: The clock jumps, or no tick has an observation.
        """
        intake = BagIntake(self._layout, self.streams, self._instruction, wanted=None)
        steps: list[Step] = []
        gaps: list[Gap] = []
        ticks = observed = 0
        for now_ns in self._play(intake):
            ticks += 1
            try:
                seen = intake.observation(now_ns)
            except IncompleteObservationError as error:
                reason = '; '.join(f'{p.stream}: {p.text}' for p in error.problems)
                if gaps and gaps[-1].end_ns == now_ns - self._period_ns:
                    gaps[-1] = gaps[-1]._replace(end_ns=now_ns)
                else:
                    gaps.append(Gap(now_ns, now_ns, reason))
                continue
            observed += 1
            if not steps or steps[-1].observed_ns != seen.observed_ns:
                image_ns = intake.image_stamps(now_ns)
                row = (now_ns, seen.observed_ns, seen.state, seen.instruction, image_ns, 0)
                steps.append(Step(*row))
        if intake.jumps:
            raise BagError(_jumps_text(self.bag.name, intake.jumps))
        steps = _with_episodes(steps, intake.episodes)
        losses = tuple(self.bag.losses)
        if not steps:
            raise BagError(self._nothing_text(gaps, intake, losses))
        inside = _inside_episodes(gaps, steps)
        lost = sum((gap.end_ns - gap.start_ns) // self._period_ns + 1 for gap in inside)
        return BagScan(
            steps=tuple(steps),
            gaps=tuple(inside),
            gap_share=lost / (lost + observed),
            ticks=ticks,
            dropped=intake.dropped,
            trouble=intake.trouble,
            offset_s={t: float(np.median(o)) / 1e9 for t, o in intake.offsets_ns.items()},
            losses=losses,
        )

    def load(self, steps: Collection[Step]) -> Iterator[tuple[Step, Observation | str]]:
        """Yield each of these steps with its observation, or with why it has none after all."""
        wanted = {
            camera: {step.image_ns[camera] for step in steps} for camera in self._layout.cameras
        }
        by_tick = {step.now_ns: step for step in steps}
        last_ns = max(by_tick, default=0)
        intake = BagIntake(self._layout, self.streams, self._instruction, wanted)
        for now_ns in self._play(intake):
            if now_ns in by_tick:
                yield by_tick[now_ns], self._observation(intake, by_tick[now_ns])
            if now_ns >= last_ns:
                return

    def _observation(self, intake: BagIntake, step: Step) -> Observation | str:
        """Return the observation of a step, or which image of it could not be decoded."""
        problem = '; '.join(intake.trouble.values())
        try:
            seen = intake.observation(step.now_ns)
        except IncompleteObservationError as error:
            return problem or str(error)
        return seen if intake.image_stamps(step.now_ns) == step.image_ns else problem

    def _play(self, intake: BagIntake) -> Iterator[int]:
        """Feed the messages; yield each tick once everything stamped until then has been fed."""
        clock_ns, tick_ns = 0, None  # ticks begin with the first image of the first camera
        first_camera = next(iter(self.streams.cameras))
        for message in self.bag.messages(self.streams.topics):
            topic = message.topic
            try:
                decoded = self.bag.decode(message)
            except MessageError as error:
                intake.drop(topic, str(error))
                continue
            if topic in (self.streams.instruction, self.streams.episode):
                while topic == self.streams.instruction and tick_ns and tick_ns <= clock_ns:
                    yield tick_ns  # the sentence came after what is stored
                    tick_ns += self._period_ns
                intake.put_unstamped(topic, decoded)
                continue
            stamp_ns = to_nanoseconds(decoded.header.stamp)
            if tick_ns is None and topic == first_camera:
                tick_ns = stamp_ns
            if tick_ns is not None and stamp_ns - tick_ns > LONG_PAUSE_NS:
                yield tick_ns  # one tick tells as much as a thousand
                tick_ns += -(-(stamp_ns - tick_ns) // self._period_ns) * self._period_ns
            while tick_ns is not None and tick_ns < stamp_ns:
                yield tick_ns
                tick_ns += self._period_ns
            clock_ns = max(clock_ns, stamp_ns)
            intake.put(topic, decoded, stamp_ns, message.log_ns)
        while tick_ns is not None and tick_ns <= clock_ns:
            yield tick_ns
            tick_ns += self._period_ns

    def _check_first_messages(self) -> None:
        """Refuse at once what shows in the first message of every stream."""
        intake = BagIntake(self._layout, self.streams, self._instruction, wanted=None)
        unseen = {*self.streams.cameras, *self.streams.state}
        tried: Counter[str] = Counter()
        problems = []
        for message in self.bag.messages(unseen.copy()):
            topic = message.topic
            if topic not in unseen:
                continue
            tried[topic] += 1
            try:
                decoded = self.bag.decode(message)
            except MessageError as error:
                intake.drop(topic, str(error))
            else:
                stamp_ns = to_nanoseconds(decoded.header.stamp)
                intake.put(topic, decoded, stamp_ns, message.log_ns)
                if stamp_ns == 0:
                    problems.append(f'{topic}: the stamp is zero, the driver sets none')
            if intake.stored[topic] or tried[topic] == _TRIED:
                unseen.discard(topic)
            if not unseen:
                break
        unusable = [topic for topic in tried if not intake.stored[topic]]
        problems += [f'{topic}: {intake.trouble[topic]}' for topic in unusable]
        if problems:
            lines = '\n  '.join(problems)
            raise BagError(f'bag {self.bag.name!r} does not fit the policy:\n  {lines}')

    def _nothing_text(self, gaps: Sequence[Gap], intake: BagIntake, losses: Sequence[str]) -> str:
        reasons = Counter(gap.reason for gap in gaps).most_common(3)
        lines = [f'no observation at t={gaps[0].start_ns / 1e9:.3f} s'] if gaps else []
        lines += [reason for reason, _ in reasons]
        lines += [f'{topic}: {why}' for topic, why in intake.trouble.items()]
        lines += losses
        return f'bag {self.bag.name!r} has no episodes:\n  ' + '\n  '.join(
            lines or ['no messages']
        )


def _with_episodes(steps: Sequence[Step], marks: Sequence[EpisodeMark]) -> list[Step]:
    """Return the steps that belong to an episode, numbered by it."""
    number: Callable[[Step], int | None] = _by_status(marks) if marks else _by_pauses(steps)
    numbered = [(step, number(step)) for step in steps]
    return [step._replace(episode=n) for step, n in numbered if n is not None]


def _inside_episodes(gaps: Sequence[Gap], steps: Sequence[Step]) -> list[Gap]:
    """Return the gaps that have steps of one and the same episode on both sides."""
    ticks = np.array([step.now_ns for step in steps])

    def is_inside(gap: Gap) -> bool:
        after = int(np.searchsorted(ticks, gap.start_ns))
        return 0 < after < len(steps) and steps[after - 1].episode == steps[after].episode

    return list(filter(is_inside, gaps))


def _by_status(marks: Sequence[EpisodeMark]) -> Callable[[Step], int | None]:
    """Return a step's number by the epoch announced last at its time; None: it was over."""
    ordered = sorted(marks)
    stamps = np.array([mark.stamp_ns for mark in ordered])

    over_ns = {mark.epoch: mark.stamp_ns for mark in reversed(ordered) if mark.done}

    def number(step: Step) -> int | None:
        place = int(np.searchsorted(stamps, step.observed_ns, side='right')) - 1
        if place < 0:
            return None
        epoch = ordered[place].epoch
        return epoch if step.observed_ns <= over_ns.get(epoch, step.observed_ns) else None

    return number


def _by_pauses(steps: Sequence[Step]) -> Callable[[Step], int]:
    """Return a step's number by the pauses and new sentences before it."""
    numbers: dict[int, int] = {}
    for before, step in zip([None, *steps], steps):
        last = numbers[before.now_ns] if before else 0
        is_new = before is not None and (
            step.observed_ns - before.observed_ns > LONG_PAUSE_NS
            or step.instruction != before.instruction
        )
        numbers[step.now_ns] = last + is_new
    return lambda step: numbers[step.now_ns]


def _jumps_text(name: str, jumps: Sequence[str]) -> str:
    shown = '\n  '.join(jumps[:_SHOWN])
    more = f'\n  and {len(jumps) - _SHOWN} more' if len(jumps) > _SHOWN else ''
    return (
        f'the clock of bag {name!r} jumps {len(jumps)} time(s):\n  {shown}{more}\n'
        'Record again without restarting the simulator or looping a playback, or cut the bag'
    )
