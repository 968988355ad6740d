"""
What torch itself offers for a linear layer on the CPU.

The private operators are the ones that torchao, optimum-quanto and torch.compile end up calling.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from vlaq_ros.bench.contenders import Call, Contender, Maker, Refusal, gather
from vlaq_ros.bench.floors import Work, dense_work
from vlaq_ros.bench.own_kernels import group_size_for
from vlaq_ros.bench.stopwatch import copies_for

FP32 = 'torch fp32'
BF16 = 'torch bf16'
BF16_FROZEN = 'torch bf16 compiled, frozen'
ENGINES = ('fbgemm', 'onednn')


def torch_rivals(weight: Tensor) -> list[Contender | Refusal]:
    """Return the contenders for a float32 weight [out, in]."""
    makers: dict[str, Maker] = {
        FP32: lambda: _fp32(weight),
        BF16: lambda: _bf16(weight),
        BF16_FROZEN: lambda: _bf16_frozen(weight),
        **{
            f'torch dynamic int8 {engine}': lambda e=engine: _dynamic_int8(weight, e)
            for engine in ENGINES
        },
        'torch _int_mm': lambda: _int_mm(weight),
        'torch _weight_int8pack_mm': lambda: _int8pack(weight),
        'torch _weight_int4pack_mm': lambda: _int4pack(weight),
    }
    return gather('torch', makers)


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes [out, in] and float32 scales [out], one per output channel."""
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def frozen_weight(weight: Tensor) -> Tensor:
    """Return a bfloat16 weight in the layout that torch.compile with freezing gives it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the product with what `frozen_weight` returned: the call in such a compiled graph."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


def _work(weight: Tensor, bits: float, kind: str) -> Work:
    return dense_work(weight.shape[1], weight.shape[0], bits, kind)


def _clones(tensor: Tensor) -> list[Tensor]:
    return [tensor.clone() for _ in range(copies_for(tensor.nbytes))]


def _fp32(weight: Tensor) -> Contender:
    def bind(x: Tensor, copy: Tensor) -> Call:
        return lambda: linear(x, copy)

    return Contender(FP32, 'torch', _work(weight, 32, 'fp32'), _clones(weight), bind)


def _bf16(weight: Tensor) -> Contender:
    def bind(x: Tensor, copy: Tensor) -> Call:
        x = x.bfloat16()
        return lambda: linear(x, copy)

    copies = _clones(weight.bfloat16())
    return Contender(BF16, 'torch', _work(weight, 16, 'bf16'), copies, bind)


def _bf16_frozen(weight: Tensor) -> Contender:
    def bind(x: Tensor, copy: Tensor) -> Call:
        x = x.bfloat16()
        return lambda: frozen_linear(x, copy)

    copies = [frozen_weight(copy) for copy in _clones(weight.bfloat16())]
    remark = 'the operator and weight layout that torch.compile with freezing uses'
    return Contender(BF16_FROZEN, 'torch', _work(weight, 16, 'bf16'), copies, bind, remark)


def _dynamic_int8(weight: Tensor, engine: str) -> Contender:
    if engine not in torch.backends.quantized.supported_engines:
        raise RuntimeError(f'this torch has no engine {engine}')
    torch.backends.quantized.engine = engine
    _, scale = int8_rows(weight)
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    codes = torch.quantize_per_channel(weight, scale.double(), zero_points, 0, torch.qint8)
    copies = [
        torch.ops.quantized.linear_prepack(codes, None) for _ in range(copies_for(weight.numel()))
    ]

    def bind(x: Tensor, copy: object) -> Call:
        return lambda: torch.ops.quantized.linear_dynamic(x, copy, False)

    name = f'torch dynamic int8 {engine}'
    return Contender(name, 'torch', _work(weight, 8, 'int8'), copies, bind)


def _int_mm(weight: Tensor) -> Contender:
    codes, scale = int8_rows(weight)

    def bind(x: Tensor, copy: Tensor) -> Call:
        step = x.abs().amax(1, keepdim=True) / 127
        rounded, columns = (x / step).round().to(torch.int8), copy.t()
        return _Scaled(lambda: torch._int_mm(rounded, columns), step * scale)

    remark = 'the integer product alone: rounding of the input and scales are left out'
    work = _work(weight, 8, 'int8')
    return Contender('torch _int_mm', 'torch', work, _clones(codes), bind, remark)


class _Scaled:
    """A call whose result needs a factor to be compared, outside the time that is taken."""

    def __init__(self, call: Call, factor: Tensor) -> None:
        self._call, self.factor = call, factor

    def __call__(self) -> Tensor:
        return self._call()


def result_of(call: Call) -> Tensor:
    """Return what a call computes as float32, with the factor that the time leaves out."""
    values = torch.as_tensor(call()).float()
    return values * call.factor if isinstance(call, _Scaled) else values


def _int8pack(weight: Tensor) -> Contender:
    codes, scale = int8_rows(weight)
    scale = scale.bfloat16()

    def bind(x: Tensor, copy: Tensor) -> Call:
        x = x.bfloat16()
        return lambda: torch._weight_int8pack_mm(x, copy, scale)

    work = _work(weight, 8, 'bf16')
    return Contender('torch _weight_int8pack_mm', 'torch', work, _clones(codes), bind)


def _int4pack(weight: Tensor) -> Contender:
    out_features, in_features = weight.shape
    group = group_size_for(in_features)
    grouped = weight.unflatten(1, (-1, group))  # [out, groups, group]
    scale = grouped.abs().amax(2) / 7.5
    codes = (grouped / scale[..., None] + 8).round().clamp(0, 15).flatten(1).to(torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    qparams = torch.stack(
        [scale, torch.zeros_like(scale)], -1
    )  # value = (code - 8) * scale + zero
    qparams = qparams.transpose(0, 1).contiguous().bfloat16()  # [groups, out, 2]

    def bind(x: Tensor, copy: Tensor) -> Call:
        x = x.bfloat16()
        return lambda: torch._weight_int4pack_mm_for_cpu(x, copy, group, qparams)

    work = _work(weight, 4, 'bf16')
    return Contender('torch _weight_int4pack_mm', 'torch', work, _clones(packed), bind)
