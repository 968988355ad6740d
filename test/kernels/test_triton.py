"""
The GPU kernel without a GPU: its format, its choices, its arithmetic and its machine code.

The arithmetic is that of `test_triton_numerics.py`, run here by Triton's interpreter. The machine
code is compiled for four generations of GPUs and looked at, not run.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

from vlaq_ros.kernels import gpu, triton_format
from vlaq_ros.kernels.triton_format import Store
from vlaq_ros.quant.mixed import MixedLayout, MixedWeight

HERE = Path(__file__).resolve().parent
ALL_WIDTHS = [0, 2, 4, 8, 16, 4, 4, 8]
CHIPS = {
    'a100': gpu.Chip((8, 0), 108),
    'orin': gpu.Chip((8, 7), 16),
    'ada': gpu.Chip((8, 9), 128),
    'h200': gpu.Chip((9, 0), 132),
}
SHARED_BYTES = {(8, 0): 163, (8, 7): 163, (8, 9): 99, (9, 0): 227}  # KiB a program may have
TYPES = {torch.bfloat16: '*bf16', torch.float16: '*fp16', torch.float32: '*fp32'}
needs_triton = pytest.mark.skipif(
    find_spec('triton') is None, reason='Triton is not installed: pip install vlaq_ros[gpu]'
)
is_interpreted = os.environ.get('TRITON_INTERPRET') == '1'


@pytest.mark.parametrize(
    ('columns', 'channels', 'group_size'),
    [(1, 3, 16), (70, 1, 32), (33, 7, 33), (128, 40, 32), (200, 137, 64), (77, 65, 77)]
    + [(1040, 200, 128), (300, 129, 96), (100, 9, 48)],
    ids=str,
)
@pytest.mark.parametrize(
    'widths', [ALL_WIDTHS, [2], [4], [8], [16], [0], [8, 4]], ids=lambda widths: f'w{widths}'
)
def test_unpacking_gives_back_every_bit(make_weight, columns, channels, group_size, widths):
    weight = make_weight((widths * channels)[:channels], columns, group_size)
    packed = gpu.pack(weight)
    again = triton_format.unpack(packed, weight.layout)
    assert again.layout == weight.layout
    for name in weight.layout.tensors():
        assert torch.equal(getattr(again, name), getattr(weight, name)), name
        assert getattr(again, name).is_contiguous()
    for first, second in zip(packed, gpu.pack(again)):
        assert torch.equal(first, second)


def test_every_channel_has_one_place_and_one_program(make_weight):
    weight = make_weight((ALL_WIDTHS * 99)[:777], 128, 128)
    store = Store(*gpu.pack(weight))
    assert sorted(store.channels[store.channels >= 0].tolist()) == list(range(777))
    widths = weight.widths()
    for tiles, most in ((store.tiles, 1), (store.double_tiles, 2)):
        covered = []
        for bits, first, count, _, _ in tiles.tolist():
            assert 1 <= count <= most
            covered += range(first, first + count)
            channels = store.channels[first : first + count].flatten()
            assert (widths[channels[channels >= 0].long()] == bits).all()
        assert covered == list(range(len(store.channels)))
    assert store.arrivals.tolist() == [0] * len(store.tiles)


def test_padding_is_all_that_a_large_layer_grows_by(make_weight):
    weight = make_weight((ALL_WIDTHS * 256)[:2048], 1024, 128)
    packed_bytes = sum(tensor.nbytes for tensor in gpu.pack(weight))
    assert packed_bytes < 1.02 * weight.nbytes


@pytest.mark.parametrize('chip', CHIPS.values(), ids=CHIPS.keys())
def test_a_plan_covers_every_input_once(chip):
    sizes = product([1, 16, 17, 33, 64, 65, 290, 610], [1, 9, 64, 172], [1, 3, 8, 33, 86])
    for tokens, programs, steps in sizes:
        plan = gpu.choose_plan(tokens, programs, steps, chip)
        each = -(-steps // plan.parts)
        assert (plan.parts - 1) * each < steps <= plan.parts * each  # none empty, none left over
        assert plan.parts == 1 or tokens <= plan.tokens  # one arrival counter per tile


@pytest.mark.parametrize('chip', CHIPS.values(), ids=CHIPS.keys())
def test_few_tokens_are_cut_until_every_multiprocessor_reads_weights(chip):
    plan = gpu.choose_plan(1, 64, 86, chip)
    assert 64 * plan.parts >= min(2 * chip.multiprocessors, 64 * 16)


REFUSALS = {
    'cpu': (MixedLayout((64, 64), 64, (0, 64, 0, 0)), 'cpu', 'runs on NVIDIA GPUs alone'),
    'mps': (MixedLayout((64, 64), 64, (0, 64, 0, 0)), 'mps', 'runs on NVIDIA GPUs alone'),
}


@pytest.mark.parametrize(('layout', 'device', 'reason'), REFUSALS.values(), ids=REFUSALS.keys())
def test_other_devices_are_refused(layout, device, reason):
    assert gpu.refusal(layout, device) == reason


@pytest.mark.parametrize(
    ('available', 'capability', 'reason'),
    [
        (False, (9, 0), 'torch sees no CUDA device'),
        (True, (7, 5), 'the GPU has compute capability 7.5, below 8.0'),
    ],
)
def test_the_refusal_says_what_the_machine_lacks(monkeypatch, available, capability, reason):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
    gpu._problem.cache_clear()
    assert gpu.refusal(MixedLayout((64, 64), 64, (0, 64, 0, 0)), 'cuda') == reason
    gpu._problem.cache_clear()


def test_layouts_that_no_gpu_can_run_are_refused():
    thin = MixedLayout((8, 96), 48, (0, 8, 0, 0))
    assert gpu.layout_problem(thin) == 'group_size=48 is not a multiple of 32'
    assert gpu.layout_problem(MixedLayout((8, 96), 48, (8, 0, 0, 0))) == ''  # has no groups
    assert gpu.layout_problem(MixedLayout((8, 48), 48, (0, 8, 0, 0))) == ''  # has one
    deep = MixedLayout((8, 200_000), 128, (0, 8, 0, 0))
    assert gpu.layout_problem(deep) == 'in_features=200000 is above 132104'


@needs_triton
def test_an_input_of_another_width_is_refused(make_weight):
    weight = make_weight([8] * 4, 64, 32)
    precision = torch.tensor([8, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match=r'expected \[\.\.\., 64\] on cpu, got \[2, 65\] on cpu'):
        gpu.run(torch.ones(2, 65), gpu.pack(weight), weight.layout, precision, None)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(is_interpreted, reason='runs in the interpreter already')
def test_the_kernel_computes_the_definition_in_tritons_interpreter():
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--timeout=300']
    command += ['-p', 'no:xdist', str(HERE / 'test_triton_numerics.py')]
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:]
    passed = re.search(r'(\d+) passed', result.stdout)
    assert passed is not None, result.stdout[-2000:]
    assert 'skipped' not in result.stdout


def compile_for(chip, tokens, layout, dtype):
    """Return the compiled kernel for the plan that a call of this size would have."""
    from vlaq_ros.kernels.triton_kernel import multiply

    steps = triton_format.padded_inputs(layout) // triton_format.STEP
    plan = gpu.choose_plan(tokens, -(-layout.shape[0] // 64), steps, chip)
    constants = gpu.constants(layout, dtype, plan, has_bias=True)
    pointers = dict.fromkeys(('x', 'y'), TYPES[dtype])
    pointers |= {'values16': '*bf16', 'scale': '*fp16', 'x_codes': '*i8'}
    pointers |= dict.fromkeys(('x_steps', 'partial_sums', 'bias'), '*fp32')
    pointers |= dict.fromkeys(('high', 'low', 'codes2'), '*u8')
    pointers |= dict.fromkeys(('x_sums', 'channels', 'tiles', 'arrivals', 'precision'), '*i32')
    options = {'num_warps': plan.warps, 'num_stages': plan.stages}
    return compile_kernel(multiply, chip, pointers, constants, options)


def compile_kernel(function, chip, pointers, constants, options):
    """Return a function compiled for a chip; its pointers and sizes are aligned."""
    from triton import compile as compile_source
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    types = dict.fromkeys(names, 'i32') | pointers | dict.fromkeys(constants, 'constexpr')
    aligned = [*pointers, *{'columns', 'channels_out', 'x_stride'} & set(names)]
    source = ASTSource(
        function,
        {name: types[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [['tt.divisibility', 16]] for name in aligned},
    )
    major, minor = chip.capability
    target = GPUTarget('cuda', 10 * major + minor, 32)
    return compile_source(source, target=target, options=options)


def machine_code(kernel, tmp_path):
    """Return (address, instruction) of every instruction."""
    import triton

    cubin = tmp_path / 'kernel.cubin'
    cubin.write_bytes(kernel.asm['cubin'])
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    dump = subprocess.run([tool, '--dump-sass', cubin], capture_output=True, text=True, check=True)
    lines = re.findall(r'^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);', dump.stdout, re.MULTILINE)
    return [(int(address, 16), text) for address, text in lines]


def loops(code):
    """Return the instructions of every loop."""
    jumps = ((at, re.search(r'\bBRA\b.* 0x([0-9a-f]+)', text)) for at, text in code)
    ends = [(int(jump[1], 16), at) for at, jump in jumps if jump and int(jump[1], 16) < at]
    return [[text for at, text in code if first <= at <= last] for first, last in ends]


MOST_SPILLS = 0.015  # of the instructions of a loop; none with a scale per 128 inputs or more
MATRIX_CODE = {8: ('HMMA', 'IMMA'), 9: ('HGMMA', 'IGMMA')}


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(is_interpreted, reason='the interpreter compiles nothing')
@pytest.mark.parametrize(
    ('chip', 'tokens', 'group_size', 'dtype'),
    [(chip, tokens, 128, torch.bfloat16) for chip in CHIPS for tokens in (1, 50, 512)]
    + [('h200', tokens, 4096, torch.float32) for tokens in (1, 512)]
    + [('orin', 50, 64, torch.float16), ('h200', 512, 64, torch.float16)]
    + [('orin', 512, 32, torch.bfloat16), ('h200', 1, 32, torch.bfloat16)],
    ids=str,
)
def test_the_code_uses_the_matrix_units_and_keeps_its_loops_in_registers(
    monkeypatch, tmp_path, chip, tokens, group_size, dtype
):
    chip = CHIPS[chip]
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))
    layout = MixedLayout((4096, 4096), group_size, (64, 1984, 1024, 960))
    kernel = compile_for(chip, tokens, layout, dtype)
    assert kernel.metadata.shared <= SHARED_BYTES[chip.capability] * 1024
    code = machine_code(kernel, tmp_path)
    for instruction in MATRIX_CODE[chip.capability[0]]:
        assert any(instruction in text for _, text in code), f'no {instruction}'
    products = [loop for loop in loops(code) if any('MMA' in text for text in loop)]
    assert len(products) >= 7  # 16 bits, and three ways to store codes in two types of input
    for loop in products:
        spills = [text for text in loop if re.search(r'\b(LDL|STL)\b', text)]
        allowed = MOST_SPILLS * len(loop) if group_size < 128 else 0
        assert len(spills) <= allowed, spills


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(is_interpreted, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('chip', ['a100', 'h200'])
@pytest.mark.parametrize('dtype', TYPES, ids=str)
def test_the_rounding_of_activations_compiles_and_stays_in_registers(
    monkeypatch, tmp_path, chip, dtype
):
    from vlaq_ros.kernels.triton_quantize import quantize_tokens

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))
    pointers = {'x': TYPES[dtype], 'codes': '*i8', 'steps': '*fp32'}
    pointers |= dict.fromkeys(('sums', 'precision'), '*i32')
    constants = {'SUM': 64, 'BLOCK': gpu.QUANTIZE_BLOCK}
    options = {'num_warps': 4}
    kernel = compile_kernel(quantize_tokens, CHIPS[chip], pointers, constants, options)
    code = machine_code(kernel, tmp_path)
    assert len(loops(code)) >= 2
    assert not [text for _, text in code if re.search(r'\b(LDL|STL)\b', text)]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no CUDA device')


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('activation_bits', [16, 8], ids=lambda bits: f'a{bits}')
@pytest.mark.parametrize('tokens', [1, 17, 50, 300])
@pytest.mark.parametrize('group_size', [32, 64, 128, 1000], ids=lambda size: f'g{size}')
def test_a_gpu_computes_the_definition(
    make_weight, definition, generator, dtype, activation_bits, tokens, group_size
):
    weight = make_weight((ALL_WIDTHS * 99)[:777], 1000, group_size)
    x = torch.randn(tokens, 1000, generator=generator).to(dtype)
    bias = torch.randn(777, generator=generator)
    packed = tuple(tensor.cuda() for tensor in gpu.pack(weight))
    seen = x.bfloat16().float() if activation_bits == 16 and dtype == torch.float32 else x.float()
    least_db = {torch.float32: 90, torch.float16: 55, torch.bfloat16: 42}[dtype]
    for cap in (8, 4):
        precision = torch.tensor([cap, activation_bits], dtype=torch.int32, device='cuda')
        first = gpu.run(x.cuda(), packed, weight.layout, precision, bias.cuda())
        again = gpu.run(x.cuda(), packed, weight.layout, precision, bias.cuda())
        assert torch.equal(first, again)  # also where programs share a sum
        expected = definition(seen, weight, cap, activation_bits, bias)
        error = (first.cpu().double() - expected).square().mean()
        assert 10 * torch.log10(expected.square().mean() / error) > least_db


@pytest.mark.gpu
@needs_cuda
@needs_triton
@pytest.mark.parametrize('tokens', [1, 100])
def test_one_recorded_graph_follows_the_precision(make_weight, generator, tokens):
    weight = make_weight([8] * 500, 1024, 128)
    packed = tuple(tensor.cuda() for tensor in gpu.pack(weight))
    precision = torch.tensor([8, 16], dtype=torch.int32, device='cuda')
    x = torch.randn(tokens, 1024, generator=generator).cuda().bfloat16()
    gpu.run(x, packed, weight.layout, precision, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gpu.run(x, packed, weight.layout, precision, None)
    for levels in ((8, 16), (4, 8), (8, 8), (4, 16)):
        precision.copy_(torch.tensor(levels, dtype=torch.int32))
        graph.replay()
        assert torch.equal(y, gpu.run(x, packed, weight.layout, precision, None))


@pytest.mark.gpu
@needs_cuda
@needs_triton
def test_a_precision_on_the_cpu_is_not_recorded(make_weight):
    weight = make_weight([8] * 64, 128, 128)
    packed = tuple(tensor.cuda() for tensor in gpu.pack(weight))
    precision = torch.tensor([8, 16], dtype=torch.int32)
    x = torch.ones(1, 128, device='cuda')
    gpu.run(x, packed, weight.layout, precision, None)
    with (
        pytest.raises(ValueError, match='move it to the GPU'),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        gpu.run(x, packed, weight.layout, precision, None)


def test_packing_takes_a_weight_whose_classes_are_all_empty():
    weight = MixedWeight.from_float(torch.ones(70, 40), [0] * 70, 40)
    store = Store(*gpu.pack(weight))
    assert [tensor.numel() for tensor in store[:5]] == [0] * 5
    assert store.tiles[:, 0].tolist() == [0, 0]
