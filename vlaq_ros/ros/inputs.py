"""
What the policy sees: subscriptions that store, and one question: can the arm be commanded now?

Callbacks decode and store; nothing is computed from the values here. A message that cannot be used
(broken image, wrong frame, missing joint, number that is not finite) is dropped and its reason
kept, so the stream goes stale and the stop names the cause.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from vlaq_ros.data.messages import (
    INSTRUCTION_TOPIC,
    JOINT_TOPIC,
    POSE_TOPIC,
    pose_values,
    read_joints,
    read_pose,
    require_size,
)
from vlaq_ros.data.resample import (
    MANY_SAMPLES,
    STATE_STREAM,
    IncompleteObservationError,
    ObservationAssembler,
    StreamBuffer,
)
from vlaq_ros.data.state import StateMerger
from vlaq_ros.errors import MessageError, StaleInputError, VlaqError
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.ros import qos
from vlaq_ros.ros.conversions import to_nanoseconds, to_pixels
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.types import Observation, Pose

_LOOK_FOR_LATCHED_S = 0.25
_LONGEST_INFERENCE_S = 2.0  # poses reach back to the observation of a chunk that has just come


class Inputs:
    """
    The subscriptions of one configured policy.

    Args:
        node: Owner of the subscriptions.
        spec: Cameras and state that are required.
        config: Sources, ages, transport, lockstep.
        on_stored: Called after every stored sample.
        on_instruction: Called when the sentence has changed.

    Attributes:
        enabled: Images and states are ignored while this is False; the instruction never is.
        instruction: The sentence in force, stripped; empty: none.
        instruction_count: Changes of the sentence.
        dropped: Messages that could not be used, by topic.
        trouble: Why the last message of a topic was dropped; absent after a good one.
        unmatched: Topic -> what keeps a publisher from reaching this node.
        decode_s: Duration of the last image decoding [s].
    """

    def __init__(
        self,
        node: Node,
        spec: PolicySpec,
        config: PolicyParameters,
        on_stored: Callable[[], None],
        on_instruction: Callable[[], None],
    ) -> None:
        self._node = node
        self._config = config
        self._on_stored = on_stored
        self._on_instruction = on_instruction
        self._sizes = {camera.name: (camera.height, camera.width) for camera in spec.cameras}
        self._cameras = tuple(self._sizes)
        self.enabled = False
        self.instruction = ''
        self.instruction_count = 0
        self.dropped: Counter[str] = Counter()
        self.trouble: dict[str, str] = {}
        self.unmatched: dict[str, str] = {}
        self.decode_s = 0.0
        needs_pose_only = config.command.type == 'pose' or config.limits.use_workspace
        age = config.age
        keep_s = age.state_s + age.spread_s
        self._state = StateMerger(config.state.sources, config.state.scales, round(keep_s * 1e9))
        self._state_topics = self._state.topics
        self._needs_pose = needs_pose_only or POSE_TOPIC in self._state_topics
        pose = [POSE_TOPIC] if self._needs_pose else []
        self._streams = list(dict.fromkeys([*self._cameras, *self._state_topics, *pose]))
        poses_s = keep_s + age.image_s + _LONGEST_INFERENCE_S
        self._poses = StreamBuffer(MANY_SAMPLES, keep_ns=round(poses_s * 1e9))
        self._assembler = self._make_assembler()
        self._last_stamp: dict[str, int] = {}
        self._arrived_s: dict[str, float] = {}  # per topic: several topics make one state
        self._last_text_ns: int | None = None  # when the newest sentence so far was sent
        self.topics = self._subscribe()

    def require(self, now_ns: int) -> None:
        """
        Return when there is a complete, fresh observation.

        Raises:
            StaleInputError: There is none; one line names every stream and its age.
        """
        try:
            self._assembler.require(now_ns)
        except IncompleteObservationError as error:
            texts = [self._explain(p.stream, p.text, now_ns) for p in error.problems]
            raise StaleInputError('; '.join(texts)) from error
        if self._needs_pose and self.pose(now_ns) is None:
            text = f'no pose for {self._config.age.state_s * 1e3:.0f} ms'
            raise StaleInputError(self._explain(POSE_TOPIC, text, now_ns))

    def observation(self, now_ns: int) -> Observation:
        """Return what was known at `now_ns`, or raise `StaleInputError`."""
        return self._assembler.observation(now_ns)

    def pose(self, now_ns: int) -> Pose | None:
        """Return the newest measured pose at `now_ns` that is not too old."""
        sample = self._poses.at(now_ns)
        if sample is None or now_ns - sample.stamp_ns > self._config.age.state_s * 1e9:
            return None
        return sample.value

    def silence(self) -> str:
        """Name the streams that have been silent for too long on the steady clock; empty: none."""
        now_s, limit_s = time.monotonic(), self._config.age.silence_s
        silent_s = {name: now_s - arrived_s for name, arrived_s in self._arrived_s.items()}
        texts = (
            self._with_trouble(name, f'{name}: nothing arrived for {s:.1f} s')
            for name, s in silent_s.items()
            if s > limit_s
        )
        return '; '.join(texts)

    def ages_s(self, now_ns: int) -> dict[str, float | None]:
        """Return the age of the newest sample of every stream [s]; None: nothing arrived."""
        return self._assembler.ages_s(now_ns)

    def complete_stamp_ns(self) -> int | None:
        """Return the stamp that the last sample of every stream carries, None if they differ."""
        if self.missing() or len(set(self._last_stamp.values())) != 1:
            return None
        return next(iter(self._last_stamp.values()))

    def missing(self) -> list[str]:
        """Return the streams of which nothing usable was received, with the reason if known."""
        return [self._with_trouble(n, n) for n in self._streams if n not in self._last_stamp]

    def forget(self, now_ns: int) -> None:
        """Forget all samples, after the clock was set back to `now_ns`."""
        self._last_stamp = {n: s for n, s in self._last_stamp.items() if s <= now_ns}
        self._state.forget(now_ns)
        if not self._config.lockstep:  # there the first samples of the new time precede its clock
            self.clear()

    def clear(self) -> None:
        """Forget all samples; the instruction stays in force."""
        self._last_stamp.clear()
        self._arrived_s.clear()
        self._assembler.clear()
        self._state.clear()
        self._poses.clear()

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_timer(self._latched_timer)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _make_assembler(self) -> ObservationAssembler:
        age, in_lockstep = self._config.age, self._config.lockstep
        max_age_ns = dict.fromkeys(self._cameras, round(age.image_s * 1e9))
        if self._state_topics:
            max_age_ns[STATE_STREAM] = round(age.state_s * 1e9)
        spread_ns = 0 if in_lockstep else round(age.spread_s * 1e9)
        return ObservationAssembler(
            self._cameras, bool(self._state_topics), max_age_ns, max_spread_ns=spread_ns
        )

    def _subscribe(self) -> dict[str, str]:
        """Subscribe to everything; return stream -> topic name after remapping."""
        self._subscriptions = []
        lockstep = qos.LOCKSTEP_IN if self._config.lockstep else None
        is_compressed = self._config.image_transport == 'compressed'
        image_type = CompressedImage if is_compressed else Image
        suffix = '/compressed' if is_compressed else ''
        topics = {}
        for name in self._cameras:
            topic = f'{name}/image_raw{suffix}'
            callback = partial(self._on_image, name)
            topics[name] = self._add(image_type, topic, callback, lockstep or qos.IMAGE_IN)
        if self._needs_pose:
            profile = lockstep or qos.STATE_IN
            topics[POSE_TOPIC] = self._add(PoseStamped, POSE_TOPIC, self._on_pose, profile)
        if JOINT_TOPIC in self._state_topics:
            profile = lockstep or qos.STATE_IN
            topics[JOINT_TOPIC] = self._add(JointState, JOINT_TOPIC, self._on_joints, profile)
        topics[INSTRUCTION_TOPIC] = self._add(
            String, INSTRUCTION_TOPIC, self._on_text, qos.INSTRUCTION_IN
        )
        self._latched_timer = self._node.create_timer(
            _LOOK_FOR_LATCHED_S,
            self._look_for_latched,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        return topics

    def _look_for_latched(self) -> None:
        """
        Ask for the sentence that was latched before this node started.

        Only once a latched publisher exists: every plain one would report a mismatch.
        """
        topic = self.topics[INSTRUCTION_TOPIC]
        for info in self._node.get_publishers_info_by_topic(topic):
            if info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL:
                self._latched_timer.cancel()
                profile = qos.LATCHED_INSTRUCTION_IN
                callback = self._on_latched_text
                self._add(String, INSTRUCTION_TOPIC, callback, profile, 'latched')
                return

    def _add(
        self,
        message_type: type,
        topic: str,
        callback: Any,
        profile: Any,
        entity_id: str | None = None,
    ) -> str:
        resolved = self._node.resolve_topic_name(topic)
        # A plain publisher never matches the latched request: that is no problem to report.
        events = qos.SubscriptionEventCallbacks(
            incompatible_qos=(lambda event: None)
            if profile is qos.LATCHED_INSTRUCTION_IN
            else partial(self._on_incompatible_qos, resolved)
        )
        if profile is qos.LOCKSTEP_IN:  # else what an earlier configuration declared would count
            entity_id = 'lockstep'
        subscription = self._node.create_subscription(
            message_type,
            topic,
            callback,
            event_callbacks=events,
            **qos.overridable(profile, entity_id),
        )
        self._subscriptions.append(subscription)
        return resolved

    def _on_image(self, name: str, msg: Image | CompressedImage) -> None:
        if not self.enabled:
            return
        started = time.perf_counter()
        stamp_ns = to_nanoseconds(msg.header.stamp)
        try:
            image = to_pixels(msg)
            require_size(name, image.shape[:2], self._sizes[name])
            self._assembler.put_image(name, image, stamp_ns)
        except VlaqError as error:
            self._drop(name, str(error))
            return
        except Exception as error:  # decoders raise anything; no message may end the node
            self._drop(name, f'{type(error).__name__}: {error}')
            return
        self.decode_s = time.perf_counter() - started
        self._stored(name, stamp_ns)

    def _on_pose(self, msg: PoseStamped) -> None:
        if not self.enabled:
            return
        try:
            pose = read_pose(msg, self._config.command.base_frame)
        except MessageError as error:
            self._drop(POSE_TOPIC, str(error))
            return
        stamp_ns = to_nanoseconds(msg.header.stamp)
        self._poses.put(pose, stamp_ns)
        self._put_state(POSE_TOPIC, pose_values(pose), stamp_ns)

    def _on_joints(self, msg: JointState) -> None:
        if not self.enabled:
            return
        try:
            values = read_joints(msg, self._state.joints)
        except MessageError as error:
            self._drop(JOINT_TOPIC, str(error))
            return
        self._put_state(JOINT_TOPIC, values, to_nanoseconds(msg.header.stamp))

    def _put_state(self, topic: str, values: dict[str, float], stamp_ns: int) -> None:
        state = self._state.put(topic, values, stamp_ns)
        if state is not None:
            self._assembler.put_state(state.value, state.stamp_ns)
        self._stored(topic, stamp_ns)

    def _on_latched_text(self, msg: String, info: dict[str, int]) -> None:
        """Follow a latched sentence, unless it was sent before one that is known already."""
        if self._last_text_ns is None or info['source_timestamp'] > self._last_text_ns:
            self._on_text(msg, info)

    def _on_text(self, msg: String, info: dict[str, int]) -> None:
        self._last_text_ns = max(self._last_text_ns or 0, info['source_timestamp'])
        text = msg.data.strip()
        if text == self.instruction:
            return
        self.instruction = text
        self.instruction_count += bool(text)
        self._assembler.put_instruction(text)
        self._on_instruction()

    def _on_incompatible_qos(self, topic: str, event: Any) -> None:
        kind = getattr(event.last_policy_kind, 'name', event.last_policy_kind)
        text = f'a publisher offers incompatible QoS on {topic} (policy {kind}): nothing arrives'
        self.unmatched[topic] = text
        self._node.get_logger().warning(text)

    def _stored(self, stream: str, stamp_ns: int) -> None:
        self.trouble.pop(stream, None)
        self._last_stamp[stream] = stamp_ns
        self._arrived_s[stream] = time.monotonic()
        self._on_stored()

    def _drop(self, stream: str, why: str) -> None:
        self.dropped[stream] += 1
        if stream not in self.trouble:
            self._node.get_logger().warning(f'{stream}: message dropped: {why}')
        self.trouble[stream] = why

    def _explain(self, stream: str, text: str, now_ns: int) -> str:
        """Return one line about a stream; for the state it names the topics that lag."""
        if stream == STATE_STREAM:
            limit_ns = self._config.age.state_s * 1e9
            newest = self._state.newest_ns()
            lagging = [t for t, s in newest.items() if s is None or now_ns - s > limit_ns]
            stream = ' and '.join(lagging or newest)
        return self._with_trouble(stream, f'{stream}: {text}')

    def _with_trouble(self, stream: str, text: str) -> str:
        why = '; '.join(self.trouble[s] for s in stream.split(' and ') if s in self.trouble)
        return text + (f' ({why})' if why else '')
