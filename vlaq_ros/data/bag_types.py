"""
Message types of bags, without ROS: definitions, and the decoding of serialized messages.

A definition comes from the bag itself when it holds one, else from the common interfaces that are
known here, else from the `.msg` files of this package or of an installed ROS package.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlaq_ros.errors import MessageError, MissingDependencyError

try:
    from rosbags.serde import SerdeError
    from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
    from rosbags.typesys.base import TypesysError
except ImportError as error:
    raise MissingDependencyError(
        f'bags are read and written with the Python packages rosbags and mcap ({error}): '
        "pip install 'vlaq_ros[bags]'"
    ) from error

_SOURCE_TREE = Path(__file__).resolve().parents[2]
_IDL_SEPARATOR = '=' * 80 + '\n'
_SPARE_BYTES = (4, 8)
"""Some writers append up to 8 bytes of padding after an empty sequence; up to 3 are accepted."""


class Definition(NamedTuple):
    """The text that defines a message type; encoding `ros2msg` or `ros2idl`."""

    encoding: str
    text: str


class MessageTypes:
    """
    The message types of one bag.

    Args:
        definitions: Type name, e.g. `vlaq_ros/msg/ActionChunk`, -> definition from the bag.
    """

    def __init__(self, definitions: Mapping[str, Definition] | None = None) -> None:
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._unusable: dict[str, str] = {}
        for name, definition in (definitions or {}).items():
            if name not in self._store.fielddefs:
                self._try_register(name, definition)

    @property
    def store(self) -> Any:
        """The `rosbags` type store, for writers."""
        return self._store

    def require(self, type_name: str) -> None:
        """
        Make sure that messages of a type can be decoded and written.

        Raises:
            MessageError: Its definition is nowhere to be found, or not understood.
        """
        if type_name in self._store.fielddefs:
            return
        if type_name not in self._unusable:
            definition = installed_definition(type_name)
            if definition is not None:
                self._try_register(type_name, definition)
        if type_name not in self._store.fielddefs:
            why = self._unusable.get(
                type_name, 'neither the bag nor an installed package defines it'
            )
            raise MessageError(
                f'messages of type {type_name} cannot be read: {why}. Source the workspace that '
                'holds the package of this type'
            )

    def decode(self, type_name: str, data: bytes) -> Any:
        """
        Return a serialized message (CDR) as an object with the fields of its type.

        Raises:
            MessageError: The type is not known, or the data are no message of it.
        """
        self.require(type_name)
        try:
            return self._store.deserialize_cdr(data, type_name)
        except Exception as error:  # generated code raises whatever damaged bytes lead to
            for spare in _SPARE_BYTES if 'size mismatch' in str(error) else ():
                try:
                    return self._store.deserialize_cdr(data[:-spare], type_name)
                except SerdeError:
                    continue
            raise MessageError(f'{len(data)} bytes are no {type_name}: {error}') from error

    def _try_register(self, name: str, definition: Definition) -> None:
        try:
            types = dict(_parse(name, definition))
            for needed in _named_types(types):
                if needed not in types and needed not in self._store.fielddefs:
                    self.require(needed)
            new = {k: v for k, v in types.items() if k not in self._store.fielddefs}
            self._store.register(new)
        except (MessageError, TypesysError, ValueError, KeyError, AssertionError) as error:
            self._unusable[name] = f'its definition is not understood ({error})'


def installed_definition(type_name: str) -> Definition | None:
    """Return the `.msg` text of a type from this package or an installed one, None without."""
    package, kind, name = [*type_name.split('/'), '', ''][:3]
    if kind != 'msg' or not name.isidentifier():
        return None
    places = [_SOURCE_TREE / 'msg'] if package == 'vlaq_ros' else []
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    places += [Path(prefix) / 'share' / package / 'msg' for prefix in prefixes if prefix]
    for place in places:
        path = place / f'{name}.msg'
        if path.is_file():
            return Definition('ros2msg', path.read_text(encoding='utf-8'))
    return None


def _parse(name: str, definition: Definition) -> Iterator[tuple[str, Any]]:
    if definition.encoding == 'ros2msg':
        yield from get_types_from_msg(definition.text, name).items()
        return
    text = definition.text
    parts = [text]
    if text.startswith(f'{_IDL_SEPARATOR}IDL: '):
        parts = [part.partition('\n')[2] for part in text.split(_IDL_SEPARATOR)[1:]]
    for part in parts:
        yield from get_types_from_idl(part).items()


def _named_types(types: Mapping[str, Any]) -> Iterable[str]:
    """Yield the other message types that the fields of these types refer to."""
    for _, fields in types.values():
        for _, (_, detail) in fields:
            while isinstance(detail, tuple) and isinstance(detail[0], tuple):
                detail = detail[0][1]  # arrays and sequences hold the type of their elements
            if isinstance(detail, str):
                yield detail
