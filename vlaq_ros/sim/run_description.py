"""What an evaluation was, for a reader to repeat it; and what paired runs have in common."""

import argparse
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.sim.machine import cpu_name, versions
from vlaq_ros.sim.precision_options import RULE_MODES

if TYPE_CHECKING:
    from vlaq_ros.sim.evaluate import Plan


def describe_run(args: argparse.Namespace, plan: 'Plan') -> dict[str, Any]:
    """Return what a reader needs to repeat the run: versions, machine, command line, bundle."""
    rules = _rules(plan)
    return {
        'command': ' '.join(['vlaq', *sys.argv[1:]]),
        'bundle': {'name': plan.bundle.spec.name, 'sha256': plan.bundle.digest},
        'packed': dict(plan.source.packed),
        'precision_rules': {name: found['origin'] for name, found in rules.items()},
        'precision_options': rules,
        'tasks': list(plan.tasks),
        'per_task': args.per_task,
        'seed': args.seed,
        'instructions': args.instructions,
        'execution_horizon': args.execution_horizon or plan.bundle.spec.execution_horizon,
        'processes': plan.processes,
        'threads_per_process': 1,
        'cpu': cpu_name(),
        'cores': os.cpu_count(),
        'load': os.getloadavg()[0],
        'system': platform.platform(),
        'versions': versions(),
    }


def identity_of(args: argparse.Namespace, plan: 'Plan') -> dict[str, Any]:
    """Return what must agree for two runs to be paired."""
    dynamic = {'precision_options': rules} if (rules := _rules(plan)) else {}
    return {
        **dynamic,
        'bundle_sha256': plan.bundle.digest,
        'packed_sha256': {
            name: open_bundle(folder).digest for name, folder in plan.source.packed.items()
        },
        'seed': args.seed,
        'instructions': args.instructions,
        'open_loop': args.open_loop,
        'execution_horizon': args.execution_horizon or plan.bundle.spec.execution_horizon,
        'cpu': cpu_name(),
        'versions': versions(),
    }


def _rules(plan: 'Plan') -> dict[str, Any]:
    """Return the rules of every configuration that changes its precision by some."""
    options = plan.source.options
    return {
        config.name: {
            **rules.describe(),
            'deadline_s': options.deadline_s,
            'drift_every': options.drift_every,
        }
        for config in plan.configs
        if config.precision.partition('@')[2] in RULE_MODES
        and (rules := plan.source.rules(config))
    }
