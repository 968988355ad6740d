"""Floors against numbers worked out by hand."""

import pytest

from vlaq_ros.bench.ceilings import Ceilings
from vlaq_ros.bench.floors import dense_work, mixed_work

CEILINGS = Ceilings(10e9, {'fp32': 100e9, 'bf16': 200e9, 'int8': 400e9}, 'by hand')


def test_a_4_bit_layer_reads_half_a_byte_per_weight_and_its_scales():
    work = mixed_work(1024, {4: 512}, 128)
    assert work.weight_bytes == 1024 * 512 / 2 + 512 * 8 * 2
    assert work.operations == {'int8': 2 * 1024 * 512}


def test_the_last_group_may_be_short_and_has_a_scale_all_the_same():
    assert mixed_work(100, {8: 1}, 64).weight_bytes == 100 + 2 * 2


def test_a_cap_halves_the_codes_of_8_bit_channels_only():
    rows = {8: 10, 4: 10, 16: 10}
    full, capped = mixed_work(128, rows, 128), mixed_work(128, rows, 128, cap=4)
    assert full.weight_bytes - capped.weight_bytes == 10 * 128 / 2
    assert capped.operations == full.operations


def test_pruned_channels_cost_nothing():
    assert mixed_work(128, {4: 10, 0: 90}, 128) == mixed_work(128, {4: 10}, 128)


def test_16_bit_activations_take_two_integer_products_but_leave_bf16_alone():
    rows = {8: 10, 16: 10}
    narrow, wide = mixed_work(128, rows, 128), mixed_work(128, rows, 128, activation_bits=16)
    assert wide.operations['int8'] == 2 * narrow.operations['int8']
    assert wide.operations['bf16'] == narrow.operations['bf16']


def test_one_token_is_bound_by_reading_and_many_by_computing():
    work = dense_work(1000, 1000, 8, 'int8')  # 1 MB, 2 Mop per token
    assert work.floor_s(1, CEILINGS) == pytest.approx(1e6 / 10e9)
    assert work.floor_s(100, CEILINGS) == pytest.approx(200e6 / 400e9)


def test_kinds_are_computed_one_after_the_other():
    work = mixed_work(1000, {16: 500, 8: 500}, 1000)
    assert work.floor_s(1000, CEILINGS) == pytest.approx(1e9 / 200e9 + 1e9 / 400e9)


def test_a_kind_without_a_unit_of_its_own_runs_at_the_rate_of_fp32():
    ceilings = Ceilings(10e9, {'fp32': 100e9}, 'by hand')
    work = dense_work(1000, 1000, 16, 'bf16')
    assert work.floor_s(1000, ceilings) == pytest.approx(2e9 / 100e9)
