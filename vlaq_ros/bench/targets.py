"""
What the kernels were built to reach, and whether they did here.

Every target takes the worst case it speaks of: the slowest shape, the largest overhead. A target
that was not measured has no verdict.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from vlaq_ros.bench.ratios import BF16, FP32, Point, points
from vlaq_ros.bench.results import Results, select
from vlaq_ros.sim.tables import Table

LARGE_WEIGHTS = 4_000_000
MANY_TOKENS = 50
A8 = ('W2A8', 'W4A8', 'W8A8')
ONEDNN = 'torch dynamic int8 onednn'
NOTHING = '-'


class Target(NamedTuple):
    """
    One claim that a measurement can refute.

    Attributes:
        text: The claim.
        bound: The number that must be reached.
        is_lowest: Whether values must be at least the bound; else at most.
        unit: Printed after the numbers.
        values: Everything the claim speaks of.
    """

    text: str
    bound: float
    is_lowest: bool
    unit: str
    values: Callable[[Results], Iterable[float | None]]


def target_table(results: Results) -> Table | None:
    """Return the verdicts; None when nothing was measured that a target speaks of."""
    rows = []
    for target in TARGETS:
        found = [value for value in target.values(results) if value is not None]
        worst = (min(found) if target.is_lowest else max(found)) if found else None
        rows.append((target.text, _bound(target), *_verdict(target, worst)))
    if all(row[-1] == NOTHING for row in rows):
        return None
    return Table(
        'Targets, each by its worst case',
        ('target', 'wanted', 'measured', 'reached'),
        tuple(rows),
        (
            f'large: at least {LARGE_WEIGHTS // 10**6} M weights. One thread. The price of mixing '
            'is that over the weighted mean of uniform layers.',
        ),
    )


def _bound(target: Target) -> str:
    return (
        f'{"at least" if target.is_lowest else "at most"} {target.bound:g} {target.unit}'.strip()
    )


def _verdict(target: Target, worst: float | None) -> tuple[str, str]:
    if worst is None:
        return NOTHING, NOTHING
    reached = worst >= target.bound if target.is_lowest else worst <= target.bound
    return f'{worst:.3g} {target.unit}'.strip(), 'yes' if reached else 'no'


def _points(results: Results, isa: str = '') -> list[Point]:
    """Return the points of one thread: of the widest instructions, or of named ones."""
    section = results.sections.get('kernels')
    groups = points(section.rows) if section else {}
    of_one = {key: found for key, found in groups.items() if key[0] == 1}
    if isa:
        return of_one.get((1, isa), [])
    return next(iter(of_one.values()), [])


def _large(results: Results, isa: str = '') -> Iterator[Point]:
    for point in _points(results, isa):
        if point.inputs * point.outputs >= LARGE_WEIGHTS:
            yield point


def _one_token(name: str, baseline: str | None) -> Callable[[Results], Iterator[float | None]]:
    """Return ratios of large layers at one token; baseline None is the best bf16."""

    def values(results: Results) -> Iterator[float | None]:
        for point in _large(results):
            if point.tokens == 1:
                yield point.ratio(name, baseline or point.best_bf16() or '')

    return values


def _bandwidth(name: str) -> Callable[[Results], Iterator[float | None]]:
    """Return the share of the reading rate [%] of large layers at one token."""

    def values(results: Results) -> Iterator[float | None]:
        rows = results.sections['kernels'].rows if 'kernels' in results.sections else []
        for point in _large(results):
            row = point.rows.get(name)
            if point.tokens != 1 or not row:
                continue
            place = {k: row[k] for k in ('out', 'tokens', 'threads', 'isa')}
            ceiling = select(rows, name='ceilings', in_=row['in'], **place)
            if ceiling:
                rate = row['read_bytes'] / row['seconds']
                yield 100 * rate / ceiling[0]['read_bytes_s']

    return values


def _many_tokens(results: Results) -> Iterator[float | None]:
    for point in _large(results):
        if point.tokens >= MANY_TOKENS:
            yield from (point.ratio(name, point.best_bf16() or '') for name in A8)


def _of_int8(results: Results) -> Iterator[float | None]:
    for point in _large(results):
        best = point.best_int8()
        if point.tokens >= MANY_TOKENS and best:
            yield from (point.ratio(name, best) for name in A8)


def _of_onednn(isa: str, names: Iterable[str]) -> Callable[[Results], Iterator[float | None]]:
    def values(results: Results) -> Iterator[float | None]:
        for point in _large(results, isa):
            if point.tokens >= 64:
                yield from (point.ratio(name, ONEDNN) for name in names)

    return values


def _share_of_peak(results: Results) -> Iterator[float | None]:
    for point in _large(results):
        if point.tokens >= 256:
            shares = (point.floor_share(name) for name in A8)
            yield from (None if share is None else 100 * share for share in shares)


def _mixing(mix: str) -> Callable[[Results], Iterator[float | None]]:
    def values(results: Results) -> Iterator[float | None]:
        for point in _large(results):
            overhead = point.mixing_overhead(mix)
            yield None if overhead is None else 100 * overhead

    return values


def _avxvnni_gemm(results: Results) -> Iterator[float | None]:
    for point in _points(results, 'avxvnni'):
        if point.tokens >= 64:
            yield from (point.ratio(name, FP32) for name in A8)


def _avxvnni_gemv(results: Results) -> Iterator[float | None]:
    for point in _points(results, 'avxvnni'):
        if point.tokens == 1:
            yield point.ratio('W4A8', point.best_int8() or '')


def _rows(results: Results, section: str, **values: Any) -> list[dict[str, Any]]:
    found = results.sections.get(section)
    return select(found.rows, **values) if found else []


def _memory(names: Iterable[str], value: Callable[[dict[str, Any]], float]) -> Callable:
    return lambda results: [
        value(row) for name in names for row in _rows(results, 'memory', name=name)
    ]


def _of_bf16(name: str) -> Callable[[Results], list[float]]:
    def values(results: Results) -> list[float]:
        bf16 = _rows(results, 'memory', name='torch bf16')
        own = _rows(results, 'memory', name=name)
        return [own[0]['resident_bytes'] / bf16[0]['resident_bytes']] if bf16 and own else []

    return values


def _decode(results: Results) -> Iterator[float]:
    found = {row['name']: row for row in _rows(results, 'layers', stack='7b', stage='decode')}
    if BF16 in found and 'W4A8' in found:
        yield found[BF16]['seconds'] / found['W4A8']['seconds']


def _small_vla(baseline: str) -> Callable[[Results], Iterator[float]]:
    def values(results: Results) -> Iterator[float]:
        rows = [r for r in _rows(results, 'policy') if r['model'].startswith('Small VLA')]
        seconds = {row['precision']: row['cpu_s'] for row in rows}
        packed = [s for name, s in seconds.items() if name.startswith('W4A8')]
        if not packed:
            return
        if baseline in seconds:
            yield seconds[baseline] / min(packed)
        elif not baseline:
            yield max(row['ratio'] for row in rows if row['precision'].startswith('W4A8'))

    return values


OWN_STORES = ('W2', 'W4', 'W8, 4 nested', 'mix 0/4/8/16')
TARGETS = (
    Target('W4A8 / best bf16, 1 token, large', 3.0, True, 'x', _one_token('W4A8', None)),
    Target('W8A8 / best bf16, 1 token, large', 1.8, True, 'x', _one_token('W8A8', None)),
    Target('W2A8 / best bf16, 1 token, large', 5.0, True, 'x', _one_token('W2A8', None)),
    Target('W4A8 / stock torch bf16, 1 token, large', 6.0, True, 'x', _one_token('W4A8', BF16)),
    Target('W4A8 / torch fp32, 1 token, large', 9.0, True, 'x', _one_token('W4A8', FP32)),
    Target('W4A8 reads at, 1 token, large', 80, True, '% of DRAM', _bandwidth('W4A8')),
    Target('W8A8 reads at, 1 token, large', 80, True, '% of DRAM', _bandwidth('W8A8')),
    Target('2 to 8 bits A8 / best bf16, 50+ tokens, large', 1.8, True, 'x', _many_tokens),
    Target('2 to 8 bits A8 / best int8 library, 50+ tokens, large', 0.95, True, 'x', _of_int8),
    Target('2 to 8 bits A8, 256+ tokens, large', 80, True, '% of int8 peak', _share_of_peak),
    Target('AVX-VNNI: A8 / fp32, 64+ tokens', 4.0, True, 'x', _avxvnni_gemm),
    Target('AVX-VNNI: W4A8 / best torch int8, 1 token', 1.5, True, 'x', _avxvnni_gemv),
    Target(
        'AVX-VNNI: A8 / oneDNN int8, 64+ tokens',
        1.0,
        True,
        'x',
        _of_onednn('avxvnni', A8),
    ),
    Target(
        'AVX2: W2A8, W4A8 / oneDNN int8, 64+ tokens',
        1.0,
        True,
        'x',
        _of_onednn('avx2', A8[:2]),
    ),
    Target('AVX2: W8A8 / oneDNN int8, 64+ tokens', 1.0, True, 'x', _of_onednn('avx2', A8[2:])),
    Target('price of mixing 2/4/8 bits, large', 5, False, '%', _mixing('mix 2/4/8')),
    Target('price of mixing 0/4/8/16 bits, large', 5, False, '%', _mixing('mix 0/4/8/16')),
    Target(
        'change of precision',
        100,
        False,
        'us',
        lambda results: [1e6 * row['switch_s'] for row in _rows(results, 'switching')],
    ),
    Target(
        'first call after it / later calls',
        1.1,
        False,
        'x',
        lambda results: [
            row['first_call_s'][cap] / row['later_call_s'][cap]
            for row in _rows(results, 'switching')
            for cap in row['first_call_s']
        ],
    ),
    Target(
        'resident / bits of the weights',
        1.08,
        False,
        'x',
        _memory(OWN_STORES, lambda row: row['resident_bytes'] / row['ideal_bytes']),
    ),
    Target('resident, mix of 5.2 bits / bf16', 0.36, False, 'x', _of_bf16('mix 0/4/8/16')),
    Target('resident, 4 bits / bf16', 0.28, False, 'x', _of_bf16('W4')),
    Target('resident, 4 in 8 bits / bf16', 0.54, False, 'x', _of_bf16('W8, 4 nested')),
    Target(
        'peak while loading / (1.1 resident + 1 layer)',
        1.0,
        False,
        'x',
        _memory(
            OWN_STORES,
            lambda row: row['peak_bytes'] / (1.1 * row['resident_bytes'] + row['layer_bytes']),
        ),
    ),
    Target('small VLA, W4A8 / best bf16', 1.7, True, 'x', _small_vla('')),
    Target('small VLA, W4A8 / fp32', 5.0, True, 'x', _small_vla(FP32)),
    Target('7B-like decode, W4A8 / stock torch bf16', 5.0, True, 'x', _decode),
)
