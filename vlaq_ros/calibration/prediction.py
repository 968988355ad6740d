"""What single sensitivities predict of the action error, and what all layers give at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlaq_ros.calibration.action_error import ActionMetric
from vlaq_ros.calibration.allocation import MENU
from vlaq_ros.calibration.method import Batch, CalibrationContext, MethodResult
from vlaq_ros.calibration.sensitivity import LayerSensitivity


def predicted_error(result: MethodResult, sensitivity: Mapping[str, LayerSensitivity]) -> float:
    """
    Return the squared action error that single sensitivities add up to at these widths.

    They are those of rounding to nearest on the calibration samples. A layer that stays float
    costs nothing.
    """
    total = 0.0
    for name, weight in result.weights.items():
        columns = [MENU.index(width) for width in weight.widths().tolist()]
        total += float(sensitivity[name].cost[range(len(columns)), columns].sum())
    return total


def mean_cost(
    context: CalibrationContext, metric: ActionMetric, batches: Sequence[Batch]
) -> list[Tensor]:
    """Return what the metric sees of each batch [batch, k], with the model as it is now."""
    with torch.no_grad():
        return [metric.project(context.forward(batch)) for batch in batches]


def mean_square(differences: Sequence[Tensor]) -> float:
    """Return the mean over observations of the squared norm of [batch, k] differences."""
    return float(torch.cat([d.square().sum(1) for d in differences]).double().mean())
