"""Stand-ins for a policy, and the fixture that skips what needs the simulator."""

import subprocess
import sys

import numpy as np
import pytest

from vlaq_ros.policies.base import MemoryReport, SelfTestReport
from vlaq_ros.policies.spec import CameraSpec, PolicySpec, PromptSpec, StateSpec
from vlaq_ros.types import ActionChunk, ActionSpec

PERIOD_NS = 25_000_000
ACTION_SPEC = ActionSpec(
    names=('ee_x', 'ee_y', 'ee_z', 'gripper'),
    units=('m', 'm', 'm', '1'),
    frame='base',
    delta=True,
    period_ns=PERIOD_NS,
    low=(-0.02, -0.02, -0.02, 0.0),
    high=(0.02, 0.02, 0.02, 1.0),
)
_RENDER = """
from vlaq_ros.sim.robot import SimRobot
robot = SimRobot()
robot.reset('reach', 100, 0)
robot.render('front')
"""


def make_spec(horizon=8, execution_horizon=6):
    """Return the spec of a policy for the simulated arm."""
    return PolicySpec(
        family='fake',
        name='fake',
        cameras=(CameraSpec('front', 96, 96), CameraSpec('wrist', 64, 64)),
        state=StateSpec(('hand_x',) * 4, ('m',) * 4, (0.0,) * 4, (1.0,) * 4),
        prompt=PromptSpec(('<pad>', '<unk>'), 14),
        action=ACTION_SPEC,
        action_mean=(0.0,) * 4,
        action_std=(1.0,) * 4,
        horizon=horizon,
        execution_horizon=execution_horizon,
        heads=('flow', 'token'),
        sampler_steps=1,
        license='MIT',
        provenance={},
    )


class ConstantPolicy:
    """Always moves by `delta` [m] per step; counts its calls."""

    def __init__(self, delta=(0.0, 0.0, 0.0), spec=None):
        self.spec = spec or make_spec()
        self.precision, self.head = 'fp32', 'flow'
        self.delta = delta
        self.resets = self.inferences = 0

    def reset(self):
        """Count it."""
        self.resets += 1

    def infer(self, observation):
        """Return the same chunk for every observation, as an adapter does: sequence 0, epoch 0."""
        self.inferences += 1
        actions = np.tile([*self.delta, 1.0], (self.spec.horizon, 1))
        return ActionChunk(
            actions,
            self.spec.action,
            observation.observed_ns,
            observation.instruction,
            self.precision,
            self.head,
            stage_s={'preprocess': 0.001, 'action': 0.002},
        )

    def self_test(self):
        """Return an empty report."""
        return SelfTestReport(())

    def memory(self):
        """Return a report of nothing quantized."""
        return MemoryReport(100, 0, 0, 0, '')


class ExpertPolicy(ConstantPolicy):
    """The scripted expert of the task, which reads the simulator instead of the images."""

    def __init__(self, robot):
        super().__init__(spec=make_spec(horizon=1, execution_horizon=1))
        self.robot = robot

    def infer(self, observation):
        """Return the one action the expert takes now."""
        from vlaq_ros.sim.demonstrations import to_action
        from vlaq_ros.sim.engine import EXPERTS
        from vlaq_ros.sim.tasks import find_task

        expert = EXPERTS[find_task(self.robot.task).environment]()
        action = to_action(expert.get_action(self.robot.scene.observed))
        return ActionChunk(
            action[None],
            self.spec.action,
            observation.observed_ns,
            observation.instruction,
            'fp32',
            'flow',
            stage_s={'action': 0.001},
        )


@pytest.fixture(scope='session')
def simulator():
    """Skip unless MuJoCo can render; a wrong OpenGL library may kill the process that tries."""
    trial = subprocess.run([sys.executable, '-c', _RENDER], capture_output=True, text=True)
    if trial.returncode:
        reason = (trial.stderr.strip().splitlines() or [f'exit status {trial.returncode}'])[-1]
        pytest.skip(f'MuJoCo cannot render here: {reason}')


@pytest.fixture(scope='session')
def robot(simulator):
    """Return one simulated arm for the whole session: building scenes is the slow part."""
    from vlaq_ros.sim.robot import SimRobot

    return SimRobot()


@pytest.fixture
def constant_policy():
    """Return a function that builds a policy with one constant motion."""
    return ConstantPolicy


@pytest.fixture
def expert_policy(robot):
    """Return the scripted expert of whatever the robot is doing."""
    return ExpertPolicy(robot)
