"""Configurations whose precision changes while an episode runs: checked, run, told."""

import argparse
import math

import pytest

from vlaq_ros.errors import ConfigError, MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.control.precision import PrecisionMenu
from vlaq_ros.control.precision_dyq import DyqOptions
from vlaq_ros.control.precision_parameters import GroupParameters, PrecisionParameters
from vlaq_ros.sim import evaluate, workers
from vlaq_ros.sim.precision_options import PrecisionOptions, Rules
from vlaq_ros.sim.precision_run import PrecisionRun
from vlaq_ros.sim.precision_tables import precision_tables
from vlaq_ros.sim.report import Row
from vlaq_ros.sim.results import Config
from vlaq_ros.sim.rollout import default_episodes
from vlaq_ros.sim.source import PolicySource

EPISODE = default_episodes(('reach',), 1)[0]
FP32, DYQ, RANDOM = (Config(name, 'flow') for name in ('fp32', 'nested@dyq', 'nested@random'))
PARAMETERS = PrecisionParameters(
    ('dyq',),
    dict.fromkeys(
        ('llm', 'expert'),
        GroupParameters(PrecisionMenu.from_names('w4a4', 'w4a8', 'w8a16'), (0.1, 0.3)),
    ),
    dyq=DyqOptions(1),
)
RULES = Rules(PARAMETERS, None, 'some rules')


def parse(*options):
    """Return parsed options over the toy bundle."""
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(['--bundle', 'toy', *map(str, options)])


@pytest.fixture
def rules_file(tmp_path):
    """Return a file of rules."""
    path = tmp_path / 'rules.json'
    path.write_text(PARAMETERS.to_json())
    return path


@pytest.fixture
def runner(robot):
    """Return a runner of the toy policy under these rules."""
    return workers.EpisodeRunner(PolicySource('toy', options=PrecisionOptions({'': RULES})))


def run(runner, *configs, **changes):
    """Return the record of each configuration."""
    job = workers.Job(EPISODE, configs, **{'open_loop': False, **changes})
    return {m.config: m.record for m in runner.run(job) if isinstance(m, workers.Finished)}


def test_every_problem_is_listed_before_anything_runs():
    args = parse(
        *('--configs', 'nested@dyq:flow', 'nested@latency:flow', 'nested@random:token'),
        *('nested@w5a8:flow', 'other@dyq:flow', '--precision-rules', '/nowhere.json'),
        *('--deadline-ms', -1, '--drift-every', 0),
    )
    with pytest.raises(ConfigError) as raised:
        evaluate.make_plan(args)
    for text in (
        '--precision-rules: /nowhere.json cannot be read',
        '--deadline-ms -1: must be positive',
        '--drift-every 0: must be at least 1',
        "'nested@dyq:flow': it has no rules of its own: give --precision-rules",
        "'nested@random:token': it repeats nested@dyq:token, list that too",
        "'nested@w5a8:flow': no level named 'w5a8'. Known: w4a2, w4a4, w4a8, w4a16",
        "'other@dyq:flow': no packed bundle named 'other'",
    ):
        assert text in str(raised.value)


def test_options_that_fit_make_a_plan_and_belong_to_its_identity(rules_file):
    args = parse(
        *('--configs', 'nested@dyq:flow', 'nested@w4a16:flow', 'w8@w8a4:flow'),
        *('--precision-rules', rules_file, '--coarse-step-mm', 10),
    )
    with pytest.raises(ConfigError, match="no packed bundle named 'w8'"):
        evaluate.make_plan(args)
    args.configs.pop()
    plan = evaluate.make_plan(args)
    assert [c.name for c in plan.configs] == ['fp32:flow', 'nested@dyq:flow', 'nested@w4a16:flow']
    rules = evaluate.describe_run(args, plan)['precision_options']['nested@dyq:flow']
    assert rules['motion_scale']['translation_m'] == pytest.approx(0.01)
    assert rules['groups']['llm']['levels'] == ['w4a4', 'w4a8', 'w8a16']


def test_the_scale_of_a_bundle_is_not_overridden():
    with pytest.raises(ConfigError, match='--coarse-step-mm belongs to --precision-rules'):
        evaluate.make_plan(parse('--configs', 'w4:flow', '--coarse-step-mm', 5))


def test_a_static_level_of_the_same_store_runs_at_that_level(runner):
    config = Config('nested@w4a16', 'flow')
    precision = run(runner, config)[config].precision
    assert precision.shares == {'llm': {'w4a16': 1.0}, 'expert': {'w4a16': 1.0}}
    assert (precision.weight_bits, precision.activation_bits) == (4.0, 16.0)


def test_an_episode_tells_its_levels_and_random_ones_repeat_their_shares(runner):
    records = run(runner, RANDOM, DYQ, FP32, open_loop=True)
    assert list(records) == [FP32, DYQ, RANDOM]
    dyq, drawn = records[DYQ].precision, records[RANDOM].precision
    assert records[FP32].precision is None
    assert math.ceil(records[DYQ].steps / 6) == dyq.inferences
    assert dyq.reasons['llm']['warm_up'] >= 1
    assert drawn.shares == dyq.shares  # the toy episode never ends early
    assert (drawn.weight_bits, drawn.activation_bits) == (dyq.weight_bits, dyq.activation_bits)
    assert records[DYQ].open_loop['steps'] == records[FP32].steps
    again = run(runner, RANDOM, finished={DYQ: dyq})
    assert again[RANDOM].precision == drawn


def test_random_levels_without_an_episode_to_repeat_are_a_refusal(runner):
    record = run(runner, RANDOM)[RANDOM]
    assert record.stopped == 'nested@dyq:flow was stopped'
    assert not record.success


def test_the_actions_at_a_level_reached_by_switching_are_those_of_the_static_one(runner):
    """A menu of one level leaves the rule no choice."""
    only = PrecisionParameters(
        ('drift',),
        dict.fromkeys(('llm', 'expert'), GroupParameters(PrecisionMenu.from_names('w4a8'))),
    )
    runner._source = PolicySource(
        'toy', options=PrecisionOptions({'nested': Rules(only, None, 'one level')})
    )
    static, switched = Config('nested@w4a8', 'flow'), Config('nested@drift', 'flow')
    records = run(runner, static, switched)
    assert records[switched].precision.shares == records[static].precision.shares
    assert (records[switched].positions == records[static].positions).all()


def make_row(name, precision, fine=(4, 5), coarse=(9, 10)):
    """Return a row over a fine and a coarse task."""
    per_task = {'assembly': fine, 'reach': coarse}
    drift = {'assembly': 0.002, 'reach': 0.004}
    successes, episodes = fine[0] + coarse[0], fine[1] + coarse[1]
    nothing = (0, None, None, None, None, 0, 0.0, 0.0)
    counts = (Config(name, 'flow'), successes, episodes, (0.0, 1.0), per_task)
    return Row(*counts, *nothing, precision, drift if precision else {})


def test_tables_show_what_was_executed_and_where():
    shares = {'llm': {'w8a16': 0.25, 'w4a4': 0.75}, 'expert': {'w4a8': 1.0}}
    dynamic = PrecisionRun(150, shares, 4.5, 7.25, 30, {'llm': {'motion': 9, 'warm_up': 1}})
    static = PrecisionRun(150, {'llm': {'w8a8': 1.0}, 'expert': {'w8a8': 1.0}}, 8.0, 8.0)
    rows = [make_row('fp32', None), make_row('n@w8a8', static), make_row('n@dyq', dynamic)]
    executed, reasons, split = precision_tables(
        rows, {'precision_rules': {'n@dyq:flow': 'a file'}}
    )
    assert executed.rows == (
        ('n@w8a8:flow', '86.7 %', '8.00', '8.00', 'w8a8 100 %', '0.0'),
        (
            *('n@dyq:flow', '86.7 %', '4.50', '7.25'),
            *('llm: w4a4 75 %, w8a16 25 %; expert: w4a8 100 %', '2.0'),
        ),
    )
    assert any('a4: activations are rounded to that range' in note for note in executed.notes)
    assert any('rules from a file' in note for note in executed.notes)
    assert reasons.rows == (('n@dyq:flow', 'llm', 'motion 90, warm_up 10'),)
    assert split.rows[0] == ('fp32:flow', '4/5 = 80.0 %', '9/10 = 90.0 %', '-', '-')
    assert split.rows[2][-2:] == ('2.0', '4.0')
    assert precision_tables(rows[:2], {}) == []
