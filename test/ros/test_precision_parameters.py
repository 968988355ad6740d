"""What parameters about changing precision contradict each other, and what they stand for."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from vlaq_ros.control.precision_controller import SafetyOptions
from vlaq_ros.control.precision_dyq import DyqOptions
from vlaq_ros.ros.precision_parameters import DynamicPrecisionParameters

UNUSABLE = {'levels': ('w8a16', 'w4a8'), 'boundaries': (0.5, 0.2)}


def contradictions(**values):
    return list(DynamicPrecisionParameters(**values).contradictions())


def test_the_defaults_contradict_nothing_under_any_rule():
    for policy in ('static', 'dyq', 'latency', 'drift'):
        assert contradictions(policy=policy) == []


@pytest.mark.parametrize(
    'unused', [{'policy': 'static'}, {'file': 'rules.json'}, {'levels_from': 'bundle'}]
)
def test_levels_that_nothing_uses_are_not_judged(unused):
    assert contradictions(**{'policy': 'dyq', **UNUSABLE, **unused}) == []
    assert contradictions(policy='dyq', **UNUSABLE) != []


def test_every_level_that_is_not_understood_is_named_with_its_parameter():
    lines = contradictions(policy='latency', levels=('four', 'w8a16', 'eight'))
    assert [line.split(':')[0] for line in lines] == ["parameters 'dynamic_precision'"] * 2
    assert "'four'" in lines[0]
    assert "'eight'" in lines[1]


def test_boundaries_count_for_the_rule_that_reads_them_only():
    levels = {'levels': ('w4a8', 'w8a8', 'w8a16')}  # two boundaries are needed, one is the default
    assert contradictions(policy='latency', **levels) == []
    assert contradictions(policy='drift', **levels) == []
    (line,) = contradictions(policy='dyq', **levels)
    assert line.startswith("parameters 'dynamic_precision': ")
    assert 'boundar' in line


def test_a_file_and_a_bundle_exclude_each_other_whatever_decides():
    for policy in ('static', 'dyq'):
        (line,) = contradictions(policy=policy, file='rules.json', levels_from='bundle')
        assert "'dynamic_precision.file' = 'rules.json'" in line
        assert 'exclude each other' in line


def test_options_carry_the_values():
    config = DynamicPrecisionParameters(policy='dyq', lower_after=7, dwell_s=2.5)
    assert config.dyq_options() == DyqOptions(lower_after=7)
    assert config.safety_options() == SafetyOptions(dwell_s=2.5)
    assert config.edges == (0.5,)
    assert DynamicPrecisionParameters(policy='latency').edges is None
