"""
Where the policies of an evaluation come from: one float bundle, and packed bundles made of it.

A configuration names a precision of the float bundle (`w4a8:flow`), a packed bundle
(`mixed:flow`), or a packed bundle at another precision than it was stored at (`nested@w4a8:flow`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlaq_ros.errors import BundleError, unknown_name
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.precision import PACKED, precisions
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.sim.results import Config


@dataclass(frozen=True)
class PolicySource:
    """
    The bundles of an evaluation.

    Attributes:
        bundle: Folder or name of the float bundle; its fp32 policy is the reference.
        packed: Name -> folder of a packed bundle.
        execution_horizon: Actions executed of every chunk; the policy's own when None.
    """

    bundle: str
    packed: Mapping[str, str] = field(default_factory=dict)
    execution_horizon: int | None = None

    def load(self, config: Config) -> Policy:
        """Return the policy of a configuration, on one thread."""
        folder, precision = self._locate(config)
        return load_policy(folder, precision=precision, head=config.head, threads=1)

    def problems(self, config: Config) -> list[str]:
        """Return what is wrong with a configuration, without loading weights."""
        name, at, _ = config.precision.partition('@')
        if at and name not in self.packed:
            return [unknown_name('packed bundle', name, tuple(self.packed))]
        folder, precision = self._locate(config)
        bundle = open_bundle(folder)
        found = []
        if precision not in precisions(bundle):
            known = (*precisions(bundle), *self.packed)
            found.append(unknown_name('precision', precision, known))
        if config.head not in bundle.spec.heads:
            found.append(unknown_name('head', config.head, bundle.spec.heads))
        return found

    def strangers(self) -> list[str]:
        """Return one line per packed bundle that was not made of the float bundle."""
        digest = open_bundle(self.bundle).digest
        return [
            f'{name}={folder}: packed from another bundle than {self.bundle!r} '
            f'({str(origin)[:12]}, not {digest[:12]}); episodes could not be paired'
            for name, folder in self.packed.items()
            if (origin := open_bundle(folder).origin) != digest
        ]

    def _locate(self, config: Config) -> tuple[str, str]:
        name, _, level = config.precision.partition('@')
        if name in self.packed:
            return self.packed[name], level or PACKED
        return self.bundle, config.precision


def parse_packed(texts: list[str], problems: list[str]) -> dict[str, str]:
    """
    Return name -> folder of `NAME=FOLDER` options.

    Args:
        texts: As the user wrote them.
        problems: Gets a line for every option that is wrong.
    """
    packed: dict[str, str] = {}
    for text in texts:
        name, separator, folder = text.partition('=')
        if not separator or not name or set('/@:') & set(name):
            problems.append(f'--packed {text!r}: write NAME=FOLDER, e.g. mixed=out/mixed')
            continue
        try:
            bundle = open_bundle(folder)
        except BundleError as error:
            problems.append(f'--packed {name}: {error}')
            continue
        if not bundle.is_packed:
            problems.append(f'--packed {name}: {folder} is not packed; give it as --bundle')
            continue
        packed[name] = folder
    return packed
