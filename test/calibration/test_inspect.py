"""`vlaq inspect`: what a bundle is, and how two differ."""

import json

import pytest

from vlaq_ros import cli
from vlaq_ros.calibration.inspect import compare, describe_bundle
from vlaq_ros.calibration.quantize import NearestOptions, quantize_bundle
from vlaq_ros.policies.bundle import open_bundle


@pytest.fixture(scope='module')
def packed(tiny_bundle, tmp_path_factory):
    """Name -> folder of three bundles made of the same policy."""
    folder = tmp_path_factory.mktemp('packed')
    options = {
        'w8': NearestOptions((8,), group_size=16, clip='absmax'),
        'w4': NearestOptions((4,), group_size=16, clip='absmax'),
        'mixed': NearestOptions((2, 4, 8), 4.0, group_size=16, clip='absmax'),
    }
    bundle = open_bundle(tiny_bundle)
    for name, option in options.items():
        quantize_bundle(bundle, folder / name, option)
    return {name: folder / name for name in options}


def inspect(capsys, *arguments):
    assert cli.main(['inspect', *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_float_bundle_is_described_without_a_plan(tiny_bundle, capsys):
    text = inspect(capsys, tiny_bundle)
    assert 'float, nothing is packed' in text
    assert 'front 32 x 32' in text
    assert open_bundle(tiny_bundle).digest in text


def test_the_numbers_of_a_packed_bundle_add_up(packed):
    found = describe_bundle(open_bundle(packed['mixed']))
    roles, layers = found['roles'].values(), found['layers'].values()
    assert sum(role['layers'] for role in roles) == len(layers)
    assert sum(role['weights'] for role in roles) == found['packed_weights']
    weights = [layer['shape'][0] * layer['shape'][1] for layer in layers]
    assert sum(weights) == found['packed_weights']
    bits = sum(layer['bits_per_weight'] * n for layer, n in zip(layers, weights))
    assert bits == pytest.approx(8 * found['packed_bytes'])
    channels = sum(layer['shape'][0] for layer in layers)
    assert sum(found['channels'].values()) == channels
    for layer in layers:
        assert sum(layer['channels'].values()) == layer['shape'][0]


def test_packed_bytes_are_those_of_the_tensors_in_the_file(packed):
    from safetensors import safe_open

    found = describe_bundle(open_bundle(packed['mixed']))
    total = 0
    with safe_open(packed['mixed'] / 'model.safetensors', 'pt') as file:
        for name in file.keys():  # noqa: SIM118, it is no dict
            if name.rsplit('.', 1)[-1] in ('codes8', 'codes4', 'codes2', 'scale', 'values16'):
                total += file.get_tensor(name).nbytes
    assert total == found['packed_bytes']


def test_every_layer_gets_a_line_when_asked(packed, capsys):
    found = describe_bundle(open_bundle(packed['w4']))
    text = inspect(capsys, packed['w4'], '--layers')
    assert all(name in text for name in found['layers'])
    assert 'dit.0.fc1' not in inspect(capsys, packed['w4'])


def test_json_holds_all_that_the_text_says(packed, capsys):
    values = json.loads(inspect(capsys, packed['w8'], '--json'))
    assert values == json.loads(json.dumps(describe_bundle(open_bundle(packed['w8']))))
    assert values['made']['method'] == 'nearest'
    assert values['channels'] == {'8': sum(values['channels'].values())}


def test_a_comparison_names_the_layers_that_differ(packed, capsys):
    text = inspect(capsys, packed['w8'], packed['w4'])
    assert text.startswith('the same policy')
    assert '100.0 % at 8 bit' in text
    assert '100.0 % at 4 bit' in text
    both = json.loads(inspect(capsys, packed['w8'], packed['w4'], '--json'))
    assert len(both['layers']) == len(both['first']['layers'])


def test_a_bundle_equals_itself(packed, capsys):
    assert 'byte for byte' in inspect(capsys, packed['w8'], packed['w8'])


def test_a_packed_bundle_and_its_origin_are_the_same_policy(packed, tiny_bundle):
    first, second = (describe_bundle(open_bundle(p)) for p in (packed['w8'], tiny_bundle))
    assert compare(first, second)['same_policy']


def test_bundles_of_different_policies_are_told_apart(packed, capsys):
    assert 'NOT made of the same policy' in inspect(capsys, packed['w8'], 'metaworld')


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, capsys):
    assert cli.main(['inspect', str(tmp_path)]) == 2
    assert 'MANIFEST.json' in capsys.readouterr().err
