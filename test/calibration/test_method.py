"""The seam: what a context refuses, and how a result counts its bits."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration.method import MethodResult
from vlaq_ros.calibration.methods import BEST, METHODS, find_method, method_name
from vlaq_ros.errors import ConfigError, SchemeError
from vlaq_ros.quant.mixed import MixedWeight


def test_layers_that_are_not_linear_are_all_named(context):
    layers = {'dit.0.fc1': 'expert', 'dit.0': 'expert', 'no.such': 'llm'}
    with pytest.raises(SchemeError, match='these are not:\n  dit.0\n  no.such'):
        dataclasses.replace(context, layers=layers)


def test_a_context_needs_batches(context):
    with pytest.raises(SchemeError, match='at least one batch'):
        dataclasses.replace(context, batches=[])


def test_activation_bits_that_no_kernel_has_are_refused(context):
    with pytest.raises(SchemeError, match='activation_bits=6'):
        dataclasses.replace(context, activation_bits=6)


def test_bits_are_weighted_by_the_size_of_layers_and_channels_are_not():
    wide = MixedWeight.from_float(torch.randn(4, 64), (8, 8, 4, 0), 64)
    small = MixedWeight.from_float(torch.randn(4, 16), (2, 2, 2, 16), 16)
    result = MethodResult('test', {'a': wide, 'b': small}, {'a': 16, 'b': 16})
    expected = (8 * 64 * 2 + 4 * 64 + 3 * 16) + (2 * 16 * 3 + 16 * 16 + 3 * 16)
    assert result.nbytes == expected / 8
    assert result.mean_bits_per_weight == pytest.approx(expected / (4 * 64 + 4 * 16))
    assert result.mean_bits_per_channel == pytest.approx((8 + 8 + 4 + 0 + 2 + 2 + 2 + 16) / 8)
    assert result.histogram() == {0: 0.125, 2: 0.375, 4: 0.125, 8: 0.25, 16: 0.125}


def test_auto_is_a_method_of_the_table_and_is_recorded_under_its_own_name():
    assert method_name('auto') == BEST
    assert method_name('da-ptq') == 'da_ptq'
    assert find_method('auto') is METHODS[BEST]
    with pytest.raises(ConfigError, match="named 'best'. Known: auto, rtn"):
        find_method('best')
