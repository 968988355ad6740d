"""Schemes refuse nonsense when they are built, with a message that says what to write instead."""

import dataclasses
import json

import pytest

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.scheme import LayerScheme, PerChannel, PerGroup, PerTensor, QuantScheme


@pytest.mark.parametrize('bits', [0, 1, 9, 16, -4, 4.0, True, '4', None])
def test_a_width_outside_2_to_8_is_refused(bits):
    with pytest.raises(SchemeError, match=f'bits={bits!r} is not supported: use a width from 2'):
        QuantScheme(bits)


@pytest.mark.parametrize('group_size', [0, -64, 64.0, True, None])
def test_a_group_size_that_is_not_a_positive_whole_number_is_refused(group_size):
    with pytest.raises(SchemeError, match='must be a positive whole number'):
        PerGroup(group_size)


@pytest.mark.parametrize('granularity', [64, 'per_channel', None, PerChannel])
def test_a_granularity_must_be_one_of_the_three_values(granularity):
    with pytest.raises(SchemeError, match=r'use PerTensor\(\), PerChannel\(\) or PerGroup'):
        QuantScheme(4, granularity)


@pytest.mark.parametrize('activation_bits', [0, 1, 7, 32, 8.0, True, None])
def test_an_activation_width_without_a_kernel_is_refused(activation_bits):
    with pytest.raises(SchemeError, match=r'activation_bits=.* use one of \(2, 4, 8, 16\)'):
        QuantScheme(4, activation_bits=activation_bits)


@pytest.mark.parametrize(
    ('granularity', 'grid'),
    [
        (PerTensor(), (1, 1)),
        (PerChannel(), (32, 1)),
        (PerGroup(64), (32, 2)),
        (PerGroup(50), (32, 3)),
    ],
    ids=str,
)
def test_the_grid_of_scales_follows_the_granularity(granularity, grid):
    assert granularity.grid(32, 128) == grid


@pytest.mark.parametrize('bits', range(2, 9))
def test_the_middle_code_lies_between_the_ends(bits):
    scheme = QuantScheme(bits)
    assert scheme.qmax == 2**bits - 1
    assert scheme.middle == (1.5 if bits == 2 else 2 ** (bits - 1))


def test_schemes_are_values():
    assert len({QuantScheme(4, PerGroup(64)), QuantScheme(4, PerGroup(64)), QuantScheme(8)}) == 2
    assert LayerScheme([4, 8]) == LayerScheme((4, 8))
    assert len({LayerScheme(4, 64), LayerScheme([4, 8]), LayerScheme((4, 8))}) == 2


def test_a_scheme_prints_as_reports_write_it():
    assert str(QuantScheme(4, PerGroup(64))) == 'W4A16 per group of 64, symmetric'
    assert str(QuantScheme(8, PerTensor(), False, 8)) == 'W8A8 per tensor, asymmetric'
    assert str(LayerScheme(8)) == 'W8A16 per channel'
    assert str(LayerScheme((4, 0, 16, 4), 64, 8)) == 'W0/4/16A8 per group of 64'


@pytest.mark.parametrize(
    'widths', [3, True, 4.0, None, (), (4, 5), (8, True), '44', [[4]]], ids=str
)
def test_widths_that_no_channel_can_have_are_refused(widths):
    with pytest.raises(SchemeError, match=r'a channel has one of \(0, 2, 4, 8, 16\) bits'):
        LayerScheme(widths)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'group_size': 0}, 'group_size=0 must be a positive whole number'),
        ({'activation_bits': 6}, 'activation_bits=6 is not supported'),
        ({'clip': 'best'}, "clip='best' is not supported"),
        ({'percentile': 101}, 'percentile=101 must lie above 0'),
        ({'percentile': float('nan')}, 'percentile=nan must lie above 0'),
    ],
    ids=str,
)
def test_a_layer_scheme_refuses_what_its_parts_refuse(options, message):
    with pytest.raises(SchemeError, match=message):
        LayerScheme(8, **options)


def test_one_width_stands_for_every_channel():
    assert LayerScheme(4).channel_widths(3) == (4, 4, 4)
    assert LayerScheme((4, 8)).channel_widths(2) == (4, 8)
    with pytest.raises(SchemeError, match='2 widths for 3 output channels'):
        LayerScheme((4, 8)).channel_widths(3)


def test_a_layer_scheme_survives_json():
    scheme = LayerScheme((4, 8, 0), 64, 8, 'mse')
    assert LayerScheme(**json.loads(json.dumps(dataclasses.asdict(scheme)))) == scheme
