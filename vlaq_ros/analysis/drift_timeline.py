"""The picture of drift over time, with limits, alarms, levels of precision and the gripper."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.analysis.drift_measure import DriftRun, Judged
from vlaq_ros.analysis.drift_style import (
    DPI,
    ERROR,
    QUANTIZED,
    REFERENCE,
    SMALLEST_MM,
    WARN,
    level_colours,
    level_handles,
    new_figure,
    plain,
    text_colour,
)
from vlaq_ros.analysis.drift_summary import alarm_changes
from vlaq_ros.policies.drift_monitor import PREDICTED

_PAUSE_S = 0.4
_UNDECIDED = 0.1  # around half open, where a gripper hovers
_MOST_EPISODES = 24
_LETTER = 0.009  # width of a letter of a title, as a share of the axis


@dataclass(frozen=True)
class TimeAxis:
    """
    Seconds since the first chunk, with the pauses between episodes shortened.

    Attributes:
        starts_ns, ends_ns: Of each episode; the last action of an episode belongs to it.
        offsets_s: Where each episode begins on the axis.
    """

    starts_ns: NDArray[np.int64]
    ends_ns: NDArray[np.int64]
    offsets_s: NDArray[np.float64]

    @classmethod
    def of(cls, run: DriftRun) -> 'TimeAxis':
        """Return the axis of a run."""
        executed_ns = run.checked.horizon * run.checked.bundle.spec.action.period_ns
        starts = np.array([one.start_ns for one in run.episodes], dtype=np.int64)
        ends = np.array([one.end_ns + executed_ns for one in run.episodes], dtype=np.int64)
        ends[:-1] = np.minimum(ends[:-1], np.maximum(starts[1:], starts[:-1] + 1))
        gaps = np.minimum((starts[1:] - ends[:-1]) * 1e-9, _PAUSE_S)
        lengths = (ends - starts) * 1e-9
        offsets = np.concatenate([[0.0], np.cumsum(lengths[:-1] + gaps)])
        return cls(starts, ends, offsets)

    def __call__(self, stamp_ns: int, episode: int) -> float:
        """Return the place of a stamp of an episode [s]."""
        return float(self.offsets_s[episode] + (stamp_ns - self.starts_ns[episode]) * 1e-9)

    def episode_at(self, stamp_ns: int) -> int | None:
        """Return the episode that a stamp lies in, None between two."""
        place = int(np.searchsorted(self.starts_ns, stamp_ns, side='right')) - 1
        return place if place >= 0 and stamp_ns <= self.ends_ns[place] else None

    @property
    def end_s(self) -> float:
        """Where the last episode ends."""
        return self(int(self.ends_ns[-1]), len(self.ends_ns) - 1)


def draw_timeline(path: Path, run: DriftRun) -> None:
    """Draw drift over time, with limits, alarms, levels and the gripper."""
    axis = TimeAxis.of(run)
    groups = sorted({group for one in run.judged for group in one.levels})
    has_gripper = bool(len(run.checked.recorded.gripper))
    figure = new_figure(min(max(9.0, 1.2 * axis.end_s), 16.0), 4.6 + 0.35 * len(groups))
    heights = [6.0, *(0.42 for _ in groups), *([0.8] if has_gripper else [])]
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={'height_ratios': heights}
    )[:, 0]
    main = panels[0]
    _drift_lines(main, run, axis)
    _limits(main, run, axis)
    _alarms(main, run, axis)
    colours = level_colours([level for one in run.judged for level in one.levels.values()])
    for strip, group in zip(panels[1:], groups):
        _level_strip(strip, run, axis, group, colours)
    if has_gripper:
        _gripper_strip(panels[-1], main, run, axis)
    _episodes(main, run, axis)
    panels[-1].set_xlim(-0.01 * axis.end_s, axis.end_s)
    is_cut = len(run.episodes) > 1
    panels[-1].set_xlabel('time [s]' + (', pauses between episodes shortened' if is_cut else ''))
    handles, labels = main.get_legend_handles_labels()
    handles, labels = [*handles, *level_handles(colours)], [*labels, *colours]
    figure.legend(handles, labels, loc='outside lower center', ncols=7, frameon=False, fontsize=8)
    figure.suptitle(
        f'Drift of bag {run.checked.bag.name!r} against {run.checked.bundle.spec.name} at '
        f'{run.reference_precision}',
        x=0.01,
        ha='left',
        fontsize=11,
    )
    figure.savefig(path, dpi=DPI)


def _drift_lines(axes: Any, run: DriftRun, axis: TimeAxis) -> None:
    for episode in run.episodes:
        known = [o for o in run.judged if o.episode == episode.number and o.reading is not None]
        times = [axis(one.chunk.observed_ns, episode.number) for one in known]
        single = [1e3 * one.reading.drift.position_accumulated_m for one in known]
        window = [1e3 * one.reading.window_m for one in known]
        if not known:
            continue
        first = episode.number == 0
        end_s = axis(int(axis.ends_ns[episode.number]), episode.number)
        axes.plot(
            [*times, end_s],
            np.maximum([*window, window[-1]], SMALLEST_MM),
            color=QUANTIZED,
            linewidth=2,
            drawstyle='steps-post',
            label=f'mean of {run.checked.window_s:g} s' if first else None,
        )
        axes.plot(
            times,
            np.maximum(single, SMALLEST_MM),
            'o',
            color=REFERENCE,
            markersize=4,
            label='one chunk' if first else None,
        )
    _reported(axes, run, axis)
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.set_ylabel(f'position drift after\n{run.checked.horizon} actions [mm]')
    axes.grid(color='0.92')
    plain(axes)


def _reported(axes: Any, run: DriftRun, axis: TimeAxis) -> None:
    """Show what the node reported itself."""
    shown = {
        'reported by the node': ('s', 'none', '0.25', 7, lambda source: source != PREDICTED),
        'predicted by the node': ('^', 'none', '#cc79a7', 5, lambda source: source == PREDICTED),
    }
    for label, (marker, face, edge, size, is_meant) in shown.items():
        rows = [
            (axis(one.stamp_ns, episode), 1e3 * one.message.position_accumulated)
            for one in run.checked.recorded.reports
            if is_meant(one.message.source)
            and (episode := axis.episode_at(one.stamp_ns)) is not None
        ]
        if rows:
            times, values = np.array(rows).T
            axes.plot(
                times,
                np.maximum(values, SMALLEST_MM),
                linestyle='none',
                marker=marker,
                markerfacecolor=face,
                markeredgecolor=edge,
                markersize=size,
                label=label,
            )


def _limits(axes: Any, run: DriftRun, axis: TimeAxis) -> None:
    limits = run.checked.limits
    for name, limit_m, colour in (
        ('WARN', limits.warn_m, WARN),
        ('ERROR', limits.error_m, ERROR),
    ):
        axes.axhline(1e3 * limit_m, color=colour, linewidth=1.2, linestyle='--')
        axes.annotate(
            f'{name} {1e3 * limit_m:g} mm',
            (1.005, 1e3 * limit_m),
            xycoords=('axes fraction', 'data'),
            va='center',
            fontsize=8,
            color=colour,
        )
    values = [
        value
        for one in run.judged
        if one.reading is not None
        for value in (1e3 * one.reading.window_m, 1e3 * one.reading.drift.position_accumulated_m)
    ]
    values += [1e3 * one.message.position_accumulated for one in run.checked.recorded.reports]
    low = max(SMALLEST_MM, 0.5 * min((v for v in values if v > 0.0), default=SMALLEST_MM))
    high = 1.8 * max(1e3 * limits.error_m, *values) if values else 2e3 * limits.error_m
    axes.set_ylim(low, high)


def _alarms(axes: Any, run: DriftRun, axis: TimeAxis) -> None:
    colours = {'OK': '#009e73', 'WARN': WARN, 'ERROR': ERROR}
    for one in alarm_changes(run.judged):
        name = one.reading.level.name
        time_s = axis(one.chunk.observed_ns, one.episode)
        axes.plot(
            time_s,
            1e3 * one.reading.window_m,
            marker='D',
            color=colours[name],
            markeredgecolor='black',
            markeredgewidth=0.6,
            markersize=7,
            linestyle='none',
            zorder=5,
            clip_on=False,
        )
        axes.annotate(
            name,
            (time_s, 1e3 * one.reading.window_m),
            xytext=(5, 7),
            textcoords='offset points',
            fontsize=8,
            color=colours[name],
            fontweight='bold',
        )


def _level_strip(
    axes: Any, run: DriftRun, axis: TimeAxis, group: str, colours: dict[str, str]
) -> None:
    for episode in run.episodes:
        members = [one for one in run.judged if one.episode == episode.number]
        edges = [axis(one.chunk.observed_ns, episode.number) for one in members]
        edges.append(axis(int(axis.ends_ns[episode.number]), episode.number))
        for begin, end, level in _runs(members, edges, group):
            colour = colours[level]
            axes.axvspan(begin, end, facecolor=colour, edgecolor='none')
            if end - begin > 0.05 * axis.end_s:
                axes.text(
                    (begin + end) / 2,
                    0.5,
                    level,
                    transform=axes.get_xaxis_transform(),
                    ha='center',
                    va='center',
                    fontsize=7,
                    color=text_colour(colour),
                )
    axes.set_yticks([])
    axes.set_ylabel(group, rotation=0, ha='right', va='center', fontsize=9)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)


def _runs(
    members: Sequence[Judged], edges: Sequence[float], group: str
) -> list[tuple[float, float, str]]:
    """Return (begin, end, level) of neighbours at the same level."""
    found: list[tuple[float, float, str]] = []
    for one, begin, end in zip(members, edges, edges[1:]):
        level = one.levels.get(group)
        if level is None:
            continue
        if found and found[-1][2] == level and found[-1][1] == begin:
            found[-1] = (found[-1][0], end, level)
        else:
            found.append((begin, end, level))
    return found


def _gripper_strip(axes: Any, main: Any, run: DriftRun, axis: TimeAxis) -> None:
    recorded = run.checked.recorded
    top = float(recorded.gripper.max()) or 1.0
    labelled = False
    for episode in run.episodes:
        number = episode.number
        inside = (recorded.gripper_ns >= axis.starts_ns[number]) & (
            recorded.gripper_ns <= axis.ends_ns[number]
        )
        times = [axis(int(at), number) for at in recorded.gripper_ns[inside]]
        axes.plot(times, 1e3 * recorded.gripper[inside], color='0.3', drawstyle='steps-post')
        for place in transitions(recorded.gripper[inside] / top):
            main.axvline(
                times[place],
                color='0.45',
                linestyle=':',
                linewidth=1.2,
                label=None if labelled else 'gripper opens or closes',
            )
            axes.axvline(times[place], color='0.45', linestyle=':', linewidth=1.2)
            labelled = True
    axes.set_ylabel('gripper\n[mm]', rotation=0, ha='right', va='center', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(y=0.2)
    plain(axes)


def transitions(openings: NDArray[np.float64]) -> list[int]:
    """Return where the gripper is newly open or closed; around the middle it is as before."""
    found, was_open = [], None
    for place, opening in enumerate(openings):
        if abs(opening - 0.5) < _UNDECIDED:
            continue
        is_open = bool(opening > 0.5)
        if place and is_open != was_open:
            found.append(place)
        was_open = is_open
    return found


def _episodes(axes: Any, run: DriftRun, axis: TimeAxis) -> None:
    for episode in run.episodes[:_MOST_EPISODES]:
        begin = axis(episode.start_ns, episode.number)
        if episode.number:
            axes.axvline(begin, color='0.75', linewidth=0.8)
        after = min(episode.number + 1, len(run.episodes) - 1)
        end = axis.end_s if after == episode.number else float(axis.offsets_s[after])
        if end - begin < _LETTER * len(episode.title) * axis.end_s:
            continue
        axes.annotate(
            episode.title,
            (begin, 1.0),
            xycoords=('data', 'axes fraction'),
            xytext=(3, 3),
            textcoords='offset points',
            va='bottom',
            fontsize=8,
        )
