"""
What a calibration has finished so far, so that a killed one goes on where it was.

A work folder holds one file per finished part, named after the digest of everything that part
depends on. A part is only ever found again under the same digest, so a changed bag, option or
version simply does not find it; nothing has to be invalidated. Files appear whole or not at all;
one that was damaged later is made again.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlaq_ros.errors import BundleError
from vlaq_ros.nn.tensor_file import TensorFile, TensorSpec, write_tensors

FORMAT = '1'
SUFFIX = '.part'
_VALUES = 'values'

Part = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and plain JSON values."""


class WorkFolder:
    """
    Finished parts of calibrations.

    Args:
        path: The folder; created when the first part is finished.
        identity: What all parts depend on: the policy, the samples, the versions.

    Attributes:
        reused: Kind of every part that was found again, in order.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.reused: list[str] = []
        self._identity = digest_of(identity)

    def recall(self, kind: str, depends: Mapping[str, Any], make: Callable[[], Part]) -> Part:
        """
        Return a part: found again, or made and kept.

        Args:
            kind: What it is.
            depends: What it depends on besides the identity: plain values, tensors and arrays.
            make: Makes it.

        Raises:
            OSError: It cannot be written.
        """
        key = digest_of({'format': FORMAT, 'identity': self._identity, **depends})
        path = self.path / f'{kind}-{key[:32]}{SUFFIX}'
        found = _read(path)
        if found is not None:
            self.reused.append(kind)
            return found
        tensors, values = make()
        self.path.mkdir(parents=True, exist_ok=True)
        specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        metadata = {_VALUES: json.dumps(values), 'sha256': digest_of(tensors)}
        write_tensors(path, specs, [lambda: tensors], metadata)
        return tensors, json.loads(metadata[_VALUES])


_active: ContextVar[WorkFolder | None] = ContextVar('work_folder', default=None)


@contextlib.contextmanager
def remembering(folder: WorkFolder) -> Iterator[WorkFolder]:
    """Let `recall` find and keep parts in this folder inside the block."""
    token = _active.set(folder)
    try:
        yield folder
    finally:
        _active.reset(token)


def recall(
    kind: str, model: nn.Module, depends: Callable[[], Mapping[str, Any]], make: Callable[[], Part]
) -> Part:
    """
    Return a part of the calibration that is running, or simply make it when none remembers.

    A model that calibration has changed (rounded layers inside) is not recognized by its
    parameters alone: its parts are always made.

    Args:
        kind: What it is.
        model: What it was measured on; its parameters count.
        depends: Called when something remembers: what else it depends on.
        make: Makes it.
    """
    folder = _active.get()
    if folder is None or _is_changed(model):
        return make()
    state = {'model': digest_of(dict(model.state_dict()))}
    return folder.recall(kind, {**state, **depends()}, make)


def digest_of(value: Any) -> str:
    """
    Return the sha256 of plain values, tensors, arrays, and any nesting of them.

    Raises:
        TypeError: There is something else in it.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Return values as JSON holds them: arrays as lists, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, 'tolist'):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f'{value.dtype}{list(value.shape)}'.encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    elif isinstance(value, np.ndarray):
        digest.update(f'{value.dtype}{list(value.shape)}'.encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f'table{len(value)}'.encode())
        for key in sorted(value, key=str):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f'list{len(value)}'.encode())
        for one in value:
            _feed(digest, one)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(f'{type(value).__name__}:{value!r};'.encode())
    else:
        raise TypeError(f'no digest of {type(value).__name__}')


def _is_changed(model: nn.Module) -> bool:
    return any(type(m).__module__.startswith('vlaq_ros.calibration') for m in model.modules())


def _read(path: Path) -> Part | None:
    """Return a finished part; None when there is none, or it was damaged."""
    try:
        with path.open('rb') as file:
            stored = TensorFile(file, str(path))
            tensors = {name: stored.read(name) for name in stored.specs}
    except (OSError, BundleError):
        return None
    if stored.metadata.get('sha256') != digest_of(tensors):
        return None
    return tensors, json.loads(stored.metadata[_VALUES])
