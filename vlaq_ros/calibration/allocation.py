"""
From the cost of every unit at every width, and a budget, to one width per output channel.

A unit is an output channel, or a tile of channels of one layer that the hardware handles alike.
Everything starts at 16 bits and is demoted where a byte saved costs the least action error, until
the budget is met. The price of a move is the *difference* of costs per byte saved (QVLA,
arXiv 2602.03782), never the cost itself: what is already lost is not lost again.

Two orders of moves:

- `hull` (default): only the lower convex hull of every unit's costs is walked, on which prices
  rise from move to move, so one sorted list of all moves is the optimum of the relaxed problem;
  what the last move freed too much is then spent on the best promotions that fit.
- `adjacent`: 16 -> 8 -> 4 -> 2 -> 0 one step at a time from a heap, as published.

Pruning is decided before: a channel may become 0 bits only if that costs little more than 2 bits,
and only a small share of every layer. Numpy only; nothing here knows a model.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import SchemeError

MENU = (16, 8, 4, 2, 0)
"""Widths in the order of demotion; the columns of every cost table."""
PRUNE_SHARE = 0.02
TILE = 16
_SCALE_BYTES = 2
_EPSILON = 1e-9
_FEW = 1024
"""Up to this many units the last move weighs enough for exchanges to be worth their time."""


@dataclass(frozen=True)
class AllocationOptions:
    """
    How widths are decided.

    Attributes:
        tile: Output channels that must share a width; the channels of a layer are put into tiles
            in the order of their cost. 1 decides every channel by itself.
        count: `bytes`: the budget is bits per weight, scales included. `channels`: it is the mean
            width of the output channels, whatever their size, as QVLA publishes it.
        moves: `hull` or `adjacent`; see the module.
        prune_share: Largest share of the channels of one layer that may be pruned.
        prune_threshold: A channel may be pruned only if its cost grows by no more than this from
            2 bits to 0; None leaves the share as the only guard.
        menu: Widths to choose from.

    Raises:
        SchemeError: An option is out of range; all of them are listed.
    """

    tile: int = 1
    count: str = 'bytes'
    moves: str = 'hull'
    prune_share: float = PRUNE_SHARE
    prune_threshold: float | None = None
    menu: tuple[int, ...] = MENU

    def __post_init__(self) -> None:
        problems = []
        if self.tile < 1:
            problems.append(f'tile={self.tile} must be at least 1')
        if self.count not in ('bytes', 'channels'):
            problems.append(f"count={self.count!r} must be 'bytes' or 'channels'")
        if self.moves not in ('hull', 'adjacent'):
            problems.append(f"moves={self.moves!r} must be 'hull' or 'adjacent'")
        if not 0.0 <= self.prune_share <= 1.0:
            problems.append(f'prune_share={self.prune_share} must be between 0 and 1')
        if not self.menu or not set(self.menu) <= set(MENU):
            problems.append(f'menu={self.menu} must be widths from {MENU}')
        if problems:
            raise SchemeError('\n'.join(problems))


@dataclass(frozen=True, eq=False)
class Units:
    """
    A table of choices: one row per unit, one column per width of `MENU`.

    Attributes:
        cost: [units, 5] action error with this unit at this width.
        size: [units, 5] what it takes from the budget.
        allowed: [units, 5] False where a width may not be chosen.
    """

    cost: NDArray[np.float64]
    size: NDArray[np.float64]
    allowed: NDArray[np.bool_]


def channel_bytes(inputs: int, group_size: int | None) -> NDArray[np.float64]:
    """Return the bytes [5] of one channel at the widths of `MENU`: codes and float16 scales."""
    groups = 1 if group_size is None else -(-inputs // group_size)
    scales = [_SCALE_BYTES * groups if bits in (8, 4, 2) else 0 for bits in MENU]
    return np.array(MENU) * inputs / 8 + scales


def least_bits(
    shapes: Iterable[tuple[int, int]],
    group_size: int | None,
    bits: int = 2,
    tile: int = 1,
    prune_share: float = 0.0,
) -> float:
    """
    Return the smallest budget that an allocation can meet, scales included [bits per weight].

    Exact for layers of whole tiles; with others an allocation may need a little more.

    Args:
        shapes: [out, in] of every layer.
        group_size: Inputs that share a scale; None for one scale per channel.
        bits: The narrowest width but 0.
        tile: Output channels that must share a width; a tile of a layer is pruned whole.
        prune_share: Largest share of the channels of one layer that may be pruned.
    """
    nbytes = weights = 0.0
    for rows, inputs in shapes:
        pruned = int(prune_share * rows + _EPSILON) // tile * tile
        nbytes += (rows - pruned) * channel_bytes(inputs, group_size)[MENU.index(bits)]
        weights += rows * inputs
    return 8.0 * nbytes / weights


def allocate(
    costs: Mapping[str, NDArray[np.float64]],
    inputs: Mapping[str, int],
    budget_bits: float,
    group_size: int | None,
    options: AllocationOptions,
) -> dict[str, NDArray[np.uint8]]:
    """
    Return the width of every output channel of every layer.

    Args:
        costs: Layer -> [channels, 5] action error of each channel at each width of `MENU`.
        inputs: Layer -> number of its inputs.
        budget_bits: In the unit that `options.count` names.
        group_size: Inputs that share a scale; None for one scale per channel.
        options: How to decide.

    Raises:
        SchemeError: A cost is not finite (all layers are listed), or the budget is below what the
            smallest allowed widths need.
    """
    bad = [name for name, table in costs.items() if not np.isfinite(table).all()]
    if bad:
        raise SchemeError('action errors are not finite in layers:\n  ' + '\n  '.join(bad))
    tiles = {name: _tiles(table, options) for name, table in costs.items()}
    parts = []
    for name, table in costs.items():
        if options.count == 'bytes':
            size = channel_bytes(inputs[name], group_size)
        else:
            size = np.array(MENU, dtype=float)
        parts.append(_units(table, size, tiles[name], options))
    units = Units(*(np.concatenate([getattr(p, f) for p in parts]) for f in Units.__annotations__))
    channels = sum(map(len, costs.values()))
    if options.count == 'bytes':
        budget = budget_bits / 8 * sum(len(costs[name]) * inputs[name] for name in costs)
    else:
        budget = budget_bits * channels
    choice = demote(units, budget, options.moves)
    widths, start = {}, 0
    for name, table in costs.items():
        widths[name] = np.empty(len(table), np.uint8)
        for rows in tiles[name]:
            widths[name][rows] = MENU[choice[start]]
            start += 1
    return widths


def demote(units: Units, budget: float, moves: str = 'hull') -> NDArray[np.int64]:
    """
    Return the chosen column of every unit, with a total size within the budget.

    Raises:
        SchemeError: The smallest allowed widths are above the budget.
    """
    smallest = np.where(units.allowed, units.size, np.inf).min(1).sum()
    if smallest > budget * (1 + _EPSILON):
        raise SchemeError(
            f'the budget of {budget:g} is below the {smallest:g} that the smallest allowed widths '
            'need; raise it, or allow narrower widths or more pruning'
        )
    if moves == 'adjacent':
        return _spend_rest(units, budget, _walk_adjacent(units, budget))
    choice = _spend_rest(units, budget, _walk_hull(units, budget))
    return _exchange(units, budget, choice) if len(choice) <= _FEW else choice


def exact(units: Units, budget: float) -> NDArray[np.int64]:
    """
    Return the choice of least total cost, by dynamic programming over Pareto-optimal partial sums.

    The reference for small cases; time grows with the number of distinct sums.

    Raises:
        SchemeError: The smallest allowed widths are above the budget.
    """
    front = [(0.0, 0.0, ())]  # (size, cost, columns), sizes rising and costs falling
    for cost, size, allowed in zip(units.cost, units.size, units.allowed):
        longer = sorted(
            (used + size[k], spent + cost[k], (*columns, k))
            for used, spent, columns in front
            for k in np.flatnonzero(allowed)
            if used + size[k] <= budget * (1 + _EPSILON)
        )
        front, least = [], np.inf
        for entry in longer:
            if entry[1] < least:
                front.append(entry)
                least = entry[1]
    if not front:
        raise SchemeError(f'the budget of {budget:g} is below what the smallest widths need')
    return np.array(front[-1][2], dtype=int)


def total(units: Units, choice: NDArray[np.int64]) -> tuple[float, float]:
    """Return (cost, size) of a choice."""
    rows = np.arange(len(choice))
    return float(units.cost[rows, choice].sum()), float(units.size[rows, choice].sum())


def _tiles(table: NDArray[np.float64], options: AllocationOptions) -> list[NDArray[np.int64]]:
    """Return the channels of every tile; channels of similar cost at 2 bits lie together."""
    order = np.argsort(table[:, MENU.index(2)], kind='stable')
    return [order[i : i + options.tile] for i in range(0, len(order), options.tile)]


def _units(
    table: NDArray[np.float64],
    size: NDArray[np.float64],
    tiles: list[NDArray[np.int64]],
    options: AllocationOptions,
) -> Units:
    cost = np.array([table[rows].sum(0) for rows in tiles])
    channels = np.array([len(rows) for rows in tiles])
    allowed = np.tile([bits in options.menu for bits in MENU], (len(tiles), 1))
    allowed[:, -1] &= _prunable(cost, channels, len(table), options)
    return Units(cost, channels[:, None] * size, allowed)


def _prunable(
    cost: NDArray[np.float64],
    channels: NDArray[np.int64],
    rows: int,
    options: AllocationOptions,
) -> NDArray[np.bool_]:
    """Return which units of a layer may be pruned: the cheapest ones, up to the share."""
    if not options.prune_share > 0:
        return np.zeros(len(cost), bool)
    extra = cost[:, -1] - cost[:, -2]
    order = np.argsort(extra, kind='stable')
    prunable = np.zeros(len(cost), bool)
    prunable[order] = channels[order].cumsum() <= options.prune_share * rows + _EPSILON
    if options.prune_threshold is not None:
        prunable &= extra <= options.prune_threshold
    return prunable


def _walk_hull(units: Units, budget: float) -> NDArray[np.int64]:
    """Make the cheapest moves along the lower convex hulls until the budget is met."""
    choice = units.allowed.argmax(1)
    steps = []  # (price, unit, column) of every move
    for unit, (cost, size, allowed) in enumerate(zip(units.cost, units.size, units.allowed)):
        columns = list(np.flatnonzero(allowed))
        while len(columns) > 1:
            here, rest = columns[0], np.array(columns[1:])
            prices = (cost[rest] - cost[here]) / np.maximum(size[here] - size[rest], _EPSILON)
            best = len(rest) - 1 - int(prices[::-1].argmin())  # the longest of equal moves
            steps.append((prices[best], unit, rest[best]))
            columns = columns[best + 1 :]
    used = total(units, choice)[1]
    for price, unit, column in sorted(steps, key=lambda step: step[0]):
        if used <= budget * (1 + _EPSILON) and price > 0.0:
            break
        used += units.size[unit, column] - units.size[unit, choice[unit]]
        choice[unit] = column
    return choice


def _walk_adjacent(units: Units, budget: float) -> NDArray[np.int64]:
    """Pop the cheapest next move of any unit until the budget is met."""
    choice = units.allowed.argmax(1)
    used = total(units, choice)[1]
    heap: list[tuple[float, int, int]] = []

    def push(unit: int) -> None:
        later = np.flatnonzero(units.allowed[unit])
        later = later[later > choice[unit]]
        if len(later):
            saved = units.size[unit, choice[unit]] - units.size[unit, later[0]]
            lost = units.cost[unit, later[0]] - units.cost[unit, choice[unit]]
            heapq.heappush(heap, (lost / max(saved, _EPSILON), unit, int(later[0])))

    for unit in range(len(choice)):
        push(unit)
    while heap and used > budget * (1 + _EPSILON):
        _, unit, column = heapq.heappop(heap)
        used += units.size[unit, column] - units.size[unit, choice[unit]]
        choice[unit] = column
        push(unit)
    return choice


def _spend_rest(units: Units, budget: float, choice: NDArray[np.int64]) -> NDArray[np.int64]:
    """Promote, best gain per byte first, what still fits; the last demotion overshoots."""
    rows = np.arange(len(choice))
    left = budget * (1 + _EPSILON) - total(units, choice)[1]
    while True:
        extra = units.size - units.size[rows, choice][:, None]
        gain = units.cost[rows, choice][:, None] - units.cost
        worth = units.allowed & (extra <= left) & (gain > 0.0)
        if not worth.any():
            return choice
        rate = np.where(worth, gain / np.maximum(extra, _EPSILON), -np.inf)
        unit, column = np.unravel_index(rate.argmax(), rate.shape)
        left -= extra[unit, column]
        choice[unit] = column


def _exchange(units: Units, budget: float, choice: NDArray[np.int64]) -> NDArray[np.int64]:
    """Demote one unit to promote another for as long as that lowers the cost."""
    rows = np.arange(len(choice))
    for _ in range(len(choice)):
        left = budget * (1 + _EPSILON) - total(units, choice)[1]
        extra = np.where(units.allowed, units.size - units.size[rows, choice][:, None], np.inf)
        gain = units.cost[rows, choice][:, None] - units.cost
        best, pair = _EPSILON * total(units, choice)[0], None
        for unit, column in zip(*np.nonzero(extra < 0.0)):
            fits = (extra <= left - extra[unit, column]) & (rows != unit)[:, None]
            other = np.where(fits, gain, -np.inf).argmax()
            won = gain.flat[other] + gain[unit, column]
            if fits.flat[other] and won > best:
                best, pair = won, ((unit, column), np.unravel_index(other, gain.shape))
        if pair is None:
            break
        for unit, column in pair:
            choice[unit] = column
    return choice
