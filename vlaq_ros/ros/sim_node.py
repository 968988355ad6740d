"""
Meta-World as a ROS 2 robot: cameras, arm state and /clock out, end-effector commands in.

Two modes. In lockstep simulated time stands still until the commands stamped with the current time
have arrived, so a closed loop over topics is as reproducible as one without ROS. Otherwise the
simulation follows the wall clock, and a motion command ends when it is older than
`command_timeout_s`.

Everything, rendering included, happens on the thread that spins this node: an OpenGL context
belongs to one thread. Spin it with a single-threaded executor.
"""

import signal
import time
from dataclasses import replace

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from vlaq_ros.control.commands import HOLD
from vlaq_ros.errors import VlaqError
from vlaq_ros.ros import qos
from vlaq_ros.ros import sim_messages as messages
from vlaq_ros.ros.conversions import pose_message, to_nanoseconds
from vlaq_ros.ros.interfaces import EpisodeStatus
from vlaq_ros.ros.parameters import NodeParameters
from vlaq_ros.ros.sim_diagnostics import SimDiagnostics
from vlaq_ros.ros.sim_parameters import TASK_NAMES, SimParameters
from vlaq_ros.sim.camera_model import intrinsics
from vlaq_ros.sim.command_intake import CommandIntake, Refusal
from vlaq_ros.sim.robot import CAMERAS, GRIPPER_TRAVEL_M, PERIOD_S, SimRobot
from vlaq_ros.sim.tasks import find_task
from vlaq_ros.types import EndEffectorCommand

# A reset takes this much simulated time, so that nothing observed or predicted before it is due.
RESET_NS = 1_000_000_000
_WATCH_S = 0.05
_RESEND_S = 0.5
_PAUSE_S = 1.0
_SETTLE_S = 0.1


class SimNode(Node):
    """See the module docstring; topics and services are in the README."""

    def __init__(self, robot: SimRobot | None = None, **options) -> None:
        super().__init__('sim', **options)
        self._settings = NodeParameters(self, SimParameters)
        self._config = config = self._settings.read()
        for sentence in self._settings.unknown_overrides():
            self.get_logger().warning(sentence)
        self._robot = robot or SimRobot()
        self._episode = EpisodeStatus()
        self._running = False
        self._just_ended = False
        self._policy_seen = False
        self._waiting_since = self._sent_at = self._ended_at = time.monotonic()
        self._send_at: float | None = None
        self._ticks = 0
        timeout_ns = None if config.lockstep else round(config.command_timeout_s * 1e9)
        self._intake = CommandIntake(config.base_frame, timeout_ns)
        self._make_publishers()
        self._make_subscriptions()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)  # this node makes the ROS time
        self._diagnostics = SimDiagnostics(self, self._steady, self._intake, config)
        self._start_timer = self.create_timer(0.0, self._start, clock=self._steady)

    # --- interfaces

    def _make_publishers(self) -> None:
        def images(name: str):
            return self.create_publisher(Image, f'{name}/image_raw', qos.SENSOR_OUT)

        self._image_pubs = {name: images(name) for name in CAMERAS}
        self._info_pubs = {
            name: self.create_publisher(CameraInfo, f'{name}/camera_info', qos.SENSOR_OUT)
            for name in CAMERAS
        }
        self._jpeg_pubs = {
            name: self.create_publisher(
                CompressedImage, f'{name}/image_raw/compressed', qos.SENSOR_OUT
            )
            for name in CAMERAS
            if self._config.compressed
        }
        self._spectator_pub = images('spectator') if self._config.spectator else None
        self._pose_pub = self.create_publisher(PoseStamped, 'ee_pose', qos.SENSOR_OUT)
        self._joint_pub = self.create_publisher(JointState, 'joint_states', qos.SENSOR_OUT)
        self._clock_pub = self.create_publisher(ClockMessage, '/clock', qos.SENSOR_OUT)
        self._episode_pub = self.create_publisher(EpisodeStatus, 'episode', qos.LATCHED)
        self._success_pub = self.create_publisher(Bool, 'success', qos.LATCHED)
        if self._config.publish_instruction:
            self._instruction_pub = self.create_publisher(String, 'instruction', qos.LATCHED)

    def _make_subscriptions(self) -> None:
        for message_type, topic, callback in (
            (TwistStamped, 'delta_twist_cmds', self._on_twist),
            (PoseStamped, 'pose_target_cmds', self._on_target),
            (JointState, 'gripper_cmds', self._on_gripper),
        ):
            self.create_subscription(message_type, topic, callback, qos.COMMAND)
        self.create_service(Trigger, '~/reset', self._on_reset)

    # --- commands

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        stamp = to_nanoseconds(message.header.stamp)
        frame, now_ns = message.header.frame_id, self._robot.now_ns
        self._after_command(self._intake.put_twist(twist, frame, stamp, now_ns))

    def _on_target(self, message: PoseStamped) -> None:
        position = message.pose.position
        target = np.array([position.x, position.y, position.z])
        stamp = to_nanoseconds(message.header.stamp)
        frame, now_ns = message.header.frame_id, self._robot.now_ns
        self._after_command(self._intake.put_target(target, frame, stamp, now_ns))

    def _on_gripper(self, message: JointState) -> None:
        if list(message.name) != [messages.GRIPPER_JOINT] or len(message.position) != 1:
            self._after_command(self._intake.refuse_joint(list(message.name)))
            return
        opening = message.position[0] / GRIPPER_TRAVEL_M
        stamp = to_nanoseconds(message.header.stamp)
        self._after_command(self._intake.put_gripper(opening, stamp, self._robot.now_ns))

    def _after_command(self, refusal: Refusal | None) -> None:
        if refusal is not None:
            self.get_logger().warning(
                f'command refused ({refusal}): {self._intake.last_refusal}',
                throttle_duration_sec=5.0,
            )
            return
        self._policy_seen = True
        if self._config.lockstep and self._intake.is_complete(self._robot.now_ns):
            self._advance()
            self._publish()

    # --- episodes

    def _start(self) -> None:
        self._start_timer.cancel()
        if self._config.auto_start:
            self._start_episode()
        if not self._config.lockstep:
            period_s = PERIOD_S / self._config.real_time_factor
            self.create_timer(period_s, self._tick, clock=self._steady)
        self.create_timer(_WATCH_S, self._watch, clock=self._steady)

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._start_episode()
        except VlaqError as error:
            self._intake.stop()
            self._running = self._just_ended = False
            response.success, response.message = False, str(error)
        else:
            episode = self._episode
            response.success = True
            response.message = (
                f'epoch {episode.epoch}: {episode.task} seed {episode.seed} index {episode.index}'
            )
        return response

    def _start_episode(self) -> None:
        config = self._settings.read()
        task = find_task(config.task)
        self._robot.reset(task.name, config.seed, config.index)
        self._robot.now_ns += RESET_NS
        self._intake.start(self._robot.now_ns)
        self._running, self._just_ended = True, False
        self._episode = EpisodeStatus(
            task=task.name,
            instruction=config.instruction or task.sentences[config.index % len(task.sentences)],
            seed=config.seed,
            index=config.index,
            epoch=self._episode.epoch + 1,
            max_steps=task.max_steps,
        )
        self.get_logger().info(
            f'episode {self._episode.epoch}: {task.name} seed {config.seed} index {config.index}: '
            f'{self._episode.instruction!r}'
        )
        if config.publish_instruction:
            self._instruction_pub.publish(String(data=self._episode.instruction))
        self._waiting_since = time.monotonic()
        if config.lockstep and config.publish_instruction:
            # Topics are not ordered among each other: let the sentence arrive before the images.
            self._send_at = self._waiting_since + _SETTLE_S
        else:
            self._publish()

    def _next_episode(self, mode: str) -> None:
        config = self._settings.read()
        task, index = config.task, config.index
        if mode == 'next_task':
            place = TASK_NAMES.index(task) + 1
            task = TASK_NAMES[place % len(TASK_NAMES)]
            index += place // len(TASK_NAMES)
        else:
            index += 1
        index, seed = index % 50, config.seed + index // 50
        self.set_parameters(
            [
                RosParameter('task', value=task),
                RosParameter('seed', value=seed),
                RosParameter('index', value=index),
            ]
        )
        self._start_episode()

    def _end_episode(self, sentence: str) -> None:
        self._running, self._just_ended = False, True
        self._intake.stop()
        self._ended_at = time.monotonic()
        self._episode.done = True
        episode = self._episode
        self.get_logger().info(f'episode {episode.epoch}: {sentence} after {episode.step} steps')

    # --- time

    def _tick(self) -> None:
        """Simulate one period, also between episodes: a robot does not vanish."""
        if not self._robot.task:
            return
        started = time.perf_counter()
        self._advance()
        self._ticks += 1
        self._publish(cameras=self._ticks % self._config.camera_every == 0)
        self._diagnostics.add_tick(time.perf_counter() - started)

    def _advance(self) -> None:
        """Simulate one policy period with the commands that are due."""
        robot = self._robot
        motion, gripper = self._intake.motion(robot.now_ns), self._intake.gripper()
        if motion is None:
            robot.step(replace(HOLD, gripper=gripper))
        elif motion.target is not None:
            robot.step_towards(motion.target, gripper)
        else:
            robot.step(EndEffectorCommand(motion.twist, gripper))
        self._waiting_since = time.monotonic()
        if not self._running:
            return
        self._episode.step = robot.step_count
        self._episode.success = bool(robot.success)
        if robot.success:
            self._end_episode('success')
        elif robot.step_count >= self._episode.max_steps:
            self._end_episode('no success')

    def _watch(self) -> None:
        """Repeat what may have been missed, end what hangs, start what is next."""
        now = time.monotonic()
        if not self._running:
            mode = self._settings.read().auto_reset
            if mode != 'off' and self._robot.task and now - self._ended_at >= _PAUSE_S:
                self._next_episode(mode)
            return
        if not self._config.lockstep:
            return
        if self._send_at is not None:
            if now >= self._send_at:
                self._publish()
            return
        waited_s = now - self._waiting_since
        # Before the first command ever the policy may still be loading: wait without limit.
        if self._policy_seen and waited_s > self._config.lockstep_timeout_s:
            self._abort(waited_s)
        elif now - self._sent_at > _RESEND_S:
            self._publish()

    def _abort(self, waited_s: float) -> None:
        self._policy_seen = False
        problem = (
            f'no complete command for t={self._robot.now_ns} ns within {waited_s:.1f} s '
            f'(lockstep_timeout_s={self._config.lockstep_timeout_s:g}): aborted'
        )
        self.get_logger().error(problem)
        self._diagnostics.error = problem
        self._end_episode('aborted')
        self._publish()

    # --- publishing

    def _publish(self, cameras: bool = True) -> None:
        """
        Publish everything that happened at the current time, /clock last.

        At the end of an episode in lockstep there are no images: nothing asks for an answer.
        """
        robot, config = self._robot, self._config
        self._sent_at, self._send_at = time.monotonic(), None
        if cameras and (self._running or not config.lockstep):
            for name in CAMERAS:
                self._publish_camera(name)
        if self._spectator_pub is not None and (
            self._just_ended or (self._running and robot.step_count % config.spectator_every == 0)
        ):
            stamped = messages.header(robot.now_ns, 'spectator_optical_frame')
            self._spectator_pub.publish(messages.image_message(robot.spectator(), stamped))
        stamped = messages.header(robot.now_ns, config.base_frame)
        self._pose_pub.publish(pose_message(robot.ee_pose(), config.base_frame, robot.now_ns))
        opening = float(robot.state()[3])
        self._joint_pub.publish(
            messages.joint_state_message(robot.joint_positions(), opening, stamped)
        )
        if self._running or self._just_ended:
            self._publish_episode()
            self._just_ended = False
        self._clock_pub.publish(ClockMessage(clock=stamped.stamp))

    def _publish_camera(self, name: str) -> None:
        camera = CAMERAS[name]
        stamped = messages.header(self._robot.now_ns, f'{name}_optical_frame')
        image = self._robot.render(name)
        self._info_pubs[name].publish(
            messages.camera_info_message(
                intrinsics(self._robot, camera), camera.height, camera.width, stamped
            )
        )
        self._image_pubs[name].publish(messages.image_message(image, stamped))
        if name in self._jpeg_pubs:
            self._jpeg_pubs[name].publish(messages.jpeg_message(image, stamped))

    def _publish_episode(self) -> None:
        self._episode.header = messages.header(self._robot.now_ns, self._config.base_frame)
        self._episode_pub.publish(self._episode)
        self._success_pub.publish(Bool(data=self._episode.success))


def main(args: list[str] | None = None) -> int:
    """
    Run the simulator until Ctrl-C or SIGTERM; return the exit status.

    The signals are only remembered: a second one, as `launch` sends it, must not cut the clean-up.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, stack: received.append(signum))
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = SimNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while rclpy.ok() and not received:
            executor.spin_once(timeout_sec=0.1)
        executor.shutdown()
        node.destroy_node()
    except VlaqError as error:
        rclpy.logging.get_logger('sim').fatal(str(error))
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
