"""Drift of streams of chunks: one definition for a window, an episode and an evaluation."""

import math

import numpy as np
import pytest

from vlaq_ros.kinematics.drift import DriftWindow, integrate, open_loop_drift, stream_drift
from vlaq_ros.kinematics.lie import angle_between
from vlaq_ros.kinematics.smoothness import mean_squared_jerk, spectral_arc_length
from vlaq_ros.types import GRIPPER_NAME, POSITION_NAMES, ROTATION_NAMES, ActionSpec

ALL_NAMES = (*POSITION_NAMES, *ROTATION_NAMES, GRIPPER_NAME)
PERIOD_NS = 50_000_000
SECOND = 1_000_000_000
RNG = np.random.default_rng(11)


def make_spec(names=ALL_NAMES, delta=True, frame='base'):
    size = len(names)
    return ActionSpec(names, ('1',) * size, frame, delta, PERIOD_NS, (-1,) * size, (1,) * size)


def make_chunks(count=6, rows=4, dim=7):
    """Return chunks of about 1 cm and 10 mrad with errors of a tenth of it."""
    return [
        (reference + RNG.normal(size=(rows, dim)) * 1e-3, reference)
        for reference in RNG.normal(size=(count, rows, dim)) * 1e-2
    ]


def test_a_bias_per_step_adds_up_inside_chunks_and_over_the_whole_stream():
    bias = np.zeros(7)
    bias[1] = 0.002
    chunks = [(reference + bias, reference) for _, reference in make_chunks()]
    drift = stream_drift(chunks, make_spec())
    assert drift.position_per_chunk_m == pytest.approx(0.008)
    assert drift.whole.position_accumulated_m == pytest.approx(0.048)
    assert drift.whole.position_per_step_m == pytest.approx(0.002)
    assert (drift.chunks, drift.whole.steps) == (6, 24)


def test_the_whole_is_the_open_loop_drift_of_all_rows():
    chunks = make_chunks()
    quantized, reference = (np.concatenate(stream) for stream in zip(*chunks))
    whole = open_loop_drift(quantized, reference, make_spec())
    assert stream_drift(chunks, make_spec()).whole == whole
    single = [open_loop_drift(*pair, make_spec()) for pair in chunks]
    drift = stream_drift(chunks, make_spec())
    assert drift.rotation_per_chunk_rad == pytest.approx(
        np.mean([one.rotation_accumulated_rad for one in single])
    )
    assert drift.position_per_chunk_m == pytest.approx(
        np.mean([one.position_accumulated_m for one in single])
    )


@pytest.mark.parametrize('frame', ['base', 'tool'])
@pytest.mark.parametrize('steps', [1, 2, 3, 7, 64, 101])
def test_the_end_of_a_long_stream_is_where_composing_step_by_step_leads(frame, steps):
    spec = make_spec(frame=frame)
    quantized, reference = RNG.normal(size=(2, steps, 7)) * 0.3
    ends = [integrate(actions, spec)[-1] for actions in (quantized, reference)]
    drift = open_loop_drift(quantized, reference, spec)
    distance = np.linalg.norm(ends[0].position - ends[1].position)
    assert drift.position_accumulated_m == pytest.approx(distance, abs=1e-12)
    angle = angle_between(ends[0].quat_xyzw, ends[1].quat_xyzw)
    assert drift.rotation_accumulated_rad == pytest.approx(angle, abs=1e-12)


def test_smoothness_is_that_of_the_commanded_velocities_across_chunks():
    chunks = make_chunks()
    quantized, reference = (np.concatenate(stream) / 0.05 for stream in zip(*chunks))
    drift = stream_drift(chunks, make_spec())
    for found, part in ((drift.jerk_ratio, slice(0, 3)), (drift.angular_jerk_ratio, slice(3, 6))):
        expected = mean_squared_jerk(quantized[:, part], 0.05) / mean_squared_jerk(
            reference[:, part], 0.05
        )
        assert found == pytest.approx(expected)
    assert drift.sparc == pytest.approx(spectral_arc_length(quantized[:, :3], 0.05))
    assert drift.reference_sparc == pytest.approx(spectral_arc_length(reference[:, :3], 0.05))


def test_a_policy_has_no_drift_against_itself():
    drift = stream_drift([(one, one) for one, _ in make_chunks()], make_spec())
    assert drift.position_per_chunk_m == 0.0
    assert drift.whole.gripper_disagreement == 0.0
    assert drift.jerk_ratio == drift.angular_jerk_ratio == 1.0
    assert drift.sparc == drift.reference_sparc


def test_a_shaking_stream_is_less_smooth_than_a_steady_one():
    t = np.linspace(0, 1, 40)[:, np.newaxis]
    reach = np.pad(0.05 * np.sin(np.pi * t) ** 2, ((0, 0), (0, 6)))
    shake = reach.copy()
    shake[::2, 1] += 0.01
    drift = stream_drift([(shake, reach)], make_spec())
    assert drift.jerk_ratio > 10.0
    assert drift.sparc < drift.reference_sparc


def test_what_is_not_commanded_is_nan_and_never_zero():
    names = (*POSITION_NAMES, GRIPPER_NAME)
    drift = stream_drift(make_chunks(dim=4), make_spec(names))
    assert math.isnan(drift.rotation_per_chunk_rad)
    assert math.isnan(drift.angular_jerk_ratio)
    assert math.isfinite(drift.jerk_ratio)
    turning = stream_drift(make_chunks(dim=3), make_spec(ROTATION_NAMES))
    assert all(map(math.isnan, (turning.jerk_ratio, turning.sparc, turning.reference_sparc)))
    assert math.isfinite(turning.angular_jerk_ratio)


def test_a_stream_that_is_too_short_for_jerk_still_has_drift():
    drift = stream_drift(make_chunks(count=1, rows=1), make_spec())
    assert math.isnan(drift.jerk_ratio)
    assert math.isnan(drift.sparc)
    assert drift.position_per_chunk_m > 0.0
    two = stream_drift(make_chunks(count=1, rows=2), make_spec())
    assert math.isnan(two.jerk_ratio)
    assert math.isfinite(two.sparc)


def test_absolute_actions_have_the_velocities_between_their_targets():
    spec = make_spec(POSITION_NAMES, delta=False)
    chunks = make_chunks(dim=3)
    velocities = np.diff(np.concatenate([one for one, _ in chunks]), axis=0) / 0.05
    assert stream_drift(chunks, spec).sparc == pytest.approx(spectral_arc_length(velocities, 0.05))


def test_the_window_holds_the_chunks_of_the_last_while():
    chunks, window = make_chunks(), DriftWindow(make_spec(), 2 * SECOND)
    found = [window.add(*pair, k * SECOND) for k, pair in enumerate(chunks)]
    assert [drift.chunks for drift in found] == [1, 2, 2, 2, 2, 2]
    assert found[-1] == stream_drift(chunks[-2:], make_spec())


def test_without_a_width_the_window_is_the_episode():
    chunks, window = make_chunks(), DriftWindow(make_spec())
    found = [window.add(*pair, k * SECOND) for k, pair in enumerate(chunks)]
    assert found[-1] == stream_drift(chunks, make_spec())
    window.reset()
    assert window.add(*chunks[0], 0) == stream_drift(chunks[:1], make_spec())


def test_a_clock_that_is_set_back_begins_a_new_window():
    chunks, window = make_chunks(), DriftWindow(make_spec())
    window.add(*chunks[0], 9 * SECOND)
    assert window.add(*chunks[1], SECOND).chunks == 1
    assert window.add(*chunks[2], SECOND).chunks == 2  # the same stamp is no jump


def test_a_chunk_that_is_refused_leaves_the_window_as_it_was():
    chunks, window = make_chunks(), DriftWindow(make_spec())
    window.add(*chunks[0], 0)
    with pytest.raises(ValueError, match='7 finite numbers'):
        window.add(np.full((4, 7), np.nan), chunks[1][1], SECOND)
    with pytest.raises(ValueError, match='must both be'):
        window.add(chunks[1][0][:2], chunks[1][1], SECOND)
    assert window.add(*chunks[2], SECOND) == stream_drift([chunks[0], chunks[2]], make_spec())


def test_actions_of_another_size_are_a_programming_error():
    with pytest.raises(ValueError, match='7 finite numbers, got actions of 8 numbers'):
        stream_drift(make_chunks(dim=8), make_spec())


def test_the_window_keeps_its_own_copy_of_the_rows():
    (quantized, reference), other = make_chunks(count=2)
    expected = stream_drift([(quantized.copy(), reference), other], make_spec())
    window = DriftWindow(make_spec())
    window.add(quantized, reference, 0)
    quantized[:] = 1.0
    assert window.add(*other, SECOND) == expected


def test_a_stream_of_nothing_and_a_window_of_nothing_are_programming_errors():
    with pytest.raises(ValueError, match='at least one chunk'):
        stream_drift([], make_spec())
    with pytest.raises(ValueError, match='window_ns must be positive'):
        DriftWindow(make_spec(), 0)
