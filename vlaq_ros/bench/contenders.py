"""What takes part in a comparison of linear layers: a name, copies of a weight, and a call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlaq_ros.bench.floors import Work

Call = Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """
    One way to multiply by a weight.

    Attributes:
        name: As printed.
        family: `own`, `torch`, `onnxruntime` or `openvino`.
        work: What a call has to do at least.
        copies: The packed weight several times over, all equal.
        bind: (input float32 [tokens, in], copy) -> a call that returns the product as something
            `torch.as_tensor` reads, [tokens, out]. Converting the input belongs to `bind` where a
            model would hold it so already, to the call where it is work.
        remark: What a reader must know about it; usually empty.
    """

    name: str
    family: str
    work: Work
    copies: Sequence[Any]
    bind: Callable[[Tensor, Any], Call]
    remark: str = ''


@dataclass(frozen=True)
class Refusal:
    """A contender that does not run here, and why."""

    name: str
    family: str
    reason: str


Maker = Callable[[], Contender]


def gather(family: str, makers: dict[str, Maker]) -> list[Contender | Refusal]:
    """Build contenders; what a library refuses, in whatever way, becomes a `Refusal`."""
    found: list[Contender | Refusal] = []
    for name, make in makers.items():
        try:
            found.append(make())
        except Exception as error:  # noqa: BLE001  a library may raise anything
            found.append(Refusal(name, family, brief(error)))
    return found


def brief(error: Exception) -> str:
    """Return an error as one short line."""
    lines = str(error).strip().splitlines() or ['no message']
    return f'{type(error).__name__}: {lines[0][:160]}'
