"""Which commands the simulated arm follows, and why others are refused."""

import numpy as np
import pytest

from vlaq_ros.errors import MissingDependencyError

pytest.importorskip('vlaq_ros.sim.engine', exc_type=MissingDependencyError)

from vlaq_ros.sim.command_intake import CommandIntake, Refusal

NOW = 5_000_000_000
TWIST = np.array([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
TIMEOUT = 100_000_000


@pytest.fixture
def lockstep():
    """Return an intake that wants exact stamps, in a running episode."""
    intake = CommandIntake('base', None)
    intake.start(NOW)
    return intake


@pytest.fixture
def free():
    """Return an intake with a command time-out, one second into an episode."""
    intake = CommandIntake('base', TIMEOUT)
    intake.start(NOW - 1_000_000_000)
    return intake


def test_a_step_needs_a_motion_and_a_gripper_command_of_now(lockstep):
    assert not lockstep.is_complete(NOW)
    assert lockstep.put_twist(TWIST, 'base', NOW, NOW) is None
    assert not lockstep.is_complete(NOW)
    assert lockstep.put_gripper(0.3, NOW, NOW) is None
    assert lockstep.is_complete(NOW)
    assert not lockstep.is_complete(NOW + 1)
    assert lockstep.gripper() == 0.3
    np.testing.assert_array_equal(lockstep.motion(NOW).twist, TWIST)


def test_a_target_is_a_motion_too(lockstep):
    lockstep.put_twist(TWIST, 'base', NOW, NOW)
    lockstep.put_target(np.array([0.1, 0.6, 0.2]), 'base', NOW, NOW)
    motion = lockstep.motion(NOW)
    assert motion.twist is None
    assert motion.target.tolist() == [0.1, 0.6, 0.2]


@pytest.mark.parametrize(
    ('values', 'frame', 'stamp', 'reason'),
    [
        (TWIST * np.nan, 'base', NOW, Refusal.NOT_FINITE),
        (np.r_[np.inf, TWIST[1:]], 'base', NOW, Refusal.NOT_FINITE),
        (TWIST, 'tool0', NOW, Refusal.WRONG_FRAME),
        (TWIST, '', NOW, Refusal.WRONG_FRAME),
        (TWIST, 'base', NOW + 1, Refusal.FROM_THE_FUTURE),
        (TWIST, 'base', NOW - 1, Refusal.TOO_OLD),
    ],
    ids=['nan', 'inf', 'other frame', 'no frame', 'future', 'old'],
)
def test_a_bad_motion_is_refused_and_counted(lockstep, values, frame, stamp, reason):
    assert lockstep.put_twist(values, frame, stamp, NOW) is reason
    assert lockstep.motion(NOW) is None
    assert lockstep.refused == {reason: 1}
    assert lockstep.last_refusal.startswith('twist ')


@pytest.mark.parametrize('opening', [-0.01, 1.01])
def test_a_gripper_opening_outside_zero_to_one_is_refused(lockstep, opening):
    assert lockstep.put_gripper(opening, NOW, NOW) is Refusal.OUT_OF_RANGE
    assert lockstep.gripper() is None


def test_a_motion_ends_when_it_is_older_than_the_timeout(free):
    free.put_twist(TWIST, 'base', NOW, NOW)
    assert free.motion(NOW + TIMEOUT) is not None
    assert free.motion(NOW + TIMEOUT + 1) is None


def test_the_gripper_keeps_its_opening_when_the_motion_has_ended(free):
    free.put_gripper(0.2, NOW, NOW)
    assert free.gripper() == 0.2


def test_a_late_command_is_refused_when_it_would_end_at_once(free):
    assert free.put_twist(TWIST, 'base', NOW - TIMEOUT - 1, NOW) is Refusal.TOO_OLD
    assert free.put_twist(TWIST, 'base', NOW - TIMEOUT, NOW) is None


def test_a_command_from_before_the_reset_is_refused(free):
    free.start(NOW)
    assert free.put_twist(TWIST, 'base', NOW - 1, NOW) is Refusal.TOO_OLD


def test_a_new_episode_forgets_the_commands_of_the_last(free):
    free.put_twist(TWIST, 'base', NOW, NOW)
    free.put_gripper(0.2, NOW, NOW)
    free.start(NOW)
    assert free.motion(NOW) is None
    assert free.gripper() is None


def test_nothing_is_accepted_between_episodes(free):
    free.stop()
    assert free.put_twist(TWIST, 'base', NOW, NOW) is Refusal.NO_EPISODE
