"""
The newest samples of all streams as one observation on the control clock.

Each stream is held: at time t the newest sample stamped at or before t counts, as long as it is
not too old. The state belongs to the first image: once it is known to be fresh, the sample at or
before the stamp of that image counts, if there is one. Ages come from header stamps, so a driver
that repeats an old stamp goes stale even though its messages arrive. A missing or stale stream is
a refusal that lists every offender: nothing is filled in or interpolated. The running node and the
bag reader both use this code.

After a backward jump of the clock (a looped bag, a reset simulator) call `clear`. When that clock
can stand still, also watch `silent_for_s`, which runs on a steady clock.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ImageError, StaleInputError
from vlaq_ros.types import Observation

MANY_SAMPLES = 4096
"""Capacity of a buffer that is sized by time: memory stays bounded whatever a driver sends."""

STATE_STREAM = 'state'
INSTRUCTION_STREAM = 'instruction'


class StreamFault(str, Enum):
    """Why a stream cannot be used now."""

    MISSING = 'missing'
    STALE = 'stale'
    FUTURE = 'future'
    SPREAD = 'spread'

    __str__ = str.__str__


class StreamProblem(NamedTuple):
    """One stream that cannot be used now; the age [s] is None when nothing has arrived."""

    stream: str
    fault: StreamFault
    age_s: float | None
    text: str


class IncompleteObservationError(StaleInputError):
    """
    Some streams are missing or stale.

    Attributes:
        problems: All of them, cameras first.
    """

    def __init__(self, now_ns: int, problems: Iterable[StreamProblem]) -> None:
        self.problems = tuple(problems)
        lines = [f'no observation at t={now_ns / 1e9:.3f} s:']
        lines += [f'  {problem.stream}: {problem.text}' for problem in self.problems]
        super().__init__('\n'.join(lines))


class Sample(NamedTuple):
    """A value and the time it was taken."""

    stamp_ns: int
    value: Any


class StreamBuffer:
    """
    The last few samples of one stream. All methods may be called from any thread.

    The buffer forgets in order of arrival, so it recovers by itself from a wrong stamp.

    Args:
        capacity: Samples kept. More than one is needed when stamps run ahead of the control clock.
        steady_clock: Returns seconds that never jump; they tell when something last arrived.
        keep_ns: Samples stamped further than this from the last two are forgotten, so that a
            buffer covers a time and not a number of samples; None: only `capacity` counts.
    """

    def __init__(
        self,
        capacity: int = 8,
        steady_clock: Callable[[], float] = time.monotonic,
        keep_ns: int | None = None,
    ) -> None:
        self._samples: deque[Sample] = deque(maxlen=capacity)
        self._keep_ns = keep_ns
        self._steady_clock = steady_clock
        self._arrived_s: float | None = None
        self._lock = threading.Lock()

    def put(self, value: Any, stamp_ns: int) -> None:
        """Keep a value, which must not be changed afterwards."""
        with self._lock:
            last_ns = self._samples[-1].stamp_ns if self._samples else None
            if last_ns == stamp_ns:
                self._samples.pop()
            self._samples.append(Sample(stamp_ns, value))
            self._arrived_s = self._steady_clock()
            if self._keep_ns is not None and last_ns is not None:
                # Two stamps, so that a single wrong one does not empty the buffer.
                low_ns = min(last_ns, stamp_ns) - self._keep_ns
                high_ns = max(last_ns, stamp_ns) + self._keep_ns
                while not low_ns <= self._samples[0].stamp_ns <= high_ns:
                    self._samples.popleft()

    def at(self, now_ns: int) -> Sample | None:
        """Return the newest sample stamped at or before `now_ns`, None if there is none."""
        with self._lock:
            past = [sample for sample in reversed(self._samples) if sample.stamp_ns <= now_ns]
        return max(past, key=lambda sample: sample.stamp_ns, default=None)

    def newest_stamp_ns(self) -> int | None:
        """Return the newest stamp, be it in the future; None if the buffer is empty."""
        with self._lock:
            return max((sample.stamp_ns for sample in self._samples), default=None)

    def silent_for_s(self) -> float | None:
        """Return the steady time since the last arrival [s], None if nothing has arrived."""
        with self._lock:
            return None if self._arrived_s is None else self._steady_clock() - self._arrived_s

    def clear(self) -> None:
        """Forget all samples and the last arrival."""
        with self._lock:
            self._samples.clear()
            self._arrived_s = None


class ObservationAssembler:
    """
    Collects images, state and instruction, and makes observations of them.

    The put methods, `observation` and `clear` may be called from different threads.

    Args:
        cameras: Names of the required cameras; the stamp of the first one is that of the
            observation.
        need_state: Whether a state is required; without it observations have an empty one.
        max_age_ns: Oldest sample that may be used, for all streams or by stream name (`state` for
            the state).
        max_spread_ns: Longest time between the oldest and the newest sample of one observation;
            None: no limit beyond the ages.
        steady_clock: See `StreamBuffer`.
    """

    def __init__(
        self,
        cameras: Iterable[str],
        need_state: bool,
        max_age_ns: int | Mapping[str, int],
        max_spread_ns: int | None = None,
        steady_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cameras = tuple(cameras)
        streams = (*self._cameras, STATE_STREAM) if need_state else self._cameras
        reserved = {STATE_STREAM, INSTRUCTION_STREAM}.intersection(self._cameras)
        if not self._cameras or reserved or len(set(self._cameras)) != len(self._cameras):
            raise ValueError(
                f'cameras must be distinct, at least one, and not named {STATE_STREAM!r} or '
                f'{INSTRUCTION_STREAM!r}: {self._cameras}'
            )
        if not isinstance(max_age_ns, Mapping):
            max_age_ns = dict.fromkeys(streams, max_age_ns)
        if set(max_age_ns) != set(streams) or min(max_age_ns.values()) <= 0:
            raise ValueError(
                f'max_age_ns needs a positive limit for each of {streams}: {max_age_ns}'
            )
        self._max_age_ns = dict(max_age_ns)
        self._max_spread_ns = max_spread_ns
        self._buffers = {name: StreamBuffer(steady_clock=steady_clock) for name in streams}
        if need_state:  # small, and sent more often than images: as long as any image is usable
            keep_ns = max(max_age_ns.values()) + max_age_ns[STATE_STREAM] + (max_spread_ns or 0)
            self._buffers[STATE_STREAM] = StreamBuffer(MANY_SAMPLES, steady_clock, keep_ns)
        self._instruction = ''
        self._lock = threading.Lock()  # an observation never mixes samples around a clear()

    def put_image(self, camera: str, image: NDArray[np.uint8], stamp_ns: int) -> None:
        """
        Keep an RGB image [height, width, 3], which must not be changed afterwards.

        Raises:
            ImageError: It is no 8 bit RGB image.
            ValueError: The camera is not one of this assembler.
        """
        if camera not in self._cameras:
            raise ValueError(f'no camera {camera!r} among {self._cameras}')
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f'camera {camera!r} gave {image.dtype} {list(image.shape)} instead of '
                'uint8 [height, width, 3]: decode the message to RGB first'
            )
        with self._lock:
            self._buffers[camera].put(image, stamp_ns)

    def put_state(self, state: NDArray, stamp_ns: int) -> None:
        """Keep a copy of a state [state_dim]; ignored when no state is needed."""
        if STATE_STREAM in self._buffers:
            with self._lock:
                self._buffers[STATE_STREAM].put(np.array(state, dtype=np.float64), stamp_ns)

    def put_instruction(self, text: str) -> None:
        """Follow this sentence from the next observation on; an empty one means none."""
        with self._lock:
            self._instruction = text.strip()

    def clear(self) -> None:
        """Forget all samples; the instruction stays in force."""
        with self._lock:
            for buffer in self._buffers.values():
                buffer.clear()

    def observation(self, now_ns: int) -> Observation:
        """
        Return what was known at `now_ns`.

        Raises:
            IncompleteObservationError: Streams are missing, stale, ahead of the clock or too far
                apart; all of them are listed with their ages.
        """
        samples, instruction = self._usable(now_ns)
        state = samples.pop(STATE_STREAM, Sample(0, np.zeros(0))).value
        images = {name: sample.value for name, sample in samples.items()}
        stamps = {name: sample.stamp_ns for name, sample in samples.items()}
        return Observation(images, state, instruction, stamps[self._cameras[0]], stamps)

    def require(self, now_ns: int) -> None:
        """Raise what `observation` would raise now, without copying any pixel."""
        self._usable(now_ns)

    def ages_s(self, now_ns: int) -> dict[str, float | None]:
        """Return the age of the newest stamp of every stream [s]; None: nothing has arrived."""
        stamps = {name: buffer.newest_stamp_ns() for name, buffer in self._buffers.items()}
        return {name: None if s is None else (now_ns - s) / 1e9 for name, s in stamps.items()}

    def silent_for_s(self) -> dict[str, float | None]:
        """Return the steady time since the last arrival of every stream [s]; None: never."""
        return {name: buffer.silent_for_s() for name, buffer in self._buffers.items()}

    def _usable(self, now_ns: int) -> tuple[dict[str, Sample], str]:
        """Return the sample of every stream and the instruction, or raise with all problems."""
        with self._lock:
            samples = {name: buffer.at(now_ns) for name, buffer in self._buffers.items()}
            problems = [
                problem
                for name, sample in samples.items()
                if (problem := self._problem(name, sample, now_ns)) is not None
            ]
            instruction = self._instruction
            if STATE_STREAM in samples and not problems:
                image_ns = samples[self._cameras[0]].stamp_ns
                samples[STATE_STREAM] = (
                    self._buffers[STATE_STREAM].at(image_ns) or samples[STATE_STREAM]
                )
        if not problems:
            problems = self._spread(samples, now_ns)
        if not instruction:
            text = 'no sentence received yet'
            problems.append(StreamProblem(INSTRUCTION_STREAM, StreamFault.MISSING, None, text))
        if problems:
            raise IncompleteObservationError(now_ns, problems)
        return samples, instruction

    def _problem(self, name: str, sample: Sample | None, now_ns: int) -> StreamProblem | None:
        if sample is None:
            newest_ns = self._buffers[name].newest_stamp_ns()
            if newest_ns is None:
                return StreamProblem(name, StreamFault.MISSING, None, 'nothing received yet')
            ahead_s = (newest_ns - now_ns) / 1e9
            text = f'stamped {ahead_s:.3f} s in the future: synchronize the clocks'
            return StreamProblem(name, StreamFault.FUTURE, -ahead_s, text)
        age_ns = now_ns - sample.stamp_ns
        if age_ns <= self._max_age_ns[name]:
            return None
        text = f'{age_ns / 1e6:.0f} ms old, limit {self._max_age_ns[name] / 1e6:.0f} ms'
        if sample.stamp_ns == 0:
            text = 'the stamp is zero: the driver does not stamp its messages'
        return StreamProblem(name, StreamFault.STALE, age_ns / 1e9, text)

    def _spread(self, samples: Mapping[str, Sample], now_ns: int) -> list[StreamProblem]:
        oldest = min(samples, key=lambda name: samples[name].stamp_ns)
        newest = max(samples, key=lambda name: samples[name].stamp_ns)
        spread_ns = samples[newest].stamp_ns - samples[oldest].stamp_ns
        if self._max_spread_ns is None or spread_ns <= self._max_spread_ns:
            return []
        text = (
            f'{spread_ns / 1e6:.0f} ms older than {newest}, '
            f'limit {self._max_spread_ns / 1e6:.0f} ms'
        )
        age_s = (now_ns - samples[oldest].stamp_ns) / 1e9
        return [StreamProblem(oldest, StreamFault.SPREAD, age_s, text)]
