"""What was on the topics is in the bag, whatever ends the recording."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')
pytest.importorskip('rosbags', reason='needs rosbags')

import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vlaq_ros.data.bags import Bag
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import config_file
from vlaq_ros.ros.conversions import to_stamp
from vlaq_ros.ros.interfaces import PolicyStatus, PrecisionState
from vlaq_ros.ros.parameters import table
from vlaq_ros.ros.recorded_topics import custom_data
from vlaq_ros.ros.recorder_node import RecorderNode
from vlaq_ros.ros.recorder_parameters import RecorderParameters

pytestmark = pytest.mark.ros


@pytest.fixture
def recorder(graph, tmp_path):
    """Return a function that starts a recorder in this process."""

    def start(**parameters):
        values = {'output': str(tmp_path / 'run'), 'bundle': 'toy', **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        return graph.add(
            RecorderNode(context=graph.context, parameter_overrides=overrides, cli_args=[])
        )

    return start


@pytest.fixture
def arm(graph):
    """A node with publishers of every kind that a robot and a policy have."""
    node = graph.node('arm')
    node.pubs = {
        'front': node.create_publisher(Image, 'front/image_raw', qos.IMAGE_IN),  # best effort
        'pose': node.create_publisher(PoseStamped, 'ee_pose', qos.SENSOR_OUT),
        'text': node.create_publisher(String, 'instruction', qos.LATCHED),
        'twist': node.create_publisher(TwistStamped, 'policy/delta_twist_cmds', qos.COMMAND),
        'status': node.create_publisher(PolicyStatus, 'policy/status', qos.LATCHED),
        'precision': node.create_publisher(PrecisionState, 'policy/precision', qos.LATCHED),
    }
    return node


def is_matched(arm):
    return all(p.get_subscription_count() for p in arm.pubs.values())


def act(arm, count, start=0):
    """Publish images, poses and commands, stamped one second apart from each other."""
    for number in range(start, start + count):
        image = Image(height=2, width=3, encoding='rgb8', step=9, data=bytes([number] * 18))
        pose, twist = PoseStamped(), TwistStamped()
        pose.pose.position.x = twist.twist.linear.x = float(number)
        for message in (image, pose, twist):
            message.header.stamp = to_stamp((number + 1) * 10**9)
        arm.pubs['front'].publish(image)
        arm.pubs['pose'].publish(pose)
        arm.pubs['twist'].publish(twist)


def messages_of(path, topic):
    bag = Bag(path)
    return bag, [bag.decode(message) for message in bag.messages([topic])]


def test_everything_is_recorded_with_latched_messages_and_where_it_comes_from(
    graph, arm, recorder, tmp_path
):
    arm.pubs['text'].publish(String(data='open'))
    arm.pubs['status'].publish(PolicyStatus(bundle='toy', bundle_hash='f00d'))
    node = recorder()
    graph.spin_until(lambda: is_matched(arm), what='discovery')
    for number in range(5):  # one by one: a best-effort camera may lose what comes at once
        act(arm, 1, number)
        graph.spin_until(lambda n=number: node.counts['/front/image_raw'] > n, what='an image')
    for precision in ('w8', 'w4', 'w8'):
        arm.pubs['precision'].publish(PrecisionState(precision=precision))
        graph.spin_for(0.05)
    wanted = {'/front/image_raw': 5, '/ee_pose': 5, '/policy/delta_twist_cmds': 5}
    wanted |= {'/instruction': 1, '/policy/status': 1, '/policy/precision': 3}
    graph.spin_until(lambda: dict(node.counts) == wanted, what='all messages')
    node.close()

    bag, images = messages_of(tmp_path / 'run', '/front/image_raw')
    assert {name: topic.count for name, topic in bag.topics().items()} == wanted
    assert [bytes(image.data[:1]) for image in images] == [bytes([n]) for n in range(5)]
    assert bag.losses == []
    assert [m.data for m in messages_of(tmp_path / 'run', '/instruction')[1]] == ['open']
    twists = messages_of(tmp_path / 'run', '/policy/delta_twist_cmds')[1]
    assert [twist.twist.linear.x for twist in twists] == [0.0, 1.0, 2.0, 3.0, 4.0]
    known = bag.provenance()
    assert (known['bundle'], known['bundle_hash']) == ('toy', 'f00d')
    assert known['precisions'] == ['w8', 'w4']
    assert known['streams']['front/image_raw'] == '/front/image_raw'
    assert known['use_sim_time'] is False
    host = os.uname().nodename
    text = (tmp_path / 'run' / 'metadata.yaml').read_text()
    assert host not in text
    assert str(tmp_path) not in text


def test_a_remapped_topic_is_recorded_and_its_name_kept_with_the_bag(graph, tmp_path):
    publisher = graph.node('arm').create_publisher(String, '/sentences', qos.LATCHED)
    publisher.publish(String(data='open'))
    node = graph.add(
        RecorderNode(
            context=graph.context,
            namespace='left',
            parameter_overrides=[
                Parameter('output', value=str(tmp_path / 'run')),
                Parameter('bundle', value='toy'),
            ],
            cli_args=['--ros-args', '-r', 'instruction:=/sentences'],
        )
    )
    graph.spin_until(lambda: node.counts['/sentences'] == 1, what='the sentence')
    node.close()
    streams = Bag(tmp_path / 'run').provenance()['streams']
    assert streams['instruction'] == '/sentences'
    assert streams['ee_pose'] == '/left/ee_pose'


def test_extra_topics_are_recorded_and_one_of_a_strange_type_is_left_out(
    graph, recorder, tmp_path, monkeypatch
):
    talker = graph.node('arm').create_publisher(String, 'talk', qos.LATCHED)
    talker.publish(String(data='hello'))
    strange = graph.node('other').create_publisher(PoseStamped, 'strange', qos.LATCHED)
    strange.publish(PoseStamped())
    from vlaq_ros.data import bag_types

    known = bag_types.MessageTypes.require

    def require(self, name):
        if name == 'geometry_msgs/msg/PoseStamped':
            raise bag_types.MessageError(f'messages of type {name} cannot be read')
        known(self, name)

    monkeypatch.setattr(bag_types.MessageTypes, 'require', require)
    node = recorder(extra_topics='talk strange')
    graph.spin_until(lambda: node.counts['/talk'] == 1, what='the extra topic')
    graph.spin_until(lambda: '/strange' not in node._waiting, what='the strange topic')
    node.close()
    assert [m.data for m in messages_of(tmp_path / 'run', '/talk')[1]] == ['hello']
    assert '/strange' not in Bag(tmp_path / 'run').topics()


def test_recording_ends_cleanly_before_the_disk_is_full(graph, arm, recorder, tmp_path):
    arm.pubs['text'].publish(String(data='open'))
    node = recorder(min_free_mb=1e9, flush_s=0.5)
    graph.spin_until(lambda: node.counts['/instruction'] == 1, what='the sentence')
    graph.spin_until(lambda: node.ended, what='the end')
    assert 'MB of the disk are free, min_free_mb is 1e+09' in node.ended
    node.close()
    bag, sentences = messages_of(tmp_path / 'run', '/instruction')
    assert [m.data for m in sentences] == ['open']
    assert bag.losses == []


def test_an_existing_bag_is_not_touched(graph, recorder, tmp_path):
    from vlaq_ros.errors import BagError

    (tmp_path / 'run').mkdir()
    with pytest.raises(BagError, match='exists already'):
        recorder()


def test_the_parameter_file_shows_the_defaults_of_the_node():
    (values,) = yaml.safe_load(config_file('recorder_node.yaml').read_text()).values()
    expected = {row.name: row.default for row in table(RecorderParameters)}
    assert values['ros__parameters'] == expected


LIMITED = """
import resource, sys
if sys.argv[1] != '0':
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from vlaq_ros.ros.recorded_topics import custom_data
from vlaq_ros.ros.recorder_node import main
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.fixture
def recorder_process(ros_domain, tmp_path):
    """Return a function that starts a recorder of its own; its files may not exceed a size."""
    started = []

    def start(max_bytes=0):
        values = [
            f'output:={tmp_path / "run"}',
            'bundle:=toy',
            'flush_s:=0.2',
            'compression:=none',
        ]
        arguments = ['--ros-args', *(part for value in values for part in ('-p', value))]
        log = (tmp_path / 'log').open('w+')
        process = subprocess.Popen(
            [sys.executable, '-c', LIMITED, str(max_bytes), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        process.log = log
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.log.close()


def wait_for(process, condition, what):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert process.poll() is None, 'the recorder has ended'
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def recorded_images(path):
    files = list(path.glob('*.mcap'))
    return len(messages_of(path, '/front/image_raw')[1]) if files else 0


@pytest.mark.slow
def test_a_kill_leaves_everything_that_was_flushed(graph, arm, recorder_process, tmp_path):
    process = recorder_process()
    wait_for(process, lambda: is_matched(arm), 'discovery')
    arm.pubs['status'].publish(PolicyStatus(bundle='toy', bundle_hash='f00d'))
    for number in range(10):
        act(arm, 1, number)
        time.sleep(0.02)
    wait_for(process, lambda: recorded_images(tmp_path / 'run') >= 5, 'images on the disk')
    process.send_signal(signal.SIGKILL)
    process.wait()
    bag, images = messages_of(tmp_path / 'run', '/front/image_raw')
    assert len(images) >= 5
    assert [image.header.stamp.sec for image in images] == sorted(
        image.header.stamp.sec for image in images
    )
    assert bag.provenance()['bundle_hash'] == 'f00d'
    assert 'the recording was not closed' in bag.losses[0]


@pytest.mark.slow
def test_a_full_disk_is_reported_and_what_was_written_can_be_read(
    graph, arm, recorder_process, tmp_path
):
    process = recorder_process(max_bytes=100_000)
    wait_for(process, lambda: is_matched(arm), 'discovery')
    image = Image(height=100, width=100, encoding='rgb8', step=300, data=bytes(30_000))
    deadline = time.monotonic() + 60.0
    while process.poll() is None:
        assert time.monotonic() < deadline, 'the recorder goes on'
        image.header.stamp.sec += 1
        arm.pubs['front'].publish(image)
        time.sleep(0.1)
    assert process.returncode == 1
    process.log.seek(0)
    log = process.log.read()
    assert 'ended after' in log
    assert 'File too large' in log
    assert 'Traceback' not in log
    bag, images = messages_of(tmp_path / 'run', '/front/image_raw')
    assert 1 <= len(images) <= 3
    assert all(len(image.data) == 30_000 for image in images)
    assert not any('cut off within' in loss for loss in bag.losses)


def test_custom_data_survive_a_recorder_that_splits_them_at_every_equals_sign():
    text = custom_data({'streams': {'front': '/a=b=c'}})
    key, value = text.split('=')
    assert (key, json.loads(value)) == ('vlaq_ros', {'streams': {'front': '/a=b=c'}})
