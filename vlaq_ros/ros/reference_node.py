"""
The reference node: answers what the full-precision policy would have done, from another machine.

It receives the camera topics of the robot, and the questions of a policy node, which bring state
and sentence; it answers with a chunk for the same observation, or not at all. It commands nothing.
The rules are in `reference_answers`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import CompressedImage, Image

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.base import Policy
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.ros import diagnostics, qos
from vlaq_ros.ros.conversions import to_stamp
from vlaq_ros.ros.interfaces import ActionChunk as ActionChunkMessage
from vlaq_ros.ros.interfaces import PolicyStatus, ReferenceRequest
from vlaq_ros.ros.lifecycle import ManagedNode, run_node
from vlaq_ros.ros.parameters import NodeParameters
from vlaq_ros.ros.reference_answers import ANSWERED, ASKED, ReferenceAnswers
from vlaq_ros.ros.reference_parameters import ReferenceParameters

REQUEST_TOPIC = 'reference_request'
_POLL_S = 0.05


class ReferenceNode(ManagedNode):
    """
    See the module docstring; topics and parameters are in the documentation of drift.

    Args:
        load_policy: Loads a bundle; see `registry.load_policy`.
        digest: Returns the sha256 that identifies a bundle.
        options: Of `rclpy.node.Node`.
    """

    def __init__(
        self,
        *,
        load_policy: Callable[..., Policy] = load_policy,
        digest: Callable[[str], str] = lambda bundle: open_bundle(bundle).digest,
        **options: Any,
    ) -> None:
        super().__init__('reference', **options)
        self._load_policy = load_policy
        self._digest = digest
        self._policy: Policy | None = None
        self._bundle_hash = ''
        self._self_test: tuple[bool | None, str] = (None, 'not run')
        self._answers: ReferenceAnswers | None = None
        self._inbox: list = []
        self._unmatched: dict[str, str] = {}
        self._counted_before: dict[str, int] = {}
        self._settings = NodeParameters(
            self, ReferenceParameters, is_configured=lambda: self._answers is not None
        )
        for sentence in self._settings.unknown_overrides():
            self.get_logger().warning(sentence)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # /clock may stand still
        self._wake = self.create_guard_condition(self._on_inference_done)
        self._chunk_pub = self.create_publisher(
            ActionChunkMessage, '~/reference_chunk', qos.REFERENCE
        )
        self._status_pub = self.create_publisher(PolicyStatus, '~/status', qos.LATCHED)
        self._diagnostics_pub = self.create_publisher(
            DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS
        )
        self.create_timer(_POLL_S, self._on_poll, clock=steady)
        self.create_timer(1.0, self._on_second, clock=steady)
        if self.get_parameter('autostart').value:
            self._autostart = self.create_timer(0.0, self._on_autostart, clock=steady)
        self._announce()

    # --- lifecycle

    def set_up(self) -> None:
        """Read the parameters, load and test the policy, subscribe."""
        config = self._settings.read()
        self._bundle_hash = self._digest(config.bundle)
        self._policy = policy = self._load_policy(
            config.bundle,
            precision=config.precision,
            head=config.head or None,
            threads=config.threads or None,
        )
        self._test_policy(is_required=config.self_test)
        self._answers = ReferenceAnswers(policy, self._bundle_hash, config, self._wake.trigger)
        self._subscribe(config)
        self.get_logger().info(
            f'configured: bundle {policy.spec.name!r} ({self._bundle_hash[:12]}), precision '
            f'{policy.precision}, head {policy.head!r}; {self._self_test[1]}'
        )
        self._announce()

    def start(self) -> None:
        """Begin to answer."""
        self._counted_before = dict(self._answers.counts)
        self._announce('active')

    def halt(self, reason: str) -> None:
        """Forget images and questions."""
        if self._answers is not None:
            self._answers.forget()
        self._announce()

    def tear_down(self) -> None:
        """Unsubscribe and release the policy."""
        for subscription in self._inbox:
            self.destroy_subscription(subscription)
        self._inbox = []
        self._unmatched.clear()
        if self._answers is not None:
            self._answers.close()
        self._answers = self._policy = None
        self._bundle_hash = ''
        self._announce()

    def destroy_node(self) -> None:
        """End the worker thread, then destroy the node."""
        if self._answers is not None:
            self._answers.close()
        super().destroy_node()

    # --- callbacks

    def _on_autostart(self) -> None:
        self.destroy_timer(self._autostart)
        self.bring_up()

    def _on_image(self, camera: str, msg: Image | CompressedImage) -> None:
        if self.lifecycle == 'active':
            self._answers.store(camera, msg)

    def _on_request(self, msg: ReferenceRequest) -> None:
        if self.lifecycle == 'active':
            self._answers.ask(msg)

    def _on_inference_done(self) -> None:
        if self._answers is None:
            return
        for answer in self._answers.collect():
            if self.lifecycle == 'active':
                self._chunk_pub.publish(answer)

    def _on_poll(self) -> None:
        if self.lifecycle == 'active':
            self._answers.advance()

    def _on_second(self) -> None:
        statuses = [self._questions()]
        name = self.get_fully_qualified_name().lstrip('/')
        hardware_id = ''
        if self._policy is not None:
            hardware_id = f'{self._policy.spec.name} {self._bundle_hash[:12]}'
            statuses += [
                diagnostics.memory(self._policy.memory()),
                diagnostics.self_test(*self._self_test),
                diagnostics.qos(self._unmatched),
            ]
        now_ns = self.get_clock().now().nanoseconds
        self._diagnostics_pub.publish(diagnostics.array(name, hardware_id, now_ns, statuses))
        self._announce()

    # --- what is announced

    def _questions(self) -> DiagnosticStatus:
        """Return how many questions were asked, answered and not answered, and why."""
        name = 'questions'
        if self._answers is None:
            level = diagnostics.ERROR if self.failure else diagnostics.OK
            return diagnostics.status(name, level, self.failure or self.lifecycle)
        answers, before = self._answers, self._counted_before
        counts = self._counted_before = dict(answers.counts)
        asked = counts[ASKED] - before.get(ASKED, 0)
        answered = counts[ANSWERED] - before.get(ANSWERED, 0)
        values = {
            **counts,
            'waiting': answers.waiting,
            'images kept': len(answers.history),
            'images kept [byte]': answers.history.size_bytes,
            'last inference [ms]': f'{answers.inference_s * 1e3:.1f}',
        }
        if self.lifecycle != 'active':
            return diagnostics.status(name, diagnostics.OK, self.lifecycle, values)
        if not counts[ASKED]:
            topic = self._inbox[0].topic_name
            return diagnostics.status(name, diagnostics.OK, f'nobody asks on {topic}', values)
        if asked and not answered:
            text = answers.trouble or 'not answered yet'
            return diagnostics.status(name, diagnostics.WARN, text, values)
        text = f'{answered} of {asked} answered in the last second'
        return diagnostics.status(name, diagnostics.OK, text, values)

    def _announce(self, lifecycle: str = '') -> None:
        """Say which bundle this is and why questions are not answered, to whoever asks."""
        is_active = (lifecycle or self.lifecycle) == 'active'
        reason = self.failure or self.lifecycle
        if is_active:
            reason = self._answers.trouble
        msg = PolicyStatus(
            state=PolicyStatus.WAITING if is_active else PolicyStatus.INACTIVE,
            reason=reason,
            bundle='' if self._policy is None else self._policy.spec.name,
            bundle_hash=self._bundle_hash,
        )
        msg.header.stamp = to_stamp(self.get_clock().now().nanoseconds)
        self._status_pub.publish(msg)

    def _subscribe(self, config: ReferenceParameters) -> None:
        topic = f'{config.policy}/{REQUEST_TOPIC}'
        self._add(ReferenceRequest, topic, self._on_request, qos.REFERENCE)
        is_compressed = config.image_transport == 'compressed'
        image_type = CompressedImage if is_compressed else Image
        suffix = '/compressed' if is_compressed else ''
        for camera in self._policy.spec.cameras:
            callback = partial(self._on_image, camera.name)
            self._add(image_type, f'{camera.name}/image_raw{suffix}', callback, qos.IMAGES_IN)

    def _add(self, message_type: type, topic: str, callback: Any, profile: Any) -> None:
        resolved = self.resolve_topic_name(topic)

        def on_incompatible_qos(event: Any) -> None:
            kind = getattr(event.last_policy_kind, 'name', event.last_policy_kind)
            text = f'a publisher offers incompatible QoS on {resolved} (policy {kind})'
            self._unmatched[resolved] = text
            self.get_logger().warning(f'{text}: nothing arrives')

        events = qos.SubscriptionEventCallbacks(incompatible_qos=on_incompatible_qos)
        options = qos.overridable(profile)
        self._inbox.append(
            self.create_subscription(
                message_type, topic, callback, event_callbacks=events, **options
            )
        )

    def _test_policy(self, *, is_required: bool) -> None:
        if not is_required:
            self._self_test = (None, 'self-test switched off')
            return
        report = self._policy.self_test()
        text = f'self-test passed: {len(report.checks)} checks'
        if not report.passed:
            text = f'self-test failed:\n{report.failures()}'
        self._self_test = (report.passed, text)
        if not report.passed:
            raise PolicyError(text)


def main(args: Sequence[str] | None = None) -> int:
    """Run the reference node until Ctrl-C."""
    return run_node(ReferenceNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
