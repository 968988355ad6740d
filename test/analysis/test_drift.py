"""`vlaq drift`: its numbers are those of a calculation by hand, and what it lacks is said."""

import json
import math
import shutil

import numpy as np
import pytest

from vlaq_ros.analysis.drift_job import DriftJob, check_job
from vlaq_ros.analysis.drift_live import compare_live
from vlaq_ros.analysis.drift_measure import measure
from vlaq_ros.analysis.drift_summary import summarize
from vlaq_ros.cli import main
from vlaq_ros.control.drift_alarm import DriftLevel, DriftLimits
from vlaq_ros.errors import BagError, ConfigError
from vlaq_ros.policies.bundle import open_bundle

HORIZON = 6


def analyse(run, **options):
    return measure(check_job(DriftJob(run.path, **{'reference': 'toy', **options})))


def values_of(run, **options):
    judged = analyse(run, **options)
    return summarize(judged, compare_live(judged))


def refusal(*jobs, **options):
    with pytest.raises((BagError, ConfigError)) as caught:
        check_job(DriftJob(*jobs, **options))
    return str(caught.value)


def by_hand(run):
    """Return the drift of every chunk: increments in the base frame simply add up."""
    rows = []
    for chunk, reference in zip(run.chunks, run.references):
        difference = (chunk.actions - reference.actions)[:HORIZON]
        opens = (chunk.actions[:HORIZON, 3] >= 0.5) != (reference.actions[:HORIZON, 3] >= 0.5)
        per_step = np.mean([np.sqrt((row[:3] ** 2).sum()) for row in difference])
        rows.append((per_step, np.linalg.norm(difference[:, :3].sum(axis=0)), opens.mean()))
    return np.array(rows)


def test_the_numbers_are_those_of_a_calculation_by_hand(toy_run):
    values = values_of(toy_run)
    expected = by_hand(toy_run)
    names = ('position_per_step_m', 'position_accumulated_m', 'gripper_disagreement')
    for name, column in zip(names, expected.T):
        assert column.max() > 0.0 or name == 'gripper_disagreement'
        found = [chunk[name] for chunk in values['chunks']]
        np.testing.assert_allclose(found, column, rtol=1e-9, atol=1e-15)
        assert values['overall'][name] == pytest.approx(column.mean())
        assert values['episodes'][1][name] == pytest.approx(column[4:].mean())
    assert values['overall']['largest_accumulated_m'] == pytest.approx(expected[:, 1].max())
    assert math.isnan(values['overall']['rotation_accumulated_rad'])


def test_the_window_begins_anew_with_an_epoch_and_forgets_what_is_old(toy_run):
    accumulated = by_hand(toy_run)[:, 1]
    found = [chunk['window_m'] for chunk in values_of(toy_run)['chunks']]
    both = [np.mean(accumulated[4 * (k // 4) : k + 1]) for k in range(8)]
    np.testing.assert_allclose(found, both)
    found = [chunk['window_m'] for chunk in values_of(toy_run, window_s=0.2)['chunks']]
    pairs = [np.mean(accumulated[max(4 * (k // 4), k - 1) : k + 1]) for k in range(8)]
    np.testing.assert_allclose(found, pairs)


def test_episodes_levels_and_occupancy_are_told(toy_run):
    values = values_of(toy_run)
    told = [(one['title'], one['chunks'], one['success']) for one in values['episodes']]
    assert told == [('reach', 4, True), ('drawer-open', 4, True)]
    assert set(values['tasks']) == {'reach', 'drawer-open'}
    half = {'w4a8': 0.5, 'w8a16': 0.5}
    assert values['overall']['occupancy'] == {'expert': half, 'llm': half}
    assert values['overall']['precision_changes'] == 2
    accumulated = by_hand(toy_run)[:, 1]
    assert values['levels']['w4a8']['position_accumulated_m'] == pytest.approx(
        accumulated[[2, 3, 6, 7]].mean()
    )


def test_observations_are_those_of_the_policy_to_the_bit(toy_run):
    """Toy actions depend on every input; in lockstep all inputs have one stamp."""
    run = analyse(toy_run)
    for one, reference in zip(run.judged, toy_run.references):
        assert one.sureness == 'alike'
        np.testing.assert_array_equal(one.reference.actions, reference.actions)


def test_alarms_follow_the_given_limits(toy_run):
    accumulated = by_hand(toy_run)[:, 1]
    limits = DriftLimits(warn_m=accumulated.min() / 4, error_m=accumulated.max() / 2)
    run = analyse(toy_run, limits=limits, window_s=0.1)
    expected = [
        DriftLevel.ERROR if value > limits.error_m else DriftLevel.WARN for value in accumulated
    ]
    assert run.judged[0].reading.level == expected[0]
    assert max(one.reading.level for one in run.judged) == DriftLevel.ERROR


def test_a_level_of_the_same_bundle_can_be_the_reference(toy_run):
    run = analyse(toy_run, precision='w8a16')
    assert run.reference_precision in ('nested', 'w8a16')
    for one in run.judged:
        is_same = one.chunk.precision == 'w8'
        assert (one.reading.drift.position_accumulated_m == 0.0) == is_same


def test_chunks_without_observation_are_counted_with_the_reason(record_toy):
    run = record_toy(left_out=lambda camera, ms: camera == 'front' and ms in (1150.0, 2300.0))
    values = values_of(run)
    assert (values['overall']['judged'], values['overall']['chunks']) == (6, 8)
    (reason,) = values['overall']['without_reading'].items()
    assert reason == ('front: no image with the stamp of the chunk in the bag', 2)
    assert [one['number'] for one in values['chunks'] if one['problem']] == [1, 6]
    expected = np.delete(by_hand(run)[:, 1], [1, 6]).mean()
    assert values['overall']['position_accumulated_m'] == pytest.approx(expected)


def test_most_chunks_without_observation_are_refused_with_why(record_toy):
    run = record_toy(left_out=lambda camera, ms: camera == 'wrist' and ms > 1000.0)
    text = refusal(run.path, 'toy')
    assert '6 of 8 chunks have no observation' in text
    assert 'wrist: ' in text
    assert 'old, limit 250 ms' in text


def test_everything_that_is_wrong_is_said_at_once(record_toy):
    run = record_toy(left_out=lambda camera, ms: camera == 'wrist')
    text = refusal(run.path, 'toy', precision='w5', horizon=9, window_s=-1.0)
    for part in ('wrist/image_raw', "'w5'", '--horizon = 9', '--window-s = -1.0'):
        assert part in text
    text = refusal(run.path.with_name('none'), 'nobody')
    assert 'no bag at' in text
    assert "no bundle at 'nobody'" in text


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'names': ['ee_z', 'ee_y', 'ee_x', 'gripper']}, "('ee_z', 'ee_y', 'ee_x', 'gripper')"),
        ({'horizon': 4, 'actions': np.zeros(16)}, '4 actions per chunk, expected 8'),
        ({'head': 'wise'}, "head 'wise', the bundle has flow, token"),
    ],
)
def test_chunks_of_another_policy_are_refused(record_toy, change, part):
    run = record_toy(change=lambda chunk: change)
    text = refusal(run.path, 'toy')
    assert "8 of 8 chunks are of another policy than bundle 'toy'" in text
    assert part in text


def test_a_bag_without_chunks_is_refused_with_what_it_holds(recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        arm.sense(1000.0)
    text = refusal(tmp_path / 'run', 'toy')
    assert 'has no topic of type vlaq_ros/msg/ActionChunk' in text
    assert '/front/image_raw' in text


def test_the_chunks_of_one_of_several_policies_are_chosen_by_name(record_toy):
    run = record_toy()
    assert "no chunks of a node 'other', only /policy/action_chunk" in refusal(
        run.path, 'toy', policy='other'
    )
    assert len(analyse(run, policy='policy').judged) == 8


def test_a_bag_that_was_cut_off_is_read_as_far_as_it_goes(toy_run, tmp_path):
    folder = tmp_path / 'cut'
    shutil.copytree(toy_run.path, folder)
    (file,) = folder.glob('*.mcap')
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    values = values_of(type(toy_run)(folder))
    assert 0 < values['overall']['judged'] < 8
    assert any('messages are missing' in note for note in values['notes'])


@pytest.mark.parametrize('is_reference', [True, False])
def test_a_bag_of_another_bundle_is_noted(record_toy, is_reference):
    ran = open_bundle('toy').digest if is_reference else 64 * 'f'
    kept = {'bundle': 'mine', 'bundle_hash': ran, 'lost': {'/ee_pose': 3}}
    notes = values_of(record_toy(provenance=kept))['notes']
    assert '/ee_pose: 3 messages were lost while recording' in notes
    others = [note for note in notes if "recorded with bundle 'mine' (ffffffffffff)" in note]
    assert len(others) == (0 if is_reference else 1)


def test_the_command_writes_numbers_page_and_pictures(toy_run, tmp_path, capsys):
    out = tmp_path / 'out'
    argv = ['drift', str(toy_run.path), '--reference', 'toy', '--out', str(out)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert 'the bag holds no drift reports of the node' in said
    values = json.loads((out / 'drift.json').read_text())
    assert values['overall']['judged'] == 8
    assert values['overall']['rotation_accumulated_rad'] is None
    page = (out / 'drift.md').read_text()
    assert '| 0 reach | 4 of 4 |' in page
    pictures = sorted(path.name for path in out.glob('*.png'))
    assert pictures == [
        'occupancy.png',
        'tasks.png',
        'timeline.png',
        'trajectory_00_reach.png',
        'trajectory_01_drawer_open.png',
    ]
    for name in pictures:
        assert (out / name).read_bytes().startswith(b'\x89PNG')
        assert f']({name})' in page
        assert f'wrote {out / name}' in said


def test_wrong_options_are_listed_and_nothing_is_run(toy_run, tmp_path, capsys):
    out = tmp_path / 'out'
    argv = ['drift', str(toy_run.path), '--topics', 'front', '--warn-m', '1']
    assert main([*argv, '--out', str(out)]) == 2
    said = capsys.readouterr().err
    assert '--topics front: write STREAM=TOPIC' in said
    assert 'warn_m = 1.0 must be positive and below error_m' in said
    assert not out.exists()
