"""
Where the policies of an evaluation come from: one float bundle, and packed bundles made of it.

A configuration names a precision of the float bundle (`w4a8:flow`), a packed bundle
(`mixed:flow`), a store at another level than it was loaded at (`nested@w4a16:flow`), or a store
whose level changes while an episode runs (`nested@dyq:flow`). A store is a packed bundle, or the
float bundle at a precision such as `nested`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vlaq_ros.control.precision import ACTIVATION_BITS
from vlaq_ros.errors import BundleError, unknown_name
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import LEVELS, Bundle, open_bundle
from vlaq_ros.policies.precision import NESTED, PACKED, precisions
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.sim.precision_options import (
    LIKE,
    MODES,
    RANDOM,
    PrecisionOptions,
    Rules,
    static_level,
)
from vlaq_ros.sim.results import Config


@dataclass(frozen=True)
class PolicySource:
    """
    The bundles of an evaluation.

    Attributes:
        bundle: Folder or name of the float bundle; its fp32 policy is the reference.
        packed: Name -> folder of a packed bundle.
        execution_horizon: Actions executed of every chunk; the policy's own when None.
        options: Of precision that changes while an episode runs.
    """

    bundle: str
    packed: Mapping[str, str] = field(default_factory=dict)
    execution_horizon: int | None = None
    options: PrecisionOptions = field(default_factory=PrecisionOptions)

    def load(self, config: Config) -> Policy:
        """
        Return the policy of a configuration, on one thread.

        Raises:
            ConfigError: Its store has not got the levels of the rules.
            PolicyError: Its store has not got the level.
        """
        folder, precision = self._locate(config)
        policy = load_policy(folder, precision=precision, head=config.head, threads=1)
        _, _, at = config.precision.partition('@')
        if at in MODES:
            needs_reference = at == 'drift'
            reference = self.load(config.reference) if needs_reference else None
            horizon = self.execution_horizon or policy.spec.execution_horizon
            return self.options.wrap(policy, at, self.rules(config), reference, horizon)
        if at and at != precision:
            policy.apply_precision(dict.fromkeys(policy.levels, static_level(at)))
        return policy

    def rules(self, config: Config) -> Rules | None:
        """Return how the precision of a configuration is decided; None where nothing says."""
        name = config.precision.partition('@')[0]
        given = self.options.rules.get(name, self.options.rules.get(''))
        levels = open_bundle(self.packed[name]).levels() if name in self.packed else None
        if given is not None:
            is_scaled = given.scale is not None or levels is None
            return given if is_scaled else replace(given, scale=levels.motion)
        head = levels and levels.heads.get(config.head)
        return Rules(head.precision, levels.motion, f'{LEVELS} of {name}') if head else None

    def problems(self, config: Config) -> list[str]:
        """Return what is wrong with a configuration, without loading weights."""
        name, at, level = config.precision.partition('@')
        if at and name not in self.packed and name != NESTED:
            return [unknown_name('packed bundle', name, (*self.packed, NESTED))]
        folder, precision = self._locate(config)
        bundle = open_bundle(folder)
        found = []
        if level in MODES:
            found += self.options.problems(level, self.rules(config))
        if level in MODES and name in self.packed and not bundle.is_nested:
            found.append(f'{name} is not nested: its weights cannot be read at 4 bits')
        if at and level != precision and level not in MODES and static_level(level) is None:
            found.append(unknown_name('level', level, (*_levels_of(bundle, name), *MODES)))
        elif static_level(level) and level != precision and level not in _levels_of(bundle, name):
            found.append(unknown_name('level', level, _levels_of(bundle, name)))
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
        """Return the folder and what to load it at; a level that is no precision comes after."""
        name, at, level = config.precision.partition('@')
        if name in self.packed:
            folder = self.packed[name]
            is_precision = level in precisions(open_bundle(folder))
            return folder, level if at and is_precision else PACKED
        return self.bundle, name


def like_of(config: Config) -> Config | None:
    """Return whose shares of levels a configuration repeats at random, None for all others."""
    name, _, mode = config.precision.partition('@')
    return Config(f'{name}@{LIKE}', config.head) if mode == RANDOM else None


def _levels_of(bundle: Bundle, name: str) -> tuple[str, ...]:
    """Return the names of the levels that a store has, as far as its bundle says."""
    is_nested = bundle.is_nested or name == NESTED
    widths = (4, 8) if is_nested else (8,)
    return tuple(f'w{weights}a{inputs}' for weights in widths for inputs in ACTIVATION_BITS)


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
