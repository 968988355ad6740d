"""A change of precision happens as a whole or not at all, whatever fails and whenever."""

import random
import threading

import pytest

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.control.precision_account import NO_REQUESTS, Outcome
from vlaq_ros.control.precision_switch import PrecisionSwitch
from vlaq_ros.control.precision_transaction import HISTORY, PrecisionTransaction, Stage

SECOND = 1_000_000_000
W4A4, W4A8, W8A16 = (PrecisionLevel(4, 4), PrecisionLevel(4, 8), PrecisionLevel(8, 16))
HIGH = {'llm': W8A16, 'expert': W8A16}
LOW = {'llm': W4A4, 'expert': W4A8}
MIDDLE = {'llm': W4A8, 'expert': W8A16}


class FakePolicy:
    """Applies levels group by group, and fails when told to: half-way, as a real one might."""

    def __init__(self, levels):
        self.levels = dict(levels)
        self.is_inferring = False
        self.applied = 0
        self.fail_prepare = self.fail_apply = self.fail_restore = False
        self.is_way_back_next = False

    def prepare_precision(self, levels):
        if self.fail_prepare:
            raise MemoryError('no memory for the plane')

    def apply_precision(self, levels):
        assert not self.is_inferring, 'the precision changed under an inference'
        self.applied += 1
        must_fail = self.fail_restore if self.is_way_back_next else self.fail_apply
        self.is_way_back_next = must_fail and not self.is_way_back_next
        for count, (group, level) in enumerate(sorted(levels.items())):
            if must_fail and count == 1:
                raise RuntimeError('device lost')
            self.levels[group] = level


def make_switch(**limits):
    policy = FakePolicy(HIGH)
    return PrecisionSwitch(PrecisionTransaction(HIGH, **limits), policy), policy


def infer(switch, policy, now_ns, error=''):
    """Run one inference; return the levels it ran at, None when it may not run."""
    if not switch.before_inference(now_ns):
        return None
    policy.is_inferring = True
    ran_at = dict(policy.levels)
    policy.is_inferring = False
    switch.after_inference(now_ns, error)
    return ran_at


def test_a_change_goes_through_its_stages_and_is_confirmed_by_an_inference():
    switch, policy = make_switch()
    transaction = switch.transaction
    assert transaction.request(LOW, 'coarse motion', 10)
    assert transaction.change.stage is Stage.REQUESTED
    assert infer(switch, policy, 20) == HIGH  # not prepared yet: nothing changes
    assert switch.prepare(30)
    assert transaction.change.stage is Stage.PREPARED
    assert transaction.active == policy.levels == HIGH
    assert switch.before_inference(40)
    assert transaction.change.stage is Stage.SWAPPED
    assert transaction.active == policy.levels == LOW
    switch.after_inference(50)
    assert transaction.change is None
    (change,) = transaction.history
    assert (change.stage, change.reason, change.sequence) == (Stage.CONFIRMED, 'coarse motion', 1)
    assert (change.previous, change.levels) == (HIGH, LOW)
    assert (change.since_ns, change.stage_ns) == (10, 50)
    assert transaction.counts[Stage.CONFIRMED] == 1


def test_preparing_and_requesting_change_nothing_while_the_policy_computes():
    switch, policy = make_switch()
    assert switch.before_inference(0)
    switch.transaction.request(LOW, 'coarse motion', 0)
    assert switch.prepare(0)
    assert switch.transaction.swap(0) is None
    assert policy.levels == HIGH
    switch.after_inference(0)
    assert infer(switch, policy, 0) == LOW


def test_a_change_that_cannot_be_prepared_is_rolled_back_and_never_applied():
    switch, policy = make_switch()
    policy.fail_prepare = True
    switch.transaction.request(LOW, 'coarse motion', 0)
    assert not switch.prepare(0)
    assert infer(switch, policy, 0) == HIGH
    assert policy.applied == 0
    (change,) = switch.transaction.history
    assert (change.stage, change.reason) == (
        Stage.ROLLED_BACK,
        'not prepared: no memory for the plane',
    )


def test_a_swap_that_fails_half_way_is_undone_before_the_next_inference():
    switch, policy = make_switch()
    policy.fail_apply = True
    switch.transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    assert infer(switch, policy, 0) == HIGH
    (change,) = switch.transaction.history
    assert (change.stage, change.reason) == (Stage.ROLLED_BACK, 'not swapped: device lost')
    assert switch.transaction.active == HIGH


def test_an_inference_that_fails_after_the_swap_takes_the_change_back():
    switch, policy = make_switch()
    switch.transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    assert infer(switch, policy, 0, error='the actions are not finite') == LOW
    assert policy.levels == switch.transaction.active == HIGH
    (change,) = switch.transaction.history
    assert change.reason == 'not confirmed: the actions are not finite'
    assert infer(switch, policy, 0) == HIGH


def test_an_inference_that_fails_without_a_change_changes_nothing():
    switch, policy = make_switch()
    infer(switch, policy, 0, error='camera missing')
    assert switch.transaction.history == ()
    assert policy.applied == 0


def test_when_even_the_way_back_fails_nothing_runs_until_the_policy_is_set_up_anew():
    switch, policy = make_switch()
    policy.fail_apply = policy.fail_restore = True
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    assert infer(switch, policy, 0) is None
    assert transaction.active is None
    assert not transaction.request(HIGH, 'try again', 0)
    assert infer(switch, policy, 0) is None
    (change,) = transaction.history
    assert change.stage is Stage.FAILED
    assert change.reason == 'not swapped: device lost; then not restored: device lost'
    policy.fail_apply = policy.fail_restore = False
    policy.levels = dict(MIDDLE)
    transaction.set_up(MIDDLE, 0)
    assert infer(switch, policy, 0) == MIDDLE


@pytest.mark.parametrize('is_prepared', [False, True], ids=['requested', 'prepared'])
def test_a_newer_request_takes_the_place_of_one_that_is_not_swapped(is_prepared):
    switch, policy = make_switch()
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    if is_prepared:
        switch.prepare(0)
    assert transaction.request(MIDDLE, 'drift', 0)
    assert infer(switch, policy, 0) == HIGH
    assert switch.prepare(0)
    assert infer(switch, policy, 0) == MIDDLE
    replaced, confirmed = transaction.history
    assert (replaced.stage, replaced.levels) == (Stage.ROLLED_BACK, LOW)
    assert replaced.reason == 'expert w8a16, llm w4a8 was asked for'
    assert (confirmed.stage, confirmed.reason) == (Stage.CONFIRMED, 'drift')


def test_a_request_for_what_is_in_force_cancels_what_is_under_way():
    switch, policy = make_switch()
    switch.transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    assert not switch.transaction.request(HIGH, 'gripper', 0)
    assert infer(switch, policy, 0) == HIGH
    assert switch.transaction.counts[Stage.ROLLED_BACK] == 1


def test_a_request_after_the_swap_waits_for_its_end_and_the_newest_one_counts():
    switch, policy = make_switch()
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    assert switch.before_inference(0)
    assert transaction.request(MIDDLE, 'drift', 0)
    assert transaction.request(HIGH, 'gripper', 0)
    assert not switch.prepare(0)
    switch.after_inference(0)
    assert transaction.change.levels == HIGH
    assert switch.prepare(0)
    assert infer(switch, policy, 0) == HIGH
    assert [change.reason for change in transaction.history] == ['coarse motion', 'gripper']


def test_a_request_for_the_swapped_levels_cancels_the_one_that_waits():
    switch, policy = make_switch()
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    switch.before_inference(0)
    transaction.request(HIGH, 'gripper', 0)
    assert not transaction.request(LOW, 'coarse motion', 0)
    switch.after_inference(0)
    assert transaction.change is None
    assert transaction.active == LOW


def test_the_same_request_twice_is_one_change():
    transaction = PrecisionTransaction(HIGH)
    assert transaction.request(LOW, 'coarse motion', 0)
    assert not transaction.request(LOW, 'coarse motion', 0)
    assert not transaction.request(dict(LOW), 'another reason', 0)
    assert transaction.change.sequence == 1


def test_what_is_in_force_is_no_change():
    transaction = PrecisionTransaction(HIGH)
    assert not transaction.request(HIGH, 'gripper', 0)
    assert transaction.change is None


def test_preparation_that_ends_after_a_newer_request_prepares_nothing():
    transaction = PrecisionTransaction(HIGH)
    transaction.request(LOW, 'coarse motion', 0)
    stale = transaction.change.sequence
    transaction.request(MIDDLE, 'drift', 0)
    assert not transaction.prepared(stale, 0)
    assert not transaction.fail(stale, 'too late', 0)
    assert transaction.change.stage is Stage.REQUESTED
    assert transaction.swap(0) is None


@pytest.mark.parametrize('is_prepared', [False, True], ids=['requested', 'prepared'])
def test_a_change_that_takes_too_long_is_rolled_back(is_prepared):
    transaction = PrecisionTransaction(HIGH, time_limit_s=2.0)
    transaction.request(LOW, 'coarse motion', 0)
    if is_prepared:
        transaction.prepared(transaction.change.sequence, 0)
    assert not transaction.expire(2 * SECOND)
    assert transaction.expire(2 * SECOND + 1)
    (change,) = transaction.history
    stage = 'prepared' if is_prepared else 'requested'
    assert change.reason == f'{stage} for over 2 s'
    assert transaction.active == HIGH


def test_a_swap_that_is_never_confirmed_is_taken_back_between_two_inferences():
    switch, policy = make_switch(time_limit_s=2.0)
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    switch.before_inference(0)
    assert transaction.expire(3 * SECOND)
    assert transaction.way_back() is None  # the policy still computes
    switch.after_inference(3 * SECOND)
    assert transaction.way_back() is not None
    assert infer(switch, policy, 3 * SECOND) == HIGH
    assert transaction.history[-1].reason == 'swapped for over 2 s'


def test_levels_that_failed_are_not_tried_again_at_once():
    transaction = PrecisionTransaction(HIGH, retry_s=5.0)
    transaction.request(LOW, 'coarse motion', 0)
    transaction.fail(transaction.change.sequence, 'no memory', SECOND)
    assert not transaction.request(LOW, 'coarse motion', 6 * SECOND - 1)
    assert transaction.request(MIDDLE, 'drift', 6 * SECOND - 1)
    assert transaction.request(LOW, 'coarse motion', 6 * SECOND)


def test_levels_that_were_taken_back_are_not_tried_again_at_once():
    switch, policy = make_switch(retry_s=5.0)
    switch.transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    infer(switch, policy, SECOND, error='the actions are not finite')
    assert not switch.transaction.request(LOW, 'coarse motion', 2 * SECOND)
    assert switch.transaction.request(LOW, 'coarse motion', 6 * SECOND)


def test_an_inference_does_not_carry_out_a_change_that_is_out_of_time():
    switch, policy = make_switch(time_limit_s=2.0)
    switch.transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    assert infer(switch, policy, 3 * SECOND) == HIGH
    assert switch.transaction.history[-1].reason == 'prepared for over 2 s'


def test_no_inference_begins_before_the_last_one_ended():
    transaction = PrecisionTransaction(HIGH)
    assert transaction.begin_inference()
    with pytest.raises(RuntimeError, match='before the last one ended'):
        transaction.begin_inference()
    with pytest.raises(RuntimeError, match='cannot be set up anew'):
        transaction.set_up(LOW, 0)
    transaction.end_inference()
    assert transaction.begin_inference()


def test_levels_of_other_groups_are_a_programming_error():
    with pytest.raises(ValueError, match=r"groups \['llm'\], the policy has \['expert', 'llm'\]"):
        PrecisionTransaction(HIGH).request({'llm': W4A4}, 'coarse motion', 0)


@pytest.mark.parametrize(
    'arguments',
    [({}, 1.0, 1.0), (HIGH, 0.0, 1.0), (HIGH, 1.0, -1.0)],
    ids=['none', 'time', 'retry'],
)
def test_a_transaction_without_levels_or_time_is_a_programming_error(arguments):
    with pytest.raises(ValueError, match='must not be empty'):
        PrecisionTransaction(*arguments)


def test_the_history_is_bounded_and_the_counts_are_not():
    transaction = PrecisionTransaction(HIGH)
    for _ in range(HISTORY + 10):
        transaction.request(LOW, 'coarse motion', 0)
        transaction.request(HIGH, 'gripper', 0)
    assert len(transaction.history) == HISTORY
    assert transaction.counts[Stage.ROLLED_BACK] == HISTORY + 10


def test_ten_thousand_random_switches_with_failures_at_every_step():
    """
    After every step the policy has exactly the levels that the transaction says.

    Requests, preparations, inferences, time-outs and failures come in any order. Every change
    ends exactly once, numbers never repeat, and an inference never sees a mixture.
    """
    draw = random.Random(7)
    switch, policy = make_switch(time_limit_s=50e-9, retry_s=0.0)
    transaction = switch.transaction
    choices = (HIGH, LOW, MIDDLE, {'llm': W4A4, 'expert': W8A16})
    now_ns = last = faults = 0
    ran_at = HIGH
    while last < 10_000:
        now_ns += draw.randrange(20)
        policy.fail_prepare = draw.random() < 0.1
        policy.fail_apply = draw.random() < 0.2
        policy.fail_restore = draw.random() < 0.2
        action = draw.choices(('request', 'prepare', 'expire', 'infer'), (45, 25, 5, 50))[0]
        if action == 'request':
            transaction.request(draw.choice(choices), 'random', now_ns)
        elif action == 'prepare':
            switch.prepare(now_ns)
        elif action == 'expire':
            transaction.expire(now_ns)
        elif policy.is_inferring:
            assert policy.levels == ran_at  # unchanged since the inference began
            policy.is_inferring = False
            switch.after_inference(now_ns, 'random' if draw.random() < 0.1 else '')
        else:
            policy.is_inferring = switch.before_inference(now_ns)
            ran_at = dict(policy.levels)
            assert not policy.is_inferring or ran_at in choices
        if transaction.change is not None:
            assert transaction.change.sequence in (last, last + 1)
            last = transaction.change.sequence
        if transaction.active is None:
            faults += 1
            policy.levels, policy.is_way_back_next = dict(HIGH), False
            transaction.set_up(HIGH, now_ns)
        assert policy.levels == transaction.active
    assert sum(transaction.counts.values()) == 10_000 - 1  # the last one is under way
    assert transaction.counts[Stage.FAILED] == faults
    assert all(count > 30 for count in transaction.counts.values())
    numbers = [change.sequence for change in transaction.history]
    assert numbers == list(range(10_000 - HISTORY, 10_000))


def test_requests_and_preparations_from_other_threads_never_disturb_an_inference():
    switch, policy = make_switch(retry_s=0.0)
    done = threading.Event()

    def ask():
        draw = random.Random(1)
        while not done.is_set():
            switch.transaction.request(draw.choice((HIGH, LOW, MIDDLE)), 'random', 0)
            done.wait(1e-4)

    def prepare():
        while not done.is_set():
            switch.prepare(0)
            done.wait(1e-5)

    threads = [threading.Thread(target=target) for target in (ask, prepare)]
    for thread in threads:
        thread.start()
    runs = []
    try:
        while switch.transaction.counts[Stage.CONFIRMED] < 50:
            runs.append(infer(switch, policy, 0))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert all(levels in (HIGH, LOW, MIDDLE) for levels in runs)
    assert policy.levels == switch.transaction.active


def outcomes_of(transaction):
    account = transaction.account
    assert account.is_balanced, account
    return {outcome: count for outcome, count in account.outcomes.items() if count}


def test_a_request_under_way_has_no_outcome_yet_and_then_exactly_one():
    switch, policy = make_switch()
    transaction = switch.transaction
    assert transaction.account == NO_REQUESTS
    transaction.request(LOW, 'coarse motion', 0)
    assert (transaction.account.requests, transaction.account.under_way) == (1, 1)
    assert outcomes_of(transaction) == {}
    switch.prepare(0)
    infer(switch, policy, 0)
    assert (transaction.account.requests, transaction.account.under_way) == (1, 0)
    assert outcomes_of(transaction) == {Outcome.CONFIRMED: 1}


def test_a_request_that_is_replaced_while_it_waits_behind_a_swap_is_overtaken():
    switch, policy = make_switch()
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    switch.before_inference(0)
    transaction.request(MIDDLE, 'drift', 0)
    assert transaction.account.under_way == 2
    transaction.request(HIGH, 'gripper', 0)
    assert transaction.account.under_way == 2
    assert outcomes_of(transaction) == {Outcome.OVERTAKEN: 1}
    transaction.request(LOW, 'coarse motion', 0)
    assert outcomes_of(transaction) == {Outcome.OVERTAKEN: 2, Outcome.UNCHANGED: 1}
    switch.after_inference(0)
    assert transaction.account.under_way == 0
    assert outcomes_of(transaction)[Outcome.CONFIRMED] == 1


def test_a_request_that_is_replaced_before_its_swap_is_overtaken():
    transaction = PrecisionTransaction(HIGH)
    transaction.request(LOW, 'coarse motion', 0)
    transaction.request(MIDDLE, 'drift', 0)
    transaction.request(HIGH, 'gripper', 0)
    assert outcomes_of(transaction) == {Outcome.OVERTAKEN: 2, Outcome.UNCHANGED: 1}


def test_a_failure_and_what_is_not_tried_because_of_it_are_told_apart():
    switch, policy = make_switch(retry_s=5.0)
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    switch.before_inference(0)
    transaction.request(MIDDLE, 'drift', 0)
    transaction.request(LOW, 'coarse motion', 0)
    assert transaction.expire(20 * SECOND)  # the swap is to be undone: now LOW waits behind it
    transaction.request(LOW, 'coarse motion', 20 * SECOND)
    switch.after_inference(20 * SECOND)
    assert infer(switch, policy, 20 * SECOND) == HIGH
    assert outcomes_of(transaction) == {
        Outcome.OVERTAKEN: 1,
        Outcome.UNCHANGED: 1,
        Outcome.ROLLED_BACK: 1,
        Outcome.WITHHELD: 1,
    }


def test_a_fault_is_no_roll_back_and_withholds_what_waits_and_what_comes():
    switch, policy = make_switch()
    transaction = switch.transaction
    transaction.request(LOW, 'coarse motion', 0)
    switch.prepare(0)
    switch.before_inference(0)
    transaction.request(MIDDLE, 'drift', 0)
    policy.fail_apply = policy.fail_restore = policy.is_way_back_next = True
    switch.after_inference(0, 'device lost')
    assert transaction.active is None
    transaction.request(HIGH, 'gripper', 0)
    assert outcomes_of(transaction) == {Outcome.FAULT: 1, Outcome.WITHHELD: 2}


def test_a_policy_that_is_set_up_anew_overtakes_what_is_under_way_and_what_waits():
    transaction = PrecisionTransaction(HIGH)
    transaction.request(LOW, 'coarse motion', 0)
    transaction.prepared(transaction.change.sequence, 0)
    transaction.swap(0)
    transaction.request(HIGH, 'gripper', 0)
    assert transaction.account.under_way == 2
    transaction.set_up(MIDDLE, 0)
    assert transaction.account.under_way == 0
    assert outcomes_of(transaction) == {Outcome.OVERTAKEN: 2}


@pytest.mark.parametrize('seed', range(20))
def test_every_request_of_a_random_sequence_ends_in_exactly_one_outcome(seed):
    """
    The outcome of every single request is found without the account, and must agree with it.

    A request is recognised by its reason. What was begun ends as the history says; what never was
    begun was in force, withheld, or replaced while it waited.
    """
    draw = random.Random(seed)
    switch, policy = make_switch(time_limit_s=50e-9, retry_s=draw.choice((0.0, 30e-9)))
    transaction = switch.transaction
    choices = (HIGH, LOW, MIDDLE, {'llm': W4A4, 'expert': W8A16})
    begun, ended, asked, now_ns = {}, {}, 0, 0
    for _ in range(3000):
        now_ns += draw.randrange(20)
        policy.fail_prepare = draw.random() < 0.1
        policy.fail_apply = draw.random() < 0.2
        policy.fail_restore = draw.random() < 0.1
        action = draw.choices(('request', 'prepare', 'expire', 'infer'), (60, 20, 5, 40))[0]
        if action == 'request':
            transaction.request(draw.choice(choices), str(asked), now_ns)
            asked += 1
        elif action == 'prepare':
            switch.prepare(now_ns)
        elif action == 'expire':
            transaction.expire(now_ns)
        elif policy.is_inferring:
            policy.is_inferring = False
            switch.after_inference(now_ns, 'random' if draw.random() < 0.1 else '')
        else:
            policy.is_inferring = switch.before_inference(now_ns)
        change = transaction.change
        if change is not None and change.stage is Stage.REQUESTED:
            assert begun.setdefault(change.reason, change.sequence) == change.sequence
        ended.update({one.sequence: one for one in transaction.history[-5:]})
        account = transaction.account
        assert account.is_balanced, account
        assert account.requests == asked
        if transaction.active is None:
            policy.levels, policy.is_way_back_next = dict(HIGH), False
            transaction.set_up(HIGH, now_ns)
    counts = transaction.account.outcomes
    by_stage = {stage: [c for c in ended.values() if c.stage is stage] for stage in Stage}
    overtaken = [c for c in by_stage[Stage.ROLLED_BACK] if 'asked for' in c.reason]
    assert sorted(begun.values()) == list(range(1, len(begun) + 1))
    assert counts[Outcome.CONFIRMED] == len(by_stage[Stage.CONFIRMED]) > 0
    assert counts[Outcome.FAULT] == len(by_stage[Stage.FAILED])
    assert counts[Outcome.ROLLED_BACK] == len(by_stage[Stage.ROLLED_BACK]) - len(overtaken) > 0
    assert counts[Outcome.AUTOMATIC] == 0
    never_begun = asked - len(begun)
    waits = transaction.account.under_way - (transaction.change is not None)
    replaced_in_waiting = counts[Outcome.OVERTAKEN] - len(overtaken)
    assert replaced_in_waiting > 0
    assert never_begun == (
        waits + replaced_in_waiting + counts[Outcome.UNCHANGED] + counts[Outcome.WITHHELD]
    )
