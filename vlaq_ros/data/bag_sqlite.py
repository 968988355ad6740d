"""
Messages of one rosbag2 SQLite file in the order they were written, also of a damaged one.

Rows are read in the order of their key, which is the order of arrival and needs no sorting and no
index. A file that is still being written, or whose writer was killed, is read as far as it is
consistent; the rest is reported as lost.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from vlaq_ros.data.bag_mcap import RawMessage
from vlaq_ros.data.bag_types import Definition
from vlaq_ros.errors import BagError

_MAGIC = b'SQLite format 3\x00'
_BUSY_S = 5.0
# Read-only first: then the log of a writer that is at work counts. It needs a writable folder and
# no unfinished transaction of a killed writer; without them the file is taken as it lies there. A
# file that was cut off is opened only by a connection that is allowed to repair, though none does.
_MODES = (('mode=ro', False), ('immutable=1', False), ('immutable=1', True))


class SqliteFile:
    """
    One `.db3` file; the attributes are those of `McapFile`.

    Raises:
        BagError: It is no SQLite database, or holds no bag.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.types: dict[str, str] = {}
        self.definitions: dict[str, Definition] = {}
        self.counts: dict[str, int] | None = None
        self.metadata: dict[str, dict[str, str]] = {}
        self.losses: list[str] = []
        self.is_closed = True  # the format does not tell
        self._topics: dict[int, str] = {}
        with path.open('rb') as file:
            magic = file.read(len(_MAGIC))
        if magic and magic != _MAGIC:
            raise BagError(f'{path} is no SQLite database: it begins with {magic!r}')
        problem: sqlite3.Error | None = None
        for self._mode in _MODES:
            try:
                self._read_topics()
                return
            except sqlite3.Error as error:
                problem = error
        raise BagError(f'{path} holds no rosbag2 topics ({problem}): it is empty or damaged')

    def messages(self, topics: Collection[str] | None = None) -> Iterator[RawMessage]:
        """Yield the messages of these topics (None: of all) in the order of the file."""
        self.losses.clear()
        wanted = [n for n, topic in self._topics.items() if topics is None or topic in topics]
        query = (
            'SELECT topic_id, timestamp, data FROM messages '
            f'WHERE topic_id IN ({",".join("?" * len(wanted))}) ORDER BY id'
        )
        read, last_ns = 0, None
        try:
            with contextlib.closing(self._connect()) as connection:
                for number, log_ns, data in connection.execute(query, wanted):
                    yield RawMessage(self._topics[number], log_ns, data)
                    read, last_ns = read + 1, log_ns
        except sqlite3.Error as error:
            where = '' if last_ns is None else f', the last at {last_ns / 1e9:.3f} s'
            self.losses.append(
                f'{self.path.name}: damaged after {read} messages{where} ({error}); '
                'what follows is lost'
            )

    def _connect(self) -> sqlite3.Connection:
        access, is_cut_off = self._mode
        address = f'{self.path.resolve().as_uri()}?{access}'
        connection = sqlite3.connect(address, uri=True, timeout=_BUSY_S)
        if is_cut_off:
            connection.execute('PRAGMA writable_schema=ON')
        return connection

    def _read_topics(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            for number, name, kind in connection.execute('SELECT id, name, type FROM topics'):
                self._topics[number], self.types[name] = name, kind
            tables = {name for (name,) in connection.execute('SELECT name FROM sqlite_master')}
            if 'message_definitions' in tables:
                rows = connection.execute(
                    'SELECT topic_type, encoding, encoded_message_definition '
                    'FROM message_definitions'
                )
                self.definitions = {name: Definition(*rest) for name, *rest in rows}
            query = 'SELECT topic_id, COUNT(*) FROM messages GROUP BY topic_id'
            with contextlib.suppress(sqlite3.DatabaseError):  # damaged: counted while reading
                counts = dict(connection.execute(query).fetchall())
                self.counts = {name: counts.get(n, 0) for n, name in self._topics.items()}
