"""
Whether an observation from a bag is the one that the node had: the recorded policy tells.

The bundle that was recorded, at the level of the chunk, answers the observation once more. When it
gives the recorded actions, the observation is proven: policies react to every input. Which of the
precisions of its bundle a node had loaded is not recorded for sure, so they are tried until one
reproduces a chunk; from then on it stays, as long as it has the level of a chunk.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlaq_ros.analysis.recorded_levels import group_levels
from vlaq_ros.control.precision import PrecisionLevel
from vlaq_ros.errors import BundleError, ConfigError, PolicyError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import Bundle, open_bundle
from vlaq_ros.policies.precision import NESTED, PACKED, precisions
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.types import ActionChunk, Observation

TOLERANCE = 1e-5
"""Share of the range of an action that counts as the same: processors add up in another order."""


class Replay:
    """
    Answers observations as the recorded node did.

    Args:
        bundle: What was recorded.
        names: Precisions that it may have been loaded at, the likeliest first.

    Attributes:
        bundle: What was recorded.
    """

    def __init__(self, bundle: Bundle, names: tuple[str, ...]) -> None:
        self.bundle = bundle
        self._names = names
        self._sure: str | None = None
        self._policies: dict[tuple[str, str], tuple[Policy, dict[str, PrecisionLevel]]] = {}
        spec = bundle.spec.action
        self._span = np.array(spec.high) - np.array(spec.low)

    def reproduces(self, chunk: ActionChunk, observation: Observation) -> bool:
        """Return whether the recorded policy answers this observation with this chunk."""
        for name in sorted(self._names, key=lambda name: name != self._sure):
            answer = self._answer(name, chunk, observation)
            if answer is None or answer.actions.shape != chunk.actions.shape:
                continue
            difference = np.abs(answer.actions - chunk.actions) / self._span
            if difference.max() <= TOLERANCE:
                self._sure = name
                return True
            if name == self._sure:
                return False
        return False

    def _answer(
        self, name: str, chunk: ActionChunk, observation: Observation
    ) -> ActionChunk | None:
        """Return the answer at the level of the chunk, None where the policy has none."""
        if (name, chunk.head) not in self._policies:
            policy = load_policy(self.bundle.path, precision=name, head=chunk.head)
            self._policies[name, chunk.head] = policy, dict(policy.active_levels)
        policy, loaded = self._policies[name, chunk.head]
        try:
            if policy.levels:
                policy.apply_precision(_levels(chunk.precision, name, loaded))
            elif chunk.precision != name:
                return None
            policy.reset()
            return policy.infer(observation)
        except (ConfigError, PolicyError):
            return None


def find_replay(
    provenance: Mapping[str, object], chunks: Sequence[ActionChunk], known: Sequence[Bundle]
) -> tuple[Replay | None, str]:
    """
    Return the replay of the recorded bundle, or None and why there is none.

    Args:
        provenance: What the recorder kept with the bag.
        chunks: Those of the bag.
        known: Bundles that may be the recorded one; a shipped one is found by its name.
    """
    wanted, called = str(provenance.get('bundle_hash', '')), str(provenance.get('bundle', ''))
    if not wanted:
        return None, 'the bag does not tell which bundle was recorded'
    for bundle in (*known, *_shipped(called)):
        if bundle.digest == wanted:
            return Replay(bundle, _names(bundle, provenance, chunks)), ''
    return None, f'bundle {called!r} ({wanted[:12]}) is not here; give it with --bundle'


def _shipped(name: str) -> list[Bundle]:
    try:
        return [open_bundle(name)]
    except BundleError:
        return []


def _names(
    bundle: Bundle, provenance: Mapping[str, object], chunks: Sequence[ActionChunk]
) -> tuple[str, ...]:
    told = provenance.get('precisions')
    names = [*(told if isinstance(told, list) else ()), *(chunk.precision for chunk in chunks)]
    there = precisions(bundle)
    adaptable = PACKED if bundle.is_packed else NESTED
    return tuple(dict.fromkeys([*(name for name in names if name in there), adaptable]))


def _levels(
    precision: str, name: str, loaded: Mapping[str, PrecisionLevel]
) -> dict[str, PrecisionLevel]:
    """
    Return the levels of a chunk, by the name of its precision.

    Raises:
        ConfigError: The name says no widths.
    """
    if precision == name:
        return dict(loaded)
    named = group_levels(precision)
    return {group: PrecisionLevel.from_name(named[group]) for group in loaded}
