"""
Files of tensors in the safetensors format, read and written one tensor at a time.

The safetensors library maps a file into memory, and every page it touches counts as resident until
the file is closed: a model would take twice its size while it is loaded. Here a tensor is read
straight into the memory it stays in, and written without a copy of the others.

    8 bytes   length of the header, little-endian
    header    JSON: name -> {"dtype", "shape", "data_offsets"}, and "__metadata__": text -> text
    data      the tensors; offsets count from here, and leave no byte unused or used twice

A file is damaged until proven sound: everything in the header is checked against the length of the
file before a tensor is read, so nothing in it decides how much memory is taken.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from vlaq_ros.errors import BundleError

DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = '__metadata__'
LARGEST_HEADER_BYTES = 64 << 20
FAULTS_SHOWN = 20


class TensorSpec(NamedTuple):
    """Type and shape of a tensor that is stored."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f'{str(self.dtype).removeprefix("torch.")} {list(self.shape)}'


class TensorFile:
    """
    An open file of tensors.

    Attributes:
        specs: Name -> type and shape.
        metadata: Name -> text.
    """

    def __init__(self, file: BinaryIO, what: str) -> None:
        """
        Read and check the header.

        Args:
            file: Readable and seekable; stays open and the caller's.
            what: How messages name it.

        Raises:
            BundleError: It is truncated or damaged; all faults of the header are listed.
        """
        self._file, self.what = file, what
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), 'little')
        if size < 8 or length > min(size - 8, LARGEST_HEADER_BYTES):
            raise BundleError(
                f'{what} is truncated or no file of tensors: {size} bytes, a header of {length}'
            )
        header = _parse(file.read(length), what)
        self._start = 8 + length
        self.metadata = header.pop(METADATA, {})
        faults = []
        if not isinstance(self.metadata, dict) or not _are_texts(self.metadata.values()):
            faults.append(f'{METADATA}: not a table of texts')
        self.specs: dict[str, TensorSpec] = {}
        self._offsets: dict[str, int] = {}
        faults += [fault for name, entry in header.items() if (fault := self._add(name, entry))]
        faults = faults or self._gaps(size - self._start)
        if faults:
            more = ['...'] if len(faults) > FAULTS_SHOWN else []
            lines = '\n  '.join(faults[:FAULTS_SHOWN] + more)
            raise BundleError(f'{what} is damaged in {len(faults)} place(s):\n  {lines}')

    def read(self, name: str) -> Tensor:
        """
        Return one tensor, in memory of its own.

        Raises:
            BundleError: The file ends before it does.
        """
        dtype, shape = self.specs[name]
        values = torch.empty(self.specs[name].nbytes, dtype=torch.uint8)
        self._file.seek(self._start + self._offsets[name])
        room, filled = memoryview(values.numpy()), 0
        while filled < len(room):
            count = self._file.readinto(room[filled:])
            if not count:
                raise BundleError(f'{self.what} ends within {name}: it changed while being read')
            filled += count
        return values.view(dtype).reshape(shape)

    def _add(self, name: str, entry: Any) -> str:
        """Take one entry of the header; return what is wrong with it."""
        if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
            return f'{name}: not a dtype, a shape and two offsets'
        dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
        if not isinstance(dtype, str) or dtype not in DTYPES:
            return f'{name}: dtype {dtype!r} is not one of {", ".join(DTYPES)}'
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            return f'{name}: shape {shape!r} or offsets {offsets!r} are not numbers from 0 up'
        spec = TensorSpec(DTYPES[dtype], tuple(shape))
        if spec.nbytes != offsets[1] - offsets[0]:
            return f'{name}: {offsets[1] - offsets[0]} bytes for {spec}'
        self.specs[name], self._offsets[name] = spec, offsets[0]
        return ''

    def _gaps(self, data_bytes: int) -> list[str]:
        """Return where tensors do not follow each other up to the end of the file."""
        end, faults = 0, []
        for name in sorted(
            self.specs, key=lambda name: (self._offsets[name], self.specs[name].nbytes)
        ):
            if self._offsets[name] != end:
                faults.append(f'{name}: begins at byte {self._offsets[name]}, expected {end}')
            end = self._offsets[name] + self.specs[name].nbytes
        if end != data_bytes:
            faults.append(f'the tensors take {end} bytes, the file has {data_bytes}')
        return faults


def write_tensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    parts: Iterable[Callable[[], Mapping[str, Tensor]]],
    metadata: Mapping[str, str],
) -> None:
    """
    Write a file next to `path` and move it into place: `path` is never half-written.

    Args:
        path: File to create or replace.
        specs: Every tensor that the parts deliver.
        parts: Called in turn; only what one of them returns is held at a time.
        metadata: Name -> text.

    Raises:
        ValueError: The parts are not what the specs say, or of a type that the file cannot hold.
    """
    if unknown := [f'{name}: {spec}' for name, spec in specs.items() if spec.dtype not in NAMES]:
        raise ValueError('types that a file cannot hold: ' + ', '.join(unknown))
    ordered = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # all aligned
    header: dict[str, Any] = {METADATA: dict(metadata)}
    offsets, end = {}, 0
    for name in ordered:
        offsets[name], end = end, end + specs[name].nbytes
        shape = list(specs[name].shape)
        position = [offsets[name], end]
        header[name] = {
            'dtype': NAMES[specs[name].dtype],
            'shape': shape,
            'data_offsets': position,
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    descriptor, partial = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.truncate(8 + len(text) + end)
            file.write(len(text).to_bytes(8, 'little') + text)
            missing = set(specs)
            for part in parts:
                for name, tensor in part().items():
                    _write(file, 8 + len(text) + offsets[name], tensor, specs[name], name)
                    missing.remove(name)
            if missing:
                raise ValueError(f'tensors were announced but not written: {sorted(missing)}')
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
        _sync_directory(path.parent)
    finally:
        Path(partial).unlink(missing_ok=True)


def _write(file: BinaryIO, offset: int, tensor: Tensor, spec: TensorSpec, name: str) -> None:
    if TensorSpec(tensor.dtype, tuple(tensor.shape)) != spec:
        raise ValueError(f'{name}: {tensor.dtype} {list(tensor.shape)} was announced as {spec}')
    file.seek(offset)
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    file.write(memoryview(values.numpy()))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(text: bytes, what: str) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BundleError(f'{what} has a damaged header: {error}') from error
    if not isinstance(header, dict):
        raise BundleError(f'{what} has a damaged header: it is not a table')
    return header


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError('a name occurs twice')
    return table


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)
