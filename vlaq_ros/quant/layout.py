"""
Sizes of a mixed-width weight, and what its tensors may hold. `mixed` draws the format.

Everything that can be checked without values is checked when a layout is built; `value_faults`
checks the values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.scheme import WIDTHS

STORED_WIDTHS = tuple(reversed(WIDTHS[1:]))
"""Widths that have rows, in the order of the rows: 16, 8, 4, 2."""
CODE_WIDTHS = STORED_WIDTHS[1:]
LARGEST_SIZE = 2**31 - 1
OFFENDERS_SHOWN = 8


@dataclass(frozen=True)
class MixedLayout:
    """
    Sizes of a mixed-width weight; everything that is known without its values.

    Attributes:
        shape: (out, in).
        group_size: Neighbouring inputs that share a scale: a multiple of 16, or at least `in` for
            one scale per channel. The last group may be short.
        counts: Channels of 16, 8, 4 and 2 bits; the remaining ones are pruned.

    Raises:
        SchemeError: Such a weight does not exist.
    """

    shape: tuple[int, int]
    group_size: int
    counts: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        if not _are_sizes(self.shape, 2, least=1):
            raise SchemeError(f'shape={self.shape!r} must be (out, in), two positive numbers')
        if not _are_sizes((self.group_size,), 1, least=1):
            raise SchemeError(f'group_size={self.group_size!r} must be a positive whole number')
        if self.group_size % 16 and self.group_size < self.shape[1]:
            raise SchemeError(
                f'group_size={self.group_size} fits no kernel: use a multiple of 16, or at least '
                f'the input width {self.shape[1]} for one scale per channel'
            )
        if not _are_sizes(self.counts, 4, least=0) or sum(self.counts) > self.shape[0]:
            raise SchemeError(
                f'counts={self.counts!r} must be the numbers of {STORED_WIDTHS}-bit channels, '
                f'together at most the {self.shape[0]} there are'
            )

    @property
    def groups(self) -> int:
        """Scales per row."""
        return -(-self.shape[1] // self.group_size)

    @property
    def kept(self) -> int:
        """Channels that have a row."""
        return sum(self.counts)

    @property
    def pruned(self) -> int:
        """Channels that have none."""
        return self.shape[0] - self.kept

    def rows(self, bits: int) -> int:
        """Return how many channels have this width."""
        return self.counts[STORED_WIDTHS.index(bits)] if bits else self.pruned

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return name -> (dtype, shape) of every tensor of the weight; some may have no rows."""
        (_, columns), counts = self.shape, dict(zip(STORED_WIDTHS, self.counts))
        codes = {
            f'codes{bits}': (torch.uint8, (counts[bits], -(-columns * bits // 8)))
            for bits in CODE_WIDTHS
        }
        return {
            'order': (torch.int32, (self.kept,)),
            'values16': (torch.bfloat16, (counts[16], columns)),
            **codes,
            'scale': (torch.float16, (self.kept - counts[16], self.groups)),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, `order` and scales included."""
        return sum(
            dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.tensors().values()
        )

    def __str__(self) -> str:
        counts = zip((*STORED_WIDTHS, 0), (*self.counts, self.pruned))
        widths = ' + '.join(f'{count} x {bits} bit' for bits, count in counts if count)
        grouped = self.group_size < self.shape[1]
        return f'{widths}, ' + (f'groups of {self.group_size}' if grouped else 'per channel')


def value_faults(layout: MixedLayout, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what is wrong with the values of tensors of the right types and shapes."""
    faults = []
    if 'order' in tensors and (fault := _order_fault(layout, tensors['order'])):
        faults.append(f'order: {fault}')
    checks = {
        'values16': ('not finite', lambda values: ~values.isfinite()),
        'scale': ('negative or not finite', lambda scale: ~(scale >= 0) | scale.isinf()),
    }
    for bits in CODE_WIDTHS:
        if used := layout.shape[1] * bits % 8:  # bits of the last byte that belong to codes
            checks[f'codes{bits}'] = (
                'bits beyond the last code are set',
                lambda codes, used=used: codes[:, -1:] >> used > 0,
            )
    for name, (fault, bad) in checks.items():
        if name in tensors and len(tensors[name]):
            rows = bad(tensors[name]).any(dim=1).nonzero().flatten().tolist()
            if rows:
                faults.append(f'{name}: {fault} in {len(rows)} row(s): {_list(rows)}')
    return faults


def _order_fault(layout: MixedLayout, order: Tensor) -> str:
    order = order.long()
    beyond = order[(order < 0) | (order >= layout.shape[0])].tolist()
    if beyond:
        return f'{_list(beyond)} of {layout.shape[0]} channels do not exist'
    channels, uses = order.unique(return_counts=True)
    if (uses > 1).any():
        return f'channels {_list(channels[uses > 1].tolist())} occur more than once'
    for bits, rows in zip(STORED_WIDTHS, order.split(layout.counts)):
        if (rows.diff() < 0).any():
            return f'the {bits}-bit channels are not in ascending order'
    return ''


def _list(values: Sequence[int]) -> str:
    more = ', ...' if len(values) > OFFENDERS_SHOWN else ''
    return ', '.join(map(str, values[:OFFENDERS_SHOWN])) + more


def describe(dtype: torch.dtype, shape: Sequence[int]) -> str:
    """Return a type and a shape as messages write them."""
    return f'{str(dtype).removeprefix("torch.")} {list(shape)}'


def _are_sizes(values: Sequence[int], length: int, least: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == length
        and all(type(value) is int and least <= value <= LARGEST_SIZE for value in values)
    )
