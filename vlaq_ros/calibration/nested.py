"""
Nested: one store of 8-bit codes per group that can be read at 4 bits while the policy runs.

`vlaq quantize --nested` rounds to nearest, which is the right nibble for either view of a single
weight and looks at no data. Here scales and codes are chosen for the outputs of the layers, for
both views at once (`nested_rounding`). How the views are weighed is an option.

Rounding to nearest is measured beside it in every report. On the reference policy with groups of
64 (512 samples, 192 held out) the mean drift of a chunk of the flow head was 2.55 mm with 4-bit
weights where rounding to nearest had 3.94 mm, and 0.15 against 0.22 mm with 8-bit ones. The token
head, whose bins jump, gained nothing that could be told from chance: 3.73 against 3.62 mm, and
0.32 against 0.34 mm.

For a nested result the pipeline measures and fits every level of the ladder (`levels`).
"""

from dataclasses import dataclass

from vlaq_ros.calibration.gptq import output_error
from vlaq_ros.calibration.level_fits import BOUNDS
from vlaq_ros.calibration.method import CalibrationContext, MethodResult
from vlaq_ros.calibration.nested_rounding import round_both_views
from vlaq_ros.calibration.rtn import widest_within_budget
from vlaq_ros.calibration.statistics import LayerStatistics, collect_statistics
from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.errors import ConfigError, SchemeError, unknown_name
from vlaq_ros.quant.mixed import CAPS, MixedWeight

LADDER = 'w4a8,w4a16,w8a8,w8a16'
BITS = 8


@dataclass(frozen=True)
class NestedOptions:
    """
    Options of the method.

    Attributes:
        ladder: Levels that are measured and offered for changing precision, lowest first.
        bound: What admits the error of a level: `tolerance`, or `paper`; see `level_fits`.
        fine_weight: How much the squared error of the 8-bit view counts next to the other's.
        sweeps: Most passes over the codes after compensated rounding.

    Raises:
        SchemeError: The ladder is not one, or a number is out of range; all are listed.
    """

    ladder: str = LADDER
    bound: str = BOUNDS[0]
    fine_weight: float = 64.0
    sweeps: int = 3

    def __post_init__(self) -> None:
        problems = []
        try:
            _ = self.menu
        except ConfigError as error:
            problems += str(error).splitlines()
        if self.bound not in BOUNDS:
            problems.append(unknown_name('bound', self.bound, BOUNDS))
        if not 0.0 <= self.fine_weight < float('inf'):
            problems.append(f'fine_weight={self.fine_weight} must be 0 or more')
        if self.sweeps < 0:
            problems.append(f'sweeps={self.sweeps} must be 0 or more')
        if problems:
            raise SchemeError('; '.join(problems))

    @property
    def menu(self) -> PrecisionMenu:
        """The levels of the ladder."""
        return PrecisionMenu.from_names(*self.ladder.split(','))


def calibrate(context: CalibrationContext, options: NestedOptions | None = None) -> MethodResult:
    """
    Round all layers to nested codes.

    Raises:
        SchemeError: The budget does not reach 8 bits with their scales, or there is one scale per
            output channel, which is too few for 4 bits.
    """
    options = options or NestedOptions()
    if context.group_size is None:
        raise SchemeError('nested codes need a scale per group: --group-size 64')
    if widest_within_budget(context) != BITS:
        raise SchemeError(
            f'a budget of {context.budget_bits:g} bits per weight is too small for nested codes: '
            f'8 bits and a scale per {context.group_size} inputs are needed'
        )
    statistics = collect_statistics(context)
    weights = {
        name: round_both_views(
            context.weight(name),
            statistics[name].second_moment,
            context.group_of(name),
            options.fine_weight,
            options.sweeps,
        )
        for name in context.layers
    }
    return MethodResult(
        'nested',
        weights,
        dict.fromkeys(context.layers, context.activation_bits),
        provenance={
            'bits': BITS,
            'ladder': list(map(str, options.menu.levels)),
            'bound': options.bound,
            'fine_weight': options.fine_weight,
            'sweeps': options.sweeps,
            'output_error': _output_errors(context, statistics, weights),
        },
    )


def _output_errors(
    context: CalibrationContext,
    statistics: dict[str, LayerStatistics],
    weights: dict[str, MixedWeight],
) -> dict[str, float]:
    """Return bits read -> root mean squared output error of all layers, relative to outputs."""
    errors, total = dict.fromkeys(CAPS, 0.0), 0.0
    for name, weight in weights.items():
        exact, moment = context.weight(name), statistics[name].second_moment
        size = float(output_error(exact, moment).sum())
        total += size > 0.0
        for cap in CAPS:
            error = output_error(weight.dequantize(cap=cap) - exact, moment).sum()
            errors[cap] += float(error) / size if size else 0.0
    return {str(cap): (error / max(total, 1.0)) ** 0.5 for cap, error in errors.items()}
