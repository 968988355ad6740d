"""
The state vector of a policy, made from the topics that carry parts of it.

A state is that of the last time up to which all its topics are known, so values of one state were
true together. The running node and the bag reader both use this code.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlaq_ros.data.messages import JOINT_PREFIX, JOINT_TOPIC, POSE_TOPIC
from vlaq_ros.data.resample import MANY_SAMPLES, Sample, StreamBuffer


class StateMerger:
    """
    Merges `ee_pose` and `joint_states` into states.

    Args:
        sources: One per state of the policy, in its order: `ee_pose.<axis>` or `joint.<name>`.
        scales: Factor from each source to the unit the policy expects.
        keep_ns: How far back values are remembered.

    Attributes:
        topics: Those that a state needs.
        joints: The sources that come from `joint_states`.
    """

    def __init__(self, sources: Sequence[str], scales: Sequence[float], keep_ns: int) -> None:
        self._sources, self._scales = tuple(sources), tuple(scales)
        self.joints = tuple(s for s in sources if s.startswith(JOINT_PREFIX))
        serves = {POSE_TOPIC: len(self.joints) < len(self._sources), JOINT_TOPIC: self.joints}
        self.topics = tuple(topic for topic, is_needed in serves.items() if is_needed)
        self._buffers = {t: StreamBuffer(MANY_SAMPLES, keep_ns=keep_ns) for t in self.topics}
        self._last_ns: dict[str, int] = {}

    def put(self, topic: str, values: Mapping[str, float], stamp_ns: int) -> Sample | None:
        """Keep the values of a message; return a state with its stamp, None if it has gaps."""
        if topic not in self._buffers:
            return None
        self._buffers[topic].put(values, stamp_ns)
        self._last_ns[topic] = stamp_ns
        if len(self._last_ns) < len(self._buffers):
            return None
        known_until_ns = min(self._last_ns.values())
        samples = [buffer.at(known_until_ns) for buffer in self._buffers.values()]
        if None in samples:
            return None
        known = {name: value for sample in samples for name, value in sample.value.items()}
        state = [known[source] * scale for source, scale in zip(self._sources, self._scales)]
        return Sample(min(sample.stamp_ns for sample in samples), np.array(state))

    def newest_ns(self) -> dict[str, int | None]:
        """Return the newest stamp of each topic; None: nothing is known of it."""
        return {topic: buffer.newest_stamp_ns() for topic, buffer in self._buffers.items()}

    def forget(self, now_ns: int) -> None:
        """Wait for topics again whose last stamp lies ahead of a clock that was set back."""
        self._last_ns = {t: stamp for t, stamp in self._last_ns.items() if stamp <= now_ns}

    def clear(self) -> None:
        """Forget everything."""
        self._last_ns.clear()
        for buffer in self._buffers.values():
            buffer.clear()
