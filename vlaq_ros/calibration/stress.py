"""
`vlaq stress`: a synthetic variant of a policy with outlier channels in its activations.

A small policy trained for minutes has no massive activations, so methods that repair them have
nothing to show on it. Here chosen channels behind every norm and product are scaled up by a power
of two and the columns that read them scaled down: the same function, but hard for one activation
scale per token and for one weight scale per channel, as in large language models (Dettmers et al.
2022, arXiv 2208.07339; Xiao et al. 2022, arXiv 2211.10438). It says nothing about real policies:
its name, its provenance and every table made of it say that it is synthetic.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vlaq_ros.calibration.artifact import open_float_bundle, writing_to
from vlaq_ros.calibration.reference import reference_structure
from vlaq_ros.calibration.structure import Stream
from vlaq_ros.calibration.transforms import DiagonalScale, FoldedModel
from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.bundle import Bundle, open_bundle, write_bundle
from vlaq_ros.policies.packing import packed_model
from vlaq_ros.policies.reference import golden_actions, load_float_model

SUFFIX = '-synthetic-outliers'


def with_outliers(
    model: nn.Module, streams: tuple[Stream, ...], channels: int, factor: float, seed: int
) -> dict[str, torch.Tensor]:
    """
    Return the parameters that change, by name; the model itself stays as it is.

    Args:
        model: Full precision.
        streams: What its linear layers read and write.
        channels: How many channels of every stream that cannot be mixed become outliers.
        factor: How much larger they become; a power of two, so that nothing is rounded.
        seed: Of the choice of channels.

    Raises:
        ConfigError: The number of channels or the factor is out of range; both are listed.
    """
    scaled = [stream for stream in streams if stream.mixes == 1]
    widths = [model.get_submodule(stream.readers[0]).in_features for stream in scaled]
    problems = []
    if not 1 <= channels <= min(widths, default=0):
        problems.append(f'--channels {channels}: must be from 1 to {min(widths, default=0)}')
    if not (factor > 1.0 and math.log2(factor).is_integer()):
        problems.append(f'--factor {factor:g}: must be a power of two above 1')
    if problems:
        raise ConfigError('\n'.join(problems))
    generator = torch.Generator().manual_seed(seed)
    folded = FoldedModel(model)
    for stream, width in zip(scaled, widths):
        shrink = torch.ones(width, dtype=torch.float64)
        shrink[torch.randperm(width, generator=generator)[:channels]] = 1.0 / factor
        folded.fold(stream, DiagonalScale(shrink))
    return folded.parameters({})


def write_stress_bundle(
    bundle: Bundle, out: Path, channels: int, factor: float, seed: int
) -> Bundle:
    """
    Write the variant of a float bundle; its actions are those of the bundle but for rounding.

    Raises:
        ConfigError: See `with_outliers`.
        BundleError: The bundle has no golden instructions, or `out` cannot be written.
    """
    model = load_float_model(bundle)
    changed = with_outliers(model, reference_structure(model).streams, channels, factor, seed)
    state = packed_model(bundle, {}, {}, changed).state_dict()
    recipe = {'channels_per_activation': channels, 'factor': factor, 'seed': seed}
    note = {'synthetic_outliers': {**recipe, 'of_bundle_sha256': bundle.digest}}
    spec = replace(
        bundle.spec,
        name=bundle.spec.name + SUFFIX,
        provenance={**bundle.spec.provenance, **note},
    )
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with writing_to(out):
        write_bundle(out, spec, bundle.config, tensors)
        instructions = tuple(bundle.golden()['instructions'])
        golden = golden_actions(open_bundle(out), instructions)
        write_bundle(out, spec, bundle.config, tensors, golden)
    return open_bundle(out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq stress`."""
    parser.add_argument('--bundle', default='metaworld', help='folder or name of a float bundle')
    parser.add_argument('--channels', type=int, default=3, help='outliers per activation')
    parser.add_argument('--factor', type=float, default=32.0, help='a power of two')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of channels')
    parser.add_argument('--out', type=Path, required=True, help='folder of the variant')


def run(args: argparse.Namespace) -> int:
    """Write the variant; return 0."""
    problems: list[str] = []
    bundle = open_float_bundle(args.bundle, problems)
    if problems or bundle is None:
        raise ConfigError('\n'.join(problems))
    written = write_stress_bundle(bundle, args.out, args.channels, args.factor, args.seed)
    before, after = bundle.golden()['actions'], written.golden()['actions']
    change = max(
        float((torch.tensor(after[head]) - torch.tensor(before[head])).abs().max())
        for head in before
    )
    print(
        f'{args.out}: {written.spec.name}, a synthetic stress model; its actions differ from '
        f'those of {bundle.spec.name} by at most {change:.2g}'
    )
    return 0
