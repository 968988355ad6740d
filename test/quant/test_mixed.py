"""A mixed-width weight holds what each channel would hold alone, and nothing impossible."""

import dataclasses
import json

import pytest
import torch

from vlaq_ros.errors import SchemeError
from vlaq_ros.quant.affine import fake_quantize
from vlaq_ros.quant.error import sqnr_db, view_errors_db
from vlaq_ros.quant.mixed import WIDTHS, MixedLayout, MixedWeight
from vlaq_ros.quant.scheme import CLIPS, PerGroup, QuantScheme

SHAPES = {
    'one': (1, 1),
    'odd': (23, 37),
    'two_groups': (23, 32),
    'tail': (11, 50),
    'wide': (7, 200),
}
every_shape = pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())


def _random(shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _widths(channels):
    """Every width in turn, in no particular order."""
    return [WIDTHS[(7 * channel + 3) % 5] for channel in range(channels)]


def _mixed(shape=(23, 37), group_size=16, **options):
    return MixedWeight.from_float(_random(shape), _widths(shape[0]), group_size, **options)


@every_shape
@pytest.mark.parametrize('clip', CLIPS)
def test_each_channel_is_quantized_as_if_it_were_alone(shape, clip):
    weight, widths = _random(shape), _widths(shape[0])
    restored = MixedWeight.from_float(weight, widths, 16, clip).dequantize()
    for row, bits, found in zip(weight, widths, restored):
        expected = torch.zeros_like(row) if bits == 0 else row.bfloat16().float()
        if 0 < bits < 16:
            expected = fake_quantize(row.unsqueeze(0), QuantScheme(bits, PerGroup(16)), clip)[0]
        assert torch.equal(found, expected)


@every_shape
def test_the_definition_of_the_format_word_by_word(shape):
    """Row by row and weight by weight from the bytes, independent of the packing code."""
    weight = _mixed(shape)
    counts, columns = weight.layout.counts, shape[1]
    expected = torch.zeros(shape, dtype=torch.float64)
    row = 0
    for bits, count, zero in zip((16, 8, 4, 2), counts, (None, 128, 8, 1.5)):
        for index in range(count):
            channel = int(weight.order[row])
            for k in range(columns):
                if bits == 16:
                    value = float(weight.values16[index, k])
                else:
                    byte = int(getattr(weight, f'codes{bits}')[index, k * bits // 8])
                    code = byte >> (k * bits % 8) & (2**bits - 1)
                    value = float(weight.scale[row - counts[0], k // 16]) * (code - zero)
                expected[channel, k] = value
            row += 1
    assert row == weight.layout.kept
    assert torch.equal(weight.dequantize(torch.float64), expected.float().double())


def test_rows_are_sorted_by_width_then_channel():
    weight = _mixed()
    widths = _widths(23)
    expected = sorted((c for c in range(23) if widths[c]), key=lambda c: (-widths[c], c))
    assert weight.order.tolist() == expected
    assert weight.widths().tolist() == widths


def test_bytes_are_what_the_layout_says():
    weight = _mixed((23, 37), 16)
    n16, n8, n4, n2 = weight.layout.counts
    kept = n16 + n8 + n4 + n2
    expected = 4 * kept + 74 * n16 + 37 * n8 + 19 * n4 + 10 * n2 + 2 * 3 * (kept - n16)
    assert weight.nbytes == expected
    assert sum(t.untyped_storage().nbytes() for t in weight.tensors().values()) == expected


def test_tensors_round_trip_and_empty_classes_are_left_out():
    weight = MixedWeight.from_float(_random((6, 20)), [4, 0, 4, 4, 0, 8], 32)
    tensors = weight.tensors()
    assert set(tensors) == {'order', 'codes8', 'codes4', 'scale'}
    again = MixedWeight.from_tensors(weight.layout, tensors)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert again.codes4 is tensors['codes4']


def test_a_layer_of_pruned_channels_has_no_tensors():
    weight = MixedWeight.from_float(_random((3, 20)), [0, 0, 0], 20)
    assert weight.tensors() == {}
    assert torch.equal(
        MixedWeight.from_tensors(weight.layout, {}).dequantize(), torch.zeros(3, 20)
    )


def test_a_group_of_zeros_is_zero_at_every_width():
    widths = [8, 4, 2, 16]
    weight = torch.ones(4, 32)
    weight[:, 16:] = 0.0
    mixed = MixedWeight.from_float(weight, widths, 16)
    assert (mixed.scale[:, 1] == 0).all()
    assert (mixed.dequantize()[:, 16:] == 0).all()
    assert (mixed.dequantize(cap=4)[:, 16:] == 0).all()


def test_the_capped_view_reads_the_high_nibble_and_leaves_other_widths_alone():
    mixed = _mixed()
    full, capped = mixed.dequantize(), mixed.dequantize(cap=4)
    others = mixed.widths() != 8
    assert torch.equal(full[others], capped[others])
    start = mixed.layout.counts[0]
    rows = mixed.order[start : start + mixed.layout.counts[1]].long()
    scale = mixed.scale[: len(rows)].float().repeat_interleave(16, dim=1)[:, :37]
    expected = scale * (16.0 * (mixed.codes8 // 16) + 7.5 - 128)
    assert torch.equal(capped[rows], expected)
    assert ((capped - full)[rows].abs() <= 7.5 * scale + 1e-6).all()


def test_both_views_are_reported_and_the_capped_one_is_close_to_a_true_four_bit_weight():
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    eight = MixedWeight.from_float(weight, [8] * 64, 128)
    four = MixedWeight.from_float(weight, [4] * 64, 128)
    errors = view_errors_db(weight, eight)
    assert errors[8] == pytest.approx(sqnr_db(weight, eight.dequantize()))
    assert 40 < errors[8] < 48
    assert errors[4] > sqnr_db(weight, four.dequantize()) - 0.2


def test_there_is_no_other_cap():
    with pytest.raises(SchemeError, match=r'cap=2 is not supported: .* one of \(8, 4\) bits'):
        _mixed().dequantize(cap=2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_values_come_back_in_the_dtype_asked_for(dtype):
    mixed = MixedWeight.from_float(_random((4, 16)), [8, 4, 2, 0], 16)
    assert torch.equal(mixed.dequantize(dtype), mixed.dequantize().to(dtype))


def test_codes_that_a_method_chose_are_packed_as_they_are():
    rounded = _mixed()
    each = {bits: _mixed_codes(rounded, bits) for bits in (8, 4, 2)}
    codes, scale = (
        torch.full((23, 37), 255, dtype=torch.uint8),
        torch.full((23, 3), torch.nan).half(),
    )
    start = rounded.layout.counts[0]
    for bits in (8, 4, 2):
        rows = rounded.order[start : start + len(each[bits])].long()
        codes[rows], scale[rows] = (
            each[bits],
            rounded.scale[start - rounded.layout.counts[0] :][: len(rows)],
        )
        start += len(rows)
    packed = MixedWeight.from_codes(codes, scale, _widths(23), 16, _random((23, 37)))
    assert packed.layout == rounded.layout
    for name, tensor in rounded.tensors().items():
        assert torch.equal(packed.tensors()[name], tensor)


def _mixed_codes(weight, bits):
    packed = getattr(weight, f'codes{bits}')
    columns = range(weight.layout.shape[1])
    return torch.stack(
        [packed[:, k * bits // 8] >> (k * bits % 8) & (2**bits - 1) for k in columns], 1
    )


def test_codes_wider_than_their_channel_are_refused_with_its_number():
    codes = torch.zeros(3, 16, dtype=torch.uint8)
    codes[2, 5] = 16
    with pytest.raises(SchemeError, match=r'code above 15 in 1 output channel\(s\): 2$'):
        MixedWeight.from_codes(codes, torch.ones(3, 1).half(), [8, 4, 4], 16)


def test_parts_that_do_not_fit_are_listed_together():
    with pytest.raises(SchemeError) as error:
        MixedWeight.from_codes(torch.zeros(2, 16).int(), torch.ones(2, 2).half(), [16, 4], 16)
    assert str(error.value) == (
        'the parts of the weight do not fit:\n'
        '  codes: int32 [2, 16], expected uint8 [2, 16]\n'
        '  scale: float16 [2, 2], expected float16 [2, 1]\n'
        '  values: a float matrix [2, 16] for the 16-bit channels'
    )


def test_every_missing_unknown_and_misshapen_tensor_is_listed():
    weight = _mixed()
    tensors = {**weight.tensors(), 'zero_point': torch.zeros(1)}
    tensors['codes8'] = tensors['codes8'][:, :-1]
    tensors['scale'] = tensors['scale'].float()
    del tensors['order']
    with pytest.raises(SchemeError) as error:
        MixedWeight.from_tensors(weight.layout, tensors)
    n8 = weight.layout.counts[1]
    codes = sum(weight.layout.counts[1:])
    assert str(error.value) == (
        'not a mixed-width weight:\n'
        '  zero_point: unknown\n'
        f'  order: missing, expected int32 [{weight.layout.kept}]\n'
        f'  codes8: uint8 [{n8}, 36], expected uint8 [{n8}, 37]\n'
        f'  scale: float32 [{codes}, 3], expected float16 [{codes}, 3]'
    )


def _set(name, index, value):
    def damage(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name][index] = value

    return damage


FAULTS = {
    'nan scale': (
        _set('scale', (1, 2), torch.nan),
        r'scale: negative or not finite in 1 row\(s\): 1',
    ),
    'infinite scale': (_set('scale', (0, 0), torch.inf), 'scale: negative or not finite'),
    'negative scale': (_set('scale', (0, 0), -0.5), 'scale: negative or not finite'),
    'nan value': (_set('values16', (2, 0), torch.nan), r'values16: not finite in 1 row\(s\): 2'),
    'infinite value': (_set('values16', (0, 0), -torch.inf), 'values16: not finite'),
    'double channel': (_set('order', 1, 1), 'order: channels 1 occur more than once'),
    'channel beyond': (_set('order', 0, 23), 'order: 23 of 23 channels do not exist'),
    'negative channel': (_set('order', 0, -1), 'order: -1 of 23 channels do not exist'),
    'pad of 4 bits': (_set('codes4', (1, 18), 0x10), r'codes4: bits beyond the last code .*: 1$'),
    'pad of 2 bits': (_set('codes2', (0, 9), 0x04), r'codes2: bits beyond the last code'),
}


@pytest.mark.parametrize(('damage', 'message'), FAULTS.values(), ids=FAULTS.keys())
def test_a_value_that_cannot_exist_is_refused(damage, message):
    weight = _mixed()
    tensors = weight.tensors()
    MixedWeight.from_tensors(weight.layout, tensors)
    if message.startswith('order: channels 1 '):
        tensors['order'] = tensors['order'].clone()
        tensors['order'][0] = 1
    damage(tensors)
    with pytest.raises(SchemeError, match=message):
        MixedWeight.from_tensors(weight.layout, tensors)


def test_channels_of_one_width_in_another_order_are_refused():
    weight = _mixed()
    tensors = weight.tensors()
    tensors['order'] = tensors['order'].flip(0).contiguous()
    with pytest.raises(SchemeError, match='order: the 16-bit channels are not in ascending order'):
        MixedWeight.from_tensors(weight.layout, tensors)


LAYOUTS = {
    'no outputs': ((0, 8), 16, (0, 0, 0, 0), r'shape=\(0, 8\) must be'),
    'too large': ((2**31, 8), 16, (0, 0, 0, 0), 'shape='),
    'not a number': ((4.0, 8), 16, (0, 0, 0, 0), 'shape='),
    'a truth': ((True, 8), 16, (0, 0, 0, 0), 'shape='),
    'group of 24': (
        (4, 48),
        24,
        (0, 0, 4, 0),
        'group_size=24 fits no kernel: use a multiple of 16',
    ),
    'group of 0': ((4, 48), 0, (0, 0, 4, 0), 'group_size=0 must be a positive'),
    'too many rows': ((4, 48), 16, (1, 1, 1, 2), r'together at most the 4 there are'),
    'negative rows': ((4, 48), 16, (1, 1, 1, -1), 'counts='),
    'three counts': ((4, 48), 16, (1, 1, 1), 'counts='),
}


@pytest.mark.parametrize(
    ('shape', 'group_size', 'counts', 'message'), LAYOUTS.values(), ids=LAYOUTS.keys()
)
def test_a_layout_that_cannot_exist_is_refused(shape, group_size, counts, message):
    with pytest.raises(SchemeError, match=message):
        MixedLayout(shape, group_size, counts)


@pytest.mark.parametrize('group_size', [48, 50, 1000], ids=str)
def test_a_group_as_wide_as_the_input_is_one_scale_per_channel(group_size):
    assert MixedLayout((4, 48), group_size, (0, 0, 4, 0)).groups == 1


def test_a_layout_is_a_json_value_and_a_sentence():
    layout = MixedLayout((9, 50), 16, (1, 2, 3, 2))
    values = json.loads(json.dumps(dataclasses.asdict(layout)))
    assert values == {'shape': [9, 50], 'group_size': 16, 'counts': [1, 2, 3, 2]}
    assert str(layout) == (
        '1 x 16 bit + 2 x 8 bit + 3 x 4 bit + 2 x 2 bit + 1 x 0 bit, groups of 16'
    )
    assert (layout.groups, layout.kept, layout.pruned) == (4, 8, 1)


@pytest.mark.parametrize(
    ('widths', 'message'),
    [([8, 3], r'widths \[3\] do not exist'), ([8], '1 widths for 2 output channels')],
)
def test_widths_that_do_not_fit_are_refused(widths, message):
    with pytest.raises(SchemeError, match=message):
        MixedWeight.from_float(torch.zeros(2, 4), widths, 4)


def test_a_weight_out_of_range_is_refused_with_its_channels():
    weight = torch.ones(4, 16)
    weight[1, 0] = torch.nan
    with pytest.raises(SchemeError, match=r'not finite in 1 output channel\(s\): 1$'):
        MixedWeight.from_float(weight, [0, 0, 0, 0], 16)
    weight[1, 0] = 3.4e38
    with pytest.raises(SchemeError, match=r'exceeds bfloat16 in 1 output channel\(s\): 1$'):
        MixedWeight.from_float(weight, [4, 16, 16, 16], 16)
    with pytest.raises(SchemeError, match=r'scale above 65504 in 1 output channel\(s\): 1$'):
        MixedWeight.from_float(weight, [4, 8, 8, 8], 16)
