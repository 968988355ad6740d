"""The report of a calibration: numbers that agree with the bundle, pictures that are drawn."""

import builtins
import json
import math

import numpy as np
import pytest
import torch

from vlaq_ros.calibration.job import CalibrationJob, check_job
from vlaq_ros.calibration.pipeline import calibrate
from vlaq_ros.calibration.progress import Progress
from vlaq_ros.calibration.report import PICTURES, drift_curves, report_values, write_report
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.kinematics.drift import open_loop_drift


@pytest.fixture(scope='module')
def found(tiny_bundle, tiny_bag, tmp_path_factory):
    job = CalibrationJob(
        bags=(tiny_bag,),
        out=tmp_path_factory.mktemp('report') / 'packed',
        bundle=str(tiny_bundle),
        method='rtn',
        bits=6.0,  # room for steps back: 4-bit codes take 5 with their scales
        group_size=16,
        samples=16,
        held_out=8,
        tolerance=Tolerance(drift_m=1e-4, gripper=1.0),
        promotions=1,
    )
    return calibrate(check_job(job), Progress())


@pytest.fixture(scope='module')
def values(found):
    return report_values(found, {'samples': 1.0})


def test_a_constant_offset_drifts_in_a_straight_line(found):
    spec, reference = found.context.spec, [{'flow': b['flow']} for b in found.reference]
    offset = torch.eye(spec.dim)[0] * 1e-3
    shifted = [{'flow': batch['flow'] + offset} for batch in reference]
    curve = np.array(drift_curves(shifted, reference, spec)['flow'])
    steps = np.arange(1, curve.shape[1] + 1)
    assert curve == pytest.approx(np.tile(1e-3 * steps, (3, 1)), rel=1e-3)


def test_the_curve_ends_where_drift_is_measured(found, values):
    for head in found.record['verified']:
        ends = [
            open_loop_drift(chunk.numpy(), exact.numpy(), found.context.spec)
            for one, other in zip(found.actions, found.reference)
            for chunk, exact in zip(one[head], other[head])
        ]
        quartiles = np.quantile([end.position_accumulated_m for end in ends], (0.25, 0.5, 0.75))
        curve = values['drift_curves'][found.record['method']][head]
        assert [row[-1] for row in curve] == pytest.approx(quartiles.tolist(), abs=1e-9)


def test_parts_add_up_to_the_whole(values):
    record, layers = values['record'], values['layers'].values()
    weights = sum(role['weights'] for role in values['roles'].values())
    assert weights == sum(math.prod(layer['shape']) for layer in layers)
    bits = sum(role['bits_per_weight'] * role['weights'] for role in values['roles'].values())
    assert bits / weights == pytest.approx(record['mean_bits_per_weight'])


def test_the_page_says_what_the_bundle_says(found, tmp_path):
    page = write_report(tmp_path / 'r', found, {'samples': 1.0}).read_text()
    record = found.record
    assert found.bundle.digest in page
    assert f'{record["mean_bits_per_weight"]:.3f}' in page
    assert f'{record["verified_error"]:.4f}' in page
    assert f'{record["predicted_error"]:.4f}' in page
    for name in found.context.spec.names:
        assert name in page
    stored = json.loads((tmp_path / 'r' / 'report.json').read_text())
    assert stored['record']['verified'] == found.bundle.quantization['verified']


def test_every_picture_is_drawn_and_shown(found, tmp_path):
    page = write_report(tmp_path / 'r', found, {}).read_text()
    for name in PICTURES:
        data = (tmp_path / 'r' / name).read_bytes()
        assert data[:8] == b'\x89PNG\r\n\x1a\n'
        assert len(data) > 5_000
        assert f']({name})' in page


def test_without_matplotlib_there_is_a_page_without_pictures(found, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, '__import__', refuse)
    page = write_report(tmp_path / 'r', found, {}).read_text()
    assert 'Action error' in page
    assert '.png' not in page
    assert not list((tmp_path / 'r').glob('*.png'))


def test_a_step_back_is_shown_with_its_layer(found, tmp_path):
    assert len(found.verification.promoted) == 1
    page = write_report(tmp_path / 'r', found, {}).read_text()
    assert 'Steps back' in page
    assert found.verification.promoted[0][0] in page
    assert 'rtn, before stepping back: flow' in page
