"""The inference thread: newest request only, results in order, a clean end."""

import threading

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from vlaq_ros.ros.worker import Worker


class Gate:
    """Work that waits until the test lets it pass."""

    def __init__(self):
        self.entered, self.may_pass = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, request):
        self.entered.release()
        assert self.may_pass.acquire(timeout=10.0)
        if request == 'bad':
            raise ValueError('bad request')
        return f'{request} done'


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def notified():
    return threading.Semaphore(0)


@pytest.fixture
def worker(gate, notified):
    worker = Worker(gate, notified.release, 'test')
    yield worker
    gate.may_pass.release(100)
    assert worker.close(10.0)


def test_only_the_newest_waiting_request_is_worked_on(worker, gate, notified):
    worker.submit('first')
    assert gate.entered.acquire(timeout=10.0)
    worker.submit('second')
    worker.submit('third')
    assert worker.is_busy
    gate.may_pass.release(2)
    assert notified.acquire(timeout=10.0)
    assert notified.acquire(timeout=10.0)
    assert worker.collect() == [('first', 'first done'), ('third', 'third done')]
    assert worker.collect() == []
    assert not worker.is_busy


def test_an_exception_is_a_result_and_the_thread_lives(worker, gate, notified):
    gate.may_pass.release(2)
    worker.submit('bad')
    assert notified.acquire(timeout=10.0)
    worker.submit('good')
    assert notified.acquire(timeout=10.0)
    (_, error), (_, result) = worker.collect()
    assert str(error) == 'bad request'
    assert result == 'good done'


def test_after_close_nothing_is_notified(gate, notified):
    worker = Worker(gate, notified.release, 'test')
    worker.submit('first')
    assert gate.entered.acquire(timeout=10.0)
    assert not worker.close(0.01)  # still working
    gate.may_pass.release()
    assert worker.close(10.0)
    assert not notified.acquire(blocking=False)


def test_what_waits_is_replaced_and_can_be_withdrawn(worker, gate, notified):
    assert not worker.submit('first')
    assert gate.entered.acquire(timeout=10.0)
    assert not worker.withdraw()
    assert not worker.submit('second')
    assert worker.submit('third')
    assert worker.withdraw()
    gate.may_pass.release()
    assert notified.acquire(timeout=10.0)
    assert worker.collect() == [('first', 'first done')]
    assert not worker.is_busy


def test_a_rest_makes_requests_wait_and_ends_with_the_worker(notified):
    worker = Worker(lambda request: request, notified.release, 'test', rest_s=lambda: 600.0)
    worker.submit('first')
    assert notified.acquire(timeout=10.0)
    worker.submit('second')
    assert worker.is_busy
    assert worker.submit('third')
    assert worker.collect() == [('first', 'first')]
    assert worker.close(10.0)
    assert worker.collect() == []


def test_the_thread_prepares_itself_before_the_first_request(notified):
    told = []
    worker = Worker(
        lambda request: told.append(threading.current_thread()),
        notified.release,
        'test',
        begin=lambda: told.append(threading.current_thread()),
    )
    worker.submit('first')
    assert notified.acquire(timeout=10.0)
    assert told[0] is told[1] is not threading.current_thread()
    assert worker.close(10.0)
