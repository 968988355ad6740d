"""`levels.json`: what was written comes back, and everything wrong in it is named at once."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.errors import BundleError, ConfigError
from vlaq_ros.kinematics.motion import MotionScale
from vlaq_ros.kinematics.predicted_drift import ErrorSample, PredictedDrift
from vlaq_ros.policies.bundle import LEVELS, MANIFEST, open_bundle, write_bundle
from vlaq_ros.policies.levels import BundleLevels, HeadLevels, MeasuredLevel, levels_name
from vlaq_ros.policies.toy import toy_spec

SPEC = toy_spec()
LADDER = PrecisionMenu.from_names('w4a8', 'w8a16')
NAMES = ('w4a8', 'w8a16', 'expert w8a16, llm w4a8')


def measured(excess=0.5):
    error = (1e-3,) * SPEC.action.dim
    return MeasuredLevel(error, error, 1e-4, 2e-3, math.nan, 0.01, 16, excess, 4e-3, 3e-3)


@pytest.fixture
def levels():
    rng = np.random.default_rng(0)
    chunks = rng.normal(0.0, 1e-3, (6, SPEC.action.dim))
    samples = [ErrorSample(name, ('fine',) * 6, chunks * 1.1, chunks) for name in NAMES]
    head = HeadLevels(
        {name: measured() for name in NAMES},
        PrecisionParameters(('dyq',), {'llm': GroupParameters(LADDER, (0.4,))}),
        {'llm': {'boundaries': [0.4]}},
        PredictedDrift.fit(samples, SPEC.action),
    )
    return BundleLevels(LADDER, MotionScale(0.02, None), {'flow': head}, {'held_out': 16})


@pytest.fixture
def bundle(levels, tmp_path):
    path = tmp_path / 'arm'
    config = {'model_type': 'vlaq_toy'}
    write_bundle(path, SPEC, config, {'unused': torch.zeros(4)}, levels=levels.to_json())
    return path


def test_what_was_written_comes_back(bundle, levels):
    found = open_bundle(bundle).levels()
    assert (found.ladder, found.motion, found.record) == (LADDER, levels.motion, {'held_out': 16})
    head, original = found.heads['flow'], levels.heads['flow']
    assert head.precision == original.precision
    assert head.measured['w4a8'].drift_m == 2e-3
    assert math.isnan(head.measured['w4a8'].drift_rad)
    before, after = (h.drift.error_at('w4a8', 'fine') for h in (original, head))
    np.testing.assert_array_equal(before.covariance, after.covariance)
    assert json.dumps(found.to_json()) == json.dumps(levels.to_json())


def test_a_file_from_before_the_gripper_was_measured_still_loads(levels):
    data = json.loads(json.dumps(levels.to_json()))
    for entry in data['heads']['flow']['drift']['statistics']:
        assert entry.pop('gripper') == 0.0
    drift = read(data).heads['flow'].drift
    assert math.isnan(drift.error_at('w4a8', 'fine').gripper)


def test_a_bundle_without_them_has_none(tmp_path):
    write_bundle(tmp_path / 'arm', SPEC, {'model_type': 'vlaq_toy'}, {'unused': torch.zeros(4)})
    assert open_bundle(tmp_path / 'arm').levels() is None


def test_an_altered_file_is_refused_by_the_manifest(bundle):
    path = bundle / LEVELS
    path.write_text(path.read_text().replace('0.4', '0.5'))
    with pytest.raises(BundleError, match=f'{LEVELS}: sha256 differs'):
        open_bundle(bundle)
    assert LEVELS in json.loads((bundle / MANIFEST).read_text())['files']


def read(data):
    return BundleLevels.from_json(data, SPEC.action, SPEC.heads)


def test_every_offender_is_listed(levels):
    data = copy.deepcopy(levels.to_json())
    flow = data['heads']['flow']
    data['laddder'] = data.pop('ladder')
    data['motion']['translation_m'] = -1.0
    flow['measured']['w4a8']['drift_m'] = 'far'
    flow['measured']['w4a8']['error'] = [0.0]
    del flow['measured']['w8a16']['samples']
    flow['precision']['groups']['llm']['boundaries'] = [0.4, 0.5]
    flow['drift']['correlation']['w4a8'] = 2.0
    flow['drift']['statistics'][0]['gripper'] = 1.5
    data['heads']['flwo'] = {}
    with pytest.raises(ConfigError) as caught:
        read(data)
    for part in (
        "Did you mean 'ladder'",
        'ladder is missing',
        'translation_m = -1.0',
        "heads.flow.measured.w4a8.drift_m = 'far' must be a number",
        'heads.flow.measured.w4a8.error = [0.0] must be',
        'heads.flow.measured.w8a16.samples is missing',
        'boundaries = [0.4, 0.5] must be 1 numbers',
        'w4a8 has correlation 2',
        'heads.flow.drift: drift model: w4a8 fine has gripper 1.5, which must be a share',
        "'flwo'",
    ):
        assert part in str(caught.value), (part, str(caught.value))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: d.update(format=2), 'format 2; this version reads 1'),
        (lambda d: d.update(heads={}), 'heads is empty'),
        (lambda d: d.update(heads=[]), 'heads = .* must be a table'),
        (lambda d: d['ladder'].insert(1, 'w8a8'), 'w8a8 is missing, it is in the ladder'),
        (
            lambda d: d['heads']['flow']['precision']['groups']['llm'].update(
                levels=['w4a16', 'w8a16']
            ),
            'llm w4a16 is not in the ladder',
        ),
        (
            lambda d: d['heads']['flow']['drift']['correlation'].pop(NAMES[2]),
            'llm w4a8 was measured and has no error model',
        ),
    ],
    ids=['format', 'no head', 'list', 'unmeasured', 'menu', 'drift'],
)
def test_parts_that_do_not_fit_are_refused(levels, change, message):
    data = copy.deepcopy(levels.to_json())
    change(data)
    with pytest.raises(ConfigError, match=message):
        read(data)


def test_a_bundle_names_the_file_in_every_line(levels, tmp_path):
    data = levels.to_json() | {'heads': {}, 'record': 3}
    path = tmp_path / 'arm'
    write_bundle(path, SPEC, {'model_type': 'vlaq_toy'}, {'u': torch.zeros(4)}, levels=data)
    with pytest.raises(BundleError) as caught:
        open_bundle(path).levels()
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(str(path / LEVELS)) for line in lines)


def test_levels_are_named_as_a_policy_names_them_and_mixtures_err_towards_more_drift(levels):
    low, high = LADDER.levels
    head = levels.heads['flow']
    assert levels_name({'llm': low, 'expert': low}) == 'w4a8'
    assert head.measured_as({'llm': low, 'expert': high}) == 'expert w8a16, llm w4a8'
    assert head.measured_as({'llm': high, 'expert': low}) == 'w4a8'  # that was not measured
    with pytest.raises(ConfigError, match='measured level'):
        head.measured_as({'llm': PrecisionLevel(4, 2), 'expert': high})


@pytest.mark.parametrize(('excess', 'kept'), [(0.99, True), (1.0, True), (1.01, False)])
def test_the_verdict_is_that_of_the_largest_ratio(excess, kept):
    assert measured(excess).within_tolerance is kept
    assert measured().prediction_ratio == pytest.approx(0.75)
