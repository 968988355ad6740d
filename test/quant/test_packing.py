"""Packing loses nothing, whatever the length, and puts codes where its picture says."""

import pytest
import torch

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.packing import pack, unpack


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('shape', [(1,), (7,), (8,), (3, 5), (4, 64), (2, 3, 9)], ids=str)
def test_unpack_undoes_pack(bits, shape):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], -(-shape[-1] * bits // 8))
    assert torch.equal(unpack(packed, bits, shape[-1]), codes)


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_every_byte_survives_unpack_then_pack(bits):
    packed = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack(unpack(packed, bits, 256 * 8 // bits), bits), packed)


def test_the_first_code_lies_in_the_lowest_bits():
    assert pack(torch.tensor([0xA, 0x5, 0xF], dtype=torch.uint8), 4).tolist() == [0x5A, 0x0F]
    codes = torch.tensor([0, 1, 2, 3, 1], dtype=torch.uint8)
    assert pack(codes, 2).tolist() == [0b11_10_01_00, 0b00_00_00_01]
    assert pack(torch.tensor([200, 7], dtype=torch.uint8), 8).tolist() == [200, 7]


@pytest.mark.parametrize('bits', [1, 3, 5, 6, 7, 16])
def test_a_width_that_straddles_bytes_is_refused(bits):
    codes = torch.zeros(8, dtype=torch.uint8)
    for convert in (lambda: pack(codes, bits), lambda: unpack(codes, bits, 8)):
        with pytest.raises(SchemeError, match=f'bits={bits} has no packed form'):
            convert()


def test_a_code_that_would_spill_into_its_neighbour_is_refused():
    with pytest.raises(ValueError, match='code 16 does not fit in 4 bits'):
        pack(torch.tensor([3, 16], dtype=torch.uint8), 4)


@pytest.mark.parametrize('length', [1, 2, 5])
def test_a_length_that_the_bytes_do_not_hold_is_refused(length):
    with pytest.raises(ValueError, match=f'2 bytes do not hold {length} codes of 4 bits'):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, length)
