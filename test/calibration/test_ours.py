"""The package's own method: within the budget, better than what it is built from."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import gptq, ours, rtn
from vlaq_ros.calibration.action_error import default_metric
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.ours import OursOptions
from vlaq_ros.calibration.tuning import TuningOptions
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.errors import SchemeError


def error_of(context, result, batches):
    metric = default_metric(context)
    with torch.no_grad():
        reference = [context.forward(batch) for batch in batches]
        with applied(context.model, result):
            found = [context.forward(batch) for batch in batches]
    return sum(float(metric.error(f, r).sum()) for f, r in zip(found, reference))


@pytest.fixture
def three_bits(context):
    """At this budget the others can only take 2 bits everywhere."""
    return dataclasses.replace(context, budget_bits=3.5, group_size=None)


def test_it_uses_the_budget_and_beats_uniform_widths_of_no_more_bytes(three_bits):
    result = ours.calibrate(three_bits)
    assert 3.4 <= result.mean_bits_per_weight <= 3.5
    assert len(result.histogram()) > 1
    error = error_of(three_bits, result, three_bits.held_out)
    for method in (rtn, gptq):
        assert error < error_of(three_bits, method.calibrate(three_bits), three_bits.held_out)


def test_one_head_alone_gets_the_whole_budget(three_bits):
    result = ours.calibrate(three_bits, OursOptions(heads=('token',)))
    bits = {name: weight.widths().float().mean() for name, weight in result.weights.items()}
    assert {float(v) for n, v in bits.items() if three_bits.layers[n] == 'expert'} == {2.0}
    assert max(v for n, v in bits.items() if three_bits.layers[n] == 'llm') > 2.0


def test_a_budget_below_two_bits_and_scales_needs_pruning(three_bits):
    tight = dataclasses.replace(three_bits, budget_bits=2.4)
    with pytest.raises(SchemeError, match='or allow narrower widths or more pruning'):
        ours.calibrate(tight)
    result = ours.calibrate(tight, OursOptions(tile=1, prune_share=0.2))
    assert result.mean_bits_per_weight <= 2.4
    pruned = {name for name, weight in result.weights.items() if weight.layout.pruned}
    assert pruned
    assert {name.removesuffix('.bias') for name in result.parameters} == pruned


def test_tuning_afterwards_never_harms_the_calibration_set(three_bits):
    plain = ours.calibrate(three_bits, OursOptions(accumulated=0.0))
    options = OursOptions(accumulated=0.0, tuning=TuningOptions(steps=5))
    tuned = ours.calibrate(three_bits, options)
    assert tuned.nbytes == plain.nbytes
    before, after = (error_of(three_bits, r, three_bits.batches) for r in (plain, tuned))
    assert after <= before * (1 + 1e-6)
    assert tuned.provenance['tuning_steps'] == 5


def test_verification_keeps_a_reserve_and_says_how_it_went(three_bits):
    options = OursOptions(tolerance=Tolerance(1e-6, 1.0, 1.0), reserve=0.1)
    result = ours.calibrate(three_bits, options)
    found = result.provenance['verification']
    assert not found['passed']
    assert '% of its limit' in found['reason']
    assert result.mean_bits_per_weight <= 3.5
    loose = OursOptions(tolerance=Tolerance(1.0, 1.0, 1.0), reserve=0.1)
    easy = ours.calibrate(three_bits, loose)
    assert easy.provenance['verification']['passed']
    assert easy.mean_bits_per_weight <= 0.9 * 3.5 + 1e-9


def test_a_reserve_that_is_no_share_is_refused():
    with pytest.raises(SchemeError, match='from 0 to below 1'):
        OursOptions(reserve=1.0)
