"""The simulated arm: deterministic, in SI units, refusing what does not exist."""

import numpy as np
import pytest

from vlaq_ros.errors import SimulatorError
from vlaq_ros.sim.tasks import TASKS, find_task, vocabulary
from vlaq_ros.types import EndEffectorCommand

robot_module = pytest.importorskip('vlaq_ros.sim.robot', reason='needs mujoco and metaworld')


@pytest.fixture(scope='module')
def robot():
    robot = robot_module.SimRobot()
    robot.reset('reach', 100, 0)
    try:
        robot.render('wrist')
    except SimulatorError as error:
        pytest.skip(f'MuJoCo cannot render here: {error}')
    return robot


def _forward(metres_per_second, gripper=1.0):
    return EndEffectorCommand([0.0, metres_per_second, 0.0, 0.0, 0.0, 0.0], gripper)


def test_same_start_and_commands_give_the_same_images_and_state(robot):
    runs = []
    for _ in range(2):
        robot.reset('push', 100, 3)
        for _ in range(4):
            robot.step(_forward(0.3))
        runs.append(robot.observe('push the puck to the goal'))
    assert np.array_equal(runs[0].state, runs[1].state)
    for name in robot_module.CAMERAS:
        assert np.array_equal(runs[0].images[name], runs[1].images[name])


def test_images_have_the_declared_sizes(robot):
    robot.reset('reach', 100, 0)
    for name, camera in robot_module.CAMERAS.items():
        image = robot.render(name)
        assert image.shape == (camera.height, camera.width, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10


def test_hand_follows_the_commanded_velocity(robot):
    robot.reset('reach', 100, 0)
    before = robot.ee_pose().position
    for _ in range(10):
        robot.step(_forward(0.4))
    for _ in range(4):
        robot.step(_forward(0.0))
    moved = robot.ee_pose().position - before
    assert moved[1] == pytest.approx(0.4 * 10 * robot_module.PERIOD_S, abs=0.02)
    assert abs(moved[0]) < 0.01


def test_hand_goes_to_a_target_position(robot):
    robot.reset('reach', 100, 1)
    target = robot.ee_pose().position + [0.05, 0.03, -0.04]
    for _ in range(20):
        robot.step_towards(target, None)
    assert robot.ee_pose().position == pytest.approx(target, abs=0.01)


def test_gripper_closes_and_keeps_its_command_when_none_is_given(robot):
    robot.reset('reach', 100, 2)
    opened = robot.state()[3]
    for _ in range(15):
        robot.step(_forward(0.0, gripper=0.0))
    closed = robot.state()[3]
    for _ in range(5):
        robot.step(_forward(0.0, gripper=None))
    assert closed < opened - 0.2
    assert robot.state()[3] == pytest.approx(closed, abs=0.05)


def test_time_never_goes_back_at_a_reset(robot):
    robot.reset('reach', 100, 0)
    robot.step(_forward(0.0))
    before = robot.now_ns
    robot.reset('reach', 100, 0)
    assert robot.now_ns >= before
    assert robot.step_count == 0


@pytest.mark.parametrize(('seed', 'index'), [(-1, 0), (0, 50), (0, -1)])
def test_variant_that_does_not_exist_is_refused(robot, seed, index):
    with pytest.raises(SimulatorError, match=f'seed={seed} index={index}'):
        robot.reset('reach', seed, index)


def test_unknown_task_lists_the_known_ones(robot):
    with pytest.raises(SimulatorError, match='reach, push, pick-place'):
        robot.reset('juggle', 0, 0)


def test_arm_without_an_episode_says_so():
    with pytest.raises(SimulatorError, match='call reset first'):
        robot_module.SimRobot().render('front')


def test_every_task_has_four_different_sentences_the_policy_can_read():
    words = set(vocabulary())
    for task in TASKS:
        sentences = {*task.sentences, task.held_out}
        assert len(sentences) == 4
        assert all(len(s.split()) <= 14 and set(s.split()) <= words for s in sentences)
        assert find_task(task.opposite) is not task


def test_held_out_sentences_are_made_of_words_seen_in_training():
    trained = {word for task in TASKS for s in task.sentences for word in s.split()}
    for task in TASKS:
        assert set(task.held_out.split()) <= trained, task.name


def test_scenes_come_and_go_without_changing_the_pictures_of_others(robot):
    """Freed renderers used to take the textures of living ones with them."""
    tasks = [task.name for task in TASKS[: robot_module.KEPT_SCENES + 2]]
    first = {}
    for round_number in range(2):
        for name in tasks:
            robot.reset(name, 100, 5)
            image = robot.render('front')
            if round_number == 0:
                first[name] = image
            assert np.array_equal(image, first[name]), name
