"""Allocation: the budget holds, costs never rise with it, and greedy stays near the optimum."""

import itertools

import numpy as np
import pytest

from vlaq_ros.calibration.allocation import (
    MENU,
    AllocationOptions,
    Units,
    allocate,
    channel_bytes,
    demote,
    exact,
    least_bits,
    total,
)
from vlaq_ros.errors import SchemeError

ALL = AllocationOptions(prune_share=1.0)


def random_units(rng, count):
    """Costs that fall with the width by about 4x per bit, as rounding noise does."""
    strength = np.exp(rng.normal(size=(count, 1)) * 1.5)
    noise = np.array([2.0**-18, 2.0**-12, 2.0**-6, 0.2, 1.0])
    cost = strength * noise * np.exp(rng.normal(size=(count, 5)) * 0.3)
    inputs = rng.choice([32, 64, 192], count)
    size = np.array([channel_bytes(int(n), None) for n in inputs])
    return Units(cost, size, np.ones((count, 5), bool))


def random_layers(rng):
    costs = {
        name: np.exp(rng.normal(size=(rows, 1))) * np.array([1e-6, 1e-4, 1e-2, 0.2, 1.0])
        for name, rows in (('wide', 48), ('narrow', 32))
    }
    return costs, {'wide': 64, 'narrow': 192}


def bytes_of(widths, inputs, group_size=None):
    table = {name: dict(zip(MENU, channel_bytes(n, group_size))) for name, n in inputs.items()}
    return sum(table[name][int(bits)] for name in widths for bits in widths[name])


@pytest.mark.parametrize('moves', ['hull', 'adjacent'])
@pytest.mark.parametrize('seed', range(20))
def test_the_budget_is_never_exceeded_and_less_budget_never_costs_less(moves, seed):
    units = random_units(np.random.default_rng(seed), 30)
    full = units.size[:, 0].sum()
    costs = []
    for share in (0.05, 0.15, 0.3, 0.6, 1.0):
        cost, size = total(units, demote(units, share * full, moves))
        assert size <= share * full * (1 + 1e-6)
        costs.append(cost)
    assert all(a >= b for a, b in itertools.pairwise(costs))


@pytest.mark.parametrize('seed', range(40))
def test_greedy_is_within_five_percent_of_the_optimum(seed):
    units = random_units(np.random.default_rng(100 + seed), 40)
    budget = units.size[:, 0].sum() * (0.12 + 0.01 * seed)
    best, _ = total(units, exact(units, budget))
    found, _ = total(units, demote(units, budget))
    assert best <= found * (1 + 1e-9)
    assert found <= 1.05 * best


def test_the_exact_solver_agrees_with_trying_everything():
    units = random_units(np.random.default_rng(5), 5)
    budget = 0.25 * units.size[:, 0].sum()
    tried = []
    for choice in itertools.product(range(5), repeat=5):
        cost, size = total(units, np.array(choice))
        if size <= budget:
            tried.append(cost)
    assert total(units, exact(units, budget))[0] == pytest.approx(min(tried))


def test_a_demotion_is_priced_by_the_difference_not_by_what_is_already_lost():
    # The first unit has lost much already, but loses nothing more at 4 bits.
    cost = np.array([[0.0, 5.0, 5.0, 9.0, 99.0], [0.0, 0.1, 3.0, 9.0, 99.0]])
    units = Units(cost, np.tile(np.array(MENU, float), (2, 1)), np.ones((2, 5), bool))
    assert demote(units, 12.0, 'adjacent').tolist() == [2, 1]
    assert demote(units, 12.0, 'hull').tolist() == [2, 1]


def test_the_mean_width_equals_the_budget_when_channels_are_counted():
    costs, inputs = random_layers(np.random.default_rng(0))
    options = AllocationOptions(count='channels', moves='adjacent')
    for budget in (3.0, 4.0, 8.0):
        widths = allocate(costs, inputs, budget, None, options)
        mean = np.concatenate(list(widths.values())).mean()
        assert budget - 8 / 80 <= mean <= budget


def test_scales_count_and_bytes_are_weighted_by_the_inputs():
    costs, inputs = random_layers(np.random.default_rng(1))
    weights = sum(len(costs[name]) * inputs[name] for name in costs)
    for group_size in (None, 16, 64):
        widths = allocate(costs, inputs, 4.0, group_size, AllocationOptions())
        used = bytes_of(widths, inputs, group_size)
        assert 0.97 * 4.0 <= 8 * used / weights <= 4.0


def test_channels_of_a_tile_share_a_width():
    costs, inputs = random_layers(np.random.default_rng(2))
    widths = allocate(costs, inputs, 4.0, None, AllocationOptions(tile=16, prune_share=0.0))
    for values in widths.values():
        _, counts = np.unique(values, return_counts=True)
        assert (counts % 16 == 0).all()
        assert len(counts) > 1


def test_tiles_cost_no_less_than_single_channels():
    costs, inputs = random_layers(np.random.default_rng(3))

    def cost_of(tile):
        widths = allocate(costs, inputs, 3.0, None, AllocationOptions(tile=tile))
        column = {bits: i for i, bits in enumerate(MENU)}
        return sum(costs[n][i, column[int(b)]] for n in costs for i, b in enumerate(widths[n]))

    assert cost_of(1) <= cost_of(16) * (1 + 1e-9)


def test_pruning_stays_below_its_share_and_its_threshold():
    costs, inputs = random_layers(np.random.default_rng(4))
    free = {
        name: np.where(np.arange(5) == 4, table[:, 3:4], table) for name, table in costs.items()
    }
    widths = allocate(free, inputs, 2.1, None, AllocationOptions(prune_share=0.1))
    assert {name: int((w == 0).sum()) for name, w in widths.items()} == {'wide': 4, 'narrow': 3}
    threshold = AllocationOptions(prune_share=1.0, prune_threshold=0.5)
    widths = allocate(costs, inputs, 1.9, None, threshold)
    pruned = np.concatenate([(costs[n][:, 4] - costs[n][:, 3])[w == 0] for n, w in widths.items()])
    assert len(pruned)
    assert (pruned <= 0.5).all()


def test_the_order_of_layers_and_the_unit_of_cost_do_not_matter():
    costs, inputs = random_layers(np.random.default_rng(6))
    one = allocate(costs, inputs, 3.0, None, ALL)
    other = allocate({n: 1000.0 * costs[n] for n in reversed(costs)}, inputs, 3.0, None, ALL)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_budget_below_the_smallest_widths_is_refused():
    costs, inputs = random_layers(np.random.default_rng(7))
    with pytest.raises(SchemeError, match='raise it, or allow narrower widths or more pruning'):
        allocate(costs, inputs, 2.0, None, AllocationOptions(prune_share=0.0))


def test_layers_without_a_finite_cost_are_all_named():
    costs, inputs = random_layers(np.random.default_rng(8))
    costs['wide'][0, 0] = np.nan
    costs['narrow'][3, 2] = np.inf
    with pytest.raises(SchemeError, match='wide\n  narrow'):
        allocate(costs, inputs, 4.0, None, ALL)


def test_every_bad_option_is_named():
    with pytest.raises(SchemeError) as refusal:
        AllocationOptions(tile=0, count='rows', moves='random', prune_share=2.0, menu=(3,))
    assert all(word in str(refusal.value) for word in ('tile', 'count', 'moves', 'share', 'menu'))


@pytest.mark.parametrize('tile', [1, 16])
@pytest.mark.parametrize('share', [0.0, 0.09, 0.5])
def test_the_least_budget_can_be_met_and_nothing_below_it(tile, share):
    generator = np.random.default_rng(0)
    inputs = {'short': 64, 'long': 256}
    rows = {'short': 192, 'long': 112}
    costs = {name: np.sort(generator.random((rows[name], 5)), axis=1) for name in inputs}
    least = least_bits([(rows[n], inputs[n]) for n in inputs], 64, 2, tile, share)
    options = AllocationOptions(tile=tile, prune_share=share)
    assert allocate(costs, inputs, least, 64, options)
    with pytest.raises(SchemeError, match='smallest allowed widths'):
        allocate(costs, inputs, least - 0.01, 64, options)
