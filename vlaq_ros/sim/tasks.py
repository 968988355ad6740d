"""
The tasks of the benchmark: sentences, step limits, and how strongly demonstrations are disturbed.

Every task has three sentences for training and one that is held out. `opposite` names a task whose
sentence asks for something else in the same scene: the wrong-instruction control uses it.
"""

from dataclasses import dataclass

from vlaq_ros.errors import SimulatorError, unknown_name


@dataclass(frozen=True)
class Task:
    """
    One Meta-World task.

    Attributes:
        name: Name without the `-v3` of its environment.
        sentences: Training paraphrases.
        held_out: Paraphrase never seen in training, made of words that were.
        opposite: Task whose sentence serves as the wrong instruction.
        max_steps: Policy steps after which an episode counts as failed [steps].
        noise: Levels of correlated noise that demonstrations are executed with [fraction of the
            largest action]; precise tasks cannot be demonstrated under strong noise.
    """

    name: str
    sentences: tuple[str, str, str]
    held_out: str
    opposite: str
    max_steps: int = 80
    noise: tuple[float, ...] = (0.0, 0.4, 0.8)

    @property
    def environment(self) -> str:
        """Name of the Meta-World environment."""
        return f'{self.name}-v3'


_FINE = (0.0, 0.12, 0.25)
_MEDIUM = (0.0, 0.25, 0.5)

TASKS: tuple[Task, ...] = (
    Task(
        'reach',
        ('reach the goal', 'move the gripper to the goal', 'touch the goal with the hand'),
        'touch the goal',
        'push',
    ),
    Task(
        'push',
        (
            'push the puck to the goal',
            'slide the puck over to the goal',
            'push the puck along the table to the goal',
        ),
        'slide the puck to the goal',
        'reach',
        noise=_MEDIUM,
    ),
    Task(
        'pick-place',
        (
            'pick up the puck and place it at the goal',
            'lift the puck to the goal',
            'grab the puck and move it to the goal',
        ),
        'pick up the puck and move it to the goal',
        'reach',
        noise=_MEDIUM,
    ),
    Task(
        'drawer-open',
        ('open the drawer', 'pull the drawer open', 'pull out the drawer'),
        'slide the drawer open',
        'drawer-close',
    ),
    Task(
        'drawer-close',
        ('close the drawer', 'push the drawer closed', 'shut the drawer'),
        'push the drawer shut',
        'drawer-open',
    ),
    Task(
        'button-press-topdown',
        ('press the button from the top', 'push the button down', 'press down the button'),
        'press the button',
        'window-open',
    ),
    Task(
        'window-open',
        ('open the window', 'push the window open', 'slide the window open'),
        'pull the window open',
        'window-close',
    ),
    Task(
        'window-close',
        ('close the window', 'push the window closed', 'slide the window closed'),
        'shut the window',
        'window-open',
    ),
    Task(
        'door-open',
        ('open the door', 'pull the door open', 'grab the handle and pull the door'),
        'grab the handle and open the door',
        'window-close',
        max_steps=120,
        noise=_MEDIUM,
    ),
    Task(
        'assembly',
        (
            'pick up the ring and place it on the peg',
            'put the ring on the peg',
            'grab the ring and slide it over the peg',
        ),
        'lift the ring and put it on the peg',
        'reach',
        max_steps=120,
        noise=_FINE,
    ),
    Task(
        'stick-push',
        (
            'grab the stick and push the bottle to the goal',
            'push the bottle with the stick',
            'pick up the stick and slide the bottle to the goal',
        ),
        'grab the stick and slide the bottle to the goal',
        'reach',
        max_steps=120,
        noise=_FINE,
    ),
    Task(
        'peg-insert-side',
        (
            'insert the peg into the hole',
            'pick up the peg and push it into the hole',
            'grab the peg and put it into the box',
        ),
        'grab the peg and insert it into the hole',
        'reach',
        max_steps=120,
        noise=_FINE,
    ),
)

INSTRUCTIONS = ('train', 'held-out', 'wrong')
"""Which sentences an evaluation uses."""

PRECISE_TASKS = ('pick-place', 'door-open', 'assembly', 'stick-push', 'peg-insert-side')
"""Tasks in which something small must be grasped or fitted; a split by task, not by phase."""

BASE_TASKS: tuple[str, ...] = tuple(task.name for task in TASKS[:8])

_BY_NAME = {task.name: task for task in TASKS}


def find_task(name: str) -> Task:
    """
    Return the task of this name.

    Raises:
        SimulatorError: There is none; the message lists the known names.
    """
    if name not in _BY_NAME:
        raise SimulatorError(unknown_name('task', name, _BY_NAME))
    return _BY_NAME[name]


def vocabulary() -> tuple[str, ...]:
    """Return padding, the unknown word, then every word of the sentences in alphabetical order."""
    words = {w for task in TASKS for s in (*task.sentences, task.held_out) for w in s.split()}
    return ('<pad>', '<unk>', *sorted(words))
