"""What the pictures are made of: places on the axis, levels by group, sizes of fans."""

import numpy as np
import pytest

from vlaq_ros.analysis.drift_job import DriftJob, check_job
from vlaq_ros.analysis.drift_measure import measure
from vlaq_ros.analysis.drift_paths import FACTORS, Fan, enlargement, fans
from vlaq_ros.analysis.drift_style import level_colours, text_colour
from vlaq_ros.analysis.drift_timeline import TimeAxis, transitions
from vlaq_ros.analysis.recorded_levels import group_levels, level_rank, shares

S = 10**9


@pytest.fixture(scope='module')
def run(toy_run):
    return measure(check_job(DriftJob(toy_run.path, 'toy')))


def test_fans_begin_at_the_measured_pose_and_add_up_increments(run, toy_run):
    found = fans(run, episode=1)
    assert len(found) == 4
    for fan, chunk, step in zip(found, toy_run.chunks[4:], (0, 6, 12, 18)):
        np.testing.assert_allclose(fan.quantized[0], (0.001 * step, 0.6, 0.2))
        expected = fan.quantized[0] + np.cumsum(chunk.actions[:6, :3], axis=0)
        np.testing.assert_allclose(fan.quantized[1:], expected)
        np.testing.assert_array_equal(fan.quantized[0], fan.reference[0])


def fan_of(distance_m):
    ends = np.zeros((2, 3)), np.array([[0.0, 0.0, 0.0], [distance_m, 0.0, 0.0]])
    return Fan(*ends)


@pytest.mark.parametrize('distance_m', [1e-5, 1e-4, 3e-3, 0.02])
def test_the_farthest_end_is_drawn_visibly_but_not_far_away(distance_m):
    factor = enlargement([fan_of(1e-9), fan_of(distance_m)], extent_m=0.3)
    assert factor in FACTORS
    assert factor * distance_m <= 0.045
    bigger = [f for f in FACTORS if f > factor]
    assert not bigger or bigger[0] * distance_m > 0.045


def test_nothing_is_enlarged_that_is_the_same_or_far_apart_already():
    assert enlargement([fan_of(0.0)], 0.3) == 1
    assert enlargement([], 0.3) == 1
    assert enlargement([fan_of(0.2)], 0.3) == 1


def test_pauses_between_episodes_are_shortened_and_time_within_them_is_not(run):
    axis = TimeAxis.of(run)
    assert axis(1 * S, 0) == 0.0
    assert axis(1 * S + S // 10, 0) == pytest.approx(0.1)
    # 450 ms of chunks and 150 ms to execute the last; the pause of 400 ms is as it was
    assert axis(2 * S, 1) == pytest.approx(1.0)
    assert axis.end_s == pytest.approx(1.6)
    assert [axis.episode_at(at) for at in (0, 1 * S, 1_700_000_000, 2 * S)] == [None, 0, None, 1]


@pytest.mark.parametrize(
    ('openings', 'expected'),
    [
        ([1.0, 1.0, 0.0, 0.0, 1.0], [2, 4]),
        ([0.5, 0.52, 0.47, 0.55], []),
        ([0.5, 0.2], [1]),
        ([0.2, 0.5, 0.2], []),
        ([], []),
    ],
)
def test_a_gripper_that_hovers_around_the_middle_does_not_move(openings, expected):
    assert transitions(np.array(openings)) == expected


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('nested', {'expert': 'w8a16', 'llm': 'w8a16'}),
        ('w4a8', {'expert': 'w4a8', 'llm': 'w4a8'}),
        ('w4', {'expert': 'w4a16', 'llm': 'w4a16'}),
        ('expert w8a16, llm w4a8', {'expert': 'w8a16', 'llm': 'w4a8'}),
        ('fp32', {'expert': 'fp32', 'llm': 'fp32'}),
        ('packed', {'expert': 'packed', 'llm': 'packed'}),
    ],
)
def test_levels_are_read_from_the_name_of_a_precision(name, expected):
    assert group_levels(name) == expected


def test_shares_add_up_and_rise_with_the_level():
    found = shares([group_levels(name) for name in ('w8a8', 'w4a8', 'w8a8', 'fp32')])
    assert found['llm'] == {'w4a8': 0.25, 'w8a8': 0.5, 'fp32': 0.25}
    assert list(found['llm']) == ['w4a8', 'w8a8', 'fp32']


def test_levels_have_colours_of_their_own_that_can_be_written_on():
    names = ['w8a16', 'fp32', 'w4a8', 'w8a8', 'w4a4', 'packed']
    colours = level_colours(names)
    assert list(colours) == sorted(names, key=level_rank)
    assert len(set(colours.values())) == len(names)
    darkness = [sum(int(colours[n][i : i + 2], 16) for i in (1, 3, 5)) for n in list(colours)[:4]]
    assert darkness == sorted(darkness, reverse=True)
    assert text_colour(colours['w8a16']) == 'white'
    assert text_colour(colours['w4a4']) == 'black'
