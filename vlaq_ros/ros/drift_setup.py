"""
What the drift of a loaded policy is measured with, from the parameters of the node.

Everything is checked here against the bundle and the levels that the policy really has, before a
second policy is loaded. No rclpy.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product

from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.drift_monitor import PREDICTED
from vlaq_ros.policies.levels import levels_name
from vlaq_ros.ros.drift_control import DriftParts
from vlaq_ros.ros.drift_parameters import HIGHER, RAISE, REMOTE, SHADOW, DriftParameters
from vlaq_ros.ros.drift_sources import ReferenceSource
from vlaq_ros.ros.local_reference import InlineReference, ThreadedReference
from vlaq_ros.ros.policy_parameters import PolicyParameters

FULL = 'fp32'
_SAME = ('cameras', 'state', 'prompt', 'action', 'action_mean', 'action_std', 'horizon')


class DriftSetup:
    """
    Makes what the drift of a policy is measured with.

    Args:
        load_policy: Loads a bundle; see `registry.load_policy`.
        digest: Returns the sha256 that identifies a bundle.
        origin: Returns the digest of the float bundle that a packed one was made of; None: the
            bundle is a float one.
        remote: Makes the source `remote` for a policy.
        wake: Makes the executor thread collect what a source has.
    """

    def __init__(
        self,
        load_policy: Callable[..., Policy],
        digest: Callable[[str], str],
        origin: Callable[[str], str | None],
        remote: Callable[[Policy, PolicyParameters], ReferenceSource],
        wake: Callable[[], None],
    ) -> None:
        self._load_policy = load_policy
        self._digest = digest
        self._origin = origin
        self._remote = remote
        self._wake = wake

    def make(self, policy: Policy, config: PolicyParameters) -> DriftParts:
        """
        Return the source or the error model; parameters were checked with `mismatches`.

        Raises:
            ConfigError: The reference does not belong to the bundle, or the model is not usable.
            BundleError: The bundle of the reference is missing or damaged.
        """
        name = config.drift.source
        if name == SHADOW:
            return DriftParts(self._local(name, self._shadow(policy, config), config))
        if name == HIGHER:
            twin = policy.twin()
            twin.apply_precision({group: max(each) for group, each in twin.levels.items()})
            return DriftParts(self._local(name, twin, config))
        if name == REMOTE:
            return DriftParts(self._remote(policy, config))
        if name == PREDICTED:
            return _predicted(policy, config)
        return DriftParts()

    def _local(self, name: str, policy: Policy, config: PolicyParameters) -> ReferenceSource:
        if config.lockstep:
            return InlineReference(name, policy)
        return ThreadedReference(name, policy, config.drift.duty, self._wake)

    def _shadow(self, policy: Policy, config: PolicyParameters) -> Policy:
        """Load the reference and make sure that it is the one of this policy."""
        bundle = self.reference_bundle(config)
        shadow = self._load_policy(bundle, precision=FULL, head=policy.head, threads=None)
        differ = [n for n in _SAME if getattr(shadow.spec, n) != getattr(policy.spec, n)]
        if differ:
            raise ConfigError(
                f'bundle {bundle!r} cannot be the reference of {config.bundle!r}: they differ in '
                f'{", ".join(differ)}'
            )
        return shadow

    def reference_bundle(self, config: PolicyParameters) -> str:
        """
        Return the float bundle that is the reference of the policy.

        Raises:
            ConfigError: None is named where it must be, or another one is.
        """
        given = config.drift.reference_bundle
        what = "parameter 'drift.reference_bundle'"
        origin = self._origin(config.bundle)
        if origin is None and not given:
            return config.bundle
        if not given:
            raise ConfigError(
                f'{what} is empty and bundle {config.bundle!r} is packed: name the float bundle '
                f'that it was made of (digest {origin[:12]}), or use source `higher`'
            )
        if self._origin(given) is not None:
            raise ConfigError(f'{what} = {given!r} is a packed bundle itself: name a float bundle')
        wanted = origin or self._digest(config.bundle)
        found = self._digest(given)
        if found != wanted:
            made = 'was made of' if origin else 'is'
            raise ConfigError(
                f'{what} = {given!r} has digest {found[:12]}, but bundle {config.bundle!r} '
                f'{made} {wanted[:12]}: drift from another policy says nothing about quantization'
            )
        return given


def mismatches(config: DriftParameters, policy: Policy) -> Iterator[str]:
    """Yield why the drift of a loaded policy cannot be measured or answered like this."""
    if policy.levels:
        return
    fixed = f'precision {policy.precision} is fixed: {policy.level_limits}'
    if config.source in (HIGHER, PREDICTED):
        yield (
            f"parameter 'drift.source' = {config.source!r} needs levels, and {fixed}; or compare "
            'with full precision: source `shadow`'
        )
    if config.reaction == RAISE:
        yield f"parameter 'drift.reaction' = 'raise' needs levels to raise, and {fixed}"


def _predicted(policy: Policy, config: PolicyParameters) -> DriftParts:
    levels, what = policy.measured_levels, "parameter 'drift.source' = 'predicted'"
    if levels is None:
        raise ConfigError(
            f'{what} needs measured levels, which bundle {config.bundle!r} has not got (no '
            'levels.json): calibrate it with `vlaq calibrate --method nested`, or compare with '
            '`shadow` or `higher`'
        )
    if policy.head not in levels.heads:
        raise ConfigError(
            f'{what}: the levels of bundle {config.bundle!r} were not measured with head '
            f'{policy.head!r}, only with {", ".join(levels.heads)}'
        )
    head = levels.heads[policy.head]
    names = {}
    for combination in product(*policy.levels.values()):
        running = dict(zip(policy.levels, combination))
        with suppress(ConfigError):  # never measured: told when it runs
            names[levels_name(running)] = head.measured_as(running)
    now = levels_name(policy.active_levels)
    if now not in names:
        raise ConfigError(
            f'{what}: bundle {config.bundle!r} was not measured at {now}, which the policy runs '
            f'at, but at {", ".join(head.measured)}'
        )
    return DriftParts(
        model=head.drift,
        names={**names, policy.precision: names[now]},
        reference_precision=levels.reference,
    )
