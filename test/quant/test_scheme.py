"""Schemes refuse nonsense when they are built, with a message that says what to write instead."""

import pytest

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.scheme import WEIGHT_LEVELS, PerChannel, PerGroup, PerTensor, QuantScheme


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


@pytest.mark.parametrize('activation_bits', [0, 4, 7, 32, None])
def test_an_activation_width_without_a_kernel_is_refused(activation_bits):
    with pytest.raises(SchemeError, match=r'activation_bits=.* use one of \(8, 16\)'):
        QuantScheme(4, activation_bits=activation_bits)


def test_a_group_size_that_does_not_fill_the_row_is_refused():
    with pytest.raises(SchemeError, match='group_size=64 does not divide the input width 100'):
        PerGroup(64).grid(8, 100)


@pytest.mark.parametrize(
    ('granularity', 'grid'),
    [(PerTensor(), (1, 1)), (PerChannel(), (32, 1)), (PerGroup(64), (32, 2))],
    ids=str,
)
def test_the_grid_of_scales_follows_the_granularity(granularity, grid):
    assert granularity.grid(32, 128) == grid


@pytest.mark.parametrize('bits', range(2, 9))
def test_the_middle_code_lies_between_the_ends(bits):
    scheme = QuantScheme(bits)
    assert (scheme.qmax, scheme.middle) == (2**bits - 1, 2**bits // 2)


def test_schemes_are_values():
    assert QuantScheme(4, PerGroup(64)) == WEIGHT_LEVELS['w4']
    assert len({QuantScheme(4, PerGroup(64)), WEIGHT_LEVELS['w4'], WEIGHT_LEVELS['w8']}) == 2


def test_a_scheme_prints_as_reports_write_it():
    assert str(WEIGHT_LEVELS['w4']) == 'W4A16 per group of 64, symmetric'
    assert str(QuantScheme(8, PerTensor(), False, 8)) == 'W8A8 per tensor, asymmetric'
