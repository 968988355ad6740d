"""What a calibration is asked to do, and whether that can be done: all is checked first."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlaq_ros.calibration.allocation import TILE, least_bits
from vlaq_ros.calibration.artifact import check_destination, open_float_bundle
from vlaq_ros.calibration.methods import (
    BEST,
    bind_method,
    find_method,
    layout_is_its_own,
    option_names,
)
from vlaq_ros.calibration.quantize import group_size_problems
from vlaq_ros.calibration.recordings import BagRecording, open_bags
from vlaq_ros.calibration.samples import SamplePlan
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.errors import BagError, ConfigError, VlaqError, unknown_name
from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, layer_roles, load_float_model
from vlaq_ros.quant.scheme import ACTIVATION_BITS

WORK_SUFFIX, REPORT_SUFFIX = '.work', '.report'
_MOST_BITS = 16.0


@dataclass(frozen=True)
class CalibrationJob:
    """
    A calibration as it was asked for.

    Attributes:
        bags: Recordings of the robot at work.
        out: Folder of the packed bundle; the report lies next to it.
        bundle: Float bundle: folder, or name of a shipped one.
        method: One of `methods.METHODS`.
        bits: Budget in bits per weight of the quantized layers, scales included.
        group_size: Neighbouring inputs that share a scale; None: one scale per output channel.
        activation_bits: What the inputs of packed layers are rounded to per token.
        samples: Observations to calibrate with.
        held_out: Observations of other episodes to judge with.
        seed: Of every random choice.
        heads: Action heads that count; all of the bundle when empty.
        tolerance: What is good enough on the held-out samples.
        promotions: Most steps back towards more bits when the tolerance is missed.
        options: Options of the method, by name.
        topics: Stream -> topic of the bags, for those that are called otherwise.
        instruction: The sentence of all bags, instead of those in them.
        work: Folder of finished parts; None: `<out>.work`, removed at the end.
        resume: Whether parts of a run that was interrupted are used.
        overwrite: Whether a packed bundle at `out` is replaced.
    """

    bags: tuple[Path, ...]
    out: Path
    bundle: str = 'metaworld'
    method: str = BEST
    bits: float = 4.0
    group_size: int | None = 64
    activation_bits: int = 16
    samples: int = 128
    held_out: int = 64
    seed: int = 0
    heads: tuple[str, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)
    promotions: int = 16
    options: Mapping[str, str] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)
    instruction: str = ''
    work: Path | None = None
    resume: bool = False
    overwrite: bool = False

    @property
    def work_folder(self) -> Path:
        """Where finished parts are kept."""
        return self.work or self.out.with_name(f'{self.out.name}{WORK_SUFFIX}')

    @property
    def report_folder(self) -> Path:
        """Where the report goes."""
        return self.out.with_name(f'{self.out.name}{REPORT_SUFFIX}')


@dataclass(frozen=True)
class CheckedJob:
    """
    A calibration that can be begun.

    Attributes:
        job: What was asked for.
        bundle: The policy.
        recordings: The bags, opened.
        bag_files: Bag -> file -> sha256.
        plan: How samples are drawn.
        heads: Action heads that count.
    """

    job: CalibrationJob
    bundle: Bundle
    recordings: tuple[BagRecording, ...]
    bag_files: Mapping[str, Mapping[str, str]]
    plan: SamplePlan
    heads: tuple[str, ...]


def check_job(job: CalibrationJob) -> CheckedJob:
    """
    Check everything that can be checked before a message is decoded.

    Raises:
        ConfigError: Anything is missing, unknown, out of range or does not fit; all is listed.
    """
    problems: list[str] = []
    bundle = open_float_bundle(job.bundle, problems)
    problems += check_destination(job.out, job.overwrite)
    problems += _interrupted(job)
    problems += group_size_problems(job.group_size)
    problems += _range_problems(job)
    try:
        bind_method(job.method, job.options)
    except VlaqError as error:
        problems += [f'--method: {line}' for line in str(error).splitlines()]
    else:
        if find_method(job.method).is_nested and job.group_size is None:
            problems.append(
                f'--group-size none: {job.method} is read at 4 bits, too, which need a scale per '
                'group: --group-size 64'
            )
        if bundle is not None and not problems:
            problems += _budget_problems(job, bundle)
    heads = job.heads or (bundle.spec.heads if bundle else ())
    if bundle is not None:
        problems += [
            f'--heads: {unknown_name(f"head of bundle {bundle.spec.name!r}", head, known)}'
            for known in [bundle.spec.heads]
            for head in heads
            if head not in known
        ]
    plan = _plan(job, problems)
    recordings: Sequence[BagRecording] = ()
    if bundle is not None:
        try:
            recordings = open_bags(
                job.bags, bundle.spec, names=job.topics, instruction=job.instruction
            )
        except VlaqError as error:
            problems += [f'--bag: {error}']
    if problems or bundle is None or plan is None:
        raise ConfigError('nothing was run:\n  ' + '\n  '.join(problems))
    files = {r.name: bag_digests(path) for r, path in zip(recordings, job.bags)}
    return CheckedJob(job, bundle, tuple(recordings), files, plan, tuple(heads))


def bag_digests(path: Path) -> dict[str, str]:
    """
    Return file -> sha256 of a bag.

    Raises:
        BagError: A file cannot be read.
    """
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    found = {}
    for file in files:
        digest = hashlib.sha256()
        try:
            with file.open('rb') as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise BagError(f'{file} cannot be read: {error.strerror}') from error
        found[file.name] = digest.hexdigest()
    return found


def _range_problems(job: CalibrationJob) -> list[str]:
    found = []
    if not 0.0 < job.bits <= _MOST_BITS:
        found.append(f'--bits {job.bits:g}: must be above 0 and at most {_MOST_BITS:g}')
    if job.activation_bits not in ACTIVATION_BITS:
        found.append(f'--activation-bits {job.activation_bits}: must be one of {ACTIVATION_BITS}')
    if job.promotions < 0:
        found.append(f'--promotions {job.promotions}: must be 0 or more')
    return found


def _budget_problems(job: CalibrationJob, bundle: Bundle) -> list[str]:
    """Return why the method cannot meet the budget whatever the bags hold."""
    if layout_is_its_own(job.method, job.options):
        return []
    model = load_float_model(bundle)
    pruned = float(job.options.get('prune_share', option_names(job.method).get('prune_share', 0)))
    shapes = (
        model.get_submodule(name).weight.shape
        for name, role in layer_roles(model).items()
        if role in QUANTIZED_ROLES
    )
    tile = int(job.options.get('tile', TILE))
    if tile < 1:
        return [f'--option tile={tile} must be at least 1']
    least = least_bits(shapes, job.group_size, find_method(job.method).least_bits, tile, pruned)
    if job.bits >= least:
        return []
    group = 'none' if job.group_size is None else job.group_size
    return [
        f'--bits {job.bits:g}: {job.method} needs at least {least:.3f} with --group-size {group}, '
        'as scales count; raise it, or let more inputs share a scale'
    ]


def _plan(job: CalibrationJob, problems: list[str]) -> SamplePlan | None:
    try:
        return SamplePlan(job.samples, job.held_out, seed=job.seed)
    except VlaqError as error:
        problems.append(f'--samples, --held-out: {error}')
        return None


def _interrupted(job: CalibrationJob) -> list[str]:
    if job.work is not None or job.resume or job.overwrite or not job.work_folder.exists():
        return []
    return [
        f'--out {job.out}: {job.work_folder} holds parts of a run that was interrupted; use them '
        'with --resume, or begin anew with --overwrite'
    ]


def record_of(job: CalibrationJob) -> dict[str, Any]:
    """Return what was asked for as plain values, without paths."""
    return {
        'budget_bits': job.bits,
        'group_size': job.group_size,
        'activation_bits': job.activation_bits,
        'samples': job.samples,
        'held_out': job.held_out,
        'seed': job.seed,
        'tolerance': dict(vars(job.tolerance)),
        'promotions': job.promotions,
        'options': dict(job.options),
        'topics': dict(job.topics),
        'instruction': job.instruction,
    }
