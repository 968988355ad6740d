"""A model a second time, over the same weights, with precision levels of its own."""

import copy
from typing import TypeVar

from torch import nn

from vlaq_ros.nn.mixed_linear import MixedLinear

Parts = TypeVar('Parts', bound=tuple)


def second_view(parts: Parts) -> Parts:
    """
    Copy models and what belongs to them; every weight is shared, nothing else is.

    Parameters and packed codes are the same tensors, so that the copy costs no memory worth the
    name. What layers remember between calls, and the precision they compute at, is its own: both
    may run at the same time, each at its level. In-place changes of weights reach both; surgery,
    moving and loading do not.

    Args:
        parts: Models, and objects that refer to their parts, such as those that switch their
            precision. References between them lead to the copies afterwards.
    """
    shared, own = {}, set()
    for model in (part for part in parts if isinstance(part, nn.Module)):
        for tensor in (*model.parameters(), *model.buffers()):
            shared[id(tensor)] = tensor
        own |= {id(m.precision) for m in model.modules() if isinstance(m, MixedLinear)}
    return copy.deepcopy(parts, {key: t for key, t in shared.items() if key not in own})
