"""The demo as pictures: episodes from start to end, how far the arm strayed, and a film."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import MissingDependencyError
from vlaq_ros.kinematics.drift import EARLY_STEP

if TYPE_CHECKING:
    from vlaq_ros.ros.demo_report import Comparison

COLUMNS = 6  # pictures per episode
GOOD, BAD, PLAIN = '#0a7d4f', '#b3261e', '0.35'
LINE = '#0072b2'
_FILM_FRAMES = 32
_FILM_TILE = 150  # [px]
_FILM_COLUMNS = 4


def draw(folder: Path, precision: str, comparisons: Sequence['Comparison']) -> list[Path]:
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
    paths = []
    for name, paint in (('episodes.png', _episodes), ('drift.png', _drift)):
        figure = Figure(layout='constrained')
        FigureCanvasAgg(figure)
        paint(figure, precision, comparisons)
        figure.savefig(folder / name, dpi=110)
        paths.append(folder / name)
    return [*paths, _film(folder / 'episodes.gif', comparisons)]


def _episodes(figure: Any, precision: str, comparisons: Sequence['Comparison']) -> None:
    rows = len(comparisons)
    figure.set_size_inches(3.0 + 1.55 * COLUMNS, 0.6 + 1.6 * rows)
    figure.suptitle(
        f'One episode per task, {precision} policy over ROS 2 topics', x=0.01, ha='left'
    )
    widths = [1.75, *[1.0] * COLUMNS]
    panels = figure.subplots(rows, COLUMNS + 1, squeeze=False, width_ratios=widths)
    for row, one in zip(panels, comparisons):
        for axes in row:
            axes.set_axis_off()
        _label(row[0], one)
        shown = _spread(one.ros.pictures, COLUMNS)
        for axes, picture in zip(row[1:], shown):
            axes.imshow(picture, interpolation='lanczos')
    for axes, text in ((panels[0, 1], 'start'), (panels[0, COLUMNS], 'end')):
        axes.set_title(text, fontsize=10, color=PLAIN)


def _label(axes: Any, one: 'Comparison') -> None:
    """Write what was asked for, what happened, and how far it was from full precision."""
    ros = one.ros
    mark, colour = ('\N{HEAVY CHECK MARK}', GOOD) if ros.success else ('\N{BALLOT X}', BAD)
    verdict = 'aborted' if ros.aborted else f'{ros.steps} steps, {ros.steps * 0.025:.1f} s'
    kwargs = {'transform': axes.transAxes, 'ha': 'left', 'va': 'center'}
    axes.text(0.0, 0.82, mark, color=colour, fontsize=17, fontfamily='DejaVu Sans', **kwargs)
    axes.text(0.14, 0.82, ros.episode.task, fontsize=11, fontweight='bold', **kwargs)
    axes.text(0.0, 0.60, _wrapped(ros.episode.instruction), fontsize=9, style='italic', **kwargs)
    axes.text(0.0, 0.34, verdict, fontsize=9, color=PLAIN, **kwargs)
    drift = f'drift {1e3 * one.drift.mean_m:.1f} mm mean, {1e3 * one.drift.max_m:.1f} mm max'
    axes.text(0.0, 0.18, drift, fontsize=9, color=PLAIN, **kwargs)


def _drift(figure: Any, precision: str, comparisons: Sequence['Comparison']) -> None:
    columns = min(4, len(comparisons))
    rows = -(-len(comparisons) // columns)
    figure.set_size_inches(1.0 + 2.9 * columns, 0.8 + 2.1 * rows)
    figure.suptitle(
        f'Distance of the hand between {precision} over ROS 2 and fp32 [mm]', x=0.01, ha='left'
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    top = max(max(one.distance_mm.max() for one in comparisons), 1.0)
    for axes, one in zip(panels.flat, comparisons):
        distance = one.distance_mm
        steps = np.arange(len(distance))
        axes.fill_between(steps, distance, color=LINE, alpha=0.15, linewidth=0)
        axes.plot(steps, distance, color=LINE, linewidth=1.6)
        axes.axvline(EARLY_STEP, color='0.6', linewidth=0.8, linestyle=':')
        _mark_end(axes, one.ros.steps, one.ros.success, 0.92, precision)
        _mark_end(axes, one.reference.steps, one.reference.success, 0.78, 'fp32')
        axes.set_title(one.ros.episode.task, fontsize=10, loc='left')
        axes.set_xlim(0, max(one.ros.steps, one.reference.steps) * 1.05 + 1)
        axes.set_yscale('symlog', linthresh=1.0, linscale=0.6)
        axes.set_ylim(0, 4.0 * top)
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.grid(color='0.92')
        axes.set_axisbelow(True)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
    for axes in panels.flat[len(comparisons) :]:
        axes.set_axis_off()
    figure.supxlabel(f'policy step (dotted: step {EARLY_STEP})', fontsize=9)


def _mark_end(axes: Any, step: int, success: bool, height: float, text: str) -> None:
    """Show where a run ended, and whether with success."""
    axes.plot(
        step,
        height,
        marker='o' if success else 'X',
        color=GOOD if success else BAD,
        markersize=5,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )
    axes.annotate(
        f'{text} ',
        (step, height),
        xycoords=axes.get_xaxis_transform(),
        ha='right',
        va='center',
        fontsize=7,
        color='0.3',
        xytext=(-4, 0),
        textcoords='offset points',
    )


def _film(path: Path, comparisons: Sequence['Comparison']) -> Path:
    """Write all episodes side by side as a GIF; each is stretched to the same length."""
    import cv2
    from PIL import Image

    columns = min(_FILM_COLUMNS, len(comparisons))
    rows = -(-len(comparisons) // columns)
    films = [
        [
            cv2.resize(picture, (_FILM_TILE, _FILM_TILE), interpolation=cv2.INTER_AREA)
            for picture in _spread(one.ros.pictures, _FILM_FRAMES)
        ]
        for one in comparisons
    ]
    frames = []
    for i in range(_FILM_FRAMES):
        canvas = np.full((rows * _FILM_TILE, columns * _FILM_TILE, 3), 255, np.uint8)
        for place, film in enumerate(films):
            row, column = divmod(place, columns)
            top, left = row * _FILM_TILE, column * _FILM_TILE
            canvas[top : top + _FILM_TILE, left : left + _FILM_TILE] = film[i]
        frames.append(Image.fromarray(canvas).quantize(128, dither=Image.Dither.NONE))
    durations = [90] * (_FILM_FRAMES - 1) + [1500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def _spread(pictures: Sequence[NDArray[np.uint8]], count: int) -> list[NDArray[np.uint8]]:
    """Return `count` pictures, evenly from the first to the last."""
    if not pictures:
        return [np.full((8, 8, 3), 235, np.uint8)] * count
    return [pictures[round(k)] for k in np.linspace(0, len(pictures) - 1, count)]


def _wrapped(sentence: str, width: int = 27) -> str:
    from textwrap import fill

    return fill(sentence, width)
