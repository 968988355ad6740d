"""A policy a second time: not one weight byte more, and its levels are its own."""

import threading

import numpy as np
import pytest

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation

SENTENCE = 'open the drawer'


def both(name):
    return dict.fromkeys(('llm', 'expert'), PrecisionLevel.from_name(name))


def actions(policy, sentence=SENTENCE):
    return policy.infer(synthetic_observation(policy.spec, sentence)).actions


def tensors(policy):
    model = policy._model
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def precision_tensors(policy):
    layers = (m for m in policy._model.modules() if isinstance(m, MixedLinear))
    return {layer.precision.data_ptr() for layer in layers}


@pytest.fixture(scope='module')
def nested():
    return load_policy('metaworld', precision='nested')


@pytest.mark.parametrize('precision', ['fp32', 'nested', 'w4'])
def test_no_weight_is_there_twice(precision):
    policy = load_policy('metaworld', precision=precision)
    first, second = tensors(policy), tensors(policy.twin())
    assert first.keys() == second.keys()
    differ = {n for n in first if first[n].data_ptr() != second[n].data_ptr()}
    assert {name.rpartition('.')[2] for name in differ} <= {'precision'}
    assert sum(second[name].nbytes for name in differ) <= 8 * len(differ)
    assert bool(differ) == (precision != 'fp32')


def test_layers_that_shared_one_precision_share_one_of_their_own(nested):
    twin = nested.twin()
    assert len(precision_tensors(twin)) == len(precision_tensors(nested))
    assert not precision_tensors(twin) & precision_tensors(nested)
    assert twin._model is not nested._model


def test_switching_one_leaves_the_other_alone(nested):
    twin = nested.twin()
    high = actions(nested)
    assert np.array_equal(actions(twin), high)
    twin.apply_precision(both('w4a8'))
    low = actions(twin)
    assert not np.array_equal(low, high)
    assert (nested.precision, twin.precision) == ('nested', 'w4a8')
    assert np.array_equal(actions(nested), high)
    nested.apply_precision(both('w4a8'))
    twin.apply_precision(both('w8a16'))
    assert np.array_equal(actions(nested), low)
    assert np.array_equal(actions(twin), high)
    nested.apply_precision(both('w8a16'))


def test_a_twin_starts_where_the_policy_is(nested):
    nested.apply_precision(both('w4a16'))
    twin = nested.twin()
    assert twin.active_levels == both('w4a16')
    assert twin.precision == 'w4a16'
    nested.apply_precision(both('w8a16'))


def test_both_run_at_the_same_time_and_each_answers_as_alone(nested):
    twin = nested.twin()
    twin.apply_precision(both('w4a8'))
    sentences = [SENTENCE, 'reach the goal'] * 4
    alone = {p: [actions(p, s) for s in sentences] for p in (nested, twin)}
    together = {p: [] for p in alone}
    start = threading.Barrier(2)

    def work(policy):
        start.wait()
        together[policy] += [actions(policy, s) for s in sentences]

    threads = [threading.Thread(target=work, args=(policy,)) for policy in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for policy, expected in alone.items():
        assert np.array_equal(together[policy], expected)


def test_the_toy_policy_has_twins_too():
    policy = load_policy('toy', precision='nested')
    twin = policy.twin()
    twin.apply_precision(both('w4a8'))
    assert policy.active_levels == both('w8a16')
    assert not np.array_equal(actions(policy), actions(twin))
