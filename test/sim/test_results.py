"""Finished episodes survive on disk, and only those of the same run are continued."""

import json

import numpy as np
import pytest

from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.base import MemoryReport
from vlaq_ros.sim.results import Config, Record, ResultStore

W8 = Config('w8', 'flow')
IDENTITY = {'seed': 100, 'versions': {'torch': '2.13'}}


def make_record(index=0, success=True, **changes):
    """Return a record whose positions are exact in micrometres."""
    positions = np.array([[0.0, 0.5, 0.25], [0.001, 0.5, 0.25]])
    values = {
        'task': 'reach',
        'seed': 100,
        'index': index,
        'instruction': 'reach the goal',
        'success': success,
        'steps': 1,
        'positions': positions,
        'inference_s': (0.001, 0.002),
        'open_loop': {'position_per_step_m': 0.0005},
    }
    return Record(**{**values, **changes})


def same(left, right):
    """Whether two records hold the same values."""
    return left.to_json() == right.to_json() and np.array_equal(left.positions, right.positions)


def test_a_config_names_its_reference():
    assert W8.name == 'w8:flow'
    assert W8.reference == Config('fp32', 'flow')
    assert not W8.is_reference
    assert W8.reference.is_reference


@pytest.mark.parametrize(
    'record',
    [
        make_record(),
        make_record(success=False, open_loop=None),
        make_record(positions=np.empty((0, 3)), steps=0, inference_s=(), stopped='not finite'),
    ],
    ids=['full', 'no open loop', 'stopped'],
)
def test_a_record_comes_back_from_disk_unchanged(tmp_path, record):
    ResultStore(tmp_path, IDENTITY).append(W8, record)
    store = ResultStore(tmp_path, IDENTITY, 'resume')
    assert list(store.records) == [W8]
    assert same(store.records[W8][record.key], record)


def test_memory_reports_come_back_from_disk(tmp_path):
    memory = MemoryReport(100, 50, 40, 2, 'reference')
    ResultStore(tmp_path, IDENTITY).set_memory(W8, memory)
    assert ResultStore(tmp_path, IDENTITY, 'resume').memory == {W8: memory}


def test_resuming_an_empty_folder_starts_a_run(tmp_path):
    assert ResultStore(tmp_path / 'new', IDENTITY, 'resume').records == {}


def test_a_torn_last_line_is_dropped_and_can_be_appended_after(tmp_path):
    store = ResultStore(tmp_path, IDENTITY)
    store.append(W8, make_record(0))
    with (tmp_path / 'w8-flow.jsonl').open('a') as file:
        file.write('{"task":"reach","se')
    resumed = ResultStore(tmp_path, IDENTITY, 'resume')
    assert [key[2] for key in resumed.records[W8]] == [0]
    resumed.append(W8, make_record(1))
    again = ResultStore(tmp_path, IDENTITY, 'resume')
    assert [key[2] for key in again.records[W8]] == [0, 1]


def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path):
    ResultStore(tmp_path, IDENTITY).append(W8, make_record())
    with (tmp_path / 'w8-flow.jsonl').open('a') as file:
        file.write('{"task": 3}\n')
    with pytest.raises(ConfigError, match='w8-flow.jsonl, line 2 is not an episode'):
        ResultStore(tmp_path, IDENTITY, 'resume')


def test_a_new_run_refuses_a_folder_with_results_and_keeps_them(tmp_path):
    ResultStore(tmp_path, IDENTITY).append(W8, make_record())
    before = (tmp_path / 'w8-flow.jsonl').read_bytes()
    with pytest.raises(ConfigError, match='--resume.*--overwrite.*--out'):
        ResultStore(tmp_path, IDENTITY)
    assert (tmp_path / 'w8-flow.jsonl').read_bytes() == before


def test_overwrite_deletes_the_results_of_the_earlier_run(tmp_path):
    ResultStore(tmp_path, IDENTITY).append(W8, make_record())
    assert ResultStore(tmp_path, {'seed': 1}, 'overwrite').records == {}
    assert not list(tmp_path.glob('*.jsonl'))


def test_another_run_is_not_continued_and_every_difference_is_listed(tmp_path):
    ResultStore(tmp_path, IDENTITY)
    other = {'seed': 101, 'versions': {'torch': '2.14'}, 'extra': 1}
    with pytest.raises(ConfigError) as raised:
        ResultStore(tmp_path, other, 'resume')
    for text in ('seed: 100, now 101', "'2.13'}, now {'torch': '2.14'}", 'extra: None, now 1'):
        assert text in str(raised.value)
    assert json.loads((tmp_path / 'run.json').read_text())['identity'] == IDENTITY


def test_results_without_their_run_file_are_not_continued(tmp_path):
    """Nobody knows what they belong to."""
    ResultStore(tmp_path, IDENTITY).append(W8, make_record())
    (tmp_path / 'run.json').unlink()
    with pytest.raises(ConfigError, match='run.json'):
        ResultStore(tmp_path, IDENTITY, 'resume')
    assert (tmp_path / 'w8-flow.jsonl').exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='file'):
        ResultStore(tmp_path / 'file', IDENTITY)
