"""Parameters about drift: where the reference comes from, what is too much, what happens then."""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.control.precision_rules import DriftOptions
from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.drift_monitor import SOURCES
from vlaq_ros.ros.parameters import Applies, parameter

NONE = 'none'
SHADOW, HIGHER, REMOTE = 'shadow', 'higher', 'remote'
MEASURING = (SHADOW, HIGHER, REMOTE)
"""Sources that run a reference; the others predict, or do nothing."""
REPORT, RAISE, STOP = 'report', 'raise', 'stop'
_SMALL = 0.5


@dataclass(frozen=True)
class DriftParameters:
    """How far the policy is from its reference, and what happens when that is too far."""

    source: str = parameter(
        NONE,
        'Reference: a second policy at full precision in this process (`shadow`), the highest '
        'level of the same weights (`higher`), a node elsewhere (`remote`), what the calibration '
        'measured of the levels (`predicted`), or none',
        choices=(NONE, *SOURCES),
    )
    reference_bundle: str = parameter(
        '',
        'Float bundle of the reference; empty: that of `bundle`. Needed when `bundle` is packed: '
        'the one it was made of',
    )
    duty: float = parameter(
        0.5,
        'Share of the time that a reference in this process may compute; what it cannot keep up '
        'with is dropped. In lockstep every chunk is compared',
        unit='1',
        low=0.01,
        high=1.0,
        applies=Applies.LIVE,
    )
    remote_node: str = parameter(
        'reference', 'Name of the reference node for `remote`, with its namespace if any'
    )
    remote_timeout_s: float = parameter(
        1.0,
        'Answers of the reference node that take longer are not used',
        unit='s',
        low=0.001,
        high=600.0,
    )
    window_s: float = parameter(
        0.5,
        'How long a chunk counts in the means that are compared with the limits',
        unit='s',
        low=0.01,
        high=3600.0,
        applies=Applies.LIVE,
    )
    warn_m: float = parameter(
        0.003,
        'Position drift accumulated over the executed part of a chunk that is worth a warning. '
        'The defaults suit 8-bit weights of the shipped policy; 4 bits need 0.013 and 0.02',
        unit='m',
        low=1e-6,
        high=10.0,
        applies=Applies.LIVE,
    )
    error_m: float = parameter(
        0.007,
        'The same for an error',
        unit='m',
        low=1e-6,
        high=10.0,
        applies=Applies.LIVE,
    )
    warn_rad: float = parameter(
        0.05,
        'Rotation drift accumulated over the executed part of a chunk that is worth a warning',
        unit='rad',
        low=1e-6,
        high=10.0,
        applies=Applies.LIVE,
    )
    error_rad: float = parameter(
        0.15,
        'The same for an error',
        unit='rad',
        low=1e-6,
        high=10.0,
        applies=Applies.LIVE,
    )
    warn_gripper: float = parameter(
        0.3,
        'Share of the steps whose gripper commands disagree that is worth a warning',
        unit='1',
        low=1e-6,
        high=10.0,
        applies=Applies.LIVE,
    )
    error_gripper: float = parameter(
        0.6,
        'The same for an error; above 1 it never is one',
        unit='1',
        low=1e-6,
        high=10.0,
        applies=Applies.LIVE,
    )
    calm_after: int = parameter(
        3,
        'Calm readings in a row, a fifth below the limit, before the level falls by one',
        low=1,
        high=10000,
        applies=Applies.LIVE,
    )
    reaction: str = parameter(
        REPORT,
        'From WARN on: only tell (`report`), or run at the highest levels until OK again '
        '(`raise`); or stop the arm at ERROR until OK again or ~/reset (`stop`)',
        choices=(REPORT, RAISE, STOP),
        applies=Applies.LIVE,
    )

    @property
    def is_on(self) -> bool:
        """Whether there is a source."""
        return self.source != NONE

    @property
    def is_measured(self) -> bool:
        """Whether the source runs a reference."""
        return self.source in MEASURING

    def limits(self) -> DriftLimits:
        """Return the limits; `contradictions` says why there are none."""
        return DriftLimits(
            self.warn_m,
            self.error_m,
            self.warn_rad,
            self.error_rad,
            self.warn_gripper,
            self.error_gripper,
            calm_after=self.calm_after,
        )

    def rule_options(self, lower_after: int) -> DriftOptions:
        """
        Return how the rule `drift` of dynamic precision decides.

        It raises above the limits of a warning, and lowers after that many readings at or below
        half of them.
        """
        return DriftOptions(
            _SMALL * self.warn_m,
            self.warn_m,
            _SMALL * self.warn_rad,
            self.warn_rad,
            lower_after=lower_after,
        )

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with values that belong together."""
        try:
            self.limits()
        except ConfigError as error:
            for line in str(error).splitlines():
                yield f"parameters 'drift': {line}"
        if self.reaction != REPORT and not self.is_on:
            yield (
                f"parameter 'drift.reaction' = {self.reaction!r} needs a 'drift.source': without "
                'one nothing is known about drift'
            )
