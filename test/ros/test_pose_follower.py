"""Which target is sent on a tick: late ticks, stops, and limits that change inside a chunk."""

import math

import numpy as np
import pytest

from vlaq_ros.control.limits import CommandLimits, LimitReason, RefusedCommandError
from vlaq_ros.kinematics.lie import quat_conjugate, quat_multiply, so3_exp
from vlaq_ros.ros.pose_follower import PoseFollower
from vlaq_ros.ros.pose_targets import pose_targets
from vlaq_ros.types import ActionChunk, ActionSpec, Pose

PERIOD_NS, TICK_S = 50_000_000, 0.02
SPEC = ActionSpec(
    ('ee_x', 'ee_y', 'ee_z', 'ee_rx', 'ee_ry', 'ee_rz', 'gripper'),
    ('m', 'm', 'm', 'rad', 'rad', 'rad', '1'),
    'base',
    True,
    PERIOD_NS,
    (-1.0,) * 7,
    (1.0,) * 7,
)
WIDE = CommandLimits(max_linear_speed=10.0, max_angular_speed=10.0)
SLOW = CommandLimits(max_linear_speed=0.1, max_angular_speed=10.0)  # 5 mm per period
ORIGIN = Pose(np.zeros(3))


def chunk_along_x(*steps_m, sequence=1):
    actions = np.zeros((len(steps_m), 7))
    actions[:, 0], actions[:, 6] = steps_m, 0.5
    return ActionChunk(actions, SPEC, 0, 'open', 'fp32', 'flow', sequence=sequence, stage_s={})


class Ticks:
    """A follower of one chunk, asked at some rows; what it says is sent."""

    def __init__(self, chunk, start=ORIGIN, limits=WIDE, first_step_s=TICK_S):
        self.chunk, self.limits = chunk, limits
        self.follower = PoseFollower(first_step_s)
        self.follower.follow(pose_targets(chunk, start, limits))

    def __call__(self, row, now_ns=None, at=None):
        now_ns = row * PERIOD_NS if now_ns is None else now_ns
        step = self.follower.step(self.chunk, row, now_ns, at, self.limits)
        self.follower.sent(step, now_ns)
        return step


def x_of(*steps):
    return [step.pose.position[0] for step in steps]


def test_rows_that_come_in_time_are_sent_as_planned():
    tick = Ticks(chunk_along_x(0.01, 0.02, 0.03))
    steps = [tick(0, at=ORIGIN), tick(1), tick(2)]
    assert x_of(*steps) == pytest.approx([0.01, 0.03, 0.06])
    assert [step.row for step in steps] == [(1, 0), (1, 1), (1, 2)]
    assert {step.gripper for step in steps} == {0.5}
    assert [step.limited for step in steps] == [(), (), ()]


def test_nothing_counts_as_sent_before_it_was():
    tick = Ticks(chunk_along_x(0.01))
    step = tick.follower.step(tick.chunk, 0, 0, ORIGIN, WIDE)
    assert not tick.follower.has_sent
    tick.follower.sent(step, 0)
    assert tick.follower.has_sent


@pytest.mark.parametrize(
    ('first_step_s', 'way_m'),
    [(0.02, 0.002), (1.0, 0.005), (math.inf, 0.005)],
    ids=['a tick', 'at most a period', 'always a period'],
)
def test_the_first_step_leads_from_the_measured_pose_and_lasts_as_said(first_step_s, way_m):
    tick = Ticks(chunk_along_x(0.005, 0.005, 0.005), limits=SLOW, first_step_s=first_step_s)
    step = tick(2, at=Pose(np.array([-0.1, 0.0, 0.0])))
    assert x_of(step) == pytest.approx([-0.1 + way_m])
    assert step.limited == (LimitReason.LINEAR_SPEED,)


def test_a_row_that_was_skipped_is_made_up_for_at_the_speed_limit():
    tick = Ticks(chunk_along_x(0.005, 0.005, 0.005, 0.0, 0.0), limits=SLOW, first_step_s=1.0)
    steps = [tick(0, at=ORIGIN), tick(2), tick(3), tick(4)]
    assert x_of(*steps) == pytest.approx([0.005, 0.010, 0.015, 0.015])
    assert [bool(step.limited) for step in steps] == [False, True, False, False]


def test_a_gap_longer_than_a_period_earns_no_longer_step():
    tick = Ticks(chunk_along_x(0.005, 0.005, 0.005, 0.005), limits=SLOW, first_step_s=1.0)
    tick(0, at=ORIGIN)
    assert x_of(tick(3)) == pytest.approx([0.005 + 0.005])


def test_ticks_within_a_row_share_its_time():
    tick = Ticks(chunk_along_x(0.005, 0.005), limits=SLOW)
    at = Pose(np.array([-0.1, 0.0, 0.0]))
    steps = [tick(0, now_ns=0, at=at)] + [tick(0, now_ns=k * 20_000_000) for k in (1, 2)]
    assert np.diff(x_of(*steps)) == pytest.approx([0.002, 0.002])
    assert x_of(tick(0, now_ns=40_000_000)) == x_of(steps[-1])  # no time has passed


def test_an_increment_is_what_the_row_asks_for_and_not_the_shortened_way():
    """It begins at the row before; where there is none, at the arm."""
    tick = Ticks(chunk_along_x(0.005, 0.004, 0.003), limits=SLOW)
    far = Pose(np.array([-0.1, 0.0, 0.0]))
    late = tick(2, at=far)
    assert late.increment == pytest.approx([0.003, 0, 0, 0, 0, 0])
    first = Ticks(chunk_along_x(0.005, 0.004), limits=SLOW)(0, at=far)
    assert first.increment == pytest.approx([0.105, 0, 0, 0, 0, 0])


def test_the_rotation_of_an_increment_is_about_the_axes_of_the_tool():
    actions = np.zeros((2, 7))
    actions[0, 5], actions[1, 3] = math.pi / 2, 0.3  # about z, then about x of the base
    chunk = ActionChunk(actions, SPEC, 0, 'open', 'fp32', 'flow', sequence=1, stage_s={})
    tick = Ticks(chunk, limits=CommandLimits(10.0, 100.0))
    tick(0, at=ORIGIN)
    step = tick(1)
    before = so3_exp(np.array([0.0, 0.0, math.pi / 2]))
    about_base = so3_exp(np.array([0.3, 0.0, 0.0]))
    about_tool = quat_multiply(quat_conjugate(before), quat_multiply(about_base, before))
    np.testing.assert_allclose(so3_exp(step.increment[3:]), about_tool, atol=1e-12)
    np.testing.assert_allclose(step.increment[3:], [0.0, -0.3, 0.0], atol=1e-12)


def test_new_limits_plan_the_rows_that_are_left_from_the_last_target():
    tick = Ticks(chunk_along_x(0.01, 0.01, 0.01, 0.01), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick(1)
    tick.limits = SLOW
    tick.follower.limits_changed()
    steps = [tick(2), tick(3)]
    assert x_of(*steps) == pytest.approx([0.025, 0.030])
    assert [step.limited for step in steps] == [(LimitReason.LINEAR_SPEED,)] * 2
    assert [target.pose.position[0] for target in tick.follower.targets[2:]] == x_of(*steps)


def test_new_limits_do_not_send_a_row_twice():
    """The row that was sent counts as done: planned again it would be added on top."""
    tick = Ticks(chunk_along_x(0.01, 0.004, 0.004), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick.limits = SLOW
    tick.follower.limits_changed()
    assert x_of(tick(0, now_ns=10_000_000)) == pytest.approx([0.01])
    assert x_of(tick(1), tick(2)) == pytest.approx([0.014, 0.018])


def test_new_limits_plan_once():
    """A plan made again on every tick would take a row for sent that is only on its way."""
    tick = Ticks(chunk_along_x(0.01, 0.004, 0.004), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick.limits = SLOW
    tick.follower.limits_changed()
    steps = [tick(1, now_ns=k * 10_000_000) for k in (1, 2, 3, 4, 5)]
    assert x_of(*steps) == pytest.approx([0.011, 0.012, 0.013, 0.014, 0.014])


def test_the_first_increment_of_a_new_plan_begins_where_that_plan_does():
    tick = Ticks(chunk_along_x(0.01, 0.05, 0.004), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick.limits = SLOW
    tick.follower.limits_changed()
    assert tick(2).increment == pytest.approx([0.004, 0, 0, 0, 0, 0])


def test_after_a_stop_new_limits_plan_the_row_that_is_due_from_the_measured_pose():
    tick = Ticks(chunk_along_x(0.01, 0.004, 0.004), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick.limits = SLOW
    tick.follower.limits_changed()
    assert x_of(tick(1, at=Pose(np.array([0.2, 0.0, 0.0])))) == pytest.approx([0.204])


def test_the_same_row_of_another_chunk_was_not_sent():
    tick = Ticks(chunk_along_x(0.004, 0.004), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick.chunk = chunk_along_x(0.004, 0.004, sequence=2)
    tick.follower.follow(pose_targets(tick.chunk, ORIGIN, WIDE))
    tick.limits = SLOW
    tick.follower.limits_changed()
    assert x_of(tick(0, now_ns=PERIOD_NS)) == pytest.approx([0.008])


def test_limits_that_refuse_from_now_on_refuse_again_until_there_is_another_plan():
    strict = CommandLimits(0.1, 10.0, on_exceed='refuse')
    tick = Ticks(chunk_along_x(0.01, 0.01), first_step_s=1.0)
    tick(0, at=ORIGIN)
    tick.limits = strict
    tick.follower.limits_changed()
    for _ in range(2):
        with pytest.raises(RefusedCommandError, match='linear speed'):
            tick(1)
    tick.chunk = chunk_along_x(0.004, 0.004, sequence=2)
    tick.follower.follow(pose_targets(tick.chunk, ORIGIN, strict))
    assert x_of(tick(1)) == pytest.approx([0.01 - 0.002])


def test_a_plan_made_with_new_limits_is_not_made_again():
    tick = Ticks(chunk_along_x(0.01, 0.01))
    tick.follower.limits_changed()
    plan = pose_targets(tick.chunk, ORIGIN, WIDE)
    tick.follower.follow(plan)
    tick(0, at=Pose(np.array([0.5, 0.0, 0.0])))
    assert tick.follower.targets == tuple(plan)


def test_what_was_forgotten_is_no_start():
    tick = Ticks(chunk_along_x(0.01))
    tick(0, at=ORIGIN)
    tick.follower.forget()
    assert not tick.follower.has_sent
    assert tick.follower.targets == ()
