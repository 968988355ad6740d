"""From records to rows, tables and pictures: numbers that can be checked by hand."""

import json
import math

import numpy as np
import pytest

from vlaq_ros.errors import MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.sim.plots import draw_report
from vlaq_ros.sim.report import summarize
from vlaq_ros.sim.results import Config, Record, ResultStore
from vlaq_ros.sim.rollout import default_episodes
from vlaq_ros.sim.tables import make_tables, write_report

FP32, W8, W4 = Config('fp32', 'flow'), Config('w8', 'flow'), Config('w4', 'flow')
EPISODES = default_episodes(('reach', 'push'), 10)
RUN = {
    'command': 'vlaq eval',
    'bundle': {'name': 'fake', 'sha256': 'ab' * 32},
    'tasks': ['reach', 'push'],
    'per_task': 10,
    'instructions': 'train',
    'processes': 2,
    'cpu': 'Some CPU',
    'cores': 4,
    'load': 2.0,
    'system': 'Linux',
    'versions': {'torch': '2.13.0'},
}


def add(store, config, solved, offset_m=0.0, steps=20, **changes):
    """Add all episodes: those in `solved` succeed, the hand is `offset_m` off after the start."""
    for number, episode in enumerate(EPISODES):
        positions = np.zeros((steps + 1, 3))
        positions[1:, 1] = offset_m
        values = {
            'task': episode.task,
            'seed': episode.seed,
            'index': episode.index,
            'instruction': episode.instruction,
            'success': number in solved,
            'steps': steps,
            'positions': positions,
            'inference_s': (0.010, 0.030),
        }
        store.append(config, Record(**{**values, **changes}))


@pytest.fixture
def store(tmp_path):
    """Return a finished run: w8 a little off, w4 more off and six episodes lost."""
    store = ResultStore(tmp_path, {})
    add(store, FP32, set(range(18)))
    drift = {'position_per_step_m': 0.0005, 'position_accumulated_m': 0.012, 'steps': 20}
    add(store, W8, set(range(1, 19)), 0.001, open_loop=drift)
    add(store, W4, set(range(6, 18)), 0.004, steps=10)
    store.set_memory(FP32, MemoryReport(4000, 0, 0, 0, ''))
    store.set_memory(W8, MemoryReport(1100, 1040, 1000, 3, 'reference for w8'))
    return store


@pytest.fixture
def rows(store):
    """Return the rows of that run."""
    return summarize(store, (FP32, W8, W4), EPISODES)


def test_rows_count_successes_by_task_and_pair_by_episode(rows):
    fp32, w8, w4 = rows
    assert (fp32.successes, fp32.episodes) == (18, 20)
    assert fp32.per_task == {'reach': (9, 10), 'push': (9, 10)}
    assert fp32.paired is fp32.closed_loop is fp32.open_loop is None
    assert (w8.paired.lost, w8.paired.gained, w8.paired.verdict) == (1, 1, 'tie')
    assert (w4.paired.lost, w4.paired.gained, w4.paired.verdict) == (6, 0, 'worse')


def test_closed_loop_drift_is_measured_until_the_shorter_episode_ends(rows):
    _, w8, w4 = rows
    assert w8.closed_loop.at_step_12_m == pytest.approx(0.001)
    assert w8.closed_loop.max_m == pytest.approx(0.001)
    assert w8.closed_loop.mean_m == pytest.approx(0.001 * 20 / 21)  # row 0 is the common start
    assert w8.closed_loop.quartiles_m.shape == (21, 3)
    assert w4.closed_loop.quartiles_m.shape == (11, 3)
    np.testing.assert_allclose(w4.closed_loop.quartiles_m[1:], 0.004)
    assert math.isnan(w4.closed_loop.at_step_12_m)


def test_quartiles_stop_when_fewer_than_half_of_the_episodes_last(tmp_path):
    store = ResultStore(tmp_path, {})
    add(store, FP32, set(), steps=30)
    add(store, W8, set(), 0.001, steps=30)
    for key in list(store.records[W8])[:11]:
        record = store.records[W8][key]
        shorter = Record(**{**vars(record), 'positions': record.positions[:6]})
        store.records[W8][key] = shorter
    row = summarize(store, (W8,), EPISODES)[0]
    assert row.closed_loop.quartiles_m.shape == (6, 3)


def test_stopped_episodes_count_as_failed_and_have_no_drift(tmp_path):
    store = ResultStore(tmp_path, {})
    add(store, FP32, set(range(20)))
    add(store, W4, set(), positions=np.empty((0, 3)), inference_s=(), stopped='not finite')
    row = summarize(store, (W4,), EPISODES)[0]
    assert (row.successes, row.stopped, row.closed_loop) == (0, 20, None)
    text = '\n'.join(table.to_text() for table in make_tables([row], RUN))
    assert 'counted as failed: w4:flow 20' in text


def test_latency_percentiles_come_from_all_inferences(rows):
    assert rows[0].inferences == 40
    assert rows[0].p50_s == pytest.approx(0.020)
    assert rows[0].p95_s == pytest.approx(0.030)


def test_a_rise_in_success_without_significance_is_printed_as_a_tie(store):
    add(store, W8, set(range(20)))
    rows = summarize(store, (FP32, W8), EPISODES)
    assert rows[1].rate > rows[0].rate
    line = next(line for line in make_tables(rows, RUN)[0].to_text().splitlines() if 'w8' in line)
    assert line.split()[-1] == 'tie'
    assert 'better' not in make_tables(rows, RUN)[0].to_text()


def test_each_table_makes_one_kind_of_claim(rows):
    success, tasks, drift, memory, latency = make_tables(rows, RUN)
    assert 'ms' not in success.to_text().split()
    assert 'Drift' in drift.title
    assert drift.rows[0] == ('w8:flow', '1.0', '1.0 (1.0)', '1.0', '0.50', '12.0', 'n/a')
    assert drift.rows[1] == ('w4:flow', '-', '3.6 (3.6)', '4.0', '-', '-', 'n/a')
    assert memory.rows[0] == ('fp32:flow', '4,000', '0', '0', '32.00')
    assert memory.rows[1] == ('w8:flow', '1,100', '3', '1,000', '8.32')
    assert memory.rows[2] == ('w4:flow', '-', '-', '-', '-')
    assert tasks.rows == (('reach', '90', '90', '60'), ('push', '90', '90', '60'))
    assert 'reference kernels, Some CPU, 1 thread, 2 at a time' in latency.title
    assert 'say nothing about the speed' in latency.to_text().replace('\n    ', ' ')


def test_another_kernel_is_not_called_the_reference(store):
    store.set_memory(W8, MemoryReport(1100, 1040, 1000, 3, 'avx512 for w8'))
    latency = make_tables(summarize(store, (FP32, W8), EPISODES), RUN)[-1]
    assert 'kernels as named below' in latency.title
    assert latency.notes == ('packed layers: avx512 for w8',)


def test_a_busy_machine_is_named_next_to_the_latency(rows):
    assert 'inflates' not in make_tables(rows, RUN)[-1].to_text()
    assert (
        'inflates these times (load 9.0)' in make_tables(rows, {**RUN, 'load': 9.0})[-1].notes[-1]
    )


def test_rotation_that_is_not_commanded_is_never_zero(rows):
    _, _, drift, *_ = make_tables(rows, RUN)
    assert all(row[-1] == 'n/a' for row in drift.rows)
    assert math.isnan(rows[1].open_loop.rotation_per_step_rad)


def test_references_alone_have_no_drift_table(rows):
    titles = [table.title for table in make_tables(rows[:1], RUN)]
    assert len(titles) == 4
    assert not any('Drift' in title for title in titles)


def test_wrong_instructions_are_labelled_as_a_control(rows):
    text = make_tables(rows, {**RUN, 'instructions': 'wrong'})[0].to_text()
    assert 'sentences: wrong' in text
    assert 'Control with the sentence of another task' in text


def test_the_floor_is_named_or_missed(rows):
    assert 'w8 is the noise floor' in make_tables(rows, RUN)[2].to_text()
    without = make_tables([rows[0], rows[2]], RUN)[2].to_text()
    assert 'No w8 row: the noise floor' in without


def test_columns_line_up_and_notes_wrap(rows):
    for table in make_tables(rows, RUN):
        lines = table.to_text().splitlines()
        body = lines[2 : 3 + len(table.rows)]
        assert len({len(line) for line in body}) == 1
        assert all(len(line) <= 100 for line in lines[3 + len(table.rows) :])


def test_json_keeps_the_claims_apart_and_is_strict(store, rows, tmp_path):
    write_report(tmp_path, rows, RUN)

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    report = json.loads((tmp_path / 'report.json').read_text(), parse_constant=refuse)
    assert list(report) == [
        *('run', 'success_and_drift', 'precision_while_running', 'memory', 'latency')
    ]
    w8 = report['success_and_drift'][1]
    assert w8['reference'] == 'fp32:flow'
    assert w8['paired']['verdict'] == 'tie'
    assert w8['open_loop']['rotation_per_step_rad'] is None
    assert report['memory'][1]['bits_per_weight'] == pytest.approx(8.32)
    assert report['run']['bundle']['sha256'] == 'ab' * 32


def test_markdown_has_one_section_per_table_and_even_rows(rows, tmp_path):
    tables = write_report(tmp_path, rows, RUN)
    text = (tmp_path / 'report.md').read_text()
    assert text.count('\n### ') == len(tables) == 5
    for table in tables:
        piped = [line for line in table.to_markdown().splitlines() if line.startswith('|')]
        assert len(piped) == 2 + len(table.rows)
        assert {line.count('|') for line in piped} == {len(table.header) + 1}


def test_pictures_are_written(rows, tmp_path):
    pytest.importorskip('matplotlib')
    paths = draw_report(tmp_path, rows)
    assert [path.name for path in paths] == ['success.png', 'tasks.png', 'drift.png']
    for path in paths:
        assert path.read_bytes().startswith(b'\x89PNG')
        assert path.stat().st_size > 5000


def test_references_alone_give_no_drift_picture(rows, tmp_path):
    pytest.importorskip('matplotlib')
    names = [path.name for path in draw_report(tmp_path, rows[:1])]
    assert names == ['success.png', 'tasks.png']
