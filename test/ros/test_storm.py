"""The storm of switches: what is counted, what must hold, and a short one with real nodes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.control.precision_account import Account, Outcome
from vlaq_ros.errors import ConfigError, MissingDependencyError, PolicyError

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from vlaq_ros.policies.registry import load_policy
from vlaq_ros.policies.self_test import synthetic_observation
from vlaq_ros.ros import diagnostics, storm
from vlaq_ros.ros.precision_report import PrecisionReport
from vlaq_ros.ros.storm_policy import APPLY, INFER, KINDS, NOT_FINITE, FailingPolicy
from vlaq_ros.ros.storm_report import Gaps, Memory, Phase, StormReport
from vlaq_ros.ros.storm_ticks import Processor, Skipped

pytestmark = pytest.mark.ros
PERIOD_S = 0.025
PERIOD_NS = 25_000_000


def gaps_of(waits_s=(), steps_ns=()):
    arrivals = np.cumsum([100.0, *waits_s])
    stamps = np.cumsum([10**12, *steps_ns], dtype=np.int64)
    return Gaps.of(arrivals.tolist(), stamps.tolist(), PERIOD_S)


REGULAR = gaps_of([PERIOD_S] * 40, [PERIOD_NS] * 40)
NO_REPORT = PrecisionReport('', '', 0, 0, 0, {}, {}, {})
NONE_SKIPPED = Skipped(0, 0, 0, 0, 0)
QUIET = Phase('without switches', 1.0, REGULAR, REGULAR, 0, NONE_SKIPPED)
REPORT = StormReport(
    settings={'switches': 4},
    period_s=PERIOD_S,
    speed=1.0,
    phases=(QUIET, replace(QUIET, name='with switches')),
    calls={'asked': 7, 'accepted': 7},
    outcomes={
        'confirmed': 2,
        'overtaken': 1,
        'unchanged': 1,
        'failed and rolled back': 1,
        'failed and not rolled back': 0,
        'withheld': 1,
        'left to automatic': 1,
    },
    injected={APPLY: 1},
    weight_bytes={'w4a8': [1000], 'w8a16': [1000]},
    memory=tuple(Memory(float(s), 2**20 * (100 + s), 2**20 * (50 + s)) for s in range(30)),
)


def test_a_tick_that_is_missing_is_no_gap_and_two_are():
    gaps = gaps_of([0.025, 0.049, 0.051, 0.2], [PERIOD_NS, 2 * PERIOD_NS, 3 * PERIOD_NS, 1])
    assert (gaps.messages, gaps.over, gaps.over_stamps) == (5, 2, 1)
    assert gaps.largest_s == pytest.approx(0.2)
    assert gaps.largest_stamp_s == pytest.approx(0.075)
    assert gaps.spanned_s == pytest.approx(0.15, abs=1e-8)


def test_stamps_that_repeat_and_that_go_back_are_told_apart():
    gaps = gaps_of([0.02] * 4, [PERIOD_NS, 0, -1, PERIOD_NS])
    assert (gaps.repeated, gaps.back) == (1, 1)


def test_a_slow_simulation_is_measured_with_its_own_period():
    arrivals, stamps = [0.0, 0.1, 0.3, 0.51], [0, PERIOD_NS, 2 * PERIOD_NS, 3 * PERIOD_NS]
    assert Gaps.of(arrivals, stamps, PERIOD_S, speed=0.25).over == 1
    assert Gaps.of(arrivals, stamps, PERIOD_S).over == 3


def test_nothing_heard_has_no_gaps():
    assert Gaps.of([], [], PERIOD_S) == Gaps(0, *[0.0] * 4, 0, 0.0, 0, 0, 0)


def test_the_gaps_of_ten_thousand_ticks_match_a_loop():
    rng = np.random.default_rng(4)
    waits, steps = rng.exponential(0.03, 500), rng.integers(-1, 5, 500) * PERIOD_NS
    gaps = gaps_of(waits, steps)
    assert gaps.over == sum(wait > 2 * PERIOD_S for wait in waits)
    assert gaps.over_stamps == sum(step > 2 * PERIOD_NS for step in steps)
    assert gaps.repeated == sum(step == 0 for step in steps)
    assert gaps.back == sum(step < 0 for step in steps)


def with_outcomes(counts):
    return {'outcomes': {**REPORT.outcomes, **counts}}


def test_the_outcomes_of_the_example_are_all_that_there_are():
    assert list(REPORT.outcomes) == [str(outcome) for outcome in Outcome]


def test_a_report_in_which_all_holds_passes():
    assert REPORT.passed, REPORT.verdicts()


@pytest.mark.parametrize(
    ('change', 'verdict'),
    [
        ({'weight_bytes': {'w4a8': [1000], 'w8a16': [1001]}}, 'same bytes'),
        ({'weight_bytes': {'w4a8': [1000, 1001]}}, 'same bytes'),
        ({'phases': (QUIET, replace(QUIET, stops=1))}, 'never stopped'),
        (
            {'phases': (QUIET, replace(QUIET, commands=replace(REGULAR, back=1)))},
            'never go back',
        ),
        ({'calls': {'asked': 8, 'accepted': 7, 'unanswered': 1}}, 'unanswered'),
        ({'calls': {'asked': 8, 'accepted': 8}}, 'exactly one outcome'),
        ({'calls': {'asked': 6, 'accepted': 6}}, 'exactly one outcome'),
        (with_outcomes({'confirmed': 1}), 'exactly one outcome'),
        (with_outcomes({'overtaken': 2}), 'exactly one outcome'),
        (with_outcomes({'confirmed': 1, 'failed and rolled back': 2}), 'injected'),
        (with_outcomes({'confirmed': 3, 'failed and rolled back': 0}), 'injected'),
        (with_outcomes({'confirmed': 1, 'failed and not rolled back': 1}), 'was rolled back'),
    ],
)
def test_what_does_not_hold_is_named(change, verdict):
    report = replace(REPORT, **change)
    assert not report.passed
    (broken,) = (text for text, holds in report.verdicts().items() if not holds)
    assert verdict in broken
    assert f'- NO: {broken}' in report.tables()


def test_the_tables_show_every_outcome_and_their_sum():
    tables = REPORT.tables()
    for name, count in REPORT.outcomes.items():
        assert f'| outcome: {name} | {count} |' in tables
    assert '| calls accepted | 7 |' in tables
    assert '| outcomes together | 7 |' in tables


def test_the_account_of_requests_goes_through_diagnostics_unchanged():
    account = Account(28, 0, {outcome: k + 1 for k, outcome in enumerate(Outcome)})
    policy = load_policy('toy', precision='nested')

    class Control:
        fault = ''

        def report(self):
            return replace(NO_REPORT, account=account)

    statuses = [diagnostics.self_test(True, ''), diagnostics.precision(policy, '', Control())]
    assert diagnostics.read_account(diagnostics.array('policy', '', 0, statuses)) == account
    assert diagnostics.read_account(diagnostics.array('policy', '', 0, statuses[:1])) is None


TICKS = [k * PERIOD_NS for k in range(6)]
EVEN = [(k * PERIOD_S, stamp) for k, stamp in enumerate(TICKS)]


@pytest.mark.parametrize(
    ('commands', 'clock', 'expected'),
    [
        (TICKS, EVEN, NONE_SKIPPED),
        ([0, *TICKS], EVEN, NONE_SKIPPED),
        ([TICKS[k] for k in (0, 1, 3, 4, 5)], EVEN, Skipped(1, 1, 0, 1, 0)),
        ([TICKS[k] for k in (0, 1, 4, 5)], EVEN, Skipped(2, 1, 1, 1, 1)),
        ([TICKS[k] for k in (0, 2, 5)], EVEN, Skipped(3, 2, 1, 2, 1)),
    ],
    ids=['none', 'repeated', 'one', 'two in a row', 'one and two'],
)
def test_skipped_ticks_are_counted(commands, clock, expected):
    assert Skipped.of(commands, clock, PERIOD_S) == expected


@pytest.mark.parametrize('shift_s', [0.0, 0.012, 0.013, -0.012, -0.013])
@pytest.mark.parametrize('first', [2, 3, 4, 5])
def test_a_clock_that_is_late_or_bunched_between_the_commands_explains_a_skipped_tick(
    first, shift_s
):
    clock = [(at + shift_s * (k >= first), stamp) for k, (at, stamp) in enumerate(EVEN)]
    commands = [TICKS[k] for k in (0, 1, 2, 4, 5)]  # the waits 2 to 3 and 3 to 4 count
    is_even = abs(shift_s) < 0.0125 or first in (2, 5)
    assert Skipped.of(commands, clock, PERIOD_S) == Skipped(1, 1, 0, is_even, 0)


def test_a_tick_of_the_clock_that_did_not_arrive_explains_that_it_was_skipped():
    commands = [TICKS[k] for k in (0, 1, 3, 4, 5)]
    found = Skipped.of(commands, [*EVEN[:2], *EVEN[3:]], PERIOD_S)
    assert found == Skipped(1, 1, 0, 0, 0)


def test_an_even_clock_of_a_slow_simulation_has_longer_waits():
    slow = [(4.0 * at, stamp) for at, stamp in EVEN]
    commands = [TICKS[k] for k in (0, 1, 3, 4, 5)]
    assert Skipped.of(commands, slow, PERIOD_S, speed=0.25).over_one_even == 1
    assert Skipped.of(commands, slow, PERIOD_S).over_one_even == 0


def test_the_table_of_ticks_says_what_is_not_known():
    given = replace(QUIET, skipped=Skipped(5, 3, 2, 1, 0), processor=Processor(1.25, 0.5))
    tables = replace(REPORT, phases=(given, QUIET)).tables()
    assert '| without switches | 5 | 3, 1 | 2, 0 | 1.2 / 0.5 |' in tables
    assert '| without switches | 0 | 0, 0 | 0, 0 | unknown |' in tables


def test_the_time_on_a_processor_is_counted_or_unknown():
    assert Processor.of(2**30) is None
    assert Processor(3.0, 2.0).since(Processor(1.0, 0.5)) == Processor(2.0, 1.5)
    assert Processor(3.0, 2.0).since(None) is None


def test_memory_is_compared_between_start_middle_and_end():
    stages = REPORT.stages()
    assert [stages[name].at_s for name in ('start', 'middle', 'end')] == [1.0, 14.0, 28.0]
    assert '| growth | +27.00 | +27.00 |' in REPORT.tables()


def test_the_tables_show_speed_and_stops_of_both_phases():
    tables = replace(REPORT, phases=(QUIET, replace(QUIET, stops=3, seconds=2.0))).tables()
    assert '| without switches | 1 | 1.00 | 0.0 / 0.0 / 0.0 | 0 | 0.0 |' in tables
    assert '| without switches | 2 | 0.50 | 0.0 / 0.0 / 0.0 | 3 | 90.0 |' in tables


def test_a_report_is_written_with_its_verdicts(tmp_path):
    REPORT.write(tmp_path / 'new' / 'storm.json')
    content = json.loads((tmp_path / 'new' / 'storm.json').read_text())
    assert content['outcomes']['confirmed'] == 2
    assert all(content['verdicts'].values())
    assert content['stages']['end']['at_s'] == 28.0
    assert content['phases'][0]['commands']['messages'] == 41


@pytest.mark.parametrize('kind', KINDS)
def test_a_failure_that_is_ordered_happens_once(tmp_path, kind):
    policy = FailingPolicy(load_policy('toy', precision='nested'), tmp_path / 'order')
    observation = synthetic_observation(policy.spec, 'open the drawer')
    low = {group: levels[0] for group, levels in policy.levels.items()}
    before = dict(policy.active_levels)
    policy.apply_precision(low)
    assert np.isfinite(policy.infer(observation).actions).all()
    (tmp_path / 'order').write_text(kind)
    if kind == APPLY:
        with pytest.raises(PolicyError, match='injected: apply raises'):
            policy.apply_precision(before)
        assert policy.active_levels == low
    else:
        policy.apply_precision(before)
    if kind == INFER:
        with pytest.raises(PolicyError, match='injected: inference raises'):
            policy.infer(observation)
    if kind == NOT_FINITE:
        assert np.isnan(policy.infer(observation).actions).all()
    assert not (tmp_path / 'order').exists()
    policy.apply_precision(before)
    assert np.isfinite(policy.infer(observation).actions).all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--switches', '0'], '--switches 0 must be at least 1'),
        (['--rate', '0'], '--rate 0.0 must be above 0'),
        (['--rate', 'nan'], '--rate nan'),
        (['--quiet', '-1'], '--quiet -1.0 must be positive'),
        (['--speed', '0'], '--speed 0.0 must be from 0.01'),
        (['--load', '-1'], '--load -1 must be from 0'),
        (['--switches', '5', '--failures', '6'], '--failures 6 must be at most --switches'),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_starts(options, message, tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    storm.add_arguments(parser)
    with pytest.raises(ConfigError, match=message):
        storm.run(parser.parse_args([*options, '--out', str(tmp_path / 'out')]))
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_hundreds_of_switches_and_three_failures_with_real_nodes(ros_domain, tmp_path):
    """Commands may come late on a busy machine; everything else must hold there as well."""
    pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)
    options = ['--switches', '300', '--rate', '50', '--quiet', '1', '--load', '0']
    status = storm.main(
        [*options, '--failures', '3', '--bundle', 'toy', '--out', str(tmp_path / 'out')]
    )
    content = json.loads((tmp_path / 'out' / storm.REPORT).read_text())
    verdicts = content['verdicts']
    assert status == (0 if all(verdicts.values()) else 1)
    verdicts.pop('the arm was never stopped')
    assert all(verdicts.values()), verdicts
    assert content['calls']['asked'] == content['calls']['accepted'] == 303
    assert content['injected'] == dict.fromkeys(KINDS, 1)
    outcomes = content['outcomes']
    assert sum(outcomes.values()) == 303
    assert outcomes['failed and rolled back'] == 3
    assert outcomes['confirmed'] > 20
    assert outcomes['left to automatic'] > 0
    reasons = '\n'.join(content['why'])
    assert 'injected: apply raises' in reasons
    assert 'injected: inference raises' in reasons
    assert 'actions are not finite' in reasons
    assert all(phase['commands']['messages'] > 10 for phase in content['phases'])
    assert not list((tmp_path / 'out' / 'log').glob('failure'))
