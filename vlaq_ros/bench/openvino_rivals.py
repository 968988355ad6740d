"""OpenVINO as a rival: one compressed matrix product, every copy a compiled model of its own."""

from typing import Any

import numpy as np
from torch import Tensor

from vlaq_ros.bench.contenders import Call, Contender, Maker, Refusal, gather
from vlaq_ros.bench.floors import dense_work
from vlaq_ros.bench.machine import is_installed
from vlaq_ros.bench.own_kernels import group_size_for
from vlaq_ros.bench.stopwatch import copies_for

FAMILY = 'openvino'
MOST_COPIES = 24  # compiling one takes tens of milliseconds


def openvino_rivals(weight: Tensor, threads: int) -> list[Contender | Refusal]:
    """Return the contenders for a float32 weight [out, in]; one refusal where it is missing."""
    if not is_installed('openvino'):
        return [Refusal(FAMILY, FAMILY, "not installed: pip install 'vlaq_ros[bench]'")]
    array = weight.numpy()
    makers: dict[str, Maker] = {
        'openvino W4A8': lambda: _contender('openvino W4A8', array, 4, threads),
        'openvino W8A8': lambda: _contender('openvino W8A8', array, 8, threads),
        'openvino bf16': lambda: _contender('openvino bf16', array, 16, threads),
    }
    return gather(FAMILY, makers)


def layer_model(weight: np.ndarray, bits: int) -> Any:
    """Return a model of one product: codes of `bits` in groups, or floats for 16."""
    import openvino

    opset = openvino.opset13
    x = opset.parameter([-1, weight.shape[1]], np.float32, name='x')
    if bits == 16:
        matrix = opset.constant(weight)
    else:
        matrix = _compressed(openvino, weight, bits, group_size_for(weight.shape[1]))
    return openvino.Model([opset.matmul(x, matrix, False, True)], [x])


def options(bits: int, group: int, threads: int) -> dict[str, Any]:
    """Return how to compile it: int8 arithmetic per group of the input, or bf16 for 16 bits."""
    common = {'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'ENABLE_CPU_PINNING': False}
    if bits == 16:
        return {**common, 'INFERENCE_PRECISION_HINT': 'bf16'}
    return {
        **common,
        'INFERENCE_PRECISION_HINT': 'f32',
        'DYNAMIC_QUANTIZATION_GROUP_SIZE': group,
    }


def _compressed(openvino: Any, weight: np.ndarray, bits: int, group: int) -> Any:
    """Return the nodes codes -> float -> times scale -> [out, in]."""
    opset = openvino.opset13
    outputs, inputs = weight.shape
    grouped = weight.reshape(outputs, -1, group)
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(grouped).max(2, keepdims=True) / limit
    codes = np.rint(grouped / scale).astype(np.int8)
    # a constant that shares the memory of an array would outlive it: these are copies
    constant = opset.constant(codes, openvino.Type.i4 if bits == 4 else openvino.Type.i8)
    values = opset.multiply(opset.convert(constant, 'f32'), opset.constant(scale))
    return opset.reshape(values, opset.constant(np.array([outputs, inputs])), False)


def _contender(name: str, weight: np.ndarray, bits: int, threads: int) -> Contender:
    import openvino

    outputs, inputs = weight.shape
    work = dense_work(inputs, outputs, bits, 'bf16' if bits == 16 else 'int8')
    count = min(copies_for(int(work.weight_bytes)), MOST_COPIES)
    core, model = openvino.Core(), layer_model(weight, bits)
    how = options(bits, group_size_for(inputs), threads)
    copies = [core.compile_model(model, 'CPU', how) for _ in range(count)]
    remark = f'at most {MOST_COPIES} copies: small weights are not cold'
    return Contender(name, FAMILY, work, copies, _bind, remark)


def _bind(x: Tensor, compiled: Any) -> Call:
    import openvino

    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy()))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return call
