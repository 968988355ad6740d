"""
Changes of basis of an activation that leave the outputs as they are: x' = T x, W' = W T^-1.

Each transform can be applied to the activation at run time (`apply_online`) or folded: its inverse
into the columns of the layers that read the activation, itself into the rows of the parameters
that write it. This package runs integer kernels on plain layers, so only folded transforms are
ever deployed; one that a stream cannot hold is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vlaq_ros.calibration.structure import Stream
from vlaq_ros.errors import SchemeError


class Transform(Protocol):
    """An invertible linear map T of an activation with a fixed number of channels."""

    @property
    def span(self) -> int:
        """Size of the aligned blocks of channels that it mixes; 1 when it only scales."""

    def apply_online(self, x: Tensor) -> Tensor:
        """Return T x for x [..., channels]."""

    def fold_reader(self, weight: Tensor) -> Tensor:
        """Return W T^-1 for a weight [out, channels]."""


@dataclass(frozen=True, eq=False)
class DiagonalScale:
    """
    T = diag(1 / factor): the activation shrinks where the factor is large, the weight grows.

    Attributes:
        factor: Positive [channels].

    Raises:
        SchemeError: A factor is not positive and finite.
    """

    factor: Tensor

    def __post_init__(self) -> None:
        bad = ~((self.factor > 0) & self.factor.isfinite())
        if bad.any():
            raise SchemeError(
                f'smoothing factors must be positive and finite; {int(bad.sum())} of '
                f'{len(self.factor)} are not'
            )

    @property
    def span(self) -> int:
        """Channels are not mixed."""
        return 1

    def apply_online(self, x: Tensor) -> Tensor:
        """Return x / factor."""
        return x / self.factor.to(x.dtype)

    def fold_reader(self, weight: Tensor) -> Tensor:
        """Return the weight with its columns times the factor."""
        return weight * self.factor.to(weight.dtype)


@dataclass(frozen=True, eq=False)
class BlockRotation:
    """
    T = diag(R, R, ...): the same orthogonal matrix on every block of channels.

    Attributes:
        rotation: Orthogonal [block, block].

    Raises:
        SchemeError: The matrix is not orthogonal.
    """

    rotation: Tensor

    def __post_init__(self) -> None:
        R = self.rotation.double()
        if R.ndim != 2 or R.shape[0] != R.shape[1]:
            raise SchemeError(f'a rotation must be a square matrix, got {list(R.shape)}')
        error = (R @ R.T - torch.eye(len(R), dtype=torch.float64)).abs().max()
        if not error < 1e-5:
            raise SchemeError(f'the rotation is not orthogonal: R R^T differs from I by {error:g}')

    @property
    def span(self) -> int:
        """Size of a block."""
        return len(self.rotation)

    def apply_online(self, x: Tensor) -> Tensor:
        """Return every block of x rotated."""
        return (x.unflatten(-1, (-1, self.span)) @ self.rotation.T.to(x.dtype)).flatten(-2)

    def fold_reader(self, weight: Tensor) -> Tensor:
        """Return W T^T: rows of the weight turn as the activation does."""
        return self.apply_online(weight)


@dataclass(frozen=True, eq=False)
class Permutation:
    """
    T x = x[order].

    Attributes:
        order: [channels] each number once.
        block: Channels move only within aligned blocks of this many.

    Raises:
        SchemeError: It is not a permutation within such blocks.
    """

    order: Tensor
    block: int

    def __post_init__(self) -> None:
        places = torch.arange(len(self.order))
        complete = torch.equal(self.order.sort().values, places)
        if not complete or not torch.equal(self.order // self.block, places // self.block):
            raise SchemeError(
                f'the order is not a permutation within blocks of {self.block} channels'
            )

    @property
    def span(self) -> int:
        """Size of the blocks."""
        return self.block

    def apply_online(self, x: Tensor) -> Tensor:
        """Return x[order]."""
        return x[..., self.order]

    def fold_reader(self, weight: Tensor) -> Tensor:
        """Return the columns in the same order."""
        return weight[..., self.order]


def hadamard(size: int) -> Tensor:
    """
    Return the normalized Hadamard matrix, float64 [size, size] (Sylvester's construction).

    Raises:
        SchemeError: The size is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise SchemeError(f'a Hadamard matrix of size {size} needs a power of two')
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


class FoldedModel:
    """The parameters of a model with transforms folded in; the model itself stays as it is."""

    def __init__(self, model: nn.Module) -> None:
        self._originals = dict(model.named_parameters())
        self._values: dict[str, Tensor] = {}
        self._transforms: dict[str, list[Transform]] = {}

    def value(self, name: str) -> Tensor:
        """Return a parameter as it is now, float64."""
        return self._values.get(name, self._originals[name].detach().double())

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer as it is now, float32."""
        return self.value(f'{layer}.weight').float()

    def fold(self, stream: Stream, transform: Transform) -> None:
        """
        Fold a transform of a stream into its readers and writers.

        Raises:
            SchemeError: The stream cannot hold it; it would have to be applied at run time.
        """
        if transform.span > stream.mixes:
            raise SchemeError(
                f'the input of {", ".join(stream.readers)} cannot take a '
                f'{type(transform).__name__} over {transform.span} channels: what writes it can '
                f'mix {stream.mixes}; it would have to be applied at run time, and no kernel does'
            )
        for reader in stream.readers:
            name = f'{reader}.weight'
            self._values[name] = transform.fold_reader(self.value(name))
            self._transforms.setdefault(reader, []).append(transform)
        for writer in stream.writers:
            value = self.value(writer.parameter).clone()
            rows = value[writer.start : writer.stop] + writer.offset
            turned = transform.apply_online(rows.movedim(0, -1)).movedim(-1, 0)
            value[writer.start : writer.stop] = turned - writer.offset
            self._values[writer.parameter] = value

    def second_moment(self, layer: str, moment: Tensor) -> Tensor:
        """Return E[x' x'^T] of the transformed input of a layer, from E[x x^T]."""
        for transform in self._transforms.get(layer, ()):
            moment = transform.apply_online(transform.apply_online(moment).T).T
        return moment

    def parameters(self, quantized: Mapping[str, object]) -> dict[str, Tensor]:
        """Return the changed parameters, float32, but for the weights of quantized layers."""
        weights = {f'{layer}.weight' for layer in quantized}
        return {n: v.float() for n, v in self._values.items() if n not in weights}

    def targets(self, quantized: Mapping[str, object]) -> dict[str, Tensor]:
        """Return the changed weights of quantized layers, float32."""
        return {n: self.weight(n) for n in quantized if f'{n}.weight' in self._values}
