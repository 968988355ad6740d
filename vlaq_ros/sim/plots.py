"""
The report of an evaluation as pictures: success with intervals, success by task, drift over time.

Colours stand for precisions and are the same in every picture; heads have panels of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlaq_ros.errors import MissingDependencyError
from vlaq_ros.kinematics.drift import EARLY_STEP
from vlaq_ros.sim.report import Row

COLOURS = {'fp32': '#4d4d4d', 'bf16': '#009e73', 'w8': '#0072b2', 'w4': '#d55e00'}
OTHER_COLOURS = ('#cc79a7', '#e69f00', '#56b4e9', '#8c6d31', '#7b4173')
SMALLEST_MM = 0.01  # the drift axis is logarithmic and starts here at the lowest
DPI = 150


def draw_report(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """
    Write the pictures to `folder` and return their paths.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f'matplotlib cannot be imported ({error})') from error
    pictures = {'success.png': _success, 'tasks.png': _tasks}
    if any(row.closed_loop for row in rows):
        pictures['drift.png'] = _drift
    paths = []
    for name, draw in pictures.items():
        figure = Figure(layout='constrained')
        FigureCanvasAgg(figure)
        draw(figure, rows)
        figure.savefig(folder / name, dpi=DPI)
        paths.append(folder / name)
    return paths


def _success(figure: Any, rows: Sequence[Row]) -> None:
    figure.set_size_inches(7.0, 1.3 + 0.36 * len(rows))
    axes = figure.add_subplot()
    colours = _colours(rows)
    for place, row in enumerate(rows):
        low, high = (100 * end for end in row.interval)
        rate, colour = 100 * row.rate, colours[row.config.precision]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle='butt')
        axes.plot(rate, place, 'o', color=colour, markersize=6)
        verdict = 'reference' if row.paired is None else row.paired.verdict
        axes.annotate(
            f'{rate:.1f} %  {verdict}',
            (1.01, place),
            xycoords=('axes fraction', 'data'),
            va='center',
            fontsize=9,
        )
    axes.set_yticks(range(len(rows)), [row.config.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(min(100 * row.interval[0] for row in rows) // 10 * 10, 100.5)
    axes.set_xlabel(f'success [%] with 95 % Wilson interval, {rows[0].episodes} paired episodes')
    axes.set_title('Closed-loop success', loc='left')
    _plain(axes)
    axes.grid(axis='x', color='0.9')


def _tasks(figure: Any, rows: Sequence[Row]) -> None:
    tasks = list(rows[0].per_task)
    percent = np.array([[100 * np.divide(*row.per_task[task]) for row in rows] for task in tasks])
    figure.set_size_inches(2.8 + 0.85 * len(rows), 1.5 + 0.34 * len(tasks))
    axes = figure.add_subplot()
    image = axes.imshow(percent, vmin=0, vmax=100, cmap='OrRd_r', aspect='auto')
    for i, j in np.ndindex(*percent.shape):
        shade = 'black' if percent[i, j] > 45 else 'white'
        axes.text(j, i, f'{percent[i, j]:.0f}', ha='center', va='center', color=shade, fontsize=9)
    heads = [row.config.head for row in rows]
    for j in (j for j in range(1, len(rows)) if heads[j] != heads[j - 1]):
        axes.axvline(j - 0.5, color='white', linewidth=6)
    axes.set_xticks(range(len(rows)), [row.config.name for row in rows], fontsize=9)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=9)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    per_task = rows[0].per_task[tasks[0]][1]
    axes.set_title(f'Success by task [%], {per_task} episodes each', loc='left')
    figure.colorbar(image, ax=axes, shrink=0.8)


def _drift(figure: Any, rows: Sequence[Row]) -> None:
    compared = [row for row in rows if row.closed_loop is not None]
    heads = list(dict.fromkeys(row.config.head for row in compared))
    figure.set_size_inches(1.2 + 4.2 * len(heads), 3.8)
    panels = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    colours = _colours(rows)
    for axes, head in zip(panels, heads):
        for row in (row for row in compared if row.config.head == head):
            low, median, high = 1e3 * row.closed_loop.quartiles_m[1:].T  # all start alike
            steps, colour = np.arange(1, len(median) + 1), colours[row.config.precision]
            low = np.maximum(low, 1e-9)  # a band with an end at zero would vanish
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps, median, color=colour, linewidth=2, label=row.config.precision)
        axes.axvline(EARLY_STEP, color='0.5', linewidth=1, linestyle=':')
        axes.annotate(
            f' step {EARLY_STEP}', (EARLY_STEP, 1.0), xycoords=('data', 'axes fraction'), va='top'
        )
        axes.set_yscale('log', nonpositive='mask')
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axes.set_xlim(left=0)
        axes.set_xlabel('policy step')
        axes.set_title(f'{head} head against its fp32 run', loc='left', fontsize=10)
        axes.legend(frameon=False, loc='lower right')
        axes.grid(color='0.92')
        _plain(axes)
    top = max(1e3 * row.closed_loop.quartiles_m.max() for row in compared)
    panels[0].set_ylim(SMALLEST_MM, max(2.0 * top, 10 * SMALLEST_MM))
    panels[0].set_ylabel('distance of the hand [mm]\nmedian and quartiles')
    figure.suptitle('Closed-loop drift', x=0.01, ha='left')


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    others = iter(OTHER_COLOURS * len(rows))
    colours = dict(COLOURS)
    for row in rows:
        if row.config.precision not in colours:
            colours[row.config.precision] = next(others)
    return colours


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
