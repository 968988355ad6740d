"""The order of the precision levels, and menus that cannot be wrong."""

from itertools import product

import pytest

from vlaq_ros.control.precision import (
    ACTIVATION_BITS,
    WEIGHT_BITS,
    PrecisionLevel,
    PrecisionMenu,
    Reason,
    SafetyEvent,
    level_names,
)
from vlaq_ros.errors import ConfigError

ALL = [PrecisionLevel(*widths) for widths in product(WEIGHT_BITS, ACTIVATION_BITS)]


def test_the_narrower_width_counts_first():
    names = [str(level) for level in sorted(ALL)]
    assert names == ['w4a2', 'w8a2', 'w4a4', 'w8a4', 'w4a8', 'w4a16', 'w8a8', 'w8a16']


@pytest.mark.parametrize('first', ALL, ids=str)
@pytest.mark.parametrize('second', ALL, ids=str)
def test_the_order_is_total_and_more_of_either_width_is_more(first, second):
    assert (first < second) + (first == second) + (first > second) == 1
    assert (first <= second) == (not first > second)
    widths = [(a.weight_bits, a.activation_bits) for a in (first, second)]
    if first != second and all(low <= high for low, high in zip(*widths)):
        assert first < second


def test_a_level_is_not_compared_with_anything_else():
    with pytest.raises(TypeError):
        assert PrecisionLevel(4, 8) < 8


@pytest.mark.parametrize('level', ALL, ids=str)
def test_a_level_is_read_back_from_its_name(level):
    assert PrecisionLevel.from_name(str(level)) == level


def test_a_name_without_activations_means_16_bits():
    assert PrecisionLevel.from_name('w4') == PrecisionLevel(4, 16)


@pytest.mark.parametrize('name', ['w4a', 'W4A8', 'w4a8 ', 'fp16', '', None, 4])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(ConfigError, match='write it as w4a8'):
        PrecisionLevel.from_name(name)


def test_every_width_that_does_not_exist_is_named():
    with pytest.raises(ConfigError) as error:
        PrecisionLevel.from_name('w2a32')
    for text in ("level 'w2a32'", 'weight_bits = 2', 'activation_bits = 32'):
        assert text in str(error.value)


def test_a_menu_knows_its_neighbours_also_of_levels_that_are_not_on_it():
    menu = PrecisionMenu.from_names('w4a4', 'w4a8', 'w8a16')
    low, middle, high = menu.levels
    assert (menu.bottom, menu.top, len(menu)) == (low, high, 3)
    assert [menu.above(level) for level in menu.levels] == [middle, high, high]
    assert [menu.below(level) for level in menu.levels] == [low, low, middle]
    other = PrecisionLevel(8, 8)
    assert other not in menu
    assert (menu.below(other), menu.above(other)) == (middle, high)


def test_a_menu_lists_every_name_it_cannot_read():
    with pytest.raises(ConfigError) as error:
        PrecisionMenu.from_names('w4a8', 'w3a8', 'bf16')
    assert "'w3a8'" in str(error.value)
    assert "'bf16'" in str(error.value)


@pytest.mark.parametrize('names', [('w8a8', 'w4a8'), ('w4a8', 'w4a8')], ids=['falls', 'twice'])
def test_a_menu_that_does_not_rise_is_refused_with_the_right_order(names):
    with pytest.raises(ConfigError, match='must rise, got .*; the order of these is w4a8'):
        PrecisionMenu.from_names(*names)


def test_an_empty_menu_is_refused():
    with pytest.raises(ConfigError, match='at least one level'):
        PrecisionMenu(())


def test_every_safety_event_is_a_reason():
    assert {event.value for event in SafetyEvent} <= {reason.value for reason in Reason}


def test_levels_of_several_groups_are_named_in_a_fixed_order():
    assert level_names({'llm': ALL[0], 'expert': ALL[-1]}) == 'expert w8a16, llm w4a2'
