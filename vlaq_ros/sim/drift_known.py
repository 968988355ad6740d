"""How close a prediction comes to an error that was there at calibration, chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.sim.drift_detection import SIGNALS
from vlaq_ros.sim.drift_readings import Series

SPREAD = (0.05, 0.5, 0.95)
"""Quantiles of what is measured."""


@dataclass(frozen=True)
class KnownError:
    """
    What is predicted of an error, and what full precision measures of it in the same chunks.

    Attributes:
        signal: The one of `SIGNALS` that is furthest over its limit; it gives the unit of the
            numbers: m, rad, or a share for `gripper`.
        predicted: Smallest and largest reading; a prediction is a root mean square for `m` and
            `rad`, and a mean for `gripper`.
        measured: 5 %, 50 % and 95 % quantile.
        expected: What the prediction should come to: root mean square or mean of what is measured.
        chunks: How many.
    """

    signal: str
    predicted: tuple[float, float]
    measured: tuple[float, float, float]
    expected: float
    chunks: int


def compare_known(
    predicted: Sequence[Series], measured: Sequence[Series], limits: DriftLimits
) -> KnownError:
    """
    Compare the readings of single chunks; both have an error from the first chunk on.

    Args:
        predicted: Episodes as the error model reads them; of each, `Series.drift` [n, 3] counts.
        measured: The same episodes, in the same order, as full precision reads them.
        limits: Weigh the signals against each other.
    """
    values, truth = (np.concatenate([s.drift for s in both]) for both in (predicted, measured))
    warn = [getattr(limits, f'warn_{signal}') for signal in SIGNALS]
    over = np.nan_to_num(np.median(truth, axis=0) / warn)
    place = int(np.argmax(over))
    values, truth = values[:, place], truth[:, place]
    signal = SIGNALS[place]
    mean = np.mean(truth) if signal == 'gripper' else np.sqrt(np.mean(truth**2))
    return KnownError(
        signal,
        (float(values.min()), float(values.max())),
        tuple(np.quantile(truth, SPREAD).tolist()),
        float(mean),
        len(truth),
    )
