"""Transforms: the policy computes the same in float64, folded or applied online."""

import copy

import pytest
import torch

from vlaq_ros.calibration.reference import ReferenceBatch, ReferenceForward
from vlaq_ros.calibration.structure import Stream, Writer
from vlaq_ros.calibration.transforms import (
    BlockRotation,
    DiagonalScale,
    FoldedModel,
    Permutation,
    hadamard,
)
from vlaq_ros.errors import SchemeError


def channels_of(stream):
    return stream.writers[0].stop - stream.writers[0].start


def transform_for(stream, kind, generator):
    channels = channels_of(stream)
    if kind == 'scale':
        return DiagonalScale(torch.rand(channels, generator=generator).double() * 3 + 0.1)
    block = min(stream.mixes, 16)
    if kind == 'rotation':
        return BlockRotation(hadamard(block))
    order = torch.cat(
        [start + torch.randperm(block, generator=generator) for start in range(0, channels, block)]
    )
    return Permutation(order, block)


def actions_in_double(context, model, spec):
    batch = context.batches[0]
    images = {name: image.double() for name, image in batch.images.items()}
    forward = ReferenceForward(model, spec, ('flow', 'token'))
    with torch.no_grad():
        return forward(ReferenceBatch(images, batch.state.double(), batch.words))


def spec_of(context):
    return context.forward._spec


@pytest.mark.parametrize('kind', ['scale', 'rotation', 'permutation'])
def test_folding_into_every_stream_changes_no_action(context, kind):
    generator = torch.Generator().manual_seed(2)
    folded = FoldedModel(context.model)
    streams = [s for s in context.structure.streams if kind == 'scale' or s.mixes > 1]
    assert len(streams) >= 5
    for stream in streams:
        folded.fold(stream, transform_for(stream, kind, generator))
    model = copy.deepcopy(context.model).double()
    expected = actions_in_double(context, model, spec_of(context))
    parameters = dict(model.named_parameters())
    changed = 0
    for stream in streams:
        for name in (*(f'{r}.weight' for r in stream.readers), *(w[0] for w in stream.writers)):
            changed += not torch.equal(parameters[name].data, folded.value(name))
            parameters[name].data = folded.value(name)
    assert changed >= len(streams)
    found = actions_in_double(context, model, spec_of(context))
    for head, actions in expected.items():
        torch.testing.assert_close(found[head], actions, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize('kind', ['scale', 'rotation', 'permutation'])
def test_online_and_folded_are_inverse(context, kind):
    stream = next(s for s in context.structure.streams if s.mixes > 1)
    generator = torch.Generator().manual_seed(3)
    transform = transform_for(stream, kind, generator)
    x = torch.randn(5, channels_of(stream), generator=generator).double()
    weight = torch.randn(7, channels_of(stream), generator=generator).double()
    y = transform.apply_online(x) @ transform.fold_reader(weight).T
    torch.testing.assert_close(y, x @ weight.T, rtol=0.0, atol=1e-12)
    assert not torch.allclose(transform.apply_online(x), x)


def test_the_second_moment_follows_the_activation(context):
    stream = next(s for s in context.structure.streams if s.mixes > 1)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(100, channels_of(stream), generator=generator).double()
    folded = FoldedModel(context.model)
    turned = x
    for kind in ('scale', 'rotation'):
        transform = transform_for(stream, kind, generator)
        folded.fold(stream, transform)
        turned = transform.apply_online(turned)
    moment = folded.second_moment(stream.readers[0], x.T @ x / 100)
    torch.testing.assert_close(moment, turned.T @ turned / 100)


def test_identities_change_nothing(context):
    folded = FoldedModel(context.model)
    stream = next(s for s in context.structure.streams if s.mixes > 1)
    folded.fold(stream, DiagonalScale(torch.ones(channels_of(stream))))
    folded.fold(stream, BlockRotation(torch.eye(stream.mixes)))
    folded.fold(stream, Permutation(torch.arange(channels_of(stream)), stream.mixes))
    for reader in stream.readers:
        original = context.model.get_submodule(reader).weight
        assert torch.equal(folded.weight(reader), original)


def test_a_rotation_that_would_need_the_run_time_is_refused(context):
    behind_norm = next(s for s in context.structure.streams if s.mixes == 1)
    folded = FoldedModel(context.model)
    with pytest.raises(SchemeError, match='BlockRotation over 8 channels.* at run time'):
        folded.fold(behind_norm, BlockRotation(hadamard(8)))
    assert folded.parameters({}) == {}


def test_a_norm_gain_with_an_offset_takes_the_scale():
    context = type('Context', (), {})()
    context.model = torch.nn.ModuleDict(
        {'norm': torch.nn.LayerNorm(4), 'fc': torch.nn.Linear(4, 2)}
    )
    stream = Stream(('fc',), (Writer('norm.bias', 0, 4, offset=1.0),))
    folded = FoldedModel(context.model)
    folded.fold(stream, DiagonalScale(torch.full((4,), 2.0)))
    assert torch.equal(folded.value('norm.bias'), torch.full((4,), -0.5).double())


@pytest.mark.parametrize('size', [0, 3, 12])
def test_hadamard_needs_a_power_of_two(size):
    with pytest.raises(SchemeError, match=f'size {size} needs a power of two'):
        hadamard(size)


def test_what_is_no_transform_is_refused():
    with pytest.raises(SchemeError, match='2 of 3 are not'):
        DiagonalScale(torch.tensor([1.0, 0.0, torch.inf]))
    with pytest.raises(SchemeError, match='not orthogonal'):
        BlockRotation(torch.ones(2, 2))
    with pytest.raises(SchemeError, match='within blocks of 2'):
        Permutation(torch.tensor([0, 2, 1, 3]), 2)
    with pytest.raises(SchemeError, match='within blocks of 4'):
        Permutation(torch.tensor([0, 0, 1, 3]), 4)
