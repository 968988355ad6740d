"""A nested calibration from bag to bundle: every level measured as it will run, and told."""

import dataclasses

import numpy as np
import pytest

from vlaq_ros import cli
from vlaq_ros.calibration.job import CalibrationJob, check_job
from vlaq_ros.calibration.level_tables import level_lines
from vlaq_ros.calibration.pipeline import calibrate
from vlaq_ros.calibration.progress import Progress
from vlaq_ros.calibration.report import write_report
from vlaq_ros.calibration.samples import draw_samples
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.drift import open_loop_drift
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy

NAMES = {
    'w4a8': ('w4a8', 'w4a8'),
    'w8a16': ('w8a16', 'w8a16'),
    'expert w8a16, llm w4a8': ('w4a8', 'w8a16'),
    'expert w4a8, llm w8a16': ('w8a16', 'w4a8'),
}


def run(job, tell=lambda standing: None):
    return calibrate(check_job(job), Progress(tell))


@pytest.fixture(scope='module')
def job(tiny_bundle, tiny_bag, tmp_path_factory):
    return CalibrationJob(
        bags=(tiny_bag,),
        out=tmp_path_factory.mktemp('levels') / 'packed',
        bundle=str(tiny_bundle),
        method='nested',
        bits=9.0,
        group_size=16,
        samples=48,
        held_out=8,
        tolerance=Tolerance(drift_m=1.0, gripper=1.0),
        options={'ladder': 'w4a8,w8a16', 'sweeps': '1'},
    )


@pytest.fixture(scope='module')
def found(job):
    return run(job)


def test_the_bundle_is_nested_and_holds_every_level_of_every_head(found):
    bundle = open_bundle(found.bundle.path)
    assert bundle.is_nested
    levels = bundle.levels()
    assert list(levels.heads) == list(bundle.spec.heads)
    for head in levels.heads.values():
        assert set(head.measured) == set(NAMES) == set(head.drift.levels)
        assert all(level.samples == 8 for level in head.measured.values())
        assert head.precision.rules == ('dyq',)
        assert set(head.precision.groups) == {'llm', 'expert'}
    assert levels.record['with_history'] >= 20
    assert levels.motion.translation_m > 0.0


def test_a_running_policy_at_a_level_errs_as_was_measured(found, job, tiny_bundle):
    drawn = draw_samples(
        check_job(dataclasses.replace(job, overwrite=True)).recordings,
        found.bundle.spec,
        check_job(dataclasses.replace(job, overwrite=True)).plan,
    )
    packed, exact = (load_policy(path, head='flow') for path in (job.out, tiny_bundle))
    for name, levels in NAMES.items():
        wanted = dict(zip(('llm', 'expert'), map(PrecisionLevel.from_name, levels)))
        packed.apply_precision(wanted)
        drifts = [
            open_loop_drift(
                *(p.infer(s.observation).actions for p in (packed, exact)),
                found.bundle.spec.action,
            ).position_accumulated_m
            for s in drawn.held_out
        ]
        stored = packed.measured_levels.heads['flow']
        assert stored.measured_as(wanted) == name
        assert np.mean(drifts) == pytest.approx(
            stored.measured[name].drift_m, rel=0.1, abs=2e-6
        ), name


def test_less_is_worse_and_rounding_to_nearest_is_kept_for_comparison(found):
    levels = found.levels
    flow = levels.heads['flow'].measured
    assert flow['w8a16'].drift_m < flow['expert w8a16, llm w4a8'].drift_m
    nearest = levels.record['rounded_to_nearest']['flow']
    assert set(nearest) == {'w4a8', 'w8a16'}
    assert nearest['w8a16']['drift_m'] == pytest.approx(found.nearest[1]['flow'].drift_m)


def test_an_interrupted_run_goes_on_to_the_same_bytes(job, found, tmp_path, capsys):
    class StopError(Exception):
        pass

    def stop(standing):
        if standing.stage == 'packing':
            raise StopError

    again = dataclasses.replace(job, out=tmp_path / 'again')
    with pytest.raises(StopError):
        run(again, stop)
    assert any(path.name.startswith('levels-') for path in again.work_folder.iterdir())
    command = (
        f'calibrate --bag {job.bags[0]} --bundle {job.bundle} --method nested --bits 9 '
        '--group-size 16 --samples 48 --held-out 8 --tolerance drift_m=1 gripper=1 '
        f'--option ladder=w4a8,w8a16 sweeps=1 --out {again.out} --resume --progress none'
    )
    assert cli.main(command.split()) == 0
    assert 'flow by level: w4a8 ' in capsys.readouterr().out
    assert open_bundle(again.out).digest == found.bundle.digest


def test_report_and_inspection_show_every_level_and_its_verdict(found, tmp_path, capsys):
    page = write_report(tmp_path / 'report', found, {}).read_text()
    assert '## Levels for changing precision' in page
    assert cli.main(['inspect', str(found.bundle.path)]) == 0
    shown = capsys.readouterr().out
    for name in NAMES:
        assert f'| {name} | kept (' in page
        assert f'\n  {name} ' in shown
    for text in (page, shown):
        assert 'flow head: levels by motion sensitivity S' in text
        assert 'coarse, in commanded motion, is a step of' in text


def test_the_command_tells_the_drift_of_every_level(found):
    lines = level_lines(found.levels)
    drift = found.levels.heads['flow'].measured['w4a8'].drift_m
    assert lines[0].startswith(f'flow by level: w4a8 {1e3 * drift:.2f} mm, w8a16 ')
    assert len(lines) == len(found.levels.heads)


def test_other_methods_have_no_levels(job, tmp_path):
    plain = dataclasses.replace(job, method='rtn', options={}, out=tmp_path / 'rtn', samples=16)
    bundle = run(plain).bundle
    assert not bundle.is_nested
    assert bundle.levels() is None


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'bits': 8.0}, r'--bits 8: nested needs at least 9\.\d+ with --group-size 16'),
        ({'group_size': None}, '--group-size none: nested is read at 4 bits'),
        ({'options': {'ladder': 'w8a16,w4a8'}}, 'precision levels must rise'),
    ],
    ids=['budget', 'group', 'ladder'],
)
def test_what_cannot_be_nested_is_refused_at_once(job, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        check_job(dataclasses.replace(job, out=tmp_path / 'new', **changes))
