"""
A linear weight whose output channels have different widths, as it lies on disk.

Rows are sorted by width, widest first, and within one width by channel; `order` says which output
channel each of them is. The rows of one width lie together:

    width   tensor      one row                     value of a weight
      16    values16    bfloat16 [in]               itself
       8    codes8      uint8 [in]                  scale * (q - 128)
       4    codes4      uint8 [ceil(in / 2)]        scale * (q - 8)
       2    codes2      uint8 [ceil(in / 4)]        scale * (q - 1.5)
       0    -           not stored                  0

How codes share a byte is drawn in `packing`. Codes have one float16 scale per group of
neighbouring inputs; row r of `scale` belongs to row 16-bit-rows + r of `order`. A scale per
*input* channel cannot be written down here, as no integer kernel could factor it out.

Eight bits nest four: the high nibble of an 8-bit code is a 4-bit code of the same weight under the
same scale, its levels lying in the middle of the 16 codes they stand for,

    scale * (16 * (q >> 4) + 7.5 - 128)

so a capped weight is read from the same bytes (the idea of MatQuant, arXiv 2502.06786, and
Any-Precision LLM, arXiv 2402.10517, without their training). The cap leaves other widths alone.

This is the layout of files and of `state_dict`, the same for every device; kernels repack it.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import choose_qparams, quantize, refuse_channels
from vlaq_ros.quant.layout import (
    CODE_WIDTHS,
    STORED_WIDTHS,
    MixedLayout,
    describe,
    value_faults,
)
from vlaq_ros.quant.packing import pack, unpack
from vlaq_ros.quant.scheme import PERCENTILE, WIDTHS, PerGroup, QuantScheme

CAPS = (8, 4)


@dataclass(frozen=True, eq=False)
class MixedWeight:
    """
    A linear weight [out, in] in packed form; the module docstring draws it.

    Attributes:
        layout: The sizes.
        order: int32 [kept], output channel of each stored row.
        values16: bfloat16 [16-bit rows, in].
        codes8: uint8 [8-bit rows, in].
        codes4: uint8 [4-bit rows, ceil(in / 2)].
        codes2: uint8 [2-bit rows, ceil(in / 4)].
        scale: float16 [rows of codes, groups], none negative.
    """

    layout: MixedLayout
    order: Tensor
    values16: Tensor
    codes8: Tensor
    codes4: Tensor
    codes2: Tensor
    scale: Tensor

    @staticmethod
    def from_float(
        weight: Tensor,
        widths: Sequence[int],
        group_size: int,
        clip: str = 'absmax',
        percentile: float = PERCENTILE,
        importance: Tensor | None = None,
    ) -> 'MixedWeight':
        """
        Quantize a float matrix [out, in] by rounding to the nearest code.

        Args:
            weight: Finite float matrix.
            widths: Bits of every output channel.
            group_size: See `MixedLayout`.
            clip: How ranges are chosen, with `percentile` and `importance`: see `choose_qparams`.
            percentile: See there.
            importance: See there.

        Raises:
            SchemeError: The weight is not a finite matrix, needs a scale or a 16-bit value out of
                range, or the widths or the group size do not fit it.
        """
        if weight.ndim != 2 or not weight.numel():
            raise SchemeError(
                f'weight must be a filled matrix [out, in], got {list(weight.shape)}'
            )
        layout, rows = _sort(tuple(weight.shape), widths, group_size)
        weight = weight.detach().float()
        refuse_channels('weight is not finite', ~weight.isfinite())
        rows = {bits: channels.to(weight.device) for bits, channels in rows.items()}
        values16 = weight[rows[16]].bfloat16()
        refuse_channels('weight exceeds bfloat16', ~values16.isfinite(), rows[16])
        codes, scales = {}, []
        for bits in CODE_WIDTHS:
            part, scheme = weight[rows[bits]], QuantScheme(bits, PerGroup(group_size))
            codes[bits] = part.to(torch.uint8)  # without rows: none
            if layout.rows(bits):
                qparams = choose_qparams(part, scheme, clip, percentile, importance, rows[bits])
                codes[bits] = quantize(part, qparams, scheme)
                scales.append(qparams.scale)
        return _assemble(layout, rows, values16, codes, scales)

    @staticmethod
    def from_codes(
        codes: Tensor,
        scale: Tensor,
        widths: Sequence[int],
        group_size: int,
        values: Tensor | None = None,
    ) -> 'MixedWeight':
        """
        Pack codes that a method chose by itself.

        Args:
            codes: uint8 [out, in]; row r holds codes of widths[r] bits. Rows of 16-bit and pruned
                channels are not read.
            scale: float16 [out, groups]; read as the codes are.
            widths: Bits of every output channel.
            group_size: See `MixedLayout`.
            values: Float [out, in]; needed when there are 16-bit channels, of which it is read.

        Raises:
            SchemeError: The parts do not fit each other, or hold what the format cannot.
        """
        layout, rows = _sort(tuple(codes.shape), widths, group_size)
        wanted = {'codes': (codes, torch.uint8, layout.shape)}
        wanted['scale'] = (scale, torch.float16, (layout.shape[0], layout.groups))
        offenders = [
            f'{name}: {describe(tensor.dtype, tensor.shape)}, expected {describe(dtype, shape)}'
            for name, (tensor, dtype, shape) in wanted.items()
            if tensor.dtype != dtype or tuple(tensor.shape) != shape
        ]
        if layout.counts[0] and (values is None or tuple(values.shape) != layout.shape):
            offenders.append(
                f'values: a float matrix {list(layout.shape)} for the 16-bit channels'
            )
        if offenders:
            raise SchemeError('the parts of the weight do not fit:\n  ' + '\n  '.join(offenders))
        rows = {bits: channels.to(codes.device) for bits, channels in rows.items()}
        values16 = codes.new_empty((0, layout.shape[1]), dtype=torch.bfloat16)
        if layout.counts[0]:
            values16 = values.detach()[rows[16]].bfloat16()
        for bits in CODE_WIDTHS[1:]:
            refuse_channels(f'code above {2**bits - 1}', codes[rows[bits]] >> bits > 0, rows[bits])
        each = {bits: codes[rows[bits]] for bits in CODE_WIDTHS}
        weight = _assemble(layout, rows, values16, each, [scale[rows[b]] for b in CODE_WIDTHS])
        return MixedWeight.from_tensors(layout, weight.tensors())

    @staticmethod
    def from_tensors(layout: MixedLayout, tensors: Mapping[str, Tensor]) -> 'MixedWeight':
        """
        Return the weight that these tensors hold, which are not copied.

        Args:
            layout: What they should be.
            tensors: By name, as `tensors()` gives them; tensors without rows may be left out.

        Raises:
            SchemeError: Tensors are missing, unknown, of another type or shape, or hold values
                that do not exist; all are listed.
        """
        wanted = layout.tensors()
        offenders = [f'{name}: unknown' for name in tensors if name not in wanted]
        complete = {}
        for name, (dtype, shape) in wanted.items():
            tensor = tensors.get(name)
            if tensor is None and 0 in shape:
                tensor = torch.empty(shape, dtype=dtype, device=_device(tensors))
            if tensor is None:
                offenders.append(f'{name}: missing, expected {describe(dtype, shape)}')
            elif tensor.dtype != dtype or tuple(tensor.shape) != shape:
                found = describe(tensor.dtype, tensor.shape)
                offenders.append(f'{name}: {found}, expected {describe(dtype, shape)}')
            else:
                complete[name] = tensor
        offenders += value_faults(layout, complete)
        if offenders:
            raise SchemeError('not a mixed-width weight:\n  ' + '\n  '.join(offenders))
        return MixedWeight(layout, **complete)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that have rows, by name."""
        everything = {name: getattr(self, name) for name in self.layout.tensors()}
        return {name: tensor for name, tensor in everything.items() if tensor.numel()}

    def to(self, device: torch.device | str) -> 'MixedWeight':
        """Return the weight on another device."""
        moved = {name: getattr(self, name).to(device) for name in self.layout.tensors()}
        return MixedWeight(self.layout, **moved)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, `order` and scales included."""
        return self.layout.nbytes

    def widths(self) -> Tensor:
        """Return the bits of every output channel, uint8 [out]; 0 for pruned ones."""
        counts = torch.tensor(self.layout.counts, device=self.order.device)
        stored = torch.tensor(STORED_WIDTHS, dtype=torch.uint8, device=self.order.device)
        widths = torch.zeros(self.layout.shape[0], dtype=torch.uint8, device=self.order.device)
        return widths.index_copy_(0, self.order.long(), stored.repeat_interleave(counts))

    def dequantize(self, dtype: torch.dtype = torch.float32, cap: int = 8) -> Tensor:
        """
        Return the weight [out, in] that the codes stand for.

        Args:
            dtype: A floating type; values are formed in float32 and then rounded to it.
            cap: 4 reads only the high nibble of 8-bit codes; 8 reads all of them.

        Raises:
            SchemeError: There is no such cap.
        """
        check_cap(cap)
        weight = torch.zeros(self.layout.shape, dtype=dtype, device=self.order.device)
        start = self.layout.counts[0]
        weight[self.order[:start].long()] = self.values16.to(dtype)
        for bits, count in zip(CODE_WIDTHS, self.layout.counts[1:]):
            rows = self.order[start : start + count].long()
            scale = self.scale[start - self.layout.counts[0] :][:count].float()
            weight[rows] = self._levels(bits, cap).mul_(self._per_weight(scale)).to(dtype)
            start += count
        return weight

    def _levels(self, bits: int, cap: int) -> Tensor:
        """Return the codes of one width less their zero point: float32 [rows, in]."""
        codes = unpack(getattr(self, f'codes{bits}'), bits, self.layout.shape[1])
        if bits > cap == 4:
            return (codes & 0xF0).float().add_(7.5 - 128)
        return codes.float().sub_(QuantScheme(bits).middle)

    def _per_weight(self, scale: Tensor) -> Tensor:
        """Return scales [rows, groups] repeated for every input: [rows, in]."""
        group_size = min(self.layout.group_size, self.layout.shape[1])
        return scale.repeat_interleave(group_size, dim=1)[:, : self.layout.shape[1]]


def check_cap(cap: int) -> None:
    """Raise a SchemeError unless 8-bit channels can be read with this many bits."""
    if cap not in CAPS:
        raise SchemeError(
            f'cap={cap!r} is not supported: 8-bit channels are read with one of {CAPS} bits'
        )


def _sort(
    shape: tuple[int, ...], widths: Sequence[int], group_size: int
) -> tuple[MixedLayout, dict[int, Tensor]]:
    """Return the layout, and the channels of every stored width in ascending order."""
    widths = [operator.index(width) for width in widths]
    unknown = sorted({width for width in widths if width not in WIDTHS})
    if unknown:
        raise SchemeError(f'widths {unknown} do not exist: a channel has one of {WIDTHS} bits')
    if len(widths) != shape[0]:
        raise SchemeError(f'{len(widths)} widths for {shape[0]} output channels')
    each = torch.tensor(widths)
    rows = {bits: (each == bits).nonzero().flatten() for bits in STORED_WIDTHS}
    return MixedLayout(shape, group_size, tuple(len(r) for r in rows.values())), rows


def _assemble(
    layout: MixedLayout,
    rows: Mapping[int, Tensor],
    values16: Tensor,
    codes: Mapping[int, Tensor],
    scales: Sequence[Tensor],
) -> MixedWeight:
    """Return the weight of rows that are sorted already; `codes` are not packed yet."""
    device = values16.device
    none = torch.empty(0, layout.groups, dtype=torch.float16, device=device)
    return MixedWeight(
        layout,
        order=torch.cat(tuple(rows.values())).to(torch.int32),
        values16=values16,
        **{f'codes{bits}': pack(codes[bits].to(device), bits) for bits in CODE_WIDTHS},
        scale=torch.cat((none, *scales)),
    )


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    return next(iter(tensors.values())).device if tensors else torch.device('cpu')
