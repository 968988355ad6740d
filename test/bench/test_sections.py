"""Every section on tiny sizes: that what is timed computes the right thing."""

import pytest
import torch
from torch import nn

from vlaq_ros.bench import (
    ceilings,
    gpu,
    kernels,
    layers,
    machine,
    memory,
    policy,
    resident,
    stopwatch,
    switching,
)
from vlaq_ros.bench.layers import FrozenLinear, Stack, build, share, stage_calls, to_bfloat16
from vlaq_ros.bench.own_kernels import PRUNED, VARIANTS, channel_widths
from vlaq_ros.bench.plan import MEMORY_CASES, Job, Step

# relative error of a product with random normal weights, well above what was measured
MOST_ERROR = {2: 0.6, 4: 0.15, 8: 0.02, 16: 0.01, 32: 1e-5}
TINY = Stack(2, 64, 128, 4, 2, 6, 'decode', 2)
on_linux = pytest.mark.skipif(not resident.SMAPS.is_file(), reason='needs /proc of Linux')


def job(section, rivals=True, effort=(1, 0.0)):
    return Job(section, 1, '', rivals, effort, ())


@pytest.fixture(autouse=True)
def small_and_without_gradients(monkeypatch):
    monkeypatch.setattr(stopwatch, 'COLD_BYTES', 1)  # two copies of everything
    monkeypatch.setattr(ceilings, 'BUFFER_BYTES', 2 << 20)
    monkeypatch.setattr(ceilings, 'READ_BYTES', 1 << 20)
    monkeypatch.setattr(ceilings, 'ITERATIONS', 100)
    kernels._prepared.cache_clear()
    kernels._ceiling_cases.cache_clear()
    with torch.no_grad():
        yield


@pytest.fixture(scope='module')
def kernel_rows():
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(stopwatch, 'COLD_BYTES', 1)
        patch.setattr(ceilings, 'BUFFER_BYTES', 2 << 20)
        patch.setattr(ceilings, 'READ_BYTES', 1 << 20)
        step = Step('tiny', 1.0, {'in': 256, 'out': 96, 'tokens': 3})
        kernels._prepared.cache_clear()
        kernels._ceiling_cases.cache_clear()
        return {row['name']: row for row in kernels.measure_step(job('kernels'), step)}


@pytest.mark.parametrize('variant', VARIANTS, ids=lambda v: v.name)
def test_our_kernels_compute_the_product_that_is_timed(kernel_rows, variant):
    widths = [min(width, variant.cap) for width in variant.shares if 0 < width < 16]
    pruned = variant.shares.get(0, 0.0) ** 0.5
    assert kernel_rows[variant.name]['error'] < MOST_ERROR[min(widths, default=16)] + pruned


@pytest.mark.parametrize(
    ('name', 'bits'),
    [
        ('torch fp32', 32),
        ('torch bf16', 16),
        ('torch bf16 compiled, frozen', 16),
        ('torch dynamic int8 fbgemm', 8),
        ('torch dynamic int8 onednn', 8),
        ('torch _int_mm', 8),
        ('torch _weight_int8pack_mm', 8),
        ('torch _weight_int4pack_mm', 4),
        ('onnxruntime W2A8', 2),
        ('onnxruntime W4A8', 4),
        ('onnxruntime W8A8', 8),
        ('onnxruntime dynamic int8', 8),
        ('onnxruntime fp32', 32),
        ('openvino W4A8', 4),
        ('openvino W8A8', 8),
        ('openvino bf16', 16),
    ],
)
def test_rivals_compute_the_same_product_or_say_why_not(kernel_rows, name, bits):
    row = kernel_rows.get(name)
    if row is None:
        assert name.split()[0] in kernel_rows  # one row in place of a library that is missing
        assert 'not installed' in kernel_rows[name.split()[0]]['remark']
    elif row['seconds'] is None:
        assert row['remark']
    else:
        assert row['error'] < MOST_ERROR[bits]


def test_every_row_has_a_positive_time_and_floor(kernel_rows):
    timed = [row for row in kernel_rows.values() if row.get('seconds') is not None]
    assert len(timed) >= len(VARIANTS) + 2
    for row in timed:
        assert 0 < row['low'] <= row['seconds'] <= row['high']
        assert row['floor_s'] > 0 or row['name'] == PRUNED
    assert kernel_rows['ceilings']['read_bytes_s'] > 0


def test_widths_are_spread_over_the_channels_in_the_given_shares():
    widths = channel_widths({0: 0.05, 4: 0.70, 8: 0.20, 16: 0.05}, 1000)
    assert [widths.count(w) for w in (0, 4, 8, 16)] == [50, 700, 200, 50]
    assert widths != sorted(widths)
    assert channel_widths({2: 0.2, 4: 0.6, 8: 0.2}, 7).count(4) >= 4


class TestStacks:
    def test_a_copy_shares_the_weights_and_not_their_fate(self):
        model = build(TINY, 2)
        other = share(model)
        weight = model.layers[0].mlp.up_proj.weight
        assert other.layers[0].mlp.up_proj.weight.data_ptr() == weight.data_ptr()
        to_bfloat16(other)
        assert model.layers[0].mlp.up_proj.weight.dtype == torch.float32

    def test_a_step_leaves_the_cache_as_it_was(self):
        model = build(TINY, 2)
        _, on_top = stage_calls(model, TINY, torch.float32)
        first, second = on_top(), on_top()
        assert torch.equal(first.last_hidden_state, second.last_hidden_state)
        assert first.last_hidden_state.shape == (1, TINY.step_tokens, TINY.hidden)

    def test_every_model_computes_what_the_float_model_does(self):
        original = build(TINY, 2)
        exact, _ = stage_calls(original, TINY, torch.float32)
        expected = exact().last_hidden_state
        for label, make in layers.models().items():
            model, dtype = make(share(original))
            call, _ = stage_calls(model, TINY, dtype)
            found = call().last_hidden_state.float()
            error = (found - expected).norm() / expected.norm()
            assert error < {'W2A8': 2.0, 'W4': 0.4, 'mix': 0.8}.get(
                next((k for k in ('W2A8', 'W4', 'mix') if label.startswith(k)), ''), 0.1
            ), label

    def test_a_frozen_layer_is_the_bfloat16_layer(self):
        layer = nn.Linear(64, 32).bfloat16()
        x = torch.randn(5, 64).bfloat16()
        torch.testing.assert_close(FrozenLinear(layer)(x), layer(x), rtol=0.02, atol=0.02)

    def test_both_stages_of_all_models_are_reported(self, monkeypatch):
        monkeypatch.setitem(layers.STACKS, 'tiny', TINY)
        monkeypatch.setattr(layers, 'ROUND_S', 0.0)
        rows = list(layers.measure_step(job('layers'), Step('t', 1.0, {'stack': 'tiny'})))
        assert {row['stage'] for row in rows} == {'prefill', 'decode'}
        assert {row['name'] for row in rows} == set(layers.models())


@on_linux
class TestMemory:
    @pytest.mark.parametrize('case', MEMORY_CASES)
    def test_a_layer_comes_back_from_its_file(self, case, tmp_path):
        if case.split()[0] in ('onnxruntime', 'openvino') and not machine.is_installed(
            case.split()[0]
        ):
            pytest.skip(f'{case.split()[0]} is not installed')
        loader = memory.loaders(1)[case]
        weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0))
        loader.write(weight, tmp_path / 'layer')
        x = torch.randn(1, 256, generator=torch.Generator().manual_seed(1))
        found = loader.load(tmp_path / 'layer')(x)
        found = torch.as_tensor(found[0] if isinstance(found, list) else found).float()
        exact = x @ weight.T
        error = (found - exact).norm() / exact.norm()
        assert error < (0.4 if case.startswith('mix') else MOST_ERROR[int(loader.bits)])

    def test_the_row_counts_all_layers(self):
        values = {'case': 'W4', 'in': 256, 'out': 128, 'layers': 3}
        (row,) = memory.measure_step(job('memory'), Step('W4', 1.0, values))
        assert row['weights'] == 3 * 256 * 128
        assert row['ideal_bytes'] == row['weights'] / 2
        assert row['peak_bytes'] >= 0


@on_linux
def test_switching_reports_both_directions():
    step = Step('tiny', 1.0, {'in': 128, 'out': 64})
    (row,) = switching.measure_step(job('switching', effort=(6, 0.0)), step)
    for name in ('first_call_s', 'later_call_s', 'steady_call_s'):
        assert set(row[name]) == {4, 8}
        assert all(seconds > 0 for seconds in row[name].values())
    assert row['switch_s'] > 0


class TestPolicy:
    def test_models_take_turns_after_one_warm_up_each(self):
        order = []

        def runner(name):
            def infer():
                order.append(name)
                return {'prefill': 0.5}

            return policy.Runner(name, 'flow', infer)

        wall, cpu = policy.infer_in_turn([runner('a'), runner('b')], 2)
        assert ''.join(order) == 'ababab'
        assert wall['a', 'flow']['prefill'] == [0.5, 0.5]
        assert len(cpu['b', 'flow']) == len(wall['b', 'flow'][policy.TOTAL]) == 2

    def test_tails_need_enough_samples(self):
        assert policy.percentiles([1.0] * 19)['p95'] is None
        found = policy.percentiles([float(i) for i in range(1, 102)])
        assert (found['p50'], found['p95'], found['p99']) == (51.0, 96.0, 100.0)

    def test_the_ratio_is_to_the_best_bf16_of_the_same_head(self):
        cpu = {('bf16', 'flow'): [4.0], ('w4', 'flow'): [1.0], ('bf16', 'token'): [0.1]}
        runner = policy.Runner('w4', 'flow', dict)
        assert policy._against_bf16(cpu, runner) == 4.0

    def test_the_shipped_policy_is_measured_by_stage_at_every_precision(self):
        step = Step('shipped', 1.0, {'model': 'shipped'})
        rows = list(policy.measure_step(job('policy'), step))
        assert {'fp32', 'bf16', 'w8', 'w4'} <= {row['precision'] for row in rows}
        for row in rows:
            stages = set(row['stages'])
            assert {'preprocess', 'prefill', policy.TOTAL} < stages
            assert ('denoise' if row['head'] == 'flow' else 'decode') in stages


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_without_a_gpu_one_row_says_so_and_no_time_is_given():
    step = Step('tiny', 1.0, {'in': 128, 'out': 64, 'tokens': 1})
    (row,) = gpu.measure_step(job('gpu'), step)
    assert row['seconds'] is None
    assert 'no CUDA device' in row['reason']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_a_gpu_cublas_and_our_kernel_are_timed():
    step = Step('tiny', 1.0, {'in': 256, 'out': 128, 'tokens': 32})
    rows = {row['name']: row for row in gpu.measure_step(job('gpu'), step)}
    assert rows[gpu.CUBLAS]['seconds'] > 0
    assert rows['W4A8']['seconds'] > 0, rows['W4A8'].get('remark')


def test_the_machine_is_described_with_versions():
    found = machine.describe_machine()
    assert found['cores'] >= 1
    assert found['versions']['torch'] == torch.__version__
    assert not machine.is_installed('no_such_package')
