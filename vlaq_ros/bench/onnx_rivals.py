"""ONNX Runtime as a rival: one-node models, every copy of the weight a session of its own."""

from typing import Any

import numpy as np
from torch import Tensor

from vlaq_ros.bench.contenders import Call, Contender, Maker, Refusal, gather
from vlaq_ros.bench.floors import dense_work
from vlaq_ros.bench.machine import is_installed
from vlaq_ros.bench.own_kernels import group_size_for
from vlaq_ros.bench.stopwatch import copies_for

FAMILY = 'onnxruntime'
MICROSOFT = 'com.microsoft'
INT8_ARITHMETIC = 4  # accuracy_level of MatMulNBits; lower levels compute in floats and are slow
WIDTHS = (2, 4, 8)


def onnx_rivals(weight: Tensor, threads: int) -> list[Contender | Refusal]:
    """Return the contenders for a float32 weight [out, in]; one refusal where it is missing."""
    missing = [name for name in ('onnx', 'onnxruntime') if not is_installed(name)]
    if missing:
        reason = f"{' and '.join(missing)} not installed: pip install 'vlaq_ros[bench]'"
        return [Refusal(FAMILY, FAMILY, reason)]
    array = weight.numpy()
    makers: dict[str, Maker] = {
        **{f'onnxruntime W{bits}A8': lambda b=bits: _n_bits(array, b, threads) for bits in WIDTHS},
        'onnxruntime dynamic int8': lambda: _dynamic_int8(array, threads),
        'onnxruntime fp32': lambda: _fp32(array, threads),
    }
    return gather(FAMILY, makers)


def n_bits_model(weight: np.ndarray, bits: int) -> bytes:
    """Return a model with one MatMulNBits node: codes of `bits` in groups, int8 arithmetic."""
    from onnx import helper

    outputs, inputs = weight.shape
    group = group_size_for(inputs)
    grouped = weight.reshape(outputs, -1, group)  # [out, groups, group]
    middle = 2 ** (bits - 1)
    scale = np.abs(grouped).max(2) / (middle - 0.5)
    codes = np.clip(np.rint(grouped / scale[..., None] + middle), 0, 2 * middle - 1)
    packed = _pack(codes.astype(np.uint8), bits)
    node = helper.make_node(
        'MatMulNBits',
        ['x', 'codes', 'scale'],
        ['y'],
        domain=MICROSOFT,
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=group,
        accuracy_level=INT8_ARITHMETIC,
    )
    tensors = {'codes': packed, 'scale': scale.astype(np.float32).ravel()}
    return _model(node, tensors, inputs, outputs)


def open_session(model: bytes, threads: int) -> Any:
    """Return a session that uses at most `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])


def _n_bits(weight: np.ndarray, bits: int, threads: int) -> Contender:
    work = dense_work(weight.shape[1], weight.shape[0], bits, 'int8')
    return _contender(f'onnxruntime W{bits}A8', n_bits_model(weight, bits), work, threads)


def _dynamic_int8(weight: np.ndarray, threads: int) -> Contender:
    from onnx import helper

    outputs, inputs = weight.shape
    scale = np.abs(weight).max(1) / 127
    codes = np.rint(weight / scale[:, None]).astype(np.int8)
    node = helper.make_node(
        'DynamicQuantizeMatMul', ['x', 'codes', 'scale'], ['y'], domain=MICROSOFT
    )
    tensors = {'codes': np.ascontiguousarray(codes.T), 'scale': scale.astype(np.float32)}
    model = _model(node, tensors, inputs, outputs)
    work = dense_work(inputs, outputs, 8, 'int8')
    return _contender('onnxruntime dynamic int8', model, work, threads)


def _fp32(weight: np.ndarray, threads: int) -> Contender:
    from onnx import helper

    outputs, inputs = weight.shape
    node = helper.make_node('MatMul', ['x', 'weight'], ['y'])
    model = _model(node, {'weight': np.ascontiguousarray(weight.T)}, inputs, outputs)
    work = dense_work(inputs, outputs, 32, 'fp32')
    return _contender('onnxruntime fp32', model, work, threads)


def _contender(name: str, model: bytes, work: Any, threads: int) -> Contender:
    copies = [open_session(model, threads) for _ in range(copies_for(int(work.weight_bytes)))]
    return Contender(name, FAMILY, work, copies, _bind)


def _bind(x: Tensor, session: Any) -> Call:
    import onnxruntime

    outputs = session.get_outputs()[0].shape[1]
    y = np.empty((len(x), outputs), np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input('x', onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy()))
    binding.bind_output('y', 'cpu', 0, np.float32, y.shape, y.ctypes.data)

    def call() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return call


def _model(node: Any, tensors: dict[str, np.ndarray], inputs: int, outputs: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [node],
        'layer',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['tokens', inputs])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, ['tokens', outputs])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid('', 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model.SerializeToString()


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along the last dimension, the first one in the lowest bits."""
    per_byte = 8 // bits
    parts = codes.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (parts << shifts).sum(-1, dtype=np.uint8)
