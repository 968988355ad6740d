"""Injected errors: what is injected, what a monitor says of it, and how detections are counted."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vlaq_ros.control.drift_alarm import DriftLevel, DriftLimits
from vlaq_ros.errors import ConfigError, MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.policies.drift_monitor import DriftMonitor
from vlaq_ros.policies.toy import ToyPolicy, toy_spec
from vlaq_ros.sim.drift_detection import (
    Outcome,
    alarm_levels,
    choose_limits,
    detect,
    detect_all,
    false_alarms,
    scaled,
)
from vlaq_ros.sim.drift_readings import (
    CALIBRATED,
    TURN_RMS_RAD,
    RemoteAnswers,
    Series,
    read,
    turning_run,
)
from vlaq_ros.sim.drift_runs import CHOOSE, JUDGE, Plan, RunStore, StudyRun, draw_onset, run_one
from vlaq_ros.sim.drift_study_report import draw_study, make_tables, write_study
from vlaq_ros.sim.drift_study_results import evaluate_study
from vlaq_ros.sim.faults import FAULTS, TURNING, FaultyPolicy
from vlaq_ros.sim.rollout import default_episodes
from vlaq_ros.types import ActionChunk, Observation

SPEC = toy_spec()
ACTION = SPEC.action
ROWS = SPEC.execution_horizon
PERIOD_S = ROWS * ACTION.period_s
LIMITS = DriftLimits(0.005, 0.010, 0.05, 0.1, 0.3, 0.6, calm_share=0.8, calm_after=1)
EPISODES = default_episodes(('reach', 'push'), 4)
ACTIONS = np.array([[0.01, 0.0, 0.002, 1.0], [0.0, -0.01, 0.0, 0.0]])


def observe(step=0):
    """Return an observation."""
    images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in SPEC.cameras}
    state = np.array([0.0, 0.6, 0.2, 0.5])
    return Observation(images, state, 'reach', step * ACTION.period_ns)


def make_series(positions_m, onset=-1, delay=0, first=0):
    """Return readings of these windows [m], one per chunk, that come `delay` chunks late."""
    count = len(positions_m)
    window = np.zeros((count, 3))
    window[:, 0], window[:, 1] = positions_m, math.nan
    chunk = np.arange(first, first + count)
    time_s = (chunk + delay) * PERIOD_S
    return Series(chunk, time_s, window, window, PERIOD_S, count * ROWS, onset)


def make_run(
    split=JUDGE, level='w8a8', fault='', onset=-1, error_m=0.0, chunks=10, number=0, opening=1.0
):
    """Return an episode along x, `error_m` off per step or with a flip from the onset on."""
    reference = np.zeros((chunks, ROWS, 4))
    reference[..., 0] = 0.01
    reference[..., 3] = opening
    judged = np.array(reference)
    judged[..., 1] += 1.1e-5 * (1 + np.arange(chunks) % 3)[:, None]
    judged[max(onset, 0) :, :, 1] += error_m
    if fault == 'gripper':
        judged[onset:, :, 3] = 1.0 - opening
    answers = {'fp32': reference, 'higher': reference}
    e = EPISODES[number]
    return StudyRun(
        *(split, level, fault, onset, e.task, e.seed, e.index, not fault, chunks * ROWS - 1),
        *(judged, answers),
    )


# --- what is injected


def test_a_bias_is_added_to_every_step():
    wrong = FAULTS['bias-2mm'].change(ACTIONS, ACTION)
    np.testing.assert_allclose(wrong - ACTIONS, [[0.002, 0, 0, 0]] * 2)


def test_a_flipped_gripper_commands_the_opposite_and_nothing_else():
    wrong = FAULTS['gripper'].change(ACTIONS, ACTION)
    assert wrong[:, 3].tolist() == [0.0, 1.0]
    assert (wrong[:, :3] == ACTIONS[:, :3]).all()


@pytest.mark.parametrize(('name', 'degrees'), [('wrist-10deg', 10), ('wrist-20deg', 20)])
def test_a_rotated_wrist_turns_translations_about_z(name, degrees):
    wrong = FAULTS[name].change(ACTIONS, ACTION)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    np.testing.assert_allclose(wrong[0], [0.01 * cosine, 0.01 * sine, 0.002, 1.0], atol=1e-12)
    np.testing.assert_allclose(wrong[1], [0.01 * sine, -0.01 * cosine, 0.0, 0.0], atol=1e-12)


def test_a_policy_is_healthy_until_the_onset_of_every_episode():
    healthy = ToyPolicy(SPEC, 'fp32')
    faulty = FaultyPolicy(ToyPolicy(SPEC, 'fp32'), FAULTS['bias-1mm'], onset=2)
    for _ in range(2):
        faulty.reset()
        shifts = [
            faulty.infer(observe(k)).actions[0, 0] - healthy.infer(observe(k)).actions[0, 0]
            for k in range(4)
        ]
        np.testing.assert_allclose(shifts, [0.0, 0.0, 0.001, 0.001], atol=1e-12)


def test_an_error_begins_within_the_healthy_episode_and_repeats():
    plans = [Plan(JUDGE, 'w8a8', FAULTS['gripper'], e) for e in EPISODES]
    onsets = [draw_onset(plan, 9) for plan in plans]
    assert all(1 <= onset < 7 for onset in onsets)
    assert len(set(onsets)) > 1
    assert [draw_onset(plan, 9) for plan in plans] == onsets
    assert draw_onset(plans[0], 1) == 1


def test_an_episode_is_the_healthy_one_until_the_error_begins(robot):
    policy, reference = ToyPolicy(SPEC, 'nested'), ToyPolicy(SPEC, 'fp32')
    plan = Plan(JUDGE, 'w8a16', None, EPISODES[0])
    clean = run_one(robot, policy, {'fp32': reference}, plan, 0)
    wrong = run_one(
        robot, policy, {'fp32': reference}, replace(plan, fault=FAULTS['bias-2mm']), clean.chunks
    )
    onset = wrong.onset
    assert (wrong.judged[:onset] == clean.judged[:onset]).all()
    error = wrong.judged[onset:, :, 0] - wrong.references['fp32'][onset:, :, 0]
    assert error.mean() == pytest.approx(0.002, abs=2e-4)
    assert plan.clean_key == clean.key == replace(plan, fault=FAULTS['gripper']).clean_key


# --- what a monitor says


def test_late_answers_find_their_question_by_sequence_once():
    remote = RemoteAnswers()
    chunks = [
        ActionChunk(ACTIONS, ACTION, k, '', 'w8a8', 'flow', sequence=k, epoch=3) for k in range(3)
    ]
    for chunk in chunks:
        remote.ask(chunk)
    assert remote.arrived(chunks[2]) is chunks[2]
    assert remote.arrived(chunks[0]) is chunks[0]
    assert remote.arrived(chunks[0]) is None
    assert remote.arrived(replace(chunks[1], epoch=4)) is None


def test_readings_are_the_drift_accumulated_in_a_chunk():
    series = read(make_run(error_m=0.001, onset=3), ACTION, 'shadow')
    per_step = 1.1e-5 * (1 + np.arange(10) % 3) + np.where(np.arange(10) >= 3, 0.001, 0.0)
    np.testing.assert_allclose(series.window[:, 0], ROWS * per_step, rtol=1e-9)
    assert np.isnan(series.window[:, 1]).all()  # no rotation is commanded
    assert series.time_s.tolist() == pytest.approx((np.arange(10) * PERIOD_S).tolist())


def test_windows_are_those_of_the_monitor():
    run = make_run(error_m=0.001, onset=3)
    for window_s in (0.5, 2 * PERIOD_S, 2.0):
        monitor = DriftMonitor(ACTION, ROWS, DriftLimits(), window_s)
        expected = []
        for k, rows in enumerate(zip(run.judged, run.references['fp32'])):
            observed_ns = k * ROWS * ACTION.period_ns
            judged, answer = (ActionChunk(r, ACTION, observed_ns, '', '', '') for r in rows)
            expected.append(monitor.measured(judged, answer, 'shadow').window_m)
        found = read(run, ACTION, 'shadow').at_window(window_s).window[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_remote_readings_are_those_of_shadow_one_chunk_later_but_for_the_last():
    run = make_run(error_m=0.001, onset=3)
    shadow, remote = (read(run, ACTION, source) for source in ('shadow', 'remote'))
    np.testing.assert_array_equal(remote.window, shadow.window[:-1])
    np.testing.assert_array_equal(remote.chunk, shadow.chunk[:-1])
    np.testing.assert_allclose(remote.time_s, shadow.time_s[:-1] + PERIOD_S)


def test_the_synthetic_stream_turns_smoothly_and_its_error_is_a_constant_turn():
    run = make_run(chunks=12)
    healthy, wide = turning_run(run, ACTION, fault=False)
    wrong, _ = turning_run(run, ACTION, fault=True)
    turns = healthy.references['fp32'][..., 4:]
    assert np.sqrt(np.mean(turns**2)) == pytest.approx(TURN_RMS_RAD)
    assert np.abs(np.diff(turns.reshape(-1, 3), axis=0)).max() < 0.6 * np.abs(turns).max()
    error = wrong.judged - healthy.judged
    np.testing.assert_allclose(error[wrong.onset :, :, 6], 0.05)
    assert not error[: wrong.onset].any()
    assert not error[..., :6].any()
    assert wrong.fault == TURNING.name
    assert wide.has_rotation
    series = read(wrong, wide, 'shadow')
    assert series.window[wrong.onset, 1] > 3 * series.window[wrong.onset - 1, 1]


# --- how it is counted


def test_the_delay_counts_from_the_first_wrong_chunk():
    series = make_series([0.001, 0.001, 0.004, 0.006, 0.012], onset=2)
    warn, error = (detect(series, LIMITS, level) for level in (DriftLevel.WARN, DriftLevel.ERROR))
    assert (warn.outcome, warn.chunks) == (Outcome.DETECTED, 1)
    assert warn.delay_s == pytest.approx(PERIOD_S)
    assert (error.chunks, error.delay_s) == (2, pytest.approx(2 * PERIOD_S))
    late = detect(replace(series, time_s=series.time_s + PERIOD_S), LIMITS, DriftLevel.WARN)
    assert (late.chunks, late.delay_s) == (2, pytest.approx(2 * PERIOD_S))


def test_a_reading_about_a_healthy_chunk_is_no_detection():
    series = make_series([0.001, 0.006, 0.001, 0.001], onset=2)
    assert detect(series, LIMITS, DriftLevel.WARN).outcome is Outcome.ALREADY
    calm = make_series([0.001, 0.006, 0.001, 0.001, 0.001], onset=3)
    assert detect(calm, LIMITS, DriftLevel.WARN).outcome is Outcome.MISSED
    assert detect(series, LIMITS, DriftLevel.ERROR).outcome is Outcome.MISSED


def test_detections_leave_out_what_was_alarmed_already():
    all_series = [
        make_series([0.0, 0.0, 0.006], onset=1),
        make_series([0.0, 0.006, 0.006], onset=1),
        make_series([0.006, 0.006, 0.006], onset=1),
        make_series([0.0, 0.0, 0.0], onset=1),
    ]
    found = detect_all(all_series, LIMITS, DriftLevel.WARN)
    assert (found.injected, found.already, found.counted, found.detected) == (4, 1, 3, 2)
    assert found.rate == pytest.approx(2 / 3)
    assert (found.chunks, found.delay_s) == (0.5, pytest.approx(0.5 * PERIOD_S))
    nothing = detect_all(all_series[3:], LIMITS, DriftLevel.WARN)
    assert nothing.rate == 0.0
    assert math.isnan(nothing.delay_s)


def test_false_alarms_count_episodes_rises_and_hours():
    twice = make_series([0.006, 0.001, 0.001, 0.006, 0.012])
    healthy = make_series([0.001] * 5)
    assert alarm_levels(twice, LIMITS).tolist() == [1, 0, 0, 1, 2]
    found = false_alarms([twice, healthy], LIMITS, DriftLevel.WARN, ACTION.period_s)
    assert (found.episodes, found.alarmed, found.alarms) == (2, 1, 2)
    assert found.hours == pytest.approx(2 * 5 * PERIOD_S / 3600)
    assert found.per_hour == pytest.approx(2 / found.hours)
    errors = false_alarms([twice, healthy], LIMITS, DriftLevel.ERROR, ACTION.period_s)
    assert errors.alarms == 1


def test_limits_are_those_of_the_worst_level_rounded_up():
    quiet = [make_series([0.001, peak]) for peak in np.linspace(0.0, 0.002, 101)]
    loud = [make_series([0.001, peak]) for peak in np.linspace(0.0, 0.00404, 101)]
    chosen = choose_limits({'w8a8': quiet, 'w4a8': loud})
    assert chosen.highest['m'] == pytest.approx((0.99 * 0.00404, 0.00404))
    assert chosen.limits.warn_m == pytest.approx(0.0040)
    assert chosen.limits.error_m == pytest.approx(0.0061)  # 1.5 x 4.04 mm
    assert 'rad' not in chosen.highest
    assert chosen.limits.warn_rad == DriftLimits().warn_rad
    assert chosen.limits.warn_gripper == DriftLimits().warn_gripper  # nobody disagreed: no limit
    assert scaled(chosen.limits, 2.0).error_m == pytest.approx(0.0122)


# --- what is kept and told


def test_episodes_come_back_from_disk_and_another_study_is_refused(tmp_path):
    store = RunStore(tmp_path, {'seed': 100, 'head': 'flow'}, 'new')
    run = make_run(fault='gripper', onset=4, error_m=1.23456e-3)
    store.append(run)
    with (tmp_path / 'runs.jsonl').open('a') as file:
        file.write('{"torn')
    again = RunStore(tmp_path, {'seed': 100, 'head': 'flow'}, 'resume').runs[run.key]
    assert (again.onset, again.success, again.steps) == (4, False, run.steps)
    np.testing.assert_allclose(again.judged, run.judged, atol=1e-8)
    with pytest.raises(ConfigError, match='it differs in head'):
        RunStore(tmp_path, {'seed': 100, 'head': 'token'}, 'resume')
    with pytest.raises(ConfigError, match='--resume'):
        RunStore(tmp_path, {'seed': 100, 'head': 'flow'}, 'new')
    assert RunStore(tmp_path, {'seed': 101}, 'overwrite').runs == {}


@pytest.fixture(scope='module')
def results():
    """Return a study of two levels and two errors, one of which is too small to be noticed."""
    runs = [
        make_run(split, level, number=number)
        for split in (CHOOSE, JUDGE)
        for level in ('w8a8', 'w4a8')
        for number in range(3)
    ]
    for fault, error_m in (('bias-2mm', 0.002), ('bias-0.5mm', 1e-8)):
        runs += [
            make_run(JUDGE, 'w8a8', fault, 2 + number % 3, error_m, number=number)
            for number in range(3)
        ]
    store = SimpleNamespace(spec=SPEC, levels=lambda: None)
    return evaluate_study(runs, store, 'flow', (2.0, PERIOD_S), ('w8a8', 'w4a8'))


def cells(table, *first):
    """Return the one row that begins with these cells."""
    (row,) = [row for row in table.rows if row[: len(first)] == first]
    return row[len(first) :]


def test_a_large_error_is_noticed_at_once_and_a_tiny_one_never(results):
    short = results.windows[1]
    found = short.by_own.detections['shadow', 'bias-2mm', DriftLevel.WARN]
    assert (found.detected, found.chunks, found.delay_s) == (3, 0.0, 0.0)
    remote = short.by_own.detections['remote', 'bias-2mm', DriftLevel.WARN]
    assert (remote.detected, remote.chunks) == (3, 1.0)
    assert short.by_own.detections['shadow', 'bias-0.5mm', DriftLevel.WARN].detected == 0
    assert short.by_own.false_alarms['shadow', 'w8a8', DriftLevel.WARN].alarms == 0
    assert short.by_own.false_alarms['shadow', 'w8a8', DriftLevel.WARN].episodes == 3


def test_tables_say_plainly_what_reaches_a_prediction_and_what_does_not(results):
    limits, compared, detection, false, *_, known, success = make_tables(results)
    assert cells(detection, 'bias-2mm', 'predicted')[0].startswith('0/')
    assert cells(detection, 'bias-2mm', CALIBRATED)[:3] == ('3/3', '0', '0.00 (0.00)')
    assert cells(detection, 'bias-0.5mm', CALIBRATED)[0] == '3/3'  # 3 mm in each chunk
    assert cells(known, 'bias-2mm', 'm')[:2] == ('12 mm', '12 mm')
    notes = '\n'.join(detection.notes)
    assert 'does not notice any of the errors: they begin while the robot works' in notes
    assert 'such errors reach no prediction' in notes
    assert 'bias-2mm 100 %, 100 %' in notes
    assert 'nothing to flip' not in notes
    assert cells(compared, 'each level its own', '2 s')[-2:][1] == '0 %'
    assert cells(false, 'w8a8', 'shadow')[0] == '0/3 = 0.0 %'
    assert cells(success, 'w8a8', 'bias-2mm') == ('0/3 = 0.0 %',)
    assert cells(limits, '2 s', 'all levels', 'm')


def test_errors_that_change_nothing_are_listed_apart():
    openings = (0.47, 0.52, 0.9)
    runs = [
        make_run(split, opening=opening, number=number)
        for split in (CHOOSE, JUDGE)
        for number, opening in enumerate(openings)
    ]
    runs += [
        make_run(fault='gripper', onset=2, opening=opening, number=number)
        for number, opening in enumerate(openings)
    ]
    store = SimpleNamespace(spec=SPEC, levels=lambda: None)
    study = evaluate_study(runs, store, 'flow', (PERIOD_S,), ('w8a8',))
    detection = make_tables(study)[2]
    assert cells(detection, 'gripper', 'shadow')[0] == '1/1'
    assert any('gripper, nothing to flip: 2 of 3 episodes' in note for note in detection.notes)
    point = min(study.windows[0].sweep, key=lambda point: abs(point.factor - 1.0))
    assert point.delay_s['gripper'] == 0.0  # a median of what could be noticed


def test_the_report_is_strict_json_and_a_picture(results, tmp_path):
    run = {
        **{'command': 'vlaq drift-study', 'cpu': 'Some CPU', 'cores': 2, 'system': 'Linux'},
        **{'bundle': 'toy', 'bundle_sha256': 'ab', 'store_sha256': 'cd'},
        'versions': {'torch': '2.13'},
    }
    tables = write_study(tmp_path, results, run)

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    text = (tmp_path / 'results.json').read_text()
    stored = json.loads(text, parse_constant=refuse)
    assert [window['window_s'] for window in stored['windows']] == [2.0, PERIOD_S]
    assert stored['windows'][0]['by_default']['limits']['w4a8']['warn_m'] == DriftLimits().warn_m
    assert (tmp_path / 'study.md').read_text().count('\n### ') == len(tables)
    pytest.importorskip('matplotlib')
    assert draw_study(tmp_path, results).read_bytes().startswith(b'\x89PNG')


def test_every_wrong_option_is_listed_before_anything_runs():
    import argparse

    from vlaq_ros.sim import drift_study

    parser = argparse.ArgumentParser()
    drift_study.add_arguments(parser)
    args = parser.parse_args(
        ['toy', '--bundle', 'toy', '--levels', 'w9a9', '--faults', 'bias-3mm', '--tasks', 'pusch']
        + ['--per-task', '2', '--faults-per-task', '3', '--seed', '5', '--windows-s', '0']
    )
    with pytest.raises(ConfigError) as raised:
        drift_study.make_study(args)
    for text in (
        "no fault named 'bias-3mm'",
        "no task named 'pusch'",
        '--faults-per-task 3: at most --per-task 2',
        'limits are judged on seeds from 100',
        '--windows-s 0: must be positive',
        'toy is not nested',
        "--levels: precision level 'w9a9': weight_bits = 9",
    ):
        assert text in str(raised.value)
