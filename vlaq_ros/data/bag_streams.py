"""
Which topic of a bag serves which stream of a policy: found by name, checked by type.

Streams are called as the topics of the policy node: `<camera>/image_raw`, `ee_pose`,
`joint_states`, `instruction`; `episode` is used where there is one. In a bag they may lie in a
namespace, or have any name when a table says so. A bag of another robot is refused with what it
holds and what is needed, all at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vlaq_ros.data.bags import Bag, Topic
from vlaq_ros.data.messages import (
    INSTRUCTION_TOPIC,
    JOINT_PREFIX,
    JOINT_TOPIC,
    POSE_SOURCES,
    POSE_TOPIC,
)
from vlaq_ros.errors import BagError, ConfigError

EPISODE_TOPIC = 'episode'
IMAGE, COMPRESSED_IMAGE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_TYPES = {
    POSE_TOPIC: 'geometry_msgs/msg/PoseStamped',
    JOINT_TOPIC: 'sensor_msgs/msg/JointState',
    INSTRUCTION_TOPIC: 'std_msgs/msg/String',
    EPISODE_TOPIC: 'vlaq_ros/msg/EpisodeStatus',
}


@dataclass(frozen=True)
class StreamLayout:
    """
    What a policy takes from the robot; the values mean what they mean for the policy node.

    Attributes:
        cameras: Name -> (height, width) [px]; the first one stamps the observations.
        sources: One per state of the policy: `ee_pose.<axis>` or `joint.<name>`.
        scales: Factor from each source to the unit the policy expects.
        base_frame: Frame of the poses.
        image_age_s, state_age_s: Oldest usable image and state [s].
        spread_s: Longest time between the inputs of one observation [s].
    """

    cameras: Mapping[str, tuple[int, int]]
    sources: tuple[str, ...] = ('ee_pose.x', 'ee_pose.y', 'ee_pose.z', 'joint.gripper')
    scales: tuple[float, ...] = (1.0, 1.0, 1.0, 10.0)
    base_frame: str = 'base'
    image_age_s: float = 0.25
    state_age_s: float = 0.25
    spread_s: float = 0.25

    def __post_init__(self) -> None:
        unknown = [s for s in self.sources if s not in POSE_SOURCES and s[:6] != JOINT_PREFIX]
        if unknown or len(self.sources) != len(self.scales):
            raise ConfigError(
                f'state sources {list(self.sources)} with scales {list(self.scales)}: give one '
                f'scale per source, from {", ".join(POSE_SOURCES)} or {JOINT_PREFIX}<name>'
            )


@dataclass(frozen=True)
class Streams:
    """
    The topics of one bag that serve a layout.

    Attributes:
        cameras: Topic -> camera.
        state: Topic -> `ee_pose` or `joint_states`.
        instruction: Topic of the sentences; empty: there is none.
        episode: Topic of `EpisodeStatus`; empty: there is none.
    """

    cameras: Mapping[str, str]
    state: Mapping[str, str]
    instruction: str = ''
    episode: str = ''
    topics: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = (*self.cameras, *self.state, self.instruction, self.episode)
        object.__setattr__(self, 'topics', tuple(name for name in names if name))


def find_streams(
    bag: Bag,
    layout: StreamLayout,
    names: Mapping[str, str] | None = None,
    *,
    needs_instruction: bool = True,
) -> Streams:
    """
    Find the topics of a layout in a bag.

    Args:
        bag: Where to look.
        layout: What is needed.
        names: Stream -> topic of the bag, for those that are called otherwise.
        needs_instruction: False when the sentence is known from elsewhere.

    Raises:
        BagError: Topics are missing, empty, ambiguous or of another type; all are listed.
        ConfigError: `names` names a stream that this policy does not have.
    """
    search = _Search(bag, names or {})
    cameras, state = {}, {}
    for camera in layout.cameras:
        kinds = {f'{camera}/image_raw': IMAGE, f'{camera}/image_raw/compressed': COMPRESSED_IMAGE}
        cameras[search.find(camera, kinds)] = camera
    is_joint = [source.startswith(JOINT_PREFIX) for source in layout.sources]
    for stream, is_needed in ((POSE_TOPIC, not all(is_joint)), (JOINT_TOPIC, any(is_joint))):
        if is_needed:
            state[search.find(stream, {stream: _TYPES[stream]})] = stream
    episode = search.find(EPISODE_TOPIC, {EPISODE_TOPIC: _TYPES[EPISODE_TOPIC]}, is_needed=False)
    instruction = search.find(
        INSTRUCTION_TOPIC,
        {INSTRUCTION_TOPIC: _TYPES[INSTRUCTION_TOPIC]},
        is_needed=needs_instruction and not episode,
    )
    search.finish()
    return Streams(cameras, state, instruction, episode)


class _Search:
    """Looks for one stream after another and collects what is wrong."""

    def __init__(self, bag: Bag, names: Mapping[str, str]) -> None:
        self._bag = bag
        self._topics = bag.topics()
        recorded = bag.provenance().get('streams')
        table = recorded.items() if isinstance(recorded, dict) else ()
        self._names = {**{k: v for k, v in table if isinstance(v, str)}, **names}
        self._given = dict(names)
        self._streams: list[str] = []
        self._problems: list[str] = []

    def find(self, stream: str, kinds: Mapping[str, str], *, is_needed: bool = True) -> str:
        """Return the topic that serves a stream: `kinds` is name -> type, the best first."""
        self._streams += [stream, *kinds]
        names = dict.fromkeys((stream, *kinds))
        given = [self._names[name] for name in names if name in self._names]
        problems = []
        for name, kind in kinds.items():
            found = [self._topics[n] for n in given if n in self._topics]
            found = found if given else list(self._called(name))
            usable = [topic for topic in found if topic.type == kind and topic.count]
            if len(usable) == 1:
                return usable[0].name
            problems += self._explain(usable or found, kind)
        missing = [name for name in given if name not in self._topics]
        if missing:
            problems.insert(0, f'no topic {", ".join(missing)}, as the table says')
        needed = ' or '.join(f'{name} ({kind})' for name, kind in kinds.items())
        if is_needed or set(missing).intersection(self._given.values()):
            why = '; '.join(dict.fromkeys(problems)) or 'not there'
            self._problems.append(f'{needed}: {why}')
        return ''

    def finish(self) -> None:
        unknown = [name for name in self._given if name not in self._streams]
        if unknown:
            raise ConfigError(
                f'the table of topics names {unknown}, which this policy does not use. Streams: '
                f'{", ".join(dict.fromkeys(self._streams))}'
            )
        if self._problems:
            holds = ', '.join(map(str, self._topics.values())) or 'nothing'
            lines = '\n  '.join(self._problems)
            raise BagError(
                f'bag {self._bag.name!r} does not hold what the policy needs:\n  {lines}\n'
                f'It holds: {holds}.\nGive other names as a table from stream to topic, e.g. '
                "{'" + self._streams[0] + "': '/camera/color/image_raw'}"
            )

    def _called(self, name: str) -> Iterator[Topic]:
        """Yield the topics of this name: without a namespace, else in any."""
        if f'/{name}' in self._topics:
            yield self._topics[f'/{name}']
            return
        yield from (t for t in self._topics.values() if t.name.endswith(f'/{name}'))

    @staticmethod
    def _explain(found: list[Topic], kind: str) -> Iterator[str]:
        of_kind = [topic for topic in found if topic.type == kind]
        if len(of_kind) > 1:
            yield f'several, choose one: {", ".join(topic.name for topic in of_kind)}'
        for topic in found:
            if topic.type != kind:
                yield f'{topic.name} is of type {topic.type}'
            elif not topic.count:
                yield f'{topic.name} has no messages'
