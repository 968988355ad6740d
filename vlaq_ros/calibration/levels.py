"""
Every level of a nested result, measured: run, judged on held-out samples, fitted.

All module groups together at each level of the ladder, and each group alone with the others at the
top. What comes of it goes into the bundle (`policies.levels`) and is what changing precision needs
(`level_fits` says how it is fitted).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from vlaq_ros.calibration.applied import applied
from vlaq_ros.calibration.checkpoint import Part, plain, recall
from vlaq_ros.calibration.level_fits import (
    LevelActions,
    combinations,
    fit_head,
    fit_motion,
)
from vlaq_ros.calibration.method import Batch, CalibrationContext, MethodResult
from vlaq_ros.calibration.motion_history import position_columns
from vlaq_ros.calibration.samples import SampleSet
from vlaq_ros.calibration.verification import Tolerance, executed_actions, head_report
from vlaq_ros.control.precision import PrecisionLevel, PrecisionMenu
from vlaq_ros.policies.levels import BundleLevels
from vlaq_ros.policies.spec import PolicySpec

_EXACT = 'reference'


def level_runs(context: CalibrationContext, ladder: Sequence[str]) -> int:
    """Return how many batches `calibrate_levels` runs."""
    menu = PrecisionMenu.from_names(*ladder)
    runs = 1 + len(combinations(menu, _groups(context)))
    return runs * (len(context.batches) + len(context.held_out)) + len(menu) * len(
        context.held_out
    )


def calibrate_levels(
    context: CalibrationContext,
    result: MethodResult,
    nearest: MethodResult | None,
    drawn: SampleSet,
    spec: PolicySpec,
    tolerance: Tolerance,
) -> BundleLevels:
    """
    Measure and fit every level.

    Args:
        context: The policy.
        result: Nested; its provenance names the ladder.
        nearest: The same widths rounded to nearest, to compare with; None: no comparison.
        drawn: The samples that the batches of the context hold.
        spec: The policy.
        tolerance: What is good enough.
    """
    menu = PrecisionMenu.from_names(*result.provenance['ladder'])
    groups = _groups(context)
    runs = combinations(menu, groups)
    use = _run(context, result, runs, context.batches)
    keep = _run(context, result, runs, context.held_out)
    heads = {}
    for head in next(iter(keep.values())):
        sets = [
            LevelActions(samples, found[_EXACT][head], {name: found[name][head] for name in runs})
            for samples, found in ((drawn.calibration, use), (drawn.held_out, keep))
        ]
        heads[head] = fit_head(spec, menu, groups, *sets, tolerance, result.provenance['bound'])
    record = {
        'tolerance': asdict(tolerance),
        'calibration': len(drawn.calibration),
        'held_out': len(drawn.held_out),
        'with_history': sum(s.sensitivity is not None for s in drawn.calibration),
        'measured_step_m': drawn.report.get('measured_step_m'),
        'no_history': position_columns(spec)[1],
        'execution_horizon': spec.execution_horizon,
        'rounded_to_nearest': {},
    }
    if nearest is not None:
        rounded = _run(context, nearest, {str(o): dict.fromkeys(groups, o) for o in menu.levels})
        record['rounded_to_nearest'] = {
            head: {
                str(level): asdict(
                    head_report(rounded[str(level)][head], keep[_EXACT][head], spec.action)
                )
                for level in menu.levels
            }
            for head in heads
        }
    motion = fit_motion(spec, list(use[_EXACT].values()))
    return BundleLevels(menu, motion, heads, plain(record))


def _groups(context: CalibrationContext) -> tuple[str, ...]:
    return tuple(dict.fromkeys(context.layers.values()))


def _run(
    context: CalibrationContext,
    result: MethodResult,
    runs: Mapping[str, Mapping[str, PrecisionLevel]],
    batches: Sequence[Batch] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return what runs, and `reference` -> head -> actions [samples, horizon, dim], float64."""
    batches = context.held_out if batches is None else batches

    def make() -> Part:
        found = {_EXACT: executed_actions(context, batches)}
        for name, levels in runs.items():
            at = {layer: levels[context.layers[layer]] for layer in result.weights}
            trial = replace(
                result, activation_bits={layer: one.activation_bits for layer, one in at.items()}
            )
            caps = {layer: level.weight_bits for layer, level in at.items()}
            with applied(context.model, trial, caps):
                found[name] = executed_actions(context, batches)
        heads = list(found[_EXACT][0])
        tensors = {
            f'{i}.{head}': torch.cat([actions[head] for actions in each])
            for i, each in enumerate(found.values())
            for head in heads
        }
        return tensors, {'runs': list(found), 'heads': heads}

    def depends() -> dict[str, Any]:
        return {
            'weights': {name: weight.tensors() for name, weight in result.weights.items()},
            'parameters': dict(result.parameters),
            'runs': {n: {g: str(o) for g, o in levels.items()} for n, levels in runs.items()},
            'batches': list(batches),
        }

    tensors, values = recall('levels', context.model, depends, make)
    return {
        name: {head: tensors[f'{i}.{head}'].double().numpy() for head in values['heads']}
        for i, name in enumerate(values['runs'])
    }
