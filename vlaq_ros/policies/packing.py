"""
Packed bundles: a float bundle with its linear layers stored as codes.

A packed bundle has the spec, the network and the words of the bundle it was made of, whose digest
it records as its origin. What is not packed keeps its value, in float16 where that holds it
exactly. Before the bundle appears at its path it has been loaded and run: the actions it then gave
are its golden actions.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlaq_ros.errors import BundleError, SchemeError
from vlaq_ros.nn.store_file import save_model
from vlaq_ros.nn.surgery import prepare_empty
from vlaq_ros.policies.bundle import QUANTIZATION, Bundle, open_bundle, write_bundle
from vlaq_ros.policies.levels import BundleLevels
from vlaq_ros.policies.reference import golden_actions, load_float_model
from vlaq_ros.quant.mixed import MixedWeight


def write_packed_bundle(
    path: Path,
    bundle: Bundle,
    weights: Mapping[str, MixedWeight],
    activation_bits: Mapping[str, int],
    parameters: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
    nested: bool = False,
    levels: BundleLevels | None = None,
) -> Bundle:
    """
    Write a packed bundle; nothing appears at `path` unless it loads and infers.

    Args:
        path: Directory to create or replace.
        bundle: The float bundle it is made of.
        weights: Linear layer -> its packed weight. Other layers stay float.
        activation_bits: Layer -> bits its input is rounded to; 16 where not named.
        parameters: Other parameters with a new value, by name; also `<layer>.bias` of a packed
            layer, which need not have had one.
        provenance: Plain JSON values that say how it was made.
        nested: Whether its 8-bit channels may be read at 4 bits: they have a scale per group, and
            the error of both views was looked at.
        levels: What was measured of its levels.

    Returns:
        The written bundle.

    Raises:
        BundleError: The bundle is packed already, or has no golden instructions to try.
        SchemeError: Layers, parameters or layouts that do not fit the network, all of them.
    """
    golden = bundle.golden()
    if bundle.is_packed or golden is None:
        why = 'is packed already' if bundle.is_packed else 'has no golden.json'
        raise BundleError(f'{bundle.path} {why}: pack a float bundle with golden actions')
    model = packed_model(bundle, weights, activation_bits, parameters or {})
    record = {'origin': bundle.digest, 'nested': nested, **(provenance or {})}
    config = {**bundle.config, QUANTIZATION: record}
    table = None if levels is None else levels.to_json()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def weights_to(file: Path) -> None:
        save_model(model, file)

    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        draft = Path(folder) / 'draft'
        write_bundle(draft, bundle.spec, config, weights_to, levels=table)
        open_bundle(draft).levels()
        actions = golden_actions(open_bundle(draft), tuple(golden['instructions']))
    write_bundle(path, bundle.spec, config, weights_to, actions, table)
    return open_bundle(path)


def packed_model(
    bundle: Bundle,
    weights: Mapping[str, MixedWeight],
    activation_bits: Mapping[str, int],
    parameters: Mapping[str, Tensor],
) -> nn.Module:
    """
    Return the network of a float bundle with these layers packed; see `write_packed_bundle`.

    Raises:
        SchemeError: Layers, parameters or layouts that do not fit the network, all of them.
    """
    model = load_float_model(bundle)
    known = {**{f'{name}.bias': None for name in weights}, **dict(model.named_parameters())}
    shapes = {name: p.shape for name, p in known.items() if p is not None}
    offenders = [f'{name}: not in the network' for name in parameters if name not in known]
    offenders += [
        f'{name}: {list(value.shape)}, expected {list(shapes[name])}'
        for name, value in parameters.items()
        if name in shapes and value.shape != shapes[name]
    ]
    offenders += [
        f'{name}: not finite' for name, v in parameters.items() if not v.isfinite().all()
    ]
    if offenders:
        raise SchemeError('parameters that cannot be set:\n  ' + '\n  '.join(offenders))
    biases = {
        name: parameters.get(f'{name}.bias', model.get_submodule(name).bias)
        for name in weights
        if f'{name}.bias' in parameters or f'{name}.bias' in shapes
    }
    layouts = {name: weight.layout for name, weight in weights.items()}
    prepare_empty(model, layouts, activation_bits, biases)
    for name, weight in weights.items():
        model.get_submodule(name).fill(weight, biases.get(name))
    left = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            if name in left:
                left[name].copy_(value)
        for parameter in left.values():
            half = parameter.half()
            if torch.equal(half.float(), parameter):
                parameter.data = half
    return model
