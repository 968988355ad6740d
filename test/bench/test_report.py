"""The report from results made up by hand: cells, files, and what is not claimed."""

import json

import pytest

from vlaq_ros.bench.report import make_tables, write_report
from vlaq_ros.bench.results import FILE_NAME, Results, Section, select
from vlaq_ros.errors import ConfigError

MACHINE = {
    'cpu': 'Some CPU',
    'cores': 2,
    'memory_gib': 8.0,
    'instructions': ['avx2'],
    'governor': 'performance',
    'huge_pages': 'madvise',
    'load': 0.1,
    'system': 'Linux',
    'python': '3.11.0',
    'versions': {'torch': '2.0'},
    'command': 'vlaq bench',
}


def kernel_row(name, seconds, tokens=1, threads=1, isa='avx512vnni', **values):
    return {
        'section': 'kernels',
        'in': 8,
        'out': 16,
        'tokens': tokens,
        'threads': threads,
        'isa': isa,
        'name': name,
        'seconds': seconds,
        'floor_s': 5e-7,
        'read_bytes': 5000,
        'operations': 1000,
        'error': 0.1,
        'remark': '',
        **values,
    }


def section(rows, **values):
    return Section(MACHINE, '2026-01-01T00:00:00+00:00', rows, is_complete=True, **values)


@pytest.fixture
def results():
    rows = [
        kernel_row('torch fp32', 8e-6),
        kernel_row('torch bf16', 4e-6),
        kernel_row('bf16 rows', 2e-6),
        kernel_row('W4A8', 1e-6),
        kernel_row('W8A8', 2e-6),
        kernel_row('all pruned', 4e-7),
        kernel_row('mix 0/4/8/16', 1.281e-6),
        kernel_row('openvino bf16', None, remark='not installed'),
        kernel_row('torch fp32', 8e-6, isa='avx2'),
        kernel_row('W4A8', 2e-6, isa='avx2'),
        {
            **kernel_row('ceilings', None),
            'read_bytes_s': 10e9,
            'operations_s': {'fp32': 1e11},
            'source': 'kernel library, avx512vnni',
        },
    ]
    return Results({'kernels': section(rows)})


def table(results, start):
    return next(t for t in make_tables(results) if t.title.startswith(start))


def cell(found, row, column=1):
    return next(cells for cells in found.rows if cells[0] == row)[column]


def test_times_are_in_microseconds_with_the_ratio_to_stock_bf16(results):
    found = table(results, 'Time of one linear layer')
    assert cell(found, 'W4A8') == '1 (4.00)'
    assert cell(found, 'torch fp32') == '8 (0.50)'


@pytest.mark.parametrize(('load', 'notes'), [(0.2, 0), (3.0, 1)], ids=['quiet', 'busy'])
def test_wall_times_of_a_busy_machine_carry_a_warning(load, notes):
    rows = [kernel_row('torch bf16', 4e-6, threads=2)]
    found = Results({'kernels': Section({**MACHINE, 'load': load}, 'now', rows)})
    assert len(table(found, 'Time of one linear layer').notes) == notes


def test_limited_instructions_are_compared_with_fp32(results):
    found = [t for t in make_tables(results) if 'avx2' in t.title]
    assert [t.title for t in found if 'torch fp32' in t.title]
    assert cell(found[0], 'W4A8') == '2 (4.00)'


def test_three_baselines_stand_side_by_side_best_bf16_first(results):
    found = table(results, 'Times faster than the best bf16')
    assert cell(found, 'W4A8, 1') == '2.00 / 4.00 / 8.00'
    assert 'bf16 rows' in found.notes[0]


def test_the_floor_is_given_with_the_rate_that_was_reached(results):
    found = table(results, 'Share of what the processor can do')
    assert cell(found, 'W4A8, 1') == '50 % (5 GB/s)'


def test_the_price_of_mixing_is_against_the_weighted_mean(results):
    found = table(results, 'Price of mixing')  # 0.05 x 0.4 + 0.7 x 1 + 0.2 x 2 + 0.05 x 2 = 1.22
    assert cell(found, 'mix 0/4/8/16, 8x16') == '+5'
    assert cell(found, 'mix 2/4/8, 8x16') == '-'


def test_who_refused_is_said(results):
    found = table(results, 'Ceilings')
    assert 'openvino bf16: refused, not installed' in found.notes


def test_layers_are_compared_with_the_best_and_the_stock_bf16():
    place = {'stack': '7b', 'stage': 'decode', 'layers': 3, 'tokens': 1}
    rows = [
        {**place, 'name': 'torch bf16', 'seconds': 0.08},
        {**place, 'name': 'torch bf16 compiled, frozen', 'seconds': 0.04},
        {**place, 'name': 'W4A8', 'seconds': 0.01},
        {'stack': '7b', 'name': 'W8A8', 'seconds': None, 'remark': 'no'},
    ]
    found, *_ = make_tables(Results({'layers': section(rows)}))
    assert cell(found, 'W4A8') == '10.0 (4.00; 8.00)'
    assert 'W8A8: no' in found.notes


@pytest.mark.parametrize(
    ('tails', 'text', 'title'),
    [
        ((0.002, 0.003), '1.00 / 2.00 / 3.00', 'p50 / p95 / p99'),
        ((None, None), '1.00', '[ms] p50'),
    ],
    ids=['many', 'few'],
)
def test_tails_are_shown_where_they_are_known(tails, text, title):
    stages = {'prefill': {'p50': 0.001, 'p95': tails[0], 'p99': tails[1]}}
    values = {'model': 'm', 'head': 'flow', 'threads': 1, 'inferences': 6, 'stages': stages}
    rows = [{**values, 'precision': 'w4', 'ratio': 2.0, 'kernel': 'cpu'}]
    (found,) = make_tables(Results({'policy': section(rows)}))
    assert cell(found, 'w4:flow') == text
    assert cell(found, 'w4:flow', -1) == '2.00'
    assert title in found.title


def test_memory_is_compared_with_bits_and_with_what_bf16_really_takes():
    def row(name, bits, resident):
        return {
            'name': name,
            'in': 8,
            'out': 16,
            'layers': 2,
            'weights': 1000,
            'bits': bits,
            'resident_bytes': resident,
            'peak_bytes': resident,
            'ideal_bytes': 1000 * bits / 8,
            'layer_bytes': 500 * bits / 8,
        }

    rows = [row('torch bf16', 16, 2000), row('W4', 4, 525)]
    found, *_ = make_tables(Results({'memory': section(rows)}))
    assert cell(found, 'W4', 3) == '1.050'
    assert cell(found, 'W4', 4) == f'{525 / 2000:.3f}'


def test_a_gpu_that_is_not_there_has_a_sentence_and_no_number():
    rows = [{'name': 'gpu', 'seconds': None, 'reason': 'not measured: no CUDA device'}]
    (found,) = make_tables(Results({'gpu': section(rows)}))
    assert found.rows == ()
    assert found.notes == ('not measured: no CUDA device',)


def test_the_report_has_numbers_tables_machine_and_pictures(results, tmp_path):
    pytest.importorskip('matplotlib')
    paths = write_report(results, tmp_path)
    assert all(path.stat().st_size > 0 for path in paths)
    text = (tmp_path / 'kernels.md').read_text()
    assert 'Some CPU' in text
    assert '`vlaq bench`' in text
    assert {path.suffix for path in paths} == {'.json', '.md', '.png'}


def test_what_failed_or_was_interrupted_is_in_the_report(results, tmp_path):
    results.sections['kernels'].failed = [{'job': 'k', 'step': '8x16', 'reason': 'it broke'}]
    results.sections['kernels'].is_complete = False
    write_report(results, tmp_path)
    text = (tmp_path / 'kernels.md').read_text()
    assert 'it broke' in text
    assert '`kernels` was interrupted' in text


def test_results_come_back_from_disk(results, tmp_path):
    results.save(tmp_path)
    assert Results.load(tmp_path) == results
    assert Results.load(tmp_path / 'empty') == Results()


@pytest.mark.parametrize('text', ['{', '[]', '{"format": 99, "sections": {}}', '{"format": 1}'])
def test_a_file_that_holds_something_else_is_refused(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ConfigError, match='kernels.json'):
        Results.load(tmp_path)


def test_numbers_that_json_cannot_hold_are_a_defect_not_a_result(tmp_path):
    broken = Results({'kernels': section([kernel_row('W4A8', float('nan'))])})
    with pytest.raises(ValueError, match='JSON'):
        broken.save(tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


def test_rows_are_selected_by_all_values_given():
    rows = [{'in': 1, 'out': 2}, {'in': 1, 'out': 3}]
    assert select(rows, in_=1, out=3) == [rows[1]]
    assert json.dumps(select(rows, in_=4)) == '[]'
