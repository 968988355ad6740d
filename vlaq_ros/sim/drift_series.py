"""
The readings of every kind of episode of a drift study, each read once for all windows.

What `predicted` says depends on when the error came. Of one that begins while the robot works its
model, fitted to healthy actions, knows nothing. Of one that the policy had when it was calibrated
it does: for that case the model is fitted to the training-seed episodes with the error in every
judged action, and read on the healthy twins of the judged episodes with the error in every action
from the first chunk on, open loop.
"""

from collections.abc import Iterable, Sequence

from vlaq_ros.control.drift_alarm import DriftLimits
from vlaq_ros.kinematics.predicted_drift import PredictedDrift
from vlaq_ros.policies.bundle import LEVELS, Bundle
from vlaq_ros.sim.drift_known import KnownError, compare_known
from vlaq_ros.sim.drift_readings import (
    CALIBRATED,
    Series,
    error_samples,
    read,
    turning_run,
    with_fault,
)
from vlaq_ros.sim.drift_runs import CHOOSE, JUDGE, StudyRun
from vlaq_ros.sim.faults import TURNING, Fault
from vlaq_ros.types import ActionSpec

TURNING_STREAM = 'shadow, synthetic turns'


class StudySeries:
    """
    Series by kind of episode.

    Args:
        runs: Finished episodes.
        spec: What their actions mean.
        model: Of the source `predicted`.
    """

    def __init__(self, runs: Iterable[StudyRun], spec: ActionSpec, model: PredictedDrift) -> None:
        self._spec = spec
        self._model = model
        self._runs: dict[tuple[str, str, str], list[StudyRun]] = {}
        self._read: dict[tuple[str, ...], list[Series]] = {}
        for run in runs:
            self._runs.setdefault((run.split, run.level, run.fault), []).append(run)

    def of(self, split: str, level: str, fault: str, source: str, window_s: float) -> list[Series]:
        """Return what a source says of the episodes of one kind; fault '': without an error."""
        key = (split, level, fault, source)
        if key not in self._read:
            runs = self._runs.get(key[:3], [])
            self._read[key] = [read(run, self._spec, source, self._model) for run in runs]
        return [series.at_window(window_s) for series in self._read[key]]

    def turning(self, split: str, level: str, fault: bool, window_s: float) -> list[Series]:
        """Return what full precision says of the synthetic stream with rotation."""
        key = (split, level, TURNING.name if fault else '', TURNING_STREAM)
        if key not in self._read:
            runs = self._runs.get((split, level, ''), [])
            pairs = [turning_run(run, self._spec, fault) for run in runs]
            self._read[key] = [read(run, spec, 'shadow') for run, spec in pairs]
        return [series.at_window(window_s) for series in self._read[key]]

    def calibrated(self, level: str, fault: Fault, window_s: float) -> list[Series]:
        """Return what a prediction says of an error that was there when its model was fitted."""
        key = (JUDGE, level, fault.name, CALIBRATED)
        if key not in self._read:
            seen = self._always_wrong(self._runs[CHOOSE, level, ''], fault)
            samples = [one for run, _ in seen for one in error_samples(run)]
            model = PredictedDrift.fit(samples, seen[0][1])
            judged = self._always_wrong(self._twins(level, fault), fault)
            self._read[key] = [read(run, spec, CALIBRATED, model) for run, spec in judged]
        return [series.at_window(window_s) for series in self._read[key]]

    def known(self, level: str, fault: Fault) -> KnownError:
        """Compare `calibrated` with what full precision says of the same wrong actions."""
        judged = self._always_wrong(self._twins(level, fault), fault)
        measured = [read(run, spec, 'shadow') for run, spec in judged]
        predicted = self.calibrated(level, fault, measured[0].period_s)
        return compare_known(predicted, measured, DriftLimits())

    def _twins(self, level: str, fault: Fault) -> list[StudyRun]:
        """Return the healthy episodes that start as those with the error."""
        healthy = self._runs[JUDGE, level, '']
        if fault is TURNING:
            return healthy
        wrong = {run.key[3:] for run in self._runs[JUDGE, level, fault.name]}
        return [run for run in healthy if run.key[3:] in wrong]

    def _always_wrong(
        self, runs: Sequence[StudyRun], fault: Fault
    ) -> list[tuple[StudyRun, ActionSpec]]:
        pairs = [(run, self._spec) for run in runs]
        if fault is TURNING:
            pairs = [turning_run(run, self._spec, False) for run in runs]
        return [(with_fault(run, spec, fault), spec) for run, spec in pairs]


def error_model(
    runs: Sequence[StudyRun], store: Bundle, head: str, levels: Sequence[str]
) -> tuple[PredictedDrift, str]:
    """Return the error model of `predicted`, and where it is from."""
    known = store.levels()
    if known is not None and head in known.heads:
        model = known.heads[head].drift
        if set(levels) <= set(model.levels):
            return model, f'from {LEVELS} of the store'
    samples = [s for run in runs if run.split == CHOOSE for s in error_samples(run)]
    model = PredictedDrift.fit(samples, store.spec.action)
    return model, 'fitted to the training-seed episodes of this study'
