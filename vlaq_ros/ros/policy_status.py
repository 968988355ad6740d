"""
~/status and its log: what the policy node is doing, told on the edge and never per tick.

A change of state, sentence or epoch is published at once. The reason of a hold changes with every
tick (it names ages), so a reason alone is published at most once a second. While active the status
is published once a second anyway: late joiners shall not get a sequence of long ago.
"""

import time

from rclpy.node import Node

from vlaq_ros.control.supervisor import ControlState
from vlaq_ros.ros import qos
from vlaq_ros.ros.control_loop import ControlLoop
from vlaq_ros.ros.conversions import to_stamp
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.ros.interfaces import PolicyStatus

_REPEAT_PERIOD_S = 1.0
_LOG_PERIOD_S = 2.0  # an arm that stops and goes would fill the log; ~/status has every change


class StatusAnnouncer:
    """Publishes ~/status, latched, and logs changes of state."""

    def __init__(self, node: Node) -> None:
        self._logger = node.get_logger()
        self._publisher = node.create_publisher(PolicyStatus, '~/status', qos.LATCHED)
        self._last = PolicyStatus(state=255)
        self._published_s = 0.0

    def announce(self, msg: PolicyStatus) -> None:
        """Publish when something changed, and once a second while active."""
        if _essence(msg) == _essence(self._last):
            is_recent = time.monotonic() - self._published_s < _REPEAT_PERIOD_S
            is_same = msg.state == ControlState.INACTIVE and msg.reason == self._last.reason
            if is_recent or is_same:
                return
        if msg.state != self._last.state:
            self._log(msg)
        self._last = msg
        self._published_s = time.monotonic()
        self._publisher.publish(msg)

    def _log(self, msg: PolicyStatus) -> None:
        if msg.state == ControlState.FAULT:
            self._logger.error(f'stopped until ~/reset: {msg.reason}')
        elif msg.state == ControlState.HOLDING:
            self._logger.warning(f'holding: {msg.reason}', throttle_duration_sec=_LOG_PERIOD_S)
        elif msg.state == ControlState.RUNNING:
            self._logger.info(f'moving: {msg.instruction!r}', throttle_duration_sec=_LOG_PERIOD_S)


def unloaded(reason: str, epoch: int, sequence: int, now_ns: int) -> PolicyStatus:
    """Return the status of a node without a policy, and the last epoch and chunk it had."""
    msg = PolicyStatus(state=PolicyStatus.INACTIVE, reason=reason, epoch=epoch, sequence=sequence)
    msg.header.stamp = to_stamp(now_ns)
    return msg


def loaded(loop: ControlLoop, inputs: Inputs, bundle: str, bundle_hash: str) -> PolicyStatus:
    """Return the status of a node with a policy."""
    msg = PolicyStatus(
        state=int(loop.supervisor.state),
        reason=loop.supervisor.reason,
        instruction=inputs.instruction,
        instruction_count=inputs.instruction_count,
        epoch=loop.epoch,
        sequence=loop.sequence,
        bundle=bundle,
        bundle_hash=bundle_hash,
    )
    msg.header.stamp = to_stamp(loop.supervisor.since_ns)
    return msg


def _essence(msg: PolicyStatus) -> tuple:
    return (msg.state, msg.instruction, msg.instruction_count, msg.epoch, msg.bundle_hash)
