"""
The policy on the fast kernels acts like the policy on the kernel that defines the arithmetic.

Given the same input, a layer gives the same output to the rounding of its sums. Where inputs are
rounded to 8 bits that grows from layer to layer: a value on the edge between two codes falls to
the other side, its token changes by a step, and after a few layers the two runs differ by as much
as 8-bit inputs differ from 16-bit ones. So with 16 bits actions are compared closely, and with 8
bits layer by layer.
"""

import numpy as np
import pytest

from vlaq_ros.kernels import select
from vlaq_ros.kernels.reference import KERNEL as REFERENCE
from vlaq_ros.nn import mixed_linear
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.packing import write_packed_bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, layer_roles, load_float_model
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.quant.mixed import MixedWeight

SENTENCES = ('open the drawer', 'reach the goal', 'push the puck to the goal')
MIXED = (2, 4, 8)
A16_TOLERANCE = 1e-4  # of the range of each action dimension
A8_TOLERANCE = 0.02
LAYER_TOLERANCE = 3e-3  # of the largest output of a layer: one input moved by a step of 8 bits
LAYER_TYPICAL = 1e-4  # int16 inputs, and half a unit of the sum in an 8-bit store read at 4 bits


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    """Return name -> folder: {4 in 8}, and channels of 2, 4 and 8 bits in turn."""
    bundle = open_bundle('metaworld')
    model = load_float_model(bundle)
    names = [n for n, role in layer_roles(model).items() if role in QUANTIZED_ROLES]
    folder = tmp_path_factory.mktemp('stores')
    for kind in ('nested', 'mixed'):
        weights = {}
        for name in names:
            weight = model.get_submodule(name).weight
            widths = [8 if kind == 'nested' else MIXED[i % 3] for i in range(len(weight))]
            weights[name] = MixedWeight.from_float(weight, widths, 64)
        bits = dict.fromkeys(names, 8)
        write_packed_bundle(folder / kind, bundle, weights, bits, nested=kind == 'nested')
    return folder


def actions(policy):
    """Return the actions for three sentences, stacked, as shares of their range."""
    spec = policy.spec
    span = np.subtract(spec.action.high, spec.action.low)
    seen = [policy.infer(synthetic_observation(spec, s)).actions / span for s in SENTENCES]
    return np.concatenate(seen)


CASES = [
    (None, 'w8'),
    (None, 'w4'),
    (None, 'w8a8'),
    (None, 'w4a8'),
    ('mixed', 'packed'),
    ('nested', 'packed'),
    ('nested', 'w8'),
    ('nested', 'w4'),
    ('nested', 'w4a8'),
]


def load_fast(stores, store, precision, head):
    """Return the policy on the fast kernel, and its folder."""
    folder = 'metaworld' if store is None else stores / store
    policy = load_policy(folder, precision=precision, head=head)
    if policy.memory().kernel.startswith(REFERENCE.name):
        pytest.skip(f'no fast kernel here: {policy.memory().kernel}')
    return policy, folder


@pytest.mark.parametrize('head', ['flow', 'token'])
@pytest.mark.parametrize(('store', 'precision'), CASES)
def test_every_layer_gives_the_output_of_the_definition(stores, store, precision, head):
    policy, _ = load_fast(stores, store, precision, head)
    errors = {}

    def compare(name, layer, x, y):
        weight = layer.unpack()
        parts = REFERENCE.pack(weight)
        defined = REFERENCE.run(x, parts, weight.layout, layer.precision, layer.bias)
        error = float((y - defined).abs().max() / defined.abs().max())
        errors[name] = max(error, errors.get(name, 0.0))

    for name, module in policy._model.named_modules():
        if isinstance(module, MixedLinear) and module.is_stored:
            module.register_forward_hook(
                lambda layer, inputs, output, name=name: compare(name, layer, inputs[0], output)
            )
    actions(policy)
    assert len(errors) >= 3 * 7  # the backbone at least; the token head does not run the expert
    assert {n: e for n, e in errors.items() if not e <= LAYER_TOLERANCE} == {}
    assert np.median(list(errors.values())) <= LAYER_TYPICAL


@pytest.mark.parametrize('head', ['flow', 'token'])
@pytest.mark.parametrize(('store', 'precision'), CASES)
def test_actions_are_those_of_the_definition(stores, monkeypatch, store, precision, head):
    fast, folder = load_fast(stores, store, precision, head)
    ours = actions(fast)
    choice = select.KernelChoice(REFERENCE, 'the definition')
    monkeypatch.setattr(mixed_linear, 'select_kernel', lambda layout, device: choice)
    error = np.abs(ours - actions(load_policy(folder, precision=precision, head=head)))
    tolerance = A16_TOLERANCE if fast.memory().activation_bits == 16 else A8_TOLERANCE
    if head == 'flow':
        assert error.max() <= tolerance
    else:  # one bin decides by arg max: a tie may jump anywhere, most must stay
        assert np.median(error) <= tolerance
