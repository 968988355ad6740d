"""Kernels with their instructions, weights of mixed widths, and the definition in float64."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vlaq_ros.kernels import native_library, select
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight

SMALL = MixedLayout((1, 1), 16, (0, 1, 0, 0))
LEVELS = {16: 32512, 8: 127, 4: 7, 2: 1}


def _variants():
    """
    Yield a parameter for every kernel of CPUs; the `cpu` row once per instructions.

    Where the library is missing its tests are skipped, not left out.
    """
    for kernel in select.KERNELS:
        refusal = kernel.refusal(SMALL, 'cpu')
        if kernel.name == 'cpu' and not refusal:
            for isa in native_library.available_isas():
                yield pytest.param((kernel, isa), id=f'cpu-{isa}')
        elif kernel.name == 'cpu' or not refusal:
            mark = [pytest.mark.skip(reason=f'{kernel.name}: {refusal}')] if refusal else []
            yield pytest.param((kernel, None), id=kernel.name, marks=mark)


VARIANTS = list(_variants())


@contextmanager
def _using(isa):
    if isa is None:
        yield
        return
    before = native_library.isa()
    native_library.set_isa(isa)
    yield
    native_library.set_isa(before)


@pytest.fixture(params=VARIANTS)
def kernel(request):
    """Every kernel that runs on the CPU, with all instructions that this machine has."""
    row, isa = request.param
    with _using(isa):
        yield row


@pytest.fixture(params=[variant for variant in VARIANTS if variant.values[0][0].name == 'cpu'])
def integer_kernel(request):
    """The `cpu` row alone, which sums in integers, with all instructions."""
    row, isa = request.param
    with _using(isa):
        yield row


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20)


@pytest.fixture
def make_weight(generator):
    """Return a function: (widths, in, group size) -> a random weight of these widths."""

    def make(widths, columns, group_size):
        weight = torch.randn(len(widths), columns, generator=generator)
        return MixedWeight.from_float(weight, widths, group_size)

    return make


@pytest.fixture
def multiply():
    """Return a function: (kernel, x, weight, cap, activation bits, bias) -> y."""

    def run(kernel, x, weight, cap=8, activation_bits=8, bias=None):
        precision = torch.tensor([cap, activation_bits], dtype=torch.int32)
        return kernel.run(x, kernel.pack(weight), weight.layout, precision, bias)

    return run


@pytest.fixture
def definition():
    """Return a function: the arguments of `multiply` without the kernel -> y in float64."""
    return _definition


def _definition(x, weight, cap=8, activation_bits=8, bias=None):
    """Written out again, channel by channel, from the codes."""
    out_features, in_features = weight.layout.shape
    tokens = x.detach().double().reshape(-1, in_features).numpy()
    rounded = tokens
    if activation_bits < 16:
        largest = np.abs(tokens).max(-1, keepdims=True, initial=0)
        step = np.where(largest > 0, largest / LEVELS[activation_bits], 1)
        rounded = np.rint(tokens / step) * step
    narrow = torch.from_numpy(tokens).bfloat16().double().numpy()
    y = np.zeros((len(tokens), out_features))
    rows = zip(weight.order.tolist(), _values(weight, cap))
    for row, (channel, values) in enumerate(rows):
        y[:, channel] = (narrow if row < weight.layout.counts[0] else rounded) @ values
    if bias is not None:
        y += bias.double().numpy()
    y[~np.isfinite(tokens).all(-1)] = np.nan
    return torch.from_numpy(y).reshape(*x.shape[:-1], out_features)


def _values(weight, cap):
    """Yield the real values of every stored row, float64 [in]."""
    columns = weight.layout.shape[1]
    for row in weight.values16.double().numpy():
        yield row
    scales = weight.scale.double().numpy().repeat(weight.layout.group_size, axis=1)[:, :columns]
    codes = [
        *(_nibble_or_byte(row, cap) for row in weight.codes8.numpy()),
        *((_unpacked(row, 4, columns), 8) for row in weight.codes4.numpy()),
        *((_unpacked(row, 2, columns), 1.5) for row in weight.codes2.numpy()),
    ]
    for scale, (row, middle) in zip(scales, codes):
        yield scale * (np.asarray(row, dtype=np.float64) - middle)


def _nibble_or_byte(row, cap):
    row = row.astype(np.float64)
    return (row if cap == 8 else row // 16 * 16 + 7.5), 128


def _unpacked(row, bits, columns):
    codes = [row >> shift & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(codes, axis=-1).reshape(-1)[:columns]
