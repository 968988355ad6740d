"""A chunk as target poses, and the way to one of them."""

import math

import numpy as np
import pytest

from vlaq_ros.control.limits import CommandLimits, LimitReason, RefusedCommandError
from vlaq_ros.kinematics.lie import angle_between, so3_exp
from vlaq_ros.ros.pose_targets import approach, pose_targets
from vlaq_ros.types import ActionChunk, ActionSpec, Pose

PERIOD_S = 0.05
WIDE = CommandLimits(max_linear_speed=10.0, max_angular_speed=10.0)
QUARTER_TURN = so3_exp(np.array([0.0, 0.0, math.pi / 2]))


def chunk_of(rows, frame='base', names=('ee_x', 'ee_y', 'ee_z', 'ee_rz', 'gripper')):
    """Return a chunk of increments [n, 5] along x, y, z [m], about z [rad], and the opening."""
    rows, size = np.asarray(rows, dtype=float), len(names)
    units = ('m', 'm', 'm', 'rad', '1')[:size]
    low, high = (-1.0,) * size, (1.0,) * size
    spec = ActionSpec(names, units, frame, True, round(PERIOD_S * 1e9), low, high)
    return ActionChunk(rows, spec, 0, 'open', 'fp32', 'flow', stage_s={})


def positions(targets):
    return np.array([target.pose.position for target in targets])


def test_every_row_starts_where_the_row_before_ended():
    rows = [[0.01, 0.0, 0.0, 0.0, 1.0], [0.0, 0.02, 0.0, 0.0, 0.5], [0.0, 0.0, -0.03, 0.0, 0.0]]
    targets = pose_targets(chunk_of(rows), Pose(np.array([1.0, 2.0, 3.0])), WIDE)
    expected = [[1.01, 2.0, 3.0], [1.01, 2.02, 3.0], [1.01, 2.02, 2.97]]
    np.testing.assert_allclose(positions(targets), expected, atol=1e-12)
    assert [target.gripper for target in targets] == [1.0, 0.5, 0.0]
    assert [target.limited for target in targets] == [(), (), ()]


def test_a_turn_acts_on_later_rows_only_in_the_frame_of_the_tool():
    rows = [[0.0, 0.0, 0.0, 0.4, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0]]
    base = pose_targets(chunk_of(rows, 'base'), Pose(np.zeros(3)), WIDE)[-1].pose
    tool = pose_targets(chunk_of(rows, 'tool'), Pose(np.zeros(3)), WIDE)[-1].pose
    np.testing.assert_allclose(base.position, [0.1, 0.0, 0.0], atol=1e-12)
    expected = [0.1 * math.cos(0.4), 0.1 * math.sin(0.4), 0.0]
    np.testing.assert_allclose(tool.position, expected, atol=1e-12)


def test_a_plan_that_begins_later_starts_at_the_given_pose_with_the_row_that_is_left():
    rows = [[9.0, 9.0, 9.0, 0.0, 0.0], [0.01, 0.0, 0.0, 0.0, 0.0], [0.02, 0.0, 0.0, 0.0, 0.0]]
    targets = pose_targets(chunk_of(rows), Pose(np.zeros(3)), WIDE, first_row=1)
    np.testing.assert_allclose(positions(targets)[:, 0], [0.01, 0.03], atol=1e-12)


def test_a_row_that_was_shortened_moves_all_later_targets():
    slow = CommandLimits(max_linear_speed=0.2, max_angular_speed=10.0)  # 1 cm per period
    rows = [[0.05, 0.0, 0.0, 0.0, 0.0], [0.004, 0.0, 0.0, 0.0, 0.0]]
    first, second = pose_targets(chunk_of(rows), Pose(np.zeros(3)), slow)
    assert first.limited == (LimitReason.LINEAR_SPEED,)
    assert second.limited == ()
    assert (first.pose.position[0], second.pose.position[0]) == pytest.approx((0.01, 0.014))


def test_the_workspace_is_checked_along_the_plan_and_not_at_its_start():
    """Each row alone is inside; the third one ends outside when the first two were executed."""
    box = CommandLimits(10.0, 10.0, (-1.0, -1.0, -1.0), (0.025, 1.0, 1.0), on_exceed='refuse')
    rows = [[0.01, 0.0, 0.0, 0.0, 0.0]] * 3
    assert len(pose_targets(chunk_of(rows[:2]), Pose(np.zeros(3)), box)) == 2
    with pytest.raises(RefusedCommandError, match=r'out of the workspace: x=0\.0300 m'):
        pose_targets(chunk_of(rows), Pose(np.zeros(3)), box)


def test_a_row_that_is_not_finite_refuses_the_plan():
    rows = [[0.01, 0.0, 0.0, 0.0, 0.0], [math.nan, 0.0, 0.0, 0.0, 0.0]]
    with pytest.raises(RefusedCommandError, match='not finite'):
        pose_targets(chunk_of(rows), Pose(np.zeros(3)), WIDE)


def test_without_a_gripper_the_targets_command_none():
    names = ('ee_x', 'ee_y', 'ee_z', 'ee_rz')
    (target,) = pose_targets(chunk_of([[0.0] * 4], names=names), Pose(np.zeros(3)), WIDE)
    assert target.gripper is None


def test_a_target_within_reach_is_sent_as_it_is():
    target = Pose(np.array([0.01, 0.0, 0.0]), QUARTER_TURN)
    pose, limited = approach(Pose(np.zeros(3)), target, WIDE, 1.0)
    assert pose is target
    assert limited == ()


def test_the_way_is_shortened_at_the_speed_limits_and_keeps_its_direction():
    limits = CommandLimits(max_linear_speed=0.1, max_angular_speed=0.5)
    target = Pose(np.array([0.3, 0.4, 0.0]), QUARTER_TURN)
    pose, limited = approach(Pose(np.zeros(3)), target, limits, 0.2)
    np.testing.assert_allclose(pose.position, 0.02 * np.array([0.6, 0.8, 0.0]), atol=1e-12)
    turned = so3_exp(np.array([0.0, 0.0, 0.1]))
    assert angle_between(turned, pose.quat_xyzw) == pytest.approx(0.0, abs=1e-9)
    assert limited == (LimitReason.LINEAR_SPEED, LimitReason.ANGULAR_SPEED)


def test_repeated_steps_arrive_and_never_exceed_the_speeds():
    limits = CommandLimits(max_linear_speed=0.1, max_angular_speed=0.5)
    target = Pose(np.array([0.03, -0.02, 0.01]), so3_exp(np.array([0.2, -0.1, 0.3])))
    at = Pose(np.array([-0.01, 0.0, 0.0]), so3_exp(np.array([0.0, 0.4, 0.0])))
    for _ in range(80):
        before = at
        at, limited = approach(before, target, limits, 0.02)
        assert np.linalg.norm(at.position - before.position) <= 0.1 * 0.02 * (1 + 1e-6)
        assert angle_between(before.quat_xyzw, at.quat_xyzw) <= 0.5 * 0.02 * (1 + 1e-6)
    assert at is target
    assert limited == ()


@pytest.mark.parametrize('duration_s', [0.0, -0.1])
def test_no_time_is_no_way(duration_s):
    """Two ticks with one stamp, or a clock that was set back."""
    start = Pose(np.zeros(3))
    assert approach(start, Pose(np.ones(3)), WIDE, duration_s) == (start, ())


def test_the_way_is_never_refused_and_the_workspace_does_not_bend_it():
    """It is not the policy that asks for it; the plan itself was checked."""
    box = CommandLimits(0.1, 1.0, (0.0, 0.0, 0.0), (0.1, 0.1, 0.1), on_exceed='refuse')
    outside = Pose(np.array([-1.0, 0.05, 0.05]))
    pose, limited = approach(outside, Pose(np.array([-2.0, 0.05, 0.05])), box, 0.1)
    np.testing.assert_allclose(pose.position, [-1.01, 0.05, 0.05], atol=1e-12)
    assert limited == (LimitReason.LINEAR_SPEED,)
