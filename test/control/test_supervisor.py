"""The states of the control loop: holds end by themselves, faults do not, stops are repeated."""

import pytest

from vlaq_ros.control.supervisor import ControlState, Supervisor


@pytest.fixture
def supervisor():
    supervisor = Supervisor(stop_repeat_s=1.0)
    supervisor.activate(now_ns=0)
    return supervisor


def test_nothing_moves_before_activation():
    supervisor = Supervisor(1.0)
    assert not supervisor.run(0)
    supervisor.fault('broken', 0, 0.0)
    supervisor.hold('stale', 0, 0.0)
    assert supervisor.state is ControlState.INACTIVE
    assert not supervisor.must_send_stop(0.0)


def test_waiting_for_the_first_input_is_no_hold_and_sends_no_stop(supervisor):
    supervisor.hold('front: nothing received yet', 5, 0.0)
    assert supervisor.state is ControlState.WAITING
    assert supervisor.reason == 'front: nothing received yet'
    assert not supervisor.must_send_stop(0.0)


def test_a_hold_repeats_the_stop_for_a_while_and_ends_by_itself(supervisor):
    supervisor.run(1)
    supervisor.hold('stale', 2, 10.0)
    assert (supervisor.state, supervisor.since_ns) == (ControlState.HOLDING, 2)
    supervisor.stop_sent()
    assert supervisor.must_send_stop(11.0)
    assert not supervisor.must_send_stop(11.01)
    assert supervisor.run(3)
    assert (supervisor.state, supervisor.reason) == (ControlState.RUNNING, '')
    assert not supervisor.must_send_stop(10.5)


def test_a_hold_that_lasts_is_one_hold_with_the_newest_reason(supervisor):
    supervisor.run(1)
    supervisor.hold('300 ms old', 2, 10.0)
    supervisor.stop_sent()
    supervisor.hold('320 ms old', 3, 10.5)
    assert (supervisor.reason, supervisor.since_ns) == ('320 ms old', 2)
    assert not supervisor.must_send_stop(11.2)


@pytest.mark.parametrize('stop', ['hold', 'fault'])
def test_the_first_stop_is_due_however_late_and_however_short_the_repetition(stop):
    """Without repetition the stop was over before the clock was read again: none was sent."""
    supervisor = Supervisor(stop_repeat_s=0.0)
    supervisor.activate(0)
    supervisor.run(1)
    getattr(supervisor, stop)('stale', 2, 10.0)
    assert supervisor.must_send_stop(10.001)
    assert supervisor.must_send_stop(10.002)  # not sent yet
    supervisor.stop_sent()
    assert not supervisor.must_send_stop(10.003)


def test_a_fault_survives_everything_but_reset_and_keeps_its_first_reason(supervisor):
    supervisor.run(1)
    supervisor.fault('not finite', 2, 10.0)
    supervisor.stop_sent()
    supervisor.fault('another', 3, 12.0)
    supervisor.hold('stale', 4, 12.0)
    assert not supervisor.run(5)
    assert (supervisor.state, supervisor.reason) == (ControlState.FAULT, 'not finite')
    assert supervisor.must_send_stop(11.0)
    assert not supervisor.must_send_stop(12.0)
    supervisor.reset(6)
    assert supervisor.state is ControlState.WAITING
    assert supervisor.run(7)


def test_a_reset_without_a_fault_changes_nothing(supervisor):
    supervisor.run(1)
    supervisor.reset(2)
    assert supervisor.state is ControlState.RUNNING


def test_after_deactivation_no_stop_is_due(supervisor):
    supervisor.run(1)
    supervisor.hold('stale', 2, 10.0)
    supervisor.deactivate('deactivated', 3)
    assert not supervisor.must_send_stop(10.0)
    assert not supervisor.run(4)
