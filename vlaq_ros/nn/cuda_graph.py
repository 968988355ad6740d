"""
A whole policy as one CUDA graph: recorded once, replayed without Python launching kernels.

A small policy spends more time launching kernels than computing, and quantized layers launch no
fewer of them; replaying a recording removes that time. What is recorded is addresses and sizes:

- Inputs of every call are copied to where they lay when the graph was recorded, so they must have
  the same sizes, types and names. Results are copied out, so that they survive the next call.
- Tensors that are written in place are seen at the next call: a precision shared by the layers
  changes every layer of the recorded policy with one write of eight bytes. Tensors that are
  *replaced* are not seen: record again after surgery, `load_state_dict(assign=True)` or `to`.
- The function must not look at values on the host (`item`, `tolist`, a loop that ends when a
  token says so) and must not allocate according to them. Recording such a function fails, and
  `graphed` returns it as it is, with the reason.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UPS = 3  # calls: the first ones compile kernels and choose workspaces

Function = Callable[..., Any]
Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]


class GraphChoice(NamedTuple):
    """What to call, and a sentence saying why it is or is not a graph."""

    call: Function
    is_graph: bool
    reason: str


class GraphedCall:
    """
    A function of tensors, recorded for the sizes and types of one example.

    Args:
        function: Takes tensors by name, returns tensors in tuples, lists or dicts. It runs under
            `torch.no_grad()`.
        example: Inputs by name; copied.
        record: Runs a function and returns its results and how to run it again in place; the one
            of CUDA when not given.

    Raises:
        RuntimeError: CUDA cannot record the function.
    """

    def __init__(
        self, function: Function, example: Mapping[str, Tensor], record: Record | None = None
    ) -> None:
        self._inputs = {name: tensor.detach().clone() for name, tensor in example.items()}
        with torch.no_grad():
            body = record or record_on_cuda
            self._outputs, self._replay = body(lambda: function(**self._inputs))

    def __call__(self, **inputs: Tensor) -> Any:
        """
        Return what the function returns for these inputs.

        Raises:
            ValueError: Inputs are missing, unknown, or of another size or type than recorded; all
                are listed.
        """
        offenders = [f'{name}: unknown' for name in inputs if name not in self._inputs]
        for name, static in self._inputs.items():
            if name not in inputs:
                offenders.append(f'{name}: missing')
            elif (fault := _difference(inputs[name], static)) is not None:
                offenders.append(f'{name}: {fault}')
        if offenders:
            raise ValueError(
                'the inputs are not those that the CUDA graph was recorded for:\n  '
                + '\n  '.join(offenders)
                + '\nRecord another graph for them.'
            )
        with torch.no_grad():
            for name, static in self._inputs.items():
                static.copy_(inputs[name], non_blocking=True)
            self._replay()
            return _copied(self._outputs)


def refusal(device: torch.device) -> str:
    """Return why nothing can be recorded on a device; '' when it can."""
    if device.type != 'cuda':
        return f'CUDA graphs need a CUDA device, not {device.type}'
    if not torch.cuda.is_available():
        return 'torch sees no CUDA device'
    return ''


def graphed(function: Function, example: Mapping[str, Tensor]) -> GraphChoice:
    """
    Return a recorded function, or the function itself and why it was not recorded.

    Args:
        function: See `GraphedCall`.
        example: Inputs by name, all on one device.

    Raises:
        ValueError: There are no inputs, or they lie on several devices.
    """
    devices = {tensor.device for tensor in example.values()}
    if len(devices) != 1:
        where = ', '.join(f'{name} on {tensor.device}' for name, tensor in example.items())
        raise ValueError(f'a graph has its inputs on one device, got {where or "none"}')
    if reason := refusal(devices.pop()):
        return GraphChoice(function, False, reason)
    try:
        call = GraphedCall(function, example)
    except RuntimeError as error:
        torch.cuda.synchronize()
        first_line = str(error).strip().split('\n')[0]
        return GraphChoice(function, False, f'CUDA could not record it: {first_line}')
    sizes = ', '.join(f'{name} {_described(tensor)}' for name, tensor in example.items())
    return GraphChoice(call, True, f'recorded for {sizes}')


def record_on_cuda(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """
    Return the results of a function and how to compute them again, in place.

    Raises:
        RuntimeError: CUDA cannot record it.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay


def _difference(tensor: Tensor, static: Tensor) -> str | None:
    """Return how a tensor differs from a recorded input; None when it can be copied there."""
    if tensor.shape == static.shape and tensor.dtype == static.dtype:
        return None
    return f'{_described(tensor)}, recorded for {_described(static)}'


def _described(tensor: Tensor) -> str:
    return f'{str(tensor.dtype).removeprefix("torch.")} {list(tensor.shape)}'


def _copied(outputs: Any) -> Any:
    """Return outputs with every tensor copied; tuples, lists and dicts keep their type."""
    if isinstance(outputs, Tensor):
        return outputs.clone()
    if isinstance(outputs, Mapping):
        return type(outputs)({name: _copied(value) for name, value in outputs.items()})
    if isinstance(outputs, tuple) and hasattr(outputs, '_fields'):
        return type(outputs)(*map(_copied, outputs))
    if isinstance(outputs, tuple | list):
        return type(outputs)(map(_copied, outputs))
    return outputs
