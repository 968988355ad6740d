"""
Every parameter of the calibration node: type, default, unit, bounds, effect.

`config/calibration_node.yaml` shows the same table with the same defaults; a test keeps them
equal. All of them are read when a calibration starts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.ros.parameters import Applies, parameter


@dataclass(frozen=True)
class CalibrationParameters:
    """Parameters of the calibration node; those of `vlaq calibrate` have the same names."""

    bag: str = parameter(
        '',
        'Recordings to calibrate from, separated by spaces; empty: record from the topics',
        applies=Applies.LIVE,
    )
    collect_s: float = parameter(
        60.0,
        'How long to record from the topics when no bag is given, to <out>.recording; a smaller '
        'value ends a recording that is under way',
        unit='s',
        low=0.1,
        high=86400.0,
        applies=Applies.LIVE,
    )
    image_transport: str = parameter(
        'raw',
        'Record <camera>/image_raw (`raw`) or <camera>/image_raw/compressed (`compressed`)',
        choices=('raw', 'compressed'),
        applies=Applies.LIVE,
    )
    policy: str = parameter(
        'policy', 'Policy node whose outputs are recorded as well', applies=Applies.LIVE
    )
    bundle: str = parameter(
        'metaworld',
        'Float bundle to quantize: directory, or name of a shipped one',
        applies=Applies.LIVE,
    )
    method: str = parameter(
        'auto', 'Calibration method; `vlaq calibrate --help` lists them', applies=Applies.LIVE
    )
    bits: float = parameter(
        4.0,
        'Budget per weight of the quantized layers, scales included',
        unit='bit',
        low=0.1,
        high=16.0,
        applies=Applies.LIVE,
    )
    group_size: int = parameter(
        64,
        'Neighbouring inputs that share a scale, a multiple of 16; 0: one scale per channel',
        low=0,
        high=65536,
        applies=Applies.LIVE,
    )
    activation_bits: int = parameter(
        16,
        'What the inputs of packed layers are rounded to per token: 2, 4, 8 or 16',
        unit='bit',
        low=2,
        high=16,
        applies=Applies.LIVE,
    )
    out: str = parameter(
        '', 'Directory of the packed bundle; the report goes to <out>.report', applies=Applies.LIVE
    )
    samples: int = parameter(
        128, 'Observations to calibrate with', low=1, high=1000000, applies=Applies.LIVE
    )
    held_out: int = parameter(
        64,
        'Observations of other episodes to judge with',
        low=1,
        high=1000000,
        applies=Applies.LIVE,
    )
    seed: int = parameter(
        0, 'Of every random choice', low=0, high=2147483647, applies=Applies.LIVE
    )
    heads: str = parameter(
        '',
        'Action heads that count, separated by spaces; empty: all',
        applies=Applies.LIVE,
    )
    options: str = parameter(
        '', 'Options of the method, separated by spaces: `mode=paper`', applies=Applies.LIVE
    )
    instruction: str = parameter(
        '', 'Sentence of all bags, instead of those in them', applies=Applies.LIVE
    )
    resume: bool = parameter(
        False, 'Go on where an earlier calibration to <out> was interrupted', applies=Applies.LIVE
    )
    overwrite: bool = parameter(
        False, 'Begin anew, and replace a packed bundle at <out>', applies=Applies.LIVE
    )
    auto_start: bool = parameter(
        False, 'Start as soon as the node is active', applies=Applies.START
    )
    autostart: bool = parameter(
        False, 'Configure and activate without a lifecycle manager', applies=Applies.START
    )

    def contradictions(self) -> Iterator[str]:
        """Yield what the bounds of single parameters cannot say."""
        if self.resume and self.overwrite:
            yield "parameters 'resume' and 'overwrite' are both true: choose one"
        if self.group_size % 16:
            yield f"parameter 'group_size' = {self.group_size} must be a multiple of 16"

    def arguments(self, bags: list[str]) -> list[str]:
        """Return the options of `vlaq calibrate` that say the same, for these bags."""
        group = str(self.group_size) if self.group_size else 'none'
        given = ['--bag', *bags, '--bundle', self.bundle, '--method', self.method]
        given += ['--bits', str(self.bits), '--group-size', group, '--out', self.out]
        given += ['--activation-bits', str(self.activation_bits), '--seed', str(self.seed)]
        given += ['--samples', str(self.samples), '--held-out', str(self.held_out)]
        given += ['--instruction', self.instruction] if self.instruction else []
        given += ['--heads', *self.heads.split()] if self.heads.split() else []
        given += ['--option', *self.options.split()] if self.options.split() else []
        given += ['--resume'] if self.resume else []
        given += ['--overwrite'] if self.overwrite else []
        return given
