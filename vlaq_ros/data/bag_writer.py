"""
Writes serialized messages to a rosbag2 bag (MCAP), so that a kill leaves a readable beginning.

The files are those of the `rosbags` library. What was flushed survives the death of the process;
`close` writes index and metadata. When the disk is full the file is cut back to the last whole
chunk and the recording is over: what was written before stays readable.

While recording, what is known about the bag lies in `provenance.json` beside it; `close` moves it
into the custom data of the bag, where rosbag2 tools show it.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from vlaq_ros.data.bag_types import MessageTypes
from vlaq_ros.errors import BagError, MissingDependencyError

try:
    from rosbags.interfaces import (
        Connection,
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.rosbag2.errors import WriterError
except ImportError as error:
    raise MissingDependencyError(
        f"bags are written with the Python package rosbags ({error}): pip install 'vlaq_ros[bags]'"
    ) from error

PROVENANCE = 'provenance.json'
CUSTOM_KEY = 'vlaq_ros'
_NO_TIME = QosTime(0, 0)


class BagWriter:
    """
    One bag that is being written; a context manager that closes it.

    Args:
        path: Directory to create.
        compression: Of the chunks: `zstd` or `none`.

    Attributes:
        path: The directory.
        messages: Messages written.
        bytes: Size of their data [byte].

    Raises:
        BagError: The directory exists, or cannot be created.
    """

    def __init__(self, path: Path, compression: str = 'zstd') -> None:
        self.path = path
        self.messages = 0
        self.bytes = 0
        self._types = MessageTypes()
        self._connections: dict[str, Connection] = {}
        self._provenance: dict[str, object] = {}
        self._whole_bytes = 0
        try:
            self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
            if compression == 'zstd':
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
        except (WriterError, OSError) as error:
            raise BagError(f'cannot record to {path}: {error}') from error
        self._file = path / f'{path.name}.mcap'
        self._is_open = True
        self.flush()

    def __enter__(self) -> 'BagWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self, provenance: Mapping[str, object]) -> None:
        """Keep what is known about the bag, replacing what was kept before."""
        self._provenance = dict(provenance)
        partial = self.path / f'{PROVENANCE}.partial'
        with self._ending_on_full_disk():
            partial.write_text(json.dumps(self._provenance, indent=1) + '\n', encoding='utf-8')
            partial.replace(self.path / PROVENANCE)

    def add_topic(
        self, topic: str, type_name: str, *, reliable: bool = True, latched: bool = False
    ) -> None:
        """
        Declare a topic, with the QoS that its publishers offer.

        Raises:
            MessageError: The definition of the type is not known.
        """
        self._types.require(type_name)
        reliability = QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT
        durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
        qos = Qos(
            QosHistory.KEEP_LAST,
            10,
            reliability,
            durability,
            _NO_TIME,
            _NO_TIME,
            QosLiveliness.AUTOMATIC,
            _NO_TIME,
            False,
        )
        self._connections[topic] = self._writer.add_connection(
            topic, type_name, typestore=self._types.store, offered_qos_profiles=[qos]
        )

    def write(self, topic: str, log_ns: int, data: bytes) -> None:
        """
        Add a message that was received at `log_ns`.

        Raises:
            BagError: The disk is full; the bag holds what was written before, and is closed.
        """
        with self._ending_on_full_disk():
            chunks = len(self._writer.storage.chunks)
            self._writer.write(self._connections[topic], log_ns, data)
            if len(self._writer.storage.chunks) > chunks:
                self._remember_whole()
        self.messages += 1
        self.bytes += len(data)

    def flush(self) -> None:
        """
        Hand everything to the operating system, so that it survives the death of this process.

        Raises:
            BagError: The disk is full; the bag holds what was written before, and is closed.
        """
        with self._ending_on_full_disk():
            storage = self._writer.storage
            if storage.chunk.msgs:
                storage.close_chunk()
            self._remember_whole()

    def close(self) -> None:
        """
        Write index and metadata; does nothing when the bag is closed already.

        Raises:
            BagError: The disk is full; the bag holds what was written before.
        """
        if not self._is_open:
            return
        if self._provenance:
            self._writer.set_custom_data(CUSTOM_KEY, json.dumps(self._provenance))
        self.flush()
        with self._ending_on_full_disk():
            self._writer.close()
        self._is_open = False
        (self.path / PROVENANCE).unlink(missing_ok=True)

    def _remember_whole(self) -> None:
        self._writer.storage.bio.flush()
        self._whole_bytes = self._writer.storage.bio.tell()

    @contextlib.contextmanager
    def _ending_on_full_disk(self):
        """Turn an error of the disk into the end of the recording, at the last whole chunk."""
        try:
            yield
        except OSError as error:
            self._is_open = False
            with contextlib.suppress(OSError):
                self._writer.abort()
            with contextlib.suppress(OSError):
                os.truncate(self._file, self._whole_bytes)
            raise BagError(
                f'recording to {self.path} ended after {self.messages} messages: '
                f'{error.strerror or error}. What was written before can be read; '
                f'free space and start a new recording'
            ) from error


def read_provenance(folder: Path, custom_data: Mapping[str, str]) -> dict[str, object]:
    """Return what the recorder knew about a bag, closed or not; empty: another recorder."""
    text = custom_data.get(CUSTOM_KEY, '')
    path = folder / PROVENANCE
    if not text and path.is_file():
        text = path.read_text(encoding='utf-8')
    try:
        values = json.loads(text or '{}')
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
