"""Every field of every message says what it means; the built messages are those of msg/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = sorted((ROOT / 'msg').glob('*.msg'))
SERVICES = sorted((ROOT / 'srv').glob('*.srv'))
FIELD = re.compile(r'^(?P<type>[\w/]+(\[.*?\])?)\s+(?P<name>[a-z]\w*)\s*(#\s*(?P<comment>\S.*))?$')
CONSTANT = re.compile(r'^[\w/]+\s+[A-Z][A-Z0-9_]*\s*=')


def fields(path):
    """Yield (type, name, comment) of each field; a comment above a field counts for it."""
    above = ''
    for line in path.read_text().splitlines():
        line = line.strip()
        if line.startswith('#'):
            above = line.lstrip('# ')
            continue
        match = FIELD.match(line)
        if match and not CONSTANT.match(line):
            yield match['type'], match['name'], match['comment'] or above
        above = ''


def name_of(path):
    return path.stem


@pytest.mark.parametrize('path', [*MESSAGES, *SERVICES], ids=name_of)
def test_message_says_what_it_is_for(path):
    assert path.read_text().startswith('# ')


@pytest.mark.parametrize('path', [*MESSAGES, *SERVICES], ids=name_of)
def test_every_line_is_understood(path):
    """The tests below would pass on a message that none of its fields is recognised in."""
    for line in path.read_text().splitlines():
        line = line.strip()
        is_known = (
            line in ('', '---')
            or line.startswith('#')
            or FIELD.match(line)
            or CONSTANT.match(line)
        )
        assert is_known, f'{path.name}: {line}'
    assert list(fields(path))


@pytest.mark.parametrize('path', [*MESSAGES, *SERVICES], ids=name_of)
def test_every_field_has_a_comment(path):
    assert not [name for _, name, comment in fields(path) if not comment]


@pytest.mark.parametrize('path', [*MESSAGES, *SERVICES], ids=name_of)
def test_every_float_has_a_unit_in_brackets(path):
    floats = [(n, c) for t, n, c in fields(path) if t.startswith('float')]
    assert not [name for name, comment in floats if not re.search(r'\[[^\]]+\]|`units`', comment)]


@pytest.mark.parametrize('path', MESSAGES, ids=name_of)
def test_every_stamped_message_says_what_the_stamp_is(path):
    headers = [comment for kind, _, comment in fields(path) if kind == 'std_msgs/Header']
    assert all('stamp:' in comment for comment in headers)
    assert len(headers) == 1


@pytest.mark.ros
@pytest.mark.parametrize('path', MESSAGES, ids=name_of)
def test_built_message_has_the_fields_of_its_definition(path):
    messages = pytest.importorskip('vlaq_ros.msg', reason='the messages are not built: make setup')
    built = getattr(messages, path.stem)
    assert list(built.get_fields_and_field_types()) == [name for _, name, _ in fields(path)]


@pytest.mark.ros
@pytest.mark.parametrize('path', SERVICES, ids=name_of)
def test_built_service_has_the_fields_of_its_definition(path):
    services = pytest.importorskip('vlaq_ros.srv', reason='services are not built: make setup')
    built = getattr(services, path.stem)
    halves = (built.Request, built.Response)
    found = [name for half in halves for name in half.get_fields_and_field_types()]
    assert found == [name for _, name, _ in fields(path)]
