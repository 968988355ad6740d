"""
Closed-loop episodes without ROS: observe, infer when the player asks for it, act, until success.

The chunk player and the conversion to commands are those of the policy node, and the simulator
advances exactly one policy period per command, so a lockstep run over topics gives the same
actions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.control.chunk_player import ChunkPlayer
from vlaq_ros.control.commands import to_command
from vlaq_ros.policies.base import Policy
from vlaq_ros.sim.robot import SimRobot
from vlaq_ros.sim.tasks import INSTRUCTIONS, Task, find_task
from vlaq_ros.types import ActionChunk, Observation

VARIANTS_PER_SEED = 50

OnStep = Callable[[SimRobot, ActionChunk], None]


@dataclass(frozen=True)
class Episode:
    """
    One start of the benchmark and the sentence that goes with it.

    Attributes:
        task: Name of the task.
        seed: Environment seed; 100 and above are for evaluation.
        index: Variant of the start state, 0 to 49.
        instruction: The sentence to follow.
    """

    task: str
    seed: int
    index: int
    instruction: str


@dataclass(frozen=True)
class EpisodeResult:
    """
    What happened in one episode.

    Attributes:
        episode: What was run.
        success: Whether the task's own criterion was met within its step limit.
        steps: Policy steps executed.
        positions: [steps + 1, 3] hand position at the start and after every step [m].
        actions: [steps, action_dim] executed actions, in the units of the spec.
        chunks: One per inference.
        observations: One per inference, only when they were asked for.
        stage_s: Stage name -> seconds of every inference.
    """

    episode: Episode
    success: bool
    steps: int
    positions: NDArray[np.float64]
    actions: NDArray[np.float64]
    chunks: tuple[ActionChunk, ...]
    observations: tuple[Observation, ...] = ()
    stage_s: dict[str, tuple[float, ...]] = field(default_factory=dict)


def run_episode(
    robot: SimRobot,
    policy: Policy,
    episode: Episode,
    *,
    execution_horizon: int | None = None,
    keep_observations: bool = False,
    on_step: OnStep | None = None,
    on_action: Callable[[NDArray], None] | None = None,
) -> EpisodeResult:
    """
    Run one episode until the task succeeds or its step limit is reached.

    Args:
        robot: Reset by this function.
        policy: Reset by this function.
        episode: What to run.
        execution_horizon: Actions to execute per inference; the policy's own by default.
        keep_observations: Keep what the policy saw at every inference.
        on_step: Called with the robot and the chunk being played before every step.
        on_action: Called with every action [action_dim] after it was executed.
    """
    player = ChunkPlayer(policy.spec.action, execution_horizon or policy.spec.execution_horizon)
    robot.reset(episode.task, episode.seed, episode.index)
    policy.reset()
    positions, actions = [robot.ee_pose().position], []
    chunks: list[ActionChunk] = []
    observations: list[Observation] = []
    while not robot.success and robot.step_count < find_task(episode.task).max_steps:
        if player.needs_inference(robot.now_ns):
            observation = robot.observe(episode.instruction)
            chunk = replace(policy.infer(observation), sequence=len(chunks), epoch=player.epoch)
            player.accept(chunk)
            chunks.append(chunk)
            if keep_observations:
                observations.append(observation)
        if on_step is not None:
            on_step(robot, chunks[-1])
        action = player.action_at(robot.now_ns)
        robot.step(to_command(action, policy.spec.action))
        actions.append(action)
        if on_action is not None:
            on_action(action)
        positions.append(robot.ee_pose().position)
    return EpisodeResult(
        episode=episode,
        success=robot.success,
        steps=robot.step_count,
        positions=np.array(positions),
        actions=np.array(actions).reshape(-1, policy.spec.action.dim),
        chunks=tuple(chunks),
        observations=tuple(observations),
        stage_s=_by_stage(chunks),
    )


def default_episodes(
    tasks: tuple[str, ...], per_task: int, seed: int = 100, instruction: str = 'train'
) -> list[Episode]:
    """
    Return `per_task` episodes of every task, the tasks taking turns.

    The first `n` episodes per task are the same whatever `per_task` is. After 50 variants the next
    environment seed is used.

    Args:
        tasks: Names of the tasks.
        per_task: Episodes of each.
        seed: First environment seed.
        instruction: `train` (the three training sentences in turn), `held-out` (a paraphrase never
            trained on) or `wrong` (a sentence that asks for something else in the same scene).
    """
    episodes = []
    for i in range(per_task):
        block, index = divmod(i, VARIANTS_PER_SEED)
        for name in tasks:
            sentence = _sentence(find_task(name), i, instruction)
            episodes.append(Episode(name, seed + block, index, sentence))
    return episodes


def _sentence(task: Task, i: int, instruction: str) -> str:
    if instruction == 'train':
        return task.sentences[i % len(task.sentences)]
    if instruction == 'held-out':
        return task.held_out
    if instruction == 'wrong':
        opposite = find_task(task.opposite)
        return opposite.sentences[i % len(opposite.sentences)]
    raise ValueError(f'instruction must be one of {INSTRUCTIONS}, got {instruction!r}')


def _by_stage(chunks: list[ActionChunk]) -> dict[str, tuple[float, ...]]:
    names = dict.fromkeys(name for chunk in chunks for name in chunk.stage_s)
    return {
        name: tuple(chunk.stage_s[name] for chunk in chunks if name in chunk.stage_s)
        for name in names
    }
