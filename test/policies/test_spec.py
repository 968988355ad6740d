"""`policy.json` with anything missing or inconsistent is refused; all problems at once."""

import json

import pytest

from vlaq_ros.errors import BundleError
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.policies.toy import toy_spec


@pytest.fixture
def values():
    return json.loads(json.dumps(toy_spec().to_json()))


def test_round_trip_through_json(values):
    assert PolicySpec.from_json(values) == toy_spec()


@pytest.mark.parametrize('key', list(toy_spec().to_json()))
def test_missing_key_is_refused(values, key):
    del values[key]
    with pytest.raises(BundleError, match=key):
        PolicySpec.from_json(values)


def test_unknown_key_is_refused(values):
    values['trust_remote_code'] = True
    with pytest.raises(BundleError, match='trust_remote_code'):
        PolicySpec.from_json(values)


@pytest.mark.parametrize('bad', [0.0, -1.0, float('nan'), float('inf')])
def test_impossible_scale_is_refused(values, bad):
    values['action_std'][1] = bad
    with pytest.raises(BundleError, match='action_std must be positive'):
        PolicySpec.from_json(values)


def test_statistics_of_the_wrong_length_are_refused(values):
    values['state']['mean'] = [0.0]
    with pytest.raises(BundleError, match='state: names, units, mean and std differ'):
        PolicySpec.from_json(values)


def test_unknown_action_name_is_refused(values):
    values['action']['names'][0] = 'x'
    with pytest.raises(BundleError, match='action names'):
        PolicySpec.from_json(values)


def test_all_problems_are_listed(values):
    values['execution_horizon'] = 9
    values['heads'] = []
    with pytest.raises(BundleError) as error:
        PolicySpec.from_json(values)
    assert 'execution_horizon=9' in str(error.value)
    assert 'heads' in str(error.value)
