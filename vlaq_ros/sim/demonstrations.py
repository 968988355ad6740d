"""
Demonstrations for training: scripted experts under noise, or taking over from a policy.

Labels are always the clean action of the expert; what is executed carries correlated noise (as in
DART, Laskey et al. 2017), so the data show how to come back. With a roll-in policy the episode
starts under that policy and the expert takes over at a random step (as in DAgger, Ross et al.
2011, with whole chunks as labels). Only episodes that end in success are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.sim.engine import EXPERTS
from vlaq_ros.sim.robot import MAX_STEP_M, PERIOD_S, SimRobot
from vlaq_ros.sim.tasks import TASKS, Task
from vlaq_ros.types import ActionChunk, EndEffectorCommand, Observation

RECORD_EVERY = 2  # an image is recorded at every second policy step
STEPS_AFTER_SUCCESS = 3  # the policy should learn to stay, too
MAX_STEPS = 130
DISPLACED_SHARE = 0.4  # share of episodes that start from a random hand position

RollIn = Callable[[Observation], ActionChunk]


@dataclass(frozen=True)
class Demonstration:
    """
    One recorded episode.

    Attributes:
        task: Position in `TASKS`.
        steps: [n] policy step of each recorded observation.
        front, wrist: [n, height, width, 3] uint8 images.
        state: [n, 4] proprioception.
        offsets: [n, 6] object and goal relative to the hand [m], for the auxiliary loss only.
        actions: [steps, 4] clean expert actions, in the units of `ACTION_SPEC`.
    """

    task: int
    steps: NDArray[np.int64]
    front: NDArray[np.uint8]
    wrist: NDArray[np.uint8]
    state: NDArray[np.float32]
    offsets: NDArray[np.float32]
    actions: NDArray[np.float32]


def to_action(environment_action: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a Meta-World action [-1, 1]^4 into the units of `ACTION_SPEC`."""
    clipped = np.clip(environment_action, -1.0, 1.0)
    return np.r_[clipped[:3] * MAX_STEP_M, (1.0 - clipped[3]) / 2.0]


def _command(action: NDArray[np.float64]) -> EndEffectorCommand:
    return EndEffectorCommand(np.r_[action[:3] / PERIOD_S, np.zeros(3)], float(action[3]))


def _displace(robot: SimRobot, rng: np.random.Generator) -> None:
    direction = rng.uniform(-1.0, 1.0, 3) * (1.0, 1.0, 0.7) * MAX_STEP_M
    for _ in range(int(rng.integers(3, 10))):
        robot.step(_command(np.r_[direction, 1.0]))


def _roll_in(robot: SimRobot, task: Task, policy: RollIn, rng: np.random.Generator) -> None:
    sentence = task.sentences[int(rng.integers(3))]
    executed = int(rng.integers(4, 9))
    for _ in range(int(rng.integers(1, 11))):
        chunk = policy(robot.observe(sentence))
        for action in chunk.actions[:executed]:
            if robot.step(_command(action)):
                return


def demonstrate(
    robot: SimRobot,
    task: Task,
    seed: int,
    index: int,
    rng: np.random.Generator,
    policy: RollIn | None,
) -> Demonstration | None:
    """Record one episode of the scripted expert; None when it did not succeed."""
    robot.reset(task.name, seed, index)
    if policy is not None:
        _roll_in(robot, task, policy, rng)
    elif rng.random() < DISPLACED_SHARE:
        _displace(robot, rng)
    if robot.success:
        return None
    expert = EXPERTS[task.environment]()
    level = rng.choice(task.noise if policy is None else task.noise[:2])
    noise = np.zeros(3)
    steps, front, wrist, state, offsets, actions = [], [], [], [], [], []
    offset, settled = int(rng.integers(RECORD_EVERY)), 0
    for step in range(MAX_STEPS):
        if step % RECORD_EVERY == offset:
            steps.append(step)
            front.append(robot.render('front'))
            wrist.append(robot.render('wrist'))
            state.append(robot.state())
            seen = robot.scene.observed
            goal = robot.scene.environment._target_pos
            offsets.append(np.r_[seen[4:7] - seen[:3], goal - seen[:3]])
        action = to_action(expert.get_action(robot.scene.observed))
        actions.append(action)
        noise = 0.7 * noise + 0.54 * rng.normal(size=3) * level * MAX_STEP_M
        settled += robot.step(_command(action + np.r_[noise, 0.0]))
        if settled == STEPS_AFTER_SUCCESS:
            break
    if not robot.success or not steps:
        return None
    return Demonstration(
        TASKS.index(task),
        np.array(steps),
        np.stack(front),
        np.stack(wrist),
        np.array(state, np.float32),
        np.array(offsets, np.float32),
        np.array(actions, np.float32),
    )


def save(path: Path, demonstrations: list[Demonstration]) -> None:
    """Write demonstrations to one `.npz`, atomically."""
    lengths = np.array([len(d.actions) for d in demonstrations])
    arrays = {
        'task': np.repeat(
            [d.task for d in demonstrations], [len(d.steps) for d in demonstrations]
        ),
        'episode': np.repeat(np.arange(len(lengths)), [len(d.steps) for d in demonstrations]),
        'length': lengths,
    }
    for name in ('steps', 'front', 'wrist', 'state', 'offsets', 'actions'):
        arrays[name] = np.concatenate([getattr(d, name) for d in demonstrations])
    partial = path.with_suffix('.partial.npz')
    np.savez(partial, **arrays)
    partial.replace(path)
