"""
The observation that a recorded chunk answers, assembled as the node did.

A chunk carries the stamp of the image of the first camera. The state is that at this stamp, and of
the other cameras the newest image counts that had arrived when the inference began: that moment is
the arrival of the chunk minus the duration of its inference. Messages are stored and joined by the
code of the running node (`data.bag_intake`, `data.resample`). Where every input carries the stamp
of the chunk, as in lockstep, there is no doubt; otherwise the arrival times of the recorder stand
for those of the node, which may have had an older image or state a moment before the next arrived.
`others` gives the observations that come into question as well; `analysis.replay` can tell which
of them it was.

The bag is read twice: `find` finds out what there is without keeping a pixel, `load` decodes the
images that are needed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.data.bag_intake import BagIntake
from vlaq_ros.data.bag_streams import StreamLayout, find_streams
from vlaq_ros.data.bags import Bag
from vlaq_ros.data.messages import (
    POSE_TOPIC,
    decode_pixels,
    pose_values,
    read_joints,
    read_pose,
    to_nanoseconds,
)
from vlaq_ros.data.resample import IncompleteObservationError
from vlaq_ros.data.state import StateMerger
from vlaq_ros.errors import BagError, ImageError, MessageError
from vlaq_ros.types import Observation

_BACK = 3  # states up to the stamp that come into question
_AROUND, _MOST = 12, 60  # images of a camera, and of all cameras together
_ANY_SENTENCE = '-'  # the chunk says which sentence was followed


@dataclass(frozen=True)
class Asked:
    """
    One inference.

    Attributes:
        number: Place among the chunks of the bag.
        observed_ns: Stamp of the observation.
        began_ns: When the inference began, on the clock of the recorder.
        instruction: The sentence that was followed.
    """

    number: int
    observed_ns: int
    began_ns: int
    instruction: str


@dataclass(frozen=True)
class Found:
    """
    What an inference saw.

    Attributes:
        asked: Which inference.
        image_ns: Camera -> stamp of its image; empty: there is no observation.
        is_alike: Whether every image and the state carry the stamp of the chunk.
        problem: Why there is no observation; empty: there is one.
    """

    asked: Asked
    image_ns: Mapping[str, int]
    is_alike: bool
    problem: str = ''


class ChunkObservations:
    """
    The observations of one bag, by the chunks that answer them.

    Args:
        bag: The bag.
        layout: What the policy takes from the robot.
        names: Stream -> topic, for topics that are called otherwise.

    Attributes:
        streams: The topics that are used.
        dropped: Topic -> messages that could not be used, after `find`.
        losses: What of the bag could not be read, after `find`.

    Raises:
        BagError: The bag does not hold what the layout needs.
    """

    def __init__(
        self, bag: Bag, layout: StreamLayout, names: Mapping[str, str] | None = None
    ) -> None:
        self._bag = bag
        self._layout = layout
        self.streams = find_streams(bag, layout, names, needs_instruction=False)
        self._first = next(iter(self.streams.cameras))
        self._camera = self.streams.cameras[self._first]
        self._image_ns: dict[str, set[int]] = {}
        self.dropped: dict[str, int] = {}
        self.losses: tuple[str, ...] = ()

    def find(self, asked: Sequence[Asked]) -> list[Found]:
        """
        Return what there is for each inference, in the order of `asked`.

        Raises:
            BagError: The clock of the bag jumps.
        """
        intake = self._intake(None)
        found = {
            one.number: self._look(intake, one, now) for one, now in self._play(intake, asked)
        }
        if intake.jumps:
            raise BagError(
                f'the clock of bag {self._bag.name!r} jumps, stamps do not tell its messages '
                'apart:\n  ' + '\n  '.join(intake.jumps[:10])
            )
        self.dropped = dict(intake.dropped)
        self.losses = tuple(self._bag.losses)
        return [found[one.number] for one in asked]

    def load(self, found: Sequence[Found]) -> Iterator[tuple[Found, Observation | str]]:
        """Yield each of these with its observation, or why it has none, in order of time."""
        usable = {one.asked.number: one for one in found if not one.problem}
        wanted = {
            camera: {one.image_ns[camera] for one in usable.values()}
            for camera in self._layout.cameras
        }
        intake = self._intake(wanted)
        for one in found:
            if one.problem:
                yield one, one.problem
        for asked, now_ns in self._play(intake, [one.asked for one in usable.values()]):
            one = usable[asked.number]
            try:
                seen = intake.observation(now_ns)
            except IncompleteObservationError as error:
                yield one, '; '.join(intake.trouble.values()) or _text(error)
                continue
            if intake.image_stamps(now_ns) != one.image_ns:
                yield one, '; '.join(intake.trouble.values()) or 'an image is missing'
                continue
            yield one, replace(seen, instruction=asked.instruction)

    def others(self, found: Sequence[Found]) -> Iterator[tuple[Found, Observation]]:
        """
        Yield what else these inferences may have seen, the likeliest first for each.

        The images of the other cameras are those around, the state is one of the last.
        """
        state = self._read_states()
        stamps = {
            camera: sorted(at) for camera, at in self._image_ns.items() if camera != self._camera
        }
        choices = [self._choices(one, stamps) for one in found]
        pixels = self._read_images(choices)
        for one, images in zip(found, choices):
            at_ns = one.asked.observed_ns
            past = [row for stamp_ns, row in state if stamp_ns <= at_ns][-_BACK:][::-1]
            for row in past or [np.zeros(0)]:
                for stamps_ns in images:
                    keys = [(camera, stamp_ns) for camera, stamp_ns in stamps_ns.items()]
                    if all(key in pixels for key in keys):
                        shown = {camera: pixels[camera, at] for camera, at in keys}
                        sentence = one.asked.instruction
                        yield one, Observation(shown, row, sentence, at_ns, stamps_ns)

    def _choices(self, one: Found, stamps: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
        """Return the images that come into question together, those nearest in time first."""
        at_ns, spread_ns = one.asked.observed_ns, round(self._layout.spread_s * 1e9)
        near = {}
        for camera in self._layout.cameras:
            around = [s for s in stamps.get(camera, ()) if abs(s - at_ns) <= spread_ns]
            around.sort(key=lambda stamp_ns, chosen=one.image_ns[camera]: abs(stamp_ns - chosen))
            near[camera] = around[:_AROUND] or [one.image_ns[camera]]
        return [dict(zip(near, row)) for row in islice(product(*near.values()), _MOST)]

    def _read_states(self) -> list[tuple[int, NDArray[np.float64]]]:
        """Return every state of the bag with its stamp."""
        layout = self._layout
        keep_ns = round((layout.state_age_s + layout.spread_s) * 1e9)
        merger = StateMerger(layout.sources, layout.scales, keep_ns)
        states: dict[int, NDArray[np.float64]] = {}
        for topic, message in self._decoded(self.streams.state):
            try:
                if self.streams.state[topic] == POSE_TOPIC:
                    values = pose_values(read_pose(message, layout.base_frame))
                else:
                    values = read_joints(message, merger.joints)
            except MessageError:
                continue
            stamp_ns = to_nanoseconds(message.header.stamp)
            state = merger.put(self.streams.state[topic], values, stamp_ns)
            if state is not None:
                states[state.stamp_ns] = state.value
        return sorted(states.items(), key=lambda item: item[0])

    def _read_images(
        self, choices: Sequence[Sequence[Mapping[str, int]]]
    ) -> dict[tuple[str, int], NDArray[np.uint8]]:
        """Return the pixels of the images that come into question."""
        wanted = {item for rows in choices for row in rows for item in row.items()}
        pixels = {}
        for topic, message in self._decoded(self.streams.cameras):
            key = self.streams.cameras[topic], to_nanoseconds(message.header.stamp)
            if key in wanted:
                with suppress(ImageError):
                    pixels[key] = decode_pixels(message)
        return pixels

    def _decoded(self, topics: Collection[str]) -> Iterator[tuple[str, Any]]:
        for message in self._bag.messages(list(topics)):
            with suppress(MessageError):
                yield message.topic, self._bag.decode(message)

    def _intake(self, wanted: Mapping[str, set[int]] | None) -> BagIntake:
        return BagIntake(self._layout, self.streams, _ANY_SENTENCE, wanted)

    def _look(self, intake: BagIntake, asked: Asked, now_ns: int) -> Found:
        try:
            seen = intake.observation(now_ns)
        except IncompleteObservationError as error:
            return Found(asked, {}, False, _text(error))
        stamps = intake.image_stamps(now_ns)
        if seen.observed_ns != asked.observed_ns:
            why = f' ({intake.trouble[self._first]})' if self._first in intake.trouble else ''
            return Found(
                asked,
                {},
                False,
                f'{self._camera}: no image with the stamp of the chunk in the bag{why}',
            )
        is_alike = set(stamps.values()) == {asked.observed_ns}
        is_alike &= all(asked.observed_ns in seen for seen in self._state_ns.values())
        return Found(asked, stamps, is_alike)

    def _play(self, intake: BagIntake, asked: Sequence[Asked]) -> Iterator[tuple[Asked, int]]:
        """Feed the messages; yield each inference at its moment, with the newest stamp by then."""
        waiting = sorted(asked, key=lambda one: (one.observed_ns, one.number), reverse=True)
        newest_ns, first_ns = 0, -1
        self._state_ns: dict[str, set[int]] = {topic: set() for topic in self.streams.state}
        for message in self._bag.messages(self.streams.topics):
            topic = message.topic
            if topic not in self.streams.cameras and topic not in self.streams.state:
                continue
            try:
                decoded = self._bag.decode(message)
            except MessageError as error:
                intake.drop(topic, str(error))
                continue
            stamp_ns = to_nanoseconds(decoded.header.stamp)
            while waiting and self._is_due(waiting[-1], topic, stamp_ns, message.log_ns, first_ns):
                one = waiting.pop()
                yield one, max(newest_ns, one.observed_ns)
            intake.put(topic, decoded, stamp_ns, message.log_ns)
            newest_ns = max(newest_ns, stamp_ns)
            if topic in self.streams.cameras:
                self._image_ns.setdefault(self.streams.cameras[topic], set()).add(stamp_ns)
            if topic == self._first:
                first_ns = stamp_ns
            elif topic in self._state_ns:
                self._state_ns[topic].add(stamp_ns)
        while waiting:
            one = waiting.pop()
            yield one, max(newest_ns, one.observed_ns)

    def _is_due(self, one: Asked, topic: str, stamp_ns: int, log_ns: int, first_ns: int) -> bool:
        """Whether the inference began before this message came."""
        if stamp_ns <= one.observed_ns:
            return False
        if topic == self._first:
            return True
        return first_ns == one.observed_ns and log_ns > one.began_ns


def _text(error: IncompleteObservationError) -> str:
    return '; '.join(f'{problem.stream}: {problem.text}' for problem in error.problems)
