"""Packed bundles: what was packed comes back, and nothing that cannot run is ever written."""

import numpy as np
import pytest
import torch

from vlaq_ros.errors import BundleError, ConfigError, SchemeError
from vlaq_ros.nn.mixed_linear import MixedLinear, quantize_weight
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.packing import packed_model, write_packed_bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, layer_roles, load_float_model
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.quant.scheme import LayerScheme

SENTENCE = 'open the drawer'


@pytest.fixture(scope='module')
def bundle():
    return open_bundle('metaworld')


@pytest.fixture(scope='module')
def float_model(bundle):
    return load_float_model(bundle)


@pytest.fixture(scope='module')
def names(float_model):
    return [n for n, role in layer_roles(float_model).items() if role in QUANTIZED_ROLES]


def pack(model, names, widths=8, group_size=64):
    """Return every layer rounded to nearest; widths may be a cycle over the channels."""
    weights = {}
    for name in names:
        weight = model.get_submodule(name).weight
        each = widths
        if isinstance(widths, tuple):
            each = (widths * len(weight))[: len(weight)]
        weights[name] = quantize_weight(weight, LayerScheme(each, group_size))
    return weights


@pytest.fixture(scope='module')
def nested(bundle, float_model, names, tmp_path_factory):
    path = tmp_path_factory.mktemp('packed') / 'nested'
    weights = pack(float_model, names)
    return write_packed_bundle(
        path, bundle, weights, {}, provenance={'method': 'nearest'}, nested=True
    )


def actions(folder, **options):
    policy = load_policy(folder, **options)
    return policy.infer(synthetic_observation(policy.spec, SENTENCE)).actions


def test_a_packed_bundle_says_what_it_was_made_of(bundle, nested):
    assert nested.origin == bundle.digest
    assert (nested.is_packed, nested.is_nested) == (True, True)
    assert nested.quantization['method'] == 'nearest'
    assert nested.spec == bundle.spec
    assert nested.config == bundle.config


@pytest.mark.parametrize('head', ['flow', 'token'])
def test_it_acts_like_the_same_weights_rounded_in_place(bundle, nested, float_model, names, head):
    spec = bundle.spec
    span = np.subtract(spec.action.high, spec.action.low)
    stored = actions(nested.path, head=head)
    full = actions('metaworld', precision='fp32', head=head)
    assert (np.abs(stored - full) / span).mean() < 0.01
    assert load_policy(nested.path, head=head).self_test().passed


def test_every_level_of_a_nested_store_is_read_from_the_same_bytes(nested):
    levels = {p: load_policy(nested.path, precision=p) for p in ('w8', 'w8a8', 'w4', 'w4a8')}
    observation = synthetic_observation(nested.spec, SENTENCE)
    sizes = {policy.memory().quantized_bytes for policy in levels.values()}
    chunks = [policy.infer(observation).actions.tobytes() for policy in levels.values()]
    assert len(sizes) == 1
    assert len(set(chunks)) == len(levels)
    assert [p.memory().activation_bits for p in levels.values()] == [16, 8, 16, 8]


def test_mixed_widths_and_folded_parameters_come_back(bundle, float_model, names, tmp_path):
    weights = pack(float_model, names, (2, 4, 8, 16, 0), 32)
    biased = 'language_model.layers.0.mlp.down_proj'  # Llama's layers have no bias
    norm = 'language_model.layers.0.input_layernorm.weight'
    changed = {
        f'{biased}.bias': torch.linspace(-0.1, 0.1, 192),
        norm: float_model.get_parameter(norm).detach() * 1.001,
    }
    bits = {name: 8 for name in names}
    path = tmp_path / 'mixed'
    write_packed_bundle(path, bundle, weights, bits, changed)
    expected = packed_model(bundle, weights, bits, changed)
    loaded = load_policy(path)
    for name in names:
        layer = loaded._model.get_submodule(name)
        assert isinstance(layer, MixedLinear)
        for key, tensor in weights[name].tensors().items():
            assert torch.equal(layer.unpack().tensors()[key], tensor), (name, key)
    assert torch.equal(loaded._model.get_submodule(biased).bias, changed[f'{biased}.bias'])
    stored = dict(loaded._model.named_parameters())[norm]
    assert torch.equal(stored, expected.get_parameter(norm).float())
    assert loaded.memory().activation_bits == 8


def test_a_packed_bundle_has_no_float_precision(nested):
    with pytest.raises(ConfigError, match="no precision .* named 'fp32'. Known: packed, w8"):
        load_policy(nested.path, precision='fp32')


def test_a_store_that_is_not_nested_is_never_read_at_4_bits(bundle, float_model, names, tmp_path):
    plain = write_packed_bundle(
        tmp_path / 'plain', bundle, pack(float_model, names, 8, 2048), dict.fromkeys(names, 8)
    )
    with pytest.raises(ConfigError, match="named 'w4'. Known: packed, w8, w8a8"):
        load_policy(plain.path, precision='w4')


def test_packing_twice_is_refused(nested, tmp_path):
    with pytest.raises(BundleError, match='is packed already'):
        write_packed_bundle(tmp_path / 'again', nested, {}, {})


def test_parameters_that_do_not_fit_are_listed_and_nothing_is_written(bundle, tmp_path):
    norm = 'language_model.norm.weight'
    changed = {norm: torch.ones(3), 'nose.weight': torch.ones(1), 'query': torch.tensor(np.nan)}
    with pytest.raises(SchemeError) as raised:
        write_packed_bundle(tmp_path / 'bad', bundle, {}, {}, changed)
    for text in (f'{norm}: [3], expected [192]', 'nose.weight: not in', 'query: not finite'):
        assert text in str(raised.value)
    assert not list(tmp_path.iterdir())
