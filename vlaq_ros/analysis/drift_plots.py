"""Pictures of a recorded run: how often each level of precision was used, and drift by task."""

from pathlib import Path

import numpy as np

from vlaq_ros.analysis.drift_measure import DriftRun
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
from vlaq_ros.analysis.recorded_levels import shares


def draw_occupancy(path: Path, run: DriftRun) -> None:
    """Draw the share of the chunks at each level, by module group, over all and by task."""
    rows: list[tuple[str, dict[str, float]]] = []
    titles = list(dict.fromkeys(one.title for one in run.episodes))
    parts = [('all', list(run.judged))]
    if len(titles) > 1:
        parts += [
            (title, [o for o in run.judged if run.episodes[o.episode].title == title])
            for title in titles
        ]
    for title, members in parts:
        found = shares([one.levels for one in members])
        rows += [(f'{title}: {group}', levels) for group, levels in found.items()]
    colours = level_colours([name for _, levels in rows for name in levels])
    figure = new_figure(8.0, 1.3 + 0.32 * len(rows))
    axes = figure.add_subplot()
    for place, (_, levels) in enumerate(rows):
        left = 0.0
        for name, share in levels.items():
            colour = colours[name]
            axes.barh(place, 100 * share, left=left, color=colour, edgecolor='white', height=0.8)
            if share > 0.06:
                axes.text(
                    left + 50 * share,
                    place,
                    f'{100 * share:.0f} %',
                    ha='center',
                    va='center',
                    fontsize=8,
                    color=text_colour(colour),
                )
            left += 100 * share
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel('share of the chunks [%]')
    axes.set_title('Levels of precision by module group', loc='left', fontsize=11)
    figure.legend(
        level_handles(colours),
        list(colours),
        loc='outside lower center',
        ncols=8,
        frameon=False,
        fontsize=8,
    )
    plain(axes)
    figure.savefig(path, dpi=DPI)


def draw_tasks(path: Path, run: DriftRun) -> None:
    """Draw the drift of every chunk by task, with its mean and the limits."""
    titles = list(dict.fromkeys(one.title for one in run.episodes))
    figure = new_figure(8.0, 1.7 + 0.42 * len(titles))
    axes = figure.add_subplot()
    limits = run.checked.limits
    for place, title in enumerate(titles):
        values = [
            1e3 * one.reading.drift.position_accumulated_m
            for one in run.judged
            if one.reading is not None and run.episodes[one.episode].title == title
        ]
        if not values:
            continue
        spread = place + np.linspace(-0.18, 0.18, len(values))
        axes.plot(
            np.maximum(values, SMALLEST_MM),
            spread,
            'o',
            color=REFERENCE,
            alpha=0.6,
            markersize=4,
            label='one chunk' if not place else None,
        )
        axes.plot(
            max(float(np.mean(values)), SMALLEST_MM),
            place,
            'D',
            color=QUANTIZED,
            markersize=7,
            markeredgecolor='black',
            markeredgewidth=0.6,
            label='mean' if not place else None,
        )
        axes.annotate(
            f'{np.mean(values):.2f} mm, {len(values)} chunks',
            (1.01, place),
            xycoords=('axes fraction', 'data'),
            va='center',
            fontsize=8,
        )
    for name, limit_m, colour in (('WARN', limits.warn_m, WARN), ('ERROR', limits.error_m, ERROR)):
        axes.axvline(1e3 * limit_m, color=colour, linestyle='--', linewidth=1.2, label=name)
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.set_yticks(range(len(titles)), titles, fontsize=9)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlabel(f'position drift after {run.checked.horizon} actions [mm]')
    axes.grid(axis='x', color='0.92')
    axes.set_title('Drift by task', loc='left', fontsize=11)
    figure.legend(loc='outside lower center', ncols=4, frameon=False, fontsize=8)
    plain(axes)
    figure.savefig(path, dpi=DPI)
