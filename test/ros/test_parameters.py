"""The parameter table: what it accepts, what it says, and the file that shows all of it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from vlaq_ros.errors import ConfigError
from vlaq_ros.ros.parameters import Applies, NodeParameters, Row, build, group, parameter, table
from vlaq_ros.ros.policy_parameters import PolicyParameters

pytestmark = pytest.mark.ros
FILE = Path(__file__).parents[2] / 'config' / 'policy_node.yaml'


@dataclass(frozen=True)
class Inner:
    speed: float = parameter(1.0, 'Speed', unit='m/s', low=0.0, high=2.0, applies=Applies.LIVE)
    names: tuple[str, ...] = parameter(('a', 'b'), 'Names')


@dataclass(frozen=True)
class Outer:
    mode: str = parameter('slow', 'Mode', choices=('slow', 'fast'))
    count: int = parameter(3, 'Count', low=1, high=9)
    inner: Inner = group(Inner)

    def contradictions(self):
        if self.mode == 'slow' and self.inner.speed > 1.0:
            yield f'mode slow forbids speed {self.inner.speed}'


def flatten(values, prefix=''):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def test_the_shipped_file_shows_every_parameter_with_its_default():
    shown = dict(flatten(yaml.safe_load(FILE.read_text())['/**']['ros__parameters']))
    rows = {row.name: row for row in table(PolicyParameters)}
    assert list(shown) == list(rows)
    plain = {
        n: list(r.default) if isinstance(r.default, tuple) else r.default for n, r in rows.items()
    }
    assert shown == plain


def test_the_shipped_file_names_unit_and_bounds_of_every_parameter():
    comment, group, notes = '', '', {}
    for line in FILE.read_text().splitlines():
        text = line.strip()
        if text.startswith('#'):
            comment += f' {text[1:].strip()}'
        elif text.endswith(':'):
            comment, group = '', f'{text[:-1]}.'
        elif text:
            is_inside = line.startswith(' ' * 6)
            notes[f'{group if is_inside else ""}{text.split(":")[0]}'] = comment
            comment = ''
    for row in table(PolicyParameters):
        note = notes[row.name]
        assert row.unit in note
        assert row.low is None or f'{row.low:g} to {row.high:g}' in note
        assert all(choice in note for choice in row.choices)


def test_the_speed_limit_says_that_its_default_suits_the_simulated_arm_only():
    """It looked like a limit for any arm: 1.4 m/s are sqrt(3) times the 0.8 m/s of an axis."""
    row = {row.name: row for row in table(PolicyParameters)}['limits.max_linear_speed']
    assert row.default >= 3**0.5 * 0.8
    assert 'less for a real one' in row.descriptor().description
    assert 'less for a real one' in FILE.read_text()


def test_defaults_are_valid_and_nothing_given_changes_nothing():
    assert build(PolicyParameters, {}) == PolicyParameters()
    assert build(Outer, {}) == Outer()


def test_groups_become_dotted_names():
    assert [row.name for row in table(Outer)] == ['mode', 'count', 'inner.speed', 'inner.names']
    assert build(Outer, {'inner.speed': 0.5}).inner.speed == 0.5


def test_all_problems_are_listed_in_one_error():
    with pytest.raises(ConfigError) as caught:
        build(Outer, {'mode': 'fasst', 'count': 0, 'inner.speed': float('inf')})
    assert str(caught.value).splitlines() == [
        "parameter 'mode' = 'fasst' is not known. Choose from: slow, fast. Did you mean 'fast'?",
        "parameter 'count' = 0 must be from 1 to 9",
        "parameter 'inner.speed' = inf must be finite",
    ]


def test_values_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match='mode slow forbids speed 1.5'):
        build(Outer, {'inner.speed': 1.5})
    assert build(Outer, {'inner.speed': 1.5, 'mode': 'fast'}).mode == 'fast'


@pytest.mark.parametrize(
    ('default', 'value', 'message'),
    [
        (True, 1, "parameter 'p' = 1 must be true or false"),
        (1, True, "parameter 'p' = True must be an integer"),
        (1, 1.0, "parameter 'p' = 1.0 must be an integer"),
        (1.0, 'x', "parameter 'p' = 'x' must be a number"),
        ('a', 2, "parameter 'p' = 2 must be a text"),
        ((1.0,), 2.0, "parameter 'p' = 2.0 must be a list"),
        ((1.0,), [1.0, float('nan')], "parameter 'p' = [1.0, nan] must be finite"),
        (('a',), [1], "parameter 'p' = [1] must be a text"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_value_of_the_wrong_kind_is_refused_with_what_is_expected(default, value, message):
    with pytest.raises(ConfigError) as caught:
        Row('p', default, '').check(value)
    assert str(caught.value) == message


def test_the_descriptor_tells_tools_unit_bounds_and_when_it_applies():
    descriptor = {row.name: row for row in table(Outer)}['inner.speed'].descriptor()
    assert descriptor.description == 'Speed [m/s]'
    assert descriptor.floating_point_range[0].to_value == 2.0
    assert descriptor.additional_constraints == 'Applied: at once.'


def test_a_change_is_applied_after_it_is_stored_and_a_refused_one_never(graph):
    from rclpy.parameter import Parameter

    node, applied = graph.node('n'), []
    parameters = NodeParameters(node, Outer, is_configured=lambda: True, apply=applied.append)
    node.set_parameters([Parameter('inner.speed', value=0.5)])
    graph.spin_for(0.05)
    assert [config.inner.speed for config in applied] == [0.5]
    (result,) = node.set_parameters([Parameter('inner.speed', value=1.5)])
    assert (result.successful, result.reason) == (False, 'mode slow forbids speed 1.5')
    graph.spin_for(0.05)
    assert len(applied) == 1
    assert parameters.read().inner.speed == 0.5


def test_values_that_belong_together_can_be_changed_one_by_one_before_configure(graph):
    """The first of two coupled values was refused, since it did not fit the other one yet."""
    from rclpy.parameter import Parameter

    node = graph.node('n')
    parameters = NodeParameters(node, PolicyParameters)
    (result,) = node.set_parameters([Parameter('state.sources', value=['ee_pose.x'])])
    assert result.successful, result.reason
    with pytest.raises(ConfigError, match="'state.scales' has 4 values for 1 'state.sources'"):
        parameters.read()
    (refused,) = node.set_parameters([Parameter('age.image_s', value=-1.0)])
    assert not refused.successful
    (result,) = node.set_parameters([Parameter('state.scales', value=[2.0])])
    assert result.successful, result.reason
    assert parameters.read().state.scales == (2.0,)


def test_without_post_set_callbacks_a_change_is_applied_on_the_next_spin(graph, monkeypatch):
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    monkeypatch.delattr(Node, 'add_post_set_parameters_callback', raising=False)  # as on Humble
    node, applied = graph.node('n'), []
    NodeParameters(node, Outer, is_configured=lambda: True, apply=applied.append)
    node.set_parameters([Parameter('inner.speed', value=0.5)])
    assert applied == []
    graph.spin_until(lambda: applied, what='change')
    assert applied[0].inner.speed == 0.5


def test_a_misspelt_parameter_is_pointed_out(graph):
    from rclpy.parameter import Parameter

    node = graph.node('n', parameter_overrides=[Parameter('inner.sped', value=0.5)])
    assert NodeParameters(node, Outer).unknown_overrides() == [
        "parameter 'inner.sped' is set but this node has no such parameter; "
        "did you mean 'inner.speed'?"
    ]
