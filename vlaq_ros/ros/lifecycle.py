"""
The one lifecycle base: set up, start, stop with a reason, tear down.

rclpy swallows exceptions of transition callbacks in most releases, so each one is caught here: a
problem that a user can fix is logged as one message, anything else with its traceback, and the
transition reports failure instead of pretending. Stopping comes before anything else that a
transition does, and tear-down copes with a half-built node.
"""

import signal
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from vlaq_ros.errors import VlaqError

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR


class ManagedNode(LifecycleNode):
    """
    A lifecycle node whose subclasses fill in four steps.

    Attributes:
        lifecycle: `unconfigured`, `inactive`, `active` or `finalized`.
        failure: Why the last transition failed; empty after a successful one.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.lifecycle = 'unconfigured'
        self.failure = ''
        self._guard_change_state_service()

    def set_up(self) -> None:
        """Build everything; raise when that is impossible."""

    def start(self) -> None:
        """Begin to act; the lifecycle publishers are enabled already."""

    def halt(self, reason: str) -> None:
        """Send the stop command and cease to act; the lifecycle publishers are still enabled."""

    def tear_down(self) -> None:
        """Release everything, however little was built."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Set up; on failure tear down again and stay unconfigured."""
        if self._succeeds('configure', self.set_up):
            self.lifecycle = 'inactive'
            return SUCCESS
        self._attempt('clean up after a failed configure', self.tear_down)
        return FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers and start; on failure halt and stay inactive."""
        super().on_activate(state)
        if self._succeeds('activate', self.start):
            self.lifecycle = 'active'
            return SUCCESS
        self._attempt('halt after a failed activate', lambda: self.halt(self.failure))
        super().on_deactivate(state)
        return FAILURE

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Halt, then disable the publishers: the stop is the last command that is sent."""
        self.lifecycle = 'inactive'
        halted = self._succeeds('deactivate', lambda: self.halt('deactivated'))
        super().on_deactivate(state)
        return SUCCESS if halted else ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down."""
        self.lifecycle = 'unconfigured'
        return SUCCESS if self._succeeds('clean up', self.tear_down) else ERROR

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Halt when active, then tear down."""
        if self.lifecycle == 'active':
            self.on_deactivate(state)
        self._attempt('shut down', self.tear_down)
        self.lifecycle = 'finalized'
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Halt, tear down, and be unconfigured again."""
        self.lifecycle = 'unconfigured'
        self._attempt('halt after an error', lambda: self.halt(f'error: {self.failure}'))
        super().on_deactivate(state)
        self._attempt('tear down after an error', self.tear_down)
        return SUCCESS

    def bring_up(self) -> bool:
        """Configure and activate; return whether the node is active."""
        return self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS

    def _succeeds(self, what: str, step: Callable[[], Any]) -> bool:
        """Take a step whose outcome is that of the transition."""
        self.failure = ''
        self.failure = self._attempt(what, step)
        return not self.failure

    def _attempt(self, what: str, step: Callable[[], Any]) -> str:
        """Take a step, log why it failed, and return why; empty: it succeeded."""
        try:
            step()
        except VlaqError as error:
            self.get_logger().error(f'cannot {what}: {error}')
            return str(error)
        except Exception as error:
            self.get_logger().error(f'cannot {what}:\n{traceback.format_exc()}')
            return f'{type(error).__name__}: {error}'
        return ''

    def _guard_change_state_service(self) -> None:
        """Answer an impossible transition with `success=False`; rclpy lets it end the process."""
        service = getattr(self, '_service_change_state', None)
        if service is None:
            return
        change_state = service.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except Exception as error:  # RCLError, whose class is private
                wanted = request.transition.label or request.transition.id
                self.get_logger().error(
                    f'no transition {wanted!r} from state {self.lifecycle!r}: {error}'
                )
                response.success = False
                return response

        service.callback = guarded


def run_node(make_node: Callable[[], ManagedNode], args: Sequence[str] | None) -> int:
    """
    Run a node until Ctrl-C or SIGTERM; return the exit status.

    The signals are handled here and not by rclpy, which would close the connection before the stop
    command could be sent. An exception that escapes a callback also stops the arm before it ends
    the process.
    """
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    received: list[int] = []
    status = 0

    def remember(signum: int, stack: FrameType | None) -> None:
        received.append(signum)

    previous = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            while rclpy.ok() and not received:
                executor.spin_once(timeout_sec=0.1)
        except Exception:
            node.get_logger().fatal(f'stopping after an error:\n{traceback.format_exc()}')
            status = 1
        if node.lifecycle != 'finalized':
            node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
    finally:
        for signum, handler in previous.items():
            # A terminal and `ros2 launch` both signal Ctrl-C: the second must not spoil the exit.
            signal.signal(signum, signal.SIG_IGN if received else handler)
        rclpy.try_shutdown()
    return status
