"""
Nodes as separate processes without `launch`, none of which outlives the one that started it.

Every node gets its own process group and a log file. On Linux the kernel also ends it when its
parent dies without a chance to clean up. Start nodes from the main thread: the kernel counts the
death of the starting thread as that of the parent.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from vlaq_ros.errors import BringupError

STOP_S = 5.0
LOG_LINES = 15
_DOMAINS = range(1, 102)  # beyond 101 the ports meet the ephemeral ones of Linux
_PR_SET_PDEATHSIG = 1
_DISCOVERY = ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_LOCALHOST_ONLY', 'ROS_DISCOVERY_SERVER')


def config_file(name: str) -> Path:
    """
    Return a parameter file of this package: the one of the checkout, else the installed one.

    Raises:
        BringupError: There is none.
    """
    package = Path(__file__).resolve().parents[1]
    places = [package.parent / 'config' / name]
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    places += [Path(p) / 'share' / 'vlaq_ros' / 'config' / name for p in prefixes if p]
    places.append(Path(sys.prefix) / 'share' / 'vlaq_ros' / 'config' / name)
    for place in places:
        if place.is_file():
            return place
    raise BringupError(f'no parameter file {name!r} in any of: {", ".join(map(str, places))}')


def isolate(environment: MutableMapping[str, str]) -> str:
    """
    Keep this machine's nodes to themselves, unless the user has said otherwise; return how.

    Sets a domain nobody uses here and discovery on this machine only.
    """
    if not any(name in environment for name in _DISCOVERY):
        environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        if environment.get('ROS_DISTRO') == 'humble':
            environment['ROS_LOCALHOST_ONLY'] = '1'
    if 'ROS_DOMAIN_ID' not in environment:
        environment['ROS_DOMAIN_ID'] = str(free_domain())
    return f'ROS_DOMAIN_ID={environment["ROS_DOMAIN_ID"]}'


def free_domain() -> int:
    """Return a domain without participants on this machine, as its first ports show."""
    offset = os.getpid() % len(_DOMAINS)
    for domain in (*_DOMAINS[offset:], *_DOMAINS[:offset]):
        first_port = 7400 + 250 * domain + 10  # DDSI-RTPS 9.6.1: first participant, discovery
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
            try:
                trial.bind(('', first_port))
            except OSError:
                continue
            return domain
    raise BringupError('every ROS_DOMAIN_ID from 1 to 101 is in use on this machine')


class NodeProcess:
    """
    One running node; a context manager that ends it.

    Args:
        name: Shown in messages; names the log file.
        module: Python module whose `main` runs the node.
        folder: Where log and parameters are written.
        parameter_file: The node's parameter file.
        parameters: Values that override the file.
        remappings: Topic of the node -> topic of the graph.
        environment: Environment variables of the process.
    """

    def __init__(
        self,
        name: str,
        module: str,
        folder: Path,
        *,
        parameter_file: Path,
        parameters: Mapping[str, Any],
        remappings: Mapping[str, str],
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.log = folder / f'{name}.log'
        overrides = folder / f'{name}.yaml'
        overrides.write_text(yaml.safe_dump({'/**': {'ros__parameters': dict(parameters)}}))
        program = f'from {module} import main; raise SystemExit(main())'
        command: list[str] = [sys.executable, '-c', program, '--ros-args']
        for path in (parameter_file, overrides):
            command += ['--params-file', str(path)]
        for inner, outer in remappings.items():
            command += ['--remap', f'{inner}:={outer}']
        with self.log.open('wb') as log:
            self._process = start_bound(command, stdout=log, environment=environment)

    def __enter__(self) -> 'NodeProcess':
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """
        Return when the process is alive.

        Raises:
            BringupError: It has ended; the message holds the last lines of its log.
        """
        status = self._process.poll()
        if status is not None:
            how = f'signal {-status}' if status < 0 else f'exit status {status}'
            raise BringupError(f'node {self.name!r} ended with {how}. {self.last_words()}')

    def last_words(self) -> str:
        """Return the last lines of the log and where to find the rest."""
        lines = self.log.read_text(errors='replace').splitlines()[-LOG_LINES:]
        return f'End of {self.log}:\n' + ('\n'.join(f'  {line}' for line in lines) or '  (empty)')

    def resident_bytes(self) -> int:
        """Return the resident memory of the process, 0 when it has ended."""
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def stop(self) -> None:
        """End the process: ask, wait, then insist."""
        end_group(self._process)


def start_bound(
    command: Sequence[str], *, stdout: Any, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Start a process in its own group that ends with this one."""
    parent = os.getpid()
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=lambda: _die_with(parent),
    )


def end_group(process: subprocess.Popen) -> None:
    """End a process of `start_bound` with everything in its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what the node itself may have started


def wait_until(
    is_true: Callable[[], Any],
    timeout_s: float,
    what: str,
    *,
    step: Callable[[], None],
    processes: Sequence[NodeProcess] = (),
) -> Any:
    """
    Return the first true value of `is_true`; call `step` between the attempts.

    Raises:
        BringupError: A process ended, or the time is over; the message says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = is_true()
        if value:
            return value
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            words = '\n'.join(process.last_words() for process in processes)
            raise BringupError(f'waited {timeout_s:.0f} s for {what}, in vain. {words}')
        step()


def _die_with(parent: int) -> None:
    """Run in the child before it becomes the node: end when the parent ends, however that is."""
    if not sys.platform.startswith('linux'):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGKILL)
