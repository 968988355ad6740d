"""
The recorder node: everything a calibration needs, from topics into a bag, without rosbag2.

Messages are written as they arrive, serialized, never decoded. A topic is subscribed to once it
has a publisher, with the QoS that this publisher offers, so nothing is missed for a mismatch and
latched messages are there. A kill loses what the last `flush_s` brought. When the disk fills up
the recording ends with what there is.

Where rosbag2 is installed, `record.launch.py` records the same topics in C++; prefer it for
several cameras or large images.
"""

import importlib
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from vlaq_ros.data.bag_writer import BagWriter
from vlaq_ros.errors import BagError, VlaqError
from vlaq_ros.ros.interfaces import PolicyStatus, PrecisionState
from vlaq_ros.ros.parameters import NodeParameters
from vlaq_ros.ros.qos import SubscriptionEventCallbacks
from vlaq_ros.ros.recorded_topics import camera_names, provenance, stream_names
from vlaq_ros.ros.recorder_parameters import RecorderParameters

_LOOK_S = 0.1
_REPORT_S = 10.0
_QUEUE = 200
_MB = 1e6


class RecorderNode(Node):
    """
    See the module docstring.

    Attributes:
        ended: Why recording is over; empty: it goes on.
        counts: Messages recorded, by topic.
        lost: Messages that the middleware lost before they could be recorded, by topic.

    Raises:
        BagError: The bag cannot be created.
        BundleError: The bundle does not exist.
        ConfigError: Parameters are wrong.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__('recorder', **options)
        settings = NodeParameters(self, RecorderParameters)
        self._config = config = settings.read()
        for sentence in settings.unknown_overrides():
            self.get_logger().warning(sentence)
        self.ended = ''
        self.counts: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self._streams = {
            stream: self.resolve_topic_name(stream)
            for stream in stream_names(
                camera_names(config.bundle),
                config.policy,
                config.image_transport,
                config.extra_topics.split(),
            )
        }
        self._waiting = set(self._streams.values())
        self._bundle_hash, self._bundle, self._precisions = '', '', []
        self._status_topic = self._streams[f'{config.policy}/status']
        self._precision_topic = self._streams[f'{config.policy}/precision']
        self.writer = BagWriter(_output(config), config.compression)
        self._describe()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # /clock may stand still
        self._look()
        self.create_timer(_LOOK_S, self._look, clock=steady)
        self.create_timer(config.flush_s, self._flush, clock=steady)
        self.create_timer(_REPORT_S, self._report, clock=steady)
        self.get_logger().info(f'recording to {self.writer.path}')

    def close(self) -> None:
        """End the recording and say what there is."""
        try:
            self._describe()
            self.writer.close()
        except BagError as error:
            self._end(str(error))
        log = self.get_logger()
        counts = ''.join(f'\n  {name}: {count}' for name, count in sorted(self.counts.items()))
        log.info(f'recorded {self._size()} in {self.writer.path}{counts}')
        missing = sorted(set(self._streams.values()) - set(self.counts))
        if missing:
            log.warning(f'nothing recorded of: {", ".join(missing)}')
        if self.lost:
            log.warning(f'lost before they could be recorded: {dict(self.lost)}')

    def _look(self) -> None:
        """Subscribe to the topics that have a publisher by now."""
        for topic in sorted(self._waiting):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                self._waiting.discard(topic)
                self._subscribe(topic, publishers)

    def _subscribe(self, topic: str, publishers: Sequence[Any]) -> None:
        offers = [info.qos_profile for info in publishers]
        is_reliable = all(o.reliability == ReliabilityPolicy.RELIABLE for o in offers)
        is_latched = all(o.durability == DurabilityPolicy.TRANSIENT_LOCAL for o in offers)
        types = sorted({info.topic_type for info in publishers})
        try:
            if len(types) > 1:
                raise BagError(f'its publishers disagree about the type: {", ".join(types)}')
            self.writer.add_topic(topic, types[0], reliable=is_reliable, latched=is_latched)
            message_type = _message_class(types[0])
        except VlaqError as error:
            self.get_logger().error(f'{topic} is not recorded: {error}')
            return
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=_QUEUE,
            reliability=(
                ReliabilityPolicy.RELIABLE if is_reliable else ReliabilityPolicy.BEST_EFFORT
            ),
            durability=(
                DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE
            ),
        )
        events = SubscriptionEventCallbacks(
            incompatible_qos=partial(self._on_incompatible_qos, topic),
            message_lost=partial(self._on_lost, topic),
        )
        self.create_subscription(
            message_type,
            topic,
            partial(self._on_message, topic),
            profile,
            event_callbacks=events,
            raw=True,
        )

    def _on_message(self, topic: str, data: bytes) -> None:
        if self.ended:
            return
        try:
            self.writer.write(topic, self.get_clock().now().nanoseconds, data)
        except BagError as error:
            self._end(str(error))
            return
        self.counts[topic] += 1
        if topic in (self._status_topic, self._precision_topic):
            self._learn(topic, data)

    def _learn(self, topic: str, data: bytes) -> None:
        """Keep which policy is running, at which precision, with the bag."""
        before = (self._bundle_hash, len(self._precisions))
        if topic == self._status_topic:
            status = deserialize_message(data, PolicyStatus)
            if status.bundle_hash:
                self._bundle, self._bundle_hash = status.bundle, status.bundle_hash
        else:
            precision = deserialize_message(data, PrecisionState).precision
            if precision and precision not in self._precisions:
                self._precisions.append(precision)
        if before != (self._bundle_hash, len(self._precisions)):
            self._describe()

    def _describe(self) -> None:
        if self.ended:
            return
        values = provenance(
            self._streams,
            bundle=self._bundle,
            bundle_hash=self._bundle_hash,
            precisions=self._precisions,
            use_sim_time=self.get_parameter('use_sim_time').value,
            lost=self.lost,
        )
        self.writer.describe(values)

    def _flush(self) -> None:
        if self.ended:
            return
        free_mb = shutil.disk_usage(self.writer.path).free / _MB
        try:
            self.writer.flush()
            if free_mb < self._config.min_free_mb:
                self.writer.close()
                self._end(
                    f'recording ended: {free_mb:.0f} MB of the disk are free, '
                    f'min_free_mb is {self._config.min_free_mb:g}'
                )
        except BagError as error:
            self._end(str(error))

    def _end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self.get_logger().error(reason)

    def _report(self) -> None:
        text = f'{self._size()} so far'
        if self._waiting:
            text += f'; no publisher yet on: {", ".join(sorted(self._waiting))}'
        self.get_logger().info(text)

    def _size(self) -> str:
        return f'{self.writer.messages} messages, {self.writer.bytes / _MB:.1f} MB'

    def _on_lost(self, topic: str, event: Any) -> None:
        self.lost[topic] += event.total_count_change
        self.get_logger().warning(
            f'{topic}: {self.lost[topic]} messages lost on their way here: they are too large or '
            'come too fast; record compressed images, or use record.launch.py with rosbag2',
            throttle_duration_sec=5.0,
        )

    def _on_incompatible_qos(self, topic: str, event: Any) -> None:
        kind = getattr(event.last_policy_kind, 'name', event.last_policy_kind)
        self.get_logger().warning(
            f'another publisher of {topic} offers less than the first (policy {kind}): '
            'it is not recorded'
        )


def _output(config: RecorderParameters) -> Path:
    return Path(config.output or time.strftime('bag_%Y%m%d_%H%M%S')).expanduser()


def _message_class(type_name: str) -> type:
    package, _, name = type_name.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise BagError(
            f'messages of type {type_name} are not installed ({error}): source their workspace'
        ) from error


def main(args: Sequence[str] | None = None) -> int:
    """Record until Ctrl-C, SIGTERM or a full disk; return the exit status."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, stack: received.append(signum))
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = RecorderNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while rclpy.ok() and not received and not node.ended:
                executor.spin_once(timeout_sec=0.1)
        finally:
            node.close()
        executor.shutdown()
        node.destroy_node()
        return int(bool(node.ended))
    except VlaqError as error:
        rclpy.logging.get_logger('recorder').fatal(str(error))
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    raise SystemExit(main())
