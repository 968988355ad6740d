"""Samples are balanced, reproducible and from different episodes; poor recordings are refused."""

from collections import Counter

import numpy as np
import pytest

from vlaq_ros.calibration.phases import Phase, phases_of, speed_scale, speeds
from vlaq_ros.calibration.recordings import layout_of, open_bags, open_demonstrations
from vlaq_ros.calibration.samples import SamplePlan, draw_samples
from vlaq_ros.errors import BagError, ConfigError
from vlaq_ros.policies.spec import CameraSpec, PolicySpec, PromptSpec, StateSpec
from vlaq_ros.types import ActionSpec

MS = 1_000_000
NAMES, UNITS = ('ee_x', 'ee_y', 'ee_z', 'gripper'), ('m', 'm', 'm', '1')
SPEC = PolicySpec(
    family='fake',
    name='fake',
    cameras=(CameraSpec('front', 8, 6), CameraSpec('wrist', 4, 4)),
    state=StateSpec(
        ('hand_x', 'hand_y', 'hand_z', 'gripper_opening'), UNITS, (0.0,) * 4, (1.0,) * 4
    ),
    prompt=PromptSpec(('<pad>', '<unk>'), 8),
    action=ActionSpec(NAMES, UNITS, 'base', True, 25 * MS, (-1.0,) * 4, (1.0,) * 4),
    action_mean=(0.0,) * 4,
    action_std=(1.0,) * 4,
    horizon=8,
    execution_horizon=4,
    heads=('flow',),
    sampler_steps=1,
    license='none',
    provenance={},
)
PLAN = SamplePlan(calibration=40, held_out=16, seed=3)
# Steps of one episode: (millimetres per step, gripper position at its end [m], steps)
MOTION = ((10.0, 0.08, 30), (1.0, 0.08, 20), (0.0, 0.02, 6), (10.0, 0.02, 24), (0.0, 0.02, 40))


def work(arm, start_ms, period_ms=25):
    """Record one episode: reach, slow down, close the gripper, carry, stand still."""
    x_mm, gripper, now_ms = 0.0, 0.08, start_ms
    for speed_mm, goal, steps in MOTION:
        for left in range(steps, 0, -1):
            gripper += (goal - gripper) / left
            arm.sense(now_ms, (x_mm / 1e3, 0.0, 0.0), gripper)
            x_mm, now_ms = x_mm + speed_mm, now_ms + period_ms


@pytest.fixture
def record(recorded_arm, tmp_path):
    """Return a function that records episodes, each with its sentence."""

    def make(name='run', sentences=('open', 'open', 'close', 'close'), **options):
        with recorded_arm.RecordedArm(tmp_path / name, **options) as arm:
            for number, sentence in enumerate(sentences):
                start_ms = 1000 + 8000 * number
                arm.say(sentence, start_ms - 10)
                arm.episode(start_ms, number)
                work(arm, start_ms)
        return tmp_path / name

    return make


def refusal(recordings, plan=PLAN):
    with pytest.raises(BagError) as caught:
        draw_samples(recordings, SPEC, plan)
    return str(caught.value)


class TestPhases:
    def test_they_follow_speed_and_gripper(self):
        x_mm, gripper, opening = [0.0], [1.0], 1.0
        for speed_mm, goal, steps in MOTION:
            for left in range(steps, 0, -1):
                opening += (goal / 0.08 - opening) / left
                x_mm.append(x_mm[-1] + speed_mm)
                gripper.append(opening)
        positions = np.outer(np.array(x_mm) / 1e3, [1.0, 0.0, 0.0])
        stamps_ns = np.arange(len(positions)) * 25 * MS
        speed = speeds(stamps_ns, positions)
        scale = speed_scale([speed])
        assert scale == pytest.approx(0.4)  # 10 mm in 25 ms
        found = phases_of(stamps_ns, speed, scale, np.array(gripper), (0.25, 1.0))
        assert set(found[:29]) == {Phase.APPROACH}
        assert set(found[32:45]) == {Phase.FINE}
        assert set(found[50:56]) == {Phase.GRASP}
        assert set(found[62:78]) == {Phase.TRANSPORT}
        assert set(found[90:]) == {Phase.IDLE}

    def test_an_arm_without_a_gripper_neither_grasps_nor_carries(self):
        stamps_ns = np.arange(10) * 25 * MS
        assert set(phases_of(stamps_ns, np.full(10, 1.0), 1.0, None, (0.0, 0.0))) == {
            Phase.APPROACH
        }

    def test_speed_is_distance_over_time_also_where_steps_are_missing(self):
        stamps_ns = np.array([0, 25, 100]) * MS
        positions = np.array([[0.0], [0.01], [0.04]])
        np.testing.assert_allclose(speeds(stamps_ns, positions), [0.4, 0.4, 0.4])
        assert speeds(stamps_ns[:1], positions[:1]).tolist() == [0.0]


def test_samples_are_balanced_and_held_out_ones_are_from_other_episodes(record):
    drawn = draw_samples(open_bags([record()], SPEC), SPEC, PLAN)
    assert (len(drawn.calibration), len(drawn.held_out)) == (40, 16)
    episodes = [{s.episode for s in part} for part in (drawn.calibration, drawn.held_out)]
    assert not episodes[0] & episodes[1]
    assert Counter(s.instruction for s in drawn.calibration) == {'open': 20, 'close': 20}
    assert Counter(s.instruction for s in drawn.held_out) == {'open': 8, 'close': 8}
    phases = Counter((s.instruction, s.phase) for s in drawn.calibration)
    assert set(phases.values()) == {5}  # four phases each; idle steps are never drawn
    assert Phase.IDLE not in {s.phase for s in drawn.calibration + drawn.held_out}


def test_a_sample_says_where_it_was_taken_and_holds_what_was_seen_there(record):
    drawn = draw_samples(open_bags([record()], SPEC), SPEC, PLAN)
    for sample in drawn.calibration:
        seen, source = sample.observation, sample.source
        assert (source.recording, source.topic) == ('run', '/front/image_raw')
        assert seen.observed_ns == source.stamp_ns
        assert (seen.images['front'] == source.stamp_ns // MS % 251).all()
        assert seen.instruction == sample.instruction
        assert sample.episode.startswith('run/')
    stamps = [s.source.stamp_ns for s in drawn.calibration]
    assert len(set(stamps)) == len(stamps)
    report = drawn.report
    assert report['calibration']['instructions'] == {'close': 20, 'open': 20}
    assert report['recordings'][0]['name'] == 'run'
    assert report['plan']['seed'] == 3


def test_the_same_seed_gives_the_same_samples_and_another_one_others(record):
    path = record()
    sources = [
        [s.source for s in draw_samples(open_bags([path], SPEC), SPEC, plan).calibration]
        for plan in (PLAN, PLAN, SamplePlan(calibration=40, held_out=16, seed=4))
    ]
    assert sources[0] == sources[1]
    assert sources[0] != sources[2]


def test_episodes_of_several_bags_are_told_apart(record):
    paths = [record('monday', ('open', 'open')), record('tuesday', ('close', 'close'))]
    drawn = draw_samples(open_bags(paths, SPEC), SPEC, PLAN)
    assert {s.source.recording for s in drawn.calibration} == {'monday', 'tuesday'}
    assert {s.episode.partition('/')[0] for s in drawn.held_out} == {'monday', 'tuesday'}


class TestRefusals:
    def test_all_bags_that_do_not_fit_are_named_before_any_is_read(
        self, record, recorded_arm, tmp_path
    ):
        good = record()
        with recorded_arm.RecordedArm(tmp_path / 'sizes') as arm:
            arm.say('open', 0)
            arm.image('front', 1000, size=(48, 64))
            arm.image('wrist', 1000)
            arm.pose(1000)
            arm.joints(1000)
        with recorded_arm.RecordedArm(tmp_path / 'other') as arm:
            arm.say('open', 0)
        with pytest.raises(BagError) as caught:
            open_bags([good, tmp_path / 'sizes', tmp_path / 'other', tmp_path / 'none'], SPEC)
        text = str(caught.value)
        assert "camera 'front' sends images of 64 x 48 px" in text
        assert "bag 'other' does not hold what the policy needs" in text
        assert 'no bag at' in text

    def test_a_bag_that_is_given_twice_is_refused(self, record):
        path = record()
        with pytest.raises(BagError, match='several recordings are called run'):
            open_bags([path, path], SPEC)

    def test_too_few_steps_episodes_and_instructions_are_refused_together(self, record):
        recordings = open_bags([record(sentences=('open', 'open'))], SPEC)
        text = refusal(recordings, SamplePlan(calibration=500, held_out=16))
        assert '1 instruction(s), at least 2 are needed' in text
        assert "for one task only: 'open'" in text
        assert '2 episode(s), at least 4 are needed' in text
        assert 'for the 500 calibration samples' in text
        assert text.endswith('Record more, or ask for fewer samples')

    def test_one_task_is_enough_for_whoever_says_so(self, record):
        recordings = open_bags([record(sentences=('open',) * 4)], SPEC)
        plan = SamplePlan(calibration=20, held_out=8, min_instructions=1)
        assert len(draw_samples(recordings, SPEC, plan).calibration) == 20

    def test_an_arm_that_does_not_move_is_refused(self, recorded_arm, tmp_path):
        with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
            arm.say('open', 0)
            for step in range(100):
                arm.sense(1000 + 25 * step, (0.1, 0.2, 0.3))
        text = refusal(open_bags([tmp_path / 'run'], SPEC))
        assert text.startswith('the arm does not move: its speed stays below 0.001')

    def test_a_bag_full_of_gaps_is_refused(self, recorded_arm, tmp_path):
        with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
            arm.say('open', 0)
            for step in range(400):
                stamp_ms = 1000 + 25 * step
                arm.pose(stamp_ms, (0.01 * step, 0.0, 0.0))
                arm.joints(stamp_ms)
                if step % 60 == 0:  # every 1.5 s; images may be 0.25 s old
                    arm.image('front', stamp_ms)
                    arm.image('wrist', stamp_ms)
        text = refusal(open_bags([tmp_path / 'run'], SPEC))
        # seven images show 11 ticks each, the six gaps between them have 49
        assert 'run: 79% of its control periods have no complete observation' in text

    def test_a_plan_without_sense_is_refused_with_everything_that_is_wrong(self):
        with pytest.raises(ConfigError) as caught:
            SamplePlan(calibration=0, held_out_share=1.0, min_episodes=1)
        for name in ('calibration=0', 'held_out_share=1.0', 'min_episodes=1'):
            assert name in str(caught.value)

    def test_state_sources_must_be_those_of_the_policy(self):
        with pytest.raises(ConfigError, match='needs 4: hand_x, hand_y, hand_z, gripper_opening'):
            layout_of(SPEC, sources=('ee_pose.x',), scales=(1.0,))


def test_a_sample_with_a_broken_image_is_replaced_by_another(record, monkeypatch):
    (recording,) = open_bags([record()], SPEC)
    load, asked = recording.load, []

    def load_half(moments):
        asked.append(len(moments))
        for number, (moment, seen) in enumerate(load(moments)):
            yield moment, 'cut off' if len(asked) == 1 and number % 2 else seen

    monkeypatch.setattr(recording, 'load', load_half)
    drawn = draw_samples([recording], SPEC, PLAN)
    assert asked[:2] == [40, 20]
    assert len(drawn.calibration) == 40
    monkeypatch.setattr(
        recording, 'load', lambda moments: ((moment, 'cut off') for moment in moments)
    )
    assert '0 of 40 samples could be loaded' in refusal([recording])


class TestDemonstrations:
    def save(self, folder, cameras=(('front', 8, 6), ('wrist', 4, 4)), episodes=4):
        steps = 60
        x_m = np.concatenate([np.arange(30) * 0.02, 0.6 + np.arange(30) * 0.001])
        state = np.zeros((episodes * steps, 4), np.float32)
        state[:, 0], state[:, 3] = np.tile(x_m, episodes), 1.0
        folder.mkdir(exist_ok=True)
        np.savez(
            folder / 'shard_0.npz',
            task=np.repeat(np.arange(episodes) % 2, steps),
            episode=np.repeat(np.arange(episodes), steps),
            steps=np.tile(2 * np.arange(steps), episodes),
            state=state,
            **{
                name: np.full((episodes * steps, height, width, 3), 7, np.uint8)
                for name, height, width in cameras
            },
        )
        return folder

    def test_they_give_samples_like_bags(self, tmp_path):
        sentences = {0: ('open', 'pull'), 1: ('close', 'push')}
        recordings = open_demonstrations(self.save(tmp_path / 'demos'), SPEC, sentences)
        plan = SamplePlan(calibration=20, held_out=10)
        drawn = draw_samples(recordings, SPEC, plan)
        assert {s.instruction for s in drawn.calibration + drawn.held_out} == {
            'open',
            'push',
        }
        assert {s.phase for s in drawn.calibration} == {Phase.APPROACH, Phase.FINE}
        sample = drawn.calibration[0]
        assert sample.source.recording == 'shard_0'
        assert (sample.observation.images['front'] == 7).all()
        assert sample.observation.observed_ns == sample.source.stamp_ns

    def test_other_cameras_are_refused_with_their_sizes(self, tmp_path):
        self.save(tmp_path / 'demos', cameras=(('front', 96, 96), ('wrist', 4, 4)))
        with pytest.raises(
            BagError, match=r'front is \[96, 96, 3\], the policy needs \[8, 6, 3\]'
        ):
            open_demonstrations(tmp_path / 'demos', SPEC, {})

    def test_an_empty_folder_says_how_to_record(self, tmp_path):
        with pytest.raises(BagError, match='record some with `vlaq collect'):
            open_demonstrations(tmp_path, SPEC, {})
