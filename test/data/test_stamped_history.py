"""Messages that are found by their exact stamp, and forgotten in time."""

import pytest

from vlaq_ros.data.stamped_history import StampedHistory


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_a_stamp_is_found_exactly_or_not_at_all(clock):
    history = StampedHistory(2.0, 1000, clock)
    history.put('front', 5, 'five', 10)
    history.put('wrist', 6, 'six', 10)
    assert history.find({'front': 5, 'wrist': 6}) == {'front': 'five', 'wrist': 'six'}
    assert history.find({'front': 5, 'wrist': 5}) is None
    assert history.missing({'front': 6, 'wrist': 6}) == ['front']


def test_what_arrived_too_long_ago_is_forgotten_whatever_its_stamp(clock):
    history = StampedHistory(2.0, 1000, clock)
    history.put('front', 10**12, 'of a clock that was set back', 10)
    clock.now_s += 1.5
    history.put('front', 3, 'new', 20)
    assert len(history) == 2
    clock.now_s += 1.0
    assert history.find({'front': 3}) == {'front': 'new'}
    assert history.find({'front': 10**12}) is None
    assert (len(history), history.size_bytes) == (1, 20)


def test_its_size_is_bounded_and_the_newest_is_always_there(clock):
    history = StampedHistory(2.0, 100, clock)
    for stamp in range(10):
        history.put('front', stamp, stamp, 30)
        assert history.size_bytes <= 100
    assert history.missing({'front': 6}) == ['front']
    assert history.missing({'front': 7}) == []
    history.put('front', 99, 'larger than all', 500)
    assert history.find({'front': 99}) == {'front': 'larger than all'}
    assert len(history) == 1


def test_a_stamp_that_comes_again_takes_the_place_of_the_first(clock):
    history = StampedHistory(2.0, 100, clock)
    history.put('front', 1, 'first', 30)
    history.put('front', 1, 'second', 40)
    assert history.find({'front': 1}) == {'front': 'second'}
    assert history.size_bytes == 40
    history.clear()
    assert (len(history), history.size_bytes) == (0, 0)


@pytest.mark.parametrize(('keep_s', 'max_bytes'), [(0.0, 1), (float('nan'), 1), (1.0, 0)])
def test_limits_must_be_positive(keep_s, max_bytes):
    with pytest.raises(ValueError, match='must be positive'):
        StampedHistory(keep_s, max_bytes)
