"""
Models with packed layers on disk: one file, the same for every device.

A safetensors file holds the packed layers in the file form of `quant.mixed` (`<layer>.order`,
`.values16`, `.codes8`, `.codes4`, `.codes2`, `.scale`, `.bias`) and everything else of the model
under its own names. Its metadata entry `vlaq` says in JSON what the packed layers are:

    {"format": 1, "layers": {"<layer>": {"shape": [out, in], "group_size": 64,
                                         "counts": [16-, 8-, 4-, 2-bit channels],
                                         "activation_bits": 16}}}

Loading goes layer by layer, straight from the file into the form of the kernel: at no time is more
held than the model so far and one layer. Names, types and shapes are checked against the model
before anything is read, values before they are used, and every fault is listed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from vlaq_ros.errors import BundleError, SchemeError
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.surgery import prepare_empty
from vlaq_ros.nn.tensor_file import TensorFile, TensorSpec, write_tensors
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight
from vlaq_ros.quant.scheme import check_activation_bits

FORMAT = 1
SCHEMA = 'vlaq'
KEYS = ('shape', 'group_size', 'counts', 'activation_bits')
"""What the schema says of a layer, nothing more and nothing less."""


@dataclass(frozen=True)
class StoredLayer:
    """What a file says about a packed layer before its tensors are read."""

    layout: MixedLayout
    activation_bits: int = 16


def model_schema(model: nn.Module) -> dict[str, Any]:
    """Return the schema of the packed layers of a model, as JSON values."""
    return {'format': FORMAT, 'layers': {n: _describe(m) for n, m in stored_layers(model)}}


def parse_schema(schema: Any, what: str) -> dict[str, StoredLayer]:
    """
    Return layer -> sizes and activation bits.

    Args:
        schema: As `model_schema` returns it, from a file or a config block.
        what: Where it comes from, for messages.

    Raises:
        BundleError: It is of another version or describes layers that cannot exist, all of them.
    """
    if not isinstance(schema, dict) or set(schema) != {'format', 'layers'}:
        raise BundleError(f'{what}: the schema must have a format and layers')
    if type(schema['format']) is not int or schema['format'] != FORMAT:
        raise BundleError(
            f'{what} is of format {schema["format"]!r}; this version reads {FORMAT}. '
            'Upgrade vlaq_ros, or pack the model again'
        )
    layers, faults = {}, []
    entries = schema['layers']
    if not isinstance(entries, dict):
        raise BundleError(f'{what}: the layers of the schema are not a table')
    for name, entry in entries.items():
        try:
            layers[name] = _parse_layer(entry)
        except SchemeError as error:
            faults.append(f'{name}: {error}')
    if faults:
        raise BundleError(f'{what} describes layers that do not exist:\n  ' + '\n  '.join(faults))
    return layers


def save_model(model: nn.Module, path: Path) -> None:
    """
    Write a model, atomically; one packed layer at a time is unpacked.

    Tensors that the model holds under several names are written once, under the first.

    Raises:
        SchemeError: Layers or tensors were never loaded, all of them.
    """
    layers, others = dict(stored_layers(model)), _other_tensors(model)
    empty = [name for name, layer in layers.items() if layer.is_empty]
    if empty := empty + [name for name, tensor in others.items() if tensor.is_meta]:
        raise SchemeError(f'{len(empty)} part(s) were never loaded:\n  ' + '\n  '.join(empty))
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in others.items()}
    parts: list[Callable[[], Mapping[str, Tensor]]] = [lambda: others]
    for name, layer in layers.items():
        specs |= layer_specs(name, layer.layout, layer.bias is not None)
        parts.append(lambda name=name, layer=layer: _layer_tensors(name, layer))
    schema = json.dumps(model_schema(model), separators=(',', ':'))
    write_tensors(Path(path), specs, parts, {'format': 'pt', SCHEMA: schema})


def read_schema(path: Path) -> dict[str, StoredLayer]:
    """
    Return the packed layers of a file, without their tensors.

    Raises:
        BundleError: The file cannot be read, or is damaged or of another version.
    """
    with _open(path) as file:
        return _schema(TensorFile(file, str(path)))


def load_model(
    model: nn.Module, source: Path | BinaryIO, device: torch.device | str | None = None
) -> None:
    """
    Fill a model from a file, making packed layers of those that the file holds packed.

    The float layers that become packed are never filled, so the model may be built on the meta
    device; then the others take the place of their stand-ins, in the dtype of these. A model that
    was not loaded to the end must not be used.

    Args:
        model: With linear and convolution layers where the file has packed ones, or with packed
            layers of the same layout.
        source: Path, or an open file.
        device: Where packed layers, and tensors that were on the meta device, are put; the CPU
            when None. Others stay where they are.

    Raises:
        BundleError: The file is damaged, of another version, or does not hold exactly this model;
            every missing, unexpected, differing and non-finite tensor is listed.
        SchemeError: The packed layers do not fit those of the model, all of them.
    """
    if isinstance(source, str | Path):
        with _open(Path(source)) as file:
            _load(model, TensorFile(file, str(source)), torch.device(device or 'cpu'))
    else:
        _load(model, TensorFile(source, 'the file'), torch.device(device or 'cpu'))


def stored_layers(model: nn.Module) -> Iterator[tuple[str, MixedLinear]]:
    """Yield name and layer of everything that is stored packed, once each."""
    for name, module in model.named_modules():
        if isinstance(module, MixedLinear) and module.is_stored:
            yield name, module


def _load(model: nn.Module, file: TensorFile, device: torch.device) -> None:
    layers = _schema(file)
    modules = dict(model.named_modules())
    new = {n: stored for n, stored in layers.items() if not _is_ready(modules.get(n), stored)}
    prepare_empty(
        model,
        {name: stored.layout for name, stored in new.items()},
        {name: stored.activation_bits for name, stored in new.items()},
        [name for name in new if f'{name}.bias' in file.specs],
    )
    packed, others = dict(stored_layers(model)), _other_tensors(model)
    if unknown := [name for name in packed if name not in layers]:
        listed = '\n  '.join(unknown)
        raise BundleError(f'{file.what} does not describe packed layers of the model:\n  {listed}')
    _check_names(file, packed, others)
    faults = [fault for name in packed if (fault := _fill(file, name, packed[name], device))]
    for name, target in others.items():
        values = file.read(name).to(target.dtype)
        if values.is_floating_point() and not values.isfinite().all():
            faults.append(f'{name}: not finite')
        _put(model, name, target, values, device)
    if faults:
        raise BundleError(f'{file.what} holds what is no weight:\n  ' + '\n  '.join(faults))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if left := [name for name, tensor in tensors if tensor.is_meta]:
        listed = '\n  '.join(left)
        raise BundleError(
            f'{file.what} leaves tensors of the model without values; make them on a device that '
            f'holds values, or store them:\n  {listed}'
        )


def _schema(file: TensorFile) -> dict[str, StoredLayer]:
    if SCHEMA not in file.metadata:
        raise BundleError(f'{file.what} has no {SCHEMA!r} entry: no file of packed layers')
    try:
        schema = json.loads(file.metadata[SCHEMA])
    except (ValueError, RecursionError) as error:
        raise BundleError(f'{file.what} has a damaged schema: {error}') from error
    return parse_schema(schema, file.what)


def _check_names(
    file: TensorFile, packed: Mapping[str, MixedLinear], others: Mapping[str, Tensor]
) -> None:
    """Compare names, types and shapes with the model; parameters may be of another float type."""
    wanted: dict[str, TensorSpec] = {}
    for name, layer in packed.items():
        wanted |= layer_specs(name, layer.layout, layer.bias is not None)
    exact = set(wanted)
    wanted |= {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in others.items()}
    faults = [
        f'{name}: missing, expected {s}' for name, s in wanted.items() if name not in file.specs
    ]
    for name, spec in file.specs.items():
        if name not in wanted:
            faults.append(f'{name}: unexpected')
            continue
        expected = wanted[name]
        castable = name not in exact and spec.dtype.is_floating_point
        same_type = spec.dtype == expected.dtype or (castable and expected.dtype.is_floating_point)
        if spec.shape != expected.shape or not same_type:
            faults.append(f'{name}: {spec}, expected {expected}')
    if faults:
        raise BundleError(f'{file.what} does not fit the model:\n  ' + '\n  '.join(faults))


def _fill(file: TensorFile, name: str, layer: MixedLinear, device: torch.device) -> str:
    """Load one packed layer; return what is wrong with it."""
    names = [key for key, (_, shape) in layer.layout.tensors().items() if 0 not in shape]
    bias = None if layer.bias is None else file.read(f'{name}.bias')
    if bias is not None and not bias.isfinite().all():
        return f'{name}.bias: not finite'
    try:
        tensors = {key: file.read(f'{name}.{key}') for key in names}
        layer.fill(MixedWeight.from_tensors(layer.layout, tensors).to(device), bias)
    except SchemeError as error:
        return f'{name}: {error}'
    return ''


def _put(
    model: nn.Module, name: str, target: Tensor, values: Tensor, device: torch.device
) -> None:
    """Copy values into a tensor of the model, or let them replace one on the meta device."""
    if not target.is_meta:
        with torch.no_grad():
            target.copy_(values)
        return
    values = values.to(device)
    if isinstance(target, nn.Parameter):
        values = nn.Parameter(values, requires_grad=target.requires_grad)
    for alias, tensor in list(_named_tensors(model)):  # wherever the model holds it
        if tensor is target:
            parent, _, attribute = alias.rpartition('.')
            setattr(model.get_submodule(parent), attribute, values)


def _describe(layer: MixedLinear) -> dict[str, Any]:
    layout = layer.layout
    return {
        'shape': list(layout.shape),
        'group_size': layout.group_size,
        'counts': list(layout.counts),
        'activation_bits': layer.shared_precision.activation_bits,
    }


def _parse_layer(entry: Any) -> StoredLayer:
    if not isinstance(entry, dict) or set(entry) != set(KEYS):
        raise SchemeError(f'must have exactly {", ".join(KEYS)}')
    shape, counts = (
        tuple(v) if isinstance(v, list) else v for v in (entry['shape'], entry['counts'])
    )
    check_activation_bits(entry['activation_bits'])
    return StoredLayer(MixedLayout(shape, entry['group_size'], counts), entry['activation_bits'])


def layer_specs(name: str, layout: MixedLayout, bias: bool) -> dict[str, TensorSpec]:
    """Return the tensors of a packed layer under their full names."""
    specs = {key: TensorSpec(*spec) for key, spec in layout.tensors().items() if 0 not in spec[1]}
    if bias:
        specs['bias'] = TensorSpec(torch.float32, layout.shape[:1])
    return {f'{name}.{key}': spec for key, spec in specs.items()}


def _layer_tensors(name: str, layer: MixedLinear) -> dict[str, Tensor]:
    tensors = dict(layer.unpack().tensors())
    if layer.bias is not None:
        tensors['bias'] = layer.bias
    return {f'{name}.{key}': tensor for key, tensor in tensors.items()}


def _other_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return everything that is stored of a model but its packed layers, each tensor once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _named_tensors(model):
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MixedLinear):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f'{prefix}.{name}' if prefix else name, tensor


def _is_ready(module: nn.Module | None, stored: StoredLayer) -> bool:
    return isinstance(module, MixedLinear) and module.layout == stored.layout


def _open(path: Path) -> BinaryIO:
    try:
        return Path(path).open('rb')
    except OSError as error:
        raise BundleError(f'{path} cannot be read: {error.strerror}') from error
