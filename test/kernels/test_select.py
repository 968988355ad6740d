"""The choice of a kernel is the first that does not refuse, and it says why."""

import pytest

from vlaq_ros.kernels import select
from vlaq_ros.quant.scheme import WEIGHT_LEVELS

W4 = WEIGHT_LEVELS['w4']


@pytest.fixture
def two_kernels(monkeypatch):
    """Put a faster kernel that wants another device before the reference."""
    fast = select.Kernel(
        'fast',
        run=lambda x, weight, bias: x,
        refusal=lambda scheme, device_type: '' if device_type == 'cuda' else 'needs cuda',
    )
    monkeypatch.setattr(select, 'KERNELS', (fast, *select.KERNELS))
    select.select_kernel.cache_clear()
    yield
    select.select_kernel.cache_clear()


def test_the_only_kernel_says_that_none_is_faster():
    choice = select.select_kernel(W4, 'cpu')
    assert choice.name == 'reference'
    assert choice.reason == (
        'reference for W4A16 per group of 64, symmetric on cpu: none is faster'
    )


@pytest.mark.usefixtures('two_kernels')
def test_a_kernel_that_refuses_is_named_with_its_reason():
    choice = select.select_kernel(W4, 'cpu')
    assert choice.name == 'reference'
    assert choice.reason.endswith('on cpu: passed over fast, needs cuda')


@pytest.mark.usefixtures('two_kernels')
def test_the_first_kernel_that_runs_is_taken():
    assert select.select_kernel(W4, 'cuda').name == 'fast'


def test_the_last_kernel_refuses_nothing():
    last = select.KERNELS[-1]
    assert not any(last.refusal(scheme, 'cpu') for scheme in WEIGHT_LEVELS.values())
