"""Which images and which state a recorded chunk was inferred from."""

import numpy as np
import pytest

from vlaq_ros.analysis.chunk_observations import Asked, ChunkObservations
from vlaq_ros.data.bag_streams import StreamLayout
from vlaq_ros.data.bags import Bag

MS = 1_000_000
LAYOUT = StreamLayout({'front': (8, 6), 'wrist': (4, 4)})


@pytest.fixture
def arm(recorded_arm, tmp_path):
    """An arm whose cameras are 30 ms late and have stamps of their own."""
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        events = []
        for stamp_ms in range(900, 1200, 10):
            events.append((stamp_ms + 1.0, 'state', stamp_ms))
        for stamp_ms in range(900, 1200, 40):
            events.append((stamp_ms + 30.0, 'front', stamp_ms))
        for stamp_ms in range(913, 1200, 25):
            events.append((stamp_ms + 30.0, 'wrist', stamp_ms))
        for log_ms, kind, stamp_ms in sorted(events):
            if kind == 'state':
                arm.pose(stamp_ms, (stamp_ms, 0.0, 0.0), log_ms=log_ms)
                arm.joints(stamp_ms, log_ms=log_ms)
            else:
                arm.image(kind, stamp_ms, log_ms=log_ms)
    return arm


def look(arm, *asked):
    reader = ChunkObservations(Bag(arm.path), LAYOUT)
    wanted = [
        Asked(n, round(at * MS), round(began * MS), 'go') for n, (at, began) in enumerate(asked)
    ]
    found = reader.find(wanted)
    return found, {one.asked.number: seen for one, seen in reader.load(found)}


@pytest.mark.parametrize(('began_ms', 'wrist_ms'), [(1052, 1013), (1067, 1013), (1069, 1038)])
def test_the_other_camera_counts_as_it_had_arrived_when_the_inference_began(
    arm, began_ms, wrist_ms
):
    """The image of 1020 arrives at 1050, those of the wrist at 1043 and 1068."""
    (found,), seen = look(arm, (1020, began_ms))
    assert found.image_ns == {'front': 1020 * MS, 'wrist': wrist_ms * MS}
    assert not found.is_alike
    assert (seen[0].images['wrist'] == wrist_ms % 251).all()
    assert (seen[0].images['front'] == 1020 % 251).all()


def test_the_state_is_that_at_the_stamp_of_the_first_camera(arm):
    _, seen = look(arm, (1020, 1060))
    np.testing.assert_allclose(seen[0].state, [1020.0, 0.0, 0.0, 0.4])
    assert (seen[0].observed_ns, seen[0].instruction) == (1020 * MS, 'go')


def test_an_image_of_the_first_camera_that_came_later_never_counts(arm):
    """However long the recorder took: the chunk names the image it answers."""
    (found,), _ = look(arm, (1020, 1190))
    assert found.image_ns['front'] == 1020 * MS
    assert found.image_ns['wrist'] == 1038 * MS  # the next image of the front arrived at 1090


def test_several_chunks_are_found_in_one_pass_whatever_their_order(arm):
    found, seen = look(arm, (1100, 1140), (980, 1015), (1020, 1055))
    assert [one.image_ns['front'] // MS for one in found] == [1100, 980, 1020]
    assert [seen[n].observed_ns // MS for n in range(3)] == [1100, 980, 1020]


def test_two_chunks_about_one_observation_both_have_it(arm):
    found, seen = look(arm, (1020, 1055), (1020, 1069))
    assert [one.image_ns['wrist'] // MS for one in found] == [1013, 1038]
    assert set(seen) == {0, 1}


def test_a_stamp_that_no_image_has_is_said(arm):
    found, seen = look(arm, (1021, 1055), (1020, 1055))
    assert 'front: no image with the stamp of the chunk in the bag' in found[0].problem
    assert seen[0] == found[0].problem
    assert not found[1].problem


def test_inputs_of_one_stamp_are_exact(recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'run') as lockstep:
        for stamp_ms in range(1000, 1200, 25):
            lockstep.sense(stamp_ms)
    found, _ = look(lockstep, (1050, 1040), (1100, 1200))
    assert [one.is_alike for one in found] == [True, True]


def test_a_clock_that_jumps_is_refused(recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'run') as looped:
        for log_ms, stamp_ms in enumerate([*range(1000, 3000, 50), *range(1000, 3000, 50)]):
            for camera in ('front', 'wrist'):
                looped.image(camera, stamp_ms, log_ms=50 * log_ms)
            looped.pose(stamp_ms, log_ms=50 * log_ms)
            looped.joints(stamp_ms, log_ms=50 * log_ms)
    with pytest.raises(Exception, match='the clock of bag .run. jumps'):
        look(looped, (2950, 99999))
