"""
Find layers by name, replace them by packed ones, and put the originals back.

A plan is checked as a whole, and every new layer is built, before the first one is replaced: a
refused plan leaves the model as it was, and the error lists every offender. Only plain `nn.Linear`
and `nn.Conv2d` layers qualify; a subclass may do more than multiply (LoRA, the output projection
of `nn.MultiheadAttention`), and quantizing it would lose that.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor, nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.mixed_conv import MixedConv2d
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.quant.mixed import MixedLayout
from vlaq_ros.quant.scheme import LayerScheme

PACKED = (MixedLinear, MixedConv2d)
FLOAT = (nn.Linear, nn.Conv2d)


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
    names = [name for name, module in model.named_modules() if name and type(module) is nn.Linear]
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


def layer_roles(names: Sequence[str], roles: Mapping[str, str]) -> dict[str, str]:
    """
    Return layer -> the first role whose regular expression matches its whole name.

    Raises:
        SchemeError: Layers that match no role, all of them: a role is never guessed.
    """
    found = {
        name: next((role for role, pattern in roles.items() if re.fullmatch(pattern, name)), '')
        for name in names
    }
    if without := [name for name, role in found.items() if not role]:
        heading = f'{len(without)} layer(s) match none of the roles {", ".join(roles)}:'
        raise SchemeError(_section(heading, without))
    return found


def quantize_linears(
    model: nn.Module,
    plan: Mapping[str, LayerScheme],
    importance: Mapping[str, Tensor] | None = None,
) -> dict[str, nn.Module]:
    """
    Replace the named linear and convolution layers of `model`, in place, by packed ones.

    A layer that the model holds under several names is replaced under all of them.

    Args:
        model: Changed in place.
        plan: Name of a layer -> its scheme.
        importance: Name of a layer -> how much each of its inputs counts [in], for `mse` ranges.

    Returns:
        The original layers by name, for `restore`. Drop them to free their memory.

    Raises:
        SchemeError: Names that are unknown or of other layers, all in one message; where all of
            these fit, every weight that its scheme does not fit. Nothing is replaced.
    """

    def build(name: str, module: nn.Module) -> nn.Module:
        packed = MixedLinear.from_linear
        if type(module) is nn.Conv2d:
            packed = MixedConv2d.from_conv
        return packed(module, plan[name], (importance or {}).get(name))

    return _replace_all(model, plan, build)


def prepare_empty(
    model: nn.Module,
    layouts: Mapping[str, MixedLayout],
    activation_bits: Mapping[str, int] | None = None,
    biased: Collection[str] = (),
) -> dict[str, nn.Module]:
    """
    Replace layers of a model by empty packed ones, to be filled by `load_state_dict`.

    The weights of the replaced layers are not read, so the model may be on the meta device; the
    empty layers always are, and take memory only when they are loaded.

    Args:
        model: Changed in place.
        layouts: Name of a layer -> the sizes of its packed weight.
        activation_bits: Name of a layer -> bits its input is rounded to; 16 where not named.
        biased: Linear layers that get a bias, whether they had one or not.

    Returns:
        The replaced layers by name.

    Raises:
        SchemeError: Names that are unknown or of other layers, and layouts of another shape than
            the layer, all of them.
    """

    def build(name: str, module: nn.Module) -> nn.Module:
        bits = (activation_bits or {}).get(name, 16)
        if type(module) is nn.Conv2d:
            return MixedConv2d.empty(module, layouts[name], bits)
        expected = (module.out_features, module.in_features)
        if layouts[name].shape != expected:
            raise SchemeError(f'weight of shape {layouts[name].shape}, the layer has {expected}')
        has_bias = module.bias is not None or name in biased
        layer = MixedLinear.empty(layouts[name], has_bias, bits)
        return layer.train(module.training)

    return _replace_all(model, layouts, build)


def restore(model: nn.Module, originals: Mapping[str, nn.Module]) -> None:
    """
    Put the layers back that `quantize_linears` returned.

    Raises:
        SchemeError: Names that hold no packed layer, all of them, with nothing replaced.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    others = [name for name in originals if not isinstance(modules.get(name), PACKED)]
    if others:
        heading = f'{len(others)} name(s) hold no quantized layer to restore:'
        raise SchemeError(_section(heading, others))
    replace(model, {modules[name]: original for name, original in originals.items()})


def replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put each value where its key is, wherever the model holds it."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replacements:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, replacements[module])


def _replace_all(
    model: nn.Module, names: Mapping[str, object], build: Callable[[str, nn.Module], nn.Module]
) -> dict[str, nn.Module]:
    """Replace the named layers by what `build` returns, all of them or none."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if offenders := list(_offenders(modules, names)):
        raise SchemeError('\n'.join(offenders))
    replacements, refused = {}, []
    for name in names:
        try:
            replacements[modules[name]] = build(name, modules[name])
        except SchemeError as error:
            refused.append(f'{name}: {error}')
    if refused:
        heading = f'{len(refused)} layer(s) cannot be quantized as planned:'
        raise SchemeError(_section(heading, refused))
    replace(model, replacements)
    return {name: modules[name] for name in names}


def _offenders(modules: Mapping[str, nn.Module], names: Mapping[str, object]) -> Iterator[str]:
    """Yield one section per kind of fault that names alone reveal."""
    unknown, others = [], []
    known = {name: module for name, module in modules.items() if name}  # the model itself has ''
    for name in names:
        module = known.get(name)
        if module is None:
            nearest = get_close_matches(name, known, n=1)
            unknown.append(f'{name!r}' + ''.join(f', did you mean {n!r}?' for n in nearest))
        elif type(module) not in FLOAT:
            others.append(f'{name}: {type(module).__name__}')
    if unknown:
        yield _section(f'{len(unknown)} name(s) are not in the model:', unknown)
    if others:
        yield _section(f'{len(others)} layer(s) are not a plain nn.Linear or nn.Conv2d:', others)


def _section(heading: str, lines: Sequence[str]) -> str:
    return '\n  '.join((heading, *lines))
