"""
Name -> calibration method, imported on first use.

A new method is one module with `calibrate(context, ...) -> MethodResult` and one row here. What
else `calibrate` takes, as plain arguments or in one frozen dataclass of options, can be set by
name: `--option mode=paper`, `--option tuning.steps=0`.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from vlaq_ros.errors import ConfigError, SchemeError, unknown_name

if typing.TYPE_CHECKING:
    from vlaq_ros.calibration.method import CalibrationContext, MethodResult


class Method(NamedTuple):
    """
    A row of the table.

    Attributes:
        module: Where its `calibrate` is.
        summary: One line of help.
        passes: Runs of the policy over the calibration batches, about, beyond statistics and
            sensitivities, which are measured anyway; for remaining times.
        own_layout: `option=value` under which it has a layout of its own, and the budget is not
            one of bits per weight.
        weight: What one of its passes costs, in passes without gradients.
        least_bits: The smallest width it gives an output channel that it does not prune.
        is_nested: Whether its 8-bit channels may be read at 4 bits: they have a scale per group,
            and the levels between which a policy then switches are measured.
    """

    module: str
    summary: str
    passes: float
    own_layout: str = ''
    weight: float = 1.0
    least_bits: int = 2
    is_nested: bool = False


METHODS = {
    'rtn': Method('vlaq_ros.calibration.rtn', 'round to nearest; the baseline, uses no data', 0),
    'gptq': Method('vlaq_ros.calibration.gptq', 'round with errors made up for (GPTQ)', 0),
    'awq': Method('vlaq_ros.calibration.awq', 'scale salient inputs up (AWQ)', 0),
    'smoothquant': Method(
        'vlaq_ros.calibration.smoothquant', 'move outliers into the weights (SmoothQuant)', 0
    ),
    'qvla': Method(
        'vlaq_ros.calibration.qvla',
        'bits per channel by action sensitivity (QVLA)',
        0,
        'mode=paper',
    ),
    'da_ptq': Method(
        'vlaq_ros.calibration.da_ptq',
        'bits per layer by drift, interface repaired (DA-PTQ)',
        12,
        'mode=paper',
    ),
    'quantvla': Method(
        'vlaq_ros.calibration.quantvla',
        'W4 layout with attention balanced (QuantVLA)',
        3,
        'layout=paper',
    ),
    'ours': Method(
        'vlaq_ros.calibration.ours',
        "this package's own: joint sensitivity, compensation",
        1,
        weight=9.0,
    ),
    'nested': Method(
        'vlaq_ros.calibration.nested',
        'one store of 8-bit codes, read at 4 too; levels for changing precision',
        5,
        least_bits=8,
        is_nested=True,
    ),
}


AUTO = 'auto'
BEST = 'ours'
"""What `auto` stands for: the only method that cost no success with either head at 2.5 bits, and
the one with the least drift in closed loop (docs/benchmark.md, calibration methods)."""


def method_name(text: str) -> str:
    """Return the name of the table that a user's text means: `auto`, and `-` for `_`."""
    return BEST if text == AUTO else text.replace('-', '_')


def layout_is_its_own(name: str, options: Mapping[str, str]) -> bool:
    """Return whether a method with these options pays no heed to bits per weight."""
    option, _, value = find_method(name).own_layout.partition('=')
    return bool(option) and str(options.get(option, option_names(name)[option])) == value


def find_method(name: str) -> Method:
    """
    Return the row of a method; `-` and `_` mean the same.

    Raises:
        ConfigError: There is none of that name; the message lists all.
    """
    row = METHODS.get(method_name(name))
    if row is None:
        raise ConfigError(unknown_name('calibration method', name, (AUTO, *METHODS)))
    return row


def bind_method(
    name: str, options: Mapping[str, str]
) -> Callable[['CalibrationContext'], 'MethodResult']:
    """
    Return a method with its options set.

    Args:
        name: Of the method.
        options: Name -> value, as text.

    Raises:
        ConfigError: The method does not exist, or options are unknown or of another type or out
            of range; all of them are listed.
    """
    calibrate = import_module(find_method(name).module).calibrate
    known = dict(_known_options(calibrate))
    problems, plain, nested = [], {}, {}
    for option, text in options.items():
        if option not in known:
            problems.append(unknown_name(f'option of {name}', option, known or ('none',)))
            continue
        argument, path, default = known[option]
        try:
            value = _parse(text, default)
        except ValueError:
            kind = type(default).__name__
            problems.append(f'option {option} of {name} = {text!r}: write a {kind}')
            continue
        if path:
            nested.setdefault(argument, {})[path] = value
        else:
            plain[argument] = value
    arguments = dict(plain)
    for argument, values in nested.items():
        try:
            arguments[argument] = _build(_options_class(calibrate, argument)(), values)
        except SchemeError as error:
            problems.append(f'options of {name}: {error}')
    if problems:
        raise ConfigError('\n'.join(problems))
    return lambda context: calibrate(context, **arguments)


def option_names(name: str) -> dict[str, Any]:
    """Return option -> default of a method."""
    calibrate = import_module(find_method(name).module).calibrate
    return {option: default for option, (_, _, default) in _known_options(calibrate)}


def _known_options(calibrate: Callable[..., Any]) -> Iterator[tuple[str, tuple[str, str, Any]]]:
    """Yield option -> (argument of `calibrate`, field within it, default)."""
    for argument, entry in list(inspect.signature(calibrate).parameters.items())[1:]:
        options_class = _options_class(calibrate, argument)
        if options_class is not None:
            for path, default in _fields(options_class()):
                yield path, (argument, path, default)
        elif isinstance(entry.default, bool | int | float | str):
            yield argument, (argument, '', entry.default)


def _options_class(calibrate: Callable[..., Any], argument: str) -> type | None:
    """Return the dataclass of options that an argument takes; None: it is something else."""
    annotation = typing.get_type_hints(calibrate).get(argument)
    for kind in (annotation, *typing.get_args(annotation)):
        if dataclasses.is_dataclass(kind) and str(getattr(kind, '__name__', '')).endswith(
            'Options'
        ):
            return kind
    return None


def _fields(options: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f'{prefix}{field.name}.')
        elif isinstance(value, bool | int | float | str) or field.type == (float | None):
            yield prefix + field.name, value


def _build(options: Any, values: Mapping[str, Any]) -> Any:
    """Return the options with the values at these paths replaced."""
    here, below = {}, {}
    for path, value in values.items():
        name, _, rest = path.partition('.')
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            here[name] = value
    for name, inner in below.items():
        here[name] = _build(getattr(options, name), inner)
    return dataclasses.replace(options, **here)


def _parse(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ('true', 'false'):
            raise ValueError(text)
        return text.lower() == 'true'
    if default is None:
        return None if text.lower() == 'none' else float(text)
    return type(default)(text)
