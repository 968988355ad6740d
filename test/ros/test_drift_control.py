"""What follows from drift: readings, alarms, a floor for the precision, a stop, silence."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (rclpy)')

from vlaq_ros.control.drift_alarm import DriftLevel
from vlaq_ros.errors import ConfigError
from vlaq_ros.kinematics.predicted_drift import ANY_PHASE, ErrorStatistics, PredictedDrift
from vlaq_ros.ros.drift_control import STALLED_S, DriftControl, DriftParts
from vlaq_ros.ros.drift_parameters import DriftParameters
from vlaq_ros.ros.drift_sources import Compared
from vlaq_ros.ros.policy_parameters import PolicyParameters
from vlaq_ros.types import Observation

SECOND = 1_000_000_000


class FakeSource:
    """Gives the pairs that the test puts into it."""

    name = 'shadow'

    def __init__(self):
        self.counts, self.trouble = Counter(), ''
        self.asked, self.ready, self.epochs, self.is_closed = [], [], [], False

    def submit(self, observation, chunk):
        self.counts['asked'] += 1
        self.asked.append((observation, chunk))

    def collect(self):
        ready, self.ready = self.ready, []
        return ready

    def new_epoch(self, epoch):
        self.epochs.append(epoch)

    def close(self):
        self.is_closed = True


def parameters(**drift):
    given = {'source': 'shadow', 'warn_m': 0.01, 'error_m': 0.02, 'window_s': 0.1}
    given |= {'calm_after': 2, **drift}
    return PolicyParameters(drift=DriftParameters(**given))


class Case:
    """A control with a source that answers as far off as a test wants, and its own clocks."""

    def __init__(self, policy, **drift):
        self.policy, self.source = policy, FakeSource()
        self.steady_s, self.sequence, self.now_ns = 100.0, 0, 10 * SECOND
        self.control = DriftControl(
            policy.spec, parameters(**drift), DriftParts(self.source), lambda: self.steady_s
        )
        self.control.new_epoch(1)

    def accept(self):
        self.sequence += 1
        self.now_ns += SECOND
        seen = Observation({}, np.zeros(4), 'open', self.now_ns)
        chunk = replace(self.policy.infer(seen), sequence=self.sequence, epoch=1)
        self.control.accepted(seen, chunk, self.now_ns)
        return chunk

    def answer(self, chunk, off_m):
        """Let the reference end `off_m` away from the six executed rows."""
        actions = chunk.actions.copy()
        actions[:, 1] += off_m / 6
        self.source.ready.append(Compared(chunk, replace(chunk, actions=actions, precision='fp')))
        return self.control.collect(self.now_ns)

    def read(self, off_m):
        """Return the level after one chunk whose reference ends `off_m` away."""
        ((told),) = self.answer(self.accept(), off_m)
        return told.reading.level


@pytest.fixture
def case(fake_policy):
    return lambda **drift: Case(fake_policy, **drift)


def test_a_chunk_is_asked_about_as_it_was_and_its_reading_told_with_its_delay(case):
    one = case()
    chunk = one.accept()
    assert [asked for _, asked in one.source.asked] == [chunk]
    assert one.control.collect(one.now_ns) == []
    one.now_ns += 70_000_000
    (told,) = one.answer(chunk, 0.003)
    assert told.delay_s == pytest.approx(0.07)
    assert told.window_s == 0.1
    assert told.reading.drift.position_accumulated_m == pytest.approx(0.003)
    assert (told.reading.sequence, told.reading.drift.steps) == (1, 6)
    assert one.control.last is told.reading
    assert one.control.readings == 1


def test_a_reading_is_taken_once_for_the_precision_and_only_the_newest(case):
    one = case()
    assert one.control.take() is None
    first, second = one.accept(), one.accept()
    one.answer(first, 0.001)
    one.answer(second, 0.002)
    assert one.control.take().sequence == 2
    assert one.control.take() is None


def test_report_only_reports(case):
    one = case()
    assert one.read(0.5) is DriftLevel.ERROR
    assert (one.control.floor, one.control.stop) == ('', '')


def test_raise_holds_the_floor_from_warn_until_ok_again(case):
    one = case(reaction='raise')
    assert one.read(0.005) is DriftLevel.OK
    assert one.control.floor == ''
    assert one.read(0.015) is DriftLevel.WARN
    assert one.control.floor == 'drift WARN: position 15.00 mm over 10.00 mm'
    assert one.read(0.0) is DriftLevel.WARN
    assert one.control.floor
    assert one.read(0.0) is DriftLevel.OK
    assert one.control.floor == ''
    assert one.control.stop == ''


def test_stop_begins_at_error_and_ends_at_ok_not_at_warn(case):
    one = case(reaction='stop')
    one.read(0.015)
    assert one.control.stop == ''
    one.read(0.025)
    assert one.control.stop == (
        'drift ERROR (shadow): position 25.00 mm over 20.00 mm; until it is OK or ~/reset'
    )
    assert [one.read(0.0), one.read(0.0)] == [DriftLevel.ERROR, DriftLevel.WARN]
    assert one.control.stop.startswith('drift WARN (shadow)')
    assert [one.read(0.0), one.read(0.0)] == [DriftLevel.WARN, DriftLevel.OK]
    assert one.control.stop == ''
    one.read(0.015)
    assert one.control.stop == ''
    assert one.control.floor == ''


def test_a_reset_ends_every_alarm_and_forgets_what_was_asked(case):
    one = case(reaction='stop')
    one.read(0.025)
    one.accept()
    one.control.new_epoch(2)
    assert one.source.epochs == [1, 2]
    assert one.control.stop == ''
    assert one.control.last is None
    assert one.control.take() is None
    one.steady_s += 1000.0
    assert one.control.trouble == ''


def test_an_alarm_stays_when_the_source_falls_silent(case):
    one = case(reaction='stop')
    one.read(0.025)
    one.accept()
    one.steady_s += 1000.0
    assert one.control.stop
    assert one.control.trouble == 'no answer of the reference for 1000 s'


def test_silence_is_trouble_only_when_somebody_was_asked(case):
    one = case()
    one.steady_s += 1000.0
    assert one.control.trouble == ''
    chunk = one.accept()
    one.steady_s += STALLED_S
    assert one.control.trouble == ''
    one.accept()
    one.steady_s += 0.5
    assert one.control.trouble == 'no answer of the reference for 6 s'
    assert (one.control.stop, one.control.floor) == ('', '')
    one.source.trouble = 'the cable is out'
    assert one.control.trouble == 'no answer of the reference for 6 s: the cable is out'
    one.source.trouble = ''
    one.answer(chunk, 0.0)
    assert one.control.trouble == ''


def test_a_reference_that_cannot_be_compared_is_counted_and_told(case):
    one = case()
    assert one.answer(one.accept(), math.nan) == []
    assert one.control.counts['failed'] == 1
    assert 'finite' in one.control.trouble
    assert one.control.last is None
    one.read(0.0)
    assert one.control.trouble == ''
    assert one.control.counts == {'asked': 2, 'failed': 1}


def test_limits_window_and_reaction_change_at_once(case):
    one = case()
    assert one.read(0.015) is DriftLevel.WARN
    one.control.apply(parameters(warn_m=0.001, error_m=0.002, reaction='stop'))
    assert one.control.stop == ''
    assert one.read(0.003) is DriftLevel.ERROR
    assert one.control.stop
    one.control.apply(parameters(warn_m=0.001, error_m=0.002))
    assert one.control.stop == ''


def test_without_a_source_nothing_happens(fake_policy):
    control = DriftControl(fake_policy.spec, PolicyParameters())
    control.new_epoch(1)
    seen = Observation({}, np.zeros(4), 'open', 5)
    control.accepted(seen, fake_policy.infer(seen), 5)
    control.beside(seen, 1)
    control.apply(PolicyParameters())
    assert (control.is_on, control.collect(5), control.last) == (False, [], None)
    assert (control.trouble, control.floor, control.stop) == ('', '', '')
    control.close()


def test_the_source_is_closed_with_it(case):
    one = case()
    one.control.close()
    assert one.source.is_closed


def errors(spec, bias_m):
    known = {
        ('w4a8', ANY_PHASE): ErrorStatistics(np.array([bias_m, *[0.0] * 5]), np.zeros((6, 6)), 9)
    }
    return PredictedDrift(spec, known, {'w4a8': 0.0})


def test_a_prediction_is_there_at_once_under_the_name_of_the_level(fake_policy):
    """Six rows of 2 mm; the policy calls the level `fp32`, the model `w4a8`."""
    model = errors(fake_policy.spec.action, 0.002)
    parts = DriftParts(None, model, {'fp32': 'w4a8'}, 'bf16')
    control = DriftControl(
        fake_policy.spec, parameters(source='predicted', reaction='raise'), parts
    )
    control.new_epoch(1)
    seen = Observation({}, np.zeros(4), 'open', 5)
    control.accepted(seen, replace(fake_policy.infer(seen), sequence=3), 5)
    (told,) = control.collect(5)
    reading = told.reading
    assert (reading.source, reading.sequence) == ('predicted', 3)
    assert (reading.precision, reading.reference_precision) == ('fp32', 'bf16')
    assert reading.window_m == pytest.approx(0.012)
    assert control.floor.startswith('drift WARN')
    assert control.counts == {'asked': 1, 'answered': 1}
    assert control.take() is None  # a prediction decides no precision: it knows the level only
    chunk = replace(fake_policy.infer(seen), precision='w2')
    control.accepted(seen, chunk, 5)
    assert control.collect(5) == []
    assert "'w2'" in control.trouble
    assert control.counts['failed'] == 1


def test_a_prediction_follows_the_phase_of_the_motion(fake_policy):
    still, moves = (ErrorStatistics(np.full(6, off), np.zeros((6, 6)), 9) for off in (0.0, 0.001))
    spec = fake_policy.spec.action
    known = {('fp32', ANY_PHASE): moves, ('fp32', 'coarse'): still}
    parts = DriftParts(model=PredictedDrift(spec, known, {'fp32': 0.0}))
    control = DriftControl(fake_policy.spec, parameters(source='predicted'), parts)
    seen = Observation({}, np.zeros(4), 'open', 5)
    for phase, steps in (('coarse', 0), ('fine', 6)):
        control.accepted(seen, fake_policy.infer(seen), 5, phase)
        (told,) = control.collect(5)
        expected = steps * 0.001 * math.sqrt(3)
        assert told.reading.drift.position_accumulated_m == pytest.approx(expected)


@pytest.mark.parametrize(
    ('values', 'why'),
    [
        ({'warn_m': 0.02}, "parameters 'drift': warn_m = 0.02 must be positive and below error_m"),
        ({'reaction': 'stop', 'source': 'none'}, "'drift.reaction' = 'stop' needs a"),
    ],
)
def test_values_that_contradict_each_other_are_named(values, why):
    assert why in '\n'.join(parameters(**values).drift.contradictions())


def test_the_rule_raises_where_a_warning_begins_and_lowers_at_half_of_it():
    options = DriftParameters(warn_m=0.004, error_m=1.0, warn_rad=0.1).rule_options(7)
    assert (options.raise_m, options.warn_m) == (0.004, 0.002)
    assert (options.raise_rad, options.warn_rad) == (0.1, 0.05)
    assert options.lower_after == 7
    with pytest.raises(ConfigError):
        DriftParameters(warn_m=-1.0).rule_options(7)
