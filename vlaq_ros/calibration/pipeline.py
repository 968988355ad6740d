"""
From bags to a calibrated bundle with proof: the whole path, one call.

check -> samples -> reference actions -> sensitivity -> method -> joint verification on held-out
samples -> packed bundle. What took long is remembered in a work folder (`checkpoint`), so a killed
run goes on; the same job gives the same bytes, interrupted or not.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vlaq_ros.calibration.action_error import default_metric
from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.artifact import (
    LayerPlan,
    channel_histogram,
    mean_bits,
    plan_of,
    software_versions,
    writing_to,
)
from vlaq_ros.calibration.checkpoint import WorkFolder, digest_of, plain, remembering
from vlaq_ros.calibration.job import CheckedJob, record_of
from vlaq_ros.calibration.levels import calibrate_levels, level_runs
from vlaq_ros.calibration.method import Batch, CalibrationContext, MethodResult
from vlaq_ros.calibration.methods import bind_method, find_method
from vlaq_ros.calibration.prediction import mean_cost, mean_square, predicted_error
from vlaq_ros.calibration.progress import Progress
from vlaq_ros.calibration.reference import ReferenceForward, make_batches, reference_structure
from vlaq_ros.calibration.remembered import recall_result, recall_samples
from vlaq_ros.calibration.rtn import calibrate as round_to_nearest
from vlaq_ros.calibration.samples import SampleSet
from vlaq_ros.calibration.sensitivity import PROBES, LayerSensitivity, measure_sensitivity
from vlaq_ros.calibration.statistics import collect_statistics
from vlaq_ros.calibration.verification import (
    HeadReport,
    Verification,
    executed_actions,
    judge,
    one_width_more,
    verify,
)
from vlaq_ros.errors import SchemeError
from vlaq_ros.policies.bundle import Bundle
from vlaq_ros.policies.levels import BundleLevels
from vlaq_ros.policies.packing import write_packed_bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, layer_roles, load_float_model

BATCH = 8
CANDIDATES = 8
"""Layers tried at every step back."""
_PROBED = 3.0 + 2.0 * PROBES  # a run for statistics, one with gradients, backward passes twice
Actions = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """
    What a calibration found, for its report.

    Attributes:
        bundle: The packed bundle that was written.
        origin: The float bundle it was made of.
        record: What stands in it.
        context: The policy that was calibrated.
        result: What is packed.
        before: The heads on the held-out samples as the method left them.
        verification: The final word.
        nearest: Rounding to nearest within the same budget; None where no uniform width fits.
        sensitivity: Action error of every channel at every width.
        reference, actions, nearest_actions: What the robot would do on the held-out samples: at
            full precision, after calibration, and rounded to nearest (empty: see `nearest`).
        levels: What every level is worth; None: the result is not nested.
    """

    bundle: Bundle
    origin: Bundle
    record: Mapping[str, Any]
    context: CalibrationContext
    result: MethodResult
    before: Mapping[str, HeadReport]
    verification: Verification
    nearest: tuple[MethodResult, Mapping[str, HeadReport]] | None
    sensitivity: Mapping[str, LayerSensitivity]
    reference: Actions
    actions: Actions
    nearest_actions: Actions
    levels: BundleLevels | None = None


def calibrate(checked: CheckedJob, progress: Progress) -> Calibrated:
    """
    Calibrate and write the packed bundle.

    Args:
        checked: From `check_job`.
        progress: Counts; what it raises ends the run, which can be resumed.

    Raises:
        BagError: The recordings cannot give a meaningful set of samples.
        BundleError: Something cannot be written.
        SchemeError: The method cannot meet the budget.
    """
    job = checked.job
    if job.work is None and not job.resume:
        shutil.rmtree(job.work_folder, ignore_errors=True)
    identity = {
        'bundle': checked.bundle.digest,
        'bags': checked.bag_files,
        'plan': asdict(checked.plan),
        'heads': checked.heads,
        'topics': dict(job.topics),
        'instruction': job.instruction,
        'software': software_versions(),
    }
    folder = WorkFolder(job.work_folder, identity)
    advice = f'. What is finished is kept in {job.work_folder}: continue with --resume'
    with writing_to(job.work_folder, advice), remembering(folder):
        progress.begin('samples', len(checked.recordings))
        drawn = recall_samples(folder, checked.recordings, checked.bundle.spec, checked.plan)
        context = make_context(checked, drawn, progress)
        found = _Run(checked, context, folder, progress).go(drawn)
    if job.work is None:
        shutil.rmtree(job.work_folder, ignore_errors=True)
    return found


def make_context(checked: CheckedJob, drawn: SampleSet, progress: Progress) -> CalibrationContext:
    """Return the policy and its samples as methods see them; every run of it counts."""
    job, spec = checked.job, checked.bundle.spec
    model = load_float_model(checked.bundle).requires_grad_(False)
    roles = layer_roles(model)
    batches = {
        name: make_batches([s.observation for s in samples], spec, BATCH)
        for name, samples in (('use', drawn.calibration), ('keep', drawn.held_out))
    }
    return CalibrationContext(
        model=model,
        layers={name: role for name, role in roles.items() if role in QUANTIZED_ROLES},
        forward=_counted(ReferenceForward(model, spec, checked.heads), progress),
        decode=_counted(ReferenceForward(model, spec, checked.heads, decoded=True), progress),
        batches=batches['use'],
        held_out=batches['keep'],
        spec=spec.action,
        action_scale=torch.tensor(spec.action_std),
        structure=reference_structure(model),
        budget_bits=job.bits,
        group_size=job.group_size,
        activation_bits=job.activation_bits,
        seed=job.seed,
    )


def _counted(forward: Callable[[Batch], Any], progress: Progress) -> Callable[[Batch], Any]:
    def run(batch: Batch) -> Any:
        actions = forward(batch)
        progress.step()
        return actions

    return run


class _Run:
    """One calibration after its samples are there."""

    def __init__(
        self,
        checked: CheckedJob,
        context: CalibrationContext,
        folder: WorkFolder,
        progress: Progress,
    ) -> None:
        self.checked, self.context = checked, context
        self.folder, self.progress = folder, progress

    def go(self, drawn: SampleSet) -> Calibrated:
        """Take the steps of the module docstring from the reference actions on."""
        context, job, progress = self.context, self.checked.job, self.progress
        used, kept = len(context.batches), len(context.held_out)
        row = find_method(job.method)
        progress.expect(
            {
                'reference': kept,
                'sensitivity': _PROBED * used,
                'method': row.passes * row.weight * used,
                'verification': 3 * kept,
                'packing': 4 * kept,
                'report': 1,
            }
        )
        progress.begin('reference', kept)
        reference = executed_actions(context, context.held_out)
        metric = default_metric(context)  # over the heads that `forward` runs
        progress.begin('sensitivity', 2 * used, weight=_PROBED / 2)
        statistics = collect_statistics(context)
        sensitivity, _ = measure_sensitivity(context, statistics, metric)
        text = f'{job.method}: {row.summary}'
        progress.begin('method', round(row.passes * used), text, row.weight)
        result = self._decide(job.method)
        progress.begin('verification', 3 * kept)
        before = judge(context, result, reference)
        nearest = self._nearest(reference)
        missed = max(one.excess(job.tolerance) for one in before.values()) > 1.0
        if missed and job.promotions:
            judgements = len(result.weights) + job.promotions * CANDIDATES
            progress.begin('verification', judgements * kept, 'stepping back towards more bits')
        final, verification = verify(
            context,
            result,
            job.tolerance,
            one_width_more(context, result),
            candidates=CANDIDATES,
            max_steps=job.promotions,
        )
        levels = self._levels(final, nearest, drawn) if row.is_nested else None
        progress.begin('packing', 4 * kept)
        with applied(context.model, final):
            actions = executed_actions(context, context.held_out)
            joint = mean_cost(context, metric, context.held_out)
        exact = mean_cost(context, metric, context.held_out)
        verified = mean_square([(q - r) for q, r in zip(joint, exact)])
        record = self._record(drawn, final, verification, before, sensitivity, verified)
        with writing_to(job.out):
            bundle = write_packed_bundle(
                job.out,
                self.checked.bundle,
                final.weights,
                final.activation_bits,
                final.parameters,
                record,
                nested=row.is_nested,
                levels=levels,
            )
        rounded: Actions = ()
        if nearest is not None:
            with applied(context.model, nearest[0]):
                rounded = executed_actions(context, context.held_out)
        return Calibrated(
            bundle,
            self.checked.bundle,
            record,
            context,
            final,
            before,
            verification,
            nearest,
            sensitivity,
            reference,
            actions,
            rounded,
            levels,
        )

    def _levels(
        self,
        final: MethodResult,
        nearest: tuple[MethodResult, Mapping[str, HeadReport]] | None,
        drawn: SampleSet,
    ) -> BundleLevels:
        """Measure and fit the levels of a nested result."""
        ladder = final.provenance['ladder']
        runs = level_runs(self.context, ladder)
        self.progress.begin('verification', runs, f'measuring the levels {", ".join(ladder)}')
        spec, job = self.checked.bundle.spec, self.checked.job
        rounded = nearest and nearest[0]
        return calibrate_levels(self.context, final, rounded, drawn, spec, job.tolerance)

    def _decide(self, method: str) -> MethodResult:
        """Run the method, or take what an interrupted run had finished."""
        job = self.checked.job
        depends = {
            'method': method,
            'options': dict(job.options),
            'bits': job.bits,
            'group_size': job.group_size,
            'activation_bits': job.activation_bits,
            'seed': job.seed,
        }
        run = bind_method(method, job.options)
        return recall_result(self.folder, depends, lambda: run(self.context))

    def _nearest(self, reference: Actions) -> tuple[MethodResult, Mapping[str, HeadReport]] | None:
        """Return the baseline within the same budget."""
        try:
            result = round_to_nearest(self.context, 'mse')
        except SchemeError:  # no uniform width fits
            return None
        return result, judge(self.context, result, reference)

    def _with_float_layers(self, plan: Sequence[LayerPlan]) -> float:
        """Return bits per weight of all layers in question, those left float as 16 bits."""
        packed, bits = sum(p.weights for p in plan), sum(8 * p.nbytes for p in plan)
        total = self.context.weight_count
        return (bits + 16 * (total - packed)) / total

    def _record(
        self,
        drawn: SampleSet,
        final: MethodResult,
        verification: Verification,
        before: Mapping[str, HeadReport],
        sensitivity: Mapping[str, LayerSensitivity],
        verified: float,
    ) -> dict[str, Any]:
        """Return what the bundle says about itself."""
        plan = plan_of(final.weights, final.activation_bits)
        report = dict(drawn.report)
        sources = {name: report[name].pop('sources') for name in ('calibration', 'held_out')}
        for number, recording in enumerate(report['recordings']):
            files = self.checked.bag_files[recording['name']]
            report['recordings'][number] = {**recording, 'sha256': dict(files)}
        record = {
            'method': final.method,
            **record_of(self.checked.job),
            'heads': list(self.checked.heads),
            'mean_bits_per_weight': mean_bits(plan),
            'mean_bits_per_channel': final.mean_bits_per_channel,
            'mean_bits_with_float_layers': self._with_float_layers(plan),
            'packed_bytes': sum(layer.nbytes for layer in plan),
            'channels': {str(w): count for w, count in channel_histogram(plan).items()},
            'predicted_error': predicted_error(final, sensitivity) ** 0.5,
            'verified_error': verified**0.5,
            'as_the_method_left_it': {head: asdict(one) for head, one in before.items()},
            'verified': {head: asdict(one) for head, one in verification.heads.items()},
            'within_tolerance': verification.passed,
            'verdict': verification.reason,
            'promoted': [list(step) for step in verification.promoted],
            'method_record': final.provenance,
            'samples_drawn': {**report, 'digest_of_sources': digest_of(sources)},
            'software': software_versions(),
        }
        return plain(record)
