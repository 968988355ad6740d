"""
Messages of a bag on their way to observations: stored or dropped as the running node does.

Beside the observation, what a recording may have wrong is watched: stamps that jump, receive times
that differ from them, messages that cannot be used.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vlaq_ros.data.bag_streams import StreamLayout, Streams
from vlaq_ros.data.messages import (
    POSE_TOPIC,
    decode_pixels,
    pose_values,
    read_joints,
    read_pose,
    require_size,
    to_nanoseconds,
)
from vlaq_ros.data.resample import STATE_STREAM, ObservationAssembler, StreamBuffer
from vlaq_ros.data.state import StateMerger
from vlaq_ros.errors import VlaqError
from vlaq_ros.types import Observation

_FORWARD_JUMP_NS = 10_000_000_000
_OFFSET_SAMPLES = 4096


class EpisodeMark(NamedTuple):
    """One `EpisodeStatus` message."""

    stamp_ns: int
    epoch: int
    done: bool


class BagIntake:
    """
    Stores the messages of a bag as the running node does.

    Args:
        layout: What the policy takes from the robot.
        streams: Topics of the bag.
        instruction: The sentence of the whole bag; empty: those in it.
        wanted: Camera -> stamps of the images to decode; None: images are checked and their
            pixels left out.

    Attributes:
        dropped: Topic -> messages that could not be used.
        trouble: Topic -> why the last of them was dropped.
        stored: Messages that were used, by topic.
        jumps: Where the clock of a topic jumps.
        offsets_ns: Topic -> receive time minus header stamp of its first messages.
        episodes: The status of episodes, in order of arrival.
    """

    def __init__(
        self,
        layout: StreamLayout,
        streams: Streams,
        instruction: str,
        wanted: Mapping[str, set[int]] | None,
    ) -> None:
        self._layout, self._streams, self._wanted = layout, streams, wanted
        ages = dict.fromkeys(layout.cameras, round(layout.image_age_s * 1e9))
        if layout.sources:
            ages[STATE_STREAM] = round(layout.state_age_s * 1e9)
        self._assembler = ObservationAssembler(
            layout.cameras, bool(layout.sources), ages, round(layout.spread_s * 1e9)
        )
        keep_ns = round((layout.state_age_s + layout.spread_s) * 1e9)
        self._merger = StateMerger(layout.sources, layout.scales, keep_ns)
        self._image_ns = {camera: StreamBuffer() for camera in layout.cameras}
        self._blank = {c: np.zeros((*size, 3), np.uint8) for c, size in layout.cameras.items()}
        self._is_fixed = bool(instruction)
        self._assembler.put_instruction(instruction)
        self._seen_compressed: set[str] = set()
        self._last: dict[str, tuple[int, int]] = {}
        self.episodes: list[EpisodeMark] = []
        self.dropped: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.trouble: dict[str, str] = {}
        self.jumps: list[str] = []
        self.offsets_ns: dict[str, list[int]] = {}

    def put(self, topic: str, message: Any, stamp_ns: int, log_ns: int) -> None:
        """Store a stamped message, or drop it with the reason."""
        self._watch_clock(topic, stamp_ns, log_ns)
        try:
            if topic in self._streams.cameras:
                self._put_image(self._streams.cameras[topic], message, stamp_ns)
            else:
                self._put_state(self._streams.state[topic], message, stamp_ns)
        except VlaqError as error:
            self.drop(topic, str(error))
        else:
            self.stored[topic] += 1

    def put_unstamped(self, topic: str, message: Any) -> None:
        """Store a sentence or the status of an episode."""
        if topic == self._streams.episode:
            stamp_ns = to_nanoseconds(message.header.stamp)
            self.episodes.append(EpisodeMark(stamp_ns, message.epoch, message.done))
            if not self._streams.instruction and not self._is_fixed:
                self._assembler.put_instruction(message.instruction)
        elif not self._is_fixed:
            self._assembler.put_instruction(message.data)

    def drop(self, topic: str, why: str) -> None:
        """Count a message that cannot be used."""
        self.dropped[topic] += 1
        self.trouble[topic] = why

    def observation(self, now_ns: int) -> Observation:
        """Return what was known at `now_ns`, or raise `IncompleteObservationError`."""
        return self._assembler.observation(now_ns)

    def image_stamps(self, now_ns: int) -> dict[str, int]:
        """Return the stamps of the images that an observation at `now_ns` shows."""
        return {camera: buffer.at(now_ns).stamp_ns for camera, buffer in self._image_ns.items()}

    def _put_image(self, camera: str, message: Any, stamp_ns: int) -> None:
        size = self._layout.cameras[camera]
        if self._wanted is not None:
            if stamp_ns in self._wanted[camera]:
                image = decode_pixels(message)
                require_size(camera, image.shape[:2], size)
                self._assembler.put_image(camera, image, stamp_ns)
                self._image_ns[camera].put(None, stamp_ns)
            return
        # Compressed pixels cost too much to be decoded twice: the first image tells the size.
        if not hasattr(message, 'format') or camera not in self._seen_compressed:
            require_size(camera, decode_pixels(message).shape[:2], size)
            if hasattr(message, 'format'):
                self._seen_compressed.add(camera)
        self._assembler.put_image(camera, self._blank[camera], stamp_ns)
        self._image_ns[camera].put(None, stamp_ns)

    def _put_state(self, stream: str, message: Any, stamp_ns: int) -> None:
        if stream == POSE_TOPIC:
            values = pose_values(read_pose(message, self._layout.base_frame))
        else:
            values = read_joints(message, self._merger.joints)
        state = self._merger.put(stream, values, stamp_ns)
        if state is not None:
            self._assembler.put_state(state.value, state.stamp_ns)

    def _watch_clock(self, topic: str, stamp_ns: int, log_ns: int) -> None:
        offsets = self.offsets_ns.setdefault(topic, [])
        if len(offsets) < _OFFSET_SAMPLES:
            offsets.append(log_ns - stamp_ns)
        if topic in self._last:
            last_ns, last_log_ns = self._last[topic]
            step_ns, waited_ns = stamp_ns - last_ns, log_ns - last_log_ns
            age_s = max(self._layout.image_age_s, self._layout.state_age_s)
            is_back = step_ns < -age_s * 1e9
            if is_back or step_ns - max(waited_ns, 0) > _FORWARD_JUMP_NS:
                at_s, by_s = last_ns / 1e9, step_ns / 1e9
                self.jumps.append(f'{topic}: at t={at_s:.3f} s by {by_s:+.3f} s')
        self._last[topic] = stamp_ns, log_ns
