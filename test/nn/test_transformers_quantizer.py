"""Packed Hugging Face models come back bit for bit, and what transformers tolerates is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlaq_ros.errors import BundleError, SchemeError
from vlaq_ros.nn.memory import packed_layers
from vlaq_ros.nn.mixed_conv import MixedConv2d
from vlaq_ros.nn.shared_input import share_inputs
from vlaq_ros.nn.surgery import find_linears, quantize_linears
from vlaq_ros.quant.scheme import LayerScheme

transformers = pytest.importorskip('transformers')
quantizer = pytest.importorskip('vlaq_ros.nn.transformers_quantizer')

TOKENS = torch.arange(10)[None]


def _scheme(rows):
    return LayerScheme(tuple((16, 8, 4, 2, 0, 8)[row % 6] for row in range(rows)), 16, 8)


def _llama(dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        attention_bias=True,
    )
    model = transformers.LlamaForCausalLM(config).eval().to(dtype).requires_grad_(False)
    names = find_linears(model, ['model.*'])
    quantize_linears(model, {n: _scheme(model.get_submodule(n).out_features) for n in names})
    return quantizer.register(model)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp('llama')
    _llama().save_pretrained(path)
    return path


@pytest.fixture
def copied(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _load(path, model_class=transformers.AutoModelForCausalLM, **options):
    return quantizer.load_pretrained(model_class, path, **options)


def _assert_same_packed(one, other):
    ours = [layer.state_dict() for layer in packed_layers(one)]
    theirs = [layer.state_dict() for layer in packed_layers(other)]
    assert len(ours) == len(theirs) == 14
    for state, found in zip(ours, theirs):
        assert list(state) == list(found)
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    'options', [{}, {'dtype': 'auto'}, {'dtype': torch.bfloat16}], ids=['default', 'auto', 'bf16']
)
def test_a_saved_model_comes_back_bit_for_bit(saved, options):
    model, loaded = _llama(), _load(saved, **options)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    _assert_same_packed(model, loaded)
    assert packed_layers(loaded)[0].precision.tolist() == [8, 8]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_another_dtype_casts_floats_and_never_codes_or_scales(saved, dtype):
    loaded = _load(saved, dtype=dtype)
    assert loaded.lm_head.weight.dtype == dtype
    _assert_same_packed(_llama(), loaded)


def test_shards_come_back_too(tmp_path):
    _llama().save_pretrained(tmp_path, max_shard_size='10KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 2
    assert torch.equal(_load(tmp_path)(TOKENS).logits, _llama()(TOKENS).logits)


def test_saving_again_writes_the_same_weights(saved, tmp_path):
    _load(saved).save_pretrained(tmp_path)
    ours, theirs = (load_file(path / 'model.safetensors') for path in (saved, tmp_path))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_layers_that_share_an_input_are_unseen_by_the_model(saved, tmp_path):
    model = _load(saved)
    expected = model(TOKENS).logits
    fused = share_inputs(model)
    assert [len(group) for group in fused] == [3, 2] * 2
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected)
        first = model.generate(TOKENS, max_new_tokens=5, do_sample=False)
    assert torch.equal(first, _load(saved).generate(TOKENS, max_new_tokens=5, do_sample=False))
    quantizer.register(model).save_pretrained(tmp_path)
    assert torch.equal(_load(tmp_path)(TOKENS).logits, expected)


def test_the_base_class_finds_layers_that_were_saved_with_a_head(saved):
    """It names them without `model.`; with a head in the file, strict loading still refuses."""
    base = transformers.AutoModel.from_pretrained(saved, local_files_only=True)
    assert torch.equal(base(TOKENS)[0], _llama().model(TOKENS)[0])
    with pytest.raises(BundleError, match='unexpected: lm_head.weight'):
        _load(saved, transformers.AutoModel)


def test_a_vision_tower_with_packed_patches_comes_back(tmp_path):
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    tower = transformers.SiglipVisionModel(config).eval().bfloat16().requires_grad_(False)
    names = [n for n, m in tower.named_modules() if type(m) in (torch.nn.Linear, torch.nn.Conv2d)]
    names = [name for name in names if 'encoder' in name or 'patch' in name]
    quantize_linears(tower, dict.fromkeys(names, LayerScheme(8)))
    quantizer.register(tower).save_pretrained(tmp_path)
    loaded = _load(tmp_path, transformers.SiglipVisionModel)
    assert sum(isinstance(layer, MixedConv2d) for layer in packed_layers(loaded)) == 1
    image = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(image).last_hidden_state, tower(image).last_hidden_state)


@pytest.mark.slow
def test_a_whole_vision_language_action_model_comes_back(tmp_path):
    """Built in bfloat16 by transformers: `.bfloat16()` would round its frequencies too."""
    gemma = {
        'model_type': 'gemma',
        'vocab_size': 64,
        'hidden_size': 32,
        'intermediate_size': 48,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 1,
        'head_dim': 8,
    }
    siglip = {
        'model_type': 'siglip_vision_model',
        'hidden_size': 32,
        'intermediate_size': 48,
        'num_hidden_layers': 1,
        'num_attention_heads': 2,
        'image_size': 16,
        'patch_size': 8,
        'projection_dim': 32,
        'vision_use_head': False,
    }
    vlm = {'model_type': 'paligemma', 'image_token_index': 63, 'projection_dim': 32}
    vlm |= {'hidden_size': 32, 'vocab_size': 64, 'text_config': gemma, 'vision_config': siglip}
    sizes = {'chunk_size': 5, 'max_state_dim': 7, 'max_action_dim': 6, 'num_inference_steps': 2}
    config = transformers.PI0Config(vlm_config=vlm, dit_config=gemma, **sizes)
    torch.manual_seed(0)
    policy = transformers.PI0ForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    policy.eval().requires_grad_(False)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names = [name for name, m in policy.named_modules() if type(m) in kinds and name != 'lm_head']
    quantize_linears(policy, dict.fromkeys(names, LayerScheme(8, activation_bits=8)))
    quantizer.register(policy).save_pretrained(tmp_path)
    loaded = _load(tmp_path, transformers.AutoModelForImageTextToText)
    tokens = torch.tensor([[63] * 4 + [5, 6, 7]])
    inputs = {
        'input_ids': tokens,
        'attention_mask': torch.ones_like(tokens),
        'pixel_attention_mask': torch.ones(1, 1, dtype=torch.bool),
        'pixel_values': torch.randn(1, 1, 3, 16, 16, dtype=torch.bfloat16),
        'state': torch.randn(1, 7, dtype=torch.bfloat16),
        'noise': torch.randn(1, 5, 6, dtype=torch.bfloat16),
    }
    actions = policy.sample_actions(**inputs)
    assert actions.shape == (1, 5, 6)
    assert torch.equal(loaded.sample_actions(**inputs), actions)
    assert len(share_inputs(loaded)) == 9
    assert torch.equal(loaded.sample_actions(**inputs), actions)


def _edit(path, change, name='config.json'):
    values = json.loads((path / name).read_text())
    change(values)
    (path / name).write_text(json.dumps(values))


def _edit_weights(path, change):
    tensors = load_file(path / 'model.safetensors')
    change(tensors)
    save_file(tensors, path / 'model.safetensors', {'format': 'pt'})


def test_a_process_without_this_package_loads_noise_and_our_loader_would_refuse(copied):
    """Transformers skips a method it does not know: no exception, random weights."""
    code = f"""
import torch
from transformers import LlamaForCausalLM
model, info = LlamaForCausalLM.from_pretrained({str(copied)!r}, output_loading_info=True)
assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
print(len(info['missing_keys']))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 14
    _edit(copied, lambda config: config.pop('quantization_config'))
    with pytest.raises(BundleError, match='missing: model.layers.0.mlp.down_proj.weight'):
        _load(copied)


def test_a_layer_that_the_config_forgets_is_refused(copied):
    name = 'model.layers.1.mlp.up_proj'
    _edit(copied, lambda config: config['quantization_config']['layers'].pop(name))
    with pytest.raises(BundleError) as error:
        _load(copied)
    assert f'missing: {name}.weight' in str(error.value)
    assert f'unexpected: {name}.codes8' in str(error.value)


O_PROJ = 'model.layers.0.self_attn.o_proj'
CONFIGS = {
    'version': (lambda c: c['quantization_config'].update(format=2), 'of format 2; this version'),
    'entry': (lambda c: c['quantization_config'].update(x=2), 'unknown entries: x'),
    'unknown layer': (
        lambda c: c['quantization_config']['layers'].update(
            {'model.layers.9.x': c['quantization_config']['layers'][O_PROJ]}
        ),
        "'model.layers.9.x'",
    ),
    'other class': (
        lambda c: c['quantization_config']['layers'].update(
            {'model.norm': c['quantization_config']['layers'].pop(O_PROJ)}
        ),
        'model.norm: LlamaRMSNorm',
    ),
    'counts': (
        lambda c: c['quantization_config']['layers'][O_PROJ].update(counts=[0, 32, 0, 0]),
        rf'holds other tensors than its config:\n  {O_PROJ}',
    ),
    'code': (lambda c: c.update(auto_map={'AutoModel': 'x.Y'}), 'names code to run: auto_map'),
    'nested code': (
        lambda c: c.update(text={'_attn_implementation': 'org/kernel'}),
        'names code to run: _attn_implementation',
    ),
}


@pytest.mark.parametrize(('change', 'message'), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_config_that_does_not_fit_is_refused(copied, change, message):
    _edit(copied, change)
    with pytest.raises((BundleError, SchemeError), match=message):
        _load(copied)


WEIGHTS = {
    'missing': (lambda t: t.pop(f'{O_PROJ}.scale'), f'{O_PROJ}'),
    'unexpected': (lambda t: t.update(extra=torch.zeros(1)), 'unexpected: extra'),
    'cast': (
        lambda t: t.update({f'{O_PROJ}.scale': t[f'{O_PROJ}.scale'].float()}),
        rf'{O_PROJ}.scale: float32 .* expected float16',
    ),
    'nan scale': (lambda t: t[f'{O_PROJ}.scale'].fill_(torch.nan), f'{O_PROJ}: .*\n  scale: neg'),
    'nan bias': (lambda t: t[f'{O_PROJ}.bias'].fill_(torch.nan), f'{O_PROJ}: bias: not finite'),
    'order': (lambda t: t[f'{O_PROJ}.order'].fill_(0), 'order: channels 0 occur more than once'),
    'nan float': (lambda t: t['lm_head.weight'].fill_(torch.nan), 'not finite: lm_head.weight'),
}


@pytest.mark.parametrize(('change', 'message'), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_do_not_fit_are_refused(copied, change, message):
    _edit_weights(copied, change)
    with pytest.raises((BundleError, SchemeError), match=message):
        _load(copied)


def test_files_elsewhere_and_no_files_are_refused(copied):
    (copied / 'model.safetensors.index.json').write_text(
        json.dumps({'metadata': {}, 'weight_map': {'a': '../model.safetensors', 'b': 'x.bin'}})
    )
    with pytest.raises(BundleError, match=r'no safetensors file .*: ../model.safetensors, x.bin'):
        _load(copied)
    with pytest.raises(BundleError, match=r'has no config.json: give the directory'):
        _load(copied / 'nothing')
    (copied / 'config.json').write_text('[')
    with pytest.raises(BundleError, match='is not JSON'):
        _load(copied)


def test_the_rest_of_the_package_imports_no_transformers():
    code = """
import importlib, pkgutil, sys
import vlaq_ros.nn
for module in pkgutil.iter_modules(vlaq_ros.nn.__path__):
    if module.name != 'transformers_quantizer':
        importlib.import_module(f'vlaq_ros.nn.{module.name}')
print('transformers' in sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'False\n'
