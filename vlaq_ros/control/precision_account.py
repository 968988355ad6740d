"""What became of the requests for another precision: each has exactly one outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Outcome(str, Enum):
    """
    What became of a request: exactly one of these.

    Attributes:
        CONFIRMED: Swapped, and the first inference after the swap was good.
        OVERTAKEN: Replaced before it was swapped, be it under way or waiting behind a swap: by a
            newer request, or by a policy that was set up anew.
        UNCHANGED: These levels were in force or under way already.
        ROLLED_BACK: It failed or took too long, and the levels from before are in force.
        FAULT: It failed, and so did the way back: nobody knows which levels are in force.
        WITHHELD: Not tried: the same levels failed just now, or there is a fault.
        AUTOMATIC: Left to what decides by itself: the rules, or the end of a drift alarm.
    """

    CONFIRMED = 'confirmed'
    OVERTAKEN = 'overtaken'
    UNCHANGED = 'unchanged'
    ROLLED_BACK = 'failed and rolled back'
    FAULT = 'failed and not rolled back'
    WITHHELD = 'withheld'
    AUTOMATIC = 'left to automatic'

    __str__ = str.__str__


@dataclass(frozen=True)
class Account:
    """
    What has become of all requests; see `is_balanced`.

    Attributes:
        requests: How many there were.
        under_way: How many of them have no outcome yet: one under way, one behind its swap.
        outcomes: How many had which outcome; every `Outcome` is named.
    """

    requests: int
    under_way: int
    outcomes: Mapping[Outcome, int]

    @property
    def is_balanced(self) -> bool:
        """Whether every request is under way or had one outcome."""
        return self.requests == self.under_way + sum(self.outcomes.values())


NO_REQUESTS = Account(0, 0, dict.fromkeys(Outcome, 0))
