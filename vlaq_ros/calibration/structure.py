"""
What the linear layers of a model read and write: where a change can be folded, and what it meets.

A change of basis of an activation costs nothing at run time when the parameters that write that
activation can take one half of it and all that read it the other. `Stream` records who they are.
Where no parameter can (an activation function lies between), there is no stream, and a transform
that would need one is refused.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Writer(NamedTuple):
    """
    A parameter whose entries, or rows, each produce one channel of an activation.

    Attributes:
        parameter: Its name in the model.
        start, stop: The rows that write this activation.
        offset: The activation is proportional to value + offset; 1.0 for the scale rows of an
            adaptive norm, which computes x * (1 + scale).
    """

    parameter: str
    start: int
    stop: int
    offset: float = 0.0


@dataclass(frozen=True)
class Stream:
    """
    An activation between parameters.

    Attributes:
        readers: Linear layers that take it as their input.
        writers: All parameters that write it.
        mixes: Neighbouring channels may be mixed linearly within aligned blocks of this many: all
            of them behind a linear layer, one head behind attention, only 1 (a scale for each)
            behind a norm or a product.
    """

    readers: tuple[str, ...]
    writers: tuple[Writer, ...]
    mixes: int = 1


@dataclass(frozen=True)
class Attention:
    """
    One attention layer.

    Attributes:
        query, key, value, output: Its projections.
        heads: Number of heads; channel i of `query` belongs to head i // (channels / heads).
    """

    query: str
    key: str
    value: str
    output: str
    heads: int


@dataclass(frozen=True)
class ModelStructure:
    """
    What calibration has to know of an architecture.

    Attributes:
        streams: Activations into whose writers a per-channel scale folds.
        attentions: In the order of the model.
        feed_forward: Linear layers of feed-forward blocks, both halves of the policy.
        interface: Layer through which the backbone speaks to the action head; '' when none.
    """

    streams: tuple[Stream, ...] = ()
    attentions: tuple[Attention, ...] = ()
    feed_forward: tuple[str, ...] = ()
    interface: str = ''

    def stream_of(self, layer: str) -> Stream | None:
        """Return the stream a layer reads, None when nothing can be folded into its input."""
        return next((stream for stream in self.streams if layer in stream.readers), None)
