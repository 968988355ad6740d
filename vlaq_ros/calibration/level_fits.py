"""
What the actions at every level tell: errors, boundaries of DyQ-VLA, and an error model for drift.

Numbers in, numbers out; `levels` runs the policy. Everything is fitted to calibration samples and
judged on held-out ones, head by head.

- A level is offered to a module group when it keeps the tolerance with all groups at it *and* with
  this group alone at it: two groups may be low at the same time, and errors do not add up. The top
  is always offered.
- Boundaries: `control.precision_fit` with the group alone at a level and the others at the top.
  `tolerance`: the error is the squared drift of the executed rows [m^2], and the bound is the
  tolerance at the median S. `paper`: the error is the squared error of the executed actions, each
  dimension divided by its standard deviation, and the bound is as reconstructed there, by the
  error of the level just below the top. That suits widths of activations over one weight; 4-bit
  weights have about a hundred times the squared error of 8-bit ones, so no S ever admits them.
- The error model: `kinematics.predicted_drift`, from the executed rows. Phases of a recording are
  pooled into those that a running node can tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.calibration.phases import Phase
from vlaq_ros.calibration.samples import Sample
from vlaq_ros.calibration.verification import Tolerance, head_report
from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu
from vlaq_ros.control.precision_fit import SOFTENING, fit_boundaries
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.drift import open_loop_drift
from vlaq_ros.kinematics.motion import MotionScale, fit_motion_scale
from vlaq_ros.kinematics.predicted_drift import ErrorSample, PredictedDrift
from vlaq_ros.policies.levels import HeadLevels, MeasuredLevel, levels_name
from vlaq_ros.policies.spec import PolicySpec

MOTION_PHASES = {
    Phase.GRASP: 'gripper',
    Phase.FINE: 'fine',
    Phase.APPROACH: 'coarse',
    Phase.TRANSPORT: 'coarse',
}
"""Phase of a recorded step -> what `kinematics.motion.motion_phase` calls it live."""

BOUNDS = ('tolerance', 'paper')
"""What an error is admitted by; see above."""


@dataclass(frozen=True, eq=False)
class LevelActions:
    """
    What one head would do on some samples.

    Attributes:
        samples: The samples.
        reference: [samples, horizon, action_dim] at full precision.
        at: Name of what runs -> the same at these levels.
    """

    samples: Sequence[Sample]
    reference: NDArray
    at: Mapping[str, NDArray]

    @property
    def phases(self) -> list[str]:
        """The phase of each sample, as an error model names it."""
        return [MOTION_PHASES[sample.phase] for sample in self.samples]

    @property
    def sensitivities(self) -> NDArray:
        """S of each sample; NaN where it is not known."""
        return np.array([np.nan if s.sensitivity is None else s.sensitivity for s in self.samples])


def combinations(
    ladder: PrecisionMenu, groups: Sequence[str]
) -> dict[str, dict[str, PrecisionLevel]]:
    """Return what is measured, by name: all groups at a level, then each alone below the top."""
    found = {str(level): dict.fromkeys(groups, level) for level in ladder.levels}
    for group in groups:
        for level in ladder.levels[:-1]:
            levels = alone(ladder, groups, group, level)
            found.setdefault(levels_name(levels), levels)
    return found


def alone(
    ladder: PrecisionMenu, groups: Sequence[str], group: str, level: PrecisionLevel
) -> dict[str, PrecisionLevel]:
    """Return one group at a level and the others at the top."""
    return {**dict.fromkeys(groups, ladder.top), group: level}


def fit_head(
    spec: PolicySpec,
    ladder: PrecisionMenu,
    groups: Sequence[str],
    calibration: LevelActions,
    held_out: LevelActions,
    tolerance: Tolerance,
    bound: str = BOUNDS[0],
) -> HeadLevels:
    """
    Fit and judge the levels of one head.

    Args:
        spec: The policy.
        ladder: The levels.
        groups: Module groups.
        calibration: To fit to.
        held_out: To judge on.
        tolerance: What is good enough.
        bound: One of `BOUNDS`.
    """
    drift = fit_drift(spec, calibration)
    measured = {
        name: _measure(spec, held_out, name, drift, tolerance)
        for name in combinations(ladder, groups)
    }
    fitted, fits = {}, {}
    for group in groups:
        names = {
            level: levels_name(alone(ladder, groups, group, level)) for level in ladder.levels
        }
        menu = PrecisionMenu(
            tuple(
                level
                for level, name in names.items()
                if level == ladder.top
                or (measured[str(level)].within_tolerance and measured[name].within_tolerance)
            )
        )
        boundaries, fits[group] = _boundaries(
            menu,
            {level: _errors(spec, calibration, names[level], bound) for level in menu.levels[:-1]},
            calibration.sensitivities,
            tolerance.drift_m**2 if bound == 'tolerance' else None,
        )
        fits[group]['bound_by'] = bound
        fitted[group] = GroupParameters(menu, boundaries)
    has_all = all(group.boundaries is not None for group in fitted.values())
    precision = PrecisionParameters(('dyq',) if has_all else ('static',), fitted)
    return HeadLevels(measured, precision, fits, drift)


def fit_drift(spec: PolicySpec, actions: LevelActions) -> PredictedDrift:
    """Return the error model of the executed rows at everything that was run."""
    rows = slice(spec.execution_horizon)
    steps = len(actions.reference[0, rows])
    samples = [
        ErrorSample(name, (phase,) * steps, found[rows], exact[rows])
        for name, chunks in actions.at.items()
        for phase, found, exact in zip(actions.phases, chunks, actions.reference)
    ]
    return PredictedDrift.fit(samples, spec.action)


def fit_motion(spec: PolicySpec, references: Sequence[NDArray]) -> MotionScale | None:
    """
    Return the normalizers of the steps that full precision commands; None: it commands none.

    Args:
        spec: The policy.
        references: Per head [samples, horizon, action_dim]; the executed rows count.
    """
    chunks = np.concatenate(list(references))[:, : spec.execution_horizon]
    try:
        return fit_motion_scale(chunks, spec.action)
    except ConfigError:
        return None


def _measure(
    spec: PolicySpec, actions: LevelActions, name: str, drift: PredictedDrift, tolerance: Tolerance
) -> MeasuredLevel:
    report = head_report(actions.at[name], actions.reference, spec.action)
    rows = slice(spec.execution_horizon)
    measured, predicted = [], []
    for phase, found, exact in zip(actions.phases, actions.at[name], actions.reference):
        moved = open_loop_drift(found[rows], exact[rows], spec.action)
        measured.append(moved.position_accumulated_m)
        steps = len(found[rows])
        forecast = drift.predict(found[rows], (name,) * steps, (phase,) * steps)
        predicted.append(forecast.position_rms_m)
    return MeasuredLevel(
        **asdict(report),
        excess=report.excess(tolerance),
        rms_m=_root_mean_square(measured),
        predicted_rms_m=_root_mean_square(predicted),
    )


def _boundaries(
    menu: PrecisionMenu,
    errors: Mapping[PrecisionLevel, NDArray],
    sensitivities: NDArray,
    median_bound: float | None,
) -> tuple[tuple[float, ...] | None, dict[str, Any]]:
    """
    Return the boundaries of a menu, None without any; and what they were read from.

    Args:
        menu: The levels.
        errors: Level below the top -> error [samples].
        sensitivities: [samples], NaN where unknown.
        median_bound: The error that is admitted at the median sensitivity; None: fitted.
    """
    if len(menu) == 1:
        return (), {'why': 'no level below the top keeps the tolerance'}
    known = np.isfinite(sensitivities)
    count = np.count_nonzero(known)
    budget = None
    if median_bound is not None and count:
        budget = median_bound * (float(np.median(sensitivities[known])) + SOFTENING)
    try:
        fit = fit_boundaries(
            sensitivities[known],
            {level: values[known] for level, values in errors.items()},
            menu,
            budget=budget,
        )
    except ConfigError as problem:
        return None, {'why': f'{problem} ({count} samples have a history)'}
    return fit.boundaries, fit.to_dict()


def _errors(spec: PolicySpec, actions: LevelActions, name: str, bound: str) -> NDArray:
    """Return the error [samples] of what the executed rows do, as `bound` measures it."""
    rows = slice(spec.execution_horizon)
    pairs = actions.at[name][:, rows], actions.reference[:, rows]
    if bound == 'tolerance':
        drifts = [open_loop_drift(*pair, spec.action) for pair in zip(*pairs)]
        return np.square([drift.position_accumulated_m for drift in drifts])
    return np.square((pairs[0] - pairs[1]) / np.array(spec.action_std)).sum(-1).mean(-1)


def _root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
