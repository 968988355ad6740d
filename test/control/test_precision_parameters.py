"""Parameters survive a file, build the controller they describe, and name every mistake."""

import json

import pytest

from vlaq_ros.control.precision import PrecisionInputs, PrecisionLevel, PrecisionMenu, Reason
from vlaq_ros.control.precision_controller import SafetyOptions
from vlaq_ros.control.precision_dyq import DyqOptions
from vlaq_ros.control.precision_parameters import RULES, GroupParameters, PrecisionParameters
from vlaq_ros.control.precision_rules import DriftOptions, LatencyOptions
from vlaq_ros.errors import ConfigError

LLM = PrecisionMenu.from_names('w4a4', 'w4a8', 'w8a16')
EXPERT = PrecisionMenu.from_names('w4a8', 'w8a16')


def make_parameters(rules=('dyq', 'latency')):
    return PrecisionParameters(
        rules,
        {
            'llm': GroupParameters(LLM, (0.2, 0.5), PrecisionLevel(4, 8)),
            'expert': GroupParameters(EXPERT, (0.4,)),
        },
        DyqOptions(3),
        DriftOptions(0.001, 0.002, 0.01, 0.02, 5, 50),
        LatencyOptions(0.05, 0.2, 7, 70),
        SafetyOptions(2.5),
    )


def test_every_value_survives_a_json_file():
    assert PrecisionParameters.from_json(make_parameters().to_json()) == make_parameters()


def test_what_a_file_leaves_out_has_its_default():
    text = '{"format": 1, "rules": ["static"], "groups": {"llm": {"levels": ["w4a8"]}}}'
    parameters = PrecisionParameters.from_json(text)
    assert parameters.drift == DriftOptions()
    assert parameters.groups['llm'] == GroupParameters(PrecisionMenu.from_names('w4a8'))


@pytest.mark.parametrize('rule', RULES)
def test_each_rule_alone_builds_a_controller_that_decides_by_it(rule):
    """At rest, without drift and with time to spare: who lowers, and why."""
    controller = make_parameters((rule,)).controller()
    active = controller.top
    for _ in range(30):
        inputs = PrecisionInputs(0, (0.0,), drift_m=0.0, latency_s=0.01, deadline_s=0.1)
        decisions = controller.decide(inputs, active)
        active = {name: decision.level for name, decision in decisions.items()}
    expected = {
        'static': ({'llm': PrecisionLevel(4, 8), 'expert': EXPERT.top}, Reason.STATIC),
        'dyq': ({'llm': LLM.bottom, 'expert': EXPERT.bottom}, Reason.MOTION),
        'drift': ({'llm': LLM.bottom, 'expert': EXPERT.bottom}, Reason.DRIFT_HELD),
        'latency': (controller.top, Reason.MARGIN_HELD),
    }
    assert (active, decisions['llm'].reason) == expected[rule]


def test_the_options_reach_the_rules():
    """K = 3 lowers in the third decision; the dwell time is 2.5 s."""
    controller = make_parameters(('dyq',)).controller()
    inputs = PrecisionInputs(0, (0.0,))
    found = [controller.decide(inputs, controller.top)['llm'].level for _ in range(4)]
    assert found == [LLM.top, LLM.top, LLM.bottom, LLM.bottom]


def test_a_file_with_many_mistakes_names_all_of_them():
    data = {
        'format': 1,
        'rules': ['dyq'],
        'groups': {
            'llm': {'levels': ['w4a9', 'bf16'], 'boundaries': [0.1]},
            'expert': {'boundaries': [0.1], 'theta': 1},
            'head': {'levels': ['w4a8', 'w8a16'], 'boundaries': [0.1, 'x'], 'static': 'w8a8'},
            'other': 3,
        },
        'dyq': {'lower_after': 0, 'lambda': 1},
        'drift': {'warn_m': 5},
        'safety': [],
        'thresholds': {},
    }
    with pytest.raises(ConfigError) as error:
        PrecisionParameters.from_json(json.dumps(data), 'precision.json')
    lines = str(error.value).splitlines()
    assert all(line.startswith('precision.json: ') for line in lines)
    for text in (
        "no parameter named 'thresholds'",
        "groups.llm.levels: precision level 'w4a9'",
        "groups.llm.levels: precision level 'bf16'",
        'groups.expert.levels is missing',
        "no parameter named 'groups.expert.theta'",
        'groups.head: boundaries = ',
        'groups.head: static = w8a8 is not one of the levels w4a8, w8a16',
        'groups.other = 3 must be an object',
        'dyq: lower_after = 0',
        "no parameter named 'dyq.lambda'",
        'drift: warn_m = 5',
        'safety = [] must be an object',
    ):
        assert any(text in line for line in lines), text


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'p.json is not JSON'),
        ('[]', 'p.json must hold one JSON object, got list'),
        ('{}', 'p.json is format None; this version reads 1'),
        ('{"format": 2}', 'p.json is format 2'),
        ('{"format": 1}', 'rules is missing'),
        ('{"format": 1, "rules": "dyq", "groups": {}}', "rules = 'dyq' must be a list of names"),
        ('{"format": 1, "rules": ["static"], "groups": {}}', 'groups is empty'),
    ],
    ids=['cut', 'list', 'no format', 'newer', 'no rules', 'text', 'no groups'],
)
def test_a_file_that_is_none_says_what_is_wrong(text, message):
    with pytest.raises(ConfigError) as error:
        PrecisionParameters.from_json(text, 'p.json')
    assert message in str(error.value)


@pytest.mark.parametrize(
    ('rules', 'message'),
    [
        ((), 'at least one'),
        (('dyq', 'dyq'), 'must be different names'),
        (('motion',), "no rule named 'motion'"),
    ],
    ids=['none', 'twice', 'unknown'],
)
def test_rules_must_be_known_and_different(rules, message):
    with pytest.raises(ConfigError, match=message):
        make_parameters(rules)


def test_motion_without_fitted_boundaries_is_refused_for_every_group():
    groups = {'llm': GroupParameters(LLM), 'expert': GroupParameters(EXPERT)}
    with pytest.raises(ConfigError) as error:
        PrecisionParameters(('dyq',), groups)
    assert 'groups.llm' in str(error.value)
    assert 'groups.expert' in str(error.value)
    assert PrecisionParameters(('drift',), groups).controller().top == {
        'llm': LLM.top,
        'expert': EXPERT.top,
    }
