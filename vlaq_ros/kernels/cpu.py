"""
Multiplication on the CPU by the C++ kernels of `native/`.

The packed form is one uint8 tensor, the store that `vlaq_pack` writes: channels of all widths in
one block, in the order in which the kernel reads them. One call computes all of them, writes every
result to its channel and adds the bias; activations are rounded to integers per token inside.

A call costs a few microseconds of Python: it allocates the result and passes addresses. float32
and bfloat16 inputs are read where they lie, with any distance between tokens; other types, and
inputs whose features are not neighbours, are copied first. The interpreter lock is free while the
kernel runs, and at most `torch.get_num_threads()` threads take part, read at every call.
"""

from ctypes import byref

import torch
from torch import Tensor

from vlaq_ros.errors import SchemeError
from vlaq_ros.kernels import native_library
from vlaq_ros.kernels.kernel import Kernel, row_major_parts
from vlaq_ros.kernels.native_library import Layout, Rows
from vlaq_ros.kernels.store_memory import filled_store
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # VLAQ_FLOAT32, VLAQ_BFLOAT16


def pack(weight: MixedWeight) -> tuple[Tensor, ...]:
    """
    Return the store of a weight: one uint8 tensor.

    Raises:
        SchemeError: The kernels cannot hold this layout.
        MissingDependencyError: The library is not there.
    """
    library, layout = native_library.library(), _layout(weight.layout)
    store_bytes = library.vlaq_store_bytes(byref(layout))
    if store_bytes < 0:
        raise SchemeError(f'{weight.layout}: {native_library.error_text(store_bytes)}')
    parts = [part.cpu().contiguous() for part in row_major_parts(weight)]

    def fill(address: int) -> None:
        status = library.vlaq_pack(byref(layout), byref(_rows(parts)), address)
        if status != 0:
            raise SchemeError(f'{weight.layout}: {native_library.error_text(status)}')

    return (filled_store(store_bytes, fill),)


def unpack(tensors: tuple[Tensor, ...], layout: MixedLayout) -> MixedWeight:
    """
    Return the weight that a store was packed from.

    Raises:
        SchemeError: The tensor is not a store of this layout.
    """
    store = tensors[0].cpu()
    parts = _empty_parts(layout)
    status = native_library.library().vlaq_unpack(
        store.data_ptr(), byref(_layout(layout)), byref(_rows(parts))
    )
    if status != 0:
        raise SchemeError(f'{layout}: {native_library.error_text(status)}')
    return MixedWeight(layout, *parts)


def run(
    x: Tensor,
    tensors: tuple[Tensor, ...],
    layout: MixedLayout,
    precision: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """
    Return [..., out] for x [..., in], in the dtype of x.

    Raises:
        ValueError: x is not on the CPU or has another width than the layer, or the precision is
            not one that exists.
    """
    dtype = DTYPES.get(x.dtype)
    if dtype is None:
        return run(x.float(), tensors, layout, precision, bias).to(x.dtype)
    out_features, in_features = layout.shape
    sizes = x.shape
    store = tensors[0]
    if not x.is_cpu or not store.is_cpu or not sizes or sizes[-1] != in_features:
        raise ValueError(
            f'expected [..., {in_features}] and the store on the CPU, got {list(sizes)} on '
            f'{x.device.type} and the store on {store.device.type}'
        )
    if x.is_contiguous():
        tokens, stride = x.numel() // in_features, in_features
    else:
        x = x.reshape(-1, in_features)  # a view where the tokens are evenly spaced
        tokens, stride = len(x), x.stride(0)
        if x.stride(1) != 1:
            x, stride = x.contiguous(), in_features
    if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous()):
        bias = bias.float().contiguous()
    cap, activation_bits = precision.tolist()
    y = x.new_empty(*sizes[:-1], out_features)  # a tuple costs a quarter of a microsecond
    status = native_library.library().vlaq_linear(
        store.data_ptr(),
        dtype,
        x.data_ptr(),
        stride,
        tokens,
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        out_features,
        cap,
        activation_bits,
        torch.get_num_threads(),
    )
    if status != 0:
        fault = native_library.error_text(status)
        raise ValueError(f'{fault} (cap={cap}, activation_bits={activation_bits})')
    return y


def refusal(layout: MixedLayout, device_type: str) -> str:
    """Return why the kernels cannot run a layout on a kind of device; '' when they can."""
    if device_type != 'cpu':
        return 'runs on the CPU alone'
    if problem := native_library.problem():
        return problem
    store_bytes = native_library.library().vlaq_store_bytes(byref(_layout(layout)))
    return native_library.error_text(store_bytes) if store_bytes < 0 else ''


KERNEL = Kernel('cpu', pack, unpack, run, refusal)


def _layout(layout: MixedLayout) -> Layout:
    out_features, in_features = layout.shape
    return Layout(in_features, out_features, layout.group_size, *layout.counts)


def _empty_parts(layout: MixedLayout) -> list[Tensor]:
    """Return uninitialized parts, for `vlaq_unpack` to fill."""
    return [torch.empty(shape, dtype=dtype) for dtype, shape in layout.tensors().values()]


def _rows(parts: list[Tensor]) -> Rows:
    """Return the addresses of parts; the caller keeps the tensors alive."""
    return Rows(*(part.data_ptr() if part.numel() else None for part in parts))
