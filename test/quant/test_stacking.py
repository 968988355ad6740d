"""Weights are put below each other and taken apart again bit for bit."""

import pytest
import torch

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.mixed import WIDTHS, MixedWeight
from vlaq_ros.quant.stacking import channels, stack


def _weight(rows, seed, widths=WIDTHS, columns=50, group_size=16):
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    each = [widths[(3 * row + seed) % len(widths)] for row in range(rows)]
    return MixedWeight.from_float(values, each, group_size)


CASES = {
    'all widths': [_weight(9, 0), _weight(14, 1), _weight(6, 2)],
    'disjoint widths': [_weight(4, 0, (8,)), _weight(3, 1, (2, 4)), _weight(2, 2, (16, 0))],
    'pruned': [_weight(4, 0, (0,)), _weight(3, 1, (0,))],
    'one': [_weight(5, 0)],
}
every_case = pytest.mark.parametrize('weights', CASES.values(), ids=CASES.keys())


@every_case
def test_a_stack_means_its_weights_in_turn(weights):
    stacked = stack(weights)
    assert torch.equal(stacked.dequantize(), torch.cat([w.dequantize() for w in weights]))
    assert stacked.widths().tolist() == [b for w in weights for b in w.widths().tolist()]
    MixedWeight.from_tensors(stacked.layout, stacked.tensors())


@every_case
def test_parts_of_a_stack_are_the_weights_again(weights):
    stacked, start = stack(weights), 0
    for weight in weights:
        part = channels(stacked, start, start + weight.layout.shape[0])
        start += weight.layout.shape[0]
        assert part.layout == weight.layout
        assert set(part.tensors()) == set(weight.tensors())
        for name, tensor in weight.tensors().items():
            assert part.tensors()[name].dtype == tensor.dtype
            assert torch.equal(part.tensors()[name], tensor)


def test_one_scale_per_channel_may_be_written_in_several_ways():
    one = MixedWeight.from_float(torch.ones(2, 20), [8, 4], 20)
    other = MixedWeight.from_float(torch.ones(2, 20), [8, 4], 1000)
    assert torch.equal(stack([one, other]).dequantize(), torch.cat([one.dequantize()] * 2))


def test_weights_with_other_groups_are_not_stacked():
    with pytest.raises(SchemeError) as error:
        stack([_weight(2, 0, (8,)), _weight(2, 0, (4,), group_size=32)])
    assert str(error.value) == (
        'weights are stacked only when their inputs are grouped alike:\n'
        '  in_features=50, 2 x 8 bit, groups of 16\n'
        '  in_features=50, 2 x 4 bit, groups of 32'
    )
