"""
Carries a change of precision out on a policy, whatever the policy does meanwhile.

Every exception of the policy becomes a roll-back with its text; none leaves these methods. What
happens when, and what never happens, is in `precision_transaction`.
"""

from collections.abc import Mapping
from typing import Protocol

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.control.precision_transaction import PrecisionTransaction, Stage


class PrecisionTarget(Protocol):
    """A policy whose precision can change while it is loaded. Any method may raise."""

    def prepare_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Do everything slow beforehand; runs beside inference and must not disturb it."""

    def apply_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Switch; runs between two inferences and must be quick. Also used for the way back."""


class PrecisionSwitch:
    """Drives a `PrecisionTransaction` with a policy."""

    def __init__(self, transaction: PrecisionTransaction, target: PrecisionTarget) -> None:
        self.transaction = transaction
        self._target = target

    def prepare(self, now_ns: int) -> bool:
        """
        Prepare the requested change, on any thread but one at a time.

        Returns:
            Whether it waits for the swap now. False: nothing was requested, it failed, or another
            request came meanwhile, which needs a call of its own.
        """
        change = self.transaction.change
        if change is None or change.stage is not Stage.REQUESTED:
            return False
        try:
            self._target.prepare_precision(change.levels)
        except Exception as error:
            self.transaction.fail(change.sequence, f'not prepared: {_text(error)}', now_ns)
            return False
        return self.transaction.prepared(change.sequence, now_ns)

    def before_inference(self, now_ns: int) -> bool:
        """
        Undo or swap what is due, and begin an inference. On the inference thread.

        Returns:
            Whether the policy may compute; False after a fault.
        """
        self.transaction.expire(now_ns)
        self._undo(now_ns)
        change = self.transaction.swap(now_ns)
        if change is not None:
            try:
                self._target.apply_precision(change.levels)
            except Exception as error:
                self.transaction.fail(change.sequence, f'not swapped: {_text(error)}', now_ns)
        while not self.transaction.begin_inference():
            if self.transaction.active is None:
                return False
            self._undo(now_ns)
        return True

    def after_inference(self, now_ns: int, error: str = '') -> None:
        """
        End an inference, also one that raised, and judge a fresh swap by it. On its thread.

        Args:
            now_ns: Steady time.
            error: Why the inference failed; empty: its actions are good.
        """
        self.transaction.end_inference()
        change = self.transaction.change
        if change is None or change.stage is not Stage.SWAPPED:
            return
        if error:
            self.transaction.fail(change.sequence, f'not confirmed: {error}', now_ns)
            self._undo(now_ns)
        else:
            self.transaction.confirm(change.sequence, now_ns)

    def _undo(self, now_ns: int) -> None:
        change = self.transaction.way_back()
        if change is None:
            return
        try:
            self._target.apply_precision(change.previous)
        except Exception as error:
            self.transaction.not_restored(change.sequence, f'not restored: {_text(error)}', now_ns)
        else:
            self.transaction.restored(change.sequence, now_ns)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
