"""
What counts as an error of the actions, as one vector per observation whose square is the cost.

Every dimension is divided by its own scale, so that metres, radians and gripper openings add up.
With `accumulated`, the sum of the increments up to every step counts as well: an error that keeps
its sign moves the arm away, one that alternates does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlaq_ros.calibration.method import CalibrationContext
from vlaq_ros.errors import SchemeError
from vlaq_ros.types import POSITION_NAMES, ROTATION_NAMES, ActionSpec


@dataclass(frozen=True, eq=False)
class ActionMetric:
    """
    A linear measure of action errors.

    Attributes:
        spec: Meaning of the dimensions.
        scale: [action_dim] the errors are divided by it.
        weight: [action_dim] weight of the squared error of each dimension.
        accumulated: Weight of the squared accumulated error next to the single one. Rotation
            vectors are added up, which is exact for small errors only.
        heads: Heads that count; all when empty.
    """

    spec: ActionSpec
    scale: Tensor
    weight: Tensor
    accumulated: float = 0.0
    heads: tuple[str, ...] = ()

    def project(self, actions: Mapping[str, Tensor]) -> Tensor:
        """
        Return [batch, k] of actions [batch, horizon, action_dim] per head, differentiable.

        The cost of an error is the squared norm of its projection, a mean over steps.

        Raises:
            SchemeError: A head that should count is not among `actions`.
        """
        missing = [head for head in self.heads if head not in actions]
        if missing:
            raise SchemeError(f'the policy has no head {missing}; it has {sorted(actions)}')
        parts = []
        for head in self.heads or actions:
            steps = actions[head].shape[1]
            scaled = actions[head] / self.scale * self.weight.sqrt() / steps**0.5
            parts.append(scaled.flatten(1))
            if self.accumulated:
                columns = _moving_columns(self.spec)
                drift = scaled[..., columns].cumsum(1) * self.accumulated**0.5
                parts.append(drift.flatten(1))
        return torch.cat(parts, dim=1)

    def error(self, actions: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
        """Return the cost of each observation [batch]."""
        return (self.project(actions) - self.project(reference)).square().sum(1)


def default_metric(context: CalibrationContext, heads: tuple[str, ...] = ()) -> ActionMetric:
    """Return the metric in which every dimension counts alike, without accumulation."""
    return ActionMetric(
        context.spec, context.action_scale, torch.ones(context.spec.dim), heads=heads
    )


def _moving_columns(spec: ActionSpec) -> list[int]:
    if not spec.delta:
        return []
    found = spec.columns((*POSITION_NAMES, *ROTATION_NAMES))
    return [column for column in found if column is not None]
