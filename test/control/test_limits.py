"""What passes is within the limits; what is changed or refused says why."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaq_ros.control.commands import HOLD
from vlaq_ros.control.limits import (
    CommandLimits,
    LimitReason,
    RefusedCommandError,
    require_finite,
)
from vlaq_ros.errors import ConfigError, UnsafeActionError
from vlaq_ros.types import ActionChunk, ActionSpec, EndEffectorCommand, Pose

PERIOD_S = 0.05
LOW, HIGH = (-0.5, 0.3, 0.05), (0.5, 0.9, 0.5)
LIMITS = CommandLimits(0.4, 1.2, LOW, HIGH, max_linear_step=0.015)
REFUSING = dataclasses.replace(LIMITS, on_exceed='refuse')
CENTRE = Pose([0.0, 0.6, 0.2])
HALF_TURN_Z = np.array([0.0, 0.0, 1.0, 0.0])
QUARTER_TURN_Z = np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)])

LAW = settings(derandomize=True, database=None, deadline=None, max_examples=100)
anything = st.floats(allow_nan=False, allow_infinity=False, width=64)
quats = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(
    lambda quat: np.linalg.norm(quat) > 0.1
)
commands = st.builds(
    EndEffectorCommand,
    st.lists(st.one_of(anything, st.floats(-1, 1)), min_size=6, max_size=6),
    st.one_of(st.none(), anything),
    st.sampled_from(['base', 'tool']),
)
poses_inside = st.builds(
    lambda share, quat: Pose(
        np.add(LOW, np.multiply(share, np.subtract(HIGH, LOW))), quat / np.linalg.norm(quat)
    ),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    quats,
)


def move(*linear, angular=(0, 0, 0), gripper=None, frame='base'):
    """Return a command with this linear velocity."""
    return EndEffectorCommand([*linear, *angular], gripper, frame)


def in_base(command, pose):
    """Return the linear velocity in the base frame, by the sandwich product with a quaternion."""
    linear = command.twist[:3]
    if command.frame == 'base':
        return linear
    axis, w = pose.quat_xyzw[:3], pose.quat_xyzw[3]
    return linear + 2 * np.cross(axis, np.cross(axis, linear) + w * linear)


def assert_untouched(limits, command, pose, period_s=PERIOD_S):
    """Check that the command comes back as it is, without a note."""
    checked, notes = limits.check(command, pose, period_s)
    assert checked is command
    assert notes == ()


@pytest.mark.parametrize('limits', [LIMITS, REFUSING], ids=['clamp', 'refuse'])
@pytest.mark.parametrize('frame', ['base', 'tool'])
def test_a_command_within_all_limits_comes_back_as_it_is(limits, frame):
    command = move(0.1, -0.2, 0.05, angular=(0.5, 0.5, 0.5), gripper=0.3, frame=frame)
    assert_untouched(limits, command, CENTRE)


@pytest.mark.parametrize('limits', [LIMITS, REFUSING], ids=['clamp', 'refuse'])
def test_a_command_at_the_limit_is_within_it(limits):
    command = move(0.3, 0, 0, angular=(0, 1.2, 0), gripper=1.0)
    assert_untouched(limits, command, CENTRE)


@LAW
@given(command=commands, pose=poses_inside)
def test_whatever_is_asked_for_what_is_sent_is_within_all_limits(command, pose):
    sent, _ = LIMITS.check(command, pose, PERIOD_S)
    assert np.isfinite(sent.twist).all()
    velocity = in_base(sent, pose)
    assert np.linalg.norm(velocity) <= min(0.4, 0.015 / PERIOD_S) * (1 + 1e-6)
    assert np.linalg.norm(sent.twist[3:]) <= 1.2 * (1 + 1e-6)
    target = pose.position + velocity * PERIOD_S
    assert (target >= np.array(LOW) - 1e-9).all()
    assert (target <= np.array(HIGH) + 1e-9).all()
    assert sent.gripper is None or 0 <= sent.gripper <= 1
    assert sent.frame == command.frame


@LAW
@given(command=commands, pose=poses_inside)
def test_a_clamped_command_passes_the_same_check_again(command, pose):
    sent, _ = LIMITS.check(command, pose, PERIOD_S)
    assert_untouched(LIMITS, sent, pose)


@LAW
@given(command=commands, pose=poses_inside)
def test_refusing_and_clamping_name_the_same_reasons(command, pose):
    _, notes = LIMITS.check(command, pose, PERIOD_S)
    if not notes:
        assert_untouched(REFUSING, command, pose)
        return
    with pytest.raises(RefusedCommandError) as caught:
        REFUSING.check(command, pose, PERIOD_S)
    assert caught.value.reasons == notes


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize('place', range(7), ids=['x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper'])
def test_a_command_that_is_not_finite_is_refused_even_when_clamping(place, value):
    numbers = np.zeros(7)
    numbers[place] = value
    command = EndEffectorCommand(numbers[:6], numbers[6])
    with pytest.raises(RefusedCommandError, match='is not finite') as caught:
        LIMITS.check(command, CENTRE, PERIOD_S)
    assert caught.value.reasons == (LimitReason.NOT_FINITE,)


def test_a_refusal_is_an_unsafe_action():
    assert issubclass(RefusedCommandError, UnsafeActionError)


@pytest.mark.parametrize('size', [1.0, 1e200], ids=['fast', 'absurd'])
def test_linear_speed_is_scaled_down_and_keeps_its_direction(size):
    limits = CommandLimits(0.5, 1.0)
    sent, notes = limits.check(move(3 * size, 0, -4 * size, angular=(0, 0.9, 0)), None, PERIOD_S)
    np.testing.assert_allclose(sent.twist, [0.3, 0, -0.4, 0, 0.9, 0])
    assert notes == (LimitReason.LINEAR_SPEED,)


def test_angular_speed_is_scaled_down_and_keeps_its_axis():
    limits = CommandLimits(0.5, 1.0)
    sent, notes = limits.check(move(0.5, 0, 0, angular=(0, 6, 8)), None, PERIOD_S)
    np.testing.assert_allclose(sent.twist, [0.5, 0, 0, 0, 0.6, 0.8])
    assert notes == (LimitReason.ANGULAR_SPEED,)


def test_a_step_is_shortened_by_the_period_it_lasts():
    limits = CommandLimits(0.5, 1.0, max_linear_step=0.01)
    command = move(0, 0.25, 0)
    assert_untouched(limits, command, None, period_s=0.04)
    sent, notes = limits.check(command, None, 0.1)
    np.testing.assert_allclose(sent.twist, [0, 0.1, 0, 0, 0, 0])
    assert notes == (LimitReason.LINEAR_STEP,)


@pytest.mark.parametrize(
    ('asked', 'expected'), [(1.25, 1.0), (-0.25, 0.0)], ids=['too open', 'too closed']
)
def test_the_gripper_is_kept_in_its_range(asked, expected):
    sent, notes = LIMITS.check(move(0, 0, 0, gripper=asked), CENTRE, PERIOD_S)
    assert sent.gripper == expected
    assert notes == (LimitReason.GRIPPER,)


def test_only_the_outward_part_of_a_motion_is_stopped():
    at_the_wall = Pose([HIGH[0], 0.6, 0.2])
    sent, notes = LIMITS.check(move(0.1, 0.1, -0.1), at_the_wall, PERIOD_S)
    np.testing.assert_allclose(sent.twist[:3], [0, 0.1, -0.1], atol=1e-12)
    assert notes == (LimitReason.WORKSPACE,)


def test_a_motion_towards_the_wall_ends_at_the_wall():
    near_the_floor = Pose([0.0, 0.6, LOW[2] + 0.002])
    sent, _ = LIMITS.check(move(0, 0, -0.2), near_the_floor, PERIOD_S)
    np.testing.assert_allclose(sent.twist[:3], [0, 0, -0.002 / PERIOD_S])


@pytest.mark.parametrize('axis', range(3), ids='xyz')
@pytest.mark.parametrize('side', [-1, 1], ids=['below', 'above'])
def test_from_outside_the_way_back_is_free_and_the_way_out_is_closed(axis, side):
    position = np.array(CENTRE.position)
    position[axis] = (LOW if side < 0 else HIGH)[axis] + side * 0.2
    velocity = np.zeros(3)
    velocity[axis] = -side * 0.1
    back = move(*velocity)
    assert_untouched(LIMITS, back, Pose(position))
    sent, notes = LIMITS.check(move(*-velocity), Pose(position), PERIOD_S)
    np.testing.assert_allclose(sent.twist, np.zeros(6), atol=1e-12)
    assert notes == (LimitReason.WORKSPACE,)


@pytest.mark.parametrize(
    ('quat', 'outward'),
    [(HALF_TURN_Z, (-0.1, 0, 0)), (QUARTER_TURN_Z, (0, -0.1, 0))],
    ids=['half turn', 'quarter turn'],
)
def test_a_tool_frame_motion_is_judged_by_where_it_leads_in_the_base_frame(quat, outward):
    at_the_wall = Pose([HIGH[0], 0.6, 0.2], quat)
    with pytest.raises(RefusedCommandError, match=r'x=0\.5050 m not within -0\.5 to 0\.5 m'):
        REFUSING.check(move(*outward, frame='tool'), at_the_wall, PERIOD_S)
    inward = move(*np.negative(outward), frame='tool')
    assert_untouched(REFUSING, inward, at_the_wall)


def test_a_quaternion_that_was_rounded_does_not_stretch_the_motion():
    rounded = Pose([HIGH[0] - 0.004, 0.6, 0.2], 1.005 * QUARTER_TURN_Z)
    sent, notes = LIMITS.check(move(0.1, -0.1, 0, frame='tool'), rounded, PERIOD_S)
    np.testing.assert_allclose(sent.twist[:3], [0.1, -0.08, 0], atol=1e-12)
    assert notes == (LimitReason.WORKSPACE,)


@pytest.mark.parametrize(
    'pose',
    [
        None,
        Pose([np.nan, 0.6, 0.2]),
        Pose([0.0, 0.6, 0.2], np.zeros(4)),
        Pose([0.0, 0.6, 0.2], np.full(4, np.nan)),
        Pose([0.0, 0.6, 0.2], [0, 0, 0, 2]),
    ],
    ids=['missing', 'position is NaN', 'zero quaternion', 'NaN quaternion', 'long quaternion'],
)
def test_motion_is_refused_when_the_pose_is_unknown(pose):
    with pytest.raises(RefusedCommandError, match='the pose of the end effector is') as caught:
        LIMITS.check(move(0.1, 0, 0), pose, PERIOD_S)
    assert caught.value.reasons == (LimitReason.UNKNOWN_POSE,)


def test_hold_always_passes():
    assert_untouched(LIMITS, HOLD, None)


def test_without_a_workspace_no_pose_is_needed():
    command = move(0.1, 0, 0, frame='tool')
    assert_untouched(CommandLimits(0.5, 1.0), command, None)


def test_a_refusal_lists_every_reason_with_its_value_and_limit():
    command = move(9, 0, 0, angular=(0, 0, 5), gripper=2.0)
    with pytest.raises(RefusedCommandError) as caught:
        REFUSING.check(command, Pose([HIGH[0], 0.6, 0.2]), PERIOD_S)
    assert caught.value.reasons == (
        LimitReason.LINEAR_SPEED,
        LimitReason.LINEAR_STEP,
        LimitReason.ANGULAR_SPEED,
        LimitReason.WORKSPACE,
        LimitReason.GRIPPER,
    )
    assert str(caught.value) == (
        'command refused: linear speed 9 m/s is above 0.4 m/s; linear step 0.02 m is above '
        '0.015 m; angular speed 5 rad/s is above 1.2 rad/s; it leads out of the workspace: '
        'x=0.5150 m not within -0.5 to 0.5 m; gripper 2 is outside 0 (closed) to 1 (open)'
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'max_linear_speed': 0.0}, 'max_linear_speed=0.0 must be positive'),
        ({'max_angular_speed': float('nan')}, 'max_angular_speed=nan must be positive'),
        ({'max_linear_step': -1.0}, 'max_linear_step=-1.0 must be positive'),
        ({'on_exceed': 'warn'}, "on_exceed='warn' must be 'clamp' or 'refuse'"),
        ({'workspace_high': None}, 'must both have 3 values'),
        ({'workspace_low': (0.0, 0.0)}, 'must both have 3 values'),
        ({'workspace_low': (0.5, 0.3, 0.05)}, 'below workspace_high'),
        ({'workspace_low': (-np.inf, 0.3, 0.05)}, 'must be finite'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_limits_that_mean_nothing_cannot_be_built(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(LIMITS, **change)


def test_all_problems_of_the_limits_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        CommandLimits(-1.0, -1.0, on_exceed='?')
    for name in ('max_linear_speed', 'max_angular_speed', 'on_exceed'):
        assert name in str(caught.value)


@pytest.mark.parametrize('period_s', [0.0, -0.1, float('nan'), float('inf')], ids=str)
def test_a_period_that_is_not_positive_is_a_programming_error(period_s):
    with pytest.raises(ValueError, match='period_s must be positive'):
        LIMITS.check(HOLD, CENTRE, period_s)


def test_reasons_print_as_their_published_name():
    assert f'{LimitReason.LINEAR_SPEED}' == 'linear_speed'


def chunk_of(rows):
    spec = ActionSpec(('ee_x', 'gripper'), ('m', '1'), 'base', True, 50_000_000, (-1, 0), (1, 1))
    return ActionChunk(np.array(rows), spec, 0, 'open', 'fp32', 'flow', sequence=7, stage_s={})


def test_a_chunk_is_refused_with_every_row_that_is_not_finite():
    rows = [[0.0, 0.0], [np.nan, 0.0], [0.1, 1.0], [0.0, -np.inf]]
    with pytest.raises(RefusedCommandError, match=r'chunk 7 .* in rows \[1, 3\]$') as caught:
        require_finite(chunk_of(rows))
    assert caught.value.reasons == (LimitReason.NOT_FINITE,)


def test_a_chunk_of_numbers_passes_however_large():
    require_finite(chunk_of([[1e300, 5.0], [-1e300, 0.0]]))
