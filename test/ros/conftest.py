"""
A policy node between a fake robot and a listener, in one executor and on simulated time.

The robot publishes what a test tells it to, and time passes only when the test says so: nothing
depends on how fast the machine is. Every wait is for a condition, with a generous limit.
"""

import copy
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.base import MemoryReport, SelfTestReport
from vlaq_ros.policies.spec import CameraSpec, PolicySpec, PromptSpec, StateSpec
from vlaq_ros.types import ActionChunk, ActionSpec

PERIOD_NS = 25_000_000
SPEC = PolicySpec(
    family='fake',
    name='fake',
    cameras=(CameraSpec('front', 8, 6), CameraSpec('wrist', 4, 4)),
    state=StateSpec(
        ('hand_x', 'hand_y', 'hand_z', 'gripper_opening'),
        ('m', 'm', 'm', '1'),
        (0.0,) * 4,
        (1.0,) * 4,
    ),
    prompt=PromptSpec(('<pad>', '<unknown>', 'open'), 8),
    action=ActionSpec(
        ('ee_x', 'ee_y', 'ee_z', 'gripper'),
        ('m', 'm', 'm', '1'),
        'base',
        True,
        PERIOD_NS,
        (-0.02, -0.02, -0.02, 0.0),
        (0.02, 0.02, 0.02, 1.0),
    ),
    action_mean=(0.0,) * 4,
    action_std=(1.0,) * 4,
    horizon=8,
    execution_horizon=6,
    heads=('flow',),
    sampler_steps=1,
    license='none',
    provenance={},
)


class FakePolicy:
    """Moves along x by 1 mm more with every row; a test can break it or make it wait."""

    spec = SPEC

    def __init__(self):
        self.precision, self.head = 'fp32', 'flow'
        self.precisions = ('fp32', 'w8')
        self.levels, self.active_levels = {}, {}
        self.level_limits = 'it is float'
        self.measured_levels = None
        self.observations = []
        self.resets = 0
        self.unknown = ()
        self.error = None
        self.change = lambda actions: actions
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.self_test_passes = True
        self.stage_s = {'inference': 0.01}

    def reset(self):
        self.resets += 1

    def check_instruction(self, instruction):
        if instruction in self.unknown:
            raise PolicyError(f'{instruction!r} has words the policy does not know')

    def infer(self, observation):
        self.observations.append(observation)
        self.may_answer.wait(20.0)
        if self.error is not None:
            raise self.error
        actions = np.zeros((self.spec.horizon, 4))
        actions[:, 0] = 0.001 * np.arange(1, self.spec.horizon + 1)
        actions[:, 3] = 0.5
        actions = self.change(actions)
        spec, at = self.spec.action, observation.observed_ns
        return ActionChunk(
            actions, spec, at, observation.instruction, 'fp32', 'flow', stage_s=self.stage_s
        )

    def prepare_precision(self, levels):
        pass

    def apply_precision(self, levels):
        self.active_levels = dict(levels)

    def twin(self):
        return copy.copy(self)

    def self_test(self):
        return SelfTestReport(
            (('images matter', self.self_test_passes, 'the action is constant'),)
        )

    def memory(self):
        return MemoryReport(1000, 0, 0, 0, '')


class Graph:
    """The nodes of one test."""

    def __init__(self, domain):
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor

        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.nodes = []

    def add(self, node):
        self.executor.add_node(node)
        self.nodes.append(node)
        return node

    def node(self, name, **options):
        from rclpy.node import Node

        return self.add(Node(name, context=self.context, **options))

    def policy(self, policy=None, namespace='', remaps=(), loader=None, shadow=None, **parameters):
        """Return a policy node; `sim_time=False` and dotted names as `limits__on_exceed`."""
        from rclpy.parameter import Parameter

        from vlaq_ros.ros.policy_node import PolicyNode

        values = {'use_sim_time': True, 'age__silence_s': 600.0, 'bundle': 'fake', **parameters}
        overrides = [Parameter(k.replace('__', '.'), value=v) for k, v in values.items()]
        arguments = ['--ros-args'] + [part for remap in remaps for part in ('-r', remap)]

        def load(bundle, precision, **kwargs):
            return shadow if shadow is not None and precision == 'fp32' else policy

        options = {'load_policy': loader or load}
        if loader is None:
            options['digest'] = lambda bundle: 'f00d' * 16
            options['origin'] = lambda bundle: None
        return self.add(
            PolicyNode(
                namespace=namespace,
                context=self.context,
                cli_args=arguments,
                parameter_overrides=overrides,
                **options,
            )
        )

    def spin_until(self, condition, timeout_s=30.0, what='the condition'):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f'{what} did not happen in {timeout_s} s'
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, seconds):
        """Give something that must not happen the time to happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.01)

    def call(self, node, service_type, name, request=None):
        client = node.create_client(service_type, name)
        self.spin_until(client.service_is_ready, what=f'service {name}')
        future = client.call_async(request or service_type.Request())
        self.spin_until(future.done, what=f'answer of {name}')
        node.destroy_client(client)
        return future.result()

    def close(self):
        for node in self.nodes:
            if hasattr(node, 'lifecycle') and node.lifecycle == 'active':
                node.trigger_deactivate()
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()
        self.context.try_shutdown()


def is_settled(policy_node):
    """Whether no inference is under way, or it waits because the test wants it to."""
    loop, policy = policy_node._loop, policy_node._policy
    return loop is None or not loop._worker.is_busy or not policy.may_answer.is_set()


class Robot:
    """Publishes sensors and the clock on request, and keeps everything the policy sends."""

    def __init__(self, graph, namespace='', policy_name='policy', transport='raw'):
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CompressedImage, Image, JointState
        from std_msgs.msg import String

        from vlaq_ros.ros import qos
        from vlaq_ros.ros.interfaces import ActionChunk as ChunkMessage
        from vlaq_ros.ros.interfaces import PolicyStatus

        self.graph = graph
        self.transport = transport
        self.now_ns = 10_000_000_000
        self.node = node = graph.node('robot', namespace=namespace)
        image_type, suffix = (
            (Image, '') if transport == 'raw' else (CompressedImage, '/compressed')
        )
        self.cameras = {
            c.name: node.create_publisher(
                image_type, f'{c.name}/image_raw{suffix}', qos.SENSOR_OUT
            )
            for c in SPEC.cameras
        }
        self.pose_pub = node.create_publisher(PoseStamped, 'ee_pose', qos.SENSOR_OUT)
        self.joint_pub = node.create_publisher(JointState, 'joint_states', qos.SENSOR_OUT)
        self.text_pub = node.create_publisher(String, 'instruction', 1)
        self.clock_pub = node.create_publisher(Clock, '/clock', 10)
        self.position = [0.1, 0.2, 0.3]
        self.sent = []  # (kind, message) in the order of arrival
        self.statuses, self.chunks = [], []

        def keep(kind):
            return lambda msg: self.sent.append((kind, msg))

        name = f'{policy_name}/'
        for kind, message_type, topic in (
            ('twist', TwistStamped, 'delta_twist_cmds'),
            ('pose', PoseStamped, 'pose_target_cmds'),
            ('gripper', JointState, 'gripper_cmds'),
        ):
            node.create_subscription(message_type, name + topic, keep(kind), 100)
        node.create_subscription(ChunkMessage, name + 'action_chunk', self.chunks.append, 100)
        node.create_subscription(PolicyStatus, name + 'status', self.statuses.append, qos.LATCHED)

    @property
    def state(self):
        return self.statuses[-1].state if self.statuses else None

    def commands(self, kind='twist'):
        return [msg for sent_kind, msg in self.sent if sent_kind == kind]

    def say(self, text):
        from std_msgs.msg import String

        self.text_pub.publish(String(data=text))

    def sense(self, cameras=('front', 'wrist'), pose=True, joints=True, stamp_ns=None):
        """Publish one sample of each stream, stamped now."""
        import cv2
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import CompressedImage, Image, JointState

        from vlaq_ros.ros.conversions import to_stamp

        stamp = to_stamp(self.now_ns if stamp_ns is None else stamp_ns)
        for camera in SPEC.cameras:
            if camera.name not in cameras:
                continue
            pixels = np.full((camera.height, camera.width, 3), 40, np.uint8)
            if self.transport == 'raw':
                msg = Image(height=camera.height, width=camera.width, encoding='rgb8')
                msg.step, msg.data = camera.width * 3, pixels.tobytes()
            else:
                msg = CompressedImage(format='rgb8; png compressed bgr8')
                msg.data = cv2.imencode('.png', pixels)[1].tobytes()
            msg.header.stamp = stamp
            self.cameras[camera.name].publish(msg)
        if pose:
            msg = PoseStamped()
            msg.header.stamp, msg.header.frame_id = stamp, 'base'
            msg.pose.position.x, msg.pose.position.y, msg.pose.position.z = self.position
            msg.pose.orientation.w = 1.0
            self.pose_pub.publish(msg)
        if joints:
            msg = JointState(name=['right_j0', 'gripper'], position=[0.0, 0.04])
            msg.header.stamp = stamp
            self.joint_pub.publish(msg)

    def tell_time(self):
        from rosgraph_msgs.msg import Clock

        from vlaq_ros.ros.conversions import to_stamp

        self.clock_pub.publish(Clock(clock=to_stamp(self.now_ns)))

    def pass_time(self, seconds, policy_node, **sense):
        """Let simulated time pass in steps of 20 ms, with sensors; the policy follows."""
        for _ in range(round(seconds / 0.02)):
            self.now_ns += 20_000_000
            self.sense(**sense)
            self.tell_time()
            self.graph.spin_until(
                lambda: (
                    policy_node.get_clock().now().nanoseconds >= self.now_ns
                    and is_settled(policy_node)
                ),
                what='time',
            )

    def run_until(self, condition, policy_node, what='the condition', **sense):
        """Let simulated time pass, slowly enough for the worker, until the condition holds."""
        deadline = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < deadline, f'{what} did not happen; last {self.statuses[-1:]}'
            self.pass_time(0.02, policy_node, **sense)
            self.graph.spin_for(0.005)


@pytest.fixture
def graph(ros_domain):
    graph = Graph(ros_domain)
    yield graph
    graph.close()


@pytest.fixture
def fake_policy():
    return FakePolicy()


@pytest.fixture
def make_robot(graph):
    def make(**options):
        return Robot(graph, **options)

    return make


@pytest.fixture
def running(graph, fake_policy, make_robot):
    """Return a function that brings up robot and policy and waits for the first motion."""

    def bring_up(text='open', policy=None, **parameters):
        from vlaq_ros.ros.interfaces import PolicyStatus

        transport = parameters.get('image_transport', 'raw')
        robot = make_robot(transport=transport)
        node = graph.policy(policy or fake_policy, **parameters)
        assert node.bring_up(), node.failure
        topics = [*robot.cameras.values(), robot.pose_pub, robot.joint_pub, robot.text_pub]
        graph.spin_until(
            lambda: (
                all(p.get_subscription_count() for p in topics)
                and robot.clock_pub.get_subscription_count() > 0
                and robot.statuses
                and node.count_subscribers('policy/delta_twist_cmds') + 1
            ),
            what='discovery',
        )
        robot.say(text)
        graph.spin_until(lambda: robot.statuses[-1].instruction == text, what='instruction')
        robot.run_until(lambda: robot.state == PolicyStatus.RUNNING, node, what='motion')
        return robot, node

    return bring_up


@pytest.fixture
def spec():
    return replace(SPEC)
