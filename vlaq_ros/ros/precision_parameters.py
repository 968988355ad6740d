"""Parameters of the policy node about precision that changes: rules, levels, thresholds."""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.control.precision_controller import SafetyOptions
from vlaq_ros.control.precision_dyq import DyqOptions
from vlaq_ros.control.precision_parameters import GroupParameters
from vlaq_ros.errors import ConfigError
from vlaq_ros.ros.parameters import Applies, parameter


@dataclass(frozen=True)
class DynamicPrecisionParameters:
    """How the precision changes while the policy runs."""

    policy: str = parameter(
        'static',
        'What decides: only ~/set_precision (`static`), how fine or abrupt the commanded motion '
        'is (`dyq`), the deadline (`latency`), or measured drift (`drift`)',
        choices=('static', 'dyq', 'latency', 'drift'),
        applies=Applies.LIVE,
    )
    file: str = parameter(
        '',
        'JSON file of rules, levels and thresholds by module group; it takes the place of '
        '`policy`, `levels`, `boundaries`, `lower_after` and `dwell_s`',
    )
    levels_from: str = parameter(
        'parameters',
        'Where levels, boundaries and normalizers come from: `levels`, `boundaries`, '
        '`translation_m`, `rotation_rad` (`parameters`), or a calibration that stored them with '
        'the policy (`bundle`)',
        choices=('parameters', 'bundle'),
        applies=Applies.LIVE,
    )
    levels: tuple[str, ...] = parameter(
        ('w8a8', 'w8a16'),
        'Levels to choose from, lowest first; ~/precision lists those that the bundle can run at',
        applies=Applies.LIVE,
    )
    boundaries: tuple[float, ...] = parameter(
        (0.5,),
        'Motion sensitivities between the levels, one less than levels; 0 is coarse and steady '
        'motion, 1 is fine or abrupt',
        applies=Applies.LIVE,
    )
    lower_after: int = parameter(
        4,
        'Decisions in a row that must want a lower level before it is lowered',
        low=1,
        high=10000,
        applies=Applies.LIVE,
    )
    dwell_s: float = parameter(
        1.0,
        'How long the highest level is kept after a gripper transition and after a stop',
        unit='s',
        low=0.0,
        high=3600.0,
        applies=Applies.LIVE,
    )
    deadline_s: float = parameter(
        0.0,
        'When an inference is late; 0: when the rest of a chunk does not bridge it',
        unit='s',
        low=0.0,
        high=60.0,
        applies=Applies.LIVE,
    )
    translation_m: float = parameter(
        0.0,
        'Step that counts as coarse, the 95th percentile of recorded ones; 0: learned while the '
        'robot works, at the highest level until then',
        unit='m',
        low=0.0,
        high=10.0,
        applies=Applies.LIVE,
    )
    rotation_rad: float = parameter(
        0.0,
        'The same for the change of rotation from step to step',
        unit='rad',
        low=0.0,
        high=10.0,
        applies=Applies.LIVE,
    )

    @property
    def edges(self) -> tuple[float, ...] | None:
        """The boundaries where the rule needs them."""
        return self.boundaries if self.policy == 'dyq' else None

    def dyq_options(self) -> DyqOptions:
        """Return how the rule `dyq` lowers."""
        return DyqOptions(self.lower_after)

    def safety_options(self) -> SafetyOptions:
        """Return how long safety events count."""
        return SafetyOptions(self.dwell_s)

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the levels and boundaries that are in use."""
        if self.file and self.levels_from == 'bundle':
            yield (
                f"parameters 'dynamic_precision.file' = {self.file!r} and "
                "'dynamic_precision.levels_from' = 'bundle' exclude each other: empty the file, "
                "or set levels_from to 'parameters'"
            )
        if self.policy == 'static' or self.file or self.levels_from == 'bundle':
            return
        try:
            GroupParameters(PrecisionMenu.from_names(*self.levels), self.edges)
        except ConfigError as error:
            for line in str(error).splitlines():
                yield f"parameters 'dynamic_precision': {line}"
