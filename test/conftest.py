"""
Isolation of the tests that talk over DDS.

Every test that asks for `ros_domain` gets a ROS domain of its own and talks on this machine only.
Domains are handed out through file locks, so that xdist workers and other test runs on the same
machine never share one, and a killed run frees its domain by itself.
"""

import fcntl
import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

FIRST_DOMAIN, LAST_DOMAIN = 1, 101  # beyond 101 the ports meet the ephemeral ones of Linux


def _lock_domain() -> tuple[int, int]:
    folder = Path(tempfile.gettempdir()) / f'vlaq_ros_test_domains_{os.getuid()}'
    folder.mkdir(exist_ok=True)
    count = LAST_DOMAIN - FIRST_DOMAIN + 1
    for attempt in range(count):
        domain = FIRST_DOMAIN + (os.getpid() + attempt) % count
        descriptor = os.open(folder / str(domain), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        return domain, descriptor
    raise RuntimeError('every ROS domain is locked by other tests')


@pytest.fixture
def ros_domain(monkeypatch):
    """Number of a ROS domain that nobody else uses; also in the environment, for processes."""
    domain, descriptor = _lock_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    if os.environ.get('ROS_DISTRO') == 'humble':
        monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
    yield domain
    os.close(descriptor)


@pytest.fixture(scope='session')
def recorded_arm():
    """The module `recorded_arm.py`, which writes bags; tests are no package to import it from."""
    pytest.importorskip('rosbags', reason='needs rosbags')
    path = Path(__file__).with_name('recorded_arm.py')
    module_spec = importlib.util.spec_from_file_location('recorded_arm', path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module
