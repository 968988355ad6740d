"""The files are safetensors files, whole or not there, and every fault of a header is found."""

import io
import json
import os

import pytest
import safetensors.torch
import torch

from vlaq_ros.errors import BundleError
from vlaq_ros.nn.tensor_file import DTYPES, TensorFile, TensorSpec, write_tensors

TENSORS = {
    f't{index}': torch.arange(5 * index, dtype=torch.int64).reshape(5, index).to(dtype)
    for index, dtype in enumerate(DTYPES.values())
} | {'scalar': torch.tensor(3.5)}


def _specs(tensors):
    return {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def _write(path, tensors=TENSORS, metadata=None):
    parts = [lambda name=name: {name: tensors[name]} for name in tensors]
    write_tensors(path, _specs(tensors), parts, metadata or {})


def _file(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(len(text).to_bytes(8, 'little') + text + data)


def test_safetensors_reads_what_is_written(tmp_path):
    _write(tmp_path / 'file', metadata={'key': 'text'})
    found = safetensors.torch.load_file(tmp_path / 'file')
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safetensors.safe_open(tmp_path / 'file', 'pt') as file:
        assert file.metadata() == {'key': 'text'}


def test_what_safetensors_writes_is_read(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / 'file', {'key': 'text'})
    with (tmp_path / 'file').open('rb') as opened:
        file = TensorFile(opened, 'it')
        assert file.metadata == {'key': 'text'}
        assert file.specs == _specs(TENSORS)
        for name, tensor in TENSORS.items():
            read = file.read(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    _write(path)
    before = path.read_bytes()

    def fail():
        raise KeyboardInterrupt

    parts = [lambda: {'t1': TENSORS['t1']}, fail]
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, _specs(TENSORS), parts, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['file']
    assert path.stat().st_mode & 0o777 == 0o644


def test_parts_that_are_not_what_was_announced_are_refused(tmp_path):
    specs = _specs({'a': torch.zeros(2), 'b': torch.zeros(3)})
    with pytest.raises(ValueError, match=r"announced but not written: \['b'\]"):
        write_tensors(tmp_path / 'file', specs, [lambda: {'a': torch.zeros(2)}], {})
    with pytest.raises(ValueError, match=r'a: torch.float32 \[3\] was announced as float32 \[2\]'):
        write_tensors(tmp_path / 'file', specs, [lambda: {'a': torch.zeros(3)}], {})
    specs = {'c': TensorSpec(torch.complex64, (1,))}
    with pytest.raises(ValueError, match=r'cannot hold: c: complex64 \[1\]'):
        write_tensors(tmp_path / 'file', specs, [], {})
    assert os.listdir(tmp_path) == []


def _entry(dtype='F32', shape=(2,), offsets=(0, 8)):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


FAULTS = {
    'empty': (io.BytesIO(b''), 'truncated or no file of tensors: 0 bytes'),
    'short': (io.BytesIO(b'\x05\0\0\0\0\0\0\0{'), 'truncated or no file of tensors'),
    'long header': (io.BytesIO(b'\xff' * 8 + b'{}'), 'truncated or no file of tensors'),
    'not json': (_file(b'{"a"'), 'has a damaged header'),
    'not text': (_file(b'\xff\xfe'), 'has a damaged header'),
    'deep': (_file(b'[' * 100_000), 'has a damaged header'),
    'digits': (_file(b'{"a":' + b'9' * 5000 + b'}'), 'has a damaged header'),
    'a list': (_file([]), 'it is not a table'),
    'twice': (_file(b'{"a":1,"a":2}'), 'a name occurs twice'),
    'metadata': (_file({'__metadata__': {'a': 1}}), 'not a table of texts'),
    'no entry': (_file({'a': 3}), 'a: not a dtype, a shape and two offsets'),
    'key': (_file({'a': {**_entry(), 'x': 1}}, bytes(8)), 'a: not a dtype, a shape and two'),
    'dtype': (_file({'a': _entry('F8')}, bytes(8)), "a: dtype 'F8' is not one of"),
    'dtype type': (_file({'a': _entry([1])}, bytes(8)), r'a: dtype \[1\] is not one of'),
    'shape': (_file({'a': _entry(shape=(-2,))}, bytes(8)), r'a: shape \[-2\]'),
    'float': (_file({'a': _entry(shape=(2.0,))}, bytes(8)), r'a: shape \[2.0\]'),
    'size': (_file({'a': _entry(shape=(3,))}, bytes(8)), r'a: 8 bytes for float32 \[3\]'),
    'huge': (_file({'a': _entry(shape=(2**40, 2**40))}, bytes(8)), 'a: 8 bytes for'),
    'hole': (_file({'a': _entry(offsets=(4, 12))}, bytes(12)), 'a: begins at byte 4, expected 0'),
    'overlap': (
        _file({'a': _entry(), 'b': _entry(offsets=(4, 12))}, bytes(12)),
        'b: begins at byte 4, expected 8',
    ),
    'truncated': (_file({'a': _entry()}, bytes(7)), 'the tensors take 8 bytes, the file has 7'),
    'longer': (_file({'a': _entry()}, bytes(9)), 'the tensors take 8 bytes, the file has 9'),
}


@pytest.mark.parametrize(('file', 'message'), FAULTS.values(), ids=FAULTS.keys())
def test_a_damaged_header_is_refused(file, message):
    with pytest.raises(BundleError, match=message):
        TensorFile(file, 'it')


def test_every_fault_is_listed():
    header = {'a': _entry('F8'), 'b': _entry(shape=(3,)), 'c': 1}
    with pytest.raises(BundleError) as error:
        TensorFile(_file(header, bytes(8)), 'it')
    assert str(error.value).startswith('it is damaged in 3 place(s):\n  a: dtype')
    assert str(error.value).count('\n') == 3


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    _write(tmp_path / 'file', {'a': torch.ones(100_000)})
    with (tmp_path / 'file').open('r+b') as opened:
        file = TensorFile(opened, 'it')
        os.truncate(tmp_path / 'file', 1000)
        with pytest.raises(BundleError, match='it ends within a: it changed while being read'):
            file.read('a')
