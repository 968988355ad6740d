"""The window slides, percentiles are times that occurred, and nothing recorded is None."""

import threading

import numpy as np
import pytest

from vlaq_ros.control.latency import LatencyWindow, StageLatency


def test_without_inferences_there_is_no_latency():
    assert LatencyWindow().summary() is None


def test_percentiles_of_one_to_a_hundred_milliseconds():
    window = LatencyWindow(100)
    for time_ms in np.random.default_rng(0).permutation(100) + 1:
        window.add({'action': time_ms / 1e3})
    expected = StageLatency(count=100, p50_s=0.050, p95_s=0.095, p99_s=0.099, max_s=0.100)
    assert window.summary() == {'action': expected, 'total': expected}


def test_a_single_inference_is_every_percentile():
    window = LatencyWindow()
    window.add({'action': 0.25})
    assert window.summary()['action'] == StageLatency(1, 0.25, 0.25, 0.25, 0.25)


def test_the_window_forgets_what_has_slid_out_of_it():
    window = LatencyWindow(size=3)
    for time_s in (9.0, 1.0, 2.0, 3.0):
        window.add({'action': time_s})
    assert window.summary()['action'] == StageLatency(3, 2.0, 3.0, 3.0, 3.0)


def test_the_total_is_that_of_each_inference_and_not_of_the_percentiles():
    window = LatencyWindow()
    window.add({'prefill': 0.1, 'action': 0.3})
    window.add({'prefill': 0.3, 'action': 0.1})
    summary = window.summary()
    assert list(summary) == ['prefill', 'action', 'total']
    assert summary['prefill'].max_s == summary['action'].max_s == 0.3
    assert summary['total'].max_s == pytest.approx(0.4)


def test_a_stage_is_summarized_over_the_inferences_that_had_it_and_disappears_with_them():
    window = LatencyWindow(size=2)
    window.add({'denoise': 0.5})
    window.add({'action': 0.1})
    assert window.summary()['denoise'].count == window.summary()['action'].count == 1
    window.add({'action': 0.2})
    assert list(window.summary()) == ['action', 'total']


def test_what_was_added_later_does_not_change_a_record():
    window, stage_s = LatencyWindow(), {'action': 0.1}
    window.add(stage_s)
    stage_s['action'] = 9.0
    assert window.summary()['action'].max_s == 0.1


def test_after_clear_the_window_is_empty():
    window = LatencyWindow()
    window.add({'action': 0.1})
    window.clear()
    assert window.summary() is None


@pytest.mark.parametrize(
    'stage_s',
    [{}, {'action': -0.1}, {'action': float('nan')}, {'action': float('inf')}, {'total': 0.1}],
    ids=['none', 'negative', 'NaN', 'infinite', 'reserved name'],
)
def test_times_that_are_none_are_a_programming_error(stage_s):
    with pytest.raises(ValueError, match="finite, not negative and not named 'total', got {"):
        LatencyWindow().add(stage_s)


def test_an_empty_window_is_a_programming_error():
    with pytest.raises(ValueError, match='size must be at least 1, got 0'):
        LatencyWindow(0)


def test_the_window_may_be_read_while_it_is_filled():
    window = LatencyWindow(size=50)
    worker = threading.Thread(target=lambda: [window.add({'action': 0.1}) for _ in range(2000)])
    worker.start()
    while worker.is_alive():
        summary = window.summary()
        assert summary is None or summary['action'].count <= 50
    worker.join()
    assert window.summary()['action'].count == 50
