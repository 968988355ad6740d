"""Verdicts by the worst case, and none without a measurement."""

import pytest

from vlaq_ros.bench.results import Results, Section
from vlaq_ros.bench.targets import target_table

MACHINE = {'cpu': 'Some CPU'}


def results(**sections):
    return Results({name: Section(MACHINE, 'now', rows) for name, rows in sections.items()})


def kernel(name, seconds, inputs=4096, tokens=1, threads=1, **values):
    place = {'in': inputs, 'out': 4096, 'tokens': tokens, 'threads': threads, 'isa': 'avx512vnni'}
    return {**place, 'name': name, 'seconds': seconds, **values}


def verdict(found, text):
    return next(row[1:] for row in target_table(found).rows if row[0] == text)


def test_the_slowest_large_layer_decides_and_small_ones_do_not_count():
    rows = []
    for inputs, seconds in ((4096, 1.0), (8192, 1.25), (64, 9.0)):
        rows += [kernel('torch bf16', 4.0, inputs), kernel('W4A8', seconds, inputs)]
    found = results(kernels=rows)
    text = 'W4A8 / best bf16, 1 token, large'
    assert verdict(found, text) == ('at least 3 x', '3.2 x', 'yes')
    rows[3]['seconds'] = 2.0
    assert verdict(found, text) == ('at least 3 x', '2 x', 'no')


def test_a_target_without_a_measurement_has_no_verdict():
    found = results(kernels=[kernel('torch bf16', 4.0), kernel('W4A8', 1.0)])
    assert verdict(found, 'small VLA, W4A8 / fp32')[1:] == ('-', '-')
    assert target_table(Results()) is None


def test_two_threads_and_narrower_instructions_do_not_count():
    rows = [kernel('torch bf16', 4.0), kernel('W4A8', 1.0)]
    rows += [kernel('torch bf16', 4.0, threads=2), kernel('W4A8', 4.0, threads=2)]
    rows += [
        {**kernel('torch bf16', 4.0), 'isa': 'avx2'},
        {**kernel('W4A8', 4.0), 'isa': 'avx2'},
    ]
    text = 'W4A8 / best bf16, 1 token, large'
    assert verdict(results(kernels=rows), text)[1] == '4 x'


def test_the_dearest_mix_of_large_layers_decides():
    times = {'W2A8': 1.0, 'W4A8': 1.0, 'W8A8': 1.0}
    rows = []
    for inputs, mixed in ((4096, 1.02), (8192, 1.04), (64, 2.0)):
        layer = {**times, 'mix 2/4/8': mixed}
        rows += [kernel(name, seconds, inputs, tokens=8) for name, seconds in layer.items()]
    found = results(kernels=rows)
    text = 'price of mixing 2/4/8 bits, large'
    assert verdict(found, text)[1:] == ('4 %', 'yes')
    rows[3]['seconds'] = 1.06
    assert verdict(found, text)[1:] == ('6 %', 'no')


def test_narrow_instructions_are_compared_with_onednn():
    rows = [kernel('torch dynamic int8 onednn', 2.0, tokens=64), kernel('W8A8', 2.1, tokens=64)]
    rows += [kernel('W4A8', 1.0, tokens=64), kernel('W4A8', 1.6, tokens=256)]
    rows += [kernel('torch dynamic int8 onednn', 4.0, tokens=256)]
    rows = [kernel('torch bf16', 4.0), *({**row, 'isa': 'avx2'} for row in rows)]
    found = results(kernels=rows)
    assert verdict(found, 'AVX2: W8A8 / oneDNN int8, 64+ tokens')[1:] == ('0.952 x', 'no')
    assert verdict(found, 'AVX2: W2A8, W4A8 / oneDNN int8, 64+ tokens')[1:] == ('2 x', 'yes')


def test_bandwidth_is_that_of_the_same_rounds():
    ceiling = {**kernel('ceilings', None), 'read_bytes_s': 40.0}
    rows = [kernel('W4A8', 2.0, read_bytes=68), ceiling]
    rows += [{**ceiling, 'in': 8192, 'read_bytes_s': 1.0}]
    assert verdict(results(kernels=rows), 'W4A8 reads at, 1 token, large')[1] == '85 % of DRAM'


def test_the_largest_overhead_decides():
    rows = [
        {
            'switch_s': 5e-6,
            'first_call_s': {'8': first, '4': 1.0},
            'later_call_s': {'8': 1.0, '4': 1.0},
        }
        for first in (1.0, 1.2)
    ]
    found = results(switching=rows)
    assert verdict(found, 'first call after it / later calls')[1:] == ('1.2 x', 'no')
    assert verdict(found, 'change of precision')[1:] == ('5 us', 'yes')


@pytest.mark.parametrize(('resident', 'reached'), [(107, 'yes'), (109, 'no')])
def test_resident_memory_is_compared_with_the_bits(resident, reached):
    row = {
        'name': 'W4',
        'resident_bytes': resident,
        'ideal_bytes': 100,
        'peak_bytes': 100,
        'layer_bytes': 10,
    }
    assert verdict(results(memory=[row]), 'resident / bits of the weights')[2] == reached
