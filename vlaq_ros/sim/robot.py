"""
A Meta-World arm that takes end-effector commands and delivers observations, on simulated time.

One `step` lasts one policy period (two environment steps). Everything is deterministic: the same
commands after the same `reset` give the same observations. Rendering needs OSMesa or EGL.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import SimulatorError
from vlaq_ros.sim.engine import metaworld, mujoco
from vlaq_ros.sim.renderer import Renderer
from vlaq_ros.sim.tasks import find_task
from vlaq_ros.types import ActionSpec, EndEffectorCommand, Observation, Pose

PERIOD_NS = 25_000_000
PERIOD_S = PERIOD_NS * 1e-9
ENVIRONMENT_STEPS = 2
KEPT_SCENES = 4
MAX_STEP_M = 0.02  # two environment steps of 0.01 m along each axis
GRIPPER_TRAVEL_M = 0.1  # finger distance that counts as fully open

ACTION_SPEC = ActionSpec(
    names=('ee_x', 'ee_y', 'ee_z', 'gripper'),
    units=('m', 'm', 'm', '1'),
    frame='base',
    delta=True,
    period_ns=PERIOD_NS,
    low=(-MAX_STEP_M, -MAX_STEP_M, -MAX_STEP_M, 0.0),
    high=(MAX_STEP_M, MAX_STEP_M, MAX_STEP_M, 1.0),
)
STATE_NAMES = ('hand_x', 'hand_y', 'hand_z', 'gripper_opening')
STATE_UNITS = ('m', 'm', 'm', '1')
JOINT_NAMES = tuple(f'right_j{i}' for i in range(7))


@dataclass(frozen=True)
class Camera:
    """
    A camera of the scene: `height` x `width` pixels are read out of a larger square sensor.

    Attributes:
        source: Name of the MuJoCo camera.
        sensor: Side of the square sensor [px].
        top, left: First row and column that are read out [px].
        upside_down: The camera hangs upside down; its image is turned by 180 degrees.
    """

    source: str
    sensor: int
    top: int
    left: int
    height: int
    width: int
    upside_down: bool = False


CAMERAS = {
    'front': Camera('corner2', 136, 26, 28, 96, 96, upside_down=True),
    'wrist': Camera('gripperPOV', 64, 0, 0, 64, 64),
}
_FRONT_POSITION = (
    0.75,
    0.075,
    0.7,
)  # [m] closer than stock, as published users of the camera set it
SPECTATOR = Camera('corner2', 240, 20, 40, 200, 200, upside_down=True)


@lru_cache(maxsize=64)
def _variants(environment: str, seed: int) -> Any:
    return metaworld.MT1(environment, seed=seed)


class SimRobot:
    """
    The arm, its cameras and one task at a time.

    Attributes:
        task: Task of the running episode.
        step_count: Policy steps since the reset [steps].
        success: Whether the task's own success criterion has been met.
        now_ns: Simulated time; it never goes back, also not at a reset [ns].
    """

    def __init__(self) -> None:
        self._scenes: dict[str, _Scene] = {}
        self._scene: _Scene | None = None
        self.task = ''
        self.step_count = 0
        self.success = False
        self.now_ns = 0

    def reset(self, task: str, seed: int, index: int) -> None:
        """
        Start an episode: variant `index` (0 to 49) of `task` under the environment `seed`.

        Raises:
            SimulatorError: No such task, a negative seed or an index out of range.
        """
        environment = find_task(task).environment
        if not 0 <= index < 50 or seed < 0:
            raise SimulatorError(
                f'no variant seed={seed} index={index} of {task!r}: '
                'seeds are 0 and above, indices 0 to 49'
            )
        if task not in self._scenes:
            # Oldest first: a scene holds some 150 MB and takes a second to build.
            for name in list(self._scenes)[: 1 - KEPT_SCENES]:
                self._scenes.pop(name).close()
            self._scenes[task] = _Scene(environment, seed)
        self._scene = self._scenes[task]
        self._scene.reset(environment, seed, index)
        self.task, self.step_count, self.success = task, 0, False

    @property
    def scene(self) -> '_Scene':
        """The running scene; `SimulatorError` before the first reset."""
        if self._scene is None:
            raise SimulatorError('no episode is running: call reset first')
        return self._scene

    def render(self, camera: str) -> NDArray[np.uint8]:
        """Return the image of one of `CAMERAS`: RGB uint8 [height, width, 3]."""
        return self.scene.render(CAMERAS[camera])

    def spectator(self) -> NDArray[np.uint8]:
        """Return a larger view for people: RGB uint8 [200, 200, 3]."""
        return self.scene.render(SPECTATOR)

    def state(self) -> NDArray[np.float64]:
        """Return the state [4]: hand position in the base frame [m], finger opening [1]."""
        return np.array(self.scene.observed[:4], dtype=np.float64)

    def ee_pose(self) -> Pose:
        """Return the pose of the hand in the base frame."""
        w, x, y, z = self.scene.environment.data.mocap_quat[0]
        return Pose(self.scene.observed[:3], np.array([x, y, z, w]))

    def joint_positions(self) -> NDArray[np.float64]:
        """Return the angles [7] of `JOINT_NAMES` [rad]."""
        data = self.scene.environment.data
        return np.array([data.joint(name).qpos[0] for name in JOINT_NAMES])

    def observe(self, instruction: str) -> Observation:
        """Return what the policy sees now."""
        images = {name: self.render(name) for name in CAMERAS}
        return Observation(images, self.state(), instruction, self.now_ns)

    def step(self, command: EndEffectorCommand) -> bool:
        """
        Follow `command` for one period; return whether the task has succeeded so far.

        Faster than 0.8 m/s along an axis is cut to that, as the environment does. Angular velocity
        is ignored: this arm does not turn its hand.
        """
        action = np.zeros(4)
        action[:3] = command.twist[:3] * PERIOD_S / MAX_STEP_M
        opening = self.scene.gripper if command.gripper is None else command.gripper
        self.scene.gripper = opening
        action[3] = 1.0 - 2.0 * opening
        return self._advance(action)

    def step_towards(self, position: NDArray[np.float64], gripper: float | None) -> bool:
        """Move the commanded position of the hand towards `position` [m] for one period."""
        delta = np.asarray(position) - self.scene.environment.data.mocap_pos[0]
        return self.step(EndEffectorCommand(np.r_[delta / PERIOD_S, np.zeros(3)], gripper))

    def _advance(self, action: NDArray[np.float64]) -> bool:
        self.success |= self.scene.advance(np.clip(action, -1.0, 1.0).astype(np.float32))
        self.step_count += 1
        self.now_ns += PERIOD_NS
        return self.success


class _Scene:
    """One environment with its renderer."""

    def __init__(self, environment: str, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.environment = _variants(environment, seed).train_classes[environment]()
        model = self.environment.model
        model.cam_pos[model.camera('corner2').id] = _FRONT_POSITION
        self._renderer: Renderer | None = None
        self.observed = np.zeros(39)
        self.gripper = 1.0

    def reset(self, environment: str, seed: int, index: int) -> None:
        self.environment.set_task(_variants(environment, seed).train_tasks[index])
        self.observed, _ = self.environment.reset()
        # Some environments place a goal after their last forward pass: draw it where it is now.
        mujoco.mj_kinematics(self.environment.model, self.environment.data)
        self.gripper = 1.0

    def advance(self, action: NDArray[np.float32]) -> bool:
        for _ in range(ENVIRONMENT_STEPS):
            # The environment refuses to step past its own 500-step limit; ours is per task.
            self.environment.curr_path_length = 0
            self.observed, _, _, _, info = self.environment.step(action)
            if info['success']:
                return True
        return False

    def render(self, camera: Camera) -> NDArray[np.uint8]:
        if self._renderer is None:
            self._renderer = Renderer(self.environment.model)
        image = self._renderer.render(self.environment.data, camera.source, camera.sensor)
        if camera.upside_down:
            image = image[::-1, ::-1]
        rows = slice(camera.top, camera.top + camera.height)
        return image[rows, camera.left : camera.left + camera.width].copy()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self.environment.close()
