"""A bundle is refused for every kind of damage, with the file named, and never half-written."""

import json
import shutil

import pytest
import torch

from vlaq_ros.errors import BundleError, ConfigError
from vlaq_ros.policies.bundle import MANIFEST, WEIGHTS, open_bundle, resolve, write_bundle
from vlaq_ros.policies.registry import load_policy, read_spec
from vlaq_ros.policies.toy import toy_spec


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / 'arm'
    write_bundle(path, toy_spec(), {'model_type': 'vlaq_toy'}, {'unused': torch.zeros(4)})
    return path


def test_written_bundle_opens_with_the_same_spec(bundle):
    assert open_bundle(bundle).spec == toy_spec()


def test_rewriting_a_bundle_replaces_it_and_leaves_nothing_beside_it(bundle):
    write_bundle(bundle, toy_spec(), {'model_type': 'vlaq_toy'}, {'unused': torch.ones(4)})
    assert [p.name for p in bundle.parent.iterdir()] == ['arm']
    assert open_bundle(bundle).path == bundle


def test_failed_write_leaves_no_bundle(tmp_path):
    with pytest.raises(ValueError, match='bad'):
        write_bundle(tmp_path / 'arm', toy_spec(), {}, {'bad': 'not a tensor'})
    assert list(tmp_path.iterdir()) == []


def test_digest_changes_with_the_weights(bundle):
    before = open_bundle(bundle).digest
    write_bundle(bundle, toy_spec(), {'model_type': 'vlaq_toy'}, {'unused': torch.ones(4)})
    assert open_bundle(bundle).digest != before


@pytest.mark.parametrize('name', ['policy.json', 'config.json', WEIGHTS])
def test_altered_file_is_named(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f'{name}: sha256 differs'):
        open_bundle(bundle)


def test_truncated_weights_are_named_with_both_sizes(bundle):
    data = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(data[:-3])
    with pytest.raises(BundleError, match=f'{len(data) - 3} bytes, expected {len(data)}'):
        open_bundle(bundle)


def test_every_problem_is_listed_at_once(bundle):
    (bundle / WEIGHTS).unlink()
    (bundle / 'extra.py').write_text('print()')
    with pytest.raises(BundleError) as error:
        open_bundle(bundle)
    assert f'{WEIGHTS}: missing' in str(error.value)
    assert 'extra.py: not listed' in str(error.value)


def test_listed_code_is_refused(bundle):
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest['files']['model.py'] = {'sha256': '', 'bytes': 0}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r'model.py: a bundle has no such file'):
        open_bundle(bundle)


def test_link_out_of_the_bundle_is_refused(bundle, tmp_path):
    shutil.move(bundle / WEIGHTS, tmp_path / 'elsewhere')
    (bundle / WEIGHTS).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(BundleError, match='missing'):
        open_bundle(bundle)


@pytest.mark.parametrize('text', ['', '[]', '{"format": 99}', '{"format": 1}', 'nonsense'])
def test_bad_manifest_is_refused(bundle, text):
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_missing_bundle_lists_the_shipped_ones():
    with pytest.raises(BundleError, match='toy'):
        resolve('no_such_bundle')


@pytest.mark.parametrize('name', ['', '..', '../bundles/toy'])
def test_shipped_bundles_are_found_by_plain_name_only(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == '..':
        with pytest.raises(BundleError, match=f'no {MANIFEST}|has no {MANIFEST}'):
            open_bundle(name)
    else:
        with pytest.raises(BundleError):
            open_bundle(name or 'x')


def test_unknown_precision_suggests_a_known_one():
    with pytest.raises(ConfigError, match="Did you mean 'fp32'"):
        load_policy('toy', precision='fp23')


def test_unknown_head_lists_the_heads_of_the_bundle():
    with pytest.raises(ConfigError, match='flow, token'):
        load_policy('toy', head='diffusion')


def test_unknown_family_is_refused(tmp_path):
    values = {**toy_spec().to_json(), 'family': 'tyo'}
    spec = type(toy_spec()).from_json(values)
    write_bundle(tmp_path / 'b', spec, {}, {'unused': torch.zeros(1)})
    with pytest.raises(BundleError, match="Did you mean 'toy'"):
        load_policy(tmp_path / 'b')


def test_spec_of_a_shipped_bundle_is_read_without_loading_weights():
    assert read_spec('toy').action.names == ('ee_x', 'ee_y', 'ee_z', 'gripper')
