"""
The policy node with a policy that fails when it is told to: for `vlaq storm --failures`.

A file named by the environment holds the kind of the next failure, and is removed when it happens.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros.lifecycle import run_node
from vlaq_ros.ros.policy_node import PolicyNode
from vlaq_ros.types import ActionChunk, Observation

VARIABLE = 'VLAQ_STORM_FAILURE'
APPLY, INFER, NOT_FINITE = KINDS = ('apply raises', 'inference raises', 'actions are not finite')


class FailingPolicy:
    """
    A policy that fails at a change of precision, or at the first inference after one.

    Args:
        policy: What is changed and run otherwise.
        order: File with the kind of the next failure, one of `KINDS`; absent: none.
    """

    def __init__(self, policy: Policy, order: Path) -> None:
        self._policy = policy
        self._order = order
        self._next = ''

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def apply_precision(self, levels: Mapping[str, PrecisionLevel]) -> None:
        """Switch, or fail; see `Policy.apply_precision`."""
        if self._order.exists():
            self._next = self._order.read_text(encoding='utf-8')
            self._order.unlink()
        if self._next == APPLY:
            self._next = ''
            raise PolicyError(f'injected: {APPLY}')
        self._policy.apply_precision(levels)

    def infer(self, observation: Observation) -> ActionChunk:
        """Return the chunk, or fail; see `Policy.infer`."""
        chunk = self._policy.infer(observation)
        kind, self._next = self._next, ''
        if kind == INFER:
            raise PolicyError(f'injected: {INFER}')
        if kind == NOT_FINITE:
            return replace(chunk, actions=chunk.actions * np.nan)
        return chunk


def main(args: Sequence[str] | None = None) -> int:
    """Run the policy node until Ctrl-C."""
    order = Path(os.environ[VARIABLE])

    def load(*given: Any, **options: Any) -> FailingPolicy:
        return FailingPolicy(load_policy(*given, **options), order)

    return run_node(lambda: PolicyNode(load_policy=load), args)


if __name__ == '__main__':
    raise SystemExit(main())
