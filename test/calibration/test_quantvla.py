"""QuantVLA: layout, and corrections that recover errors put in on purpose."""

import dataclasses
import math

import pytest
import torch

from vlaq_ros.calibration import quantvla
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.attention_balance import (
    RANGES,
    balance_attention,
    measure_attention,
    scale_outputs,
)
from vlaq_ros.calibration.method import MethodResult, scale_rows
from vlaq_ros.calibration.quantvla import QuantVlaOptions
from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import MixedWeight

BACKBONE, SELF = 0, 2  # attention layers: two of the backbone, then self and cross of the head


def wrong_by(context, attention, query=None, output=None):
    """Return a result whose only errors are gains of one query or output projection."""
    weights, parameters = {}, {}
    for name, gains in ((attention.query, query), (attention.output, output)):
        linear = context.linear(name)
        gains = torch.ones(linear.out_features) if gains is None else gains
        exact = MixedWeight.from_float(linear.weight.detach(), (16,) * linear.out_features, 32)
        weights[name] = scale_rows(exact, gains)
        if linear.bias is not None:
            parameters[f'{name}.bias'] = linear.bias * gains
    return MethodResult('test', weights, dict.fromkeys(weights, 16), parameters)


@pytest.mark.parametrize('which', [BACKBONE, SELF], ids=['backbone', 'head'])
def test_alpha_recovers_an_injected_temperature(context, which):
    attention = context.structure.attentions[which]
    injected = torch.tensor([0.8, 1.0])
    result = wrong_by(context, attention, query=injected.repeat_interleave(16))
    _, found = balance_attention(context, result, [attention], RANGES['log'])
    assert found[attention.output]['alpha'] == pytest.approx([1.25, 1.0], rel=0.02)
    assert found[attention.output]['beta'] == 1.0


@pytest.mark.parametrize('which', [BACKBONE, SELF], ids=['backbone', 'head'])
def test_beta_recovers_an_injected_gain(context, which):
    attention = context.structure.attentions[which]
    result = wrong_by(context, attention, output=torch.full((32,), 1.25))
    fixed, found = balance_attention(context, result, [attention], RANGES['log'])
    assert found[attention.output]['beta'] == pytest.approx(0.8, rel=0.02)
    # The wrong output comes back through the next denoise step: alpha may see a little of it.
    assert found[attention.output]['alpha'] == pytest.approx([1.0, 1.0], abs=0.05)
    with torch.no_grad():
        reference = context.forward(context.batches[0])
        errors = []
        for each in (result, fixed):
            with applied(context.model, each):
                actions = context.forward(context.batches[0])
            errors.append(sum(float((actions[h] - reference[h]).abs().sum()) for h in reference))
    assert errors[1] < 0.1 * errors[0]


def test_folded_and_unfolded_corrections_agree(context):
    attention = context.structure.attentions[SELF]
    result = wrong_by(context, attention)
    gains = torch.tensor([1.2, 0.9]).repeat_interleave(16)
    folded = scale_outputs(context, result, attention.query, gains)
    with applied(context.model, result) as model:
        layer = model.get_submodule(attention.query)
        handle = layer.register_forward_hook(lambda _, __, y: y * gains)
        with torch.no_grad():
            expected = context.forward(context.batches[0])
        handle.remove()
    with torch.no_grad(), applied(context.model, folded):
        found = context.forward(context.batches[0])
    scale = expected['flow'].abs().max()
    torch.testing.assert_close(found['flow'], expected['flow'], atol=1e-3 * scale, rtol=0)


def test_a_float_layer_takes_the_gain_into_its_weight(context):
    name = context.structure.attentions[SELF].query
    empty = MethodResult('test', {}, {})
    gains = torch.full((32,), 2.0)
    found = scale_outputs(context, empty, name, gains).parameters
    assert torch.equal(found[f'{name}.weight'], 2.0 * context.linear(name).weight)
    assert torch.equal(found[f'{name}.bias'], 2.0 * context.linear(name).bias)


@pytest.mark.parametrize(
    ('limits', 'ratio', 'expected'),
    [
        ('log', 1.02, 1.0),
        ('log', 1.05, 1.05),
        ('log', 9.0, math.exp(0.3)),
        ('log', 0.1, math.exp(-0.3)),
        ('log_wide', 9.0, math.exp(0.4)),
        ('linear', 1.019, 1.0),
        ('linear', 1.021, 1.021),
        ('linear', 9.0, 1.4),
        ('linear', 0.1, 0.7),
    ],
)
def test_ratios_are_bounded_and_small_ones_ignored(limits, ratio, expected):
    found = RANGES[limits].apply(torch.tensor([ratio]))
    assert float(found) == pytest.approx(expected)


def test_spreads_are_those_of_the_logits(context):
    # The self-attention of the flow head has no mask: its logits follow from its projections.
    attention = context.structure.attentions[SELF]
    projected = {name: [] for name in (attention.query, attention.key)}
    handles = [
        context.linear(name).register_forward_hook(lambda _, __, y, n=name: projected[n].append(y))
        for name in projected
    ]
    found = measure_attention(context, context.model, [attention])[attention.output]
    for handle in handles:
        handle.remove()
    spreads = []
    for q, k in zip(*projected.values()):
        q, k = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (q, k))
        logits = q @ k.transpose(-1, -2) / 4.0
        spreads.append(logits.std(-1, unbiased=False).mean((0, 2)))
    torch.testing.assert_close(found.spread, torch.stack(spreads).mean(0))


def test_the_published_layout_leaves_attention_of_the_head_float(context):
    result = quantvla.calibrate(dataclasses.replace(context, activation_bits=8))
    names = set(result.weights)
    assert 'language_model.layers.0.self_attn.q_proj' in names
    assert 'dit.0.fc1' in names
    assert not {n for n in names if 'dit.0' in n} - {'dit.0.fc1', 'dit.0.fc2'}
    assert result.histogram() == {4: 1.0}
    assert set(result.activation_bits.values()) == {8}
    assert 'language_model.layers.0.self_attn.o_proj' in result.provenance['rotated']
    assert len(result.provenance['attention']) == 4


def test_every_layer_within_a_budget(context):
    context = dataclasses.replace(context, budget_bits=3.0)
    result = quantvla.calibrate(context, QuantVlaOptions(layout='all'))
    assert set(result.weights) == set(context.layers)
    assert result.mean_bits_per_weight == pytest.approx(3.0)


def test_choices_that_do_not_exist_are_all_named():
    with pytest.raises(SchemeError, match="layout='half'.*\nlimits='free'"):
        QuantVlaOptions(layout='half', limits='free')
