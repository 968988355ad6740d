"""The camera model agrees with what is drawn."""

import numpy as np
import pytest

from vlaq_ros.errors import MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.sim.camera_model import intrinsics, optical_pose
from vlaq_ros.sim.engine import mujoco
from vlaq_ros.sim.robot import CAMERAS


@pytest.mark.parametrize('name', CAMERAS)
def test_a_body_is_drawn_where_the_camera_model_projects_it(robot, name):
    robot.reset('pick-place', 100, 0)
    data = robot.scene.environment.data
    puck = data.body('obj').xpos.copy()
    camera = CAMERAS[name]
    position, rotation = optical_pose(robot, camera)
    in_camera = rotation.T @ (puck - position)
    assert in_camera[2] > 0, 'the puck is in front of the camera'
    u, v, w = intrinsics(robot, camera) @ in_camera

    row, column = np.argwhere(_drawn(robot, 'obj', name)).mean(axis=0)
    assert column == pytest.approx(u / w, abs=1.0)
    assert row == pytest.approx(v / w, abs=1.0)


def _drawn(robot, body, camera):
    """Return the pixels that change when a body becomes invisible."""
    model = robot.scene.environment.model
    geoms = model.geom_bodyid == model.body(body).id
    colours = model.geom_rgba.copy()
    visible = robot.render(camera).astype(int)
    model.geom_rgba[geoms, 3] = 0.0
    hidden = robot.render(camera).astype(int)
    model.geom_rgba[:] = colours
    return np.abs(visible - hidden).max(axis=-1) > 20


@pytest.mark.parametrize('task', ['push', 'window-close'])
def test_an_episode_starts_with_everything_drawn_where_it_is(robot, task):
    """The window used to be drawn 0.2 m off, the goal of `push` where the last episode left it."""
    robot.reset(task, 100, 0)
    environment = robot.scene.environment
    drawn = robot.render('front')
    mujoco.mj_forward(environment.model, environment.data)
    np.testing.assert_array_equal(robot.render('front'), drawn)
