import pytest
import torch

from vlaq_ros.calibration.reference import reference_structure
from vlaq_ros.calibration.stress import SUFFIX, with_outliers, write_stress_bundle
from vlaq_ros.cli import main
from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.reference import load_float_model
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation


@pytest.fixture(scope='module')
def shipped():
    return open_bundle('metaworld')


@pytest.fixture(scope='module')
def variant(shipped, tmp_path_factory):
    return write_stress_bundle(shipped, tmp_path_factory.mktemp('stress') / 'v', 3, 32.0, 0)


def inputs_of(bundle, layer):
    """Return the largest magnitude of every input channel of a layer for one observation."""
    policy = load_policy(bundle.path, precision='fp32', head='flow', threads=1)
    found = []
    module = policy._model.get_submodule(layer)
    module.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, -2)))
    policy.infer(synthetic_observation(bundle.spec, bundle.golden()['instructions'][0]))
    return torch.cat(found).abs().amax(0)


@pytest.mark.parametrize('head', ['flow', 'token'])
def test_it_is_the_same_function(shipped, variant, head):
    actions = [
        load_policy(b.path, precision='fp32', head=head, threads=1)
        .infer(synthetic_observation(shipped.spec, shipped.golden()['instructions'][1]))
        .actions
        for b in (shipped, variant)
    ]
    assert abs(actions[0] - actions[1]).max() < 1e-5


@pytest.mark.parametrize(
    'layer', ['language_model.layers.1.self_attn.q_proj', 'dit.0.fc1', 'dit.1.cross_attn.q_proj']
)
def test_as_many_channels_as_asked_for_are_32_times_as_large(shipped, variant, layer):
    ratio = inputs_of(variant, layer) / inputs_of(shipped, layer).clamp(min=1e-9)
    torch.testing.assert_close(
        ratio.sort().values[-4:], torch.tensor([1.0, 32.0, 32.0, 32.0]), rtol=1e-3, atol=1e-3
    )


def test_it_says_what_it_is(shipped, variant):
    assert variant.spec.name.endswith(SUFFIX)
    assert variant.spec.provenance['synthetic_outliers']['of_bundle_sha256'] == shipped.digest


def test_the_seed_chooses_the_channels(shipped):
    model = load_float_model(shipped)
    streams = reference_structure(model).streams
    first, again, other = (with_outliers(model, streams, 2, 8.0, s) for s in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_all_that_is_wrong_is_said_at_once(shipped):
    model = load_float_model(shipped)
    with pytest.raises(ConfigError, match=r'--channels 0: .*\n--factor 3: must be a power of two'):
        with_outliers(model, reference_structure(model).streams, 0, 3.0, 0)


def test_a_packed_bundle_is_refused(tmp_path, capsys):
    quantize = ['quantize', '--widths', '8', '--out', str(tmp_path / 'packed')]
    assert main(quantize) == 0
    stress = ['stress', '--bundle', str(tmp_path / 'packed'), '--out', str(tmp_path / 's')]
    assert main(stress) == 2
    assert 'packed already' in capsys.readouterr().err
