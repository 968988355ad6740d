"""
Options of an evaluation whose precision changes while an episode runs, and what they need.

    NAME@dyq      by what the arm does            NAME@drift    by drift against full precision
    NAME@latency  by the time inferences take     NAME@random   as often as NAME@dyq, at random

The rules come from a file in the format of the node's `dynamic_precision.file` or from the packed
bundle; of its list of rules only the one that the configuration names is used.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.control.precision import GROUPS, PrecisionLevel
from vlaq_ros.control.precision_parameters import PrecisionParameters
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.motion import MotionScale, MotionTracker, OnlineMotionScale
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.drift_monitor import DriftMonitor
from vlaq_ros.sim.dynamic import DynamicPolicy, MeasuredDrift, RandomLevels

RANDOM = 'random'
LIKE = 'dyq'
"""The mode whose shares `random` repeats."""
RULE_MODES = ('dyq', 'drift', 'latency')
MODES = (*RULE_MODES, RANDOM)


@dataclass(frozen=True)
class Rules:
    """
    How precision is decided, and what counts as coarse motion.

    Attributes:
        parameters: Levels, boundaries and options.
        scale: Normalizers of the motion; None: learned anew in every episode.
        origin: Where they come from, for reports.
    """

    parameters: PrecisionParameters
    scale: MotionScale | None
    origin: str

    def problems(self, mode: str) -> list[str]:
        """Return why a mode cannot decide by these rules."""
        try:
            self._only(mode)
        except ConfigError as error:
            return [f'{self.origin}: {line}' for line in str(error).splitlines()]
        strange = [name for name in self.parameters.groups if name not in GROUPS]
        return [
            f'{self.origin}: no module group {name!r}; there are {", ".join(GROUPS)}'
            for name in strange
        ]

    def make_policy(
        self, policy: Policy, mode: str, drift: MeasuredDrift | None, deadline_s: float | None
    ) -> DynamicPolicy:
        """
        Return the policy with its precision under these rules.

        Raises:
            ConfigError: The policy has not got one of the levels; all of them are listed.
        """
        problems = [
            f'{self.origin}: {name} {level} is not available: {policy.level_limits or "no level"}'
            for name, group in self.parameters.groups.items()
            for level in group.menu.levels
            if level not in policy.levels.get(name, ())
        ]
        if problems:
            raise ConfigError('\n'.join(problems))
        chooser = self._only(mode).controller()
        spec = policy.spec.action
        return DynamicPolicy(
            policy,
            chooser,
            lambda: MotionTracker(self.scale or OnlineMotionScale(spec)),
            drift,
            deadline_s,
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values for a report."""
        groups = {
            name: {'levels': list(map(str, g.menu.levels)), 'boundaries': g.boundaries}
            for name, g in self.parameters.groups.items()
        }
        options = {n: asdict(getattr(self.parameters, n)) for n in (*RULE_MODES, 'safety')}
        scale = self.scale and self.scale.to_dict()
        return {'origin': self.origin, 'groups': groups, **options, 'motion_scale': scale}

    def _only(self, mode: str) -> PrecisionParameters:
        return replace(self.parameters, rules=(mode,))


@dataclass(frozen=True)
class PrecisionOptions:
    """
    What was asked for on the command line.

    Attributes:
        rules: From `--precision-rules`, by the name of a store; '' is for all others. Where there
            are none, those of the packed bundle count.
        deadline_s: When an inference is late [s]; None: not given.
        drift_every: Chunks from one comparison with full precision to the next.
    """

    rules: Mapping[str, Rules] = field(default_factory=dict)
    deadline_s: float | None = None
    drift_every: int = 1

    def problems(self, mode: str, rules: Rules | None) -> list[str]:
        """Return why a mode cannot be run with these rules."""
        if mode == RANDOM:
            return []
        if rules is None:
            return [
                'it has no rules of its own: give --precision-rules FILE, or calibrate its levels'
            ]
        found = rules.problems(mode)
        if mode == 'latency' and self.deadline_s is None:
            found.append('give --deadline-ms: how long an inference may take on this machine')
        return found

    def wrap(
        self,
        policy: Policy,
        mode: str,
        rules: Rules | None,
        reference: Policy | None,
        horizon: int,
    ) -> DynamicPolicy:
        """
        Return a loaded policy with its precision decided by a mode.

        Args:
            policy: With levels.
            mode: One of `MODES`.
            rules: For all modes but `random`.
            reference: Full precision, for the mode `drift`.
            horizon: Actions executed of every chunk.
        """
        if mode == RANDOM:
            spec = policy.spec.action
            make_tracker = lambda: MotionTracker(OnlineMotionScale(spec))  # noqa: E731
            return DynamicPolicy(policy, RandomLevels(), make_tracker)
        drift = None
        if reference is not None:
            monitor = DriftMonitor(policy.spec.action, horizon, DriftLimits())
            drift = MeasuredDrift(monitor, reference, self.drift_every)
        return rules.make_policy(policy, mode, drift, self.deadline_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options about precision that changes while running."""
    group = parser.add_argument_group(
        'precision while running',
        'for configurations NAME@dyq:HEAD, NAME@drift:HEAD, NAME@latency:HEAD and '
        'NAME@random:HEAD over a nested packed bundle, or over the precision `nested` of --bundle',
    )
    group.add_argument(
        '--precision-rules',
        nargs='+',
        default=[],
        metavar='[NAME=]FILE',
        help="as the node's dynamic_precision.file, for NAME@... or for all; default: those of "
        'the packed bundle',
    )
    group.add_argument(
        '--coarse-step-mm',
        type=float,
        help='step that counts as coarse motion, for --precision-rules; default: that of the '
        'packed bundle, else learned anew in every episode',
    )
    group.add_argument(
        '--deadline-ms', type=float, help='when an inference is late, for NAME@latency'
    )
    group.add_argument(
        '--drift-every',
        type=int,
        default=1,
        help='chunks from one comparison with full precision to the next, for NAME@drift '
        '(default: %(default)s)',
    )


def read_options(args: argparse.Namespace, problems: list[str]) -> PrecisionOptions:
    """Return the options; `problems` gets a line for everything that is wrong."""
    for option in ('deadline_ms', 'coarse_step_mm'):
        value = getattr(args, option)
        if value is not None and not 0.0 < value < float('inf'):
            problems.append(f'--{option.replace("_", "-")} {value:g}: must be positive')
    if args.drift_every < 1:
        problems.append(f'--drift-every {args.drift_every}: must be at least 1')
    rules = {}
    for text in args.precision_rules:
        store, separator, file = text.partition('=')
        try:
            rules[store if separator else ''] = _read_file(
                file if separator else text, args.coarse_step_mm
            )
        except ConfigError as error:
            problems += [f'--precision-rules: {line}' for line in str(error).splitlines()]
    if args.coarse_step_mm is not None and not args.precision_rules:
        problems.append('--coarse-step-mm belongs to --precision-rules; a bundle has its own')
    deadline_s = None if args.deadline_ms is None else args.deadline_ms * 1e-3
    return PrecisionOptions(rules, deadline_s, args.drift_every)


def _read_file(name: str, coarse_step_mm: float | None) -> Rules:
    try:
        text = Path(name).expanduser().read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{name} cannot be read: {error}') from error
    scale = None if not coarse_step_mm else MotionScale(coarse_step_mm * 1e-3, None)
    return Rules(PrecisionParameters.from_json(text, name), scale, name)


def static_level(name: str) -> PrecisionLevel | None:
    """Return the level of a name such as `w8a16`, None when it is none."""
    try:
        return PrecisionLevel.from_name(name)
    except ConfigError:
        return None
