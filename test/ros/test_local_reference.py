"""A second policy in the process: newest first, nothing from before a reset, out of the way."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.background import NICENESS
from vlaq_ros.ros.local_reference import InlineReference, ThreadedReference
from vlaq_ros.types import Observation


def observation(observed_ns):
    return Observation({}, np.zeros(4), 'open', observed_ns)


class Gated:
    """The fake policy, which answers when the test lets it."""

    def __init__(self, policy):
        self.policy = policy
        self.entered, self.may_answer = threading.Semaphore(0), threading.Semaphore(0)
        self.seen, self.threads = [], []

    def reset(self):
        self.policy.reset()

    def infer(self, observation):
        self.threads.append(threading.current_thread())
        self.seen.append(observation.observed_ns)
        self.entered.release()
        assert self.may_answer.acquire(timeout=20.0)
        return self.policy.infer(observation)

    def wait_until_entered(self):
        assert self.entered.acquire(timeout=20.0)


@pytest.fixture
def gated(fake_policy):
    return Gated(fake_policy)


@pytest.fixture
def woken():
    return threading.Semaphore(0)


@pytest.fixture
def source(gated, woken):
    source = ThreadedReference('shadow', gated, 1.0, woken.release)
    source.new_epoch(1)
    yield source
    gated.may_answer.release(100)
    source.close()


@pytest.fixture
def ask(fake_policy):
    """Return a function that submits the fake policy's own answer to an observation."""
    answer = type(fake_policy)()

    def submit(source, observed_ns, epoch=1):
        seen = observation(observed_ns)
        chunk = replace(answer.infer(seen), sequence=observed_ns, epoch=epoch)
        source.submit(seen, chunk)
        return chunk

    return submit


def wait(woken):
    assert woken.acquire(timeout=20.0)


def test_the_answer_belongs_to_the_chunk_that_was_asked_about(source, gated, woken, ask):
    judged = ask(source, 5)
    assert source.collect() == []
    gated.may_answer.release()
    wait(woken)
    ((chunk, reference),) = source.collect()
    assert chunk is judged
    assert (reference.observed_ns, reference.epoch) == (5, 1)
    assert source.collect() == []
    assert gated.threads[0] is not threading.current_thread()
    assert dict(source.counts) == {'asked': 1, 'dropped': 0, 'answered': 1, 'withdrawn': 0}


def test_only_the_newest_of_those_that_wait_is_answered_and_the_others_are_counted(
    source, gated, woken, ask
):
    ask(source, 1)
    gated.wait_until_entered()
    for observed_ns in (2, 3, 4):
        ask(source, observed_ns)
    gated.may_answer.release(10)
    wait(woken)
    wait(woken)
    assert [chunk.observed_ns for chunk, _ in source.collect()] == [1, 4]
    assert (source.counts['asked'], source.counts['dropped']) == (4, 2)
    assert source.counts['asked'] == source.counts['answered'] + source.counts['dropped']


def test_nothing_from_before_a_reset_is_given_out(source, gated, woken, ask, fake_policy):
    ask(source, 1)
    gated.wait_until_entered()
    ask(source, 2)
    source.new_epoch(2)
    gated.may_answer.release(10)
    wait(woken)
    assert source.collect() == []
    assert (source.counts['other epoch'], source.counts['withdrawn']) == (1, 1)
    ask(source, 3, epoch=2)
    wait(woken)
    assert [chunk.observed_ns for chunk, _ in source.collect()] == [3]
    assert gated.seen == [1, 3]
    assert fake_policy.resets == 2  # once per epoch


def test_a_reference_that_fails_is_counted_and_explained_until_it_works_again(
    source, gated, woken, ask, fake_policy
):
    gated.may_answer.release(10)
    fake_policy.error = PolicyError('no memory')
    ask(source, 1)
    wait(woken)
    assert source.collect() == []
    assert source.counts['failed'] == 1
    assert source.trouble == 'PolicyError: no memory'
    fake_policy.error = None
    ask(source, 2)
    wait(woken)
    assert len(source.collect()) == 1
    assert source.trouble == ''


def test_the_rest_after_an_inference_is_what_the_duty_leaves(source):
    source._busy_s = 0.3
    for duty, rest_s in ((1.0, 0.0), (0.5, 0.3), (0.25, 0.9), (0.1, 2.7)):
        source.duty = duty
        assert source._rest_s() == pytest.approx(rest_s)


def test_while_it_rests_it_answers_nothing_and_takes_the_newest(gated, woken, ask):
    """With a duty of one in a billion the rest outlasts every test."""
    source = ThreadedReference('shadow', gated, 1e-9, woken.release)
    source.new_epoch(1)
    gated.may_answer.release(10)
    ask(source, 1)
    wait(woken)
    for observed_ns in (2, 3, 4):
        ask(source, observed_ns)
    assert [chunk.observed_ns for chunk, _ in source.collect()] == [1]
    assert source.counts['dropped'] == 2
    source.close()
    assert not gated.threads[0].is_alive()
    assert gated.seen == [1]


@pytest.mark.skipif(sys.platform != 'linux', reason='priorities belong to threads on Linux')
def test_its_thread_yields_to_the_others(woken, ask, fake_policy):
    seen = []
    infer = fake_policy.infer

    def note(observation):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return infer(observation)

    fake_policy.infer = note
    source = ThreadedReference('shadow', fake_policy, 1.0, woken.release)
    source.new_epoch(1)
    ask(source, 1)
    wait(woken)
    source.close()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen == [max(own, NICENESS)]


@pytest.fixture
def inline(fake_policy):
    source = InlineReference('shadow', fake_policy)
    source.new_epoch(1)
    return source


def test_inline_the_answer_is_there_as_soon_as_the_chunk_is(inline, ask):
    for observed_ns in (1, 2, 3):
        inline.answer(observation(observed_ns), 1)
        judged = ask(inline, observed_ns)
        ((chunk, reference),) = inline.collect()
        assert chunk is judged
        assert (reference.observed_ns, reference.epoch) == (observed_ns, 1)
    assert (inline.counts['asked'], inline.counts['answered'], inline.trouble) == (3, 3, '')


def test_inline_a_failure_is_told_and_the_next_answer_is_used(inline, ask, fake_policy):
    fake_policy.error = PolicyError('no memory')
    inline.answer(observation(1), 1)
    ask(inline, 1)
    assert inline.collect() == []
    assert (inline.counts['failed'], inline.trouble) == (1, 'PolicyError: no memory')
    fake_policy.error = None
    inline.answer(observation(2), 1)
    ask(inline, 2)
    assert len(inline.collect()) == 1
    assert inline.trouble == ''


def test_inline_answers_of_chunks_that_nobody_judged_do_not_pile_up(inline, ask, fake_policy):
    for epoch in range(1, 20):
        inline.new_epoch(epoch)
        inline.answer(observation(epoch), epoch)
    assert len(inline._answers) == 1
    assert fake_policy.resets == 19
    ask(inline, 19, epoch=19)
    assert len(inline.collect()) == 1
    assert inline._answers == {}


def test_inline_what_was_not_collected_before_a_reset_is_withdrawn(inline, ask):
    inline.answer(observation(1), 1)
    ask(inline, 1)
    inline.new_epoch(2)
    assert inline.collect() == []
    assert inline.counts['withdrawn'] == 1


def test_nodes_without_a_policy_load_no_tensor_library():
    """Recorder and simulator import the conversions, which know readings of drift."""
    program = 'import sys, vlaq_ros.ros.conversions; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program]).returncode == 0
