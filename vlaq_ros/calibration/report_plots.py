"""
The pictures of a calibration report: bits, sensitivity, errors in physical units, drift.

Colours of widths go from pale (few bits) to dark; the two results that are compared keep their
colours in every picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlaq_ros.errors import MissingDependencyError

DPI = 150
WIDTH_COLOURS = {
    '16': '#08306b',
    '8': '#2171b5',
    '4': '#6baed6',
    '2': '#c6dbef',
    '0': '#f2dede',
}
RESULT_COLOURS = ('#b8b8b8', '#e69f00', '#d55e00')
_SMALLEST = 1e-12


def draw_pictures(folder: Path, values: Mapping[str, Any]) -> list[Path]:
    """
    Write the pictures of `report.report_values` to `folder` and return their paths.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f'matplotlib cannot be imported ({error})') from error
    paths = []
    drawings = {
        'bits.png': _bits,
        'sensitivity.png': _sensitivity,
        'errors.png': _errors,
        'drift.png': _drift,
    }
    for name, draw in drawings.items():
        figure = Figure(layout='constrained')
        FigureCanvasAgg(figure)
        draw(figure, values)
        figure.savefig(folder / name, dpi=DPI)
        paths.append(folder / name)
    return paths


def _bits(figure: Any, values: Mapping[str, Any]) -> None:
    layers = values['layers']
    figure.set_size_inches(8.0, 1.4 + 0.17 * len(layers))
    axes = figure.add_subplot()
    places = np.arange(len(layers))
    left = np.zeros(len(layers))
    for width, colour in WIDTH_COLOURS.items():
        shares = np.array(
            [100 * one['channels'].get(width, 0) / one['shape'][0] for one in layers.values()]
        )
        if shares.any():
            label = f'{width} bit' if width != '0' else 'pruned'
            axes.barh(places, shares, left=left, color=colour, label=label, height=0.85)
        left += shares
    for place, one in zip(places, layers.values()):
        axes.annotate(
            f'{one["bits_per_weight"]:.2f}',
            (1.01, place),
            xycoords=('axes fraction', 'data'),
            va='center',
            fontsize=6,
        )
    _layer_axis(axes, layers)
    axes.set_xlim(0, 100)
    axes.set_xlabel('share of the output channels [%]; right: bits per weight, scales included')
    record = values['record']
    axes.set_title(
        f'{record["method"]}: {record["mean_bits_per_weight"]:.3f} bits per weight, '
        f'budget {record["budget_bits"]:g}',
        loc='left',
    )
    figure.legend(loc='outside upper right', ncols=5, frameon=False, fontsize=8)
    _plain(axes)


def _sensitivity(figure: Any, values: Mapping[str, Any]) -> None:
    layers = values['sensitivity']
    widths = [width for width in ('8', '4', '2', '0') if width in next(iter(layers.values()))]
    table = np.array([[one[width] for width in widths] for one in layers.values()])
    figure.set_size_inches(6.0, 1.4 + 0.17 * len(layers))
    axes = figure.add_subplot()
    logarithm = np.log10(np.maximum(table, _SMALLEST)) / 2  # of the error, not its square
    image = axes.imshow(logarithm, aspect='auto', cmap='magma_r')
    middle = (logarithm.min() + logarithm.max()) / 2
    for i, j in np.ndindex(*table.shape):
        colour = 'white' if logarithm[i, j] > middle else 'black'
        text = f'{table[i, j] ** 0.5:.2g}'
        axes.annotate(text, (j, i), ha='center', va='center', fontsize=5, color=colour)
    names = {'0': 'pruned'}
    axes.set_xticks(range(len(widths)), [names.get(width, f'{width} bit') for width in widths])
    plan = values['layers']
    _layer_axis(axes, {name: plan.get(name, {'role': ''}) for name in layers})
    axes.set_title('Action error if a whole layer were rounded', loc='left', fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label('log10 of the error of a step [standard deviations]')


def _errors(figure: Any, values: Mapping[str, Any]) -> None:
    dimensions, variants = values['dimensions'], values['heads']
    heads = list(next(iter(variants.values())))
    figure.set_size_inches(2.0 + 1.9 * len(dimensions), 1.0 + 2.2 * len(heads))
    panels = figure.subplots(len(heads), len(dimensions), squeeze=False)
    colours = _result_colours(variants)
    for row, head in zip(panels, heads):
        for column, (axes, (name, unit)) in enumerate(zip(row, dimensions)):
            scale, shown = {'m': (1e3, 'mm'), 'rad': (1e3, 'mrad')}.get(unit, (1.0, 'of 1'))
            for place, (variant, reports) in enumerate(variants.items()):
                mean = scale * reports[head]['error'][column]
                worst = scale * reports[head]['worst'][column]
                axes.bar(place, mean, color=colours[variant], width=0.7, label=variant)
                axes.plot([place - 0.25, place + 0.25], [worst, worst], color='0.3', linewidth=1)
                axes.plot([place, place], [mean, worst], color='0.6', linewidth=0.8)
            axes.set_xticks([])
            axes.set_ylim(bottom=0)
            axes.set_title(f'{head}: {name} [{shown}]', loc='left', fontsize=8)
            axes.tick_params(labelsize=7)
            _plain(axes)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False, fontsize=8)
    figure.suptitle('Error of a step on held-out samples: mean, and largest (line)', fontsize=10)


def _drift(figure: Any, values: Mapping[str, Any]) -> None:
    curves = values['drift_curves']
    heads = list(next(iter(curves.values())))
    figure.set_size_inches(1.2 + 3.6 * len(heads), 3.4)
    panels = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    colours = _result_colours(curves)
    for axes, head in zip(panels, heads):
        for name, by_head in curves.items():
            low, median, high = 1e3 * np.array(by_head[head])
            steps = np.arange(1, len(median) + 1)
            axes.fill_between(steps, low, high, color=colours[name], alpha=0.25, linewidth=0)
            axes.plot(steps, median, color=colours[name], linewidth=2, label=name)
        axes.axhline(
            1e3 * values['record']['tolerance']['drift_m'], color='0.4', linestyle=':', linewidth=1
        )
        axes.annotate(
            'tolerance of the mean after a chunk',
            (0.02, 1e3 * values['record']['tolerance']['drift_m']),
            xycoords=('axes fraction', 'data'),
            va='bottom',
            fontsize=7,
        )
        axes.set_title(f'{head} head', loc='left', fontsize=10)
        axes.set_xlabel('step of the chunk')
        axes.set_ylim(bottom=0)
        axes.grid(color='0.92')
        _plain(axes)
    panels[0].set_ylabel('distance of the pose [mm]\nmedian and quartiles')
    panels[-1].legend(frameon=False, loc='upper left', fontsize=8, bbox_to_anchor=(0.0, 0.85))
    figure.suptitle('Drift from full precision, composed from one start', x=0.01, ha='left')


def _layer_axis(axes: Any, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Name every layer, and mark where one part of the policy ends and the next begins."""
    axes.set_yticks(range(len(layers)), [_short(name) for name in layers], fontsize=6)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    roles = [one.get('role', '') for one in layers.values()]
    for place in range(1, len(roles)):
        if roles[place] != roles[place - 1]:
            axes.axhline(place - 0.5, color='black', linewidth=0.8)


def _short(name: str) -> str:
    return name.replace('language_model.layers.', 'llm.').replace('_proj', '')


def _result_colours(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return the last colour for the final result, and paler ones for what it is compared with."""
    names = list(names)
    return dict(zip(names, (*RESULT_COLOURS[: len(names) - 1], RESULT_COLOURS[-1])))


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
