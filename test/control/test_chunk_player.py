"""The player picks rows by the clock, drops what is old, and says why nothing is due."""

import threading

import numpy as np
import pytest

from vlaq_ros.control.chunk_player import ChunkPlayer, ChunkRejection
from vlaq_ros.errors import StaleChunkError
from vlaq_ros.types import ActionChunk, ActionSpec

MS = 1_000_000
SPEC = ActionSpec(
    names=('ee_x', 'gripper'),
    units=('m', '1'),
    frame='base',
    delta=True,
    period_ns=50 * MS,
    low=(-0.02, 0.0),
    high=(0.02, 1.0),
)


def make_chunk(observed_ms=7600, horizon=8, sequence=0, epoch=0, spec=SPEC):
    """Return a chunk whose row k starts with the number k."""
    actions = np.stack([np.arange(horizon), np.zeros(horizon)], axis=1)
    return ActionChunk(
        actions, spec, observed_ms * MS, 'push', 'w8', 'flow', sequence=sequence, epoch=epoch
    )


@pytest.fixture
def player():
    """Return a player that has just started epoch 0."""
    return ChunkPlayer(SPEC, execution_horizon=6)


@pytest.mark.parametrize('row', range(8))
def test_a_row_is_due_during_its_own_period_and_no_longer(player, row):
    player.accept(make_chunk())
    start_ns = (7600 + 50 * row) * MS
    for now_ns in (start_ns, start_ns + 50 * MS - 1):
        assert player.row_at(now_ns) == row
        assert player.action_at(now_ns)[0] == row


def test_past_the_end_the_message_says_what_the_chunk_covers(player):
    player.accept(make_chunk())
    with pytest.raises(StaleChunkError) as caught:
        player.action_at(8120 * MS)
    assert str(caught.value) == (
        'no action for t=8120 ms: the chunk covers 8 periods of 50 ms from t=7600 ms'
    )


def test_the_first_nanosecond_past_the_end_is_refused(player):
    player.accept(make_chunk())
    with pytest.raises(StaleChunkError, match='covers 8 periods'):
        player.row_at(8000 * MS)


def test_before_its_start_a_chunk_is_refused_and_a_new_one_is_wanted(player):
    player.accept(make_chunk())
    with pytest.raises(StaleChunkError, match=r'no action for t=7599\.999 ms'):
        player.action_at(7600 * MS - 1000)
    assert player.needs_inference(7600 * MS - 1)


def test_stamps_of_the_real_clock_are_printed_in_full(player):
    player.accept(make_chunk(observed_ms=1_700_000_000_000))
    with pytest.raises(StaleChunkError, match='from t=1700000000000 ms'):
        player.action_at(1_700_000_001_000 * MS)


def test_without_a_chunk_the_epoch_is_named_and_inference_is_wanted(player):
    player.clear(3)
    with pytest.raises(StaleChunkError, match='no chunk was accepted yet in epoch 3'):
        player.action_at(0)
    assert player.needs_inference(0)
    assert player.chunk is None


@pytest.mark.parametrize(
    ('horizon', 'last_executed'), [(8, 5), (4, 3)], ids=['within the chunk', 'chunk is shorter']
)
def test_inference_is_wanted_once_the_execution_horizon_is_used_up(player, horizon, last_executed):
    player.accept(make_chunk(observed_ms=0, horizon=horizon))
    used_up_ns = 50 * (last_executed + 1) * MS
    assert not player.needs_inference(used_up_ns - 1)
    assert player.needs_inference(used_up_ns)


def test_a_newer_chunk_takes_over_at_the_row_that_is_due_now(player):
    player.accept(make_chunk(observed_ms=7600, sequence=1))
    assert player.accept(make_chunk(observed_ms=7700, sequence=2))
    assert player.row_at(7900 * MS) == 4


@pytest.mark.parametrize('sequence', [4, 5], ids=['older', 'repeated'])
def test_a_chunk_that_is_not_newer_is_dropped_and_counted(player, sequence):
    current = make_chunk(sequence=5)
    assert player.accept(current)
    assert not player.accept(make_chunk(observed_ms=7700, sequence=sequence))
    assert player.chunk is current
    assert player.rejected == {ChunkRejection.OTHER_EPOCH: 0, ChunkRejection.OLD_SEQUENCE: 1}


@pytest.mark.parametrize('epoch', [1, 3], ids=['from before the reset', 'from the future'])
def test_a_chunk_of_another_epoch_is_dropped_and_counted(player, epoch):
    player.clear(2)
    assert not player.accept(make_chunk(sequence=99, epoch=epoch))
    assert player.chunk is None
    assert player.rejected == {ChunkRejection.OTHER_EPOCH: 1, ChunkRejection.OLD_SEQUENCE: 0}


def test_a_reset_drops_the_chunk_and_sequences_may_start_again(player):
    player.accept(make_chunk(sequence=7))
    player.clear(1)
    assert player.epoch == 1
    assert player.chunk is None
    assert player.accept(make_chunk(sequence=0, epoch=1))


def test_a_chunk_made_for_another_robot_is_a_programming_error(player):
    other = ActionSpec(('ee_x', 'gripper'), ('m', '1'), 'tool', True, 50 * MS, (-1, 0), (1, 1))
    with pytest.raises(ValueError, match="frame='tool'"):
        player.accept(make_chunk(spec=other))


def test_an_empty_execution_horizon_is_a_programming_error():
    with pytest.raises(ValueError, match='execution_horizon must be at least 1, got 0'):
        ChunkPlayer(SPEC, 0)


def test_reasons_print_as_their_published_name():
    assert f'{ChunkRejection.OLD_SEQUENCE}' == 'old_sequence'


def test_a_chunk_of_the_old_epoch_never_survives_a_reset_from_another_thread(player):
    start = threading.Barrier(2)

    def infer():
        start.wait()
        for sequence in range(200):
            player.accept(make_chunk(sequence=sequence, epoch=sequence % 2))

    worker = threading.Thread(target=infer)
    worker.start()
    start.wait()
    for epoch in range(200):
        player.clear(epoch % 2)
        chunk = player.chunk
        assert chunk is None or chunk.epoch == epoch % 2
    worker.join()
