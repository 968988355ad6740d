"""The reference family on random weights: strict loading, precisions, roles, refusals."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlaq_ros.errors import BundleError, PolicyError, SchemeError
from vlaq_ros.policies.bundle import WEIGHTS, open_bundle, write_bundle
from vlaq_ros.policies.precision import DEFAULT, PRECISIONS
from vlaq_ros.policies.reference import QUANTIZED_ROLES, golden_actions, layer_roles
from vlaq_ros.policies.reference_model import ReferenceConfig, ReferenceModel
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import GOLDEN_TOLERANCE, synthetic_observation
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.policies.toy import toy_spec

SENTENCES = ('reach the goal', 'open the drawer')


def _spec() -> PolicySpec:
    return dataclasses.replace(toy_spec(), family='reference', name='random')


def _config() -> ReferenceConfig:
    cameras = tuple((c.name, c.height, c.width) for c in _spec().cameras)
    return ReferenceConfig(
        8, 14, cameras, 4, 4, 8, hidden_size=64, layers=2, heads=2, intermediate_size=128
    )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """Random weights; the modulation, zero at the start of training, is randomized as well."""
    torch.manual_seed(0)
    model = ReferenceModel(_config())
    for block in model.dit:
        torch.nn.init.normal_(block.adaln.weight, std=0.2)
    path = tmp_path_factory.mktemp('bundles') / 'random'
    tensors = {name: t.half() for name, t in model.state_dict().items()}
    write_bundle(path, _spec(), _config().to_json(), tensors)
    golden = golden_actions(open_bundle(path), SENTENCES)
    write_bundle(path, _spec(), _config().to_json(), tensors, golden)
    return path


@pytest.mark.parametrize('head', ['flow', 'token'])
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'w8', 'w4'])
def test_actions_are_finite_in_range_and_close_to_full_precision(path, precision, head):
    observation = synthetic_observation(_spec(), SENTENCES[0])
    reference = load_policy(path, head=head).infer(observation).actions
    chunk = load_policy(path, precision=precision, head=head).infer(observation)
    low, high = np.array(_spec().action.low), np.array(_spec().action.high)
    assert chunk.actions.shape == (8, 4)
    assert ((chunk.actions >= low) & (chunk.actions <= high)).all()
    limit = {'fp32': 0.0, 'w8': 0.03, 'bf16': 0.06, 'w4': 0.4}[precision]
    error = np.abs((chunk.actions - reference) / (high - low))
    if head == 'token':
        # One bin decides by arg max: a tie may jump anywhere, most must stay.
        assert np.median(error) <= limit
    else:
        assert error.max() <= limit


def test_quantized_levels_use_packed_storage(path):
    bits = {}
    for precision in ('w8', 'w4'):
        memory = load_policy(path, precision=precision).memory()
        # Llama, context and time, DiT; layers that read the same input share one store.
        assert memory.quantized_layers == 2 * 4 + 3 + 2 * 8
        bits[precision] = memory.mean_bits_per_weight
    assert 8.0 < bits['w8'] < 9.0  # scales and channel numbers weigh more in small layers
    assert 4.0 < bits['w4'] < 5.0


def test_lower_precision_holds_fewer_bytes(path):
    sizes = [load_policy(path, precision=p).memory().weight_bytes for p in ('fp32', 'w8', 'w4')]
    assert sizes == sorted(sizes, reverse=True)


def test_float_roles_are_never_quantized():
    roles = layer_roles(ReferenceModel(_config()))
    kept = {name for name, role in roles.items() if role not in QUANTIZED_ROLES}
    expected = {'state_proj', 'action_in', 'action_out', 'token_head'}
    assert kept == expected | {'vision.front.proj', 'vision.wrist.proj'}


def test_layer_without_a_role_is_an_error():
    model = ReferenceModel(_config())
    model.surprise = torch.nn.Linear(2, 2)
    with pytest.raises(SchemeError, match='surprise'):
        layer_roles(model)


def test_same_observation_gives_the_same_actions(path):
    policy = load_policy(path)
    observation = synthetic_observation(_spec(), SENTENCES[0])
    first = policy.infer(observation).actions
    policy.infer(synthetic_observation(_spec(), SENTENCES[1]))
    assert np.array_equal(policy.infer(observation).actions, first)


def test_flow_actions_depend_on_both_cameras_the_state_and_the_words(path):
    policy = load_policy(path)
    base = synthetic_observation(_spec(), SENTENCES[0])
    changed = [
        dataclasses.replace(base, images={**base.images, name: 255 - base.images[name]})
        for name in base.images
    ]
    changed.append(dataclasses.replace(base, state=base.state + 0.1))
    changed.append(dataclasses.replace(base, instruction=SENTENCES[1]))
    reference = policy.infer(base).actions
    for observation in changed:
        assert not np.allclose(policy.infer(observation).actions, reference, atol=1e-6)


@pytest.mark.parametrize('head', ['flow', 'token'])
def test_self_test_passes_against_its_golden_actions(path, head):
    report = load_policy(path, head=head).self_test()
    assert report.passed, report.failures()
    assert 'golden' in [name for name, _, _ in report.checks]


def test_self_test_judges_every_precision():
    assert set(GOLDEN_TOLERANCE) == set(PRECISIONS) - {DEFAULT}


def test_self_test_fails_for_other_golden_actions(path, tmp_path):
    bundle = open_bundle(path)
    golden = golden_actions(bundle, SENTENCES)
    golden['actions']['flow'][0][0] += 0.02
    tensors = load_file(path / WEIGHTS)
    write_bundle(tmp_path / 'b', bundle.spec, bundle.config, tensors, golden)
    report = load_policy(tmp_path / 'b').self_test()
    assert not report.passed
    assert report.failures().startswith('golden:')


def test_policy_blind_to_its_images_fails_the_self_test(path, tmp_path):
    bundle = open_bundle(path)
    tensors = load_file(path / WEIGHTS)
    for name in ('front', 'wrist'):
        tensors[f'vision.{name}.proj.weight'].zero_()
    write_bundle(tmp_path / 'b', bundle.spec, bundle.config, tensors)
    assert 'images:' in load_policy(tmp_path / 'b').self_test().failures()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda t: t.pop('query'), 'query: missing'),
        (lambda t: t.update(extra=torch.zeros(1)), 'extra: unexpected'),
        (lambda t: t.update(query=t['query'][:3].contiguous()), 'query: shape'),
        (lambda t: t['query'].fill_(float('nan')), 'query: not finite'),
    ],
    ids=['missing', 'unexpected', 'shape', 'nan'],
)
def test_weights_that_do_not_fit_are_refused(path, tmp_path, damage, message):
    bundle = open_bundle(path)
    tensors = load_file(path / WEIGHTS)
    damage(tensors)
    write_bundle(tmp_path / 'b', bundle.spec, bundle.config, tensors)
    with pytest.raises(BundleError, match=message):
        load_policy(tmp_path / 'b')


def test_foreign_config_is_refused(path, tmp_path):
    tensors = load_file(path / WEIGHTS)
    write_bundle(tmp_path / 'b', _spec(), {'model_type': 'llama'}, tensors)
    with pytest.raises(BundleError, match='llama'):
        load_policy(tmp_path / 'b')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'images': {}}, "camera 'front' is missing; camera 'wrist' is missing"),
        ({'state': np.zeros(3)}, r'state is \[3\], expected \[4\]'),
        ({'state': np.array([0.0, np.nan, 0.0, 0.0])}, 'state is not finite: hand_y'),
        ({'instruction': ''}, 'no words'),
    ],
    ids=['cameras', 'state-size', 'state-nan', 'instruction'],
)
def test_observation_that_does_not_fit_is_refused(path, change, message):
    observation = dataclasses.replace(synthetic_observation(_spec(), SENTENCES[0]), **change)
    with pytest.raises(PolicyError, match=message):
        load_policy(path).infer(observation)


def test_image_of_another_size_is_refused(path):
    observation = synthetic_observation(_spec(), SENTENCES[0])
    images = {**observation.images, 'wrist': np.zeros((32, 64, 3), np.uint8)}
    observation = dataclasses.replace(observation, images=images)
    with pytest.raises(PolicyError, match=r"'wrist' is uint8 \[32, 64, 3\], expected"):
        load_policy(path).infer(observation)
