r"""
A change of precision as a transaction: it happens as a whole or not at all, and says why.

    requested -> prepared -> swapped between two inferences -> confirmed
         \____________\_____________________________\-> rolled back, with the reason

Preparing may take long and runs beside inference. The swap and the way back run between two
inferences only. The first good inference after the swap confirms the change. When even the way
back fails, nobody knows which precision the policy has: that is a fault, the arm must stop, and
only a policy that is set up again ends it.

Every request is accounted for: it is under way, or it has had exactly one `Outcome`.

`PrecisionTransaction` holds the state and no policy, and may be used from any thread;
`PrecisionSwitch` drives it with a policy. Times are nanoseconds of a steady clock: a control clock
that stands still must not keep a change under way for ever.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from vlaq_ros.control.precision import PrecisionLevel, level_names
from vlaq_ros.control.precision_account import Account, Outcome

HISTORY = 100
"""Finished changes that are remembered one by one; all of them are counted."""


class Stage(str, Enum):
    """How far a change is; a change that is CONFIRMED, ROLLED_BACK or FAILED is finished."""

    REQUESTED = 'requested'
    PREPARED = 'prepared'
    SWAPPED = 'swapped'
    ROLLING_BACK = 'rolling_back'
    CONFIRMED = 'confirmed'
    ROLLED_BACK = 'rolled_back'
    FAILED = 'failed'

    __str__ = str.__str__


_FINISHED = (Stage.CONFIRMED, Stage.ROLLED_BACK, Stage.FAILED)


@dataclass(frozen=True)
class Change:
    """
    One change of precision.

    Attributes:
        sequence: Number of the change, from 1.
        levels: Level of every module group that was asked for.
        previous: Level of every module group before.
        reason: Why it was asked for; of a finished change that failed, why it failed.
        stage: How far it is.
        since_ns: When it was asked for.
        stage_ns: When it came to this stage.
    """

    sequence: int
    levels: Mapping[str, PrecisionLevel]
    previous: Mapping[str, PrecisionLevel]
    reason: str
    stage: Stage
    since_ns: int
    stage_ns: int


class PrecisionTransaction:
    """
    The state of the current change, and the levels in force.

    Args:
        active: Levels of every module group that the policy was set up with.
        time_limit_s: Longest time in one stage before the change is rolled back [s].
        retry_s: Time after a failure during which the same levels are not tried again [s].
    """

    def __init__(
        self,
        active: Mapping[str, PrecisionLevel],
        time_limit_s: float = 10.0,
        retry_s: float = 1.0,
    ) -> None:
        if not active or not time_limit_s > 0.0 or not retry_s >= 0.0:
            raise ValueError(
                f'active={active} must not be empty, time_limit_s={time_limit_s} be positive, '
                f'retry_s={retry_s} not be negative'
            )
        self._time_limit_ns = round(time_limit_s * 1e9)
        self._retry_ns = round(retry_s * 1e9)
        self._failure: tuple[Mapping[str, PrecisionLevel], int] | None = None
        self._lock = threading.RLock()
        self._active: dict[str, PrecisionLevel] | None = dict(active)
        self._groups = frozenset(active)
        self._change: Change | None = None
        self._waiting: tuple[dict[str, PrecisionLevel], str] | None = None
        self._sequence = 0
        self._is_inferring = False
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._counts = dict.fromkeys(_FINISHED, 0)
        self._requests = 0
        self._outcomes = dict.fromkeys(Outcome, 0)

    @property
    def active(self) -> dict[str, PrecisionLevel] | None:
        """The levels that the next inference runs at; None after a fault."""
        with self._lock:
            return None if self._active is None else dict(self._active)

    @property
    def change(self) -> Change | None:
        """The change that is under way, None when there is none."""
        return self._change

    @property
    def history(self) -> tuple[Change, ...]:
        """The finished changes, oldest first, at most the last `HISTORY`."""
        with self._lock:
            return tuple(self._history)

    @property
    def counts(self) -> dict[Stage, int]:
        """Number of finished changes by how they ended."""
        with self._lock:
            return dict(self._counts)

    @property
    def account(self) -> Account:
        """What has become of all requests so far."""
        with self._lock:
            under_way = (self._change is not None) + (self._waiting is not None)
            return Account(self._requests, under_way, dict(self._outcomes))

    def request(self, levels: Mapping[str, PrecisionLevel], reason: str, now_ns: int) -> bool:
        """
        Ask for other levels; the newest request counts.

        It takes the place of a change that is not swapped yet, which is rolled back. Behind one
        that is, it waits until that is confirmed or rolled back.

        Returns:
            Whether a new change began or waits: False when these levels are in force or under
            way, when they failed just now, and after a fault.

        Raises:
            ValueError: The levels are not of exactly the module groups of the policy.
        """
        if frozenset(levels) != self._groups:
            raise ValueError(
                f'levels are for the groups {sorted(levels)}, the policy has '
                f'{sorted(self._groups)}'
            )
        with self._lock:
            self._requests += 1
            if self._active is None:
                return self._end(Outcome.WITHHELD)
            change = self._change
            if change is not None and change.stage in (Stage.SWAPPED, Stage.ROLLING_BACK):
                self._drop_waiting(Outcome.OVERTAKEN)
                if change.stage is Stage.SWAPPED and change.levels == levels:
                    return self._end(Outcome.UNCHANGED)
                self._waiting = dict(levels), reason
                return True
            if change is not None:
                if change.levels == levels:
                    return self._end(Outcome.UNCHANGED)
                why = f'{level_names(levels)} was asked for'
                self._finish(Stage.ROLLED_BACK, why, now_ns, Outcome.OVERTAKEN)
            return self._begin(levels, reason, now_ns)

    def prepared(self, sequence: int, now_ns: int) -> bool:
        """Note that everything for the swap is ready; return whether it is still wanted."""
        with self._lock:
            return self._advance(sequence, Stage.REQUESTED, Stage.PREPARED, now_ns)

    def begin_inference(self) -> bool:
        """
        Note that the policy computes from now on; return whether it may.

        It may not while a way back is due, and after a fault.

        Raises:
            RuntimeError: It already computes.
        """
        with self._lock:
            if self._is_inferring:
                raise RuntimeError('an inference began before the last one ended')
            self._is_inferring = self._active is not None and not self._is_at(Stage.ROLLING_BACK)
            return self._is_inferring

    def end_inference(self) -> None:
        """Note that the policy does not compute any more."""
        with self._lock:
            self._is_inferring = False

    def swap(self, now_ns: int) -> Change | None:
        """Return the change to carry out now, between two inferences; None when none is due."""
        with self._lock:
            if self._is_inferring or not self._is_at(Stage.PREPARED):
                return None
            self._active = dict(self._change.levels)
            self._change = replace(self._change, stage=Stage.SWAPPED, stage_ns=now_ns)
            return self._change

    def confirm(self, sequence: int, now_ns: int) -> bool:
        """Note that the policy works after the swap; return whether that ended the change."""
        with self._lock:
            if not self._is_at(Stage.SWAPPED, sequence):
                return False
            self._finish(Stage.CONFIRMED, self._change.reason, now_ns, Outcome.CONFIRMED)
            self._begin_waiting(now_ns)
            return True

    def fail(self, sequence: int, reason: str, now_ns: int) -> bool:
        """Give this change up; return whether it was still under way."""
        with self._lock:
            change = self._change
            if change is None or change.sequence != sequence or change.stage is Stage.ROLLING_BACK:
                return False
            if change.stage is Stage.SWAPPED:
                self._change = replace(
                    change, stage=Stage.ROLLING_BACK, reason=reason, stage_ns=now_ns
                )
            else:
                self._failure = change.levels, now_ns
                self._finish(Stage.ROLLED_BACK, reason, now_ns, Outcome.ROLLED_BACK)
            return True

    def expire(self, now_ns: int) -> bool:
        """Give up a change that is too long in one stage; return whether there was one."""
        with self._lock:
            change = self._change
            if change is None or now_ns - change.stage_ns <= self._time_limit_ns:
                return False
            limit_s = self._time_limit_ns * 1e-9
            return self.fail(change.sequence, f'{change.stage} for over {limit_s:g} s', now_ns)

    def way_back(self) -> Change | None:
        """Return the change to undo now, between two inferences; None when none is due."""
        with self._lock:
            is_due = self._is_at(Stage.ROLLING_BACK) and not self._is_inferring
            return self._change if is_due else None

    def restored(self, sequence: int, now_ns: int) -> bool:
        """Note that the levels from before the change are in force again."""
        with self._lock:
            if not self._is_at(Stage.ROLLING_BACK, sequence):
                return False
            self._active = dict(self._change.previous)
            self._failure = self._change.levels, now_ns
            self._finish(Stage.ROLLED_BACK, self._change.reason, now_ns, Outcome.ROLLED_BACK)
            self._begin_waiting(now_ns)
            return True

    def not_restored(self, sequence: int, reason: str, now_ns: int) -> bool:
        """Note that the way back has failed: from now on the levels are unknown."""
        with self._lock:
            if not self._is_at(Stage.ROLLING_BACK, sequence):
                return False
            self._active = None
            self._drop_waiting(Outcome.WITHHELD)
            why = f'{self._change.reason}; then {reason}'
            self._finish(Stage.FAILED, why, now_ns, Outcome.FAULT)
            return True

    def set_up(self, active: Mapping[str, PrecisionLevel], now_ns: int) -> None:
        """
        Begin again with a policy that was set up anew; what was under way is rolled back.

        Raises:
            RuntimeError: The policy is computing.
        """
        with self._lock:
            if self._is_inferring:
                raise RuntimeError('the policy is computing: it cannot be set up anew')
            self._failure = None
            self._drop_waiting(Outcome.OVERTAKEN)
            if self._change is not None:
                why = 'the policy was set up anew'
                self._finish(Stage.ROLLED_BACK, why, now_ns, Outcome.OVERTAKEN)
            self._active, self._groups = dict(active), frozenset(active)

    def _is_at(self, stage: Stage, sequence: int | None = None) -> bool:
        change = self._change
        if change is None or change.stage is not stage:
            return False
        return sequence is None or change.sequence == sequence

    def _advance(self, sequence: int, before: Stage, after: Stage, now_ns: int) -> bool:
        if not self._is_at(before, sequence):
            return False
        self._change = replace(self._change, stage=after, stage_ns=now_ns)
        return True

    def _begin(self, levels: Mapping[str, PrecisionLevel], reason: str, now_ns: int) -> bool:
        if levels == self._active:
            return self._end(Outcome.UNCHANGED)
        if self._has_just_failed(levels, now_ns):
            return self._end(Outcome.WITHHELD)
        self._sequence += 1
        self._change = Change(
            sequence=self._sequence,
            levels=dict(levels),
            previous=dict(self._active),
            reason=reason,
            stage=Stage.REQUESTED,
            since_ns=now_ns,
            stage_ns=now_ns,
        )
        return True

    def _has_just_failed(self, levels: Mapping[str, PrecisionLevel], now_ns: int) -> bool:
        if self._failure is None or self._failure[0] != levels:
            return False
        return 0 <= now_ns - self._failure[1] < self._retry_ns

    def _begin_waiting(self, now_ns: int) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._begin(*waiting, now_ns)

    def _drop_waiting(self, outcome: Outcome) -> None:
        if self._waiting is not None:
            self._waiting = None
            self._end(outcome)

    def _finish(self, stage: Stage, reason: str, now_ns: int, outcome: Outcome) -> None:
        self._history.append(replace(self._change, stage=stage, reason=reason, stage_ns=now_ns))
        self._counts[stage] += 1
        self._change = None
        self._end(outcome)

    def _end(self, outcome: Outcome) -> bool:
        """Note what became of one request; return False: nothing new is under way."""
        self._outcomes[outcome] += 1
        return False
