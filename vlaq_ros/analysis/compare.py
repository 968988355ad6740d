"""
`vlaq compare`: calibration methods side by side at equal bytes, in closed loop.

Every method calibrates from the same samples of the same bags to the same budgets; every result
runs the same episodes as full precision. What was finished is kept in the folder: a run that was
interrupted goes on with `--resume`.

Methods that know one width only get the widest uniform grid that the format has near the budget,
also where it is up to a tenth of a bit above: in their favour, and the tables show the bits.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlaq_ros.analysis.compare_tables import compare_cells, write_comparison
from vlaq_ros.calibration.allocation import TILE, least_bits
from vlaq_ros.calibration.job import CalibrationJob, check_job
from vlaq_ros.calibration.methods import find_method
from vlaq_ros.calibration.pipeline import calibrate
from vlaq_ros.calibration.progress import Progress
from vlaq_ros.errors import ConfigError, VlaqError
from vlaq_ros.policies.bundle import Bundle, open_bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, layer_roles, load_float_model
from vlaq_ros.sim import evaluate
from vlaq_ros.sim.report import summarize
from vlaq_ros.sim.results import Config

BUDGETS = (2.0, 2.25, 2.5, 3.0, 4.0)
GROUP_SIZES = (16, 32, 64, 128, None)
ALLOWANCE_BITS = 0.1
"""How far above a budget a uniform grid may be."""

COMPARED = ('rtn', 'smoothquant', 'awq', 'gptq', 'qvla', 'da_ptq', 'quantvla', 'ours')
UNIFORM = ('rtn', 'smoothquant', 'awq', 'gptq', 'quantvla')
OPTIONS = {
    'rtn': {'clip': 'mse'},
    'smoothquant': {'clip': 'mse'},
    'quantvla': {'layout': 'all'},
}
"""Options that make a method comparable: clipped scales, and all layers within the budget."""


@dataclass(frozen=True)
class Setting:
    """
    One calibration of the comparison.

    Attributes:
        method: Its name.
        budget: The column it belongs to [bits per weight, scales included].
        bits: The budget it is given; see the module.
        group_size: Inputs that share a scale; None: one scale per output channel.
        options: Of the method.
    """

    method: str
    budget: float
    bits: float
    group_size: int | None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the packed bundle and of its rows; without `-`, which separates the head."""
        return f'{self.method}_{self.budget:g}'


def settings_for(
    bundle: Bundle, methods: Sequence[str], budgets: Sequence[float]
) -> list[Setting]:
    """
    Return what is calibrated, for every budget the methods in their order.

    Raises:
        ConfigError: A method does not exist; a budget is below what codes of 2 bits need with the
            pruning that the methods allow.
    """
    shapes = _shapes(bundle)
    found = []
    for budget in budgets:
        for method in methods:
            find_method(method)
            options = dict(OPTIONS.get(method, {}))
            if method in UNIFORM:
                bits, group = uniform_grid(shapes, budget)
            else:
                bits, group = budget, mixed_group(shapes, budget)
            narrowest = least_bits(shapes, group)
            if method in ('qvla', 'ours') and bits < narrowest:
                options['prune_share'] = f'{needed_prune_share(shapes, bits, group):.2f}'
                if method == 'qvla':
                    options['prune_threshold'] = 'inf'  # whatever it costs: the budget demands it
            elif method == 'da_ptq':
                bits = max(bits, narrowest + 1e-3)
            found.append(Setting(method, budget, bits, group, options))
    return found


def uniform_grid(shapes: Sequence[tuple[int, int]], budget: float) -> tuple[float, int | None]:
    """Return (bits, group size) of the widest grid near a budget, then the smallest groups."""
    grids = [
        (width, bits, group)
        for width in (8, 4, 2)
        for group in GROUP_SIZES
        for bits in [least_bits(shapes, group, width)]
        if bits <= budget + ALLOWANCE_BITS
    ]
    if not grids:
        least = least_bits(shapes, None)
        raise ConfigError(f'--bits {budget:g}: codes of 2 bits with a scale need {least:.3f}')
    _, bits, group = max(grids, key=lambda grid: grid[:2])
    return bits + 1e-3, group


def mixed_group(shapes: Sequence[tuple[int, int]], budget: float) -> int | None:
    """Return the group size for widths that are mixed: small groups where bits are left over."""
    return next((g for g in (64, 128) if least_bits(shapes, g) + 0.2 <= budget), None)


def needed_prune_share(
    shapes: Sequence[tuple[int, int]], bits: float, group_size: int | None
) -> float:
    """Return the smallest share of every layer, in hundredths, whose pruning meets a budget."""
    shares = (hundredths / 100 for hundredths in range(101))
    return next(s for s in shares if least_bits(shapes, group_size, 2, TILE, s) <= bits)


def _shapes(bundle: Bundle) -> list[tuple[int, int]]:
    model = load_float_model(bundle)
    return [
        tuple(model.get_submodule(name).weight.shape)
        for name, role in layer_roles(model).items()
        if role in QUANTIZED_ROLES
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vlaq compare`."""
    parser.add_argument(
        '--bag', nargs='+', type=Path, required=True, metavar='BAG', help='to calibrate with'
    )
    parser.add_argument('--bundle', default='metaworld', help='folder or name of a float bundle')
    parser.add_argument('--methods', nargs='+', default=list(COMPARED), metavar='METHOD')
    parser.add_argument(
        '--bits',
        nargs='+',
        type=float,
        default=list(BUDGETS),
        help='budgets in bits per weight, scales included (default: %(default)s)',
    )
    parser.add_argument('--activation-bits', type=int, default=8, help='default: %(default)s')
    parser.add_argument('--heads', nargs='+', default=[], help='default: all of the bundle')
    parser.add_argument('--samples', type=int, default=256, help='default: %(default)s')
    parser.add_argument('--held-out', type=int, default=96, help='default: %(default)s')
    parser.add_argument('--per-task', type=int, default=34, help='default: %(default)s')
    parser.add_argument('--processes', type=int, help='workers, one thread each')
    parser.add_argument('--out', type=Path, default=Path('out/compare'))
    parser.add_argument('--resume', action='store_true', help='keep what is finished in --out')


def run(args: argparse.Namespace) -> int:
    """
    Calibrate, evaluate, and write the tables; return the exit status.

    Raises:
        ConfigError: Options are wrong; nothing was run.
        VlaqError: See `pipeline.calibrate` and `evaluate.run_episodes`.
    """
    bundle = open_bundle(args.bundle)
    settings = settings_for(bundle, [m.replace('-', '_') for m in args.methods], args.bits)
    jobs = {setting.name: _job(args, setting) for setting in settings}
    todo = {n: job for n, job in jobs.items() if not (args.resume and job.out.is_dir())}
    problems, checked = [], {}
    for name, job in todo.items():
        try:
            checked[name] = check_job(job)
        except VlaqError as error:
            problems.append(f'{name}: {error}')
    if problems:
        raise ConfigError('\n'.join(problems))
    for number, (name, job) in enumerate(checked.items(), 1):
        print(f'{number}/{len(checked)} calibrating {name}', file=sys.stderr, flush=True)
        calibrate(job, Progress(lambda standing: None))
    heads = tuple(args.heads) or bundle.spec.heads
    options = _evaluation(args, settings, heads)
    found = evaluate.run_episodes(options)
    if found is None:
        return evaluate.INTERRUPTED
    bundles = {setting.name: open_bundle(jobs[setting.name].out) for setting in settings}
    cells = compare_cells(settings, bundles, heads, found.store, found.episodes)
    references = summarize(found.store, [Config('fp32', head) for head in heads], found.episodes)
    calibration = {
        'bags': len(args.bag),
        'samples': args.samples,
        'held out': args.held_out,
        'activation bits': args.activation_bits,
    }
    described = evaluate.describe_run(options, found.plan)
    path = write_comparison(args.out, cells, references, described, calibration)
    print(path.read_text(encoding='utf-8'))
    return 0


def _job(args: argparse.Namespace, setting: Setting) -> CalibrationJob:
    return CalibrationJob(
        bags=tuple(args.bag),
        out=args.out / 'bundles' / setting.name,
        bundle=args.bundle,
        method=setting.method,
        bits=setting.bits,
        group_size=setting.group_size,
        activation_bits=args.activation_bits,
        samples=args.samples,
        held_out=args.held_out,
        heads=tuple(args.heads),
        promotions=0,  # as the method left it
        options=setting.options,
        work=args.out / 'work',
        resume=True,
        overwrite=False,
    )


def _evaluation(
    args: argparse.Namespace, settings: Sequence[Setting], heads: Sequence[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    names = [setting.name for setting in settings]
    configs = [f'{name}:{head}' for head in heads for name in ('fp32', *names)]
    texts = ['--bundle', str(args.bundle), '--per-task', str(args.per_task)]
    texts += ['--out', str(args.out / 'episodes'), '--configs', *configs]
    texts += ['--packed', *(f'{n}={args.out / "bundles" / n}' for n in names)]
    if args.processes:
        texts += ['--processes', str(args.processes)]
    has_episodes = args.resume and (args.out / 'episodes').exists()
    return parser.parse_args([*texts, *(['--resume'] if has_episodes else [])])
