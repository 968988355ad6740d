"""
Every parameter of the simulator node: type, default, unit, bounds, effect.

`config/sim_node.yaml` shows the same table with the same defaults; a test keeps them equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vlaq_ros.ros.parameters import Applies, parameter
from vlaq_ros.sim.tasks import TASKS

TASK_NAMES = tuple(task.name for task in TASKS)


@dataclass(frozen=True)
class SimParameters:
    """Parameters of the simulator."""

    task: str = parameter(
        'drawer-open', 'Task of the next episode', choices=TASK_NAMES, applies=Applies.LIVE
    )
    seed: int = parameter(
        100,
        'Environment seed of the next episode; 100 and above were never trained on',
        low=0,
        high=1_000_000,
        applies=Applies.LIVE,
    )
    index: int = parameter(
        0, 'Start state of the next episode within its seed', low=0, high=49, applies=Applies.LIVE
    )
    instruction: str = parameter(
        '',
        'Sentence of the next episode; empty: a sentence of the task, chosen by `index`',
        applies=Applies.LIVE,
    )
    publish_instruction: bool = parameter(
        False, 'Publish the sentence of every episode on `instruction`', applies=Applies.START
    )
    lockstep: bool = parameter(
        False,
        'Advance only when commands stamped with the current simulated time have arrived',
        applies=Applies.START,
    )
    lockstep_timeout_s: float = parameter(
        10.0,
        'Wall time without commands after which an episode in lockstep is aborted',
        unit='s',
        low=0.1,
        high=600.0,
        applies=Applies.START,
    )
    real_time_factor: float = parameter(
        1.0,
        'Simulated seconds per wall second when not in lockstep',
        low=0.01,
        high=10.0,
        applies=Applies.START,
    )
    command_timeout_s: float = parameter(
        0.1,
        'Age at which a motion command ends and the arm stands still, when not in lockstep',
        unit='s',
        low=0.025,
        high=0.9,
        applies=Applies.START,
    )
    camera_every: int = parameter(
        1,
        'Render the cameras at every n-th step, when not in lockstep',
        unit='steps',
        low=1,
        high=40,
        applies=Applies.START,
    )
    spectator: bool = parameter(
        False, 'Publish a larger view on `spectator/image_raw`', applies=Applies.START
    )
    spectator_every: int = parameter(
        4,
        'Render the spectator view at every n-th step',
        unit='steps',
        low=1,
        high=120,
        applies=Applies.START,
    )
    compressed: bool = parameter(
        False, 'Publish JPEG images on `<camera>/image_raw/compressed` too', applies=Applies.START
    )
    auto_start: bool = parameter(
        True, 'Start an episode with the node; otherwise wait for ~/reset', applies=Applies.START
    )
    auto_reset: str = parameter(
        'off',
        'After an episode: wait for ~/reset, start the next index, or start the next task',
        choices=('off', 'next_index', 'next_task'),
        applies=Applies.LIVE,
    )
    base_frame: str = parameter(
        'base', 'Frame of poses and commands: the base of the arm', applies=Applies.START
    )

    def contradictions(self) -> Iterator[str]:
        """Yield what the bounds of single parameters cannot say."""
        if not self.base_frame:
            yield "parameter 'base_frame' must not be empty"
