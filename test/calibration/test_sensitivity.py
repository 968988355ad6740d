"""Sensitivity: gradients against exact measurements, layer by layer, for both heads."""

import numpy as np
import pytest
import torch

from vlaq_ros.calibration.action_error import ActionMetric, default_metric
from vlaq_ros.calibration.allocation import MENU
from vlaq_ros.calibration.sensitivity import (
    ChannelChange,
    measure_exactly,
    measure_sensitivity,
    rank_correlation,
)
from vlaq_ros.calibration.statistics import collect_statistics
from vlaq_ros.errors import SchemeError


def sampled_changes(context, head, count, seed=0):
    rng = np.random.default_rng(seed)
    names = [n for n, role in context.layers.items() if head == 'flow' or role == 'llm']
    changes = []
    for _ in range(count):
        name = names[rng.integers(len(names))]
        channel = int(rng.integers(context.linear(name).out_features))
        changes.append(ChannelChange(name, (channel,), int(rng.choice([0, 2, 4]))))
    return changes


@pytest.mark.parametrize('head', ['flow', 'token'])
def test_the_estimate_ranks_channels_as_exact_measurement_does(context, head):
    statistics = collect_statistics(context)
    metric = default_metric(context, (head,))
    found, passes = measure_sensitivity(context, statistics, metric, probes=8)
    changes = sampled_changes(context, head, 60)
    exact, exact_passes = measure_exactly(context, metric, changes, statistics)
    column = {bits: i for i, bits in enumerate(MENU)}
    joint = [found[c.layer].cost[c.channels[0], column[c.bits]] for c in changes]
    product = [found[c.layer].product[c.channels[0], column[c.bits]] for c in changes]
    assert rank_correlation(joint, exact) >= 0.95
    assert rank_correlation(joint, exact) > rank_correlation(product, exact)
    assert np.median(np.array(joint) / exact) == pytest.approx(1.0, abs=0.25)
    assert passes == (2, 16)
    assert exact_passes == (2 * 61, 0)


def test_no_layer_of_a_frozen_model_is_silently_insensitive(context):
    statistics = collect_statistics(context)
    found, _ = measure_sensitivity(context, statistics, default_metric(context), probes=1)
    for name, layer in found.items():
        assert layer.cost[:, MENU.index(2)].sum() > 0.0, name
        assert layer.product[:, MENU.index(2)].sum() > 0.0, name
        assert (layer.cost[:, 0] < layer.cost[:, MENU.index(2)]).mean() > 0.9, name


def test_layers_that_a_head_does_not_use_cost_it_nothing(context):
    statistics = collect_statistics(context)
    found, _ = measure_sensitivity(context, statistics, default_metric(context, ('token',)))
    assert (found['dit.0.fc1'].cost == 0.0).all()


def test_some_layers_at_a_time_give_what_all_together_do(context):
    statistics, metric = collect_statistics(context), default_metric(context)
    together, _ = measure_sensitivity(context, statistics, metric, probes=1)
    name = 'dit.0.fc1'
    alone, _ = measure_sensitivity(context, statistics, metric, probes=1, layers=[name])
    assert set(alone) == {name}
    np.testing.assert_allclose(alone[name].cost, together[name].cost, rtol=1e-4)


def test_the_token_hessian_is_that_of_inputs_weighted_by_squared_gradients(context):
    # With one observation per batch it must equal a sum over tokens, taken by hand.
    name, calls = 'context_proj', []
    layer = context.linear(name)

    def keep(_, args, y):
        y = y.detach().requires_grad_() if not y.requires_grad else y
        y.retain_grad()
        calls.append((args[0], y))
        return y

    metric = default_metric(context)
    statistics = collect_statistics(context)
    found, _ = measure_sensitivity(context, statistics, metric, probes=1)
    expected = torch.zeros(32, 32)
    generator = torch.Generator().manual_seed(context.seed)
    handle = layer.register_forward_hook(keep)
    for batch in context.batches:
        projected = metric.project(context.forward(batch))
        signs = torch.randint(0, 2, projected.shape, generator=generator) * 2.0 - 1.0
        projected.backward(signs)
        x, y = calls.pop()
        weight = y.grad.square().mean(-1, keepdim=True)
        expected += ((weight * x).flatten(0, 1).T @ x.flatten(0, 1)).detach()
    handle.remove()
    count = sum(len(batch.state) for batch in context.batches)
    torch.testing.assert_close(
        found[name].token_hessian, expected.double() / count, rtol=1e-3, atol=1e-9
    )


def test_an_exact_measurement_leaves_the_model_as_it_was(context):
    statistics = collect_statistics(context)
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    changes = [ChannelChange('dit.0.fc1', (0, 3), 0), ChannelChange('time_in', (1,), 2)]
    errors, _ = measure_exactly(context, default_metric(context), changes, statistics)
    assert (errors > 0.0).all()
    after = context.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_ranks_of_equal_values_are_shared():
    assert rank_correlation([1, 2, 2, 3], [10, 20, 20, 30]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0.0)


def test_the_metric_divides_by_the_scale_and_adds_up_what_accumulates(context):
    ones = torch.ones(1, 8, 4)
    plain = ActionMetric(context.spec, torch.full((4,), 2.0), torch.ones(4))
    zeros = {'flow': torch.zeros_like(ones)}
    assert plain.error({'flow': ones}, zeros).item() == pytest.approx(4 * 0.25)
    drifting = ActionMetric(context.spec, torch.ones(4), torch.ones(4), accumulated=1.0)
    sums = sum(k * k for k in range(1, 9)) / 8
    assert drifting.error({'flow': ones}, zeros).item() == pytest.approx(4 + 3 * sums)
    alternating = {'flow': ones * torch.tensor([1.0, -1.0] * 4)[:, None]}
    assert drifting.error(alternating, zeros).item() == pytest.approx(4 + 3 * 0.5)


def test_a_head_that_does_not_exist_is_refused(context):
    metric = default_metric(context, ('diffusion',))
    with pytest.raises(SchemeError, match=r"no head \['diffusion'\]; it has \['flow', 'token'\]"):
        metric.project(context.forward(context.batches[0]))
