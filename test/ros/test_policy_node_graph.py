"""What surrounds the node: namespaces, QoS, rivals, latched sentences, diagnostics, signals."""

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from vlaq_ros.ros import qos
from vlaq_ros.ros.interfaces import PolicyStatus

pytestmark = pytest.mark.ros


@pytest.fixture
def diagnose(graph):
    """Return a function that waits for the status of one subject whose message has a text."""
    arrays = []
    graph.node('aggregator').create_subscription(
        DiagnosticArray, '/diagnostics', arrays.append, qos.DIAGNOSTICS
    )

    def wait_for(robot, node, subject, text=''):
        def found():
            return [
                status
                for array in arrays
                for status in array.status
                if status.name.endswith(f': {subject}') and text in status.message
            ]

        robot.run_until(found, node, what=f'{subject}: {text}')
        return found()[-1]

    return wait_for


def test_two_policies_in_two_namespaces_do_not_disturb_each_other(graph, fake_policy, make_robot):
    left, right = (graph.policy(fake_policy, namespace=name) for name in ('left', 'right'))
    robot = make_robot(namespace='left')
    assert left.bring_up()
    assert right.bring_up()
    graph.spin_until(lambda: left._outputs.has_listeners() and robot.statuses, what='discovery')
    graph.spin_until(lambda: robot.text_pub.get_subscription_count() > 0, what='discovery')
    robot.say('open')
    robot.run_until(lambda: robot.state == PolicyStatus.RUNNING, left)
    assert left._outputs.topics[0] == '/left/policy/delta_twist_cmds'
    assert right._loop.supervisor.state == PolicyStatus.WAITING
    assert right._inputs.instruction == ''
    assert left._outputs.rivals() == []


def test_topics_can_be_remapped(graph, fake_policy):
    node = graph.policy(
        fake_policy, remaps=['front/image_raw:=/cam/rgb', '~/delta_twist_cmds:=/servo/twist']
    )
    assert node.bring_up()
    assert node._inputs.topics['front'] == '/cam/rgb'
    assert node._outputs.topics[0] == '/servo/twist'


def test_a_sentence_latched_before_the_start_is_followed(graph, fake_policy):
    operator = graph.node('operator')
    operator.create_publisher(String, 'instruction', qos.LATCHED).publish(String(data='open'))
    node = graph.policy(fake_policy)
    assert node.bring_up()
    graph.spin_until(lambda: node._inputs.instruction == 'open', what='latched sentence')


def test_a_best_effort_camera_is_received(graph, fake_policy, make_robot, running):
    original = qos.SENSOR_OUT
    try:
        qos.SENSOR_OUT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        running()
    finally:
        qos.SENSOR_OUT = original


def test_a_publisher_that_cannot_reach_us_is_named(running, graph, diagnose):
    robot, node = running()
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    graph.node('operator').create_publisher(String, 'instruction', best_effort)
    status = diagnose(robot, node, 'qos', '/instruction')
    assert status.level == DiagnosticStatus.WARN
    assert 'RELIABILITY' in status.message


def test_qos_can_be_overridden_by_parameter(graph, fake_policy):
    name = 'qos_overrides./front/image_raw.subscription.reliability'
    node = graph.policy(fake_policy, **{name.replace('.', '__'): 'reliable'})
    assert node.bring_up(), node.failure
    assert node.get_parameter(name).value == 'reliable'
    (info,) = node.get_subscriptions_info_by_topic('/front/image_raw')
    assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_a_second_publisher_of_our_commands_is_named(running, graph, diagnose):
    robot, node = running()
    graph.node('joystick').create_publisher(TwistStamped, 'policy/delta_twist_cmds', 1)
    status = diagnose(robot, node, 'command rate', 'joystick')
    assert status.level == DiagnosticStatus.WARN
    assert status.message == (
        'another node publishes our commands: /joystick on /policy/delta_twist_cmds'
    )


def test_diagnostics_tell_every_subject_under_the_name_and_the_bundle(running, diagnose):
    robot, node = running()
    seen = {
        subject: diagnose(robot, node, subject)
        for subject in (
            'control',
            'image age',
            'instruction',
            'inference latency',
            'command rate',
            'memory',
            'precision',
            'self-test',
            'qos',
        )
    }
    assert {status.name.split(':')[0] for status in seen.values()} == {'policy'}
    assert {status.hardware_id for status in seen.values()} == {'fake f00df00df00d'}
    assert seen['instruction'].message == 'open'
    latency = diagnose(robot, node, 'inference latency', 'p95')
    assert [value.key for value in latency.values] == [
        'decode p50/p95/max [ms]',
        'inference p50/p95/max [ms]',
        'total p50/p95/max [ms]',
    ]
    lost = diagnose(robot, node, 'image age', 'all inputs are fresh')
    assert lost.level == DiagnosticStatus.OK


def test_diagnostics_name_a_lost_camera_and_its_publishers(running, diagnose):
    robot, node = running()
    robot.pass_time(1.5, node, cameras=('wrist',))
    status = diagnose(robot, node, 'image age', 'missing or stale: front')
    assert status.level == DiagnosticStatus.ERROR
    assert {v.key: v.value for v in status.values}['publishers of /front/image_raw'] == '1'


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM], ids=['Ctrl-C', 'SIGTERM'])
def test_a_signal_stops_the_arm_and_ends_the_process_cleanly(graph, make_robot, signum):
    robot = make_robot()
    arguments = ['-p', 'autostart:=true', '-p', 'bundle:=toy']
    process = subprocess.Popen(
        [sys.executable, '-m', 'vlaq_ros.ros.policy_node', '--ros-args', *arguments],
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        graph.spin_until(lambda: robot.state == PolicyStatus.WAITING, timeout_s=60.0, what='start')
        process.send_signal(signum)
        graph.spin_until(lambda: process.poll() is not None, what='end')
        graph.spin_until(lambda: robot.commands(), what='stop command')
    finally:
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == 0
    assert 'Traceback' not in errors
    assert robot.commands()[-1].twist.linear.x == 0.0
