"""Ratios worked out by hand from rows of one point."""

import pytest

from vlaq_ros.bench.ratios import Point, points, typical


def row(name, seconds, tokens=1, threads=1, isa='avx2', **values):
    place = {'in': 8, 'out': 16, 'tokens': tokens, 'threads': threads, 'isa': isa}
    return {**place, 'name': name, 'seconds': seconds, **values}


def point(**seconds):
    names = {'fp32': 'torch fp32', 'bf16': 'torch bf16', 'rows16': 'bf16 rows'}
    rows = {names.get(n, n): row(names.get(n, n), s) for n, s in seconds.items()}
    return Point(8, 16, 1, rows)


def test_a_ratio_says_how_many_times_faster():
    assert point(bf16=8.0, W4A8=2.0).ratio('W4A8', 'torch bf16') == 4.0
    assert point(bf16=8.0).ratio('W4A8', 'torch bf16') is None


def test_the_best_bf16_is_the_fastest_not_the_stock_one():
    assert point(bf16=8.0, rows16=3.0, fp32=1.0).best_bf16() == 'bf16 rows'
    assert point(fp32=1.0).best_bf16() is None


def test_the_best_int8_is_that_of_libraries_alone():
    libraries = {'torch _int_mm': 3.0, 'openvino W8A8': 2.0}
    assert point(W8A8=1.0, **libraries).best_int8() == 'openvino W8A8'
    assert point(W8A8=1.0).best_int8() is None


def test_mixing_is_compared_with_the_mean_weighted_by_channels():
    uniform = {'all pruned': 0.2, 'W4A8': 1.0, 'W8A8': 2.0, 'rows16': 4.0}
    mean = 0.05 * 0.2 + 0.7 * 1.0 + 0.2 * 2.0 + 0.05 * 4.0
    measured = point(**uniform, **{'mix 0/4/8/16': 1.1 * mean})
    assert measured.mixing_overhead('mix 0/4/8/16') == pytest.approx(0.1)
    assert measured.mixing_overhead('mix 2/4/8') is None


def test_the_share_of_the_floor_is_at_most_one_for_a_true_floor():
    measured = Point(8, 16, 1, {'W4A8': row('W4A8', 4.0, floor_s=3.0)})
    assert measured.floor_share('W4A8') == 0.75


def test_rows_of_different_threads_instructions_or_tokens_never_meet():
    rows = [
        row('torch bf16', 1.0),
        row('W4A8', 2.0),
        row('W4A8', 3.0, tokens=8),
        row('W4A8', 4.0, threads=2),
        row('W4A8', 5.0, isa='avx512vnni'),
        row('W8A8', None),
    ]
    groups = points(rows)
    assert list(groups) == [(1, 'avx2'), (2, 'avx2'), (1, 'avx512vnni')]
    first, second = groups[1, 'avx2']
    assert set(first.rows) == {'torch bf16', 'W4A8'}
    assert second.tokens == 8


def test_typical_is_the_median_of_what_is_there():
    assert typical([None, 3.0, 1.0, 2.0]) == 2.0
    assert typical([None]) is None
