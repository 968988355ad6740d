"""
Layers that read the same input become one store and one kernel call, unseen by the model.

The query, key and value projections of attention, and the gate and up projections of an MLP, each
multiply the same activations. Together their activations are rounded once, and one call moves
three times the bytes, which is what a small kernel lacks. The layers stay modules under their old
names, and so do their tensors in `state_dict()` and in files: only who computes changes.

The first of them that is called computes all, and hands the others their part when they are called
with that very tensor, unchanged: the same object, of the same version, at the same precision. The
input is not kept alive for it, and when it dies the parts that nobody fetched go with it.

Where a call is traced or differentiated, each layer computes for itself, with the same result. So
it does in `torch.inference_mode()`, where tensors have no version and a change in place would go
unseen: run under `torch.no_grad()`, which gives up nothing else. A warning says so once.

The parts are views of one output: their rows lie apart, which `view`, `reshape` and `transpose` of
attention heads do not mind.
"""

import re
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from vlaq_ros.errors import SchemeError
from vlaq_ros.kernels.custom_op import is_traced
from vlaq_ros.kernels.select import KernelChoice
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.precision import Precision
from vlaq_ros.nn.surgery import replace
from vlaq_ros.quant.mixed import MixedWeight
from vlaq_ros.quant.stacking import channels, stack

CROSS_ATTENTION = r'.*(cross|encoder_attn)[^.]*'
PATTERNS = (
    (CROSS_ATTENTION, ('k_proj', 'v_proj')),  # the query reads something else
    (r'.*', ('q_proj', 'k_proj', 'v_proj')),
    (r'.*', ('gate_proj', 'up_proj')),
)
"""Pattern of the module that holds them -> layers that read the same input; the first match."""
IN_INFERENCE_MODE = (
    'layers that share an input each compute all of it in torch.inference_mode(); '
    'run under torch.no_grad() instead'
)


class SharedStore(MixedLinear):
    """The one packed weight of several layers; files hold these layers instead."""

    is_stored = False

    def __init__(self, members: Sequence[MixedLinear]) -> None:
        weight = stack([member.unpack() for member in members])
        with torch.device('meta'):
            super().__init__(weight.layout, any(member.bias is not None for member in members))
        self.ends = (0, *accumulate(member.out_features for member in members))
        self._sizes = [member.out_features for member in members]
        self._has_bias = tuple(member.bias is not None for member in members)
        self._waiting: dict[int, tuple[MixedWeight, Tensor | None]] = {}
        self._last = _LastCall()
        self.shared_precision = members[0].shared_precision
        self._fill(weight, self._stack_biases([member.bias for member in members]))

    def part(self, index: int, x: Tensor) -> Tensor:
        """Return what the member at `index` makes of x: [..., its out_features]."""
        first, last = self.ends[index : index + 2]
        if is_traced(x) or x.is_inference():
            if not torch.compiler.is_compiling() and x.is_inference():
                warnings.warn(IN_INFERENCE_MODE, RuntimeWarning, stacklevel=4)
            return self.forward(x)[..., first:last]
        precision = self._buffers['precision']
        stamp = (x._version, precision._version, id(precision))
        if (kept := self._last.take(index, x, stamp)) is not None:
            return kept
        parts = self.forward(x).split(self._sizes, dim=-1)
        self._last.keep(x, stamp, parts, index)
        return parts[index]

    def part_weight(self, index: int) -> MixedWeight:
        """Return the weight of one member."""
        return channels(self.unpack(), *self.ends[index : index + 2])

    def part_bias(self, index: int) -> Tensor | None:
        """Return the bias of one member, None when it has none."""
        first, last = self.ends[index : index + 2]
        return self.bias[first:last] if self._has_bias[index] else None

    def fill_part(self, index: int, weight: MixedWeight, bias: Tensor | None) -> None:
        """Replace the weight of one member; an empty store waits for all of them."""
        count = len(self._has_bias)
        if not self.is_empty:
            parts = range(count)
            self._waiting = {i: (self.part_weight(i), self.part_bias(i)) for i in parts}
        self._waiting[index] = (weight, bias)
        if len(self._waiting) == count:
            weights, biases = zip(*(self._waiting[i] for i in range(count)))
            self._waiting = {}
            self._fill(stack(weights), self._stack_biases(biases))

    def _fill(self, weight: MixedWeight, bias: Tensor | None) -> None:
        super()._fill(weight, bias)
        self._last = _LastCall()

    def _stack_biases(self, biases: Sequence[Tensor | None]) -> Tensor | None:
        if not any(self._has_bias):
            return None
        like = next(bias for bias in biases if bias is not None)
        filled = (like.new_zeros(n) if b is None else b for n, b in zip(self._sizes, biases))
        return torch.cat(tuple(filled))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add nothing: the members do."""

    def _load_from_state_dict(self, *args: Any) -> None:
        """Take nothing: the members do."""


class SharedLinear(MixedLinear):
    """A layer whose weight is part of a `SharedStore`; to the model it is a `MixedLinear`."""

    holds_weight = False

    def __init__(self, member: MixedLinear, store: SharedStore, index: int) -> None:
        nn.Module.__init__(self)
        self.layout = member.layout
        self.out_features, self.in_features = member.layout.shape
        self.store, self.index = store, index
        self._part = store.part  # a look-up of a submodule costs a microsecond
        self.train(member.training)

    @property
    def is_empty(self) -> bool:
        """Whether the store is still to be loaded."""
        return self.store.is_empty

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], a part of that of the store."""
        return self.store.part_bias(self.index)

    @property
    def precision(self) -> Tensor:
        """Cap and activation bits of the store."""
        return self.store.precision

    @property
    def shared_precision(self) -> Precision:
        """Cap and activation bits of the store."""
        return self.store.shared_precision

    @shared_precision.setter
    def shared_precision(self, precision: Precision) -> None:
        self.store.shared_precision = precision

    @property
    def kernel(self) -> KernelChoice:
        """The kernel of the store."""
        return self.store.kernel

    @property
    def device(self) -> torch.device:
        """Where the store is."""
        return self.store.device

    @property
    def weight_bytes(self) -> int:
        """Nothing: the store holds it."""
        return 0

    def unpack(self) -> MixedWeight:
        """Return the weight in the file form; raises as `MixedLinear.unpack`."""
        return self.store.part_weight(self.index)

    def set_cap(self, cap: int) -> None:
        """Read 8-bit channels with 8 or 4 bits; so do the layers of the store."""
        self.shared_precision.set(cap=cap)

    def set_activation_bits(self, activation_bits: int) -> None:
        """Round activations to 16, 8, 4 or 2 bits; so do the layers of the store."""
        self.shared_precision.set(activation_bits=activation_bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] for x [..., in_features]."""
        return self._part(self.index, x)

    def pack(self) -> None:
        """Do nothing when packed; raises as `MixedLinear.pack`."""
        if self.is_empty:
            raise SchemeError(f'this layer was never loaded: {self.layout}')

    def _fill(self, weight: MixedWeight, bias: Tensor | None) -> None:
        self.store.fill_part(self.index, weight, bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'SharedLinear':
        return nn.Module._apply(self, fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.is_empty:
            for name in self._file_names():
                dtype, shape = self.layout.tensors()[name]
                destination[prefix + name] = torch.empty(shape, dtype=dtype, device='meta')
        else:
            for name, tensor in self.unpack().tensors().items():
                destination[prefix + name] = tensor
        if self.bias is not None:
            destination[prefix + 'bias'] = self.bias


class _LastCall:
    """The parts of the last product that were not fetched yet. Copies of a model start without."""

    def __init__(self) -> None:
        self._forget()

    def take(self, index: int, x: Tensor, stamp: tuple[int, ...]) -> Tensor | None:
        """Return one part, once, if it was made of this very input and with this stamp."""
        if self._input is None or self._input() is not x or self._stamp != stamp:
            return None
        part = self._parts.pop(index, None)
        if not self._parts:
            self._forget()
        return part

    def keep(self, x: Tensor, stamp: tuple[int, ...], parts: Sequence[Tensor], taken: int) -> None:
        """Remember the parts that were not taken for as long as x lives."""
        self._input, self._stamp = weakref.ref(x, self._forget), stamp
        self._parts = {index: part for index, part in enumerate(parts) if index != taken}

    def _forget(self, dead: weakref.ref | None = None) -> None:
        if dead is None or dead is self._input:
            self._input, self._stamp = None, ()
            self._parts: dict[int, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> '_LastCall':
        return _LastCall()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _LastCall, ()


def share_inputs(
    model: nn.Module, groups: Sequence[Sequence[str]] | None = None
) -> tuple[tuple[str, ...], ...]:
    """
    Fuse packed layers that read the same input, in place, one group at a time.

    Args:
        model: Changed in place.
        groups: Names of the layers of each group, in any order of calling. When None, groups are
            found by `PATTERNS`, and those that cannot be fused stay as they are.

    Returns:
        The groups that were fused.

    Raises:
        SchemeError: Layers of `groups` that are unknown, not packed, or too different, all of
            them. Nothing is changed.
    """
    modules = dict(model.named_modules())
    chosen = _detect(modules) if groups is None else [tuple(group) for group in groups]
    faults = {group: _fault([modules.get(name) for name in group]) for group in chosen}
    offenders = [f'{", ".join(group)}: {fault}' for group, fault in faults.items() if fault]
    if groups is not None and offenders:
        lines = '\n  '.join(offenders)
        raise SchemeError(f'{len(offenders)} group(s) of layers cannot share an input:\n  {lines}')
    fused = tuple(group for group, fault in faults.items() if not fault)
    for group in fused:
        members = [modules[name] for name in group]
        store = SharedStore(members)
        shared = (SharedLinear(member, store, index) for index, member in enumerate(members))
        replace(model, dict(zip(members, shared)))
    return fused


def separate_inputs(model: nn.Module) -> None:
    """Undo `share_inputs`: every layer gets its own packed weight back."""
    for module in list(model.modules()):
        if isinstance(module, SharedLinear):
            alone = MixedLinear.from_weight(module.unpack(), module.bias)
            alone.shared_precision = module.shared_precision
            replace(model, {module: alone.train(module.training)})


def _detect(modules: Mapping[str, nn.Module]) -> list[tuple[str, ...]]:
    """Return the groups whose names match and whose layers are there."""
    found: dict[str, tuple[str, ...]] = {}
    for parent in modules:
        for pattern, children in PATTERNS:
            names = tuple(f'{parent}.{child}' if parent else child for child in children)
            free = not any(name in found for name in names)
            if free and all(name in modules for name in names) and re.fullmatch(pattern, parent):
                found.update(dict.fromkeys(names, names))
    return list(dict.fromkeys(found.values()))


def _fault(layers: Sequence[nn.Module | None]) -> str:
    """Return why layers cannot share a store, '' when they can."""
    if len(layers) < 2 or len(set(map(id, layers))) < len(layers):
        return 'not two or more different layers'
    if any(type(layer) is not MixedLinear for layer in layers):
        kinds = ['missing' if layer is None else type(layer).__name__ for layer in layers]
        return f'not packed linear layers: {", ".join(kinds)}'
    if any(layer.is_empty for layer in layers):
        return 'not loaded yet'
    for what, values in {
        'inputs': [layer.in_features for layer in layers],
        'groups': [min(layer.layout.group_size, layer.in_features) for layer in layers],
        'devices': [str(layer.device) for layer in layers],
        'precisions': [layer.precision.tolist() for layer in layers],
    }.items():
        if any(value != values[0] for value in values):
            return f'different {what}: {", ".join(map(str, values))}'
    return ''
