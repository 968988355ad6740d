"""A bag is read as far as it goes, whatever happened to it; what is lost is said."""

import shutil
import sqlite3
import tracemalloc

import numpy as np
import pytest

from vlaq_ros.data.bag_writer import BagWriter
from vlaq_ros.data.bags import Bag
from vlaq_ros.data.images import decode_image
from vlaq_ros.errors import BagError, MessageError

MS = 1_000_000
COUNT = 40


@pytest.fixture
def record(recorded_arm, tmp_path):
    """Return a function that records `COUNT` samples of every stream."""

    def make(name='run', **options):
        path = tmp_path / name
        with recorded_arm.RecordedArm(path, **options) as arm:
            arm.say('open', 0)
            for step in range(COUNT):
                arm.sense(1000 + 25 * step, (0.001 * step, 0.0, 0.0))
        return path

    return make


def read_all(path, topics=None):
    bag = Bag(path)
    return bag, list(bag.messages(topics))


STORAGES = [
    {'storage': 'mcap'},
    {'storage': 'mcap', 'compression': 'storage'},
    {'storage': 'mcap', 'compression': 'file'},
    {'storage': 'mcap', 'compression': 'message'},
    {'storage': 'sqlite3'},
    {'storage': 'sqlite3', 'compression': 'file'},
    {'storage': 'sqlite3', 'compression': 'message'},
]


@pytest.mark.parametrize('options', STORAGES, ids=lambda o: '-'.join(o.values()))
def test_every_storage_gives_the_same_messages(record, options):
    bag, messages = read_all(record(**options))
    assert bag.losses == []
    assert {name: topic.count for name, topic in bag.topics().items()} == {
        '/ee_pose': COUNT,
        '/front/image_raw': COUNT,
        '/instruction': 1,
        '/joint_states': COUNT,
        '/wrist/image_raw': COUNT,
    }
    assert len(messages) == 4 * COUNT + 1
    assert [m.log_ns for m in messages] == sorted(m.log_ns for m in messages)
    assert bag.decode(messages[0]).data == 'open'
    poses = [bag.decode(m) for m in messages if m.topic == '/ee_pose']
    assert [p.pose.position.x for p in poses] == [0.001 * step for step in range(COUNT)]
    image = next(bag.decode(m) for m in messages if m.topic == '/front/image_raw')
    pixels = decode_image(image.encoding, image.height, image.width, image.step, False, image.data)
    assert pixels.shape == (8, 6, 3)
    assert (pixels == 1000 % 251).all()


def test_only_the_topics_asked_for_are_read(record):
    _, messages = read_all(record(), topics=['/ee_pose'])
    assert [m.topic for m in messages] == ['/ee_pose'] * COUNT


def test_a_file_of_a_bag_is_a_bag(record):
    path = next(record().glob('*.mcap'))
    bag, messages = read_all(path)
    assert len(messages) == 4 * COUNT + 1
    assert bag.losses == []


def test_custom_data_is_found_with_and_without_metadata_yaml(recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        arm.set_custom_data('vlaq_ros', '{"bundle": "toy"}')
        arm.say('open', 0)
    assert Bag(tmp_path / 'run').provenance() == {'bundle': 'toy'}
    (tmp_path / 'run' / 'metadata.yaml').unlink()
    assert Bag(tmp_path / 'run').provenance() == {'bundle': 'toy'}


@pytest.mark.parametrize('compression', ['storage', None], ids=['zstd', 'plain'])
@pytest.mark.parametrize('share', [0.9, 0.5, 0.2])
def test_a_cut_mcap_gives_every_message_before_the_cut(recorded_arm, tmp_path, share, compression):
    """Without a footer there is no index, and the last chunk ends somewhere."""
    path = tmp_path / 'run'
    noise = np.random.default_rng(0).integers(0, 256, (40, 20_000), dtype=np.uint8)
    with recorded_arm.RecordedArm(path, compression=compression) as arm:
        for step in range(40):
            arm.jpeg('front', 1000 + step, noise[step].tobytes())
    _, whole = read_all(path)
    (path / 'metadata.yaml').unlink()
    file = next(path.glob('*.mcap'))
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    bag, messages = read_all(path)
    assert messages == whole[: len(messages)]
    spared = 2 if compression is None else 9  # zstd gives back whole blocks of 128 KiB only
    assert share * 40 - spared < len(messages) <= share * 40
    assert any('cut off within its last chunk' in loss for loss in bag.losses)
    assert any('no metadata.yaml' in loss for loss in bag.losses)
    assert bag.topics()['/front/image_raw/compressed'].count == len(messages)
    assert bag.decode(messages[0]).format == 'rgb8; jpeg compressed bgr8'


@pytest.mark.parametrize('size', [0, 3, 8, 40], ids=lambda size: f'{size} bytes')
def test_a_recording_that_has_just_begun_is_empty_not_an_error(record, size):
    path = record()
    (path / 'metadata.yaml').unlink()
    file = next(path.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:size])
    bag, messages = read_all(path)
    assert (messages, bag.topics()) == ([], {})
    assert len(bag.losses) == 2


def test_a_message_of_a_plain_mcap_that_was_half_written_is_lost_alone(tmp_path):
    """`fastwrite` of rosbag2 writes no chunks: messages lie in the file one by one."""
    from mcap.writer import Writer

    folder = tmp_path / 'fast'
    folder.mkdir()
    file = folder / 'fast_0.mcap'
    with file.open('wb') as stream:
        writer = Writer(stream, use_chunking=False)
        writer.start(profile='ros2')
        schema = writer.register_schema('std_msgs/msg/String', 'ros2msg', b'string data')
        channel = writer.register_channel('/instruction', 'cdr', schema)
        for number in range(5):
            data = b'\x00\x01\x00\x00\x02\x00\x00\x00' + bytes([97 + number, 0])
            writer.add_message(channel, number, data, number)
        end = stream.tell()
    file.write_bytes(file.read_bytes()[: end - 3])
    bag, messages = read_all(folder)
    assert [bag.decode(m).data for m in messages] == ['a', 'b', 'c', 'd']
    half = 9 + 22 + 10 - 3
    assert any(f'the last {half} bytes are half a record' in loss for loss in bag.losses)


def test_a_damaged_chunk_is_reported_with_its_time_and_the_others_are_read(recorded_arm, tmp_path):
    path = tmp_path / 'run'
    noise = np.random.default_rng(0).integers(0, 256, (20, 200_000), dtype=np.uint8)
    with recorded_arm.RecordedArm(path, compression='storage') as arm:
        for step in range(20):  # 4 MB: several chunks
            arm.jpeg('front', 1000 + step, noise[step].tobytes())
    _, whole = read_all(path)
    file = next(path.glob('*.mcap'))
    content = bytearray(file.read_bytes())
    content[100:140] = bytes(40)
    file.write_bytes(content)
    bag, messages = read_all(path)
    assert 0 < len(messages) < len(whole)
    assert messages == whole[len(whole) - len(messages) :]
    assert 'is damaged' in bag.losses[0]
    assert 'from 1.000 to 1.00' in bag.losses[0]
    missing = len(whole) - len(messages)
    assert f'/front/image_raw/compressed: {missing} of 20 messages are missing' in bag.losses


def test_a_chunk_with_a_wrong_checksum_is_not_believed(tmp_path):
    """Uncompressed chunks show no damage by themselves: one flipped bit would be another pose."""
    from mcap.writer import CompressionType, Writer

    file = tmp_path / 'run_0.mcap'
    with file.open('wb') as stream:
        writer = Writer(stream, compression=CompressionType.NONE, chunk_size=40)
        writer.start(profile='ros2')
        schema = writer.register_schema('std_msgs/msg/String', 'ros2msg', b'string data')
        channel = writer.register_channel('/instruction', 'cdr', schema)
        for number in range(6):
            data = b'\x00\x01\x00\x00\x02\x00\x00\x00' + bytes([97 + number, 0])
            writer.add_message(channel, number, data, number)
        writer.finish()
    _, whole = read_all(file)
    content = bytearray(file.read_bytes())
    at = content.index(b'\x02\x00\x00\x00d\x00')
    content[at + 4] = ord('x')
    file.write_bytes(content)
    bag, messages = read_all(file)
    texts = [bag.decode(m).data for m in messages]
    assert 'x' not in texts
    assert 0 < len(texts) < len(whole)
    assert 'is damaged (size or checksum differs)' in bag.losses[0]


def test_a_sqlite_bag_that_is_being_recorded_is_read_up_to_the_last_commit(record):
    path = record(storage='sqlite3')
    (path / 'metadata.yaml').unlink()
    writer = sqlite3.connect(next(path.glob('*.db3')))
    writer.execute('PRAGMA journal_mode=WAL')
    with writer:
        writer.execute('INSERT INTO messages (topic_id, timestamp, data) VALUES (1, 9, 0)')
    writer.execute('INSERT INTO messages (topic_id, timestamp, data) VALUES (1, 9, 0)')
    bag, messages = read_all(path)
    assert len(messages) == 4 * COUNT + 2
    assert bag.losses == [f'{path.name}: no metadata.yaml, the recording was not closed']
    writer.close()


def test_a_cut_sqlite_bag_gives_what_is_intact(recorded_arm, tmp_path):
    path = tmp_path / 'run'
    with recorded_arm.RecordedArm(path, storage='sqlite3') as arm:
        for step in range(2000):
            arm.pose(1000 + step)
    file = next(path.glob('*.db3'))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 3 // 4])
    bag, messages = read_all(path)
    assert 500 < len(messages) < 2000
    assert any('damaged after' in loss for loss in bag.losses)
    missing = 2000 - len(messages)
    assert f'/ee_pose: {missing} of 2000 messages are missing' in bag.losses


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_cut_compressed_file_gives_its_beginning(recorded_arm, tmp_path, storage):
    path = tmp_path / 'run'
    noise = np.random.default_rng(0).integers(0, 256, (40, 20_000), dtype=np.uint8)
    with recorded_arm.RecordedArm(path, storage=storage, compression='file') as arm:
        for step in range(40):
            arm.jpeg('front', 1000 + step, noise[step].tobytes())
    file = next(path.glob('*.zstd'))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    bag, messages = read_all(path)
    assert 5 < len(messages) < 25
    missing = 40 - len(messages)
    assert f'/front/image_raw/compressed: {missing} of 40 messages are missing' in bag.losses


def test_parts_of_a_split_bag_are_read_in_their_order(record, tmp_path):
    split = tmp_path / 'split'
    split.mkdir()
    for number in (2, 10):
        part = record(f'part{number}')
        shutil.copy(next(part.glob('*.mcap')), split / f'split_{number}.mcap')
    shutil.copy(next(record('part9', storage='sqlite3').glob('*.db3')), split / 'split_9.db3')
    bag = Bag(split)
    assert [f.name for f in bag._files] == ['split_2.mcap', 'split_9.db3', 'split_10.mcap']
    assert bag.topics()['/ee_pose'].count == 3 * COUNT


def test_a_part_that_was_not_copied_is_named(record):
    path = record()
    text = (path / 'metadata.yaml').read_text()
    name = next(path.glob('*.mcap')).name
    (path / 'metadata.yaml').write_text(text.replace(f'- {name}', f'- {name}\n  - other_1.mcap'))
    bag, messages = read_all(path)
    assert len(messages) == 4 * COUNT + 1
    assert bag.losses == ['run: metadata.yaml lists other_1.mcap, which is not there']


def test_half_a_metadata_file_is_no_obstacle(record):
    path = record()
    text = (path / 'metadata.yaml').read_text()
    (path / 'metadata.yaml').write_text(text[: len(text) // 2])
    bag, messages = read_all(path)
    assert len(messages) == 4 * COUNT + 1
    assert 'metadata.yaml is damaged' in bag.losses[0]


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('missing', None, 'there is no such file or directory'),
        ('old.bag', b'#ROSBAG V2.0', 'is a bag of ROS 1: convert it with `rosbags-convert'),
        ('notes.txt', b'', 'is no bag: expected .mcap, .db3 or a directory'),
        ('wrong.mcap', b'PK\x03\x04 and so on', 'is no MCAP file: it begins with'),
        ('wrong.db3', b'PK\x03\x04 and so on, really', 'is no SQLite database'),
        ('empty.db3', b'', 'holds no rosbag2 topics'),
    ],
)
def test_what_is_no_bag_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BagError, match=message):
        Bag(path)


def test_a_folder_of_bags_names_them(record, tmp_path):
    record('first')
    record('second')
    with pytest.raises(BagError, match='it holds the bags first, second: give one of them'):
        Bag(tmp_path)


def test_a_type_that_nobody_defines_is_refused_by_name(recorded_arm, tmp_path):
    path = tmp_path / 'run'
    with recorded_arm.RecordedArm(path, storage='sqlite3') as arm:
        arm.say('open', 0)
    database = sqlite3.connect(next(path.glob('*.db3')))
    with database:
        database.execute('UPDATE topics SET type = "their_msgs/msg/Words"')
    database.close()
    (path / 'metadata.yaml').unlink()
    bag, messages = read_all(path)
    with pytest.raises(MessageError, match='their_msgs/msg/Words cannot be read: neither'):
        bag.decode(messages[0])


def test_bytes_that_are_no_message_are_refused(recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        arm.write('joint_states', 0, b'\x00\x01\x00\x00\x01')
    bag, messages = read_all(tmp_path / 'run')
    with pytest.raises(MessageError, match='5 bytes are no sensor_msgs/msg/JointState'):
        bag.decode(messages[0])


@pytest.mark.parametrize('spare', [4, 8])
def test_padding_that_some_writers_append_is_ignored(recorded_arm, tmp_path, spare):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        joints = arm.make(
            'sensor_msgs/msg/JointState',
            header=arm.header(5),
            name=['gripper'],
            position=np.array([0.04]),
            velocity=np.zeros(0),
            effort=np.zeros(0),
        )
        data = bytes(arm._types.store.serialize_cdr(joints, 'sensor_msgs/msg/JointState'))
        arm.write('joint_states', 0, data + b'\xee' * spare)
    bag, messages = read_all(tmp_path / 'run')
    assert bag.decode(messages[0]).position.tolist() == [0.04]


def test_our_own_messages_are_understood_without_their_definition_in_the_bag(
    recorded_arm, tmp_path
):
    path = tmp_path / 'run'
    with recorded_arm.RecordedArm(path, storage='sqlite3') as arm:
        arm.episode(1000, epoch=3, success=True)
    database = sqlite3.connect(next(path.glob('*.db3')))
    with database:
        database.execute('DELETE FROM message_definitions')  # as bags of Humble are
    database.close()
    bag, messages = read_all(path)
    episode = bag.decode(messages[0])
    assert (episode.epoch, episode.task, episode.success) == (3, 'open', True)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_bag_is_never_in_memory_as_a_whole(recorded_arm, tmp_path, storage):
    noise = np.random.default_rng(0).integers(0, 256, 500_000, dtype=np.uint8)
    with recorded_arm.RecordedArm(tmp_path / 'run', storage=storage) as arm:
        for step in range(40):
            arm.jpeg('front', 1000 + step, noise.tobytes())
    bag = Bag(tmp_path / 'run')
    tracemalloc.start()
    try:
        assert sum(len(message.data) for message in bag.messages()) > 20_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000


class TestWriter:
    def write(self, path, count=30, **options):
        writer = BagWriter(path, **options)
        writer.describe({'bundle': 'toy'})
        writer.add_topic('/instruction', 'std_msgs/msg/String', latched=True)
        for number in range(count):
            writer.write('/instruction', number * MS, b'\x00\x01\x00\x00\x02\x00\x00\x00a\x00')
        return writer

    @pytest.mark.parametrize('compression', ['zstd', 'none'])
    def test_a_closed_bag_is_whole_and_knows_where_it_comes_from(self, tmp_path, compression):
        with self.write(tmp_path / 'run', compression=compression) as writer:
            assert (writer.messages, writer.bytes) == (30, 300)
        bag, messages = read_all(tmp_path / 'run')
        assert (len(messages), bag.losses) == (30, [])
        assert bag.provenance() == {'bundle': 'toy'}
        assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == [
            'metadata.yaml',
            'run.mcap',
        ]

    def test_the_library_of_rosbags_reads_it(self, tmp_path):
        from rosbags.rosbag2 import Reader

        self.write(tmp_path / 'run').close()
        with Reader(tmp_path / 'run') as reader:
            assert reader.message_count == 30
            qos = reader.connections[0].ext.offered_qos_profiles[0]
            assert qos.durability.name == 'TRANSIENT_LOCAL'
            assert len(list(reader.messages())) == 30

    def test_what_was_flushed_is_there_before_the_bag_is_closed(self, tmp_path):
        writer = self.write(tmp_path / 'run')
        writer.flush()
        bag, messages = read_all(tmp_path / 'run')
        assert len(messages) == 30
        assert bag.provenance() == {'bundle': 'toy'}
        assert len(bag.losses) == 2
        writer.flush()  # nothing new: no empty chunk
        assert len(read_all(tmp_path / 'run')[1]) == 30

    def test_what_is_written_while_it_is_read_does_not_disturb(self, tmp_path):
        """The size was that of the start of reading, the file had grown since: it crashed."""
        writer = self.write(tmp_path / 'run')
        writer.flush()
        reading = Bag(tmp_path / 'run').messages()
        next(reading)
        for number in range(30, 60):
            writer.write('/instruction', number * MS, b'\x00\x01\x00\x00\x02\x00\x00\x00a\x00')
        writer.flush()
        assert len(list(reading)) == 29
        assert len(read_all(tmp_path / 'run')[1]) == 60

    def test_an_existing_directory_is_never_written_to(self, tmp_path):
        self.write(tmp_path / 'run').close()
        with pytest.raises(BagError, match='cannot record to .* exists already'):
            BagWriter(tmp_path / 'run')
