"""
A bag of rosbag2, read without ROS: MCAP or SQLite, whole, unfinished or damaged.

Messages are streamed in the order of their arrival; never is a bag in memory as a whole. A bag
that was not closed is read as far as it goes, and `losses` says what is missing.
"""

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vlaq_ros.data.bag_compression import PACKED_SUFFIXES, decompress, unpack_file
from vlaq_ros.data.bag_mcap import McapFile, RawMessage
from vlaq_ros.data.bag_sqlite import SqliteFile
from vlaq_ros.data.bag_types import Definition, MessageTypes
from vlaq_ros.data.bag_writer import read_provenance
from vlaq_ros.errors import BagError

METADATA = 'metadata.yaml'
_INFORMATION = 'rosbag2_bagfile_information'
_STORAGES = {'.mcap': McapFile, '.db3': SqliteFile}


class Topic(NamedTuple):
    """One topic of a bag."""

    name: str
    type: str
    count: int

    def __str__(self) -> str:
        return f'{self.name} ({self.type}, {self.count})'


class Bag:
    """
    A bag directory, or one of its files.

    Args:
        path: Directory with `metadata.yaml`, directory of an unfinished recording, or a file.

    Attributes:
        path: Where it lies.
        losses: Sentences about what could not be read; complete once `messages` has ended.

    Raises:
        BagError: There is no bag, or it is one of another kind.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.losses: list[str] = []
        self._notes: list[str] = []
        self._information = self._read_information()
        mode = str(self._information.get('compression_mode') or '').lower()
        self._is_message_compressed = mode == 'message'
        self._files = self._find_files()
        self._types: dict[str, str] = {}
        self._definitions: dict[str, Definition] = {}
        self._message_types: MessageTypes | None = None
        self._custom_data: dict[str, str] = dict(self._information.get('custom_data') or {})
        self._promised: dict[str, int] = {}
        for entry in self._information.get('topics_with_message_count') or ():
            topic = entry['topic_metadata']
            self._types[topic['name']] = topic['type']
            self._promised[topic['name']] = entry['message_count']
        self._counts = self._promised or self._counts_of_index()

    @property
    def name(self) -> str:
        """The last part of the path, for messages."""
        return self.path.resolve().name

    def topics(self) -> dict[str, Topic]:
        """Return what the bag holds, by topic; a bag without an index is read once for it."""
        if self._counts is None:
            counts = Counter(message.topic for message in self.messages())
            self._counts = {name: counts[name] for name in self._types}
        return {
            name: Topic(name, kind, self._counts.get(name, 0))
            for name, kind in sorted(self._types.items())
        }

    def provenance(self) -> dict[str, Any]:
        """Return what our recorder knew about the bag; empty: it was recorded otherwise."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return read_provenance(folder, self._custom_data)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[RawMessage]:
        """Yield the messages of these topics (None: of all) in the order of their arrival."""
        self.losses = list(self._notes)
        found: Counter[str] = Counter()
        for path in self._files:
            with tempfile.TemporaryDirectory(prefix='vlaq_bag_') as folder:
                file = self._open(path, Path(folder))
                for message in file.messages(topics):
                    if message.topic not in self._types:
                        self._learn(file)
                    found[message.topic] += 1
                    if self._is_message_compressed:
                        message = message._replace(data=decompress('zstd', message.data))
                    yield message
                self._learn(file)
                self.losses += file.losses
        for topic, count in self._promised.items():
            if found[topic] < count and (topics is None or topic in topics):
                self.losses.append(
                    f'{topic}: {count - found[topic]} of {count} messages are missing'
                )

    def decode(self, message: RawMessage) -> Any:
        """
        Return a message as an object with the fields of its type.

        Raises:
            MessageError: The type is not known, or the data are no message of it.
        """
        if self._message_types is None:
            self._message_types = MessageTypes(self._definitions)
        return self._message_types.decode(self._types[message.topic], message.data)

    def _counts_of_index(self) -> dict[str, int] | None:
        """Return the messages by topic as the files know them, None when one does not know."""
        counts: Counter[str] = Counter()
        for path in self._files:
            if path.suffix in PACKED_SUFFIXES:
                return None
            file = _STORAGES[path.suffix](path)
            self._learn(file)
            if file.counts is None:
                return None
            counts.update(file.counts)
        return dict(counts)

    def _learn(self, file: McapFile | SqliteFile) -> None:
        self._types |= file.types
        if file.definitions.keys() - self._definitions.keys():
            self._definitions |= file.definitions
            self._message_types = None
        if not self._custom_data and 'rosbag2' in file.metadata:
            text = file.metadata['rosbag2'].get('serialized_metadata', '')
            values = yaml.safe_load(text)
            if isinstance(values, dict):
                self._custom_data = dict(values.get('custom_data') or {})

    def _open(self, path: Path, folder: Path) -> McapFile | SqliteFile:
        if path.suffix in PACKED_SUFFIXES:
            plain = folder / path.stem
            problem = unpack_file(path, plain)
            self.losses += [problem] if problem else []
            path = plain
        return _STORAGES[path.suffix](path)

    def _read_information(self) -> dict[str, Any]:
        """Return what metadata.yaml says, nothing when there is none or half of one."""
        if not self.path.exists():
            raise BagError(f'no bag at {self.path}: there is no such file or directory')
        if self.path.suffix == '.bag':
            raise BagError(
                f'{self.path} is a bag of ROS 1: convert it with '
                f'`rosbags-convert --src {self.path} --dst {self.path.stem}`'
            )
        if self.path.is_file():
            return {}
        try:
            values = yaml.safe_load((self.path / METADATA).read_text(encoding='utf-8'))
            information = values[_INFORMATION]
            return information if information['topics_with_message_count'] is not None else {}
        except FileNotFoundError:
            self._notes.append(f'{self.path.name}: no {METADATA}, the recording was not closed')
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError, OSError) as error:
            reason = str(error).splitlines()[0]
            self._notes.append(f'{self.path.name}: {METADATA} is damaged ({reason})')
        return {}

    def _find_files(self) -> list[Path]:
        if self.path.is_file():
            if not _is_storage(self.path):
                raise BagError(
                    f'{self.path} is no bag: expected {", ".join(_STORAGES)} or a directory'
                )
            return [self.path]
        listed = [
            self.path / Path(p).name for p in self._information.get('relative_file_paths', ())
        ]
        missing = [path.name for path in listed if not path.is_file()]
        if missing:
            self._notes.append(
                f'{self.path.name}: {METADATA} lists {", ".join(missing)}, which '
                f'{"is" if len(missing) == 1 else "are"} not there'
            )
        found = [path for path in listed if path.is_file()]
        found = found or sorted(filter(_is_storage, self.path.iterdir()), key=_file_number)
        if not found:
            inner = sorted({p.parent.name for p in self.path.glob('*/*') if _is_storage(p)})
            hint = f'; it holds the bags {", ".join(inner)}: give one of them' if inner else ''
            raise BagError(f'{self.path} holds neither .mcap nor .db3 files{hint}')
        return found


def _is_storage(path: Path) -> bool:
    suffixes = path.suffixes[-2:] if path.suffix in PACKED_SUFFIXES else path.suffixes[-1:]
    return path.is_file() and bool(suffixes) and suffixes[0] in _STORAGES


def _file_number(path: Path) -> tuple[int, str]:
    """Order the parts of a split recording: name_9 comes before name_10."""
    number = path.name.partition('.')[0].rpartition('_')[2]
    return (int(number) if number.isdigit() else -1, path.name)
