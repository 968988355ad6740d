"""
The calibration node: bags, or the live topics for a while, become a verified quantized bundle.

It runs what `vlaq calibrate` runs, in a process of its own, and tells how far it is. `~/start`
begins, `~/cancel` ends and keeps what is finished; `resume` goes on from there. Without a bag the
recorder node collects from the topics first. Nothing is loaded into a running policy: start the
policy node with the new bundle when the report has been read.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from std_srvs.srv import Trigger

from vlaq_ros.errors import ConfigError, VlaqError
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.ros import diagnostics, qos
from vlaq_ros.ros.bringup import NodeProcess, config_file
from vlaq_ros.ros.calibration_parameters import CalibrationParameters
from vlaq_ros.ros.calibration_process import INTERRUPTED, MISSED, PASSED, CalibrationProcess
from vlaq_ros.ros.conversions import to_stamp
from vlaq_ros.ros.interfaces import CalibrationProgress
from vlaq_ros.ros.lifecycle import ManagedNode, run_node
from vlaq_ros.ros.parameters import NodeParameters
from vlaq_ros.ros.recorded_topics import camera_names, stream_names

RECORDING = '.recording'
_POLL_S = 0.1
IDLE, COLLECTING, DONE, FAILED, CANCELLED = 'idle', 'collecting', 'done', 'failed', 'cancelled'


class CalibrationNode(ManagedNode):
    """
    See the module docstring.

    Attributes:
        stage: What it is doing: `idle`, `collecting`, a stage of the pipeline, `done`, `failed`
            or `cancelled`.
        message: One sentence about it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__('calibration', **options)
        self.stage, self.message = IDLE, 'nothing was started'
        self._config = CalibrationParameters()
        self._run: CalibrationProcess | None = None
        self._recorder: NodeProcess | None = None
        self._started_at = 0.0
        self._cancelled = False
        self._told = 0
        self._folder: tempfile.TemporaryDirectory | None = None
        self._settings = NodeParameters(self, CalibrationParameters)
        for sentence in self._settings.unknown_overrides():
            self.get_logger().warning(sentence)
        self._progress_pub = self.create_publisher(CalibrationProgress, '~/progress', qos.LATCHED)
        self._diagnostics_pub = self.create_publisher(
            DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS
        )
        self.create_service(Trigger, '~/start', self._on_start)
        self.create_service(Trigger, '~/cancel', self._on_cancel)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # /clock may stand still
        self.create_timer(_POLL_S, self._poll, clock=steady)
        self.create_timer(1.0, self._on_diagnostics_timer, clock=steady)
        if self.get_parameter('autostart').value:
            self._autostart = self.create_timer(0.0, self._on_autostart, clock=steady)

    @property
    def is_running(self) -> bool:
        """Whether something is collected or calibrated."""
        return self._run is not None or self._recorder is not None

    # --- lifecycle

    def set_up(self) -> None:
        """Check the parameters."""
        open_bundle(self._settings.read().bundle)
        self._folder = tempfile.TemporaryDirectory(prefix='vlaq_calibration_')

    def start(self) -> None:
        """Begin when the parameters say so."""
        if self.get_parameter('auto_start').value:
            self.begin()

    def halt(self, reason: str) -> None:
        """End what is running; what is finished is kept."""
        if self.is_running:
            self._end_processes()
            self._announce(CANCELLED, reason)

    def tear_down(self) -> None:
        """End what is running."""
        self._end_processes()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def destroy_node(self) -> None:
        """Leave no process behind."""
        self.tear_down()
        super().destroy_node()

    # --- what it does

    def begin(self) -> None:
        """
        Start a calibration, or the recording for one.

        Raises:
            BagError: The place of the recording is taken.
            ConfigError: The node is not active or busy, or parameters are wrong.
        """
        if self.is_running:
            raise ConfigError(f'a calibration is running ({self.stage}); end it with ~/cancel')
        self._config = config = self._settings.read()
        if not config.out:
            raise ConfigError("parameter 'out' is empty: name the directory of the packed bundle")
        self._cancelled = False
        if config.bag.split():
            self._calibrate(config.bag.split())
            return
        bag = Path(f'{config.out}{RECORDING}')
        if bag.exists():
            raise ConfigError(
                f"{bag} exists already: calibrate from it with the parameter 'bag', or move it"
            )
        self._record(bag)

    def _record(self, bag: Path) -> None:
        config = self._config
        streams = stream_names(camera_names(config.bundle), config.policy, config.image_transport)
        topics = {stream: self.resolve_topic_name(stream) for stream in streams}
        values = {
            'output': str(bag),
            'bundle': config.bundle,
            'policy': config.policy,
            'image_transport': config.image_transport,
            'use_sim_time': self.get_parameter('use_sim_time').value,
        }
        self._recorder = NodeProcess(
            'recorder',
            'vlaq_ros.ros.recorder_node',
            Path(self._folder.name),
            parameter_file=config_file('recorder_node.yaml'),
            parameters=values,
            remappings={'__ns': self.get_namespace(), **topics},
            environment=self._environment(),
        )
        self._started_at = time.monotonic()
        self._announce(
            COLLECTING, f'recording from the topics to {bag}', 0, round(config.collect_s)
        )

    def _calibrate(self, bags: list[str]) -> None:
        self._run = CalibrationProcess(
            self._config.arguments(bags),
            Path(self._folder.name) / 'calibrate.log',
            self._environment(),
        )
        self._announce('samples', f'calibrating from {", ".join(bags)}')

    def _poll(self) -> None:
        """Look after the processes; runs on the executor thread, a few times a second."""
        try:
            if self._recorder is not None:
                self._look_after_recorder()
            elif self._run is not None:
                self._look_after_run()
        except VlaqError as error:
            self._end_processes()
            self._announce(FAILED, str(error))

    def _look_after_recorder(self) -> None:
        spent_s = time.monotonic() - self._started_at
        wanted_s = self.get_parameter('collect_s').value  # may be shortened: it is enough
        if spent_s < wanted_s:
            self._recorder.check()
            if round(spent_s) > self._told:
                self._announce(COLLECTING, self.message, round(spent_s), round(wanted_s))
            return
        self._recorder.stop()
        self._recorder = None
        self._calibrate([f'{self._config.out}{RECORDING}'])

    def _look_after_run(self) -> None:
        status = self._run.status()
        for standing in self._run.standings():
            self._announce(
                standing['stage'],
                standing['message'],
                standing['done'],
                standing['total'],
                standing['remaining_s'],
            )
        if status is None:
            return
        words = self._run.words()
        self._run.close()
        self._run = None
        if status == PASSED:
            self._announce(DONE, words, remaining_s=0.0)
        elif status == MISSED:
            self._announce(DONE, f'the tolerance is missed; {words}', remaining_s=0.0)
        elif self._cancelled or status == INTERRUPTED:
            self._announce(CANCELLED, words)
        else:
            self._announce(FAILED, words)

    def _end_processes(self) -> None:
        for process in (self._recorder, self._run):
            if isinstance(process, NodeProcess):
                process.stop()
            elif process is not None:
                process.close()
        self._recorder = self._run = None

    # --- interfaces

    def _on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            if self.lifecycle != 'active':
                raise ConfigError(f'the node is {self.lifecycle}: activate it first')
            self.begin()
            response.success, response.message = True, self.message
        except VlaqError as error:
            response.success, response.message = False, str(error)
        return response

    def _on_cancel(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self.is_running
        if self._recorder is not None:
            self._end_processes()
            self._announce(CANCELLED, f'the recording is kept in {self._config.out}{RECORDING}')
        elif self._run is not None:
            self._cancelled = True
            self._run.ask_to_end()
            self.message = 'ending; what is finished is kept, go on with resume'
        response.message = self.message if response.success else 'nothing is running'
        return response

    def _announce(
        self, stage: str, message: str, done: int = 0, total: int = 0, remaining_s: float = -1.0
    ) -> None:
        """Publish where it stands; a new stage is logged."""
        if stage != self.stage:
            log = self.get_logger()
            text = f'{stage}: {message}'
            if stage == FAILED:
                log.error(text)
            else:
                log.info(text)
        self.stage, self.message, self._told = stage, message, done
        msg = CalibrationProgress(
            method=self._config.method, stage=stage, done=done, total=total, message=message
        )
        msg.header.stamp = to_stamp(self.get_clock().now().nanoseconds)
        whole = int(remaining_s) if remaining_s >= 0.0 else -1
        part = round((remaining_s - whole) * 1e9) if remaining_s >= 0.0 else 0
        msg.remaining = Duration(sec=whole, nanosec=min(part, 999_999_999))
        self._progress_pub.publish(msg)

    def _on_diagnostics_timer(self) -> None:
        level = diagnostics.ERROR if self.stage == FAILED or self.failure else diagnostics.OK
        status = diagnostics.status(
            'calibration',
            level,
            f'{self.stage}: {self.message}' if not self.failure else self.failure,
            {'lifecycle': self.lifecycle, 'method': self._config.method, 'out': self._config.out},
        )
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics_pub.publish(
            diagnostics.array(self.get_fully_qualified_name(), 'vlaq_ros', now_ns, [status])
        )

    def _on_autostart(self) -> None:
        self.destroy_timer(self._autostart)
        self.bring_up()

    def _environment(self) -> dict[str, str]:
        """Return the environment of this process, in the domain of this node."""
        return {**os.environ, 'ROS_DOMAIN_ID': str(self.context.get_domain_id())}


def main(args: Sequence[str] | None = None) -> int:
    """Run the calibration node until Ctrl-C."""
    return run_node(CalibrationNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
