"""The ceilings: that the loops do what they say, with and without the kernel library."""

import numpy as np
import pytest

from vlaq_ros.bench import ceilings
from vlaq_ros.bench.ceilings import CeilingCases, is_ceiling, measure_ceilings
from vlaq_ros.bench.stopwatch import Effort
from vlaq_ros.errors import MissingDependencyError
from vlaq_ros.kernels import native_library

needs_library = pytest.mark.skipif(
    bool(native_library.problem()), reason='the kernel library is not built'
)


def no_library():
    raise MissingDependencyError('not built')


@needs_library
@pytest.mark.parametrize('lines', [0, 1, 3, 4, 5, 63, 64, 65])
def test_reading_covers_every_line_once(lines):
    values = np.random.default_rng(lines).integers(-(2**62), 2**62, lines * 8, dtype=np.int64)
    library = ceilings._with_signatures(native_library.library())
    read = library.vlaq_ceiling_read(values.ctypes.data, values.nbytes)
    assert read == (np.bitwise_xor.reduce(values) if lines else 0)


@needs_library
def test_operations_grow_with_the_iterations_and_an_unknown_kind_has_none():
    library = ceilings._with_signatures(native_library.library())
    for kind in range(3):
        one, ten = (library.vlaq_ceiling_run(kind, n) for n in (1, 10))
        assert ten == 10 * one
    assert library.vlaq_ceiling_run(3, 1) == 0


@pytest.mark.parametrize('threads', [1, 2])
def test_reading_and_fp32_are_always_measured(threads, monkeypatch):
    monkeypatch.setattr(ceilings, 'BUFFER_BYTES', 4 << 20)
    monkeypatch.setattr(ceilings, 'READ_BYTES', 1 << 20)
    monkeypatch.setattr(ceilings, 'ITERATIONS', 1000)
    found = measure_ceilings(threads, Effort(2, 0.001))
    assert found.read_bytes_s > 0
    assert found.operations_s['fp32'] > 0
    assert found.rate('no such kind') == found.operations_s['fp32']


def test_without_the_library_the_source_says_that_the_figures_are_too_low(monkeypatch):
    monkeypatch.setattr(ceilings, 'BUFFER_BYTES', 4 << 20)
    monkeypatch.setattr(ceilings, 'READ_BYTES', 1 << 20)
    monkeypatch.setattr(native_library, 'library', no_library)
    found = measure_ceilings(1, Effort(2, 0.001))
    assert 'no kernel library' in found.source
    assert set(found.operations_s) == {'fp32', 'bf16'}


def test_ceilings_are_told_from_kernels_by_name():
    assert all(is_ceiling(case.name) for case in CeilingCases(1).cases())
    assert not is_ceiling('W4A8')
