"""What a decision about precision hears of the commands since the last one."""

import numpy as np
import pytest

from vlaq_ros.control.precision import SafetyEvent
from vlaq_ros.kinematics.motion import MotionOptions, MotionScale
from vlaq_ros.ros.commanded_motion import CommandedMotion

SCALE = MotionScale(translation_m=0.01, rotation_rad=None)
FULL = MotionOptions().fineness_window


@pytest.fixture
def motion():
    return CommandedMotion(SCALE)


def move(motion, steps, length_m=0.004, first=0, gripper=None, resumed=False):
    """Command so many rows along x, from row `first` of chunk 1 on."""
    for row in range(first, first + steps):
        increment = np.array([length_m, 0.0, 0.0, 0.0, 0.0, 0.0])
        motion.executed(increment, gripper, (1, row), resumed=resumed)


def test_every_row_has_one_sensitivity_once_the_window_is_full(motion):
    move(motion, FULL + 1)
    none, values = [None] * (FULL - 1), [0.6, 0.6]  # 1 - 4 mm / 10 mm
    assert motion.take().sensitivities[: FULL - 1] == tuple(none)
    move(motion, 2, first=FULL + 1)
    assert motion.take().sensitivities == pytest.approx(values)


def test_what_was_taken_is_not_heard_again(motion):
    move(motion, 2)
    motion.stopped()
    assert motion.take() == ((None, None), {SafetyEvent.STOP_RECOVERY})
    assert motion.take() == ((), frozenset())


def test_a_row_that_is_sent_again_counts_once(motion):
    for _ in range(3):
        move(motion, 1, first=4)
    assert motion.take().sensitivities == (None,)
    move(motion, 1, first=4)
    assert motion.take().sensitivities == ()
    motion.executed(np.zeros(6), None, (2, 4), resumed=False)  # the same row of another chunk
    assert motion.take().sensitivities == (None,)


def test_a_row_that_is_sent_again_after_a_stop_still_recovers_from_it(motion):
    move(motion, 1)
    motion.take()
    move(motion, 1, resumed=True)
    assert motion.take() == ((), {SafetyEvent.STOP_RECOVERY})


def test_a_gripper_transition_is_an_event_and_the_first_command_is_none(motion):
    move(motion, 1, gripper=0.0)
    assert motion.take().events == frozenset()
    move(motion, 1, first=1, gripper=1.0)
    assert motion.take().events == {SafetyEvent.GRIPPER}


def test_the_phase_is_that_of_the_motion_before_the_decision(motion):
    assert motion.phase == 'fine'
    move(motion, FULL, length_m=0.008)
    assert motion.phase == 'fine'  # nobody has decided since
    motion.take()
    assert motion.phase == 'coarse'
    move(motion, 1, first=FULL, length_m=0.008, gripper=0.0)
    move(motion, 1, first=FULL + 1, length_m=0.008, gripper=1.0)
    motion.take()
    assert motion.phase == 'gripper'
    motion.take()
    assert motion.phase == 'coarse'


def test_a_new_episode_forgets_the_motion_but_not_that_the_arm_was_stopped(motion):
    move(motion, FULL, length_m=0.008, gripper=0.0)
    motion.take()
    move(motion, 1, first=FULL, gripper=1.0)
    motion.stopped()
    motion.new_epoch()
    assert motion.phase == 'fine'
    move(motion, 1, first=FULL, gripper=0.0)  # neither a row sent again nor a transition
    assert motion.take() == ((None,), {SafetyEvent.STOP_RECOVERY})


def test_a_new_scale_begins_with_empty_windows_and_keeps_what_was_heard(motion):
    move(motion, FULL)
    motion.rescale(MotionScale(translation_m=0.02, rotation_rad=None))
    move(motion, FULL, first=FULL)
    heard = motion.take().sensitivities
    assert len(heard) == 2 * FULL
    assert heard[FULL - 1] == pytest.approx(0.6)
    assert heard[FULL : 2 * FULL - 1] == (None,) * (FULL - 1)
    assert heard[-1] == pytest.approx(0.8)
