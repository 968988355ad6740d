"""
Memory that a model's layers really take, in a process of their own.

Several layers are loaded from files one after the other and called once, so that whatever a
library unpacks or keeps beside the weights is there. What counts is the private resident memory
that they add, and the peak of the resident set on the way; both are compared with the bits of the
weights alone.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlaq_ros.bench import resident
from vlaq_ros.bench.onnx_rivals import n_bits_model, open_session
from vlaq_ros.bench.own_kernels import MIX_WIDE, channel_widths, group_size_for
from vlaq_ros.bench.plan import Job, Step
from vlaq_ros.bench.torch_rivals import int8_rows
from vlaq_ros.nn.mixed_linear import MixedLinear
from vlaq_ros.nn.store_file import load_model, read_schema, save_model
from vlaq_ros.quant.scheme import LayerScheme

Run = Callable[[Tensor], Any]
NAME = 'layer'
OWN_SHARES = {
    'W2': {2: 1.0},
    'W4': {4: 1.0},
    'W8, 4 nested': {8: 1.0},
    MIX_WIDE: {0: 0.05, 4: 0.70, 8: 0.20, 16: 0.05},
}


class Loader(NamedTuple):
    """
    How a case gets a layer from disk.

    Attributes:
        bits: Mean bits per weight, scales left out.
        write: (weight [out, in], file) writes the layer.
        load: file -> the layer, as a call.
    """

    bits: float
    write: Callable[[Tensor, Path], None]
    load: Callable[[Path], Run]


def measure_step(job: Job, step: Step) -> Iterator[dict[str, Any]]:
    """Yield one row: bytes resident and at the peak, of several layers together."""
    inputs, outputs, layers = (step.values[name] for name in ('in', 'out', 'layers'))
    case = step.values['case']
    loader = loaders(job.threads)[case]
    x = torch.randn(1, inputs)
    with tempfile.TemporaryDirectory() as folder:
        files = _write(loader, Path(folder), inputs, outputs, layers)
        loader.load(files[0])(x)  # code and arenas of a library are not part of a layer
        resident.reset_peak()
        before, peak_before = resident.resident_bytes(), resident.current_bytes()
        proportional_before = resident.proportional_bytes()
        kept = []
        for file in files:
            kept.append(loader.load(file))
            kept[-1](x)
        peak = resident.peak_bytes() - peak_before
        added = resident.resident_bytes() - before
        proportional = resident.proportional_bytes() - proportional_before
    weights = inputs * outputs * layers
    yield {
        'section': 'memory',
        'name': case,
        'in': inputs,
        'out': outputs,
        'layers': layers,
        'weights': weights,
        'bits': loader.bits,
        'resident_bytes': added,
        'proportional_bytes': proportional,
        'peak_bytes': peak,
        'ideal_bytes': weights * loader.bits / 8,
        'layer_bytes': inputs * outputs * loader.bits / 8,
    }


def loaders(threads: int) -> dict[str, Loader]:
    """Return case -> how it is written and loaded."""
    own = {
        name: Loader(_mean_bits(shares), _own_writer(shares), _load_own)
        for name, shares in OWN_SHARES.items()
    }
    return {
        'torch bf16': Loader(16, _write_bf16, _load_bf16),
        **own,
        'torch int4pack': Loader(4, _write_int4pack, _load_int4pack),
        'torch dynamic int8 fbgemm': Loader(8, _write_int8, _load_fbgemm),
        'onnxruntime W4': Loader(4, _write_onnx, lambda file: _load_onnx(file, threads)),
        'openvino W4': Loader(4, _write_openvino, lambda file: _load_openvino(file, threads)),
    }


def _write(loader: Loader, folder: Path, inputs: int, outputs: int, layers: int) -> list[Path]:
    """Write equal layers to files of their own, so that nothing is shared between them."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02
    first = folder / '0' / 'layer'
    first.parent.mkdir()
    loader.write(weight, first)
    for number in range(1, layers):
        shutil.copytree(first.parent, folder / str(number))
    return [folder / str(number) / 'layer' for number in range(layers)]


def _mean_bits(shares: dict[int, float]) -> float:
    return sum(width * share for width, share in shares.items())


def _own_writer(shares: dict[int, float]) -> Callable[[Tensor, Path], None]:
    def write(weight: Tensor, file: Path) -> None:
        linear = nn.Linear(weight.shape[1], len(weight), bias=False)
        linear.weight.data = weight
        widths = tuple(channel_widths(shares, len(weight)))
        scheme = LayerScheme(widths, group_size_for(weight.shape[1]), activation_bits=8)
        save_model(nn.ModuleDict({NAME: MixedLinear.from_linear(linear, scheme)}), file)

    return write


def _load_own(file: Path) -> Run:
    out_features, in_features = read_schema(file)[NAME].layout.shape
    with torch.device('meta'):
        model = nn.ModuleDict({NAME: nn.Linear(in_features, out_features, bias=False)})
    load_model(model, file)
    return model[NAME]


def _read(file: Path) -> dict[str, Tensor]:
    with safe_open(file, 'pt') as stored:
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118


def _write_bf16(weight: Tensor, file: Path) -> None:
    save_file({'weight': weight.bfloat16()}, file)


def _load_bf16(file: Path) -> Run:
    weight = _read(file)['weight']
    return lambda x: torch.nn.functional.linear(x.bfloat16(), weight)


def _write_int8(weight: Tensor, file: Path) -> None:
    codes, scale = int8_rows(weight)
    save_file({'codes': codes, 'scale': scale}, file)


def _load_fbgemm(file: Path) -> Run:
    torch.backends.quantized.engine = 'fbgemm'
    parts = _read(file)
    zero_points = torch.zeros(len(parts['scale']), dtype=torch.int64)
    codes = torch._make_per_channel_quantized_tensor(
        parts['codes'], parts['scale'].double(), zero_points, 0
    )
    packed = torch.ops.quantized.linear_prepack(codes, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, False)


def _write_int4pack(weight: Tensor, file: Path) -> None:
    group = group_size_for(weight.shape[1])
    grouped = weight.unflatten(1, (-1, group))
    scale = grouped.abs().amax(2) / 7.5
    codes = (grouped / scale[..., None] + 8).round().clamp(0, 15).flatten(1).to(torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    qparams = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1).bfloat16()
    save_file({'codes': packed, 'qparams': qparams.contiguous()}, file)


def _load_int4pack(file: Path) -> Run:
    parts = _read(file)
    codes, qparams = parts['codes'], parts['qparams']

    def run(x: Tensor) -> Tensor:
        group = x.shape[1] // len(qparams)
        return torch._weight_int4pack_mm_for_cpu(x.bfloat16(), codes, group, qparams)

    return run


def _write_onnx(weight: Tensor, file: Path) -> None:
    file.write_bytes(n_bits_model(weight.numpy(), 4))


def _load_onnx(file: Path, threads: int) -> Run:
    session = open_session(str(file), threads)
    return lambda x: session.run(None, {'x': x.numpy()})


def _write_openvino(weight: Tensor, file: Path) -> None:
    import openvino

    from vlaq_ros.bench.openvino_rivals import layer_model

    openvino.save_model(
        layer_model(weight.numpy(), 4), str(file.with_suffix('.xml')), compress_to_fp16=False
    )


def _load_openvino(file: Path, threads: int) -> Run:
    import openvino

    from vlaq_ros.bench.openvino_rivals import options

    core = openvino.Core()
    inputs = core.read_model(str(file.with_suffix('.xml')))
    group = group_size_for(inputs.inputs[0].partial_shape[1].get_length())
    compiled = core.compile_model(inputs, 'CPU', options(4, group, threads))
    request = compiled.create_infer_request()

    def run(x: Tensor) -> np.ndarray:
        request.set_input_tensor(openvino.Tensor(x.numpy()))
        request.infer()
        return request.get_output_tensor().data

    return run
