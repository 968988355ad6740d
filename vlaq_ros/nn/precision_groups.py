"""Which packed layers switch their precision together."""

from collections.abc import Iterable, Mapping

from torch import nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.precision import Precision


def share_precision(
    model: nn.Module,
    names: Iterable[str] | None = None,
    cap: int | None = None,
    activation_bits: int | None = None,
) -> Precision:
    """
    Let packed layers of a model compute at one common precision, and return it for switching.

    Args:
        model: Changed in place.
        names: The layers, such as all of one role; every packed layer when None.
        cap: Bits read of 8-bit channels; as the layers have it when None.
        activation_bits: Bits of their inputs; as the layers have it when None.

    Raises:
        SchemeError: Names that hold no packed layer, all of them; or the layers differ in what is
            not given. Nothing is changed.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = list(modules if names is None else names)
    found = {name: _packed_layer(modules.get(name)) for name in wanted}
    layers = {name: layer for name, layer in found.items() if layer is not None}
    if names is not None and (others := [name for name in wanted if name not in layers]):
        lines = '\n  '.join((f'{len(others)} name(s) hold no packed layer:', *others))
        raise SchemeError(lines)
    if not layers:
        raise SchemeError('the model has no packed layer whose precision could be shared')
    present = {name: layer.shared_precision for name, layer in layers.items()}
    cap = _common('cap', {n: p.cap for n, p in present.items()}, cap)
    bits = {name: precision.activation_bits for name, precision in present.items()}
    shared = Precision(cap, _common('activation_bits', bits, activation_bits))
    for layer in layers.values():
        layer.shared_precision = shared
    return shared


def _packed_layer(module: nn.Module | None) -> MixedLinear | None:
    return module if isinstance(module, MixedLinear) else None


def _common(what: str, values: Mapping[str, int], given: int | None) -> int:
    """Return what was given, else the one value that all have."""
    if given is not None:
        return given
    if len(set(values.values())) > 1:
        lines = '\n  '.join(f'{name}: {value}' for name, value in values.items())
        raise SchemeError(f'layers that share a precision differ in {what}; name one:\n  {lines}')
    return next(iter(values.values()))
