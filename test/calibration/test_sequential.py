"""Rounding in sequence: stages in running order, targets repaired for the inputs they get."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration import gptq
from vlaq_ros.calibration.action_error import default_metric
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.sequential import SequenceOptions, round_in_sequence, stages


def uniform(context, bits):
    return {name: (bits,) * context.linear(name).out_features for name in context.layers}


def error_of(context, result, batches):
    metric = default_metric(context)
    with torch.no_grad():
        reference = [context.forward(batch) for batch in batches]
        with applied(context.model, result):
            found = [context.forward(batch) for batch in batches]
    return sum(float(metric.error(f, r).sum()) for f, r in zip(found, reference))


def test_stages_are_the_layers_in_running_order_with_shared_inputs_together(context):
    found = stages(context)
    names = [stage.names for stage in found]
    attention = 'language_model.layers.0.self_attn'
    assert names[0] == tuple(f'{attention}.{x}_proj' for x in 'qkv')
    assert names[1] == (f'{attention}.o_proj',)
    assert ('dit.0.cross_attn.k_proj', 'dit.0.cross_attn.v_proj') in names
    assert sorted(n for group in names for n in group) == sorted(context.layers)
    calls = {stage.names[0]: stage.calls for stage in found}
    assert calls['context_proj'] == 1
    assert calls['dit.0.fc1'] == 5


def test_the_first_stage_has_nothing_to_repair(context):
    result = round_in_sequence(context, uniform(context, 4))
    for name in stages(context)[0].names:
        torch.testing.assert_close(result.targets[name], context.weight(name), atol=1e-5, rtol=0)


def test_without_repair_the_weights_themselves_are_rounded(context):
    result = round_in_sequence(context, uniform(context, 4), SequenceOptions(repair=0.0))
    assert all(torch.equal(result.targets[n], context.weight(n)) for n in context.layers)


def test_a_layer_makes_up_for_what_came_before_it(context):
    # Outputs of the last backbone layer, against full precision, with everything at 2 bits.
    name = 'language_model.layers.1.mlp.down_proj'
    outputs = {}
    for repair in (None, 0.0, 1.0):
        calls = []
        if repair is None:
            result = dataclasses.replace(gptq.calibrate(context), weights={})
        else:
            options = SequenceOptions(repair=repair)
            result = round_in_sequence(context, uniform(context, 2), options)
        with torch.no_grad(), applied(context.model, result) as model:
            layer = model.get_submodule(name)
            layer.register_forward_hook(lambda _, __, y, calls=calls: calls.append(y))
            for batch in context.batches:
                context.forward(batch)
        context.linear(name)._forward_hooks.clear()
        outputs[repair] = torch.cat(calls)
    exact = outputs[None]
    assert (outputs[1.0] - exact).square().mean() < (outputs[0.0] - exact).square().mean()


def test_it_beats_rounding_against_full_precision_inputs(context):
    context = dataclasses.replace(context, budget_bits=3.0)
    plain = gptq.calibrate(context)
    result = round_in_sequence(context, uniform(context, 2))
    assert result.mean_bits_per_weight == pytest.approx(plain.mean_bits_per_weight)
    assert error_of(context, result, context.batches) < error_of(context, plain, context.batches)


def test_the_model_keeps_no_hooks_and_no_weights(context):
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    round_in_sequence(context, uniform(context, 4))
    assert not any(module._forward_pre_hooks for module in context.model.modules())
    after = context.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
