"""
Cross-space representation compensation of DA-PTQ (arXiv 2604.11572).

Repairs the moments of the layer through which the backbone speaks to the action head, after
everything is quantized.

An affine map z~ = M z + d brings mean and covariance of the quantized outputs back to those of the
full-precision ones. It is folded into weight and bias of the layer, so it costs nothing at run
time. RECONSTRUCTION: the paper gives the objective, no minimizer. This is the closed form of
`OzzyChen97/TriFiQ`: gains g = sigma / sigma_q clipped to [0.5, 2], then the whitening-colouring
D = S^1/2 (G S_q G)^-1/2 reduced to I + U V^T of rank 8, M = (I + U V^T) G, d = mu - M mu_q. Of no
map, gains alone and both, the one with the least covariance error is taken, so that it can only
help.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlaq_ros.errors import SchemeError

GAIN_RANGE = (0.5, 2.0)
RANK = 8
_TINY = 1e-6


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [channels] and covariance [channels, channels] of an activation, float64."""

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(values: Tensor) -> 'Moments':
        """Return the moments of [tokens, channels]."""
        values = values.double()
        centred = values - values.mean(0)
        return Moments(values.mean(0), centred.T @ centred / len(values))


@dataclass(frozen=True, eq=False)
class AffineMap:
    """
    z~ = matrix z + shift.

    Attributes:
        matrix: float64 [channels, channels].
        shift: float64 [channels].
        kind: `none`, `gain` or `dense`: what was chosen.
    """

    matrix: Tensor
    shift: Tensor
    kind: str

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight and bias, float64, of the layer followed by this map."""
        matrix = self.matrix @ weight.double()
        shift = self.shift if bias is None else self.matrix @ bias.double() + self.shift
        return matrix, shift


def fit_correction(
    reference: Moments, quantized: Moments, dense: bool = True, rank: int = RANK
) -> AffineMap:
    """
    Return the map that brings the moments of `quantized` nearest to those of `reference`.

    Args:
        reference: Of the full-precision layer.
        quantized: Of the same layer in the quantized policy.
        dense: Whether channels may be mixed; gains alone fold into scales.
        rank: Of the mixing.

    Raises:
        SchemeError: The moments differ in size, or are not finite.
    """
    parts = (reference.mean, reference.covariance, quantized.mean, quantized.covariance)
    sizes = {len(part) for part in parts}
    if len(sizes) != 1 or not all(torch.isfinite(part).all() for part in parts):
        raise SchemeError('the moments of the interface must be finite and of one size')
    S, S_q = reference.covariance, quantized.covariance
    identity = torch.eye(len(S), dtype=torch.float64)
    sigma, sigma_q = S.diagonal().clamp(min=0.0).sqrt(), S_q.diagonal().clamp(min=0.0).sqrt()
    alive = sigma_q > _TINY * sigma_q.max()
    gain = torch.where(alive, sigma / (sigma_q + _TINY * sigma_q.max()), torch.ones_like(sigma))
    G = torch.diag(gain.clamp(*GAIN_RANGE))
    maps = {'none': identity, 'gain': G}
    if dense:
        inner = G @ S_q @ G
        D = _power(S, 0.5) @ _power(inner, -0.5)
        U, values, Vh = torch.linalg.svd(D - identity)
        mixing = identity + (U[:, :rank] * values[:rank]) @ Vh[:rank]
        maps['dense'] = mixing @ G
    kind = min(maps, key=lambda k: float((S - maps[k] @ S_q @ maps[k].T).norm()))
    return AffineMap(maps[kind], reference.mean - maps[kind] @ quantized.mean, kind)


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """Return a power of a positive semidefinite matrix; its smallest eigenvalues are lifted."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=_TINY * float(values.max().clamp(min=_TINY)))
    return (vectors * values**exponent) @ vectors.T
