"""The choice of a kernel is the first that does not refuse, and it says why."""

import pytest
import torch

from vlaq_ros.errors import ConfigError, MissingDependencyError
from vlaq_ros.kernels import native_library, select
from vlaq_ros.quant.mixed import MixedLayout

LAYOUT = MixedLayout((8, 64), 32, (1, 2, 3, 1))


@pytest.fixture(autouse=True)
def forget_choices():
    """Choices are made once; these tests change what they depend on."""
    select.select_kernel.cache_clear()
    yield
    select.select_kernel.cache_clear()


@pytest.fixture
def two_kernels(monkeypatch):
    """A faster kernel that wants another device, before the reference."""
    reference = select.KERNELS[-1]
    fast = reference._replace(
        name='fast', refusal=lambda layout, device_type: '' if device_type == 'cuda' else 'no gpu'
    )
    monkeypatch.setattr(select, 'KERNELS', (fast, reference))


@pytest.mark.usefixtures('two_kernels')
def test_the_first_kernel_that_runs_is_taken():
    choice = select.select_kernel(LAYOUT, 'cuda')
    assert choice.kernel.name == 'fast'
    assert choice.reason == 'fast on cuda: none is faster'


@pytest.mark.usefixtures('two_kernels')
def test_a_kernel_that_refuses_is_named_with_its_reason():
    choice = select.select_kernel(LAYOUT, 'cpu')
    assert choice.kernel.name == 'reference'
    assert choice.reason.endswith('passed over fast: no gpu')


@pytest.mark.usefixtures('two_kernels')
def test_the_reference_says_what_it_costs():
    assert 'saves memory, not time' in select.select_kernel(LAYOUT, 'cpu').reason


@pytest.mark.skipif(native_library.problem() != '', reason='the library is not built')
def test_on_a_cpu_the_library_is_taken():
    assert select.select_kernel(LAYOUT, 'cpu').kernel.name == 'cpu'


def test_without_the_library_the_reference_runs_and_says_how_to_get_it(monkeypatch):
    def missing():
        raise MissingDependencyError('not built: install a C++ compiler')

    monkeypatch.setattr(native_library, 'library', missing)
    choice = select.select_kernel(LAYOUT, 'cpu')
    assert choice.kernel.name == 'reference'
    assert 'cpu: not built: install a C++ compiler' in choice.reason
    x = torch.ones(2, 64)
    precision = torch.tensor([8, 8], dtype=torch.int32)
    tensors = [torch.zeros(shape, dtype=dtype) for dtype, shape in LAYOUT.tensors().values()]
    tensors[0] = torch.arange(7, dtype=torch.int32)
    assert choice.kernel.run(x, tuple(tensors), LAYOUT, precision, None).shape == (2, 8)


def test_instructions_that_were_asked_for_are_not_silently_replaced(monkeypatch):
    def refuse():
        raise ConfigError("VLAQ_ISA='mmx' cannot run here")

    monkeypatch.setattr(native_library, 'library', refuse)
    with pytest.raises(ConfigError, match='mmx'):
        select.select_kernel(LAYOUT, 'cpu')


def test_a_device_nobody_has_a_kernel_for_gets_the_reference():
    assert select.select_kernel(LAYOUT, 'meta').kernel.name == 'reference'


def test_the_last_kernel_refuses_nothing():
    last = select.KERNELS[-1]
    assert not any(last.refusal(LAYOUT, device) for device in ('cpu', 'cuda', 'meta'))
