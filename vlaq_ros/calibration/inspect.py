"""
`vlaq inspect`: what a bundle is, or how two differ.

Everything is read from the bundle after its files were verified; no weight is loaded and nothing
is run.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlaq_ros.calibration.artifact import LayerPlan, channel_histogram, mean_bits, read_plan
from vlaq_ros.calibration.level_tables import level_tables, motion_text
from vlaq_ros.policies.bundle import ALLOWED, Bundle, open_bundle
from vlaq_ros.policies.precision import precisions

DIGITS = 12  # of a digest, on the screen


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return what there is to know about a bundle as plain values."""
    spec = bundle.spec
    found = {
        'path': str(bundle.path),
        'sha256': bundle.digest,
        'name': spec.name,
        'family': spec.family,
        'license': spec.license,
        'cameras': {c.name: [c.height, c.width] for c in spec.cameras},
        'state': dict(zip(spec.state.names, spec.state.units)),
        'actions': list(spec.action.names),
        'horizon': spec.horizon,
        'control_rate_hz': 1.0 / spec.action.period_s,
        'heads': list(spec.heads),
        'precisions': list(precisions(bundle)),
        'files': {
            name: (bundle.path / name).stat().st_size
            for name in ALLOWED
            if (bundle.path / name).exists()
        },
        'packed': bundle.is_packed,
    }
    if bundle.is_packed:
        plan = read_plan(bundle)
        found |= {
            'origin': bundle.origin,
            'nested': bundle.is_nested,
            'mean_bits_per_weight': mean_bits(plan),
            'packed_bytes': sum(layer.nbytes for layer in plan),
            'packed_weights': sum(layer.weights for layer in plan),
            'channels': {str(w): count for w, count in channel_histogram(plan).items()},
            'roles': _roles(plan),
            'layers': {layer.name: layer.to_json() for layer in plan},
            'made': bundle.quantization,
        }
        levels = bundle.levels()
        if levels is not None:
            tables = level_tables(levels, spec.action)
            found['levels'] = {'motion': motion_text(levels), 'tables': [*map(list, tables)]}
    else:
        found['trained'] = spec.provenance
    return found


def _roles(plan: Sequence[LayerPlan]) -> dict[str, Any]:
    """Return role -> layers, weights, bits per weight and channels of each width."""
    by_role: dict[str, list[LayerPlan]] = {}
    for layer in plan:
        by_role.setdefault(layer.role, []).append(layer)
    return {
        role: {
            'layers': len(layers),
            'weights': sum(layer.weights for layer in layers),
            'bits_per_weight': mean_bits(layers),
            'channels': {str(w): n for w, n in channel_histogram(layers).items()},
            'activation_bits': sorted({layer.activation_bits for layer in layers}),
        }
        for role, layers in by_role.items()
    }


def bundle_text(found: Mapping[str, Any], layers: bool) -> str:
    """
    Return the description of one bundle for the screen.

    Args:
        found: From `describe_bundle`.
        layers: Whether every packed layer gets a line.
    """
    sizes = ', '.join(f'{name} {size:,} bytes' for name, size in found['files'].items())
    cameras = ', '.join(f'{name} {w} x {h}' for name, (h, w) in found['cameras'].items())
    lines = [
        f'{found["name"]} ({found["family"]}), licence {found["license"]}',
        f'sha256      {found["sha256"]}',
        f'files       {sizes}',
        f'sees        {cameras}; state {", ".join(found["state"])}',
        f'commands    {", ".join(found["actions"])}; {found["horizon"]} actions per chunk at '
        f'{found["control_rate_hz"]:g} Hz',
        f'heads       {", ".join(found["heads"])}',
        f'precisions  {", ".join(found["precisions"])}',
    ]
    if not found['packed']:
        lines += ['weights     float, nothing is packed', '', 'how it was made']
        return '\n'.join([*lines, *_indented(found['trained'])])
    nested = ', 8-bit channels readable at 4 bits' if found['nested'] else ''
    lines += [
        f'made of     {found["origin"]}{nested}',
        f'packed      {found["packed_weights"]:,} weights in {len(found["layers"])} layers, '
        f'{found["packed_bytes"]:,} bytes: {found["mean_bits_per_weight"]:.3f} bits per weight, '
        'scales included',
        f'channels    {_channels(found["channels"])}',
        '',
        *_aligned(_role_rows(found['roles'])),
    ]
    if layers:
        lines += ['', *_aligned(_layer_rows(found['layers']))]
    if 'levels' in found:
        lines += ['', f'levels      {found["levels"]["motion"]}']
        for title, header, rows in found['levels']['tables']:
            lines += ['', title, *(f'  {line}' for line in _aligned([header, *rows]))]
    return '\n'.join([*lines, '', 'how it was made', *_indented(found['made'])])


def compare_text(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return what differs between two bundles, for the screen."""
    difference = compare(first, second)
    if difference['same_files']:
        return 'the two are the same, byte for byte'
    lines = ['the same policy' if difference['same_policy'] else 'NOT made of the same policy']
    rows = [('', first['path'], second['path'])]
    for name, key, form in _COMPARED:
        cells = [form(found[key]) if key in found else '-' for found in (first, second)]
        rows.append((name, *cells))
    lines += ['', *_aligned(rows)]
    changed = difference['layers']
    if changed:
        rows = [('layer stored differently', 'bits', 'bits', 'channels', 'channels')]
        for name, (a, b) in changed.items():
            bits = [f'{x["bits_per_weight"]:.3f}' if x else 'float' for x in (a, b)]
            channels = [_channels(x['channels']) if x else '-' for x in (a, b)]
            rows.append((name, *bits, *channels))
        lines += ['', *_aligned(rows)]
    elif first['packed'] and second['packed']:
        lines += ['', 'every layer has the same widths in both; codes, scales or biases differ']
    return '\n'.join(lines)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs between two descriptions of `describe_bundle`."""
    layers = [found.get('layers', {}) for found in (first, second)]
    names = dict.fromkeys([*layers[0], *layers[1]])
    origins = [found.get('origin') or found['sha256'] for found in (first, second)]
    return {
        'same_files': first['sha256'] == second['sha256'],
        'same_policy': origins[0] == origins[1],
        'origins': origins,
        'layers': {
            name: (layers[0].get(name), layers[1].get(name))
            for name in names
            if layers[0].get(name) != layers[1].get(name)
        },
    }


def _number(value: float) -> str:
    return f'{value:,}' if isinstance(value, int) else f'{value:.3f}'


def _channels(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ', '.join(f'{100 * n / total:.1f} % at {w} bit' for w, n in counts.items())


_COMPARED = (
    ('sha256', 'sha256', lambda digest: digest[:DIGITS]),
    ('made of', 'origin', lambda digest: str(digest)[:DIGITS]),
    ('bits per weight', 'mean_bits_per_weight', _number),
    ('bytes of packed layers', 'packed_bytes', _number),
    ('bytes of all files', 'files', lambda files: _number(sum(files.values()))),
    ('channels', 'channels', _channels),
    ('method', 'made', lambda made: str(made.get('method', 'unknown'))),
)


def _role_rows(roles: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    yield 'part', 'layers', 'weights', 'bits', 'inputs', 'channels'
    for role, found in roles.items():
        inputs = '/'.join(map(str, found['activation_bits'])) + ' bit'
        numbers = (str(found['layers']), _number(found['weights']))
        bits = f'{found["bits_per_weight"]:.3f}'
        yield role, *numbers, bits, inputs, _channels(found['channels'])


def _layer_rows(layers: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    yield 'layer', 'part', 'out x in', 'group', 'bits', 'inputs', 'channels'
    for name, found in layers.items():
        rows, columns = found['shape']
        group = found['group_size']
        yield (
            name,
            found['role'],
            f'{rows} x {columns}',
            str(group) if group < columns else 'all',
            f'{found["bits_per_weight"]:.3f}',
            f'{found["activation_bits"]} bit',
            _channels(found['channels']),
        )


def _aligned(rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]


def _indented(values: Mapping[str, Any], depth: int = 1) -> Iterator[str]:
    """Yield plain values as indented lines; long lists are cut short."""
    space = '  ' * depth
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f'{space}{key}'
            yield from _indented(value, depth + 1)
        else:
            yield f'{space}{key}: {_short(value)}'


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f'{value:.6g}'
    text = ', '.join(map(_short, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else f'{text[:97]}...'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq inspect`."""
    parser.add_argument('bundle', help='folder, or name of a shipped bundle')
    parser.add_argument('other', nargs='?', help='a second one to compare it with')
    parser.add_argument('--layers', action='store_true', help='a line for every packed layer')
    parser.add_argument('--json', action='store_true', help='everything, as JSON')


def run(args: argparse.Namespace) -> int:
    """
    Print the description or the comparison; return the exit status.

    Raises:
        BundleError: A bundle is missing, damaged or not understood.
    """
    first = describe_bundle(open_bundle(args.bundle))
    if args.other is None:
        print(json.dumps(first, indent=1) if args.json else bundle_text(first, args.layers))
        return 0
    second = describe_bundle(open_bundle(args.other))
    if args.json:
        print(json.dumps({'first': first, 'second': second, **compare(first, second)}, indent=1))
    else:
        print(compare_text(first, second))
    return 0
