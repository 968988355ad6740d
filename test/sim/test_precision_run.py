"""Shares of levels become mean widths that can be checked by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.control.precision_occupancy import Occupancy
from vlaq_ros.policies.toy import ToyPolicy, toy_spec
from vlaq_ros.sim.precision_run import (
    PrecisionRun,
    counted_run,
    mean_widths,
    pooled,
    static_run,
)
from vlaq_ros.sim.results import Config, Record, ResultStore

LOW, HIGH = PrecisionLevel(4, 8), PrecisionLevel(8, 16)


def test_widths_are_weighted_by_the_weights_of_each_group():
    shares = {'llm': {'w4a8': 0.5, 'w8a16': 0.5}, 'expert': {'w8a8': 1.0}}
    weights = {'llm': {8: 300}, 'expert': {8: 100}}
    weight_bits, activation_bits = mean_widths(shares, weights)
    assert weight_bits == pytest.approx((300 * 6 + 100 * 8) / 400)
    assert activation_bits == pytest.approx((300 * 12 + 100 * 8) / 400)


def test_a_weight_stored_with_fewer_bits_than_the_level_reads_keeps_its_own():
    weights = {'llm': {8: 10, 4: 20, 2: 40, 0: 20, 16: 10}}
    assert mean_widths({'llm': {'w8a8': 1.0}}, weights)[0] == pytest.approx(4.0)
    assert mean_widths({'llm': {'w4a8': 1.0}}, weights)[0] == pytest.approx(3.6)


def test_what_the_head_does_not_execute_does_not_count():
    occupancy = Occupancy()
    for step, level in enumerate((LOW, LOW, HIGH, LOW)):
        occupancy.record(step, {'llm': level, 'expert': HIGH})
    run = counted_run(occupancy, {'llm': {8: 5}})
    assert run.shares == {'llm': {'w4a8': 0.75, 'w8a16': 0.25}}
    assert (run.inferences, run.changes) == (4, 2)
    assert (run.weight_bits, run.activation_bits) == (5.0, 10.0)
    assert counted_run(Occupancy(), {'llm': {8: 5}}) is None


def test_a_static_level_is_all_of_the_run_and_float_weights_have_none():
    run = static_run(ToyPolicy(toy_spec(), 'w4a8'), 7)
    assert run.shares == {'llm': {'w4a8': 1.0}, 'expert': {'w4a8': 1.0}}
    assert (run.weight_bits, run.activation_bits, run.changes) == (4.0, 8.0, 0)
    assert static_run(ToyPolicy(toy_spec(), 'fp32'), 7) is None


def test_episodes_are_pooled_by_their_inferences():
    short = PrecisionRun(1, {'llm': {'w8a16': 1.0}}, 8.0, 16.0, 0, {'llm': {'warm_up': 1}})
    long = PrecisionRun(3, {'llm': {'w4a8': 1.0}}, 4.0, 8.0, 2, {'llm': {'motion': 3}})
    both = pooled([short, long])
    assert both.shares == {'llm': {'w8a16': 0.25, 'w4a8': 0.75}}
    assert (both.weight_bits, both.activation_bits, both.changes) == (5.0, 10.0, 2)
    assert both.reasons == {'llm': {'warm_up': 1, 'motion': 3}}
    assert pooled([]) is None


def test_a_record_keeps_it_on_disk_and_older_records_have_none(tmp_path):
    config = Config('nested@dyq', 'flow')
    run = PrecisionRun(2, {'llm': {'w4a8': 1.0}}, 4.0, 8.0, 1, {'llm': {'motion': 2}})
    record = Record('reach', 100, 0, 'reach', True, 1, np.zeros((2, 3)), precision=run)
    store = ResultStore(tmp_path, {})
    store.append(config, record)
    store.append(config, replace(record, index=1, precision=None))
    path = tmp_path / 'nested@dyq-flow.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]['precision']  # as written before there was such a field
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    records = ResultStore(tmp_path, {}, 'resume').records[config]
    assert [each.precision for each in records.values()] == [run, None]
