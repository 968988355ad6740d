"""Message types are found in the bag, among the common ones, or in installed packages."""

import pytest

from vlaq_ros.data.bag_types import Definition, MessageTypes, installed_definition
from vlaq_ros.errors import MessageError

STRING = b'\x00\x01\x00\x00\x02\x00\x00\x00a\x00'
IDL = """
module their_msgs {
  module msg {
    struct Words {
      string data;
    };
  };
};
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package whose messages refer to each other; return its folder of messages."""
    folder = tmp_path / 'prefix' / 'share' / 'their_msgs' / 'msg'
    folder.mkdir(parents=True)
    (folder / 'Inner.msg').write_text('string data\n')
    (folder / 'Outer.msg').write_text('Inner[] many\nstd_msgs/Header header\n')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'prefix'))
    return folder


def test_a_definition_of_the_bag_counts_be_it_msg_or_idl():
    for definition in (Definition('ros2msg', 'string data'), Definition('ros2idl', IDL)):
        types = MessageTypes({'their_msgs/msg/Words': definition})
        assert types.decode('their_msgs/msg/Words', STRING).data == 'a'


def test_types_inside_of_types_are_found_in_installed_packages(package):
    types = MessageTypes()
    types.require('their_msgs/msg/Outer')
    inner = types.store.types['their_msgs/msg/Inner'](data='a')
    header = types.store.types['std_msgs/msg/Header'](
        stamp=types.store.types['builtin_interfaces/msg/Time'](sec=1, nanosec=2), frame_id='base'
    )
    outer = types.store.types['their_msgs/msg/Outer'](many=[inner], header=header)
    data = bytes(types.store.serialize_cdr(outer, 'their_msgs/msg/Outer'))
    back = types.decode('their_msgs/msg/Outer', data)
    assert (back.many[0].data, back.header.frame_id) == ('a', 'base')


def test_a_type_inside_that_nobody_defines_is_named(package):
    (package / 'Inner.msg').unlink()
    with pytest.raises(MessageError, match='their_msgs/msg/Inner cannot be read: neither'):
        MessageTypes().require('their_msgs/msg/Outer')


def test_a_definition_that_is_not_understood_is_an_error_of_that_type_only():
    types = MessageTypes({'their_msgs/msg/Words': Definition('ros2msg', 'string[')})
    assert types.decode('std_msgs/msg/String', STRING).data == 'a'
    with pytest.raises(MessageError, match='their_msgs/msg/Words .* is not understood'):
        types.decode('their_msgs/msg/Words', STRING)


@pytest.mark.parametrize('name', ['std_srvs/srv/Trigger', 'Image', 'a/msg/../../../secret', ''])
def test_only_names_of_messages_lead_to_files(name):
    assert installed_definition(name) is None
