import numpy as np
import pytest

from vlaq_ros.analysis import compare
from vlaq_ros.analysis.compare_tables import compare_cells, make_tables, write_comparison
from vlaq_ros.errors import ConfigError
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.sim.report import summarize
from vlaq_ros.sim.results import Config, Record, ResultStore
from vlaq_ros.sim.rollout import Episode

SHAPES = [(192, 192), (512, 192)]


@pytest.mark.parametrize(
    ('budget', 'bits', 'group'),
    [
        (2.0, 2 + 16 / 192, None),
        (2.25, 2.25, 64),
        (2.5, 2.5, 32),
        (3.0, 3.0, 16),
        (4.0, 4 + 16 / 192, None),
    ],
)
def test_a_uniform_grid_is_the_finest_near_the_budget(budget, bits, group):
    found = compare.uniform_grid(SHAPES, budget)
    assert found == (pytest.approx(bits, abs=2e-3), group)


def test_a_budget_no_grid_reaches_is_refused():
    with pytest.raises(ConfigError, match='--bits 1.5: codes of 2 bits with a scale need 2.083'):
        compare.uniform_grid(SHAPES, 1.5)


def test_methods_that_prune_get_exactly_the_budget_and_the_share_they_need():
    settings = compare.settings_for(open_bundle('metaworld'), ['rtn', 'qvla', 'ours'], [2.0])
    by_method = {s.method: s for s in settings}
    assert by_method['rtn'].bits > 2.05
    for name in ('qvla', 'ours'):
        assert by_method[name].bits == 2.0
        assert 0.03 < float(by_method[name].options['prune_share']) < 0.2


def test_no_name_holds_what_separates_the_head():
    settings = compare.settings_for(open_bundle('metaworld'), compare.COMPARED, compare.BUDGETS)
    assert not [s.name for s in settings if set(s.name) & set('-@:/')]
    assert len({s.name for s in settings}) == len(compare.COMPARED) * len(compare.BUDGETS)


class Packed:
    def __init__(self, bits):
        self.quantization = {'mean_bits_per_weight': bits}


@pytest.fixture
def finished(tmp_path):
    """Ten episodes: fp32 solves all, rtn 2, ours 9; ours ends 1 mm beside, rtn 30 mm."""
    episodes = [Episode('reach', 100, i, 'reach') for i in range(10)]
    store = ResultStore(tmp_path / 'episodes', {})
    path = np.zeros((20, 3))
    for name, solved, aside in (('fp32', 10, 0.0), ('rtn_2.5', 2, 0.03), ('ours_2.5', 9, 0.001)):
        for i in range(10):
            record = Record('reach', 100, i, 'reach', i < solved, 19, path + [aside, 0, 0])
            store.append(Config(name, 'flow'), record)
    settings = [compare.Setting(m, 2.5, 2.5, 32) for m in ('rtn', 'ours')]
    bundles = {s.name: Packed(2.5) for s in settings}
    cells = compare_cells(settings, bundles, ['flow'], store, episodes)
    return cells, summarize(store, [Config('fp32', 'flow')], episodes)


def test_every_cell_is_paired_with_full_precision_and_with_rounding(finished):
    rtn, ours = finished[0]
    assert (rtn.row.paired.lost, rtn.row.paired.gained, rtn.baseline) == (8, 0, None)
    assert (ours.row.paired.lost, ours.baseline.lost, ours.baseline.gained) == (1, 0, 7)
    assert ours.baseline.verdict == 'better'
    assert ours.row.closed_loop.mean_m == pytest.approx(0.001)


def test_a_loss_is_marked_and_a_tie_is_not(finished):
    success = make_tables(*finished)[0]
    assert success.rows == (('rtn', '20.0 -'), ('ours', '90.0'))
    assert 'full precision 100.0 (10 of 10)' in success.notes[0]


def test_the_files_hold_every_cell(finished, tmp_path):
    run = {'bundle': {'sha256': 'abc'}, 'command': 'vlaq compare', 'cpu': 'some', 'cores': 2}
    path = write_comparison(tmp_path, *finished, run, {'samples': 8})
    text = path.read_text()
    assert '| ours | 2.500 | 32 | 9/10 = 90.0 % |' in text
    assert '0/7, 0.02: better' in text
    assert (tmp_path / 'comparison.json').exists()
