"""The layout for Foxglove and Lichtblick: every panel is placed, every path leads to a field."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip('rosbags', reason='needs rosbags')

from rosbags.interfaces import Nodetype

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.data.bag_types import MessageTypes
from vlaq_ros.ros.recorded_topics import stream_names

LAYOUT = Path(__file__).resolve().parents[2] / 'config/foxglove_layout.json'
TYPES = {
    '/front/image_raw': 'sensor_msgs/msg/Image',
    '/wrist/image_raw': 'sensor_msgs/msg/Image',
    '/ee_pose': 'geometry_msgs/msg/PoseStamped',
    '/episode': 'vlaq_ros/msg/EpisodeStatus',
    '/policy/drift': 'vlaq_ros/msg/DriftReport',
    '/policy/precision': 'vlaq_ros/msg/PrecisionState',
    '/policy/status': 'vlaq_ros/msg/PolicyStatus',
    '/policy/action_chunk': 'vlaq_ros/msg/ActionChunk',
    '/policy/delta_twist_cmds': 'geometry_msgs/msg/TwistStamped',
    '/policy/gripper_cmds': 'sensor_msgs/msg/JointState',
    '/diagnostics': 'diagnostic_msgs/msg/DiagnosticArray',
}
NUMBERS = {
    'bool',
    'float32',
    'float64',
    *(f'{u}int{n}' for u in ('', 'u') for n in (8, 16, 32, 64)),
}
PANELS = {'3D', 'DiagnosticSummary', 'Image', 'Plot', 'RawMessages', 'StateTransitions', 'Tab'}


@pytest.fixture(scope='module')
def layout():
    return json.loads(LAYOUT.read_text())


@pytest.fixture(scope='module')
def types():
    known = MessageTypes()
    for name in TYPES.values():
        known.require(name)
    return known.store.fielddefs


def placed(node):
    """Yield the panels of a tree; a split has two parts and a direction."""
    if isinstance(node, str):
        yield node
        return
    assert set(node) == {'direction', 'splitPercentage', 'first', 'second'}
    assert node['direction'] in ('row', 'column')
    assert 0 < node['splitPercentage'] < 100
    yield from placed(node['first'])
    yield from placed(node['second'])


def terminal(value, types):
    """Return the type of what a message path leads to; fails where there is no such field."""
    topic = max((t for t in TYPES if value == t or value.startswith(f'{t}.')), key=len, default='')
    assert topic, f'{value} names no topic that is known here'
    kind = TYPES[topic]
    for part in value[len(topic) + 1 :].split('.') if value != topic else ():
        name, index = re.fullmatch(r'(\w+)(\[(?:\d+|:)\])?', part).groups()
        fields = dict(types[kind][1])
        assert name in fields, f'{value}: {kind} has no field {name!r}'
        node, detail = fields[name]
        is_list = node in (Nodetype.ARRAY, Nodetype.SEQUENCE)
        assert is_list == bool(index), f'{value}: {name} is {"a" if is_list else "no"} list'
        inner, kind = detail[0] if is_list else (node, detail)
        if inner is Nodetype.BASE:
            kind = kind[0]
    return kind


def series(layout, *panels):
    for name, config in layout['configById'].items():
        if name.split('!')[0] in panels:
            yield from ((name, path) for path in config['paths'])


def is_reference_line(path):
    return re.fullmatch(r'-?\d+(\.\d+)?', path['value']) is not None


def test_every_panel_is_placed_once_and_is_of_a_kind_that_viewers_have(layout):
    tabs = [
        tab for n, c in layout['configById'].items() if n.startswith('Tab!') for tab in c['tabs']
    ]
    names = [*placed(layout['layout']), *(name for tab in tabs for name in placed(tab['layout']))]
    assert sorted(names) == sorted(layout['configById'])
    assert {name.split('!')[0] for name in names} == PANELS
    assert all(tab['title'] for tab in tabs)


def test_every_plotted_path_leads_to_a_number(layout, types):
    plotted = [path for _, path in series(layout, 'Plot') if not is_reference_line(path)]
    assert len(plotted) > 15
    for path in plotted:
        assert terminal(path['value'], types) in NUMBERS, path['value']


def test_every_state_and_raw_path_leads_to_a_value(layout, types):
    values = [path['value'] for _, path in series(layout, 'StateTransitions')]
    values += [c['topicPath'] for n, c in layout['configById'].items() if n[:4] == 'RawM']
    assert '/policy/drift.level' in values
    assert '/policy/precision.precision' in values
    for value in values:
        assert terminal(value, types) in NUMBERS | {'string'}, value


def test_paths_by_header_stamp_have_a_header(layout, types):
    for _, path in series(layout, 'Plot', 'StateTransitions'):
        assert path['timestampMethod'] in ('receiveTime', 'headerStamp')
        if path['timestampMethod'] == 'headerStamp':
            topic = path['value'].split('.')[0]
            assert dict(types[TYPES[topic]][1])['header'], topic


def test_every_topic_is_recorded_but_the_diagnostics(layout):
    text = LAYOUT.read_text()
    named = {topic for topic in TYPES if f'"{topic}' in text}
    recorded = {f'/{name}' for name in stream_names(['front', 'wrist'], 'policy', 'raw')}
    assert named - recorded == {'/diagnostics'}
    assert named == set(TYPES)


def test_limits_are_those_of_the_node_by_default(layout):
    limits = DriftLimits()
    shown = {
        path['label'].split('drift.')[1].rstrip(')'): float(path['value'])
        for _, path in series(layout, 'Plot')
        if is_reference_line(path) and 'drift.' in path['label']
    }
    names = [f'{level}_{unit}' for unit in ('m', 'rad', 'gripper') for level in ('warn', 'error')]
    assert shown == {name: getattr(limits, name) for name in names}


@pytest.mark.parametrize('value', ['/policy/drift.none', '/policy/drift.level[0]', '/other.level'])
def test_a_path_that_leads_nowhere_is_noticed(types, value):
    with pytest.raises(AssertionError):
        terminal(value, types)
