"""
Messages of one MCAP file in the order they were written, also of a file without an end.

A recording that was killed, is still being written or was cut off by a copy has no footer and may
end within a record. What lies before is read, and the rest is reported as lost. Only one chunk is
in memory at a time. Where the file has its index, chunks without a wanted topic are skipped.

Layout: https://mcap.dev/spec (records are opcode, length, body; chunks hold records). The records
inside are parsed with the `mcap` library.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vlaq_ros.data.bag_compression import decompress
from vlaq_ros.data.bag_types import Definition
from vlaq_ros.errors import BagError, MissingDependencyError

try:
    from mcap.data_stream import ReadDataStream
    from mcap.opcode import Opcode
    from mcap.reader import make_reader
    from mcap.records import Channel, Message, Metadata, Schema
except ImportError as error:
    raise MissingDependencyError(
        f"MCAP bags are read with the Python package mcap ({error}): pip install 'vlaq_ros[bags]'"
    ) from error

_MAGIC = b'\x89MCAP0\r\n'
_HEAD = struct.Struct('<BQ')  # opcode, length of the body
_CHUNK = struct.Struct('<QQQII')  # start, end [ns], size, CRC-32 of the content; length of a name
_PARSED = {
    Opcode.SCHEMA: lambda stream, length: Schema.read(stream),
    Opcode.CHANNEL: lambda stream, length: Channel.read(stream),
    Opcode.MESSAGE: Message.read,
    Opcode.METADATA: lambda stream, length: Metadata.read(stream),
}


class RawMessage(NamedTuple):
    """A serialized message, and when it was received [ns on the clock of the recorder]."""

    topic: str
    log_ns: int
    data: bytes


class McapFile:
    """
    One `.mcap` file.

    Attributes:
        types: Topic -> message type, as far as known: complete once `messages` has ended.
        definitions: Message type -> its definition in this file.
        counts: Messages by topic; None when the file has no index.
        metadata: Name -> key-value records of the file.
        losses: Sentences about what could not be read, filled by `messages`.
        is_closed: Whether the recorder finished the file.

    Raises:
        BagError: It is no MCAP file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.types: dict[str, str] = {}
        self.definitions: dict[str, Definition] = {}
        self.counts: dict[str, int] | None = None
        self.metadata: dict[str, dict[str, str]] = {}
        self.losses: list[str] = []
        self.is_closed = False
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._channels_of_chunk: dict[int, Collection[int]] = {}
        with path.open('rb') as file:
            magic = file.read(len(_MAGIC))
            if magic != _MAGIC[: len(magic)]:
                raise BagError(f'{path} is no MCAP file: it begins with {magic!r}')
            self._read_index(file)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[RawMessage]:
        """Yield the messages of these topics (None: of all) in the order of the file."""
        self.losses.clear()
        size = self.path.stat().st_size
        with self.path.open('rb') as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                self.losses.append(f'{self.path.name}: empty, nothing was written')
                return
            while (head := _read_head(file, size)) is not None:
                opcode, length, at = head
                if opcode == Opcode.DATA_END:
                    return
                if opcode == Opcode.CHUNK:
                    yield from self._chunk(file, min(length, size - at), length, topics)
                elif opcode in _PARSED and at + length <= size:
                    body = file.read(length)
                    yield from self._record(opcode, body, topics)
                elif opcode == 0 or at + length > size:
                    break
                file.seek(at + length)
                if at + length > size:
                    return  # a cut chunk has reported itself
            lost = size - (at - _HEAD.size if head else file.tell())
        ending = f'the last {lost} bytes are half a record' if lost else 'it has no footer'
        self.losses.append(f'{self.path.name}: the recording did not end cleanly, {ending}')

    def _read_index(self, file: BinaryIO) -> None:
        try:
            file.seek(0)
            reader = make_reader(file)
            summary = reader.get_summary()
            if summary is None or summary.statistics is None:
                return
            for schema in summary.schemas.values():
                self._add_schema(schema)
            for channel in summary.channels.values():
                self._add_channel(channel)
            by_channel = summary.statistics.channel_message_counts
            counts: Counter[str] = Counter(dict.fromkeys(self.types, 0))
            for number, count in by_channel.items():
                counts[self._channels[number].topic] += count
            for chunk in summary.chunk_indexes:
                if chunk.message_index_offsets:
                    channels = frozenset(chunk.message_index_offsets)
                    self._channels_of_chunk[chunk.chunk_start_offset] = channels
            for record in reader.iter_metadata():
                self.metadata[record.name] = record.metadata
            self.counts, self.is_closed = dict(counts), True
        except Exception:  # an unfinished file breaks the reader in many ways: it has no index
            self._channels_of_chunk.clear()

    def _add_schema(self, schema: Schema) -> None:
        self._schemas[schema.id] = schema
        text = schema.data.decode('utf-8', 'replace')
        self.definitions[schema.name] = Definition(schema.encoding, text)

    def _add_channel(self, channel: Channel) -> None:
        self._channels[channel.id] = channel
        schema = self._schemas.get(channel.schema_id)
        self.types[channel.topic] = schema.name if schema else channel.message_encoding

    def _chunk(
        self, file: BinaryIO, there: int, length: int, topics: Collection[str] | None
    ) -> Iterator[RawMessage]:
        """Yield what can be read of a chunk of which `there` of `length` bytes exist."""
        channels = self._channels_of_chunk.get(file.tell() - _HEAD.size)
        if channels is not None and topics is not None:
            known = {self._channels[n].topic for n in channels if n in self._channels}
            if not known.intersection(topics):
                return
        body = file.read(there)
        span = ''
        try:
            start, end, size, crc, name_length = _CHUNK.unpack_from(body)
            span = f' from {start / 1e9:.3f} to {end / 1e9:.3f} s'
            at = _CHUNK.size + name_length
            kind = body[_CHUNK.size : at].decode()
            content = decompress(kind, body[at + 8 :])
            if there == length and (len(content) != size or crc and zlib.crc32(content) != crc):
                raise ValueError('size or checksum differs')
        except Exception as error:  # damaged data raise whatever the decompressor raises
            if there == length:
                self.losses.append(
                    f'{self.path.name}: a chunk of {length} bytes{span} is damaged ({error})'
                )
                return
            content = b''
        yield from self._records(content, topics)
        if there < length:
            self.losses.append(
                f'{self.path.name}: the recording was cut off within its last chunk{span}: '
                f'{length - there} of {length} bytes are missing'
            )

    def _records(self, content: bytes, topics: Collection[str] | None) -> Iterator[RawMessage]:
        stream = BytesIO(content)
        while (head := _read_head(stream, len(content))) is not None:
            opcode, length, at = head
            if at + length > len(content):
                return
            if opcode in _PARSED:
                yield from self._record(opcode, stream.read(length), topics)
            stream.seek(at + length)

    def _record(
        self, opcode: int, body: bytes, topics: Collection[str] | None
    ) -> Iterator[RawMessage]:
        record: Any = _PARSED[opcode](ReadDataStream(BytesIO(body)), len(body))
        if opcode == Opcode.SCHEMA:
            self._add_schema(record)
        elif opcode == Opcode.CHANNEL:
            self._add_channel(record)
        elif opcode == Opcode.METADATA:
            self.metadata[record.name] = record.metadata
        elif record.channel_id in self._channels:
            topic = self._channels[record.channel_id].topic
            if topics is None or topic in topics:
                yield RawMessage(topic, record.log_time, record.data)


def _read_head(stream: BinaryIO, size: int) -> tuple[int, int, int] | None:
    """
    Return opcode, length and start of the body of the next record; None: not even a head.

    What a recorder appends beyond `size` while it is read here does not count.
    """
    if stream.tell() + _HEAD.size > size:
        return None
    return *_HEAD.unpack(stream.read(_HEAD.size)), stream.tell()
