"""An increment moves and turns about the axes of its frame; an absolute action is the target."""

import numpy as np
import pytest

from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics import lie
from vlaq_ros.kinematics.actions import gripper_openings, select_dimensions, to_target_pose
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec, Pose

ALL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)
QUARTER_TURN_Z = lie.so3_exp([0, 0, np.pi / 2])
ANCHOR = Pose([0.1, 0.6, 0.2], QUARTER_TURN_Z)


def make_spec(names=ALL_NAMES, frame='base', delta=True):
    """Return a spec of these dimensions; units and bounds play no role here."""
    size = len(names)
    return ActionSpec(names, ('1',) * size, frame, delta, 25_000_000, (-1,) * size, (1,) * size)


@pytest.mark.parametrize(
    ('frame', 'direction'), [('base', [1, 0, 0]), ('tool', [0, 1, 0])], ids=['base', 'tool']
)
def test_an_increment_moves_along_the_axes_of_its_frame(frame, direction):
    target = to_target_pose(np.array([0.02, 0, 0, 0, 0, 0, 1]), make_spec(frame=frame), ANCHOR)
    np.testing.assert_allclose(
        target.position - ANCHOR.position, np.multiply(0.02, direction), atol=1e-15
    )
    np.testing.assert_allclose(target.quat_xyzw, ANCHOR.quat_xyzw)


@pytest.mark.parametrize(
    ('frame', 'axis'), [('base', [1, 0, 0]), ('tool', [0, 1, 0])], ids=['base', 'tool']
)
def test_an_increment_turns_about_the_axes_of_its_frame_and_does_not_move(frame, axis):
    target = to_target_pose(np.array([0, 0, 0, 0.3, 0, 0, 1]), make_spec(frame=frame), ANCHOR)
    turned = lie.quat_multiply(target.quat_xyzw, lie.quat_conjugate(ANCHOR.quat_xyzw))
    np.testing.assert_allclose(lie.so3_log(turned), np.multiply(0.3, axis), atol=1e-15)
    np.testing.assert_array_equal(target.position, ANCHOR.position)


def test_a_tool_frame_increment_is_the_product_of_two_poses():
    action = np.array([0.01, -0.02, 0.03, 0.1, 0.2, -0.3, 0.0])
    target = to_target_pose(action, make_spec(frame='tool'), ANCHOR)
    expected = lie.compose(ANCHOR, Pose(action[:3], lie.so3_exp(action[3:6])))
    np.testing.assert_allclose(target.position, expected.position)
    np.testing.assert_allclose(target.quat_xyzw, expected.quat_xyzw)


@pytest.mark.parametrize('frame', ['base', 'tool'])
@pytest.mark.parametrize('names', [ALL_NAMES, (*POSITION_NAMES, GRIPPER_NAME)], ids=['6d', '3d'])
def test_an_increment_of_zero_stays(names, frame):
    target = to_target_pose(np.zeros(len(names)), make_spec(names, frame), ANCHOR)
    np.testing.assert_array_equal(target.position, ANCHOR.position)
    np.testing.assert_allclose(target.quat_xyzw, ANCHOR.quat_xyzw, atol=1e-15)


def test_a_policy_without_rotation_moves_in_the_tool_frame_too():
    spec = make_spec(('ee_x', 'gripper'), frame='tool')
    target = to_target_pose(np.array([0.02, 1.0]), spec, ANCHOR)
    np.testing.assert_allclose(target.position, [0.1, 0.62, 0.2])


def test_a_long_chain_of_turns_stays_a_rotation():
    pose = Pose(np.zeros(3), QUARTER_TURN_Z * (1 + 1e-9))
    for _ in range(500):
        pose = to_target_pose(np.array([0, 0, 0, 0.1, 0.2, 0.3, 0]), make_spec(), pose)
    assert np.linalg.norm(pose.quat_xyzw) == pytest.approx(1.0, abs=1e-12)


def test_an_absolute_action_is_the_target_itself():
    action = np.array([0.3, 0.5, 0.1, 0, 0.4, 0, 1])
    target = to_target_pose(action, make_spec(delta=False), ANCHOR)
    np.testing.assert_array_equal(target.position, action[:3])
    np.testing.assert_allclose(lie.so3_log(target.quat_xyzw), action[3:6], atol=1e-15)


def test_an_absolute_action_keeps_what_it_does_not_command():
    target = to_target_pose(np.array([0.3]), make_spec(('ee_z',), delta=False), ANCHOR)
    np.testing.assert_array_equal(target.position, [0.1, 0.6, 0.3])
    np.testing.assert_array_equal(target.quat_xyzw, ANCHOR.quat_xyzw)


def test_an_absolute_pose_in_the_tool_frame_is_refused():
    with pytest.raises(ConfigError, match="must be in frame 'base'"):
        to_target_pose(np.zeros(7), make_spec(frame='tool', delta=False), ANCHOR)


def test_a_part_of_an_absolute_rotation_is_refused():
    with pytest.raises(ConfigError, match=r"all of .* or none, got \['ee_rz'\]"):
        to_target_pose(np.zeros(1), make_spec(('ee_rz',), delta=False), ANCHOR)


@pytest.mark.parametrize(
    'action', [np.zeros(6), np.array([0, 0, np.nan, 0, 0, 0, 0])], ids=['too short', 'NaN']
)
def test_an_action_that_does_not_fit_is_a_programming_error(action):
    with pytest.raises(ValueError, match='action must be 7 finite numbers'):
        to_target_pose(action, make_spec(), ANCHOR)


def test_dimensions_are_selected_by_name_and_zero_where_missing():
    spec = make_spec(('gripper', 'ee_z', 'ee_x'))
    actions = np.arange(12.0).reshape(2, 2, 3)
    chosen = select_dimensions(actions, spec, POSITION_NAMES)
    np.testing.assert_array_equal(chosen[..., 0], actions[..., 2])
    np.testing.assert_array_equal(chosen[..., 1], np.zeros((2, 2)))
    np.testing.assert_array_equal(chosen[..., 2], actions[..., 1])
    np.testing.assert_array_equal(gripper_openings(actions, spec), actions[..., 0])


def test_a_policy_without_gripper_has_no_openings():
    assert gripper_openings(np.zeros((2, 1)), make_spec(('ee_x',))) is None
