"""
How jerky a stream of velocity commands is.

Quantization can make an arm jerky long before it fails, so this stands next to success and drift.
Two measures: the mean squared jerk, compared with that of the reference, and the spectral arc
length, which does not depend on amplitude or duration.
"""

import numpy as np
from numpy.typing import NDArray


def mean_squared_jerk(velocities: NDArray, period_s: float) -> float:
    """
    Return the mean squared second difference of velocities [n, dim], in units of jerk squared.

    Raises:
        ValueError: There are fewer than three velocities, they are not finite, or the period is
            not positive.
    """
    velocities = _checked(velocities, period_s, shortest=3)
    jerk = np.diff(velocities, n=2, axis=0) / period_s**2
    return float((jerk**2).sum(axis=1).mean())


def jerk_ratio(quantized: NDArray, reference: NDArray) -> float:
    """
    Return the mean squared jerk of one stream [n, dim] over that of the reference [m, dim].

    Both have the same period, which cancels. The ratio is infinite for a reference without jerk,
    and NaN when neither has any.
    """
    numerator, denominator = mean_squared_jerk(quantized, 1.0), mean_squared_jerk(reference, 1.0)
    if denominator > 0.0:
        return numerator / denominator
    return float('inf') if numerator > 0.0 else float('nan')


def spectral_arc_length(
    velocities: NDArray,
    period_s: float,
    max_frequency_hz: float = 10.0,
    amplitude_threshold: float = 0.05,
) -> float:
    """
    Return the smoothness SPARC of velocities [n, dim]: negative, and closer to zero when smoother.

    It is the arc length of the normalized spectrum of the speed, up to the highest frequency whose
    amplitude reaches the threshold: Balasubramanian, Melendez-Calderon, Roby-Brami and Burdet,
    'On the analysis of movement smoothness', J. NeuroEng. Rehabil. 12:112 (2015).

    Returns:
        NaN when nothing moves.

    Raises:
        ValueError: There are fewer than two velocities, they are not finite, or the period is not
            positive.
    """
    velocities = _checked(velocities, period_s, shortest=2)
    speed = np.linalg.norm(velocities, axis=1)
    if not speed.any():
        return float('nan')
    padded = 16 * 2 ** int(np.ceil(np.log2(len(speed))))  # interpolates the spectrum
    frequency_hz = np.fft.rfftfreq(padded, period_s)
    amplitude = np.abs(np.fft.rfft(speed, padded))
    amplitude = amplitude / amplitude[0]  # a speed is not negative, so its mean is the maximum
    is_in_band = frequency_hz <= max_frequency_hz
    above = np.flatnonzero(is_in_band & (amplitude >= amplitude_threshold))
    band = slice(0, above[-1] + 1)
    width_hz = frequency_hz[above[-1]]
    steps = np.diff(frequency_hz[band]) / width_hz, np.diff(amplitude[band])
    return -float(np.hypot(*steps).sum())


def _checked(velocities: NDArray, period_s: float, shortest: int) -> NDArray:
    velocities = np.asarray(velocities, dtype=np.float64)
    if velocities.ndim != 2 or len(velocities) < shortest or not np.isfinite(velocities).all():
        raise ValueError(
            f'velocities must be [at least {shortest}, dim] and finite, '
            f'got {list(velocities.shape)}'
        )
    if not period_s > 0.0:
        raise ValueError(f'period_s must be positive, got {period_s}')
    return velocities
