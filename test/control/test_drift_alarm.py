"""Drift alarm: raised at once, lowered one step after calm readings, and always with a reason."""

import math

import numpy as np
import pytest

from vlaq_ros.control.drift_alarm import DriftAlarm, DriftLevel, DriftLimits
from vlaq_ros.errors import ConfigError

OK, WARN, ERROR = DriftLevel
NAN = math.nan
LIMITS = DriftLimits(0.01, 0.02, 0.05, 0.15, 0.3, 0.6, calm_share=0.8, calm_after=3)


def levels(values, limits=LIMITS):
    """Return the level after each reading; a reading is position, or (position, rotation, ...)."""
    alarm = DriftAlarm(limits)
    readings = [(v, NAN, NAN) if isinstance(v, float) else v for v in values]
    return [alarm.update(*reading).level for reading in readings]


def test_a_level_is_raised_at_once_however_far():
    assert levels([0.0, 0.0101, 0.0, 0.0201]) == [OK, WARN, WARN, ERROR]
    assert levels([0.5]) == [ERROR]


def test_on_the_limit_is_not_over_it():
    assert levels([0.01, 0.02]) == [OK, WARN]


@pytest.mark.parametrize(
    'reading',
    [
        (0.011, 0.0, 0.0),
        (0.0, 0.051, 0.0),
        (0.0, 0.0, 0.31),
    ],
    ids=['position', 'rotation', 'gripper'],
)
def test_each_quantity_raises_alone_and_is_named(reading, request):
    level, reason = DriftAlarm(LIMITS).update(*reading)
    assert level is WARN
    assert reason.startswith(request.node.callspec.id)
    assert ',' not in reason


def test_the_reason_has_values_limits_and_everything_that_is_over():
    reason = DriftAlarm(LIMITS).update(0.0234, 0.2, 0.5).reason
    assert reason == 'position 23.40 mm over 20.00 mm, rotation 0.200 rad over 0.150 rad'
    assert DriftAlarm(LIMITS).update(0.0, 0.0, 0.5).reason == 'gripper 50% over 30%'
    assert DriftAlarm(LIMITS).update(0.0, 0.0, 0.0).reason == 'within limits'


def test_it_falls_one_step_after_calm_readings_in_a_row():
    assert levels([0.03] + [0.0] * 6) == [ERROR, ERROR, ERROR, WARN, WARN, WARN, OK]


def test_a_reading_that_is_not_calm_starts_the_count_again():
    """Between 80 % and 100 % of the limit a value is neither over it nor calm."""
    assert levels([0.011, 0.0, 0.0, 0.009, 0.0, 0.0, 0.0]) == [WARN] * 6 + [OK]
    assert levels([0.011, 0.008, 0.008, 0.008]) == [WARN] * 3 + [OK]
    assert levels([0.011, 0.0081, 0.0081, 0.0081]) == [WARN] * 4


def test_calm_for_the_level_in_force_is_enough_to_leave_it():
    """From ERROR it falls to WARN while the value is still over the warning limit."""
    assert levels([0.03] + [0.012] * 6) == [ERROR, ERROR, ERROR] + [WARN] * 4


def test_the_reason_says_why_a_level_stays_and_why_it_falls():
    alarm = DriftAlarm(LIMITS)
    alarm.update(0.011, NAN, NAN)
    assert alarm.update(0.009, NAN, NAN).reason == 'position 9.00 mm over 8.00 mm; WARN stays'
    reason = 'within limits, 1 times in a row; WARN stays'
    assert alarm.update(0.0, NAN, NAN).reason == reason
    alarm.update(0.0, NAN, NAN)
    assert alarm.update(0.0, NAN, NAN) == (OK, 'within limits for 3 readings')


def test_what_is_not_commanded_plays_no_role():
    assert levels([(NAN, NAN, NAN)]) == [OK]
    assert levels([(NAN, 0.2, NAN), (NAN, NAN, 0.31)]) == [ERROR, ERROR]
    with_zeros = levels([(v, 0.0, 0.0) for v in (0.011, 0.0, 0.03, 0.0, 0.0, 0.0)])
    assert levels([0.011, 0.0, 0.03, 0.0, 0.0, 0.0]) == with_zeros


def test_an_infinite_drift_is_an_error():
    assert levels([math.inf]) == [ERROR]


def test_a_reset_begins_at_ok():
    alarm = DriftAlarm(LIMITS)
    alarm.update(0.5, NAN, NAN)
    alarm.reset()
    assert alarm.level is OK
    assert alarm.update(0.0, NAN, NAN).level is OK


def test_a_value_that_hovers_around_the_limit_does_not_make_the_level_flicker():
    hover = [0.0101, 0.0099] * 50
    assert levels(hover) == [WARN] * 100


def test_the_level_follows_its_definition_on_random_readings():
    """An independent statement: over a limit is at least its level; it never falls by two."""
    rng = np.random.default_rng(3)
    values = [float(v) for v in rng.gamma(1.0, 0.008, 2000)]
    found = levels(values)
    for i, (value, level) in enumerate(zip(values, found)):
        over = ERROR if value > 0.02 else WARN if value > 0.01 else OK
        assert level >= over
        before = found[i - 1] if i else OK
        assert level >= before - 1
        if level > before:
            assert level == over
        if level < before:
            limit = {ERROR: 0.02, WARN: 0.01}[before]
            assert max(values[i - 2 : i + 1]) <= 0.8 * limit
    assert set(found) == {OK, WARN, ERROR}


def test_impossible_limits_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        DriftLimits(
            warn_m=0.02,
            error_m=0.01,
            warn_rad=0.0,
            error_gripper=math.inf,
            calm_share=0.0,
            calm_after=0,
        )
    lines = str(caught.value).splitlines()
    assert lines == [
        'warn_m = 0.02 must be positive and below error_m = 0.01',
        'warn_rad = 0.0 must be positive and below error_rad = 0.15',
        'warn_gripper = 0.3 must be positive and below error_gripper = inf',
        'calm_share = 0.0 must be above 0 and at most 1',
        'calm_after = 0 must be at least 1',
    ]


@pytest.mark.parametrize('unit', ['m', 'rad', 'gripper'])
def test_limits_that_are_no_numbers_are_refused(unit):
    for name in (f'warn_{unit}', f'error_{unit}'):
        with pytest.raises(ConfigError, match=f'warn_{unit} = '):
            DriftLimits(**{name: NAN})
