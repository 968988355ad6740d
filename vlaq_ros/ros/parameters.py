"""
Node parameters from one table: a frozen dataclass whose fields carry unit, bounds and effect.

A group of parameters is a nested dataclass: field `rate_hz` of group `command` is the parameter
`command.rate_hz`. The same table declares the parameters, bounds them for tools, validates them
and is what the node reads. A bad value in a parameter file does not end the process: its default
stays declared, and `read` refuses with the list of all problems until the value is corrected.

Changes have two phases. The validator decides and touches nothing; the change is applied after all
values are stored. Values that contradict each other are refused while the node is configured;
before, each value is checked alone, and `read` compares them.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from vlaq_ros.errors import ConfigError

Config = TypeVar('Config')
_KINDS = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'a text'}


class Applies(str, Enum):
    """When a new value takes effect."""

    START = 'start of the node'
    CONFIGURE = 'configure'
    LIVE = 'at once'

    __str__ = str.__str__


@dataclass(frozen=True)
class Row:
    """One parameter of the table; a tuple as default makes it an array."""

    name: str
    default: Any
    description: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    size: int | None = None
    applies: Applies = Applies.CONFIGURE

    def descriptor(self) -> ParameterDescriptor:
        """Return what `ros2 param describe` shows; bounds are enforced by rclpy as well."""
        notes = [f'Applied: {self.applies}.']
        if self.choices:
            notes.append(f'One of: {", ".join(self.choices)}.')
        descriptor = ParameterDescriptor(
            description=f'{self.description}{f" [{self.unit}]" if self.unit else ""}',
            additional_constraints=' '.join(notes),
            read_only=self.applies is Applies.START,
        )
        if self.low is not None and isinstance(self.default, float):
            bounds = FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
            descriptor.floating_point_range = [bounds]
        elif self.low is not None and isinstance(self.default, int):
            bounds = IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)
            descriptor.integer_range = [bounds]
        return descriptor

    def check(self, value: Any) -> Any:
        """
        Return the value in the type of the table.

        Raises:
            ConfigError: Wrong type, not finite, out of bounds or not one of the choices.
        """
        if not isinstance(self.default, tuple):
            return self._check_one(value, self.default)
        if isinstance(value, str | bytes) or not hasattr(value, '__iter__'):
            raise self._refusal(value, 'must be a list')
        if self.size is not None and len(value) != self.size:
            raise self._refusal(list(value), f'must have {self.size} values')
        return tuple(self._check_one(one, self.default[0], list(value)) for one in value)

    def _check_one(self, value: Any, like: Any, shown: Any = None) -> Any:
        shown = value if shown is None else shown
        if type(value) is int and isinstance(like, float):
            value = float(value)  # `rate: 50` in a parameter file means 50.0
        if type(value) is not type(like):
            raise self._refusal(shown, f'must be {_KINDS[type(like)]}')
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refusal(shown, 'must be finite')
        if self.choices and value not in self.choices:
            close = get_close_matches(str(value), self.choices, n=1)
            hint = f' Did you mean {close[0]!r}?' if close else ''
            raise self._refusal(
                shown, f'is not known. Choose from: {", ".join(self.choices)}.{hint}'
            )
        if self.low is not None and not self.low <= value <= self.high:
            unit = f' {self.unit}' if self.unit else ''
            raise self._refusal(shown, f'must be from {self.low:g} to {self.high:g}{unit}')
        return value

    def _refusal(self, value: Any, what: str) -> ConfigError:
        return ConfigError(f'parameter {self.name!r} = {value!r} {what}')


def parameter(default: Any, description: str, **row: Any) -> Any:
    """Return a dataclass field that is one row of the table; see `Row` for the keywords."""
    return field(default=default, metadata={'row': {'description': description, **row}})


def group(config_type: type) -> Any:
    """Return a dataclass field that holds a group of parameters."""
    return field(default_factory=config_type, metadata={'group': config_type})


def table(config_type: type, prefix: str = '') -> Iterator[Row]:
    """Yield every parameter of a configuration, in the order it is written down."""
    for entry in fields(config_type):
        name = f'{prefix}{entry.name}'
        if 'group' in entry.metadata:
            yield from table(entry.metadata['group'], f'{name}.')
        else:
            assert entry.default is not MISSING, f'{name} has no default'
            yield Row(name, entry.default, **entry.metadata['row'])


def build(config_type: type[Config], values: dict[str, Any]) -> Config:
    """
    Build a configuration from parameter names and values; missing ones have their default.

    Raises:
        ConfigError: Any value is refused or the values contradict each other; all are listed.
    """
    checked, problems = _check_each(config_type, values)
    if not problems:
        config = _nest(config_type, checked)
        problems = list(getattr(config, 'contradictions', tuple)())
        if not problems:
            return config
    raise ConfigError('\n'.join(problems))


def _check_each(config_type: type, values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values in the types of the table, and what is wrong with single ones."""
    checked, problems = {}, []
    for row in table(config_type):
        try:
            checked[row.name] = row.check(values.get(row.name, row.default))
        except ConfigError as error:
            problems.append(str(error))
    return checked, problems


def _nest(config_type: type[Config], values: dict[str, Any], prefix: str = '') -> Config:
    arguments = {}
    for entry in fields(config_type):
        name = f'{prefix}{entry.name}'
        inner = entry.metadata.get('group')
        arguments[entry.name] = _nest(inner, values, f'{name}.') if inner else values[name]
    return config_type(**arguments)


class NodeParameters(Generic[Config]):
    """
    The parameters of a node, declared from a table and read as one frozen value.

    Args:
        node: Where to declare them.
        config_type: The table.
        is_configured: Whether values that apply at configure are in use and so may not change.
        check: More problems of a configuration, e.g. against the loaded bundle.
        apply: Called with the new configuration after a live change is stored.
    """

    def __init__(
        self,
        node: Node,
        config_type: type[Config],
        *,
        is_configured: Callable[[], bool] = lambda: False,
        check: Callable[[Config], Iterable[str]] = lambda config: (),
        apply: Callable[[Config], None] = lambda config: None,
    ) -> None:
        assert is_dataclass(config_type)
        self._node = node
        self._type = config_type
        self._is_configured = is_configured
        self._check = check
        self._apply = apply
        self._rows = {row.name: row for row in table(config_type)}
        self._refused = {
            name: text for name, text in map(self._declare, self._rows.values()) if text
        }
        node.add_on_set_parameters_callback(self._validate)
        if hasattr(node, 'add_post_set_parameters_callback'):
            node.add_post_set_parameters_callback(self._after_set)
        else:  # Humble: values are stored after the validators return, so apply on the next spin
            self._changed: list[RosParameter] = []
            self._stored = node.create_guard_condition(self._after_queued_set)

    def read(self) -> Config:
        """
        Return the current values as one frozen configuration.

        Raises:
            ConfigError: Values of the parameter file were refused, or the values contradict each
                other; all problems are listed.
        """
        problems = list(self._refused.values())
        try:
            config = build(self._type, self._values())
            problems += self._check(config)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError('\n'.join(problems))
        return config

    def unknown_overrides(self) -> list[str]:
        """Return a sentence for each value from outside that no parameter of the node takes."""
        sentences = []
        for name in getattr(self._node, '_parameter_overrides', {}):
            if self._node.has_parameter(name) or name.startswith('qos_overrides.'):
                continue
            close = get_close_matches(name, self._rows, n=1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            sentences.append(
                f'parameter {name!r} is set but this node has no such parameter{hint}'
            )
        return sentences

    def _values(self) -> dict[str, Any]:
        return {name: self._node.get_parameter(name).value for name in self._rows}

    def _declare(self, row: Row) -> tuple[str, str]:
        """Declare one parameter; return its name and why the value from outside is refused."""
        default = list(row.default) if isinstance(row.default, tuple) else row.default
        # A first, untyped declaration shows the value from outside without rclpy raising over it.
        untyped = ParameterDescriptor(dynamic_typing=True)
        given = self._node.declare_parameter(row.name, default, untyped).value
        self._node.undeclare_parameter(row.name)
        problem, value = '', default
        try:
            checked = row.check(given)
            value = list(checked) if isinstance(checked, tuple) else checked
        except ConfigError as error:
            problem = str(error)
        self._node.declare_parameter(row.name, value, row.descriptor(), ignore_override=True)
        return row.name, problem

    def _validate(self, parameters: list[RosParameter]) -> SetParametersResult:
        new = {p.name: p.value for p in parameters if p.name in self._rows}
        problems = [
            f'parameter {name!r} is read at configure: bring the node to `unconfigured` first '
            '(cleanup), set it, and configure again'
            for name in new
            if self._is_configured() and self._rows[name].applies is Applies.CONFIGURE
        ]
        values = {**self._values(), **new}
        try:
            if self._is_configured():
                problems += self._check(build(self._type, values))
            else:  # values that belong together are changed one by one: `read` compares them
                problems += _check_each(self._type, values)[1]
        except ConfigError as error:
            problems.append(str(error))
        if not problems and new and not hasattr(self._node, 'add_post_set_parameters_callback'):
            self._changed.extend(parameters)
            self._stored.trigger()
        return SetParametersResult(successful=not problems, reason='\n'.join(problems))

    def _after_set(self, parameters: list[RosParameter]) -> None:
        changed = [p.name for p in parameters if p.name in self._rows]
        for name in changed:
            self._refused.pop(name, None)
        if changed and self._is_configured():
            self._apply(self.read())

    def _after_queued_set(self) -> None:
        changed, self._changed = self._changed, []
        self._after_set(changed)
