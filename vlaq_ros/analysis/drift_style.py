"""
How the pictures of a recorded run look: colours that colour-blind people tell apart, and axes.

The two policies that are compared, the limits and the levels have the same colours everywhere;
levels go from pale (few bits) to dark.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vlaq_ros.analysis.recorded_levels import level_rank
from vlaq_ros.errors import MissingDependencyError

DPI = 150
MEASURED, QUANTIZED, REFERENCE = '#999999', '#d55e00', '#0072b2'
WARN, ERROR = '#e69f00', '#a0001c'
SMALLEST_MM = 1e-3
"""Where logarithmic axes of drift begin at the lowest."""
_LEVELS = ('#e8f1e4', '#c7e3d0', '#9ccfc4', '#6bb3bd', '#4591b0', '#2f6c9b', '#254a7d', '#1b2a55')
_OTHER = ('#d9d9d9', '#bdbdbd')
_DARK_FROM = 4


def new_figure(width: float, height: float) -> Any:
    """
    Return an empty figure of this size [inch].

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f'matplotlib cannot be imported ({error})') from error
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def level_colours(names: Iterable[str]) -> dict[str, str]:
    """Return level -> colour, spread over the scale; names without widths are grey."""
    known = sorted(set(names), key=level_rank)
    widths = [name for name in known if level_rank(name)[0] == 0]
    others = [name for name in known if name not in widths]
    last = len(_LEVELS) - 2
    spread = [1 + round(last * (i + 1) / len(widths)) for i in range(len(widths))]
    colours = {name: _LEVELS[place] for name, place in zip(widths, spread)}
    return colours | {name: _OTHER[i % len(_OTHER)] for i, name in enumerate(others)}


def text_colour(background: str) -> str:
    """Return what can be read on a colour of `level_colours`."""
    is_dark = background in _LEVELS[_DARK_FROM:]
    return 'white' if is_dark else 'black'


def plain(axes: Any) -> None:
    """Take away what is not needed."""
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def level_handles(colours: Mapping[str, str]) -> list[Any]:
    """Return what a legend shows for each level."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=c, edgecolor='0.4', linewidth=0.4) for c in colours.values()]
