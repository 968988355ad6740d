"""Recording and replaying; without a GPU with a recorder that has the semantics of CUDA's."""

from typing import NamedTuple

import pytest
import torch

from vlaq_ros.nn.cuda_graph import GraphedCall, graphed, refusal

EXAMPLE = {'x': torch.ones(2, 3), 'index': torch.zeros(2, dtype=torch.int64)}


class Result(NamedTuple):
    total: torch.Tensor
    name: str


def _tensors(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = outputs.values()
    return [t for part in outputs if not isinstance(part, str) for t in _tensors(part)]


def record_on_cpu(function):
    """Run once, and on replay again into the same memory."""
    outputs = function()

    def replay():
        for old, new in zip(_tensors(outputs), _tensors(function())):
            old.copy_(new)

    return outputs, replay


def test_a_replay_computes_with_the_new_inputs():
    call = GraphedCall(lambda x, index: x * 2 + index[:, None], EXAMPLE, record_on_cpu)
    x, index = torch.randn(2, 3), torch.tensor([4, 5])
    assert torch.equal(call(x=x, index=index), x * 2 + index[:, None])
    assert torch.equal(call(index=index, x=-x), -x * 2 + index[:, None])


def test_the_example_and_the_inputs_stay_as_they_are():
    example = {'x': torch.ones(3)}
    call = GraphedCall(lambda x: x.mul_(2), example, record_on_cpu)
    x = torch.full((3,), 5.0)
    call(x=x)
    assert torch.equal(example['x'], torch.ones(3))
    assert torch.equal(x, torch.full((3,), 5.0))


def test_a_result_survives_the_next_call():
    call = GraphedCall(lambda x: x + 1, {'x': torch.zeros(2)}, record_on_cpu)
    first = call(x=torch.zeros(2))
    call(x=torch.full((2,), 9.0))
    assert torch.equal(first, torch.ones(2))


def test_tensors_in_tuples_lists_and_dicts_are_copied_out():
    def function(x):
        return {'pair': (x, [x + 1]), 'result': Result(x + 2, 'sum')}

    call = GraphedCall(function, {'x': torch.zeros(1)}, record_on_cpu)
    out = call(x=torch.ones(1))
    call(x=torch.zeros(1))
    assert type(out['pair']) is tuple
    assert type(out['pair'][1]) is list
    assert isinstance(out['result'], Result)
    assert out['result'].name == 'sum'
    assert [t.item() for t in _tensors(out)] == [1, 2, 3]


def test_what_is_written_in_place_is_seen_by_the_next_replay():
    precision = torch.tensor([8, 16])
    call = GraphedCall(lambda x: x * precision[0], {'x': torch.ones(1)}, record_on_cpu)
    assert call(x=torch.ones(1)) == 8
    precision.copy_(torch.tensor([4, 16]))
    assert call(x=torch.ones(1)) == 4


def test_inputs_of_other_sizes_are_all_named():
    call = GraphedCall(lambda x, index: x, EXAMPLE, record_on_cpu)
    with pytest.raises(ValueError, match='recorded for') as raised:
        call(x=torch.ones(2, 4), mask=torch.ones(1))
    assert str(raised.value) == (
        'the inputs are not those that the CUDA graph was recorded for:\n'
        '  mask: unknown\n'
        '  x: float32 [2, 4], recorded for float32 [2, 3]\n'
        '  index: missing\n'
        'Record another graph for them.'
    )


def test_a_wrong_type_is_not_cast_silently():
    call = GraphedCall(lambda x, index: x, EXAMPLE, record_on_cpu)
    with pytest.raises(ValueError, match=r'x: float64 \[2, 3\]'):
        call(x=torch.ones(2, 3, dtype=torch.float64), index=EXAMPLE['index'])


def test_no_gradient_is_kept():
    weight = torch.ones(3, requires_grad=True)
    call = GraphedCall(lambda x: x * weight, {'x': torch.ones(3)}, record_on_cpu)
    assert not call(x=torch.ones(3)).requires_grad


def test_without_cuda_the_function_itself_is_returned_with_the_reason():
    def function(x):
        return x

    choice = graphed(function, {'x': torch.ones(1)})
    assert choice == (function, False, 'CUDA graphs need a CUDA device, not cpu')
    assert refusal(torch.device('cpu')) == choice.reason


def test_inputs_on_no_or_several_devices_are_refused():
    with pytest.raises(ValueError, match='got none'):
        graphed(lambda: None, {})
    with pytest.raises(ValueError, match='x on cpu, y on meta'):
        graphed(lambda x, y: x, {'x': torch.ones(1), 'y': torch.ones(1, device='meta')})


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no CUDA device')


@pytest.mark.gpu
@needs_cuda
def test_a_recorded_function_is_replayed_on_the_gpu():
    choice = graphed(lambda x: (x @ x.T).relu(), {'x': torch.zeros(8, 8, device='cuda')})
    assert choice.is_graph
    assert choice.reason == 'recorded for x float32 [8, 8]'
    x = torch.randn(8, 8)
    torch.testing.assert_close(choice.call(x=x.cuda()), (x @ x.T).relu().cuda())


@pytest.mark.gpu
@needs_cuda
def test_a_function_that_looks_at_values_is_returned_as_it_is():
    def function(x):
        return x + x.sum().item()

    choice = graphed(function, {'x': torch.zeros(2, device='cuda')})
    assert not choice.is_graph
    assert choice.call is function
    assert choice.reason.startswith('CUDA could not record it: ')
    assert torch.ones(1, device='cuda').item() == 1  # the device is still usable
