"""
The drift of a recorded run as a page for people: `drift.md`, from the values of `drift_summary`.

What is not known is shown as `n/a`; it never becomes a zero.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOTHING = 'n/a'
_SHOWN = 10
_UNITS = {
    'position_per_step': 'm',
    'position_accumulated': 'm',
    'rotation_per_step': 'rad',
    'rotation_accumulated': 'rad',
    'window_position': 'm',
    'window_rotation': 'rad',
}


def page(values: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """
    Return the page.

    Args:
        values: See `drift_summary.summarize`.
        pictures: File -> title, in the order in which they are shown.
    """
    return '\n'.join(_page(values, pictures)) + '\n'


def table_rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of episodes with its heading first and the sum of all last."""
    head = [
        'episode',
        'chunks',
        'per step [mm]',
        'accumulated [mm]',
        'largest [mm]',
        'rotation [rad]',
        'gripper',
        'jerk ratio',
        'smoothness (reference)',
        'worst',
        'alarm / precision changes',
        'success',
    ]
    rows = [
        [f'{one["number"]} {one["title"]}', *_cells(one), _success(one['success'])]
        for one in values['episodes']
    ]
    return [head, *rows, ['all', *_cells(values['overall']), '']]


def sureness_text(values: Mapping[str, Any]) -> str:
    """Return how sure it is that the observations are those of the node."""
    judged, counts = values['overall']['judged'], values['overall']['sureness']
    proven, alike = counts.get('proven', 0), counts.get('alike', 0)
    if not values['why_no_replay']:
        text = (
            f'{proven} of {judged} observations are proven: the recorded bundle gives the '
            'recorded actions for them'
        )
        missed = '. The others may be off by an image or a state that had not arrived yet'
        return text + (missed if proven < judged else '')
    text = (
        f'Observations are not proven ({values["why_no_replay"]}); in {alike} of {judged} all '
        'inputs have the stamp of the chunk (sure in lockstep alone: some may have come late)'
    )
    rest = ', in the others those count that the recorder had got when the inference began'
    return text + (rest if alike < judged else '')


def _page(values: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    overall, reference = values['overall'], values['reference']
    yield f'# Drift of `{values["bag"]}`'
    yield ''
    mean = _mm(overall['position_accumulated_m'])
    yield (
        f'{overall["judged"]} of {overall["chunks"]} chunks judged against '
        f'`{reference["bundle"]}` at {reference["precision"]}: {mean} mm in the mean after '
        f'the {values["horizon"]} executed actions of a chunk, at most '
        f'{_mm(overall["largest_accumulated_m"])} mm.'
    )
    yield ''
    yield from _facts(values)
    yield '## By episode'
    yield ''
    yield from _table(table_rows(values))
    yield (
        'Accumulated: distance of the poses after the executed actions of one chunk, both from '
        'the same start. Smoothness is the spectral arc length, closer to 0 is smoother. `n/a`: '
        'the policy does not command it, or nothing is known.'
    )
    yield ''
    yield from _levels(values)
    yield from _without(overall)
    yield from _live(values['live'])
    for name, title in pictures.items():
        yield from (f'## {title}', '', f'![{title}]({name})', '')
    yield from _alarms(values)


def _facts(values: Mapping[str, Any]) -> Iterator[str]:
    recorded, limits = values['recorded_with'], values['limits']
    if recorded['bundle']:
        ran = ', '.join(recorded['precisions']) or 'unknown precision'
        yield f'- Recorded with `{recorded["bundle"]}` ({recorded["bundle_hash"][:12]}) at {ran}'
    reference = values['reference']
    yield f'- Reference bundle sha256: `{reference["bundle_hash"]}`'
    yield (
        f'- Window {values["window_s"]:g} s; WARN above {1e3 * limits["warn_m"]:g} mm, '
        f'{limits["warn_rad"]:g} rad or {limits["warn_gripper"]:.0%} of gripper steps, ERROR '
        f'above {1e3 * limits["error_m"]:g} mm, {limits["error_rad"]:g} rad or '
        f'{limits["error_gripper"]:.0%}'
    )
    yield f'- {sureness_text(values)}'
    for note in values['notes']:
        yield f'- **Note**: {note}'
    for topic, why in values['trouble'].items():
        yield f'- **Not understood**: {topic}: {why}'
    for topic, count in values['dropped'].items():
        yield f'- {count} messages of {topic} could not be used'
    yield ''


def _levels(values: Mapping[str, Any]) -> Iterator[str]:
    yield '## By precision level'
    yield ''
    yield from _table(
        [
            ['level', 'chunks', 'accumulated [mm]', 'largest [mm]'],
            *(
                [
                    name,
                    str(one['judged']),
                    _mm(one['position_accumulated_m']),
                    _mm(one['largest_accumulated_m']),
                ]
                for name, one in values['levels'].items()
            ),
        ]
    )
    groups = values['overall']['occupancy']
    yield 'Share of the chunks at each level, by module group:'
    yield ''
    yield from _table(
        [
            ['group', 'levels'],
            *(
                [group, ', '.join(f'{name} {share:.0%}' for name, share in levels.items())]
                for group, levels in groups.items()
            ),
        ]
    )


def _without(overall: Mapping[str, Any]) -> Iterator[str]:
    if not overall['without_reading']:
        return
    yield '## Chunks that could not be judged'
    yield ''
    for why, count in sorted(overall['without_reading'].items(), key=lambda item: -item[1]):
        yield f'- {count} x {why}'
    yield ''


def _live(live: Mapping[str, Any]) -> Iterator[str]:
    yield '## What the node reported'
    yield ''
    text = live['verdict']
    yield f'**{text[0].upper()}{text[1:]}.**'
    yield ''
    if live['fields']:
        yield from _table(
            [
                ['field', 'numbers', 'largest difference', 'live', 'offline', 'sequence'],
                *(
                    [
                        name + (f' [{_UNITS[name]}]' if name in _UNITS else ''),
                        str(one['numbers']),
                        f'{one["largest_difference"]:.3g}',
                        f'{one["live"]:.9g}',
                        f'{one["offline"]:.9g}',
                        str(one['sequence']),
                    ]
                    for name, one in live['fields'].items()
                ),
            ]
        )
    for why, count in live['left_out'].items():
        yield f'- not compared: {count} x {why}'
    for one in live['wrong'][:_SHOWN]:
        yield (
            f'- **differs**: {one["field"]} of chunk {one["sequence"]} (epoch {one["epoch"]}): '
            f'{one["live"]:.9g} live, {one["offline"]:.9g} now (observation {one["sureness"]})'
        )
    if live['remark']:
        yield f'- {live["remark"]}'
    if live['remark'] or live['left_out'] or live['wrong']:
        yield ''


def _alarms(values: Mapping[str, Any]) -> Iterator[str]:
    chunks = [one for one in values['chunks'] if one.get('level', 'OK') != 'OK']
    if not chunks:
        return
    yield '## Chunks above a limit'
    yield ''
    start_ns = values['chunks'][0]['observed_ns']
    yield from _table(
        [
            ['time [s]', 'chunk', 'level', 'precision', 'accumulated [mm]', 'why'],
            *(
                [
                    f'{(one["observed_ns"] - start_ns) * 1e-9:.2f}',
                    str(one['sequence']),
                    one['level'],
                    one['precision'],
                    _mm(one['position_accumulated_m']),
                    one['reason'],
                ]
                for one in chunks[: 5 * _SHOWN]
            ),
        ]
    )


def _cells(one: Mapping[str, Any]) -> list[str]:
    return [
        f'{one["judged"]} of {one["chunks"]}',
        _mm(one['position_per_step_m']),
        _mm(one['position_accumulated_m']),
        _mm(one['largest_accumulated_m']),
        _number(one['rotation_accumulated_rad'], '.4f'),
        _number(one['gripper_disagreement'], '.1%'),
        _number(one['jerk_ratio'], '.3f'),
        f'{_number(one["smoothness"], ".2f")} ({_number(one["reference_smoothness"], ".2f")})',
        one['worst_level'],
        f'{one["level_changes"]} / {one["precision_changes"]}',
    ]


def _success(value: bool | None) -> str:
    return NOTHING if value is None else 'yes' if value else 'no'


def _mm(value_m: float) -> str:
    return _number(1e3 * value_m, '.3f')


def _number(value: float, form: str) -> str:
    return NOTHING if math.isnan(value) else format(value, form)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *rest = rows
    yield f'| {" | ".join(head)} |'
    yield f'|{"---|" * len(head)}'
    for row in rest:
        yield f'| {" | ".join(row)} |'
    yield ''
