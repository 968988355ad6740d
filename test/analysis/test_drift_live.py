"""Reports of the node next to the same numbers calculated offline: equal, or loudly not."""

import math
import sys

import pytest

from vlaq_ros.analysis.drift_job import DriftJob, check_job
from vlaq_ros.analysis.drift_live import FIELDS, Difference, compare_live
from vlaq_ros.analysis.drift_measure import measure
from vlaq_ros.cli import main
from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.policies.drift_monitor import DriftMonitor

LIMITS = DriftLimits(warn_m=1e-4, error_m=1e-3)


class Node:
    """Reports what a node would: one monitor, a new start with every epoch."""

    def __init__(self, change=lambda reading: {}, window_s=0.4):
        self.change, self.window_s = change, window_s
        self.monitor = None
        self.epoch = None

    def __call__(self, arm, chunk, reference):
        if self.monitor is None:
            self.monitor = DriftMonitor(chunk.spec, 6, LIMITS, self.window_s)
        if chunk.epoch != self.epoch:
            self.monitor.reset()
            self.epoch = chunk.epoch
        reading = self.monitor.measured(chunk, reference, 'shadow')
        changed = self.change(reading)
        if changed is not None:
            arm.report(reading, self.window_s, **changed)


def compare(run, limits=LIMITS, **options):
    return compare_live(measure(check_job(DriftJob(run.path, 'toy', limits=limits, **options))))


def test_the_same_numbers_as_live(record_toy):
    run = record_toy(tell=Node())
    live = compare(run)
    assert live.passed
    assert live.verdict == 'same numbers as live: 104 numbers of 8 of 8 recorded drift reports'
    assert dict(live.numbers) == dict.fromkeys(FIELDS, 8)
    assert {one.size for one in live.largest.values()} == {0.0}


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('position_accumulated', 0.1),
        ('gripper_disagreement', 1.0),
        ('window_position', 0.0),
        ('jerk_ratio', 9.0),
        ('rotation_per_step', 0.0),
        ('steps', 5),
        ('level', 0),
    ],
)
def test_a_report_that_was_tampered_with_is_found(record_toy, field, value):
    node = Node(lambda reading: {field: value} if reading.sequence == 4 else {})
    live = compare(record_toy(tell=node))
    assert not live.passed
    assert live.verdict.startswith('OTHER NUMBERS than live: 1 of 104 numbers')
    (wrong,) = live.wrong
    assert (wrong.sequence, wrong.epoch, wrong.field, wrong.live) == (4, 1, field, value)


def test_levels_count_only_where_the_limits_are_known(record_toy):
    run = record_toy(tell=Node())
    live = compare(run, limits=None)
    assert live.passed
    assert 'the limits of the node are not recorded' in live.remark
    assert not compare(run, limits=DriftLimits()).passed


def test_predicted_reports_are_listed_and_not_compared(record_toy):
    node = Node(lambda reading: {'source': 'predicted', 'position_accumulated': 9.0})
    live = compare(record_toy(tell=node))
    assert live.passed
    assert (live.reports, live.compared, live.predicted) == (8, 0, 8)
    assert live.left_out == {'predicted by an error model': 8}
    assert 'none of the 8 recorded drift reports could be compared' in live.verdict


def test_reports_against_another_reference_are_left_out_with_what_to_do(record_toy):
    node = Node(lambda reading: {'reference_precision': 'w8a16'})
    live = compare(record_toy(tell=node))
    assert (live.compared, list(live.left_out.values())) == (0, [8])
    assert 'its reference ran at w8a16, this one at fp32 (see --precision)' in live.left_out


def test_the_window_is_compared_only_where_all_of_its_chunks_are_known(record_toy):
    """One image is missing: the chunk at 1.15 s cannot be judged, which the window remembers."""
    run = record_toy(
        tell=Node(window_s=0.2),
        left_out=lambda camera, stamp_ms: camera == 'front' and stamp_ms == 1150.0,
    )
    live = compare(run)
    assert live.passed
    assert live.compared == 7
    assert live.numbers['position_accumulated'] == 7
    assert live.numbers['window_position'] == 6  # not at 1.30 s, again from 1.45 s on
    assert live.numbers['level'] == 5  # hysteresis remembers the whole epoch


def test_a_recording_that_began_within_an_epoch_compares_chunks_alone_at_first(record_toy):
    live = compare(record_toy(tell=Node(), first_sequence=7))
    assert live.passed
    assert live.numbers['position_accumulated'] == 8
    assert live.numbers['window_position'] == 5  # from 0.4 s after the first chunk on
    assert live.numbers['level'] == 4


def test_horizon_and_window_are_those_of_the_reports(record_toy):
    checked = check_job(DriftJob(record_toy(tell=Node(window_s=0.7)).path, 'toy'))
    assert (checked.horizon, checked.window_s) == (6, pytest.approx(0.7))


def test_other_numbers_end_with_exit_status_1(record_toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)  # as where it is not installed
    node = Node(lambda reading: {'position_accumulated': 0.5} if reading.sequence == 2 else {})
    run = record_toy(tell=node)
    out = tmp_path / 'out'
    assert main(['drift', str(run.path), '--reference', 'toy', '--out', str(out)]) == 1
    assert 'DIFFERS: position_accumulated of chunk 2, epoch 1: 0.5 live' in capsys.readouterr().out
    assert '**differs**: position_accumulated of chunk 2' in (out / 'drift.md').read_text()
    assert not list(out.glob('*.png'))


@pytest.mark.parametrize(
    ('live', 'offline', 'is_same'),
    [
        (1.0, 1.0 + 5e-5, True),
        (1.0, 1.001, False),
        (0.0, 5e-7, True),
        (0.0, 5e-6, False),
        (math.nan, math.nan, True),
        (math.nan, 0.0, False),
        (math.inf, math.inf, True),
        (math.inf, 1.0, False),
    ],
)
def test_rounding_is_no_difference(live, offline, is_same):
    assert Difference(1, 1, 'x', live, offline).is_same is is_same
