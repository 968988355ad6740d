"""An observation holds what was known at that time, or a refusal says what was missing."""

import threading

import numpy as np
import pytest

from vlaq_ros.data.resample import (
    IncompleteObservationError,
    ObservationAssembler,
    StreamBuffer,
    StreamFault,
)
from vlaq_ros.errors import ImageError, StaleInputError

MS = 1_000_000
NOW_MS = 8120


class SteadyClock:
    """A steady clock that is moved by hand."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        """Return the time [s]."""
        return self.now_s


def image_of(value):
    """Return a small image filled with one number."""
    return np.full((2, 3, 3), value, np.uint8)


def fill(assembler, front_ms=8100, wrist_ms=8090, state_ms=8110, instruction='push'):
    """Feed one sample of every stream."""
    assembler.put_image('front', image_of(1), front_ms * MS)
    assembler.put_image('wrist', image_of(2), wrist_ms * MS)
    assembler.put_state(np.array([0.1, 0.2]), state_ms * MS)
    assembler.put_instruction(instruction)


def refusal(assembler, now_ms=NOW_MS):
    """Return the error of an observation that must be refused."""
    with pytest.raises(IncompleteObservationError) as caught:
        assembler.observation(now_ms * MS)
    return caught.value


@pytest.fixture
def clock():
    """Return a steady clock that stands still."""
    return SteadyClock()


@pytest.fixture
def assembler(clock):
    """Return an assembler of two cameras and a state, 200 ms old at most."""
    return ObservationAssembler(('front', 'wrist'), True, 200 * MS, 50 * MS, steady_clock=clock)


def test_fresh_streams_become_one_observation_with_the_stamp_of_the_first_camera(assembler):
    fill(assembler)
    observation = assembler.observation(NOW_MS * MS)
    assert list(observation.images) == ['front', 'wrist']
    np.testing.assert_array_equal(observation.images['front'], image_of(1))
    np.testing.assert_array_equal(observation.images['wrist'], image_of(2))
    np.testing.assert_array_equal(observation.state, [0.1, 0.2])
    assert observation.instruction == 'push'
    assert observation.observed_ns == 8100 * MS


@pytest.mark.parametrize(
    ('now_ms', 'expected'), [(100, 1), (149, 1), (150, 2), (199, 2), (200, 3), (999, 3)]
)
def test_the_newest_sample_at_or_before_now_is_held(now_ms, expected):
    buffer = StreamBuffer()
    for value, stamp_ms in ((1, 100), (2, 150), (3, 200)):
        buffer.put(value, stamp_ms * MS)
    assert buffer.at(now_ms * MS).value == expected


def test_a_sample_from_the_future_is_not_used():
    buffer = StreamBuffer()
    buffer.put('future', 101)
    assert buffer.at(100) is None
    assert buffer.newest_stamp_ns() == 101


def test_samples_that_arrive_out_of_order_are_sorted_by_stamp():
    buffer = StreamBuffer()
    for stamp_ns in (20, 30, 10):
        buffer.put(f'taken at {stamp_ns}', stamp_ns)
    assert buffer.at(25).value == 'taken at 20'
    assert buffer.at(99).value == 'taken at 30'


def test_of_two_samples_with_one_stamp_the_later_arrival_counts():
    buffer = StreamBuffer()
    buffer.put('first', 10)
    buffer.put('second', 10)
    assert buffer.at(10).value == 'second'


def test_a_buffer_recovers_from_a_wrong_stamp_by_itself():
    buffer = StreamBuffer(capacity=3)
    buffer.put('wrong', 10_000)
    for stamp_ns in (1, 2, 3):
        buffer.put(stamp_ns, stamp_ns)
    assert buffer.newest_stamp_ns() == 3
    assert buffer.at(99_999).value == 3


def test_a_buffer_sized_by_time_keeps_fast_samples_and_forgets_old_ones():
    """A buffer kept 8 samples, whatever time they covered."""
    buffer = StreamBuffer(capacity=1000, keep_ns=100 * MS)
    for stamp_ms in range(500):
        buffer.put(stamp_ms, stamp_ms * MS)
    assert buffer.at(400 * MS).value == 400
    assert buffer.at(390 * MS) is None


def test_one_wrong_stamp_does_not_empty_a_buffer_sized_by_time():
    buffer = StreamBuffer(capacity=1000, keep_ns=100 * MS)
    for stamp_ms in (10, 20, 9000, 30, 40):
        buffer.put(stamp_ms, stamp_ms * MS)
        assert stamp_ms == 9000 or buffer.at(stamp_ms * MS).value == stamp_ms
    assert buffer.at(20 * MS).value == 20
    for stamp_ms in range(50, 300, 10):
        buffer.put(stamp_ms, stamp_ms * MS)
    assert buffer.newest_stamp_ns() == 290 * MS


def test_a_sample_sent_again_does_not_push_out_the_others():
    """The same state, put at 1 kHz between two poses, pushed out the one before."""
    buffer = StreamBuffer(capacity=3)
    buffer.put('before', 10)
    for _ in range(5):
        buffer.put('again', 20)
    assert buffer.at(19).value == 'before'


def test_an_empty_assembler_lists_everything_it_waits_for(assembler):
    error = refusal(assembler)
    assert isinstance(error, StaleInputError)
    assert str(error) == (
        'no observation at t=8.120 s:\n'
        '  front: nothing received yet\n'
        '  wrist: nothing received yet\n'
        '  state: nothing received yet\n'
        '  instruction: no sentence received yet'
    )
    assert {problem.fault for problem in error.problems} == {StreamFault.MISSING}
    assert [problem.age_s for problem in error.problems] == [None] * 4


def test_every_stale_stream_is_listed_with_its_age(assembler):
    fill(assembler, wrist_ms=7770, state_ms=7000)
    error = refusal(assembler)
    assert [(p.stream, p.fault, p.age_s) for p in error.problems] == [
        ('wrist', StreamFault.STALE, pytest.approx(0.35)),
        ('state', StreamFault.STALE, pytest.approx(1.12)),
    ]
    assert 'wrist: 350 ms old, limit 200 ms' in str(error)


def test_a_sample_is_usable_up_to_its_age_limit_and_no_longer(assembler):
    fill(assembler, front_ms=8000, wrist_ms=8000, state_ms=8000)
    assembler.observation(8200 * MS)
    with pytest.raises(StaleInputError, match='front: 200 ms old'):
        assembler.observation(8200 * MS + 1)


def test_each_stream_may_have_its_own_age_limit():
    ages = {'front': 10 * MS, 'state': 100 * MS}
    assembler = ObservationAssembler(('front',), True, ages)
    assembler.put_instruction('push')
    assembler.put_image('front', image_of(1), 0)
    assembler.put_state(np.zeros(2), 0)
    assembler.observation(10 * MS)
    assert [problem.stream for problem in refusal(assembler, now_ms=11).problems] == ['front']


def test_a_driver_that_repeats_an_old_stamp_goes_stale(assembler):
    fill(assembler)
    for now_ms in range(8120, 8400, 20):
        fill(assembler, front_ms=8100, wrist_ms=now_ms, state_ms=now_ms)
    assert [problem.stream for problem in refusal(assembler, now_ms=8400).problems] == ['front']


def test_a_driver_that_does_not_stamp_is_named(assembler):
    fill(assembler, front_ms=0)
    assert 'front: the stamp is zero: the driver does not stamp' in str(refusal(assembler))


def test_stamps_ahead_of_the_clock_are_named(assembler):
    fill(assembler, wrist_ms=NOW_MS + 980)
    (problem,) = refusal(assembler).problems
    assert (problem.stream, problem.fault) == ('wrist', StreamFault.FUTURE)
    assert problem.age_s == pytest.approx(-0.98)
    assert problem.text == 'stamped 0.980 s in the future: synchronize the clocks'


def test_streams_too_far_apart_are_refused_with_the_oldest_named(assembler):
    fill(assembler, front_ms=8100, wrist_ms=8049, state_ms=8060)
    (problem,) = refusal(assembler).problems
    assert (problem.stream, problem.fault) == ('wrist', StreamFault.SPREAD)
    assert problem.age_s == pytest.approx(0.071)
    assert problem.text == '51 ms older than front, limit 50 ms'


def test_streams_exactly_the_limit_apart_are_used(assembler):
    fill(assembler, front_ms=8100, wrist_ms=8050, state_ms=8060)
    assembler.observation(NOW_MS * MS)


def test_the_state_is_that_of_the_first_image(assembler):
    """It was that of now: an image was refused as too far from a state that kept coming."""
    assembler.put_instruction('push')
    for stamp_ms in range(8000, 8121, 10):
        assembler.put_state(np.full(2, stamp_ms), stamp_ms * MS)
    assembler.put_image('front', image_of(1), 8025 * MS)
    assembler.put_image('wrist', image_of(2), 8030 * MS)
    np.testing.assert_array_equal(assembler.observation(NOW_MS * MS).state, [8020, 8020])


def test_a_state_that_has_ended_is_stale_however_old_the_image_is(assembler):
    fill(assembler, front_ms=8000, wrist_ms=8000, state_ms=7919)
    assert [problem.stream for problem in refusal(assembler).problems] == ['state']


def test_without_a_spread_limit_only_the_ages_count():
    assembler = ObservationAssembler(('front', 'wrist'), True, 200 * MS)
    fill(assembler, wrist_ms=7930)
    assembler.observation(NOW_MS * MS)


@pytest.mark.parametrize('text', ['', ' \n'], ids=['empty', 'blank'])
def test_an_empty_instruction_is_none(assembler, text):
    fill(assembler, instruction=text)
    (problem,) = refusal(assembler).problems
    assert problem.stream == 'instruction'


def test_a_new_instruction_counts_from_the_next_observation_on(assembler):
    fill(assembler)
    assembler.put_instruction('  open the drawer ')
    assert assembler.observation(NOW_MS * MS).instruction == 'open the drawer'


def test_after_a_backward_jump_clear_forgets_samples_and_keeps_the_instruction(assembler):
    fill(assembler)
    assembler.clear()
    assert [problem.stream for problem in refusal(assembler).problems] == [
        'front',
        'wrist',
        'state',
    ]
    assert assembler.silent_for_s() == {'front': None, 'wrist': None, 'state': None}


def test_without_a_state_the_observation_has_an_empty_one():
    assembler = ObservationAssembler(('front',), False, 200 * MS)
    assembler.put_image('front', image_of(1), 8100 * MS)
    assembler.put_state(np.ones(2), 8100 * MS)
    assembler.put_instruction('push')
    assert assembler.observation(NOW_MS * MS).state.shape == (0,)


def test_a_state_is_copied_when_it_arrives(assembler):
    state = np.array([0.1, 0.2])
    fill(assembler)
    assembler.put_state(state, 8111 * MS)
    state[:] = 9
    np.testing.assert_array_equal(assembler.observation(NOW_MS * MS).state, [0.1, 0.2])


def test_ages_are_those_of_the_newest_stamps(assembler):
    assembler.put_image('front', image_of(1), 8000 * MS)
    assembler.put_image('front', image_of(1), 8100 * MS)
    assert assembler.ages_s(NOW_MS * MS) == {
        'front': pytest.approx(0.02),
        'wrist': None,
        'state': None,
    }


def test_silence_is_measured_on_the_steady_clock_whatever_the_stamps_say(assembler, clock):
    assembler.put_image('front', image_of(1), 10**18)
    clock.now_s += 0.75
    assert assembler.silent_for_s() == {'front': 0.75, 'wrist': None, 'state': None}


def test_an_unknown_camera_is_a_programming_error(assembler):
    with pytest.raises(ValueError, match=r"no camera 'left' among \('front', 'wrist'\)"):
        assembler.put_image('left', image_of(1), 0)


@pytest.mark.parametrize(
    'image',
    [np.zeros((2, 3, 3)), np.zeros((2, 3), np.uint8), np.zeros((2, 3, 4), np.uint8)],
    ids=['float', 'grey', 'with alpha'],
)
def test_an_image_that_is_not_rgb_is_refused(assembler, image):
    with pytest.raises(ImageError, match="camera 'front' gave .* decode the message to RGB first"):
        assembler.put_image('front', image, 0)


@pytest.mark.parametrize(
    'cameras',
    [(), ('front', 'front'), ('state',), ('instruction',)],
    ids=['none', 'twice', 'named state', 'named instruction'],
)
def test_cameras_that_cannot_be_told_apart_are_a_programming_error(cameras):
    with pytest.raises(ValueError, match='cameras must be distinct'):
        ObservationAssembler(cameras, False, MS)


@pytest.mark.parametrize(
    'max_age_ns',
    [0, {'front': MS}, {'front': MS, 'state': 0}, {'front': MS, 'state': MS, 'left': MS}],
    ids=['zero', 'one missing', 'one zero', 'one unknown'],
)
def test_age_limits_that_do_not_fit_the_streams_are_a_programming_error(max_age_ns):
    with pytest.raises(ValueError, match='max_age_ns needs a positive limit for each of'):
        ObservationAssembler(('front',), True, max_age_ns)


def test_faults_print_as_their_published_name():
    assert f'{StreamFault.STALE}' == 'stale'


def test_streams_may_be_fed_while_observations_are_made():
    assembler = ObservationAssembler(('front',), True, 10**9)
    assembler.put_instruction('push')
    done = threading.Event()

    def feed():
        for stamp_ns in range(1, 2000):
            assembler.put_image('front', image_of(stamp_ns % 256), stamp_ns)
            assembler.put_state(np.full(2, stamp_ns), stamp_ns)
        done.set()

    worker = threading.Thread(target=feed)
    worker.start()
    while not done.is_set():
        try:
            observation = assembler.observation(2000)
        except IncompleteObservationError:
            continue
        assert observation.images['front'][0, 0, 0] == observation.observed_ns % 256
    worker.join()
    assert assembler.observation(2000).observed_ns == 1999


def test_require_refuses_exactly_when_an_observation_would_be_refused(assembler):
    expected = str(refusal(assembler))
    with pytest.raises(IncompleteObservationError) as caught:
        assembler.require(NOW_MS * MS)
    assert str(caught.value) == expected
    fill(assembler)
    assembler.require(NOW_MS * MS)
