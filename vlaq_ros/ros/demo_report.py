"""
What the demo shows in the end: three tables, a sheet of pictures, the drift over time, numbers.

Success and drift, latency, and memory are never mixed in one table.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.kinematics.drift import EARLY_STEP, ClosedLoopDrift, closed_loop_drift
from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.ros import demo_pictures
from vlaq_ros.ros.demo_driver import RosEpisode
from vlaq_ros.sim.results import Record

_MIB = 2.0**20


@dataclass(frozen=True)
class Comparison:
    """
    One episode three times.

    Attributes:
        ros: Quantized, over topics.
        quantized: Quantized, without ROS; None when the demo runs at full precision.
        reference: Full precision, without ROS.
    """

    ros: RosEpisode
    quantized: Record | None
    reference: Record

    @property
    def drift(self) -> ClosedLoopDrift:
        """Closed-loop drift of the run over topics against full precision."""
        return closed_loop_drift(self.ros.positions, self.reference.positions)

    @property
    def distance_mm(self) -> NDArray[np.float64]:
        """Distance of the two hands after every step, until the shorter episode ends [mm]."""
        both = min(len(self.ros.positions), len(self.reference.positions))
        apart = self.ros.positions[:both] - self.reference.positions[:both]
        return 1e3 * np.linalg.norm(apart, axis=1)

    @property
    def open_loop(self) -> Mapping[str, float]:
        """Open-loop drift by name; empty when the demo runs at full precision."""
        return (self.quantized.open_loop or {}) if self.quantized is not None else {}

    @property
    def deviation_from_no_ros_m(self) -> float:
        """Largest distance between the runs with and without ROS; infinite if one took longer."""
        same = self.quantized or self.reference
        if self.ros.positions.shape != same.positions.shape:
            return math.inf
        return float(np.abs(self.ros.positions - same.positions).max())


@dataclass
class DemoReport:
    """Everything the demo measured."""

    bundle: str
    precision: str
    head: str
    realtime: bool
    comparisons: Sequence[Comparison]
    latency_ms: Mapping[str, tuple[float, float]]
    resident_bytes: Mapping[str, int]
    memory: Mapping[str, MemoryReport]
    kernel: str
    wall_s: float = math.nan
    overrides: Mapping[str, object] = field(default_factory=dict)

    def tables(self) -> str:
        """Return the tables for the terminal."""
        parts = [
            self._success(),
            self._same_without_ros(),
            self._latency(),
            self._resident(),
            f'{self.wall_s:.0f} s in total',
        ]
        return '\n\n'.join(['', *(part for part in parts if part)])

    def write(self, folder: Path) -> list[Path]:
        """Write pictures and numbers; return their paths."""
        numbers = folder / 'demo.json'
        numbers.write_text(json.dumps(self.to_json(), indent=1) + '\n', encoding='utf-8')
        return [*demo_pictures.draw(folder, self.precision, self.comparisons), numbers]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; lengths in metres, times in seconds unless named otherwise."""
        return {
            'bundle': self.bundle,
            'precision': self.precision,
            'head': self.head,
            'mode': 'real time' if self.realtime else 'lockstep',
            'wall_s': round(self.wall_s, 1),
            'success': sum(one.ros.success for one in self.comparisons),
            'reference_success': sum(one.reference.success for one in self.comparisons),
            'episodes': [_episode_json(one) for one in self.comparisons],
            'latency_ms_p50_p95': {name: list(ms) for name, ms in self.latency_ms.items()},
            'resident_bytes': dict(self.resident_bytes),
            'weights': {
                name: {
                    'weight_bytes': report.weight_bytes,
                    'quantized_bytes': report.quantized_bytes,
                    'quantized_layers': report.quantized_layers,
                }
                for name, report in self.memory.items()
            },
            'kernel': self.kernel,
        }

    def _success(self) -> str:
        rows = [
            (
                'task',
                f'{self.precision} with ROS',
                'fp32 reference',
                'closed-loop drift: mean',
                'max',
                f'at step {EARLY_STEP}',
                'open-loop: per step',
                'accumulated',
            )
        ]
        for one in self.comparisons:
            drift, open_loop = one.drift, one.open_loop
            rows.append(
                (
                    one.ros.episode.task,
                    _verdict(one.ros.success, one.ros.steps, one.ros.aborted),
                    _verdict(one.reference.success, one.reference.steps),
                    *map(_mm, (drift.mean_m, drift.max_m, drift.at_step_12_m)),
                    _mm(open_loop.get('position_per_step_m')),
                    _mm(open_loop.get('position_accumulated_m')),
                )
            )
        drifts = [one.drift for one in self.comparisons]
        total = len(self.comparisons)
        rows.append(
            (
                'total',
                f'{sum(one.ros.success for one in self.comparisons)} of {total}',
                f'{sum(one.reference.success for one in self.comparisons)} of {total}',
                _mm(np.mean([drift.mean_m for drift in drifts])),
                _mm(max(drift.max_m for drift in drifts)),
                _mm(np.nanmean([drift.at_step_12_m for drift in drifts])),
                _mm(self._mean_open_loop('position_per_step_m')),
                _mm(self._mean_open_loop('position_accumulated_m')),
            )
        )
        return _table(rows) + (
            '\nOne episode per task shows that it works, not how often: `vlaq eval` measures that.'
        )

    def _same_without_ros(self) -> str:
        if self.overrides:
            named = ', '.join(f'{name}={value}' for name, value in self.overrides.items())
            return (
                f'Over topics the policy node had {named}; open-loop error is that of '
                f'{self.precision} throughout.'
            )
        if self.realtime:
            return 'In real time, drift contains how long the arm waited for inferences, too.'
        worst = max(one.deviation_from_no_ros_m for one in self.comparisons)
        if math.isfinite(worst):
            return (
                f'{self.precision} over topics and {self.precision} without ROS: the hand is at '
                f'most {1e3 * worst:.3g} mm apart.'
            )
        different = [
            one.ros.episode.task
            for one in self.comparisons
            if not math.isfinite(one.deviation_from_no_ros_m)
        ]
        return f'Over topics and without ROS these took a different time: {", ".join(different)}.'

    def _latency(self) -> str:
        if not self.latency_ms:
            return 'Latency: the policy reported none.'
        rows = [('latency of an inference', 'p50', 'p95')]
        rows += [(name, f'{p50:.1f} ms', f'{p95:.1f} ms') for name, (p50, p95) in self._stages()]
        return _table(rows) + '\nMeasured in the policy node, while simulator and reference ran.'

    def _stages(self) -> list[tuple[str, tuple[float, float]]]:
        return sorted(self.latency_ms.items(), key=lambda item: item[0] == 'total')

    def _resident(self) -> str:
        rows = [('memory', 'size')]
        for name, report in self.memory.items():
            rows.append((f'{name}: weights', f'{report.weight_bytes / _MIB:.2f} MiB'))
            if report.quantized_bytes:
                rows.append(
                    (f'{name}: packed layers in it', f'{report.quantized_bytes / _MIB:.2f} MiB')
                )
        for name, size in self.resident_bytes.items():
            rows.append((f'node {name}: resident, with its libraries', f'{size / _MIB:.0f} MiB'))
        return _table(rows) + (f'\nKernel: {self.kernel}' if self.kernel else '')

    def _mean_open_loop(self, name: str) -> float | None:
        values = [one.open_loop[name] for one in self.comparisons if name in one.open_loop]
        return float(np.mean(values)) if values else None


def _episode_json(one: Comparison) -> dict[str, Any]:
    drift = one.drift
    deviation = one.deviation_from_no_ros_m
    return {
        'task': one.ros.episode.task,
        'seed': one.ros.episode.seed,
        'index': one.ros.episode.index,
        'instruction': one.ros.episode.instruction,
        'success': one.ros.success,
        'aborted': one.ros.aborted,
        'steps': one.ros.steps,
        'wall_s': round(one.ros.wall_s, 2),
        'inference_s': [round(value, 6) for value in one.ros.inference_s],
        'reference_success': one.reference.success,
        'reference_steps': one.reference.steps,
        'closed_loop_drift_m': {
            'mean': drift.mean_m,
            'max': drift.max_m,
            'median': drift.median_m,
            f'at_step_{EARLY_STEP}': None
            if math.isnan(drift.at_step_12_m)
            else drift.at_step_12_m,
        },
        'open_loop_drift': dict(one.open_loop),
        'deviation_from_no_ros_m': deviation if math.isfinite(deviation) else None,
        'positions_m': np.round(one.ros.positions, 6).tolist(),
    }


def _verdict(success: bool, steps: int, aborted: bool = False) -> str:
    return 'aborted' if aborted else f'{"yes" if success else "no"}, {steps} steps'


def _mm(length_m: float | None) -> str:
    if length_m is None or math.isnan(length_m):
        return 'n/a'
    return f'{1e3 * length_m:.2f} mm'


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns, the first row as heading; numbers are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
