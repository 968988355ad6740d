"""
Codes of 2, 4 or 8 bits <-> bytes, without loss.

The last dimension is packed, every row by itself; the first code lies in the lowest bits:

    bits   byte 0               byte 1
           7 6 5 4 3 2 1 0      7 6 5 4 3 2 1 0
      8    [     c0      ]      [     c1      ]
      4    [  c1 ][  c0  ]      [  c3 ][  c2  ]
      2    [c3][c2][c1][c0]     [c7][c6][c5][c4]

A row that does not fill its last byte is padded with zero codes; the caller remembers its length.
Other widths have no packed form: they would straddle bytes.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlaq_ros.errors import SchemeError

PACKED_BITS = (2, 4, 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """
    Return uint8 [..., ceil(n * bits / 8)] holding uint8 codes [..., n].

    Raises:
        SchemeError: This width has no packed form.
        ValueError: A code is wider than `bits`; it would spill into its neighbours.
    """
    shifts = _shifts(bits, codes.device)
    largest = int(codes.max()) if codes.numel() else 0
    if largest >> bits:
        raise ValueError(f'code {largest} does not fit in {bits} bits')
    padded = pad(codes, (0, -codes.shape[-1] % len(shifts)))
    return (padded.unflatten(-1, (-1, len(shifts))) << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """
    Return the uint8 codes [..., length] of `packed` uint8 [..., ceil(length * bits / 8)].

    Raises:
        SchemeError: This width has no packed form.
        ValueError: The rows of `packed` do not hold `length` codes.
    """
    shifts = _shifts(bits, packed.device)
    if packed.shape[-1] != -(-length // len(shifts)):
        raise ValueError(f'{packed.shape[-1]} bytes do not hold {length} codes of {bits} bits')
    codes = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)[..., :length]


def _shifts(bits: int, device: torch.device) -> Tensor:
    """Return the position of each code of a byte, lowest first: [codes per byte]."""
    if bits not in PACKED_BITS:
        raise SchemeError(f'bits={bits} has no packed form: use one of {PACKED_BITS}')
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
