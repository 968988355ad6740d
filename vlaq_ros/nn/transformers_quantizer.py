"""
Packed layers in Hugging Face models: the quantization method `vlaq` of transformers.

Importing this module registers it, and imports transformers, which takes its time; nothing else of
the package does. A process that has not imported it loads the same directory *without an error*,
with random weights in every packed layer: transformers only warns about a method it does not know.
So load with `load_pretrained`, which refuses everything that transformers tolerates.

The block `quantization_config` of config.json is the schema of `store_file`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from vlaq_ros.errors import BundleError, SchemeError
from vlaq_ros.nn.store_file import (
    StoredLayer,
    layer_specs,
    model_schema,
    parse_schema,
    stored_layers,
)
from vlaq_ros.nn.surgery import prepare_empty
from vlaq_ros.nn.tensor_file import TensorFile, TensorSpec
from vlaq_ros.quant.mixed import MixedWeight

METHOD = 'vlaq'
CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
REFUSED_KEYS = ('auto_map', 'trust_remote_code', 'custom_pipelines', 'custom_generate')
REFUSED_PARTS = ('attn_implementation', 'experts_implementation')
"""Keys of a config that name code to run or to fetch, and parts of such keys."""
LISTED = 20

# Some models initialize the weights of their layers again after loading, except those so marked.
MixedWeight._is_hf_initialized = True


@register_quantization_config(METHOD)
class VlaqConfig(QuantizationConfigMixin):
    """
    What config.json says about packed layers: the schema of `store_file`, and the method.

    Raises:
        BundleError: The schema is of another version or describes layers that cannot exist.
    """

    def __init__(
        self,
        layers: dict[str, Any] | None = None,
        format: int = 1,  # noqa: A002  (the name in the file)
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise BundleError(f'quantization_config has unknown entries: {", ".join(unknown)}')
        self.quant_method = quant_method
        self.format = format
        self.layers = layers or {}
        self.parsed()

    def parsed(self) -> dict[str, StoredLayer]:
        """Return layer -> sizes and activation bits."""
        return parse_schema({'format': self.format, 'layers': self.layers}, 'quantization_config')


@register_quantizer(METHOD)
class VlaqHfQuantizer(HfQuantizer):
    """Puts empty packed layers into a model before transformers loads it, and packs them after."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        stored = _names_in(model, self.quantization_config.parsed())
        prepare_empty(
            model,
            {name: layer.layout for name, layer in stored.items()},
            {name: layer.activation_bits for name, layer in stored.items()},
        )

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        """Pack every layer; what was never loaded or is no weight is listed."""
        faults = []
        for name, layer in stored_layers(model):
            try:
                if layer.bias is not None and not layer.bias.isfinite().all():
                    raise SchemeError('bias: not finite')
                layer.pack()
            except (SchemeError, NotImplementedError) as error:
                faults.append(f'{name}: {error}')
        if faults:
            raise BundleError('packed layers that hold no weight:\n  ' + '\n  '.join(faults))

    def is_serializable(self) -> bool:
        """Return True: `save_pretrained` writes the file form."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights are constants."""
        return False

    @property
    def is_compileable(self) -> bool:
        """torch.compile sees one operator per layer."""
        return True


def register(model: PreTrainedModel) -> PreTrainedModel:
    """
    Make `model.save_pretrained` write the packed layers that the model has now.

    Call it after surgery; calling it again after more surgery is fine.

    Returns:
        The same model.
    """
    schema = model_schema(model)
    config = VlaqConfig(schema['layers'], schema['format'])
    model.config.quantization_config = config
    model.hf_quantizer = VlaqHfQuantizer(config, pre_quantized=True)
    model.is_quantized, model.quantization_method = True, METHOD
    return model


def load_pretrained(model_class: type, directory: str | Path, **options: Any) -> PreTrainedModel:
    """
    Load a model that `save_pretrained` wrote, strictly and from local files alone.

    Args:
        model_class: A model class of transformers, or an `AutoModel...` class.
        directory: Holds config.json and safetensors files.
        options: For `from_pretrained`, such as `dtype`; the dtype of float weights, not of codes.
            Remote code, other formats and downloads stay off whatever they say.

    Raises:
        BundleError: Files are missing or damaged, the config names code, keys are missing,
            unexpected or of another shape, or values are not finite; each kind is listed.
        SchemeError: The packed layers do not fit the model.
    """
    directory = Path(directory)
    _check_files(directory)
    options |= {'local_files_only': True, 'trust_remote_code': False, 'use_safetensors': True}
    try:
        model, info = model_class.from_pretrained(directory, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f'{directory} cannot be loaded: {error}') from error
    faults = [
        f'{kind.replace("_keys", "")}: {key}'
        for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys')
        for key in sorted(map(str, info[kind]))
    ]
    faults += [f'never loaded: {name}' for name, layer in stored_layers(model) if layer.is_empty]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            faults.append(f'without values: {name}')
        elif tensor.is_floating_point() and name.split('.')[-1] != 'stand_in':
            faults += [] if bool(torch.isfinite(tensor).all()) else [f'not finite: {name}']
    if faults:
        shown = '\n  '.join(faults[:LISTED] + (['...'] if len(faults) > LISTED else []))
        raise BundleError(
            f'{directory} does not fit the model in {len(faults)} place(s):\n  {shown}'
        )
    return model


def _names_in(model: nn.Module, stored: dict[str, StoredLayer]) -> dict[str, StoredLayer]:
    """
    Return the layers under their names in this model.

    A base model has no `model.` before its names, and a model with a head has; checkpoints of one
    load into the other.
    """
    modules, prefix = dict(model.named_modules()), getattr(model, 'base_model_prefix', '')
    found = {}
    for name, layer in stored.items():
        candidates = (name, name.removeprefix(f'{prefix}.'), f'{prefix}.{name}')
        found[next((c for c in candidates if c in modules), name)] = layer
    return found


def _check_files(directory: Path) -> None:
    """Refuse what is no complete local directory of safetensors, or names code."""
    if not (directory / CONFIG).is_file():
        raise BundleError(f'{directory} has no {CONFIG}: give the directory of a saved model')
    config = _read_json(directory / CONFIG)
    if named := sorted(set(_code_keys(config))):
        raise BundleError(
            f'{directory / CONFIG} names code to run: {", ".join(named)}. Remove these keys'
        )
    shards = {WEIGHTS}
    if (directory / INDEX).is_file():
        table = _read_json(directory / INDEX).get('weight_map')
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise BundleError(f'{directory / INDEX} has no table of shards')
        shards = set(table.values())
    faults = [name for name in sorted(shards) if not _is_shard(directory, name)]
    if faults:
        raise BundleError(f'{directory}: no safetensors file beside {CONFIG}: {", ".join(faults)}')
    block = config.get('quantization_config')
    if isinstance(block, dict) and block.get('quant_method') == METHOD:
        _check_headers(directory, sorted(shards), VlaqConfig(**block).parsed())


def _check_headers(directory: Path, shards: Sequence[str], stored: dict[str, StoredLayer]) -> None:
    """Refuse packed tensors of another type or shape, which transformers would cast."""
    wanted: dict[str, TensorSpec] = {}
    for name, layer in stored.items():
        wanted |= layer_specs(name, layer.layout, bias=True)
    faults = []
    for shard in shards:
        with (directory / shard).open('rb') as file:
            for name, spec in TensorFile(file, str(directory / shard)).specs.items():
                if name in wanted and spec != wanted[name]:
                    faults.append(f'{name}: {spec}, expected {wanted[name]}')
    if faults:
        raise BundleError(
            f'{directory} holds other tensors than its config:\n  ' + '\n  '.join(faults)
        )


def _is_shard(directory: Path, name: str) -> bool:
    plain = Path(name).name == name and name.endswith('.safetensors')
    return plain and (directory / name).is_file()


def _code_keys(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key in REFUSED_KEYS or any(part in key for part in REFUSED_PARTS):
                yield key
            yield from _code_keys(value)
    elif isinstance(config, list):
        for value in config:
            yield from _code_keys(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f'{path} is not JSON: {error}') from error
    if not isinstance(values, dict):
        raise BundleError(f'{path} must hold a JSON object')
    return values
