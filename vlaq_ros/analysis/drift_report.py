"""What an analysis leaves behind: `drift.json`, `drift.md` and pictures."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlaq_ros.analysis.drift_measure import DriftRun
from vlaq_ros.analysis.drift_page import page
from vlaq_ros.analysis.drift_paths import draw_trajectory
from vlaq_ros.analysis.drift_plots import draw_occupancy, draw_tasks
from vlaq_ros.analysis.drift_timeline import draw_timeline
from vlaq_ros.calibration.checkpoint import plain
from vlaq_ros.errors import MissingDependencyError

MOST_TRAJECTORIES = 12


def write_report(folder: Path, run: DriftRun, values: Mapping[str, Any]) -> list[Path]:
    """
    Write numbers, page and, where matplotlib is installed, pictures.

    Args:
        folder: Created; an older report in it is replaced file by file.
        run: What was measured.
        values: See `drift_summary.summarize`.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(values), indent=1, allow_nan=False) + '\n'
    (folder / 'drift.json').write_text(text, encoding='utf-8')
    try:
        pictures = draw_pictures(folder, run)
    except MissingDependencyError:
        pictures = {}
    (folder / 'drift.md').write_text(page(values, pictures), encoding='utf-8')
    return [folder / name for name in ('drift.json', 'drift.md', *pictures)]


def draw_pictures(folder: Path, run: DriftRun) -> dict[str, str]:
    """
    Write the pictures and return file -> title.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    pictures = {'timeline.png': 'Drift over time'}
    draw_timeline(folder / 'timeline.png', run)
    if any(one.levels for one in run.judged):
        draw_occupancy(folder / 'occupancy.png', run)
        pictures['occupancy.png'] = 'Levels of precision'
    if len({episode.title for episode in run.episodes}) > 1:
        draw_tasks(folder / 'tasks.png', run)
        pictures['tasks.png'] = 'Drift by task'
    for episode in run.episodes[:MOST_TRAJECTORIES]:
        title = re.sub(r'[^a-z0-9]+', '_', episode.title.lower()).strip('_')[:40]
        name = f'trajectory_{episode.number:02}_{title}.png'
        if draw_trajectory(folder / name, run, episode):
            pictures[name] = f'Path of episode {episode.number}: {episode.title}'
    return pictures
