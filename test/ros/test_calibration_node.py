"""The calibration node: the pipeline in a process of its own, told, ended and resumed over ROS."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')
pytest.importorskip('rosbags', reason='needs rosbags')

import yaml
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import qos
from vlaq_ros.ros.bringup import config_file
from vlaq_ros.ros.calibration_node import CalibrationNode
from vlaq_ros.ros.calibration_parameters import CalibrationParameters
from vlaq_ros.ros.interfaces import CalibrationProgress
from vlaq_ros.ros.parameters import build, table

pytestmark = pytest.mark.ros
LONG_S = 240.0


def _calibration_fixtures():
    """Return the module whose fixtures make a tiny bundle and a bag for it."""
    path = Path(__file__).parents[1] / 'calibration' / 'conftest.py'
    spec = importlib.util.spec_from_file_location('calibration_fixtures', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FIXTURES = _calibration_fixtures()
tiny_bundle, tiny_bag = _FIXTURES.tiny_bundle, _FIXTURES.tiny_bag


@pytest.fixture
def make_node(graph, tiny_bundle, tiny_bag, tmp_path):
    """Return a function that brings a node up, with a listener to its progress."""

    def make(**parameters):
        values = {
            'bag': str(tiny_bag),
            'bundle': str(tiny_bundle),
            'method': 'gptq',
            'bits': 5.0,
            'group_size': 16,
            'samples': 16,
            'held_out': 8,
            'out': str(tmp_path / 'packed'),
            **parameters,
        }
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = graph.add(
            CalibrationNode(context=graph.context, parameter_overrides=overrides, cli_args=[])
        )
        node.heard = []
        listener = graph.node('listener')
        listener.create_subscription(
            CalibrationProgress, 'calibration/progress', node.heard.append, qos.LATCHED
        )
        assert node.bring_up()
        return node

    return make


def stages(node):
    return list(dict.fromkeys(message.stage for message in node.heard))


def is_over(node):
    return node.heard and node.heard[-1].stage in ('done', 'failed', 'cancelled')


def test_a_calibration_runs_to_a_bundle_and_tells_how_far_it_is(graph, make_node, tmp_path):
    node = make_node()
    assert graph.call(node, Trigger, 'calibration/start').success
    graph.spin_until(lambda: is_over(node), LONG_S, 'the end')
    assert stages(node)[-1] == 'done', node.message
    assert 'bits per weight' in node.heard[-1].message
    told = [m for m in node.heard if m.stage == 'sensitivity']
    assert told
    assert all(m.done <= m.total and m.method == 'gptq' for m in told)
    assert node.heard[-1].remaining.sec == 0
    assert load_policy(tmp_path / 'packed').self_test().passed
    assert (tmp_path / 'packed.report' / 'report.md').is_file()
    assert not node.is_running


def test_it_is_cancelled_at_once_and_resumed_to_the_same_bundle(graph, make_node, tmp_path):
    node = make_node()
    graph.call(node, Trigger, 'calibration/start')
    graph.spin_until(lambda: 'sensitivity' in stages(node), LONG_S, 'the sensitivities')
    assert graph.call(node, Trigger, 'calibration/cancel').success
    graph.spin_until(lambda: is_over(node), LONG_S, 'the end')
    if node.stage == 'done':
        pytest.skip('the calibration was faster than the request to cancel it')
    assert node.stage == 'cancelled'
    assert not (tmp_path / 'packed').exists()
    assert list((tmp_path / 'packed.work').iterdir())
    assert not graph.call(node, Trigger, 'calibration/cancel').success

    answer = graph.call(node, Trigger, 'calibration/start')
    assert answer.success
    node.heard.clear()
    graph.spin_until(lambda: is_over(node), LONG_S, 'the refusal')
    assert node.stage == 'failed'
    assert '--resume' in node.message

    node.set_parameters([Parameter('resume', value=True)])
    node.heard.clear()
    graph.call(node, Trigger, 'calibration/start')
    graph.spin_until(lambda: is_over(node), LONG_S, 'the end')
    assert node.stage == 'done', node.message
    assert open_bundle(tmp_path / 'packed').is_packed


def test_bad_parameters_fail_with_every_reason(graph, make_node, tmp_path):
    node = make_node(method='gtpq', bag=f'{tmp_path}/nowhere')
    graph.call(node, Trigger, 'calibration/start')
    graph.spin_until(lambda: is_over(node), LONG_S, 'the refusal')
    assert node.stage == 'failed'
    assert "Did you mean 'gptq'" in node.message
    assert 'no bag at' in node.message


def test_one_at_a_time_and_only_while_active(graph, make_node):
    node = make_node()
    graph.call(node, Trigger, 'calibration/start')
    answer = graph.call(node, Trigger, 'calibration/start')
    assert not answer.success
    assert 'running' in answer.message
    node.trigger_deactivate()
    assert not node.is_running
    assert node.stage == 'cancelled'
    answer = graph.call(node, Trigger, 'calibration/start')
    assert not answer.success
    assert 'activate' in answer.message


def test_nothing_is_started_without_a_place_for_the_bundle(graph, make_node):
    node = make_node(out='')
    answer = graph.call(node, Trigger, 'calibration/start')
    assert not answer.success
    assert "'out' is empty" in answer.message


def test_without_a_bag_it_records_from_the_topics_first(graph, make_node, tmp_path):
    from geometry_msgs.msg import PoseStamped

    from vlaq_ros.data.bags import Bag
    from vlaq_ros.ros.conversions import to_stamp

    node = make_node(bag='', collect_s=3600.0)
    arm = graph.node('arm')
    poses = arm.create_publisher(PoseStamped, 'ee_pose', qos.SENSOR_OUT)
    assert graph.call(node, Trigger, 'calibration/start').success
    assert node.stage == 'collecting'
    graph.spin_until(poses.get_subscription_count, LONG_S, 'the recorder')
    for number in range(5):
        message = PoseStamped()
        message.header.stamp = to_stamp((number + 1) * 10**9)
        poses.publish(message)
        graph.spin_for(0.1)
    node.set_parameters([Parameter('collect_s', value=0.1)])  # it is enough
    graph.spin_until(lambda: is_over(node), LONG_S, 'the end')
    assert node.stage == 'failed'  # poses alone are no recording to calibrate from
    assert 'image_raw' in node.message
    bag = Bag(tmp_path / 'packed.recording')
    assert bag.topics()['/ee_pose'].count == 5
    answer = graph.call(node, Trigger, 'calibration/start')
    assert 'exists already' in answer.message


def test_a_bundle_that_does_not_exist_is_refused_at_configure(graph):
    overrides = [Parameter('bundle', value='nowhere')]
    node = graph.add(
        CalibrationNode(context=graph.context, parameter_overrides=overrides, cli_args=[])
    )
    assert not node.bring_up()
    assert 'nowhere' in node.failure


def test_the_parameter_file_shows_the_defaults_of_the_node():
    (values,) = yaml.safe_load(config_file('calibration_node.yaml').read_text()).values()
    expected = {row.name: row.default for row in table(CalibrationParameters)}
    assert values['ros__parameters'] == expected


def test_parameters_become_the_options_of_the_command():
    config = build(
        CalibrationParameters,
        {'out': 'x', 'group_size': 0, 'heads': 'flow', 'options': 'mode=paper', 'resume': True},
    )
    import argparse

    from vlaq_ros.calibration.calibrate import add_arguments, job_of

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    job = job_of(parser.parse_args(config.arguments(['a', 'b'])))
    assert job.bags == (Path('a'), Path('b'))
    assert (job.group_size, job.heads, job.options) == (None, ('flow',), {'mode': 'paper'})
    assert (job.resume, job.bits, job.samples) == (True, 4.0, 128)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'resume': True, 'overwrite': True}, 'choose one'),
        ({'group_size': 24}, 'multiple of 16'),
    ],
    ids=['both', 'group'],
)
def test_contradictions_are_refused(values, message):
    assert any(message in line for line in build_problems(values))


def build_problems(values):
    from vlaq_ros.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        build(CalibrationParameters, values)
    return str(caught.value).splitlines()


def test_the_node_process_starts_by_itself_and_leaves_nothing_behind(
    ros_domain, tiny_bundle, tiny_bag, tmp_path
):
    values = {'bag': tiny_bag, 'bundle': tiny_bundle, 'out': tmp_path / 'packed', 'method': 'rtn'}
    arguments = [f'{name}:={value}' for name, value in values.items()]
    arguments += ['bits:=5.0', 'group_size:=16', 'samples:=16', 'held_out:=8']
    arguments += ['autostart:=true', 'auto_start:=true']
    command = [sys.executable, '-m', 'vlaq_ros.ros.calibration_node', '--ros-args']
    process = subprocess.Popen(
        [*command, *(part for argument in arguments for part in ('-p', argument))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )
    seen = []
    for line in process.stdout:
        seen.append(line)
        if 'done: ' in line or 'failed: ' in line:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(60.0) == 0
    assert 'done: ' in seen[-1], ''.join(seen)
    assert open_bundle(tmp_path / 'packed').is_packed
