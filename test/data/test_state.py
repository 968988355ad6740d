"""The values of one state were true together, whatever the rates and delays of their topics."""

import numpy as np
import pytest

from vlaq_ros.data.state import StateMerger

MS = 1_000_000


@pytest.fixture
def merger():
    return StateMerger(('ee_pose.x', 'joint.gripper'), (1.0, 10.0), keep_ns=500 * MS)


def pose(merger, stamp_ms, x):
    return merger.put('ee_pose', {'ee_pose.x': x}, stamp_ms * MS)


def joints(merger, stamp_ms, gripper):
    return merger.put('joint_states', {'joint.gripper': gripper}, stamp_ms * MS)


def test_a_late_pose_meets_the_joints_of_its_own_time(merger):
    for stamp_ms in range(100, 121, 5):
        assert joints(merger, stamp_ms, stamp_ms / 1e3) is None  # no pose yet
    stamp_ns, state = pose(merger, 112, 7.0)
    np.testing.assert_allclose(state, [7.0, 1.10])  # the joints at 110 ms, not those at 120 ms
    assert stamp_ns == 110 * MS


def test_a_pose_from_before_the_first_joints_makes_no_state(merger):
    joints(merger, 100, 0.1)
    assert pose(merger, 90, 7.0) is None
    stamp_ns, state = pose(merger, 100, 8.0)
    assert (stamp_ns, state.tolist()) == (100 * MS, [8.0, 1.0])


def test_a_topic_that_the_state_does_not_need_is_ignored():
    merger = StateMerger(('ee_pose.x',), (1.0,), keep_ns=500 * MS)
    assert merger.topics == ('ee_pose',)
    assert joints(merger, 100, 0.1) is None
    assert pose(merger, 100, 2.0).value.tolist() == [2.0]


def test_after_the_clock_was_set_back_both_topics_are_waited_for(merger):
    joints(merger, 500, 0.1)
    pose(merger, 500, 1.0)
    merger.forget(100 * MS)
    assert joints(merger, 110, 0.2) is None
    assert pose(merger, 110, 2.0).stamp_ns == 110 * MS
    merger.clear()
    assert merger.newest_ns() == {'ee_pose': None, 'joint_states': None}
