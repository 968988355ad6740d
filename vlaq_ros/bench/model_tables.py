"""The tables of whole models, memory, switching and the GPU; those of kernels are in `report`."""

from collections.abc import Iterator

from vlaq_ros.bench.ratios import BF16, BF16_NAMES, FP32
from vlaq_ros.bench.results import Row, Section, select
from vlaq_ros.sim.tables import Table

NOTHING = '-'
MEBIBYTE = 2**20


def layer_tables(section: Section) -> Iterator[Table]:
    """Yield one table: stacks and stages as columns, ratios to the best bf16 of the column."""
    timed = [row for row in section.rows if row.get('seconds') is not None]
    columns = list(dict.fromkeys((row['stack'], row['stage']) for row in timed))
    names = list(dict.fromkeys(row['name'] for row in timed))
    if not columns:
        return
    cells = {(row['stack'], row['stage'], row['name']): row for row in timed}
    titles = []
    for stack, stage in columns:
        row = next(row for row in timed if (row['stack'], row['stage']) == (stack, stage))
        titles.append(f'{stack}, {row["layers"]} layers: {stage}, {row["tokens"]} tokens')
    rows = [
        (name, *(_against_best(cells, stack, stage, name) for stack, stage in columns))
        for name in names
    ]
    refused = [f'{row["name"]}: {row["remark"]}' for row in section.rows if row.get('remark')]
    yield Table(
        'Decoder stacks [ms] (times faster than the best bf16; than torch bf16)',
        ('linear layers', *titles),
        tuple(rows),
        (
            'norms, attention, rotary positions and residuals run eagerly in all rows',
            *dict.fromkeys(refused),
        ),
    )


def _against_best(cells: dict, stack: str, stage: str, name: str) -> str:
    row = cells.get((stack, stage, name))
    if row is None:
        return NOTHING
    text = f'{1e3 * row["seconds"]:,.1f}'
    bf16 = [
        cells[stack, stage, other]['seconds']
        for other in BF16_NAMES
        if (stack, stage, other) in cells
    ]
    if not bf16 or name == FP32:
        return text
    stock = cells.get((stack, stage, BF16))
    against_stock = f'; {stock["seconds"] / row["seconds"]:.2f}' if stock else ''
    return f'{text} ({min(bf16) / row["seconds"]:.2f}{against_stock})'


def policy_tables(section: Section) -> Iterator[Table]:
    """Yield one table per model: precisions as rows, stages as columns, p50/p95/p99."""
    for model in dict.fromkeys(row['model'] for row in section.rows):
        found = select(section.rows, model=model)
        stages = list(dict.fromkeys(stage for row in found for stage in row['stages']))
        rows = []
        for row in found:
            cells = []
            for stage in stages:
                values = row['stages'].get(stage)
                known = [] if values is None else [s for s in values.values() if s is not None]
                cells.append(' / '.join(f'{1e3 * s:.2f}' for s in known) or NOTHING)
            rows.append((f'{row["precision"]}:{row["head"]}', *cells, row['ratio']))
        count = found[0]['inferences']
        what = 'p50 / p95 / p99' if ' / ' in ''.join(rows[0][1:-1]) else 'p50'
        yield Table(
            f'{model} [ms] {what} of {count} inferences, {found[0]["threads"]} thread',
            ('precision', *stages, 'times faster than the best bf16'),
            tuple((*row[:-1], NOTHING if row[-1] is None else f'{row[-1]:.2f}') for row in rows),
            (
                'stages: wall time; the ratio: medians of CPU time, all rows in turn',
                *dict.fromkeys(row['kernel'] for row in found if row.get('kernel')),
            ),
        )


def memory_tables(section: Section) -> Iterator[Table]:
    """Yield one table: resident and peak bytes against the bits of the weights."""
    bf16 = next((row for row in section.rows if row['name'] == 'torch bf16'), None)
    rows = []
    for row in section.rows:
        against = row['resident_bytes'] / row['weights'] / 2
        if bf16:
            against = row['resident_bytes'] / bf16['resident_bytes']
        allowed = 1.1 * row['resident_bytes'] + row['layer_bytes']
        rows.append(
            (
                row['name'],
                f'{row["bits"]:.2f}',
                f'{row["resident_bytes"] / MEBIBYTE:,.1f}',
                f'{row["resident_bytes"] / row["ideal_bytes"]:.3f}',
                f'{against:.3f}',
                f'{row["peak_bytes"] / MEBIBYTE:,.1f}',
                f'{row["peak_bytes"] / allowed:.2f}',
            )
        )
    if rows:
        first = section.rows[0]
        yield Table(
            f'Memory of {first["layers"]} layers {first["in"]}x{first["out"]} in a fresh process, '
            'as the system counts it',
            (
                'store',
                'bits/weight',
                'resident [MiB]',
                'of bits/8',
                'of bf16',
                'peak while loading [MiB]',
                'peak / (1.1 resident + 1 layer)',
            ),
            tuple(rows),
            (
                'resident: private memory added by loading from files and one call; '
                'of bits/8: scales, order and padding are what exceeds 1.',
            ),
        )


def switching_tables(section: Section) -> Iterator[Table]:
    """Yield one table: the price of changing the cap of an 8-bit store."""
    rows = []
    for row in section.rows:
        first, later = row['first_call_s'], row['later_call_s']
        rows.append(
            (
                row['name'],
                f'{1e6 * row["switch_s"]:.1f}',
                f'{row["added_bytes"] / 1024:,.0f}',
                *(f'{first[cap] / later[cap]:.2f}' for cap in ('4', '8')),
                f'{1e6 * row["steady_call_s"]["8"]:.0f}',
                f'{1e6 * row["steady_call_s"]["4"]:.0f}',
                f'{1e6 * row["w4_call_s"]:.0f}',
                f'{row["steady_call_s"]["4"] / row["w4_call_s"]:.2f}',
            )
        )
    if rows:
        yield Table(
            'Change of precision on one 8-bit store, 1 token',
            (
                'layer',
                'change [us]',
                'memory added [KiB]',
                'first call / later, to 4',
                'to 8',
                'at 8 [us]',
                'at 4 [us]',
                'W4 store [us]',
                'at 4 / W4 store',
            ),
            tuple(rows),
            (
                f'{section.rows[0]["switches"]} changes and more; between two calls every other '
                'copy of the layer is called, so that weights come from memory',
            ),
        )


def gpu_tables(section: Section) -> Iterator[Table]:
    """Yield the table of the GPU, or a sentence in its place."""
    absent = [row['reason'] for row in section.rows if 'reason' in row]
    if absent:
        yield Table('GPU', ('kernel', 'time'), (), tuple(dict.fromkeys(absent)))
        return
    for tokens in dict.fromkeys(row['tokens'] for row in section.rows):
        found = select(section.rows, tokens=tokens)
        shapes = list(dict.fromkeys((row['in'], row['out']) for row in found))
        rows = []
        for name in dict.fromkeys(row['name'] for row in found):
            cells = [_gpu_cell(found, name, *shape) for shape in shapes]
            rows.append((name, *cells))
        yield Table(
            f'GPU, one linear layer [us] (times faster than cuBLAS bf16): {tokens} tokens, '
            f'{found[0]["device"]}',
            ('kernel', *(f'{inputs}x{outputs}' for inputs, outputs in shapes)),
            tuple(rows),
            ('every kernel replayed from a CUDA graph',),
        )


def _gpu_cell(found: list[Row], name: str, inputs: int, outputs: int) -> str:
    here = {row['name']: row for row in select(found, in_=inputs, out=outputs)}
    row, baseline = here.get(name), here.get('cuBLAS bf16')
    if row is None or row['seconds'] is None:
        return NOTHING
    text = f'{1e6 * row["seconds"]:,.1f}'
    return f'{text} ({baseline["seconds"] / row["seconds"]:.2f})' if baseline else text
