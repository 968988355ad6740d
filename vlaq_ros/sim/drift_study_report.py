"""The drift study as tables, JSON and one picture."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlaq_ros.control.drift_alarm import DriftLevel
from vlaq_ros.errors import MissingDependencyError
from vlaq_ros.kinematics.drift import CLEARLY_APART
from vlaq_ros.sim.drift_detection import Detections, FalseAlarms, Outcome
from vlaq_ros.sim.drift_readings import CALIBRATED, FULL_PRECISION, SOURCES
from vlaq_ros.sim.drift_series import TURNING_STREAM
from vlaq_ros.sim.drift_study_results import ALARMS, Judged, StudyResults, WindowResult
from vlaq_ros.sim.faults import FAULTS, TURNING
from vlaq_ros.sim.results import write_atomically
from vlaq_ros.sim.table import NOTHING, Table
from vlaq_ros.sim.tables import without_nan

PICTURE = 'delay.png'
_COLOURS = ('#9ecae1', '#4292c6', '#08519c', '#d55e00', '#74c476', '#238b45')
_DPI = 150


def write_study(folder: Path, results: StudyResults, run: dict[str, Any]) -> list[Table]:
    """Write `results.json` and `study.md` to `folder` and return the tables."""
    tables = make_tables(results)
    values = without_nan({'run': run, **results.to_json()})
    write_atomically(folder / 'results.json', json.dumps(values, indent=1, allow_nan=False) + '\n')
    head = [
        '## Injected errors and what notices them',
        '',
        f'- Command: `{run["command"]}`',
        f'- Machine: {run["cpu"]}, {run["cores"]} cores, {run["system"]}',
        f'- Bundle `{run["bundle"]}`, sha256 `{run["bundle_sha256"]}`; store sha256 '
        f'`{run["store_sha256"]}`',
        f'- Versions: {", ".join(f"{name} {number}" for name, number in run["versions"].items())}',
        '',
    ]
    write_atomically(
        folder / 'study.md', '\n'.join([*head, *(table.to_markdown() for table in tables)])
    )
    return tables


def make_tables(results: StudyResults) -> list[Table]:
    """Return the tables: limits, three sets of them compared, each window, what errors cost."""
    tables = [_limits(results), _compared(results)]
    for window in results.windows:
        name = f'with the limits of each level, window {window.window_s:g} s'
        tables += [
            _detection(f'Detection {name}', results, window.by_own),
            _false(f'False alarms {name}', results, window.by_own),
        ]
    return [*tables, _known(results), _success(results)]


def _compared(results: StudyResults) -> Table:
    rows = []
    for window in results.windows:
        sets = {
            'each level its own': window.by_own,
            'one for all levels': window.by_chosen,
            'present default': window.by_default,
        }
        for name, judged in sets.items():
            wrong = [
                f'{100 * judged.false_alarms["shadow", level, DriftLevel.WARN].per_episode:.1f} %'
                for level in results.levels
            ]
            found = [
                _short(judged.detections['shadow', f, DriftLevel.WARN]) for f in results.faults
            ]
            rows.append((name, f'{window.window_s:g} s', *wrong, *found))
    return Table(
        'Sets of limits compared: WARN, source shadow',
        (
            *('limits', 'window'),
            *(f'false, {level}' for level in results.levels),
            *results.faults,
        ),
        tuple(rows),
        (
            'false: evaluation-seed episodes without an error that have an alarm; errors (at '
            f'{results.levels[0]}): share noticed, median delay. Both kinds of alarm, of the '
            'other sources and per hour, are in the JSON file for every set.',
        ),
    )


def _short(found: Detections) -> str:
    if not found.detected:
        return '0 %'
    return f'{100 * found.rate:.0f} %, {found.delay_s:.2f} s'


def _limits(results: StudyResults) -> Table:
    rows = []
    for window in results.windows:
        chosen = {'all levels': window.chosen, **window.chosen_by_level}
        for name, one in chosen.items():
            for signal, (quantile, largest) in one.highest.items():
                rows.append(
                    (
                        f'{window.window_s:g} s',
                        name,
                        signal,
                        f'{_shown(quantile, signal)} / {_shown(largest, signal)}',
                        _shown(getattr(one.limits, f'warn_{signal}'), signal),
                        _shown(getattr(one.limits, f'error_{signal}'), signal),
                    )
                )
    return Table(
        'Limits chosen on training-seed episodes without an error',
        ('window', 'level', 'signal', '99 % / largest', 'warn', 'error'),
        tuple(rows),
        (
            'warn: 99 % quantile over the episodes of the largest reading in an episode; error: '
            'one and a half times the largest reading of all; all levels: the largest that one of '
            'them needs. m: position accumulated over one chunk, mean over the window; gripper: '
            'share of steps that disagree; rad: of the synthetic stream with rotation. Rounded up '
            'to two digits; where no episode disagreed the default stays.',
        ),
    )


def _detection(title: str, results: StudyResults, judged: Judged) -> Table:
    keys = [(source, fault) for fault in results.faults for source in (*SOURCES, CALIBRATED)]
    keys += [(source, TURNING.name) for source in (TURNING_STREAM, CALIBRATED)]
    rows = []
    for source, fault in keys:
        warn, error = (judged.detections[source, fault, alarm] for alarm in ALARMS)
        rows.append((fault, source, *_noticed(warn), *_noticed(error)))
    return Table(
        title,
        ('error', 'source', 'WARN', 'chunks', 'delay [s]', 'ERROR', 'chunks', 'delay [s]'),
        tuple(rows),
        tuple(_detection_notes(results, judged)),
    )


def _noticed(found: Detections) -> tuple[str, str, str]:
    if not found.detected:
        return f'0/{found.counted}', NOTHING, NOTHING
    return (
        f'{found.detected}/{found.counted}',
        f'{found.chunks:g}',
        f'{found.delay_s:.2f} ({found.delay_p90_s:.2f})',
    )


def _detection_notes(results: StudyResults, judged: Judged) -> Iterator[str]:
    yield (
        f'Errors begin with a random inference of an episode at {results.levels[0]}: noticed / '
        'injected, without those that began during an alarm and those that change nothing '
        'noticeable; medians over the noticed ones from the first wrong observation, in brackets '
        'the 90 % quantile. An inference takes no control time here; remote answers come one '
        f'chunk late. {_texts(results)}'
    )
    for fault in results.faults:
        found = judged.detections['shadow', fault, DriftLevel.WARN]
        if found.nothing:
            yield (
                f'{fault}, {Outcome.NOTHING}: {found.nothing} of {found.injected} episodes, in '
                'which the error changes the gripper alone and in no action by '
                f'{CLEARLY_APART:g} of its way. They are not counted.'
            )
    yield (
        f'{TURNING.name}: {TURNING.text}, in a synthetic stream (translations of an episode, '
        'smooth random turns), since the policy commands no rotation.'
    )
    blind = [f for f in results.faults if not _is_noticed(judged, 'predicted', f)]
    if blind:
        yield (
            f'predicted ({results.model}) does not notice {_all_of(blind, results.faults)}: '
            'they begin while the robot works, and such errors reach no prediction. It knows the '
            'level, the motion, and what calibration measured.'
        )
    seen = [f for f in results.faults if f not in blind]
    if seen:
        yield (
            f'predicted has alarms during {", ".join(seen)}: of the level and the motion, not of '
            'the error; it measures nothing.'
        )
    known = [f'{f} {_share(judged, CALIBRATED, f)}' for f in (*results.faults, TURNING.name)]
    yield (
        f'{CALIBRATED}: the error was there when the policy was calibrated. The error model is '
        f'fitted to the training-seed episodes at {results.levels[0]} with the error in every '
        'action, and read on the healthy twins of the judged episodes with the error in every '
        'action, open loop; delays count from the first chunk. The limits are those without an '
        f'error. Share that reaches WARN, ERROR: {"; ".join(known)}.'
    )
    yield (
        'higher reads the same store as the judged policy: it cannot see what is wrong with the '
        'stored weights themselves, which these errors are not.'
    )


def _is_noticed(judged: Judged, source: str, fault: str) -> bool:
    return judged.detections[source, fault, DriftLevel.WARN].detected > 0


def _share(judged: Judged, source: str, fault: str) -> str:
    rates = (judged.detections[source, fault, alarm].rate for alarm in ALARMS)
    return ', '.join(NOTHING if math.isnan(rate) else f'{100 * rate:.0f} %' for rate in rates)


def _all_of(names: Sequence[str], everything: Sequence[str]) -> str:
    return 'any of the errors' if len(names) == len(everything) else ', '.join(names)


def _texts(results: StudyResults) -> str:
    return '; '.join(f'{name}: {FAULTS[name].text}' for name in results.faults) + '.'


def _false(title: str, results: StudyResults, judged: Judged) -> Table:
    keys = [(s, level) for s in (*SOURCES, TURNING_STREAM) for level in results.levels]
    rows = []
    for source, level in keys:
        warn, error = (judged.false_alarms[source, level, alarm] for alarm in ALARMS)
        rows.append((level, source, *_alarmed(warn), *_alarmed(error)))
    hours = judged.false_alarms[SOURCES[0], results.levels[0], DriftLevel.WARN].hours
    return Table(
        title,
        ('level', 'source', 'WARN: episodes', 'per hour', 'ERROR: episodes', 'per hour'),
        tuple(rows),
        (
            'Evaluation-seed episodes without an error. episodes: with at least one alarm / all; '
            f'per hour: alarms per hour of motion (at {results.levels[0]}: {60 * hours:.1f} '
            'minutes, so one alarm more or less moves it by '
            f'{1 / hours:.0f}).',
        ),
    )


def _alarmed(found: FalseAlarms) -> tuple[str, str]:
    share = 100 * found.per_episode
    return f'{found.alarmed}/{found.episodes} = {share:.1f} %', f'{found.per_hour:.0f}'


def _known(results: StudyResults) -> Table:
    rows = []
    for fault, one in results.known.items():
        low, median, high, least, most, expected = (
            _shown(value, one.signal) for value in (*one.measured, *one.predicted, one.expected)
        )
        predicted = least if least == most else f'{least} to {most}'
        rows.append((fault, one.signal, predicted, expected, f'{median} ({low} to {high})'))
    return Table(
        f'{CALIBRATED}: how close it comes, single chunks',
        ('error', 'signal', 'predicted', 'measured: mean', 'median (5 to 95 %)'),
        tuple(rows),
        (
            'Both of the same chunks, with the error in every action. mean: root mean square of '
            'm and rad, as a prediction is one. A prediction follows the level, the phase and the '
            'motion: where it is one number, it is a verdict about the level, and the same in '
            'every episode.',
        ),
    )


def _success(results: StudyResults) -> Table:
    rows = [
        (level, fault or 'none', f'{solved}/{episodes} = {100 * solved / episodes:.1f} %')
        for (level, fault), (solved, episodes) in results.success.items()
    ]
    return Table(
        'What the errors cost: success of the judged episodes',
        ('level', 'error', 'success'),
        tuple(rows),
        (f'Nothing reacts to an alarm here. Reference of shadow and remote: {FULL_PRECISION}.',),
    )


def _shown(value: float, signal: str) -> str:
    if signal == 'm':
        return f'{1e3 * value:.2g} mm'
    return f'{value:.2g} rad' if signal == 'rad' else f'{100 * value:.3g} %'


def draw_study(folder: Path, results: StudyResults) -> Path:
    """
    Write the picture, false alarms against delay, to `folder` and return its path.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f'matplotlib cannot be imported ({error})') from error
    figure = Figure(figsize=(1.0 + 4.4 * len(results.windows), 4.2), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(results.windows), sharey=True, squeeze=False)[0]
    for axes, window in zip(panels, results.windows):
        _draw_window(axes, window, results.faults)
    panels[0].set_ylabel('median delay to WARN [s of control time]')
    panels[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f'Source shadow, {results.levels[0]}: limits from strict (right) to loose (left)',
        x=0.01,
        ha='left',
        fontsize=11,
    )
    figure.savefig(folder / PICTURE, dpi=_DPI)
    return folder / PICTURE


def _draw_window(axes: Any, window: WindowResult, faults: Sequence[str]) -> None:
    wrong = [100 * point.false_per_episode for point in window.sweep]
    for fault, colour in zip(faults, _COLOURS * len(faults)):
        delays = [point.delay_s[fault] for point in window.sweep]
        shown = [(x, y) for x, y in zip(wrong, delays) if math.isfinite(y)]
        if shown:
            axes.plot(*zip(*shown), 'o-', color=colour, markersize=3, linewidth=1.5, label=fault)
    chosen = min(window.sweep, key=lambda point: abs(point.factor - 1.0))
    axes.axvline(100 * chosen.false_per_episode, color='0.5', linewidth=1, linestyle=':')
    axes.set_xscale('symlog', linthresh=1.0)
    axes.set_xlim(-0.1, 100)
    axes.set_ylim(bottom=-0.02)
    axes.set_xlabel('healthy episodes with a false alarm [%]')
    axes.set_title(
        f'window {window.window_s:g} s (dotted: chosen limits of the level)',
        loc='left',
        fontsize=9,
    )
    axes.grid(color='0.92')
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
