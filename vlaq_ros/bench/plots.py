"""
The results as pictures: how many times faster than bf16, and how near the floor.

Colours stand for widths and are the same in every picture.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlaq_ros.bench.ratios import Point, points, typical
from vlaq_ros.bench.results import Results
from vlaq_ros.errors import MissingDependencyError

COLOURS = {
    'W2A8': '#cc79a7',
    'W4A8': '#d55e00',
    'W8A8': '#0072b2',
    'W8A8 capped to 4': '#e69f00',
    'mix 0/4/8/16': '#009e73',
}
DPI = 150


def draw_plots(results: Results, folder: Path) -> list[Path]:
    """
    Write the pictures of the kernel section to `folder`; none without that section.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f'matplotlib cannot be imported ({error})') from error
    section = results.sections.get('kernels')
    groups = points(section.rows) if section else {}
    found = next(iter(groups.values()), [])
    if not found:
        return []
    paths = []
    machine = f'{section.machine["cpu"]}, {"1 thread" if next(iter(groups))[0] == 1 else ""}'
    for name, draw in {'kernels-ratio.png': _ratios, 'kernels-floor.png': _floors}.items():
        figure = Figure(layout='constrained')
        FigureCanvasAgg(figure)
        draw(figure, found, machine.rstrip(', '))
        figure.savefig(folder / name, dpi=DPI)
        paths.append(folder / name)
    return paths


def _ratios(figure: Any, found: Sequence[Point], machine: str) -> None:
    shapes = _shapes(found)
    columns = min(3, len(shapes))
    lines = -(-len(shapes) // columns)
    figure.set_size_inches(max(7.0, 1.0 + 3.4 * columns), 0.9 + 2.5 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, shape in zip(panels, shapes):
        here = [point for point in found if point.shape == shape]
        _bars(axes, here, lambda point, name: point.ratio(name, point.best_bf16() or ''))
        axes.axhline(1.0, color='0.3', linewidth=1)
        axes.set_title(shape, loc='left', fontsize=10)
    for axes in panels[len(shapes) :]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.supylabel('times faster than the best bf16', fontsize=10)
    figure.supxlabel('tokens in one call', fontsize=10)
    figure.suptitle(f'Linear layers against the best bf16: {machine}', x=0.01, ha='left')


def _floors(figure: Any, found: Sequence[Point], machine: str) -> None:
    shapes = _shapes(found)
    tokens = list(dict.fromkeys(point.tokens for point in found))
    figure.set_size_inches(7.5, 4.2)
    axes = figure.add_subplot()
    for name, colour in COLOURS.items():
        of_all = [
            [p.floor_share(name) for p in found if p.tokens == count and p.shape in shapes]
            for count in tokens
        ]
        present = [(place, 100 * typical(v)) for place, v in enumerate(of_all) if any(v)]
        if not present:
            continue
        places, middle = zip(*present)
        axes.plot(places, middle, 'o-', color=colour, linewidth=2, markersize=5, label=name)
        for place, values in enumerate(of_all):
            for value in filter(None, values):
                axes.plot(place, 100 * value, '.', color=colour, alpha=0.35, markersize=5)
    axes.axhline(100.0, color='0.3', linewidth=1)
    axes.set_ylim(0, 108)
    axes.set_xticks(range(len(tokens)), tokens)
    axes.set_xlabel('tokens in one call')
    axes.set_ylabel('% of what the processor can do')
    axes.set_title(f'Distance to the floor, line: median of the shapes\n{machine}', loc='left')
    axes.legend(frameon=False, ncols=2, fontsize=8, loc='lower left')
    _plain(axes)


def _bars(axes: Any, found: Sequence[Point], value: Callable[[Point, str], float | None]) -> None:
    width = 0.8 / len(COLOURS)
    for place, (name, colour) in enumerate(COLOURS.items()):
        heights = [value(point, name) or 0.0 for point in found]
        offsets = [index - 0.4 + width * (place + 0.5) for index in range(len(found))]
        axes.bar(offsets, heights, width, color=colour, label=name)
    axes.set_xticks(range(len(found)), [point.tokens for point in found])
    axes.tick_params(labelsize=8)
    _plain(axes)


def _shapes(found: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.shape for point in found))


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis='y', color='0.9')
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
