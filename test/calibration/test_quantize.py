"""`vlaq quantize`: the widths asked for, the error measured, and refusals that list everything."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlaq_ros import cli
from vlaq_ros.calibration.artifact import mean_bits, read_plan
from vlaq_ros.calibration.quantize import NearestOptions, quantize_bundle
from vlaq_ros.errors import BundleError, ConfigError
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.reference import layer_roles, load_float_model
from vlaq_ros.policies.registry import load_policy


def quantize(*arguments):
    return cli.main(['quantize', *map(str, arguments)])


def test_a_uniform_bundle_has_one_width_and_runs(tiny_bundle, tmp_path):
    out = tmp_path / 'w4'
    assert quantize('--bundle', tiny_bundle, '--widths', 4, '--group-size', 16, '--out', out) == 0
    packed = open_bundle(out)
    assert packed.origin == open_bundle(tiny_bundle).digest
    assert all(set(layer.channels()) == {4} for layer in read_plan(packed))
    assert load_policy(out).self_test().passed


@pytest.mark.parametrize('budget', [3.5, 5.0])
def test_a_mixed_bundle_keeps_its_budget_and_uses_it(tiny_bundle, tmp_path, budget):
    options = NearestOptions((2, 4, 8), budget, group_size=16, clip='absmax')
    record = quantize_bundle(open_bundle(tiny_bundle), tmp_path / 'mixed', options)
    plan = read_plan(open_bundle(tmp_path / 'mixed'))
    assert budget - 0.1 < mean_bits(plan) <= budget
    assert mean_bits(plan) == record['mean_bits_per_weight']


def test_a_larger_budget_lowers_the_error_of_the_weights(tiny_bundle, tmp_path):
    bundle = open_bundle(tiny_bundle)
    errors = [
        quantize_bundle(bundle, tmp_path / str(bits), NearestOptions((2, 4, 8), bits, 16))[
            'weight_error'
        ]['8']
        for bits in (3.2, 4.5, 7.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1]


def test_the_recorded_error_is_that_of_the_stored_codes(tiny_bundle, tmp_path):
    options = NearestOptions((8,), group_size=16, nested=True)
    record = quantize_bundle(open_bundle(tiny_bundle), tmp_path / 'nested', options)
    model = load_float_model(open_bundle(tiny_bundle))
    names = [n for n, role in layer_roles(model).items() if role in ('llm', 'expert')]
    policy = load_policy(tmp_path / 'nested')
    assert policy.memory().quantized_weights == sum(
        model.get_submodule(name).weight.numel() for name in names
    )
    assert set(record['weight_error']) == {'8', '4'}
    # 256 and 16 levels over the range of a group of 16 normal weights.
    assert 0.002 < record['weight_error']['8'] < 0.01
    assert 0.03 < record['weight_error']['4'] < 0.15


def test_nested_bundles_run_at_four_bits_and_others_do_not(tiny_bundle, tmp_path):
    for name, more in (('plain', ()), ('nested', ('--nested',))):
        arguments = ('--bundle', tiny_bundle, '--group-size', 16, '--clip', 'absmax')
        quantize(*arguments, *more, '--out', tmp_path / name)
    assert load_policy(tmp_path / 'nested', precision='w4a8').precision == 'w4a8'
    with pytest.raises(ConfigError, match='w4a8'):
        load_policy(tmp_path / 'plain', precision='w4a8')


def test_the_same_command_writes_the_same_bytes(tiny_bundle, tmp_path):
    for name in ('one', 'two'):
        quantize(
            *('--bundle', tiny_bundle, '--widths', '4,8', '--bits', 6, '--group-size', 16),
            *('--out', tmp_path / name),
        )
    assert open_bundle(tmp_path / 'one').digest == open_bundle(tmp_path / 'two').digest


def test_every_wrong_option_is_listed_at_once(tmp_path, capsys):
    code = quantize(
        *('--bundle', 'toy', '--widths', '3,8', '--group-size', 24, '--out', tmp_path / 'x')
    )
    message = capsys.readouterr().err
    assert code == 2
    assert 'nothing was run' in message
    for part in ('--widths [3]', 'several widths need a budget', '--group-size 24', "'toy'"):
        assert part in message
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (NearestOptions((8,), 4.0), 'one width leaves nothing to share out'),
        (NearestOptions((4,), nested=True), '8-bit channels that are read at 4'),
        (NearestOptions((8,), group_size=None, nested=True), 'scale per group'),
        (NearestOptions((8, 8), 4.0), 'every width once'),
        (NearestOptions((8, 4), -1.0), 'must be positive'),
    ],
    ids=['budget', 'nested width', 'nested group', 'twice', 'negative'],
)
def test_a_wrong_option_says_what_to_do(options, message):
    [problem] = options.problems()
    assert message in problem


def test_a_budget_below_the_smallest_width_is_refused(tiny_bundle, tmp_path, capsys):
    code = quantize(
        *('--bundle', tiny_bundle, '--widths', '4,8', '--bits', 3, '--group-size', 16),
        *('--out', tmp_path / 'x'),
    )
    assert code == 2
    assert 'budget' in capsys.readouterr().err
    assert not (tmp_path / 'x').exists()


def test_a_packed_bundle_cannot_be_packed_again(tiny_bundle, tmp_path, capsys):
    quantize('--bundle', tiny_bundle, '--group-size', 16, '--out', tmp_path / 'once')
    assert quantize('--bundle', tmp_path / 'once', '--out', tmp_path / 'twice') == 2
    assert 'packed already' in capsys.readouterr().err


def test_only_a_packed_bundle_is_replaced_and_only_when_asked(tiny_bundle, tmp_path, capsys):
    out = tmp_path / 'w8'
    arguments = ('--bundle', tiny_bundle, '--group-size', 16, '--clip', 'absmax', '--out', out)
    assert quantize(*arguments) == 0
    assert quantize(*arguments) == 2
    assert '--overwrite' in capsys.readouterr().err
    assert quantize(*arguments, '--overwrite') == 0


@pytest.mark.parametrize('what', ['folder', 'float bundle'])
def test_nothing_else_is_ever_replaced(tiny_bundle, tmp_path, capsys, what):
    out = tmp_path / 'home'
    if what == 'folder':
        out.mkdir()
        (out / 'thesis.tex').write_text('years of work')
    else:
        out = tiny_bundle
    before = sorted(path.name for path in Path(out).iterdir())
    assert quantize('--bundle', tiny_bundle, '--out', out, '--overwrite') == 2
    assert '--out' in capsys.readouterr().err
    assert sorted(path.name for path in Path(out).iterdir()) == before


def test_a_full_disk_is_reported_and_leaves_no_half_of_a_bundle(tiny_bundle, tmp_path):
    out = tmp_path / 'w8'

    def allow_small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = subprocess.run(
        [sys.executable, '-m', 'vlaq_ros.cli', 'quantize', '--bundle', str(tiny_bundle)]
        + ['--group-size', '16', '--clip', 'absmax', '--out', str(out)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=allow_small_files_only,
        env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
    )
    assert done.returncode == 2, done.stderr
    assert 'cannot be written' in done.stderr
    assert 'Free some space' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_json_and_free_of_paths(tiny_bundle, tmp_path):
    quantize('--bundle', tiny_bundle, '--group-size', 16, '--out', tmp_path / 'w8')
    record = open_bundle(tmp_path / 'w8').quantization
    assert record['software']['torch'] == torch.__version__
    assert str(tmp_path) not in json.dumps(record)


def test_a_damaged_packed_bundle_is_refused(tiny_bundle, tmp_path):
    quantize('--bundle', tiny_bundle, '--group-size', 16, '--out', tmp_path / 'w8')
    weights = tmp_path / 'w8' / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match='sha256 differs'):
        open_bundle(tmp_path / 'w8')
