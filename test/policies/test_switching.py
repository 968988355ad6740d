"""Switching a loaded policy: every level is there at once, in the same bytes; no others."""

import numpy as np
import pytest

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation

SENTENCE = 'open the drawer'
LEVELS = ('w4a2', 'w4a4', 'w4a8', 'w4a16', 'w8a2', 'w8a4', 'w8a8', 'w8a16')


def both(name):
    return dict.fromkeys(('llm', 'expert'), PrecisionLevel.from_name(name))


def actions(policy):
    policy.reset()
    return policy.infer(synthetic_observation(policy.spec, SENTENCE)).actions


@pytest.fixture(scope='module')
def nested():
    return load_policy('metaworld', precision='nested')


def test_a_nested_store_has_every_level_and_starts_at_the_top(nested):
    names = {group: {str(level) for level in each} for group, each in nested.levels.items()}
    assert names == {'llm': set(LEVELS), 'expert': set(LEVELS)}
    assert all(list(each) == sorted(each) for each in nested.levels.values())
    assert nested.active_levels == both('w8a16')
    assert (nested.precision, nested.level_limits) == ('nested', '')


def test_every_level_acts_differently_and_the_way_back_is_exact(nested):
    first, seen = actions(nested), []
    before = nested.memory()
    for name in ('w8a8', 'w4a16', 'w4a8'):
        nested.apply_precision(both(name))
        seen.append(actions(nested))
        assert nested.precision == name
        assert nested.memory().weight_bytes == before.weight_bytes
    nested.apply_precision(both('w8a16'))
    assert np.array_equal(actions(nested), first)
    assert nested.precision == 'nested'
    everything = [first, *seen]
    assert not any(np.array_equal(a, b) for i, a in enumerate(everything) for b in everything[:i])


def test_groups_switch_on_their_own(nested):
    first = actions(nested)
    changed = {**both('w8a16'), 'expert': PrecisionLevel(4, 8)}
    nested.apply_precision(changed)
    mixed = actions(nested)
    assert nested.active_levels == changed
    assert nested.precision == 'expert w4a8, llm w8a16'
    nested.apply_precision(both('w4a8'))
    assert not np.array_equal(actions(nested), mixed)
    nested.apply_precision(both('w8a16'))
    assert np.array_equal(actions(nested), first)


def test_a_switch_keeps_every_tensor_where_it_is(nested):
    def places():
        tensors = (*nested._model.parameters(), *nested._model.buffers())
        return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]

    before = places()
    nested.apply_precision(both('w4a8'))
    nested.apply_precision(both('w8a16'))
    assert places() == before


def test_levels_that_do_not_exist_are_refused_together_and_nothing_changes(nested):
    wrong = {'legs': PrecisionLevel(8, 8), 'head': PrecisionLevel(4, 8)}
    for call in (nested.prepare_precision, nested.apply_precision):
        with pytest.raises(PolicyError, match='(?s)legs: there is no.*head: there is no'):
            call({**both('w4a8'), **wrong})
    assert nested.active_levels == both('w8a16')


@pytest.mark.parametrize(
    ('precision', 'widths', 'why'),
    [('w8', {8}, 'precision `nested`'), ('w4', {4}, '4 bits and no more'), ('fp32', {}, 'float')],
)
@pytest.mark.parametrize('bundle', ['metaworld', 'toy'])
def test_what_is_not_nested_has_activation_widths_only(bundle, precision, widths, why):
    policy = load_policy(bundle, precision=precision)
    groups = ('llm', 'expert') if widths else ()
    assert {g: {x.weight_bits for x in each} for g, each in policy.levels.items()} == (
        dict.fromkeys(groups, widths)
    )
    other = 4 if widths == {8} else 8
    with pytest.raises(PolicyError, match=why):
        policy.apply_precision({'llm': PrecisionLevel(other, 8)})
    if widths:
        policy.apply_precision(both(f'{precision}a8'))
        assert policy.precision == f'{precision}a8'


def test_the_toy_policy_rounds_its_actions_at_the_level_it_runs_at():
    policy = load_policy('toy', precision='nested')
    fine = actions(policy)
    policy.apply_precision(both('w4a16'))
    share = (actions(policy) - policy._low) / policy._span
    assert np.allclose(share * 15, np.round(share * 15))
    policy.apply_precision(both('w8a16'))
    assert np.array_equal(actions(policy), fine)


@pytest.mark.parametrize('name', ['w4a8', 'w8a16', 'w4a16', 'w8a4'])
def test_the_self_test_judges_a_level_that_was_switched_to(name):
    policy = load_policy('metaworld', precision='nested')
    policy.apply_precision({'llm': PrecisionLevel.from_name(name)})
    report = policy.self_test()
    assert report.passed, report.failures()
    golden = dict((check, text) for check, _, text in report.checks)['golden']
    assert ('not judged' in golden) == (name == 'w8a4')
