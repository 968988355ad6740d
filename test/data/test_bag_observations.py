"""What a policy would have seen is in the bag, or the bag is refused with everything it lacks."""

import numpy as np
import pytest

from vlaq_ros.data import bag_intake
from vlaq_ros.data.bag_observations import BagObservations
from vlaq_ros.data.bag_streams import StreamLayout, find_streams
from vlaq_ros.data.bags import Bag
from vlaq_ros.data.messages import decode_pixels
from vlaq_ros.errors import BagError, ConfigError

MS = 1_000_000
LAYOUT = StreamLayout({'front': (8, 6), 'wrist': (4, 4)})


@pytest.fixture
def record(recorded_arm, tmp_path):
    """Return a context manager that records a bag."""
    return lambda name='run', **options: recorded_arm.RecordedArm(tmp_path / name, **options)


def observations(arm, period_ms=25, layout=LAYOUT, **options):
    return BagObservations(Bag(arm.path), layout, period_ms * MS, **options)


def refusal(arm, **options):
    with pytest.raises(BagError) as caught:
        observations(arm, **options).scan()
    return str(caught.value)


def move(arm, steps, start_ms=1000, period_ms=25):
    for step in range(steps):
        arm.sense(start_ms + period_ms * step, (0.001 * step, 0.0, 0.0))


def test_every_step_of_a_recording_is_found_with_its_values(record):
    with record() as arm:
        arm.say(' open ', 0)
        move(arm, 5)
    bag = observations(arm)
    scan = bag.scan()
    assert [step.observed_ns for step in scan.steps] == [(1000 + 25 * k) * MS for k in range(5)]
    assert (scan.ticks, scan.gaps, scan.losses, dict(scan.dropped)) == (5, (), (), {})
    np.testing.assert_allclose(scan.steps[3].state, [0.003, 0.0, 0.0, 0.4])
    loaded = dict((s.now_ns, seen) for s, seen in bag.load(scan.steps[1::2]))
    assert list(loaded) == [1025 * MS, 1075 * MS]
    seen = loaded[1075 * MS]
    assert seen.instruction == 'open'
    assert (seen.images['front'] == 1075 % 251).all()
    assert seen.images['wrist'].shape == (4, 4, 3)
    np.testing.assert_array_equal(seen.state, scan.steps[3].state)


def test_only_the_past_counts_and_a_camera_slower_than_the_clock_gives_each_image_once(record):
    with record() as arm:
        arm.say('open', 0)
        for stamp_ms in range(1000, 1500, 10):
            arm.pose(stamp_ms, (stamp_ms, 0.0, 0.0))
            arm.joints(stamp_ms)
            if stamp_ms % 100 == 40:
                arm.image('front', stamp_ms)
            if stamp_ms % 100 == 70:
                arm.image('wrist', stamp_ms)
    bag = observations(arm)
    steps = bag.scan().steps
    assert [step.observed_ns // MS for step in steps] == [1040, 1140, 1240, 1340, 1440]
    assert [step.image_ns['wrist'] // MS for step in steps] == [1070, 1070, 1170, 1270, 1370]
    assert [step.state[0] for step in steps] == [1040.0, 1140.0, 1240.0, 1340.0, 1440.0]
    for step, seen in bag.load(steps):
        assert (seen.images['wrist'] == (step.image_ns['wrist'] // MS) % 251).all()


def test_a_silent_stream_is_a_gap_with_its_reason_and_nothing_is_filled_in(record):
    with record() as arm:
        arm.say('open', 0)
        for step in range(80):
            stamp_ms = 1000 + 25 * step
            arm.pose(stamp_ms)
            arm.joints(stamp_ms)
            arm.image('front', stamp_ms)
            if not 20 <= step < 60:
                arm.image('wrist', stamp_ms)
    scan = observations(arm).scan()
    (gap,) = scan.gaps
    assert gap.start_ns == (1000 + 19 * 25 + 275) * MS  # the first tick more than 250 ms later
    assert gap.end_ns == (1000 + 59 * 25) * MS
    assert gap.reason == 'wrist: 275 ms old, limit 250 ms'
    assert len(scan.steps) == 80 - 30
    assert scan.gap_share == 30 / 80


def test_the_bag_is_streamed_and_images_are_decoded_only_where_they_are_asked_for(
    record, monkeypatch
):
    import cv2

    with record() as arm:
        arm.say('open', 0)
        for step in range(40):
            stamp_ms = 1000 + 25 * step
            arm.pose(stamp_ms)
            arm.joints(stamp_ms)
            for camera, (height, width) in LAYOUT.cameras.items():
                pixels = np.full((height, width, 3), step, np.uint8)
                arm.jpeg(camera, stamp_ms, cv2.imencode('.png', pixels)[1].tobytes())
    decoded = []

    def counted(message):
        decoded.append(message)
        return decode_pixels(message)

    monkeypatch.setattr(bag_intake, 'decode_pixels', counted)
    bag = observations(arm)
    scan = bag.scan()
    assert len(scan.steps) == 40
    assert len(decoded) == 4  # the first of each camera: when it is opened, and when scanned
    decoded.clear()
    ((_, seen),) = bag.load(scan.steps[30:31])
    assert len(decoded) == 2
    assert (seen.images['front'] == 30).all()


def test_a_broken_image_is_dropped_with_its_reason_also_when_it_shows_only_on_loading(record):
    import cv2

    good = cv2.imencode('.png', np.zeros((8, 6, 3), np.uint8))[1].tobytes()
    with record() as arm:
        arm.say('open', 0)
        for step in range(20):
            stamp_ms = 1000 + 25 * step
            arm.jpeg('front', stamp_ms, good if step != 15 else good[:-20])
            arm.image('wrist', stamp_ms)
            arm.pose(stamp_ms)
            arm.joints(stamp_ms)
    bag = observations(arm)
    steps = bag.scan().steps
    loaded = [seen for _, seen in bag.load(steps[14:17])]
    assert [isinstance(seen, str) for seen in loaded] == [False, True, False]
    assert 'the compressed image is cut off' in loaded[1]


class TestEpisodes:
    def test_they_are_those_of_the_episode_topic(self, record):
        with record() as arm:
            arm.say('open', 0)
            for epoch, start_ms in ((1, 1000), (2, 3000)):
                for step in range(10):
                    arm.sense(start_ms + 25 * step)
                    arm.episode(start_ms + 25 * step, epoch, done=step == 7)
        steps = observations(arm).scan().steps
        assert [step.episode for step in steps] == [1] * 8 + [2] * 8  # what follows `done` is none

    def test_without_a_sentence_topic_the_sentence_is_that_of_the_episode(self, record):
        with record() as arm:
            arm.episode(1000, 1, task='close it')
            move(arm, 3)
        assert {s.instruction for s in observations(arm).scan().steps} == {'close it'}

    def test_without_an_episode_topic_pauses_and_sentences_separate_them(self, record):
        with record() as arm:
            arm.say('open', 0)
            move(arm, 4)
            move(arm, 4, start_ms=4000)
            arm.say('close', 4100)
            move(arm, 4, start_ms=4100)
        steps = observations(arm).scan().steps
        assert [step.episode for step in steps] == [0] * 4 + [1] * 4 + [2] * 4
        assert [step.instruction for step in steps][-5:] == ['open'] + ['close'] * 4

    def test_a_sentence_can_be_given_for_a_bag_without_any(self, record):
        with record() as arm:
            move(arm, 3)
        with pytest.raises(BagError, match='instruction'):
            observations(arm)
        steps = observations(arm, instruction='open').scan().steps
        assert {step.instruction for step in steps} == {'open'}

    def test_a_pause_of_an_hour_costs_no_hour_of_ticks(self, record):
        with record() as arm:
            arm.say('open', 0)
            move(arm, 4)
            move(arm, 4, start_ms=3_600_000)
        scan = observations(arm).scan()
        assert scan.ticks < 20
        assert len(scan.steps) == 8


class TestRefusals:
    def test_the_bag_of_another_robot_says_what_it_holds_and_what_is_needed(self, record):
        names = {'front/image_raw': '/camera/color/image_raw', 'joint_states': '/arm/states'}
        with record(topics=names) as arm:
            arm.say('open', 0)
            arm.image('front', 1000)
            arm.joints(1000)
            arm.put('wrist/image_raw', 1000, 'std_msgs/msg/String', data='not an image')
        assert refusal(arm) == (
            "bag 'run' does not hold what the policy needs:\n"
            '  front/image_raw (sensor_msgs/msg/Image) or front/image_raw/compressed '
            '(sensor_msgs/msg/CompressedImage): not there\n'
            '  wrist/image_raw (sensor_msgs/msg/Image) or wrist/image_raw/compressed '
            '(sensor_msgs/msg/CompressedImage): '
            '/wrist/image_raw is of type std_msgs/msg/String\n'
            '  ee_pose (geometry_msgs/msg/PoseStamped): not there\n'
            '  joint_states (sensor_msgs/msg/JointState): not there\n'
            'It holds: /arm/states (sensor_msgs/msg/JointState, 1), '
            '/camera/color/image_raw (sensor_msgs/msg/Image, 1), '
            '/instruction (std_msgs/msg/String, 1), '
            '/wrist/image_raw (std_msgs/msg/String, 1).\n'
            'Give other names as a table from stream to topic, e.g. '
            "{'front': '/camera/color/image_raw'}"
        )

    def test_a_table_gives_other_names(self, record):
        names = {'front/image_raw': '/camera/color', 'joint_states': '/arm/states'}
        with record(topics=names) as arm:
            arm.say('open', 0)
            move(arm, 3)
        table = {'front': '/camera/color', 'joint_states': '/arm/states'}
        assert len(observations(arm, names=table).scan().steps) == 3

    def test_what_the_recorder_wrote_down_needs_no_table(self, record):
        with record(topics={'front/image_raw': '/camera/color'}) as arm:
            arm.set_custom_data('vlaq_ros', '{"streams": {"front/image_raw": "/camera/color"}}')
            arm.say('open', 0)
            move(arm, 3)
        assert len(observations(arm).scan().steps) == 3

    def test_a_namespace_is_looked_through_and_two_are_ambiguous(self, record):
        streams = ('front/image_raw', 'wrist/image_raw', 'ee_pose', 'joint_states', 'instruction')
        with record('one', topics={name: f'/left/{name}' for name in streams}) as arm:
            arm.say('open', 0)
            move(arm, 2)
        found = find_streams(Bag(arm.path), LAYOUT)
        assert found.instruction == '/left/instruction'
        both = {name: f'/left/{name}' for name in streams}
        with record('two', topics=both) as arm:
            arm.say('open', 0)
            move(arm, 2)
            arm.names = {**both, 'ee_pose': '/right/ee_pose'}
            arm.pose(1000)
        assert 'several, choose one: /left/ee_pose, /right/ee_pose' in refusal(arm)

    def test_a_table_with_an_unknown_stream_or_topic_is_refused(self, record):
        with record() as arm:
            arm.say('open', 0)
            move(arm, 2)
        with pytest.raises(ConfigError, match=r"names \['top'\], which this policy does not use"):
            observations(arm, names={'top': '/front/image_raw'})
        assert 'no topic /nowhere, as the table says' in refusal(
            arm, names={'ee_pose': '/nowhere'}
        )

    def test_wrong_sizes_frames_and_joints_are_refused_at_once_and_together(self, record):
        with record() as arm:
            arm.say('open', 0)
            arm.image('front', 1000, size=(48, 64))
            arm.image('wrist', 1000, encoding='rgb9')
            arm.pose(1000, frame='world')
            arm.put(
                'joint_states',
                1000,
                header=arm.header(1000),
                name=['elbow'],
                position=np.zeros(1),
                velocity=np.zeros(0),
                effort=np.zeros(0),
            )
        text = refusal(arm)
        assert text.startswith("bag 'run' does not fit the policy:\n")
        assert "camera 'front' sends images of 64 x 48 px" in text
        assert "/wrist/image_raw: unknown image encoding 'rgb9'" in text
        assert "/ee_pose: in frame 'world', expected 'base'" in text
        assert "/joint_states: no finite position of ['joint.gripper'] in a message of" in text

    def test_a_topic_that_also_carries_other_joints_is_no_obstacle(self, record):
        with record() as arm:
            arm.say('open', 0)
            arm.put(
                'joint_states',
                990,
                header=arm.header(990),
                name=['elbow'],
                position=np.zeros(1),
                velocity=np.zeros(0),
                effort=np.zeros(0),
            )
            move(arm, 3)
        scan = observations(arm).scan()
        assert len(scan.steps) == 3
        assert dict(scan.dropped) == {'/joint_states': 1}

    def test_messages_without_stamps_are_refused(self, record):
        with record() as arm:
            arm.say('open', 0)
            arm.sense(0)
        assert '/ee_pose: the stamp is zero, the driver sets none' in refusal(arm)

    def test_a_clock_that_jumps_is_refused_with_every_jump(self, record):
        with record() as arm:
            arm.say('open', 0)
            move(arm, 10, start_ms=50_000)
            arm.log_offset_ms = 50_000
            move(arm, 10, start_ms=1000)
            arm.log_offset_ms = -30_000
            move(arm, 10, start_ms=90_000)
        text = refusal(arm)
        assert "the clock of bag 'run' jumps 8 time(s):" in text
        assert '/ee_pose: at t=50.225 s by -49.225 s' in text
        assert '/joint_states: at t=1.225 s by +88.775 s' in text

    def test_a_bag_without_one_complete_observation_has_no_episodes(self, record):
        with record() as arm:
            arm.say('open', 0)
            for stamp_ms in range(1000, 2000, 25):
                arm.pose(stamp_ms)
                arm.joints(stamp_ms)
                arm.image('front', stamp_ms)
            arm.image('wrist', 60_000)
        text = refusal(arm)
        assert text.startswith("bag 'run' has no episodes:\n")
        assert 'wrist: nothing received yet' in text


def test_receive_times_are_compared_with_the_stamps(record):
    with record() as arm:
        arm.say('open', 0)
        for step in range(20):
            stamp_ms = 1000 + 25 * step
            arm.pose(stamp_ms, log_ms=stamp_ms + 5)
            arm.joints(stamp_ms, log_ms=stamp_ms + 5)
            arm.image('front', stamp_ms, log_ms=stamp_ms + 5)
            arm.image('wrist', stamp_ms, log_ms=stamp_ms + 5)
    assert observations(arm).scan().offset_s == pytest.approx(
        dict.fromkeys(('/ee_pose', '/joint_states', '/front/image_raw', '/wrist/image_raw'), 0.005)
    )


def test_an_unfinished_recording_is_used_and_the_loss_is_reported(record):
    with record() as arm:
        arm.say('open', 0)
        move(arm, 200)
    (arm.path / 'metadata.yaml').unlink()
    file = next(arm.path.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    scan = observations(arm).scan()
    assert 80 < len(scan.steps) < 150
    assert len(scan.losses) == 2


def test_a_layout_without_sense_is_refused():
    with pytest.raises(ConfigError, match='give one scale per source'):
        StreamLayout({'front': (8, 6)}, sources=('ee_pose.up',), scales=(1.0,))
