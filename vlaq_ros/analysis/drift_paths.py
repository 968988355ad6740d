"""
Pictures of the way the arm took, with what the two policies wanted at every chunk.

From the measured pose at each observation the executed actions are composed, once those of the
recorded chunk and once those of the reference: short fans. Where both are too close to be told
apart, the distance between them is drawn larger, by the factor that the picture names.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.analysis.drift_measure import DriftRun, RunEpisode
from vlaq_ros.analysis.drift_style import (
    DPI,
    MEASURED,
    QUANTIZED,
    REFERENCE,
    new_figure,
    plain,
)
from vlaq_ros.kinematics.drift import integrate

FACTORS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_LARGEST_SHARE = 0.15  # of the extent of the path
_FLATTEST = 0.4  # no side of the box is shorter than this share of the longest
_VIEWS = (('top', 0, 1), ('side', 0, 2), ('front', 1, 2))


class Fan(NamedTuple):
    """Positions [1 + horizon, 3] from the measured pose on, of both policies [m]."""

    quantized: NDArray[np.float64]
    reference: NDArray[np.float64]


def fans(run: DriftRun, episode: int) -> list[Fan]:
    """Return the fans of the chunks of an episode that were judged and have a measured pose."""
    spec, rows = run.checked.bundle.spec.action, slice(run.checked.horizon)
    found = []
    for one in run.judged:
        if one.episode != episode or one.reference is None or one.start is None:
            continue
        both = (
            np.array([one.start.position, *(p.position for p in integrate(a, spec, one.start))])
            for a in (one.chunk.actions[rows], one.reference.actions[rows])
        )
        found.append(Fan(*both))
    return found


def enlargement(found: list[Fan], extent_m: float) -> int:
    """Return the largest factor at which no end of a fan is drawn far from that of the other."""
    distances = [np.linalg.norm(fan.quantized[-1] - fan.reference[-1]) for fan in found]
    farthest = float(max(distances, default=0.0))
    if farthest == 0.0:
        return 1
    fitting = [f for f in FACTORS if f * farthest <= _LARGEST_SHARE * extent_m]
    return max(fitting, default=1)


def draw_trajectory(path: Path, run: DriftRun, episode: RunEpisode) -> bool:
    """Draw one episode in space; return whether there was anything to draw."""
    recorded = run.checked.recorded
    spec = run.checked.bundle.spec.action
    executed_ns = run.checked.horizon * spec.period_ns
    inside = (recorded.path_ns >= episode.start_ns) & (
        recorded.path_ns <= episode.end_ns + executed_ns
    )
    way = recorded.path[inside, :3]
    found = fans(run, episode.number)
    if len(way) < 2:
        return False
    cloud = np.concatenate([way, *(np.concatenate(fan) for fan in found)])
    extent_m = float(np.ptp(cloud, axis=0).max())
    factor = enlargement(found, extent_m)
    figure = new_figure(13.0, 7.2)
    grid = figure.add_gridspec(2, 3, width_ratios=(1.5, 1.0, 1.0))
    space = figure.add_subplot(grid[:, 0], projection='3d')
    flat = [figure.add_subplot(grid[i // 2, 1 + i % 2]) for i in range(len(_VIEWS))]
    shown = [Fan(f.quantized, f.quantized + factor * (f.reference - f.quantized)) for f in found]
    _draw(space, way, shown, (0, 1, 2))
    for axes, (title, across, up) in zip(flat, _VIEWS):
        _draw(axes, way, shown, (across, up))
        axes.set_xlabel(f'{"xyz"[across]} [mm]')
        axes.set_ylabel(f'{"xyz"[up]} [mm]')
        axes.set_title(title, loc='left', fontsize=10)
        axes.set_aspect('equal', adjustable='datalim')
        axes.grid(color='0.92')
        plain(axes)
    _space(space, cloud)
    _ends(figure.add_subplot(grid[1, 2]), found)
    labels = [
        'measured path',
        f'{run.checked.horizon} executed actions, quantized',
        'the same, reference' + (f', distance drawn {factor} times' if factor > 1 else ''),
        'start',
        'end',
    ]
    figure.legend(
        space.get_legend_handles_labels()[0],
        labels,
        loc='outside lower center',
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    outcome = {None: '', True: ', success', False: ', no success'}[episode.success]
    figure.suptitle(
        f'{run.checked.bag.name}, episode {episode.number}: {episode.title}{outcome}',
        x=0.01,
        ha='left',
        fontsize=11,
    )
    figure.savefig(path, dpi=DPI)
    return True


def _draw(axes: Any, way: NDArray, shown: list[Fan], columns: tuple[int, ...]) -> None:
    def mm(points: NDArray) -> list[NDArray]:
        return [1e3 * points[:, column] for column in columns]

    axes.plot(*mm(way), color=MEASURED, linewidth=2.5, label='path')
    for number, fan in enumerate(shown):
        axes.plot(
            *mm(fan.quantized),
            color=QUANTIZED,
            linewidth=1.4,
            label='quantized' if not number else None,
        )
    for number, fan in enumerate(shown):
        axes.plot(
            *mm(fan.reference),
            color=REFERENCE,
            linewidth=1.4,
            linestyle=(0, (4, 1.5)),
            label='reference' if not number else None,
        )
    for place, marker, face in ((0, 'o', 'white'), (-1, 's', 'black')):
        axes.plot(
            *mm(way[[place]]),
            marker=marker,
            markerfacecolor=face,
            markeredgecolor='black',
            markersize=7,
            linestyle='none',
            label=marker,
            zorder=5,
        )


def _space(axes: Any, cloud: NDArray) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel('x [mm]')
    axes.set_ylabel('y [mm]')
    axes.set_zlabel('z [mm]')
    middle = 1e3 * (cloud.min(axis=0) + cloud.max(axis=0)) / 2
    size = 1e3 * np.ptp(cloud, axis=0)
    half = 0.53 * np.maximum(size, _FLATTEST * size.max())
    for name, centre, length in zip('xyz', middle, half):
        getattr(axes, f'set_{name}lim')(centre - length, centre + length)
        getattr(axes, f'{name}axis').set_major_locator(MaxNLocator(4))
    axes.set_box_aspect(half, zoom=1.0)
    axes.view_init(elev=22, azim=-60)
    axes.tick_params(labelsize=7)
    axes.set_title('in space', loc='left', fontsize=10)


def _ends(axes: Any, found: list[Fan]) -> None:
    """Show, true to scale, where the reference would have ended, seen from the quantized end."""
    ends = 1e3 * np.array([fan.reference[-1] - fan.quantized[-1] for fan in found])
    if len(ends):
        axes.plot(ends[:, 0], ends[:, 1], 'o', color=REFERENCE, markersize=5, label='x, y')
        axes.plot(
            ends[:, 0],
            ends[:, 2],
            's',
            markerfacecolor='none',
            markeredgecolor='black',
            markersize=5,
            label='x, z',
        )
        limit = 1.2 * float(np.abs(ends).max()) or 1.0
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
    axes.axhline(0, color='0.7', linewidth=0.8)
    axes.axvline(0, color='0.7', linewidth=0.8)
    axes.set_aspect('equal')
    axes.set_xlabel('x [mm]')
    axes.set_ylabel('y or z [mm]')
    axes.set_title('reference end − quantized end, true scale', loc='left', fontsize=9)
    if len(ends):
        axes.legend(frameon=False, fontsize=8, loc='upper left', bbox_to_anchor=(1.0, 1.0))
    axes.grid(color='0.92')
    plain(axes)
