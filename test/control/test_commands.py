"""An increment per step becomes the twist that covers it in one period."""

import numpy as np
import pytest

from vlaq_ros.control.commands import HOLD, to_command
from vlaq_ros.errors import ConfigError
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec

ALL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)


def make_spec(names=ALL_NAMES, frame='base', delta=True, period_ns=25_000_000):
    """Return a spec of these dimensions; units and bounds play no role here."""
    size = len(names)
    return ActionSpec(names, ('1',) * size, frame, delta, period_ns, (-1,) * size, (1,) * size)


def test_the_twist_covers_the_increment_in_one_period():
    action = np.array([0.01, -0.02, 0.03, 0.1, -0.2, 0.3, 0.5])
    command = to_command(action, make_spec(period_ns=50_000_000))
    np.testing.assert_allclose(command.twist, [0.2, -0.4, 0.6, 2.0, -4.0, 6.0])
    assert command.gripper == 0.5


def test_dimensions_the_policy_does_not_command_are_at_rest():
    command = to_command(np.array([0.1, 0.01]), make_spec(names=('ee_rz', 'ee_y')))
    np.testing.assert_allclose(command.twist, [0, 0.4, 0, 0, 0, 4.0])
    assert command.gripper is None


def test_columns_are_found_by_name_and_not_by_place():
    shuffled = tuple(reversed(ALL_NAMES))
    action = np.arange(1.0, 8.0)
    command = to_command(action, make_spec())
    again = to_command(action[::-1], make_spec(names=shuffled))
    np.testing.assert_array_equal(again.twist, command.twist)
    assert again.gripper == command.gripper == 7.0


@pytest.mark.parametrize('frame', ['base', 'tool'])
def test_the_command_is_expressed_in_the_frame_of_the_policy(frame):
    assert to_command(np.zeros(7), make_spec(frame=frame)).frame == frame


def test_a_non_finite_action_is_passed_on_for_the_limits_to_refuse():
    action = np.array([np.nan, 0, 0, 0, 0, 0, np.inf])
    command = to_command(action, make_spec())
    assert np.isnan(command.twist[0])
    assert command.gripper == np.inf


def test_absolute_actions_are_not_taken_for_velocities():
    with pytest.raises(ConfigError, match='absolute .* cannot be sent as a twist: choose'):
        to_command(np.zeros(7), make_spec(delta=False))


def test_an_action_of_another_size_is_a_programming_error():
    with pytest.raises(ValueError, match=r'action must be \[7\], got \[6\]'):
        to_command(np.zeros(6), make_spec())


def test_hold_stands_still_and_keeps_the_gripper():
    assert not HOLD.twist.any()
    assert HOLD.gripper is None
