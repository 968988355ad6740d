"""Shares of levels and latency of a running policy."""

import numpy as np
import pytest

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.ros.precision_report import PrecisionRecord
from vlaq_ros.types import ActionChunk, ActionSpec

LOW, HIGH = PrecisionLevel.from_name('w4a8'), PrecisionLevel.from_name('w8a16')
SPEC = ActionSpec(('ee_x',), ('m',), 'base', True, 50_000_000, (-1.0,), (1.0,))


def chunk_after(inference_s, precision='w4a8'):
    stages = {'inference': inference_s}
    return ActionChunk(np.zeros((1, 1)), SPEC, 0, 'open', precision, 'flow', stage_s=stages)


def test_shares_are_by_group_and_level_of_inferences_and_of_the_time_between_them():
    record = PrecisionRecord()
    record.inferring(0, {'llm': LOW, 'expert': HIGH})
    record.inferring(300, {'llm': HIGH, 'expert': HIGH})
    record.inferring(400, {'llm': HIGH, 'expert': HIGH})
    inferences, times = record.shares(('llm', 'expert'))
    assert inferences == pytest.approx(
        {'llm w4a8': 1 / 3, 'llm w8a16': 2 / 3, 'expert w8a16': 1.0}
    )
    assert times == {'llm w4a8': 0.75, 'llm w8a16': 0.25, 'expert w8a16': 1.0}


def test_no_time_passes_between_episodes():
    record = PrecisionRecord()
    record.inferring(0, {'llm': LOW})
    record.pause(100)
    record.inferring(10_000, {'llm': HIGH})
    record.pause(10_300)
    assert record.shares(('llm',))[1] == {'llm w4a8': 0.25, 'llm w8a16': 0.75}


def test_groups_that_never_ran_have_no_share():
    record = PrecisionRecord()
    assert record.shares(('llm', 'expert')) == ({}, {})
    record.inferring(0, {'llm': LOW})
    assert record.shares(('llm', 'expert')) == ({'llm w4a8': 1.0}, {})


def test_latency_is_told_by_precision():
    record = PrecisionRecord()
    for inference_s in (0.1, 0.2, 0.9):
        record.measured(chunk_after(inference_s))
    record.measured(chunk_after(0.4, 'w8a16'))
    assert record.median_s() == pytest.approx({'w4a8': 0.2, 'w8a16': 0.4})


def test_the_slow_end_of_the_last_inferences_and_none_before_the_first():
    record = PrecisionRecord()
    assert record.slow_s('w4a8') is None
    for hundredths in range(101):
        record.measured(chunk_after(hundredths / 100))
    assert record.slow_s('w4a8') == pytest.approx(0.51 + 0.95 * 0.49)  # the last 50: 0.51 to 1.0
    assert record.slow_s('w8a16') is None
