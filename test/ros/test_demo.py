"""The demo: nodes as processes that never outlive it, the run from end to end, the report."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from vlaq_ros.errors import BringupError, ConfigError, MissingDependencyError

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')
pytest.importorskip('vlaq_ros.msg', reason='needs the built messages of vlaq_ros')
pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.ros import demo
from vlaq_ros.ros.bringup import NodeProcess, isolate, wait_until
from vlaq_ros.ros.demo import policy_overrides
from vlaq_ros.ros.demo_driver import RosEpisode
from vlaq_ros.ros.demo_report import Comparison, DemoReport
from vlaq_ros.sim.results import Record
from vlaq_ros.sim.rollout import Episode

pytestmark = pytest.mark.ros
ALL_TASKS = [sys.executable, '-m', 'vlaq_ros.ros.demo', '--bundle', 'toy']
DEMO = [*ALL_TASKS, '--tasks', 'reach']
SLEEPER = """
import time

def main():
    print('I am up', flush=True)
    time.sleep(600)
"""
QUITTER = """
def main():
    print('the camera is not plugged in', flush=True)
    return 3
"""
PARENT = """
import sys, time
from pathlib import Path
from vlaq_ros.ros.bringup import NodeProcess
import os
folder = Path(sys.argv[1])
node = NodeProcess('sleeper', 'sleeper', folder, parameter_file=folder / 'none.yaml',
                   parameters={}, remappings={}, environment=os.environ)
print(node._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts a module with the given source as a node."""
    (tmp_path / 'sleeper.py').write_text(SLEEPER)
    (tmp_path / 'quitter.py').write_text(QUITTER)
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    monkeypatch.setenv('PYTHONPATH', path)

    def start_node(module):
        return NodeProcess(
            module,
            module,
            tmp_path,
            parameter_file=tmp_path / 'none.yaml',
            parameters={'lockstep': True},
            remappings={},
            environment=os.environ,
        )

    return start_node


def wait(condition, what, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_node_that_ends_is_reported_with_its_last_words(start):
    with start('quitter') as node:
        wait(lambda: node._process.poll() is not None, 'the end')
        with pytest.raises(
            BringupError, match=r"'quitter' ended with exit status 3(.|\n)*plugged"
        ):
            wait_until(lambda: False, 5.0, 'a wonder', step=lambda: None, processes=[node])


def test_a_wait_in_vain_says_what_it_waited_for(start):
    with (
        start('sleeper') as node,
        pytest.raises(BringupError, match=r'waited 1 s for a wonder(.|\n)*End of'),
    ):
        wait_until(lambda: False, 1.0, 'a wonder', step=lambda: time.sleep(0.05), processes=[node])


def test_a_stopped_node_is_gone(start):
    node = start('sleeper')
    wait(lambda: 'I am up' in node.log.read_text(), 'the node')
    assert node.resident_bytes() > 0
    node.stop()
    assert is_gone(node._process.pid)
    assert node.resident_bytes() == 0


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs a Linux kernel')
def test_a_node_dies_with_a_parent_that_is_killed(start, tmp_path):
    command = [sys.executable, '-c', PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait(lambda: is_gone(pid), 'the node outlives its parent')


def test_isolation_leaves_the_choice_of_the_user_alone():
    environment = {'ROS_DOMAIN_ID': '7', 'ROS_LOCALHOST_ONLY': '0'}
    assert isolate(environment) == 'ROS_DOMAIN_ID=7'
    assert environment == {'ROS_DOMAIN_ID': '7', 'ROS_LOCALHOST_ONLY': '0'}
    isolate(environment := {})
    assert 1 <= int(environment['ROS_DOMAIN_ID']) <= 101
    assert environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"\['juggle'\]. Known: reach"):
        demo._tasks('reach, juggle')


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_parameters_of_the_policy_node_are_given_as_in_yaml():
    found = policy_overrides(
        ['drift.source=shadow', 'drift.warn_m=0.001', 'dynamic_precision.levels=[w4a8, w8a16]']
    )
    assert found == {
        'drift.source': 'shadow',
        'drift.warn_m': 0.001,
        'dynamic_precision.levels': ['w4a8', 'w8a16'],
    }


def test_every_parameter_that_cannot_be_set_is_named():
    with pytest.raises(ConfigError) as refused:
        policy_overrides(['drift', 'drift.sauce=shadow', 'precision=w4', 'drift.warn_m=[1'])
    lines = str(refused.value).splitlines()
    assert lines[0] == "--set 'drift': write NAME=VALUE, e.g. drift.source=shadow"
    assert "Did you mean 'drift.source'" in lines[1]
    assert lines[2] == "--set 'precision=w4': the demo decides precision; see its other options"
    assert 'is no YAML value' in lines[3]


def test_the_demo_runs_from_end_to_end_and_leaves_pictures_and_numbers(ros_domain, tmp_path):
    done = subprocess.run(
        [*DEMO, '--out', str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'over topics and w8 without ROS: the hand is at most 0 mm apart' in done.stdout
    numbers = json.loads((tmp_path / 'demo.json').read_text())
    (episode,) = numbers['episodes']
    assert episode['task'] == 'reach'
    assert episode['steps'] == len(episode['positions_m']) - 1
    assert numbers['resident_bytes']['policy'] > 1e6
    for name in ('episodes.png', 'drift.png', 'episodes.gif'):
        assert (tmp_path / name).stat().st_size > 1000, name


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    'number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=['ctrl-c', 'sigterm', 'sigkill']
)
def test_an_interrupted_demo_leaves_no_process_behind(ros_domain, tmp_path, number):
    with subprocess.Popen(
        [*ALL_TASKS, '--out', str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        family = psutil.Process(process.pid)
        wait(lambda: len(family.children(recursive=True)) >= 3, 'its children')
        children = family.children(recursive=True)
        process.send_signal(number)
        assert process.wait(60.0) != 0
    wait(lambda: all(is_gone(child.pid) for child in children), 'a child outlives the demo', 20.0)


def episode_seen(success=True):
    steps = 20
    positions = np.linspace([0.0, 0.6, 0.2], [0.1, 0.7, 0.1], steps + 1)
    return RosEpisode(
        Episode('reach', 100, 0, 'reach the goal'),
        success=success,
        aborted=False,
        steps=steps,
        wall_s=1.0,
        stamps_ns=np.arange(steps + 1),
        positions=positions,
        pictures=(np.zeros((20, 20, 3), np.uint8),) * 4,
        inference_s=(0.01,),
    )


def compared(offset_m=0.0, shorter=0):
    ros = episode_seen()
    positions = ros.positions[: len(ros.positions) - shorter] + [offset_m, 0.0, 0.0]
    record = Record('reach', 100, 0, 'reach the goal', True, len(positions) - 1, positions)
    return Comparison(ros, record, record)


def test_drift_is_measured_until_the_shorter_episode_ends():
    one = compared(offset_m=0.002, shorter=5)
    assert one.drift.mean_m == pytest.approx(0.002)
    assert len(one.distance_mm) == 16
    assert one.deviation_from_no_ros_m == float('inf')
    assert compared(offset_m=0.002).deviation_from_no_ros_m == pytest.approx(0.002)


def test_the_report_names_what_the_memory_is(tmp_path):
    memory = SimpleNamespace(weight_bytes=2**21, quantized_bytes=2**20, quantized_layers=3)
    report = DemoReport(
        bundle='toy',
        precision='w8',
        head='flow',
        realtime=False,
        comparisons=(compared(), compared(shorter=5)),
        latency_ms={'total': (5.0, 6.0), 'action': (4.0, 5.0)},
        resident_bytes={'policy': 2**28},
        memory={'w8': memory},
        kernel='reference',
    )
    text = report.tables()
    sizes = dict(line.rsplit(maxsplit=2)[:2] for line in text.splitlines() if 'MiB' in line)
    assert sizes == {
        'w8: weights': '2.00',
        'w8: packed layers in it': '1.00',
        'node policy: resident, with its libraries': '256',
    }
    assert text.index('action') < text.rindex('total ')
    assert 'took a different time: reach' in text
    assert {path.name for path in report.write(tmp_path)} >= {'episodes.png', 'demo.json'}
