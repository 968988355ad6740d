"""
Find linear layers by name, replace them by quantized ones, and put the originals back.

A plan is checked as a whole, and every new layer is built, before the first one is replaced: a
refused plan leaves the model as it was, and the error lists every offender. Only plain `nn.Linear`
layers qualify; a subclass may do more than multiply (LoRA, the output projection of
`nn.MultiheadAttention`), and quantizing it would lose that.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.quantized_linear import QuantizedLinear
from vlaq_ros.quant.scheme import PerGroup, QuantScheme


def find_linears(
    model: nn.Module, include: Sequence[str] = ('*',), exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """
    Return the names of the linear layers that match, in the order of the model.

    Args:
        model: Searched at every depth.
        include: Shell patterns over dotted names; `*` crosses dots: `llm.*`, `*.q_proj`.
        exclude: Patterns of layers to leave out.

    Raises:
        SchemeError: Patterns that match no linear layer, all of them.
    """
    names = [name for name, module in model.named_modules() if name and _is_linear(module)]
    unmatched = [
        pattern
        for pattern in (*include, *exclude)
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if unmatched:
        parts = ', '.join(sorted({name.split('.')[0] for name in names})) or 'none'
        raise SchemeError(
            _section(f'{len(unmatched)} pattern(s) match no linear layer:', unmatched)
            + f'\nParts of the model with linear layers: {parts}.'
        )
    return tuple(
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    )


def quantize_linears(model: nn.Module, plan: Mapping[str, QuantScheme]) -> dict[str, nn.Linear]:
    """
    Replace the named linear layers of `model`, in place, by quantized ones.

    A layer that the model holds under several names is replaced under all of them.

    Args:
        model: Changed in place.
        plan: Name of a layer -> its scheme.

    Returns:
        The original layers by name, for `restore`. Drop them to free their memory.

    Raises:
        SchemeError: Names that are unknown or not a linear layer and widths the group size does
            not divide, all in one message; where all of these fit, every weight that cannot be
            quantized. Nothing is replaced.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if offenders := list(_offenders(modules, plan)):
        raise SchemeError('\n'.join(offenders))
    replacements, refused = {}, []
    for name, scheme in plan.items():
        try:
            replacements[modules[name]] = QuantizedLinear.from_linear(modules[name], scheme)
        except SchemeError as error:
            refused.append(f'{name}: {error}')
    if refused:
        heading = f'the weight of {len(refused)} layer(s) cannot be quantized:'
        raise SchemeError(_section(heading, refused))
    _replace(model, replacements)
    return {name: modules[name] for name in plan}


def restore(model: nn.Module, originals: Mapping[str, nn.Linear]) -> None:
    """
    Put the layers back that `quantize_linears` returned.

    Raises:
        SchemeError: Names that hold no quantized layer, all of them, with nothing replaced.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    others = [name for name in originals if not isinstance(modules.get(name), QuantizedLinear)]
    if others:
        heading = f'{len(others)} name(s) hold no quantized layer to restore:'
        raise SchemeError(_section(heading, others))
    _replace(model, {modules[name]: original for name, original in originals.items()})


def _offenders(modules: Mapping[str, nn.Module], plan: Mapping[str, QuantScheme]) -> Iterator[str]:
    """Yield one section per kind of fault that names and shapes alone reveal."""
    unknown, others, too_wide = [], [], defaultdict(list)
    known = {name: module for name, module in modules.items() if name}  # the model itself has ''
    for name, scheme in plan.items():
        module, granularity = known.get(name), scheme.granularity
        if module is None:
            nearest = get_close_matches(name, known, n=1)
            unknown.append(f'{name!r}' + ''.join(f', did you mean {n!r}?' for n in nearest))
        elif not _is_linear(module):
            others.append(f'{name}: {type(module).__name__}')
        elif isinstance(granularity, PerGroup) and module.in_features % granularity.group_size:
            too_wide[granularity.group_size].append(f'{name}: in_features={module.in_features}')
    if unknown:
        yield _section(f'{len(unknown)} name(s) are not in the model:', unknown)
    if others:
        yield _section(f'{len(others)} layer(s) are not a plain nn.Linear:', others)
    for group_size, lines in too_wide.items():
        yield _section(
            f'group_size={group_size} does not divide the input width of {len(lines)} layer(s):',
            lines,
        )
    if too_wide:
        yield 'Choose a divisor of every width, or list these layers under `exclude`.'


def _section(heading: str, lines: Sequence[str]) -> str:
    return '\n  '.join((heading, *lines))


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put each value where its key is, wherever the model holds it."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replacements:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, replacements[module])
