"""Verification: what is measured, what is promoted, and when it says that it cannot."""

import dataclasses

import numpy as np
import pytest
import torch

from vlaq_ros.calibration import rtn
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.verification import (
    Tolerance,
    executed_actions,
    judge,
    one_width_more,
    verify,
)
from vlaq_ros.errors import SchemeError


@pytest.fixture
def two_bits(context):
    return rtn.calibrate(dataclasses.replace(context, budget_bits=3.0), 'mse')


def limits_for(context, result, share):
    """Return a tolerance at a share of the present error of the worst head."""
    heads = judge(context, result, executed_actions(context, context.held_out))
    return Tolerance(share * max(h.drift_m for h in heads.values()), 1.0, 1.0)


def test_errors_are_in_the_units_of_the_actions(context, two_bits):
    reference = executed_actions(context, context.held_out)
    found = judge(context, two_bits, reference)
    with applied(context.model, two_bits):
        actions = executed_actions(context, context.held_out)
    for head, report in found.items():
        error = (actions[0][head] - reference[0][head]).double()
        np.testing.assert_allclose(report.error, error.abs().mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(report.worst, error.abs().amax((0, 1)), rtol=1e-5)
        drift = error[..., :3].sum(1).norm(dim=-1).mean()
        assert report.drift_m == pytest.approx(float(drift), rel=1e-5)
        assert np.isnan(report.drift_rad)
        assert report.samples == 8


def test_a_result_that_holds_is_left_alone(context, two_bits):
    tolerance = limits_for(context, two_bits, 1.01)
    promote = one_width_more(context, two_bits)
    same, found = verify(context, two_bits, tolerance, promote, budget_bytes=0.0)
    assert same is two_bits
    assert found.passed
    assert found.promoted == ()
    assert 'within the tolerance' in found.reason


def test_layers_are_promoted_until_it_passes(context, two_bits):
    tolerance = limits_for(context, two_bits, 0.5)
    result, found = verify(
        context, two_bits, tolerance, one_width_more(context, two_bits), candidates=4
    )
    assert found.passed, found.reason
    assert found.promoted
    assert result.nbytes <= context.budget_bytes
    reference = executed_actions(context, context.held_out)
    excess = max(h.excess(tolerance) for h in judge(context, result, reference).values())
    assert excess <= 1.0
    for name, before, after in found.promoted:
        assert after > before
        assert 2 not in result.weights[name].widths()


def test_it_says_when_the_budget_is_used(context, two_bits):
    tolerance = limits_for(context, two_bits, 0.1)
    promote = one_width_more(context, two_bits)
    result, found = verify(
        context, two_bits, tolerance, promote, budget_bytes=1.02 * two_bits.nbytes
    )
    assert not found.passed
    assert result.nbytes <= 1.02 * two_bits.nbytes
    assert found.reason.startswith('the budget is used')
    assert '% of its limit' in found.reason


def test_it_stops_after_the_allowed_promotions(context, two_bits):
    tolerance = limits_for(context, two_bits, 0.01)
    promote = one_width_more(context, two_bits)
    _, found = verify(context, two_bits, tolerance, promote, candidates=2, max_steps=1)
    assert not found.passed
    assert len(found.promoted) == 1
    assert found.reason.startswith('1 promotions were made')


def test_the_model_is_what_it_was_afterwards(context, two_bits):
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    tolerance = limits_for(context, two_bits, 0.8)
    verify(context, two_bits, tolerance, one_width_more(context, two_bits), candidates=1)
    after = context.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_held_out_samples_are_needed(context, two_bits):
    blind = dataclasses.replace(context, held_out=[])
    with pytest.raises(SchemeError, match='held-out batches'):
        verify(blind, two_bits, Tolerance(), one_width_more(context, two_bits))


def test_limits_must_be_positive():
    with pytest.raises(SchemeError, match='drift_m, gripper'):
        Tolerance(drift_m=0.0, gripper=-1.0)
