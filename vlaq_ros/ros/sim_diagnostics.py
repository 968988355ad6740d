"""The simulator's report on /diagnostics (REP 107), once per wall second."""

import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.node import Node

from vlaq_ros.ros import qos
from vlaq_ros.sim.command_intake import CommandIntake, Refusal
from vlaq_ros.sim.robot import PERIOD_S

_PERIOD_S = 1.0
_SLOW = 0.9  # below this share of the requested factor the simulation counts as too slow


class SimDiagnostics:
    """
    Measures how fast the simulation really runs and reports it with the refused commands.

    Attributes:
        error: What ended the last episode early; reported once.
    """

    def __init__(self, node: Node, steady: Clock, intake: CommandIntake, config) -> None:
        self._node = node
        self._intake = intake
        self._config = config
        self._refused_before = 0
        self._ticks = 0
        self._tick_s = 0.0
        self._since = time.monotonic()
        self.error = ''
        self._pub = node.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        node.create_timer(_PERIOD_S, self._report, clock=steady)

    def add_tick(self, duration_s: float) -> None:
        """Count one simulated period of free running and the wall time it took."""
        self._ticks += 1
        self._tick_s += duration_s

    def _report(self) -> None:
        array = DiagnosticArray(status=[self._speed(), self._commands()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._pub.publish(array)

    def _speed(self) -> DiagnosticStatus:
        now = time.monotonic()
        ticks, tick_s, elapsed_s = self._ticks, self._tick_s, now - self._since
        self._ticks, self._tick_s, self._since = 0, 0.0, now
        status = DiagnosticStatus(name=f'{self._node.get_name()}: simulation', hardware_id='sim')
        if self._config.lockstep:
            status.level, status.message = DiagnosticStatus.OK, 'in lockstep with the commands'
        else:
            wanted = self._config.real_time_factor
            achieved = ticks * PERIOD_S / elapsed_s
            slow = achieved < _SLOW * wanted
            status.level = DiagnosticStatus.WARN if slow else DiagnosticStatus.OK
            status.message = f'{achieved:.2f} of real time, {wanted:g} wanted' + (
                ': lower real_time_factor or raise camera_every' if slow else ''
            )
            status.values = [
                KeyValue(key='achieved real-time factor', value=f'{achieved:.3f}'),
                KeyValue(key='wanted real-time factor', value=f'{wanted:g}'),
                KeyValue(key='mean step [ms]', value=f'{1e3 * tick_s / max(ticks, 1):.1f}'),
            ]
        if self.error:
            status.level, status.message, self.error = DiagnosticStatus.ERROR, self.error, ''
        return status

    def _commands(self) -> DiagnosticStatus:
        refused = self._intake.refused
        new = refused.total() - self._refused_before
        self._refused_before = refused.total()
        return DiagnosticStatus(
            name=f'{self._node.get_name()}: commands',
            hardware_id='sim',
            level=DiagnosticStatus.WARN if new else DiagnosticStatus.OK,
            message=f'{new} refused: {self._intake.last_refusal}' if new else 'accepted',
            values=[KeyValue(key=f'refused {r}', value=str(refused[r])) for r in Refusal],
        )
