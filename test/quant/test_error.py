"""The signal to noise ratio sees what a cosine does not."""

import math

import pytest
import torch

from vlaq_ros.quant.error import sqnr_db


def test_a_tenth_of_the_amplitude_is_twenty_decibels():
    signal = torch.tensor([3.0, -4.0])
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20.0, abs=1e-4)


def test_a_doubled_tensor_has_zero_decibels():
    assert sqnr_db(torch.ones(5), 2 * torch.ones(5)) == pytest.approx(0.0)


def test_equal_tensors_have_infinite_ratio():
    assert sqnr_db(torch.ones(5), torch.ones(5)) == math.inf
