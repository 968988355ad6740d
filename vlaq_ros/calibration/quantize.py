"""
`vlaq quantize`: pack a bundle by rounding its weights to nearest, without any data.

One width gives a uniform bundle. Several widths with a budget are shared out by relative weight
error, in tiles of output channels: that looks at no action, so it is a baseline and not a
calibration. `--nested` keeps a scale per group at 8 bits, so that the same bytes can be read at 4
bits while the policy runs; the error of both views is measured and recorded.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vlaq_ros.calibration.allocation import MENU, TILE, AllocationOptions, allocate
from vlaq_ros.calibration.artifact import (
    channel_histogram,
    check_destination,
    mean_bits,
    open_float_bundle,
    plan_of,
    refuse,
    software_versions,
    writing_to,
)
from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.policies.packing import write_packed_bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, layer_roles, load_float_model
from vlaq_ros.quant.mixed import CAPS, MixedWeight
from vlaq_ros.quant.scheme import ACTIVATION_BITS, CLIPS, WIDTHS, LayerScheme

METHOD = 'nearest'
WIDTH_CHOICES = WIDTHS[1:]


@dataclass(frozen=True)
class NearestOptions:
    """
    How weights are rounded.

    Attributes:
        widths: Bits an output channel may have; one number makes all alike.
        bits: Budget in bits per weight, scales included; needed with several widths.
        group_size: Neighbouring inputs that share a scale; None for one scale per channel.
        activation_bits: What the inputs of the packed layers are rounded to per token.
        clip: Rule of the scales.
        nested: Whether 8-bit channels are to be read at 4 bits, too.
    """

    widths: tuple[int, ...] = (8,)
    bits: float | None = None
    group_size: int | None = 64
    activation_bits: int = 16
    clip: str = 'mse'
    nested: bool = False

    def problems(self) -> list[str]:
        """Return everything that is wrong with these options."""
        found = []
        if unknown := [w for w in self.widths if w not in WIDTH_CHOICES]:
            found.append(f'--widths {unknown}: a channel can have one of {WIDTH_CHOICES} bits')
        if not self.widths or len(set(self.widths)) != len(self.widths):
            found.append(f'--widths {list(self.widths)}: give every width once')
        if len(self.widths) > 1 and self.bits is None:
            found.append('--widths: several widths need a budget: --bits 4')
        if len(self.widths) == 1 and self.bits is not None:
            found.append(f'--bits {self.bits:g}: one width leaves nothing to share out; drop it')
        if self.bits is not None and not self.bits > 0:
            found.append(f'--bits {self.bits:g}: must be positive')
        if self.nested and 8 not in self.widths:
            found.append('--nested: it is the 8-bit channels that are read at 4 bits: --widths 8')
        if self.nested and self.group_size is None:
            found.append('--nested: 4 bits need a scale per group: --group-size 64')
        if self.clip not in CLIPS:
            found.append(f'--clip {self.clip}: must be one of {CLIPS}')
        return found + group_size_problems(self.group_size)


def group_size_problems(group_size: int | None) -> list[str]:
    """Return why no kernel can run this group size."""
    if group_size is None or (group_size > 0 and group_size % 16 == 0):
        return []
    return [f'--group-size {group_size}: must be a multiple of 16, or none']


def quantize_bundle(bundle: Bundle, out: Path, options: NearestOptions) -> dict[str, Any]:
    """
    Write a packed bundle; nothing appears at `out` unless it loads and infers.

    Returns:
        The record of the bundle: options, sizes, and the relative error of the weights.

    Raises:
        SchemeError: The budget is below what the smallest width needs, or a weight cannot be
            scaled.
    """
    model = load_float_model(bundle)
    roles = layer_roles(model)
    floats = {
        name: model.get_submodule(name).weight.detach()
        for name, role in roles.items()
        if role in QUANTIZED_ROLES
    }
    widths = _widths(floats, options)
    weights = {
        name: MixedWeight.from_float(
            weight, widths[name], options.group_size or weight.shape[1], options.clip
        )
        for name, weight in floats.items()
    }
    bits = dict.fromkeys(floats, options.activation_bits)
    plan = plan_of(weights, bits)
    record = {
        'method': METHOD,
        'options': {
            'widths': list(options.widths),
            'budget_bits': options.bits,
            'group_size': options.group_size,
            'activation_bits': options.activation_bits,
            'clip': options.clip,
        },
        'mean_bits_per_weight': mean_bits(plan),
        'packed_bytes': sum(layer.nbytes for layer in plan),
        'channels': {str(w): count for w, count in channel_histogram(plan).items()},
        'weight_error': _view_errors(floats, weights, CAPS if options.nested else CAPS[:1]),
        'software': software_versions(),
    }
    write_packed_bundle(out, bundle, weights, bits, provenance=record, nested=options.nested)
    return record


def _widths(floats: Mapping[str, Tensor], options: NearestOptions) -> Mapping[str, Sequence[int]]:
    """Return the width of every output channel of every layer."""
    if len(options.widths) == 1:
        return {name: options.widths * len(weight) for name, weight in floats.items()}
    costs = {name: _relative_errors(weight, options) for name, weight in floats.items()}
    found = allocate(
        costs,
        {name: weight.shape[1] for name, weight in floats.items()},
        options.bits,
        options.group_size,
        AllocationOptions(tile=TILE, menu=options.widths),
    )
    return {name: widths.tolist() for name, widths in found.items()}


def _relative_errors(weight: Tensor, options: NearestOptions) -> np.ndarray:
    """Return the squared error of each channel at each width, as a share of its layer."""
    channels, inputs = weight.shape
    table = np.zeros((channels, len(MENU)))
    for column, bits in enumerate(MENU):
        scheme = LayerScheme(bits, options.group_size, clip=options.clip)
        rounded = MixedWeight.from_float(
            weight, scheme.channel_widths(channels), options.group_size or inputs, scheme.clip
        ).dequantize()
        table[:, column] = (rounded - weight).square().sum(1).double().numpy()
    return table / float(weight.double().square().sum())


def _view_errors(
    floats: Mapping[str, Tensor], weights: Mapping[str, MixedWeight], caps: Sequence[int]
) -> dict[str, float]:
    """Return cap -> error of all weights read so, relative to their own size."""
    total = sum(float(weight.double().square().sum()) for weight in floats.values())
    errors = {}
    for cap in caps:
        squares = (
            float((weights[name].dequantize(cap=cap) - weight).double().square().sum())
            for name, weight in floats.items()
        )
        errors[str(cap)] = (sum(squares) / total) ** 0.5
    return errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq quantize`."""
    parser.add_argument('--bundle', default='metaworld', help='folder or name of a float bundle')
    parser.add_argument(
        '--widths',
        type=parse_widths,
        default=(8,),
        metavar='W[,W...]',
        help=f'bits per output channel, from {WIDTH_CHOICES}; several need --bits (default: 8)',
    )
    parser.add_argument(
        '--bits',
        type=float,
        help='budget in bits per weight with scales, shared out by relative weight error: this '
        'looks at no action, `vlaq calibrate` does',
    )
    add_group_size(parser)
    parser.add_argument(
        '--activation-bits',
        type=int,
        choices=ACTIVATION_BITS,
        default=16,
        help='inputs of packed layers, rounded per token (default: %(default)s)',
    )
    parser.add_argument(
        '--clip', choices=CLIPS, default='mse', help='rule of the scales (default: %(default)s)'
    )
    parser.add_argument(
        '--nested', action='store_true', help='the 8-bit channels may be read at 4 bits, too'
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the packed bundle')
    parser.add_argument('--overwrite', action='store_true', help='replace a bundle in --out')


def add_group_size(parser: argparse.ArgumentParser) -> None:
    """Declare `--group-size`."""
    parser.add_argument(
        '--group-size',
        type=parse_group_size,
        default=64,
        metavar='N|none',
        help='neighbouring inputs that share a scale, a multiple of 16; none: one scale per '
        'output channel (default: %(default)s)',
    )


def parse_widths(text: str) -> tuple[int, ...]:
    """Return the numbers of `2,4,8`."""
    try:
        return tuple(int(part) for part in text.split(','))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: write numbers, such as 2,4,8') from error


def parse_group_size(text: str) -> int | None:
    """Return a number, or None of `none`."""
    if text == 'none':
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: write a number, or none') from error


def run(args: argparse.Namespace) -> int:
    """
    Pack a bundle; return the exit status.

    Raises:
        ConfigError: Options are wrong; all of them are listed.
    """
    options = NearestOptions(
        args.widths, args.bits, args.group_size, args.activation_bits, args.clip, args.nested
    )
    problems = options.problems()
    bundle = open_float_bundle(args.bundle, problems)
    problems += check_destination(args.out, args.overwrite)
    refuse(problems)
    with writing_to(args.out):
        record = quantize_bundle(bundle, args.out, options)
    print('\n'.join(describe(record, args.out)))
    return 0


def describe(record: Mapping[str, Any], out: Path) -> list[str]:
    """Return what was done, in a few lines."""
    channels = ', '.join(f'{count} x {w} bit' for w, count in record['channels'].items())
    lines = [
        f'packed to {record["mean_bits_per_weight"]:.3f} bits per weight, scales included '
        f'({record["packed_bytes"]:,} bytes; output channels: {channels})'
    ]
    for cap, error in record['weight_error'].items():
        read = 'all bits' if cap == '8' else f'{cap} bits of the 8-bit channels'
        lines.append(f'relative weight error, reading {read}: {100 * error:.3f} %')
    if record['options']['budget_bits'] is not None:
        lines.append('widths were shared out by weight error alone, blind to the actions')
    lines.append(f'written to {out}: try it with `vlaq inspect {out}`')
    return lines
