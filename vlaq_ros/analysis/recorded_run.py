"""
What a bag tells about a policy at work: its chunks, drift reports, levels, and what the arm did.

Only small messages are read here; images follow for the chunks that need them. Topics are found by
their types, so a policy node of any name in any namespace is understood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.data.bags import Bag
from vlaq_ros.data.messages import POSE_TOPIC, to_nanoseconds, to_pose
from vlaq_ros.errors import BagError, MessageError

CHUNK, REPORT = 'vlaq_ros/msg/ActionChunk', 'vlaq_ros/msg/DriftReport'
PRECISION, EPISODE = 'vlaq_ros/msg/PrecisionState', 'vlaq_ros/msg/EpisodeStatus'
POSE, JOINTS = 'geometry_msgs/msg/PoseStamped', 'sensor_msgs/msg/JointState'
GRIPPER = 'gripper_cmds'


class Recorded(NamedTuple):
    """A message and when it was received [ns on the clock of the recorder]."""

    log_ns: int
    message: Any

    @property
    def stamp_ns(self) -> int:
        """Its header stamp."""
        return to_nanoseconds(self.message.header.stamp)


class EpisodeState(NamedTuple):
    """One `EpisodeStatus`: when, which episode of the simulator, and how it stands."""

    stamp_ns: int
    epoch: int
    task: str
    success: bool
    done: bool


@dataclass(frozen=True)
class RecordedRun:
    """
    The small messages of a bag.

    Attributes:
        chunks: `ActionChunk`, in order of arrival.
        reports: `DriftReport`, likewise.
        precision: `PrecisionState`, likewise.
        episodes: In order of time; empty without a simulator.
        path_ns: [n] stamps of the measured poses, rising [ns].
        path: [n, 7] position [m] and quaternion xyzw.
        gripper_ns, gripper: [n] stamps [ns] and commanded joint positions of the gripper.
        topics: What was read -> its topic.
        trouble: Messages that cannot be read, by topic, with the reason.
        losses: What of the bag could not be read.
    """

    chunks: tuple[Recorded, ...]
    reports: tuple[Recorded, ...]
    precision: tuple[Recorded, ...]
    episodes: tuple[EpisodeState, ...]
    path_ns: NDArray[np.int64]
    path: NDArray[np.float64]
    gripper_ns: NDArray[np.int64]
    gripper: NDArray[np.float64]
    topics: Mapping[str, str] = field(default_factory=dict)
    trouble: Mapping[str, str] = field(default_factory=dict)
    losses: tuple[str, ...] = ()


def read_run(bag: Bag, policy: str = '', names: Mapping[str, str] | None = None) -> RecordedRun:
    """
    Read the small messages of a bag.

    Args:
        bag: Which.
        policy: Name of the policy node, where the bag holds several.
        names: Stream -> topic, for topics that are called otherwise.

    Raises:
        BagError: The bag holds no chunks, or those of several policies.
    """
    topics = _find_topics(bag, policy, names or {})
    found: dict[str, list[Recorded]] = {kind: [] for kind in topics}
    kind_of = {topic: kind for kind, topic in topics.items()}
    trouble: dict[str, str] = {}
    for message in bag.messages(list(kind_of)):
        try:
            decoded = bag.decode(message)
        except MessageError as error:
            trouble[message.topic] = str(error)
            continue
        found[kind_of[message.topic]].append(Recorded(message.log_ns, decoded))
    if not found['chunks']:
        why = '; '.join(f'{topic}: {text}' for topic, text in trouble.items()) or 'none arrived'
        raise BagError(
            f'bag {bag.name!r} has no action chunks that can be read on {topics["chunks"]} ({why})'
        )
    path_ns, path = _poses(found.get('poses', ()))
    gripper_ns, gripper = _gripper(found.get('gripper', ()))
    return RecordedRun(
        chunks=tuple(found['chunks']),
        reports=tuple(found.get('reports', ())),
        precision=tuple(found.get('precision', ())),
        episodes=tuple(sorted({_episode(one) for one in found.get('episodes', ())})),
        path_ns=path_ns,
        path=path,
        gripper_ns=gripper_ns,
        gripper=gripper,
        topics=topics,
        trouble=trouble,
        losses=tuple(bag.losses),
    )


def _find_topics(bag: Bag, policy: str, names: Mapping[str, str]) -> dict[str, str]:
    there = bag.topics()
    chunks = [t for t in there.values() if t.type == CHUNK]
    wanted = [t for t in chunks if not policy or t.name.split('/')[-2:-1] == [policy]]
    used = [t for t in wanted if t.count] or wanted
    if len(used) != 1:
        holds = ', '.join(map(str, there.values())) or 'nothing'
        what = ', '.join(topic.name for topic in chunks)
        if not chunks:
            why = f'has no topic of type {CHUNK}: record ~/action_chunk of the policy node'
        elif not used:
            why = f'has no chunks of a node {policy!r}, only {what}'
        else:
            why = f'has the chunks of several policies, choose one with --policy: {what}'
        raise BagError(f'bag {bag.name!r} {why}.\nIt holds: {holds}')
    node = used[0].name.rpartition('/')[0]
    topics = {'chunks': used[0].name}
    beside = {'reports': REPORT, 'precision': PRECISION}
    for kind, type_name in beside.items():
        own = [t.name for t in there.values() if t.type == type_name]
        own = [name for name in own if name.rpartition('/')[0] == node]
        topics |= {kind: own[0]} if own else {}
    for kind, type_name, name in (
        ('poses', POSE, names.get(POSE_TOPIC, POSE_TOPIC)),
        ('gripper', JOINTS, f'{node}/{GRIPPER}'),
        ('episodes', EPISODE, names.get('episode', 'episode')),
    ):
        called = [
            t.name
            for t in there.values()
            if t.type == type_name and f'/{t.name}'.endswith('/' + name.lstrip('/'))
        ]
        topics |= {kind: min(called, key=len)} if called else {}
    return topics


def _episode(one: Recorded) -> EpisodeState:
    status = one.message
    return EpisodeState(one.stamp_ns, status.epoch, status.task, status.success, status.done)


def _poses(found: Sequence[Recorded]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    poses = {one.stamp_ns: to_pose(one.message) for one in found}
    rows = {
        stamp_ns: np.concatenate([pose.position, pose.quat_xyzw])
        for stamp_ns, pose in sorted(poses.items())
    }
    rows = {stamp_ns: row for stamp_ns, row in rows.items() if np.isfinite(row).all()}
    return np.array(list(rows), dtype=np.int64), np.array(list(rows.values())).reshape(-1, 7)


def _gripper(found: Sequence[Recorded]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rows = {
        one.stamp_ns: float(one.message.position[0]) for one in found if one.message.position.size
    }
    stamps = sorted(rows)
    return np.array(stamps, dtype=np.int64), np.array([rows[stamp] for stamp in stamps])
