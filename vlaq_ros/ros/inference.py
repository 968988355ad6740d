"""
What happens on the inference thread: look, infer, and remember where the arm was when it was seen.

`control_loop` asks and takes over the answers on the executor thread. Here only the policy, the
inputs and an inline reference are touched. No rclpy, as in `control_loop`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from vlaq_ros.errors import StaleInputError
from vlaq_ros.policies.base import Policy
from vlaq_ros.ros.inputs import Inputs
from vlaq_ros.types import ActionChunk, Observation, Pose


@dataclass(frozen=True)
class Request:
    """
    One inference.

    Attributes:
        now_ns: About the observation at this instant of the control clock.
        epoch: Reset epoch that the chunk shall be of.
        last_observed_ns: Stamp of the observation that was answered last; None: there was none.
        needs_pose: Whether the chunk is of no use without a measured pose to start from.
    """

    now_ns: int
    epoch: int
    last_observed_ns: int | None
    needs_pose: bool


class Inferred(NamedTuple):
    """A chunk, and where the arm was at its observation; by now that pose may be forgotten."""

    chunk: ActionChunk
    start: Pose | None
    observation: Observation


class Inference:
    """
    Answers requests with one policy.

    Args:
        policy: Loaded policy; it is reset before the first request of an epoch.
        inputs: Observations and measured poses.
        infer: Runs the policy on an observation, asked for at a time of the control clock [ns].
        beside: Told of every observation that was answered, with its epoch, before the next one.
    """

    def __init__(
        self,
        policy: Policy,
        inputs: Inputs,
        infer: Callable[[Observation, int], ActionChunk],
        beside: Callable[[Observation, int], None],
    ) -> None:
        self._policy = policy
        self._inputs = inputs
        self._infer = infer
        self._beside = beside
        self._epoch: int | None = None

    def answer(self, request: Request) -> Inferred | None:
        """
        Run the policy; None: there is no newer observation.

        Raises:
            StaleInputError: An input is missing or too old, or the pose that is needed.
            PolicyError: As `Policy.infer`.
        """
        if request.epoch != self._epoch:
            self._policy.reset()
            self._epoch = request.epoch
        observation = self._inputs.observation(request.now_ns)
        if observation.observed_ns == request.last_observed_ns:
            return None
        start = self._inputs.pose(observation.observed_ns)
        if start is None and request.needs_pose:
            raise StaleInputError('no measured pose at the time of the observation')
        chunk = self._infer(observation, request.now_ns)
        self._beside(observation, request.epoch)
        return Inferred(replace(chunk, epoch=request.epoch), start, observation)
