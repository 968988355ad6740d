"""An arm with two cameras, recorded without ROS: writes bags for tests. Stamps in ms."""

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from vlaq_ros.data.bag_types import MessageTypes

MS = 1_000_000
SIZES = {'front': (8, 6), 'wrist': (4, 4)}
TYPES = {
    'front/image_raw': 'sensor_msgs/msg/Image',
    'wrist/image_raw': 'sensor_msgs/msg/Image',
    'front/image_raw/compressed': 'sensor_msgs/msg/CompressedImage',
    'wrist/image_raw/compressed': 'sensor_msgs/msg/CompressedImage',
    'ee_pose': 'geometry_msgs/msg/PoseStamped',
    'joint_states': 'sensor_msgs/msg/JointState',
    'instruction': 'std_msgs/msg/String',
    'episode': 'vlaq_ros/msg/EpisodeStatus',
    'policy/action_chunk': 'vlaq_ros/msg/ActionChunk',
    'policy/drift': 'vlaq_ros/msg/DriftReport',
    'policy/gripper_cmds': 'sensor_msgs/msg/JointState',
}


class RecordedArm:
    """A bag that is being written; `topics` gives other names to topics, e.g. of another robot."""

    def __init__(self, path, storage='mcap', compression=None, topics=None):
        self.path, self.names = path, topics or {}
        self._types = MessageTypes()
        for name in TYPES.values():
            self._types.require(name)
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
        if compression is not None:
            mode = CompressionMode[compression.upper()]
            self._writer.set_compression(mode, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections = {}
        self.log_offset_ms = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._writer.close()

    def set_custom_data(self, key, value):
        self._writer.set_custom_data(key, value)

    def write(self, topic, log_ms, data, type_name=None):
        """Write serialized bytes."""
        name = self.names.get(topic, f'/{topic}')
        if name not in self._connections:
            self._connections[name] = self._writer.add_connection(
                name, type_name or TYPES[topic], typestore=self._types.store
            )
        stamp_ns = round((log_ms + self.log_offset_ms) * MS)
        self._writer.write(self._connections[name], stamp_ns, data)

    def put(self, topic, log_ms, type_name=None, **values):
        """Write a message of these fields."""
        kind = type_name or TYPES[topic]
        message = self.make(kind, **values)
        self.write(topic, log_ms, bytes(self._types.store.serialize_cdr(message, kind)), kind)

    def make(self, type_name, **values):
        return self._types.store.types[type_name](**values)

    def header(self, stamp_ms, frame='base'):
        stamp_ns = round(stamp_ms * MS)
        time = self.make(
            'builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
        )
        return self.make('std_msgs/msg/Header', stamp=time, frame_id=frame)

    def image(self, camera, stamp_ms, value=None, size=None, encoding='rgb8', log_ms=None):
        """Record one image, filled with a number that changes with the stamp."""
        height, width = size or SIZES[camera]
        value = round(stamp_ms) % 251 if value is None else value
        data = np.full(height * width * 3, value, np.uint8)
        self.put(
            f'{camera}/image_raw',
            stamp_ms if log_ms is None else log_ms,
            header=self.header(stamp_ms, f'{camera}_optical_frame'),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=3 * width,
            data=data,
        )

    def jpeg(self, camera, stamp_ms, data, log_ms=None):
        """Record compressed bytes as they are."""
        self.put(
            f'{camera}/image_raw/compressed',
            stamp_ms if log_ms is None else log_ms,
            header=self.header(stamp_ms, f'{camera}_optical_frame'),
            format='rgb8; jpeg compressed bgr8',
            data=np.frombuffer(data, np.uint8),
        )

    def pose(self, stamp_ms, position=(0.0, 0.0, 0.0), frame='base', log_ms=None):
        point = self.make('geometry_msgs/msg/Point', **dict(zip('xyz', map(float, position))))
        turned = self.make('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0)
        pose = self.make('geometry_msgs/msg/Pose', position=point, orientation=turned)
        log_ms = stamp_ms if log_ms is None else log_ms
        self.put('ee_pose', log_ms, header=self.header(stamp_ms, frame), pose=pose)

    def joints(self, stamp_ms, gripper=0.04, log_ms=None):
        self.put(
            'joint_states',
            stamp_ms if log_ms is None else log_ms,
            header=self.header(stamp_ms),
            name=['right_j0', 'gripper'],
            position=np.array([0.0, gripper]),
            velocity=np.zeros(0),
            effort=np.zeros(0),
        )

    def say(self, text, log_ms):
        self.put('instruction', log_ms, data=text)

    def episode(self, stamp_ms, epoch, task='open', done=False, success=False):
        self.put(
            'episode',
            stamp_ms,
            header=self.header(stamp_ms),
            task=task,
            instruction=task,
            seed=0,
            index=epoch,
            epoch=epoch,
            step=0,
            max_steps=80,
            success=success,
            done=done,
        )

    def duration(self, seconds):
        whole_ns = round(seconds * 1e9)
        return self.make(
            'builtin_interfaces/msg/Duration', sec=whole_ns // 10**9, nanosec=whole_ns % 10**9
        )

    def chunk(self, chunk, log_ms=None, inference_s=0.01, **changed):
        """Record an `ActionChunk`; `changed` are fields of the message that shall be others."""
        stamp_ms = chunk.observed_ns / MS
        values = {
            'header': self.header(stamp_ms),
            'names': list(chunk.spec.names),
            'units': list(chunk.spec.units),
            'delta': chunk.spec.delta,
            'horizon': len(chunk.actions),
            'actions': chunk.actions.ravel().copy(),
            'step_duration': self.duration(chunk.spec.period_s),
            'sequence': chunk.sequence,
            'epoch': chunk.epoch,
            'instruction': chunk.instruction,
            'precision': chunk.precision,
            'head': chunk.head,
            'inference_time': self.duration(inference_s),
        }
        log_ms = stamp_ms if log_ms is None else log_ms
        self.put('policy/action_chunk', log_ms, **{**values, **changed})

    def report(self, reading, window_s=2.0, **changed):
        """Record a `DriftReport` of a reading."""
        drift = reading.drift
        values = {
            'header': self.header(reading.observed_ns / MS),
            'source': reading.source,
            'precision': reading.precision,
            'reference_precision': reading.reference_precision,
            'sequence': reading.sequence,
            'epoch': reading.epoch,
            'steps': drift.steps,
            'position_per_step': drift.position_per_step_m,
            'position_accumulated': drift.position_accumulated_m,
            'rotation_per_step': drift.rotation_per_step_rad,
            'rotation_accumulated': drift.rotation_accumulated_rad,
            'gripper_disagreement': drift.gripper_disagreement,
            'position_deviation': reading.deviation_m,
            'rotation_deviation': reading.deviation_rad,
            'window_position': reading.window_m,
            'window_rotation': reading.window_rad,
            'window_gripper': reading.window_gripper,
            'jerk_ratio': reading.jerk_ratio,
            'smoothness': reading.smoothness,
            'reference_smoothness': reading.reference_smoothness,
            'window': self.duration(window_s),
            'delay': self.duration(0.0),
            'level': int(reading.level),
            'reason': reading.reason,
        }
        self.put('policy/drift', reading.observed_ns / MS, **{**values, **changed})

    def sense(self, stamp_ms, position=(0.0, 0.0, 0.0), gripper=0.04):
        """Record one sample of every stream."""
        self.image('front', stamp_ms)
        self.image('wrist', stamp_ms)
        self.pose(stamp_ms, position)
        self.joints(stamp_ms, gripper)
