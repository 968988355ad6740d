"""
Everything that dynamic precision can be told, as values that cannot be wrong, and as a JSON file.

    {"format": 1, "rules": ["dyq"], "groups": {"llm": {"levels": ["w4a8", "w8a16"],
     "boundaries": [0.5], "static": null}}, "dyq": {"lower_after": 4}, ...}

A file is read strictly: every missing, unknown or impossible value is named in one error.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu, raise_problems
from vlaq_ros.control.precision_controller import (
    GroupRules,
    PrecisionController,
    PrecisionRule,
    SafetyOptions,
)
from vlaq_ros.control.precision_dyq import DyqOptions, DyqRule, boundary_problems
from vlaq_ros.control.precision_rules import (
    DriftOptions,
    DriftRule,
    LatencyOptions,
    LatencyRule,
    StaticRule,
)
from vlaq_ros.errors import ConfigError, unknown_name

FORMAT = 1
RULES = ('static', 'dyq', 'drift', 'latency')
_OPTIONS = {
    'dyq': DyqOptions,
    'drift': DriftOptions,
    'latency': LatencyOptions,
    'safety': SafetyOptions,
}


@dataclass(frozen=True)
class GroupParameters:
    """
    The levels of one module group.

    Attributes:
        menu: What it may run at.
        boundaries: Sensitivities between the levels, for the rule `dyq`; None: not fitted.
        static: The level of the rule `static`; None: the top of the menu.
    """

    menu: PrecisionMenu
    boundaries: tuple[float, ...] | None = None
    static: PrecisionLevel | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.boundaries is not None:
            object.__setattr__(self, 'boundaries', tuple(self.boundaries))
            problems += boundary_problems(self.menu, self.boundaries)
        if self.static is not None and self.static not in self.menu:
            levels = ', '.join(map(str, self.menu.levels))
            problems.append(f'static = {self.static} is not one of the levels {levels}')
        raise_problems(problems)


@dataclass(frozen=True)
class PrecisionParameters:
    """
    How the precision of every module group is decided.

    Attributes:
        rules: Names from `RULES`. The highest level asked for by `static`, `dyq` and `drift` is
            used, as far as `latency` allows.
        groups: By name of the module group.
        dyq, drift, latency, safety: Options of the rules and of the safety override.
    """

    rules: tuple[str, ...]
    groups: Mapping[str, GroupParameters]
    dyq: DyqOptions = field(default_factory=DyqOptions)
    drift: DriftOptions = field(default_factory=DriftOptions)
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    safety: SafetyOptions = field(default_factory=SafetyOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'rules', tuple(self.rules))
        problems = [unknown_name('rule', name, RULES) for name in self.rules if name not in RULES]
        if not self.rules or len(set(self.rules)) != len(self.rules):
            problems.append(f'rules = {list(self.rules)} must be different names, at least one')
        if not self.groups:
            problems.append('groups is empty: name the levels of at least one module group')
        if 'dyq' in self.rules:
            problems += [
                f"groups.{name}: rule 'dyq' needs boundaries; fit them from calibration samples"
                for name, group in self.groups.items()
                if group.boundaries is None
            ]
        raise_problems(problems)

    def controller(self) -> PrecisionController:
        """Return a controller that decides like this."""
        return PrecisionController(
            {name: self._rules_of(group) for name, group in self.groups.items()}, self.safety
        )

    def _rules_of(self, group: GroupParameters) -> GroupRules:
        make: dict[str, Callable[[], PrecisionRule]] = {
            'static': lambda: StaticRule(group.static or group.menu.top),
            'dyq': lambda: DyqRule(group.menu, group.boundaries, self.dyq),
            'drift': lambda: DriftRule(group.menu, self.drift),
        }
        rules = tuple(make[name]() for name in self.rules if name in make)
        ceiling = LatencyRule(group.menu, self.latency) if 'latency' in self.rules else None
        return GroupRules(group.menu, rules, ceiling)

    def to_json(self) -> str:
        """Return the text of a file that `from_json` reads."""
        groups = {
            name: {
                'levels': [str(level) for level in group.menu.levels],
                'boundaries': None if group.boundaries is None else list(group.boundaries),
                'static': None if group.static is None else str(group.static),
            }
            for name, group in self.groups.items()
        }
        options = {name: asdict(getattr(self, name)) for name in _OPTIONS}
        data = {'format': FORMAT, 'rules': list(self.rules), 'groups': groups, **options}
        return json.dumps(data, indent=2) + '\n'

    @classmethod
    def from_json(cls, text: str, source: str = 'precision parameters') -> 'PrecisionParameters':
        """
        Return the parameters of a file.

        Args:
            text: What `to_json` has written. Options that are absent have their defaults.
            source: Name of the file, for the error.

        Raises:
            ConfigError: The text is no JSON, of another format, or holds something missing,
                unknown or impossible; every offender has a line.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f'{source} is not JSON: {error}') from error
        if not isinstance(data, dict):
            raise ConfigError(f'{source} must hold one JSON object, got {type(data).__name__}')
        if data.get('format') != FORMAT:
            raise ConfigError(
                f'{source} is format {data.get("format")!r}; this version reads {FORMAT}: fit '
                'the parameters again or use the matching version'
            )
        reader = _Reader()
        reader.check_keys('', data, {'format', 'rules', 'groups', *_OPTIONS}, {'rules', 'groups'})
        values: dict[str, Any] = {
            name: reader.build(name, options, data[name])
            for name, options in _OPTIONS.items()
            if name in data
        }
        values['rules'] = reader.texts('rules', data.get('rules', ()))
        values['groups'] = reader.groups(data.get('groups', {}))
        parameters = None
        if not reader.problems:
            parameters = reader.catch('', lambda: cls(**values))
        raise_problems([f'{source}: {problem}' for problem in reader.problems])
        return parameters


class _Reader:
    """Collects what is wrong with a file instead of stopping at the first problem."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def check_keys(self, where: str, data: Mapping, known: set[str], needed: set[str]) -> None:
        prefix = f'{where}.' if where else ''
        for name in data:
            if name not in known:
                self.problems.append(unknown_name('parameter', f'{prefix}{name}', sorted(known)))
        self.problems += [f'{prefix}{name} is missing' for name in sorted(needed - set(data))]

    def catch(self, where: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except ConfigError as error:
            prefix = f'{where}: ' if where else ''
            self.problems += [f'{prefix}{line}' for line in str(error).splitlines()]
        return None

    def build(self, where: str, options: type, data: object) -> Any:
        if not self._is_object(where, data):
            return None
        known = {entry.name for entry in fields(options)}
        self.check_keys(where, data, known, set())
        return self.catch(where, lambda: options(**{k: data[k] for k in data if k in known}))

    def groups(self, data: object) -> dict[str, GroupParameters | None]:
        if not self._is_object('groups', data):
            return {}
        return {name: self._group(f'groups.{name}', entry) for name, entry in data.items()}

    def texts(self, where: str, data: object) -> tuple[str, ...]:
        if isinstance(data, (list, tuple)) and all(isinstance(text, str) for text in data):
            return tuple(data)
        self.problems.append(f'{where} = {data!r} must be a list of names')
        return ()

    def _group(self, where: str, data: object) -> GroupParameters | None:
        if not self._is_object(where, data):
            return None
        self.check_keys(where, data, {'levels', 'boundaries', 'static'}, {'levels'})
        names = self.texts(f'{where}.levels', data.get('levels', ()))
        boundaries, static = data.get('boundaries'), data.get('static')
        if boundaries is not None and not isinstance(boundaries, list):
            self.problems.append(f'{where}.boundaries = {boundaries!r} must be a list of numbers')
            boundaries = None
        if static is not None:
            static = self.catch(f'{where}.static', lambda: PrecisionLevel.from_name(static))
        menu = self.catch(f'{where}.levels', lambda: PrecisionMenu.from_names(*names))
        if menu is None:
            return None
        return self.catch(where, lambda: GroupParameters(menu, boundaries, static))

    def _is_object(self, where: str, data: object) -> bool:
        if not isinstance(data, Mapping):
            self.problems.append(f'{where} = {data!r} must be an object of named values')
        return isinstance(data, Mapping)
