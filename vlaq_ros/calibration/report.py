"""
The report of a calibration: what was decided, what it costs, and what it is worth.

`report.md` for people, `report.json` with the numbers behind every table and picture. Errors are
those of held-out samples, in the units of the actions, against the full-precision policy.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlaq_ros.calibration.allocation import MENU
from vlaq_ros.calibration.artifact import LayerPlan, channel_histogram, mean_bits, plan_of
from vlaq_ros.calibration.checkpoint import plain
from vlaq_ros.calibration.level_tables import level_page, markdown_table
from vlaq_ros.calibration.pipeline import Actions, Calibrated
from vlaq_ros.calibration.verification import HeadReport
from vlaq_ros.errors import MissingDependencyError
from vlaq_ros.kinematics.drift import integrate
from vlaq_ros.policies.bundle import WEIGHTS
from vlaq_ros.types import ActionSpec

REPORT = 'report.md'
NOTHING = '-'
PICTURES = {
    'bits.png': 'Bits of every layer',
    'sensitivity.png': 'What rounding a whole layer would cost the actions',
    'errors.png': 'Error of each action dimension on held-out samples',
    'drift.png': 'Drift along a chunk on held-out samples',
}


def write_report(folder: Path, found: Calibrated, spent_s: Mapping[str, float]) -> Path:
    """
    Write `report.md`, `report.json` and, where matplotlib is installed, pictures.

    Args:
        folder: Created; an older report in it is replaced file by file.
        found: The calibration.
        spent_s: Stage -> seconds.

    Returns:
        The page.
    """
    from vlaq_ros.calibration.report_plots import draw_pictures

    folder.mkdir(parents=True, exist_ok=True)
    values = report_values(found, spent_s)
    text = json.dumps(plain(values), indent=1, allow_nan=False) + '\n'
    (folder / 'report.json').write_text(text, encoding='utf-8')
    try:
        pictures = draw_pictures(folder, values)
    except MissingDependencyError:
        pictures = []
    page = '\n'.join(_page(values, found, [path.name for path in pictures]))
    (folder / REPORT).write_text(page + '\n', encoding='utf-8')
    return folder / REPORT


def report_values(found: Calibrated, spent_s: Mapping[str, float]) -> dict[str, Any]:
    """Return the numbers behind every table and picture."""
    plan = plan_of(found.result.weights, found.result.activation_bits)
    spec = found.context.spec
    variants: dict[str, Mapping[str, HeadReport]] = {}
    method, bits = found.record['method'], {}
    if found.nearest is not None:
        uniform = found.nearest[0]
        rounded = f'{uniform.provenance["bits"]} bits to nearest'
        variants[rounded] = found.nearest[1]
        bits[rounded] = uniform.mean_bits_per_weight
    bits[method] = found.result.mean_bits_per_weight
    if found.verification.promoted:
        variants[f'{method}, before stepping back'] = found.before
    variants[method] = found.verification.heads
    curves = {method: drift_curves(found.actions, found.reference, spec)}
    if found.nearest is not None:
        curves = {rounded: drift_curves(found.nearest_actions, found.reference, spec), **curves}
    return {
        'record': dict(found.record),
        'layers': {layer.name: layer.to_json() for layer in plan},
        'roles': dict(_roles(plan)),
        'float_layers': [n for n in found.context.layers if n not in found.result.weights],
        'sensitivity': {
            name: dict(zip(map(str, MENU), layer.cost.sum(0).tolist()))
            for name, layer in found.sensitivity.items()
        },
        'dimensions': [list(pair) for pair in zip(spec.names, spec.units)],
        'heads': {
            name: {head: dict(vars(report)) for head, report in heads.items()}
            for name, heads in variants.items()
        },
        'bits': bits,
        'drift_curves': curves,
        'spent_s': dict(spent_s),
        'levels': None if found.levels is None else found.levels.to_json(),
    }


def drift_curves(
    actions: Actions, reference: Actions, spec: ActionSpec
) -> dict[str, list[list[float]]]:
    """
    Return head -> quartiles [3, steps] of the distance between the poses after each step [m].

    Args:
        actions: What the robot would do, batch by batch.
        reference: The same at full precision.
        spec: What the actions mean.
    """
    curves = {}
    for head in reference[0]:
        distances = []
        for found, exact in zip(actions, reference):
            both = (chunks[head].double().numpy() for chunks in (found, exact))
            for pair in zip(*both):
                poses, poses_ref = (integrate(chunk, spec) for chunk in pair)
                steps = zip(poses, poses_ref)
                distances.append([np.linalg.norm(a.position - b.position) for a, b in steps])
        curves[head] = np.quantile(np.array(distances), (0.25, 0.5, 0.75), axis=0).tolist()
    return curves


def _roles(plan: Sequence[LayerPlan]) -> Iterator[tuple[str, dict[str, Any]]]:
    for role in dict.fromkeys(layer.role for layer in plan):
        layers = [layer for layer in plan if layer.role == role]
        channels = channel_histogram(layers)
        yield (
            role,
            {
                'layers': len(layers),
                'weights': sum(layer.weights for layer in layers),
                'bits_per_weight': mean_bits(layers),
                'channels': {str(width): count for width, count in channels.items()},
            },
        )


def _page(values: Mapping[str, Any], found: Calibrated, pictures: list[str]) -> Iterator[str]:
    record = values['record']
    verdict = 'within the tolerance' if record['within_tolerance'] else 'MISSES the tolerance'
    yield f'# Calibration of `{found.bundle.spec.name}` with {record["method"]}: {verdict}'
    yield ''
    yield f'{record["verdict"]}.'
    yield ''
    yield from _facts(record, found)
    yield from _sizes(values, found)
    yield from _errors(values)
    yield from _prediction(record)
    for name in pictures:
        yield from (f'## {PICTURES[name]}', '', f'![{PICTURES[name]}]({name})', '')
    if found.levels is not None:
        yield from level_page(found.levels, found.context.spec)
    yield from _steps_back(record)
    yield from _samples(record)
    yield from _time(values)


def _facts(record: Mapping[str, Any], found: Calibrated) -> Iterator[str]:
    group = record['group_size']
    scale = 'one scale per output channel' if group is None else f'groups of {group}'
    bags = ', '.join(f'`{one["name"]}`' for one in record['samples_drawn']['recordings'])
    versions = ', '.join(f'{name} {number}' for name, number in record['software'].items())
    yield f'- Packed bundle sha256: `{found.bundle.digest}`'
    yield f'- Made of: `{found.bundle.origin}`'
    yield (
        f'- Budget {record["budget_bits"]:g} bits per weight, {scale}, inputs of '
        f'{record["activation_bits"]} bits, seed {record["seed"]}'
    )
    yield f'- Bags: {bags}'
    yield f'- Versions: {versions}'
    if record['options']:
        options = ', '.join(f'{name}={value}' for name, value in record['options'].items())
        yield f'- Options: {options}'
    if record['mean_bits_per_weight'] > record['budget_bits'] * (1 + 1e-9):
        yield (
            f'- **Above the budget**: this layout has a width of its own and takes '
            f'{record["mean_bits_per_weight"]:.3f} bits per weight.'
        )
    yield ''


def _sizes(values: Mapping[str, Any], found: Calibrated) -> Iterator[str]:
    record = values['record']
    weights = sum(role['weights'] for role in values['roles'].values())
    before, after = ((b.path / WEIGHTS).stat().st_size for b in (found.origin, found.bundle))
    yield '## Size'
    yield ''
    yield from markdown_table(
        ('', 'before', 'after', 'share'),
        [
            (
                'quantized layers [bytes]',
                f'{4 * weights:,} (float32, as they run)',
                f'{record["packed_bytes"]:,}',
                f'{100 * record["packed_bytes"] / (4 * weights):.1f} %',
            ),
            (
                'bits per weight, scales included',
                '32',
                f'{record["mean_bits_per_weight"]:.3f}',
                f'{100 * record["mean_bits_per_weight"] / 32:.1f} %',
            ),
            (
                'weights file, with all that stays float [bytes]',
                f'{before:,} (float16)',
                f'{after:,}',
                f'{100 * after / before:.1f} %',
            ),
        ],
    )
    yield from markdown_table(
        ('part', 'layers', 'weights', 'bits per weight', *(f'{w} bit' for w in MENU)),
        [
            (
                role,
                str(one['layers']),
                f'{one["weights"]:,}',
                f'{one["bits_per_weight"]:.3f}',
                *(_share(one['channels'], width) for width in MENU),
            )
            for role, one in values['roles'].items()
        ],
    )
    if values['float_layers']:
        all_bits = record['mean_bits_with_float_layers']
        yield (
            f'Left float by the method: {", ".join(values["float_layers"])}. With these '
            f'counted as 16 bits, it takes {all_bits:.3f} bits per weight.'
        )
        yield ''


def _errors(values: Mapping[str, Any]) -> Iterator[str]:
    dimensions = values['dimensions']
    yield '## Action error on held-out samples, against full precision'
    yield ''
    rows, drifts = [], []
    for name, heads in values['heads'].items():
        for head, report in heads.items():
            cells = [
                f'{_physical(error, unit)} ({_physical(worst, unit)})'
                for (_, unit), error, worst in zip(dimensions, report['error'], report['worst'])
            ]
            rows.append((f'{name}: {head}', *cells))
            drifts.append(
                (
                    f'{name}: {head}',
                    _physical(report['step_m'], 'm'),
                    _physical(report['drift_m'], 'm'),
                    _physical(report['drift_rad'], 'rad'),
                    _percent(report['gripper']),
                )
            )
    header = (f'{name} [{_unit(unit)}]' for name, unit in dimensions)
    yield 'Mean absolute error of a step, largest in brackets:'
    yield ''
    yield from markdown_table(('', *header), rows)
    samples = next(iter(next(iter(values['heads'].values())).values()))['samples']
    yield f'Of the pose, mean over {samples} chunks:'
    yield ''
    drift = ('', 'per step [mm]', 'after a chunk [mm]', 'after a chunk [mrad]', 'gripper differs')
    yield from markdown_table(drift, drifts)
    listed = ', '.join(f'{name} {number:.3f}' for name, number in values['bits'].items())
    yield (
        f'Bits per weight, scales included: {listed}. Rounding to nearest takes the widest '
        'uniform width in the budget. The drift is that of actions composed from one start.'
    )
    yield ''


def _prediction(record: Mapping[str, Any]) -> Iterator[str]:
    yield '## Predicted and verified'
    yield ''
    yield (
        'Root mean square action error of a step, each dimension divided by its standard '
        f'deviation: **{record["predicted_error"]:.4f}** predicted by adding up the single '
        'sensitivities of all channels, rounded to nearest, on the calibration samples; '
        f'**{record["verified_error"]:.4f}** with all layers together on the held-out samples. '
        'Only the second is proof: errors of layers neither add up nor stay apart.'
    )
    yield ''


def _steps_back(record: Mapping[str, Any]) -> Iterator[str]:
    if not record['promoted']:
        return
    yield '## Steps back towards more bits'
    yield ''
    rows = [(name, f'{a:.3f}', f'{b:.3f}') for name, a, b in record['promoted']]
    yield from markdown_table(('layer', 'bits before', 'bits after'), rows)


def _samples(record: Mapping[str, Any]) -> Iterator[str]:
    drawn = record['samples_drawn']
    yield '## Samples'
    yield ''
    rows = []
    for name in ('calibration', 'held_out'):
        one = drawn[name]
        phases = ', '.join(f'{phase} {count}' for phase, count in one['phases'].items())
        counts = (one['samples'], len(one['instructions']), len(one['episodes']))
        rows.append((name.replace('_', '-'), *map(str, counts), phases))
    yield from markdown_table(('', 'samples', 'instructions', 'episodes', 'phases'), rows)
    for one in drawn['recordings']:
        for loss in one['losses']:
            yield f'- `{one["name"]}`: {loss}'
        for file, digest in one['sha256'].items():
            yield f'- `{one["name"]}/{file}` sha256 `{digest}`'
    yield ''


def _time(values: Mapping[str, Any]) -> Iterator[str]:
    spent = {stage: s for stage, s in values['spent_s'].items() if stage != 'report'}
    listed = ', '.join(f'{stage} {seconds:.1f} s' for stage, seconds in spent.items())
    yield f'Time: {listed}.'


def _unit(unit: str) -> str:
    return {'m': 'mm', 'rad': 'mrad'}.get(unit, 'of 1')


def _physical(value: float | None, unit: str) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    return f'{value:.4f}' if unit == '1' else f'{1e3 * value:.3f}'


def _percent(share: float | None) -> str:
    return NOTHING if share is None or not math.isfinite(share) else f'{100 * share:.2f} %'


def _share(channels: Mapping[str, int], width: int) -> str:
    count = channels.get(str(width), 0)
    return f'{100 * count / sum(channels.values()):.1f} %' if count else NOTHING
