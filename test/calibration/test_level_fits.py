"""Fits of levels against errors that are known: menus, boundaries, prediction, normalizers."""

import dataclasses

import numpy as np
import pytest

from vlaq_ros.calibration.level_fits import (
    LevelActions,
    combinations,
    fit_head,
    fit_motion,
)
from vlaq_ros.calibration.phases import Phase
from vlaq_ros.calibration.samples import Sample, Source
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.control.precision_dyq import NEVER
from vlaq_ros.policies.toy import toy_spec
from vlaq_ros.types import Observation

SPEC = toy_spec()
ROWS, DIM, HORIZON = SPEC.execution_horizon, SPEC.action.dim, SPEC.horizon
LADDER = PrecisionMenu.from_names('w4a8', 'w8a8', 'w8a16')
GROUPS = ('llm', 'expert')
COUNT = 60
PHASES = (Phase.APPROACH, Phase.FINE, Phase.GRASP, Phase.TRANSPORT)
LOOSE = Tolerance(drift_m=1.0, gripper=1.0)


def sample(number, sensitivity):
    seen = Observation({}, np.zeros(len(SPEC.state.names)), 'go', number)
    return Sample(seen, 'e', 'go', PHASES[number % 4], Source('r', 't', number), sensitivity)


def made(errors_m, sensitivities=None, seed=0):
    """
    Return actions of a head with independent errors along x of every executed step.

    `errors_m` gives the deviation by name of what runs, one number or one per sample.
    """
    rng = np.random.default_rng(seed)
    if sensitivities is None:
        sensitivities = np.linspace(0.0, 1.0, COUNT)
    reference = rng.uniform(-0.01, 0.01, (COUNT, HORIZON, DIM))
    at = {}
    for name in combinations(LADDER, GROUPS):
        at[name] = reference.copy()
        deviation = np.broadcast_to(errors_m.get(name, 0.0), COUNT)[:, None]
        at[name][:, :, 0] += deviation * rng.normal(size=(COUNT, HORIZON))
    samples = [sample(i, s if s is None else float(s)) for i, s in enumerate(sensitivities)]
    return LevelActions(samples, reference, at)


def fit(actions, held_out=None, tolerance=LOOSE, **options):
    return fit_head(SPEC, LADDER, GROUPS, actions, held_out or actions, tolerance, **options)


def test_all_groups_together_and_each_alone_are_measured():
    assert list(combinations(LADDER, GROUPS)) == [
        'w4a8',
        'w8a8',
        'w8a16',
        'expert w8a16, llm w4a8',
        'expert w8a16, llm w8a8',
        'expert w4a8, llm w8a16',
        'expert w8a8, llm w8a16',
    ]


def test_independent_errors_drift_with_the_root_of_the_steps_and_are_predicted():
    found = fit(made({'w4a8': 1e-3}), made({'w4a8': 1e-3}, seed=1)).measured['w4a8']
    assert found.rms_m == pytest.approx(1e-3 * ROWS**0.5, rel=0.25)
    assert found.prediction_ratio == pytest.approx(1.0, abs=0.2)
    assert found.error[0] == pytest.approx(1e-3 * (2 / np.pi) ** 0.5, rel=0.1)
    assert found.samples == COUNT


def test_phases_with_other_errors_are_told_apart():
    errors = np.where(np.arange(COUNT) % 4 == 2, 4e-3, 1e-3)  # at grasps
    drift = fit(made({'w4a8': errors})).drift
    deviation = {
        phase: drift.error_at('w4a8', phase).covariance[0, 0] ** 0.5
        for phase in ('gripper', 'fine', 'coarse')
    }
    assert deviation['gripper'] == pytest.approx(4e-3, rel=0.2)
    assert deviation['fine'] == pytest.approx(1e-3, rel=0.2)
    assert deviation['coarse'] == pytest.approx(1e-3, rel=0.2)


def test_the_error_model_knows_how_often_the_gripper_is_on_the_other_side():
    actions = made({})
    gripper = SPEC.action.names.index('gripper')
    actions.reference[:, :, gripper] = 1.0
    for chunks in actions.at.values():
        chunks[:, :, gripper] = 1.0
    grasps = np.arange(COUNT) % 4 == 2
    actions.at['w4a8'][grasps, 1:3, gripper] = 0.0
    actions.at['w4a8'][:, ROWS:, gripper] = 0.0  # is not executed
    drift = fit(actions).drift
    assert drift.error_at('w4a8', 'gripper').gripper == pytest.approx(2 / ROWS)
    assert drift.error_at('w4a8', 'fine').gripper == 0.0
    assert drift.error_at('w8a8', 'gripper').gripper == 0.0


def test_a_boundary_lies_where_the_drift_leaves_the_bound_of_the_tolerance():
    sensitivities = np.linspace(0.0, 1.0, COUNT)
    tolerance = Tolerance(drift_m=0.01, gripper=1.0)
    wanted = 0.7  # bound there: tolerance^2 (0.5 + 0.05) / (0.7 + 0.05)
    step_m = 0.01 * ((0.5 + 0.05) / (wanted + 0.05) / ROWS) ** 0.5
    errors = {'expert w8a16, llm w4a8': step_m, 'expert w8a16, llm w8a8': 1e-6}
    # a steady error along x: squared drift (steps * size)^2; scatter would blur the crossing
    actions = made({}, sensitivities)
    for name, size in errors.items():
        actions.at[name][:, :ROWS, 0] += size / ROWS**0.5
    found = fit(actions, tolerance=tolerance).precision
    assert found.rules == ('dyq',)
    low, high = found.groups['llm'].boundaries
    assert low == pytest.approx(wanted, abs=0.03)
    assert high == 1.0  # never left within what was seen
    assert found.groups['expert'].boundaries == (1.0, 1.0)


def test_the_bound_of_the_paper_never_admits_a_level_far_above_the_next():
    errors = {'expert w8a16, llm w4a8': 1e-2, 'expert w8a16, llm w8a8': 1e-4}
    boundaries = {
        bound: fit(made(errors), bound=bound).precision.groups['llm'].boundaries
        for bound in ('paper', 'tolerance')
    }
    assert boundaries['paper'][0] == NEVER
    assert 0.5 < boundaries['paper'][1] < 1.0
    assert boundaries['tolerance'] == (1.0, 1.0)


def test_a_level_that_misses_the_tolerance_together_or_alone_is_not_offered():
    tolerance = Tolerance(drift_m=0.005, gripper=1.0)
    together = fit(made({'w4a8': 1e-2}), tolerance=tolerance)
    assert not together.measured['w4a8'].within_tolerance
    for group in together.precision.groups.values():
        assert list(map(str, group.menu.levels)) == ['w8a8', 'w8a16']
    alone = fit(made({'expert w8a16, llm w4a8': 1e-2}), tolerance=tolerance).precision.groups
    assert list(map(str, alone['llm'].menu.levels)) == ['w8a8', 'w8a16']
    assert list(map(str, alone['expert'].menu.levels)) == ['w4a8', 'w8a8', 'w8a16']


def test_the_top_is_offered_whatever_it_misses():
    names = combinations(LADDER, GROUPS)
    found = fit(made(dict.fromkeys(names, 1e-2)), tolerance=Tolerance(drift_m=1e-4, gripper=1.0))
    for group in found.precision.groups.values():
        assert (group.menu.levels, group.boundaries) == ((LADDER.top,), ())
    assert 'no level below the top' in found.fits['llm']['why']


def test_samples_without_history_do_not_count_and_too_few_leave_no_boundaries():
    sensitivities = np.linspace(0.0, 1.0, COUNT)
    errors = {'expert w8a16, llm w4a8': 1e-3}
    actions = made(errors, sensitivities)
    wild = dataclasses.replace(actions, at={n: a.copy() for n, a in actions.at.items()})
    wild.at['expert w8a16, llm w4a8'][:15] += 0.05
    unknown = [
        dataclasses.replace(s, sensitivity=None if i < 15 else s.sensitivity)
        for i, s in enumerate(actions.samples)
    ]
    counted = [
        fit(dataclasses.replace(each, samples=unknown)).fits['llm'] for each in (actions, wild)
    ]
    assert counted[0] == counted[1]
    assert sum(counted[0]['counts']) == COUNT - 15

    few = fit(made(errors, [None] * (COUNT - 5) + [0.5] * 5))
    assert few.precision.rules == ('static',)
    assert few.precision.groups['llm'].boundaries is None
    assert '5 samples are too few' in few.fits['llm']['why']


def test_the_normalizer_is_the_95th_percentile_of_what_is_commanded_and_executed():
    chunks = np.zeros((100, HORIZON, DIM))
    chunks[:, :ROWS, 0] = np.linspace(0.0, 0.02, 100)[:, None]
    chunks[:, ROWS:, 0] = 5.0
    found = fit_motion(SPEC, [chunks])
    lengths = np.repeat(np.linspace(0.0, 0.02, 100), ROWS)
    assert found.translation_m == pytest.approx(np.quantile(lengths, 0.95))
    assert fit_motion(SPEC, [np.zeros((4, HORIZON, DIM))]) is None
