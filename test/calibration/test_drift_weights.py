"""Drift weights: the virtual chain against finite differences, poses against known geometry."""

import dataclasses

import numpy as np
import pytest

from vlaq_ros.calibration.drift_weights import chain_jacobian, chain_weights, pose_weights
from vlaq_ros.errors import SchemeError
from vlaq_ros.types import ActionSpec

NAMES = ('ee_x', 'ee_y', 'ee_z', 'ee_rx', 'ee_ry', 'ee_rz', 'gripper')
SPEC = ActionSpec(
    names=NAMES,
    units=('m',) * 3 + ('rad',) * 3 + ('1',),
    frame='tool',
    delta=True,
    period_ns=50_000_000,
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
)


def tip(increments):
    angles = np.cumsum(increments)
    return np.array([np.cos(angles).sum(), np.sin(angles).sum(), angles[-1]])


@pytest.mark.parametrize('seed', range(5))
def test_the_analytic_jacobian_is_that_of_finite_differences(seed):
    increments = np.random.default_rng(seed).normal(size=7)
    found = chain_jacobian(increments)
    for j in range(7):
        step = np.zeros(7)
        step[j] = 1e-6
        numeric = (tip(increments + step) - tip(increments - step)) / 2e-6
        np.testing.assert_allclose(found[:, j], numeric, atol=1e-8)


def test_weights_have_mean_one_and_are_those_of_the_formula():
    actions = np.random.default_rng(1).normal(size=(20, 7))
    found = chain_weights(actions)
    assert found.mean() == pytest.approx(1.0)
    total = np.zeros(7)
    for increments in actions:
        J = chain_jacobian(increments)
        inverse = np.linalg.solve(J @ J.T + 3e-4 * np.eye(3), J).T
        total += np.abs(inverse) @ (1.8, 1.8, 0.15)
    np.testing.assert_allclose(found, total / total.mean(), rtol=1e-9)


def test_a_turn_early_in_the_chunk_drifts_more_than_the_gripper_or_a_weak_axis():
    chunks = np.zeros((3, 8, 7))
    chunks[..., 0] = 0.05  # the tool advances along its own x
    scale = np.array([0.01, 0.01, 0.01, 0.2, 0.2, 0.2, 1.0])
    found = pose_weights(chunks, SPEC, scale)
    assert found[6] == 1.0  # the gripper moves no pose
    assert found[[0, 1, 2, 3, 4, 5]].mean() == pytest.approx(1.0)
    assert found[4] > found[3]  # a pitch also displaces what comes after, a roll does not
    assert found[4] == pytest.approx(found[5], rel=1e-6)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_pure_translations_weigh_as_their_scales():
    spec = dataclasses.replace(
        SPEC, names=NAMES[:3], units=('m',) * 3, low=(-1.0,) * 3, high=(1.0,) * 3
    )
    found = pose_weights(np.zeros((2, 4, 3)), spec, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, [0.5, 1.0, 1.5], rtol=1e-6)


def test_without_a_dimension_that_moves_all_weigh_alike():
    spec = dataclasses.replace(SPEC, names=('gripper',), units=('1',), low=(0.0,), high=(1.0,))
    assert pose_weights(np.zeros((2, 4, 1)), spec, np.ones(1)).tolist() == [1.0]


@pytest.mark.parametrize('actions', [np.zeros((0, 7)), np.full((2, 7), np.nan), np.zeros(7)])
def test_actions_that_say_nothing_are_refused(actions):
    with pytest.raises(SchemeError, match='finite actions'):
        chain_weights(actions)
