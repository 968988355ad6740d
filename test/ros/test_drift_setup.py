"""What drift is measured with: the right reference, or a refusal that says the way out."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.predicted_drift import ANY_PHASE, ErrorStatistics, PredictedDrift
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.levels import BundleLevels, HeadLevels
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.ros.drift_parameters import DriftParameters
from vlaq_ros.ros.drift_setup import DriftSetup, mismatches
from vlaq_ros.ros.local_reference import InlineReference, ThreadedReference
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.ros.precision_rules import mismatches as precision_mismatches

DIGESTS = {'toy': 'a' * 64, 'other': 'b' * 64, 'packed': 'c' * 64}
ORIGINS = {'packed': DIGESTS['toy']}


@pytest.fixture
def loaded():
    """Return what was loaded: bundle and keywords."""
    return []


@pytest.fixture
def setup(loaded):
    def load(bundle, **kwargs):
        loaded.append((bundle, kwargs))
        return load_policy('toy', **kwargs)

    return DriftSetup(
        load,
        DIGESTS.__getitem__,
        ORIGINS.get,
        lambda policy, config: ('remote for', policy, config),
        lambda: None,
    )


def config(bundle='toy', lockstep=True, **drift):
    return PolicyParameters(bundle=bundle, lockstep=lockstep, drift=DriftParameters(**drift))


@pytest.fixture
def nested():
    return load_policy('toy', precision='nested')


def test_without_a_source_nothing_is_made(setup, nested, loaded):
    parts = setup.make(nested, config())
    assert (parts.source, parts.model, loaded) == (None, None, [])


@pytest.mark.parametrize(
    ('bundle', 'given', 'expected'),
    [('toy', '', 'toy'), ('packed', 'toy', 'toy'), ('toy', 'toy', 'toy')],
)
def test_a_shadow_is_the_float_bundle_at_full_precision(
    setup, nested, loaded, bundle, given, expected
):
    parts = setup.make(nested, config(bundle, source='shadow', reference_bundle=given))
    assert loaded == [(expected, {'precision': 'fp32', 'head': 'flow', 'threads': None})]
    assert isinstance(parts.source, InlineReference)
    assert parts.source.name == 'shadow'


@pytest.mark.parametrize(
    ('bundle', 'given', 'why'),
    [
        (
            'packed',
            '',
            "'packed' is packed: name the float bundle that it was made of (digest aaa",
        ),
        ('packed', 'packed', "'packed' is a packed bundle itself"),
        (
            'packed',
            'other',
            "'other' has digest bbbbbbbbbbbb, but bundle 'packed' was made of aaa",
        ),
        ('toy', 'other', "'other' has digest bbbbbbbbbbbb, but bundle 'toy' is aaaaaaaaaaaa"),
    ],
)
def test_another_reference_is_refused_before_it_is_loaded(
    setup, nested, loaded, bundle, given, why
):
    with pytest.raises(ConfigError) as caught:
        setup.make(nested, config(bundle, source='shadow', reference_bundle=given))
    assert why in str(caught.value)
    assert "'drift.reference_bundle'" in str(caught.value)
    assert loaded == []


def test_a_reference_with_other_actions_is_refused(setup, nested):
    nested.spec = replace(nested.spec, horizon=4, action_mean=(0.0,) * 4)
    with pytest.raises(ConfigError, match='they differ in action_mean, horizon'):
        setup.make(nested, config(source='shadow'))


def test_higher_is_the_top_of_the_same_weights_whatever_the_policy_runs_at(setup, nested, loaded):
    observation = synthetic_observation(nested.spec, 'open the drawer')
    top = nested.infer(observation)
    low = {group: each[0] for group, each in nested.levels.items()}
    nested.apply_precision(low)
    source = setup.make(nested, config(source='higher')).source
    source.new_epoch(1)
    source.answer(observation, 1)
    source.submit(observation, replace(nested.infer(observation), epoch=1))
    ((chunk, reference),) = source.collect()
    assert loaded == []
    assert np.array_equal(reference.actions, top.actions)
    assert not np.array_equal(chunk.actions, top.actions)
    assert nested.active_levels == low


def test_in_real_time_a_reference_has_a_thread_and_the_duty(setup, nested):
    source = setup.make(nested, config(lockstep=False, source='higher', duty=0.25)).source
    assert isinstance(source, ThreadedReference)
    assert (source.name, source.duty) == ('higher', 0.25)
    source.close()


def test_remote_is_made_by_who_knows_how(setup, nested):
    given = config(source='remote')
    assert setup.make(nested, given).source == ('remote for', nested, given)


def measured(spec, *names, head='flow'):
    """Return levels of which these were measured."""
    known = {
        (name, ANY_PHASE): ErrorStatistics(np.zeros(6), np.eye(6) * 1e-6, 9) for name in names
    }
    drift = PredictedDrift(spec.action, known, dict.fromkeys(names, 0.1))
    return BundleLevels(None, None, {head: HeadLevels(dict.fromkeys(names), None, {}, drift)})


def test_a_prediction_knows_what_runs_by_the_name_it_was_measured_under(setup, nested):
    """A mixture that was not measured counts as the lowest of its levels, as far as that was."""
    known = 'w8a16', 'w4a8', 'expert w8a16, llm w4a8'
    nested.measured_levels = measured(nested.spec, *known)
    parts = setup.make(nested, config(source='predicted'))
    assert parts.source is None
    assert parts.model.levels == known
    assert parts.reference_precision == 'fp32'
    assert parts.names['nested'] == parts.names['w8a16'] == 'w8a16'
    assert parts.names['expert w8a16, llm w4a8'] == 'expert w8a16, llm w4a8'
    assert parts.names['expert w4a8, llm w8a16'] == 'w4a8'
    assert 'w8a8' not in parts.names


@pytest.mark.parametrize(
    ('made', 'why'),
    [
        (lambda spec: None, "bundle 'toy' has not got (no levels.json): calibrate it with"),
        (lambda spec: measured(spec, 'w8a16', head='token'), "head 'flow', only with token"),
        (lambda spec: measured(spec, 'w4a8'), 'at w8a16, which the policy runs at, but at w4a8'),
    ],
)
def test_a_bundle_whose_levels_were_not_measured_cannot_predict(setup, nested, made, why):
    nested.measured_levels = made(nested.spec)
    with pytest.raises(ConfigError) as caught:
        setup.make(nested, config(source='predicted'))
    assert why in str(caught.value)
    assert "'drift.source' = 'predicted'" in str(caught.value)


@pytest.mark.parametrize(
    ('drift', 'count'),
    [
        ({'source': 'higher', 'reaction': 'raise'}, 2),
        ({'source': 'predicted', 'reaction': 'report'}, 1),
        ({'source': 'shadow', 'reaction': 'raise'}, 1),
        ({'source': 'shadow', 'reaction': 'stop'}, 0),
    ],
)
def test_a_policy_without_levels_has_nothing_higher_and_nothing_to_raise(drift, count, nested):
    given = DriftParameters(**drift)
    problems = list(mismatches(given, load_policy('toy')))
    assert len(problems) == count
    assert all('precision fp32 is fixed: its weights are float' in text for text in problems)
    assert list(mismatches(given, nested)) == []


@pytest.mark.parametrize('source', ['none', 'predicted', 'shadow', 'higher', 'remote'])
def test_the_rule_drift_needs_a_source_that_measures(source, nested, tmp_path):
    drift = DriftParameters(source=source)
    rules = replace(PolicyParameters().dynamic_precision, policy='drift')
    problems = list(precision_mismatches(rules, nested, drift))
    file = tmp_path / 'rules.json'
    file.write_text(
        '{"format": 1, "rules": ["drift"], "groups": {"llm": {"levels": ["w8a8", "w8a16"]}}}'
    )
    by_file = replace(PolicyParameters().dynamic_precision, file=str(file))
    problems += precision_mismatches(by_file, nested, drift)
    if source in ('none', 'predicted'):
        expected = f"'drift.source' is {source}: set it to one of shadow, higher, remote"
        assert len(problems) == 2
        assert all(expected in text for text in problems)
    else:
        assert problems == []


def test_shipped_bundles_name_no_origin():
    """What the node asks before it loads a shadow of a float bundle."""
    assert open_bundle('toy').origin is None
