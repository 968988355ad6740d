"""
`vlaq doctor`: what this machine has, what is missing, and what that costs.

Every probe runs in a Python of its own, so that a package that hangs or crashes on import is one
line of the report. Nothing is installed or changed.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Probe:
    """
    One question about this machine.

    Attributes:
        name: What is looked for.
        code: Python that prints one line about it, or raises.
        remedy: What to do when it is missing.
        is_required: Whether the library cannot run without it.
    """

    name: str
    code: str
    remedy: str
    is_required: bool = False


@dataclass(frozen=True)
class Finding:
    """What a probe said: whether the thing is there, and one line about it."""

    probe: Probe
    is_there: bool
    detail: str

    def line(self) -> str:
        """Return the line of the report."""
        mark = 'ok' if self.is_there else 'MISSING' if self.probe.is_required else '-'
        remedy = '' if self.is_there else f'  -> {self.probe.remedy}'
        return f'{mark:8}{self.probe.name:14}{self.detail}{remedy}'


PIP = 'pip install vlaq_ros'
ROS = 'nodes cannot run: source a ROS 2 installation, or use `make demo` in a checkout'
SIM = "no simulator: pip install 'vlaq_ros[sim]'"
BAGS = "rosbags cannot be read without ROS: pip install 'vlaq_ros[bags]'"

PROBES = (
    Probe('numpy', 'import numpy; print(numpy.__version__)', PIP, is_required=True),
    Probe(
        'torch',
        'import torch; gpu = torch.cuda.is_available(); '
        "print(torch.__version__, torch.cuda.get_device_name() if gpu else 'CPU,', "
        "'' if gpu else f'{torch.get_num_threads()} threads,', "
        'torch.backends.cpu.get_cpu_capability())',
        PIP,
        is_required=True,
    ),
    Probe(
        'cpu kernels',
        'from vlaq_ros.kernels import native_library; print(native_library.describe())',
        'packed layers are multiplied on the CPU without them, slowly',
    ),
    Probe(
        'transformers',
        "from importlib.metadata import version; print(version('transformers'))",
        PIP,
        is_required=True,
    ),
    Probe('opencv', 'import cv2; print(cv2.__version__)', PIP, is_required=True),
    Probe(
        'rclpy',
        'import os, rclpy; from importlib.metadata import version; '
        "print(version('rclpy'), os.environ.get('ROS_DISTRO', ''), rclpy.__file__, "
        'rclpy.get_rmw_implementation_identifier())',
        ROS,
    ),
    Probe(
        'messages',
        'import vlaq_ros.msg; print(vlaq_ros.msg.__file__)',
        'nodes cannot run: build with colcon or `make setup`, then source install/setup.bash',
    ),
    Probe(
        'launch_ros',
        'import launch_ros, launch; print(launch.__file__)',
        '`ros2 launch` needs a ROS 2 installation; `vlaq demo` starts the same nodes without it',
    ),
    Probe(
        'cv_bridge',
        'from cv_bridge import CvBridge; CvBridge(); print(CvBridge.__module__)',
        'not needed: images are decoded by our own code, with the same pixels',
    ),
    Probe(
        'mujoco',
        'import mujoco; m = mujoco.MjModel.from_xml_string('
        '\'<mujoco><worldbody><geom size="1"/></worldbody></mujoco>\'); '
        'r = mujoco.Renderer(m, 8, 8); r.update_scene(mujoco.MjData(m)); r.render(); r.close(); '
        "import os; print(mujoco.__version__, 'draws with', os.environ.get('MUJOCO_GL', 'GLFW'))",
        f'{SIM}, apt install libosmesa6, MUJOCO_GL=osmesa (or egl)',
    ),
    Probe(
        'metaworld',
        "from importlib.metadata import version; print(version('metaworld'))",
        SIM,
    ),
    Probe('rosbags', "from importlib.metadata import version; print(version('rosbags'))", BAGS),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vlaq doctor`: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 when something the library cannot do without is missing."""
    print(f'{"":8}{"python":14}{platform.python_version()} {sys.executable}')
    print(f'{"":8}{"processor":14}{platform.machine()}, {os.cpu_count()} cores')
    print(f'{"":8}{"compiler":14}{_compiler()}')
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        findings = list(pool.map(examine, PROBES))
    for finding in findings:
        print(finding.line())
    return int(any(f.probe.is_required and not f.is_there for f in findings))


def examine(probe: Probe) -> Finding:
    """Run one probe in a Python of its own."""
    try:
        done = subprocess.run(
            [sys.executable, '-c', probe.code],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(probe, False, f'no answer within {PROBE_TIMEOUT_S:.0f} s')
    if done.returncode == 0:
        return Finding(probe, True, ' '.join(done.stdout.split()))
    if done.returncode < 0:
        return Finding(probe, False, f'crashed with signal {-done.returncode}')
    failure, _, _ = done.stderr.partition('\nException ignored')  # what broke in the clean-up
    return Finding(probe, False, (failure.strip() or 'failed').splitlines()[-1])


def _compiler() -> str:
    for name in filter(None, (os.environ.get('CXX'), 'c++', 'g++', 'clang++')):
        path = shutil.which(name)
        if path:
            answer = subprocess.run(
                [path, '--version'], capture_output=True, text=True, check=False
            )
            return answer.stdout.splitlines()[0] if answer.stdout else path
    return 'none: apt install g++ (builds the messages and the fast kernels)'
