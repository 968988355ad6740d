"""The recorded policy proves which observation it had, also where stamps cannot tell."""

import json

import numpy as np
import pytest

from vlaq_ros.analysis.drift_job import DriftJob, check_job
from vlaq_ros.analysis.drift_measure import measure
from vlaq_ros.analysis.drift_summary import summarize
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy
from vlaq_ros.types import Observation

MS = 1_000_000


@pytest.fixture(scope='module')
def kept():
    """What a recorder keeps of a node with the toy bundle, loaded at `nested`."""
    return {
        'bundle': 'toy',
        'bundle_hash': open_bundle('toy').digest,
        'precisions': ['w8', 'nested'],
    }


def run_of(path, **options):
    return measure(check_job(DriftJob(path, 'toy', **options)))


def sureness(path, **options):
    return {one.sureness for one in run_of(path, **options).judged}


def test_observations_in_lockstep_are_proven(record_toy, kept):
    run = record_toy(provenance=kept)
    assert sureness(run.path) == {'proven'}
    assert sureness(run.path, is_replayed=False) == {'alike'}


def test_chunks_that_the_bundle_does_not_give_are_unproven(record_toy, kept):
    def change(chunk):
        return {'actions': chunk.actions.ravel() + 0.001} if chunk.sequence == 3 else {}

    judged = run_of(record_toy(provenance=kept, change=change).path).judged
    assert [one.sureness for one in judged].count('unproven') == 1
    assert judged[2].sureness == 'unproven'
    assert judged[2].reading is not None


def test_without_the_recorded_bundle_the_page_says_what_to_do(record_toy):
    run = record_toy(provenance={'bundle': 'mine', 'bundle_hash': 64 * 'f'})
    judged = run_of(run.path)
    assert {one.sureness for one in judged.judged} == {'alike'}
    assert judged.checked.why_no_replay == "bundle 'mine' (ffffffffffff) is not here; give it " + (
        'with --bundle'
    )


def test_another_bundle_than_the_recorded_one_proves_nothing(record_toy):
    run = record_toy(provenance={'bundle': 'mine', 'bundle_hash': 64 * 'f'})
    checked = check_job(DriftJob(run.path, 'toy', bundle='toy'))
    digest = open_bundle('toy').digest[:12]
    assert checked.replay is None
    assert checked.why_no_replay == f'--bundle has digest {digest}, recorded was ffffffffffff'


class Race:
    """
    A robot whose wrist camera and pose arrive a moment after the front camera.

    The node infers in between, with the wrist image and the state of `behind` steps ago; the
    recorder gets everything in time.
    """

    def __init__(self, arm, image_behind, state_behind):
        self.policy = load_policy('toy', precision='w8')
        self.fp32 = load_policy('toy', precision='fp32')
        self.references = []
        ran = {'bundle': 'toy', 'bundle_hash': open_bundle('toy').digest, 'precisions': ['w8']}
        arm.set_custom_data('vlaq_ros', json.dumps(ran))
        for step in range(40):
            stamp_ms = 1000.0 + 25.0 * step
            arm.image('front', stamp_ms, step, (96, 96))
            arm.image('wrist', stamp_ms, 5 * step, (64, 64))
            arm.pose(stamp_ms, (0.01 * step, 0.6, 0.2))
            arm.joints(stamp_ms, 0.05)
            if step % 6 == 5:
                seen = self.observation(step, step - image_behind, step - state_behind)
                arm.chunk(self.policy.infer(seen), stamp_ms + 1.0)
                self.references.append(self.fp32.infer(seen).actions)

    @staticmethod
    def observation(step, wrist_step, state_step):
        images = {
            'front': np.full((96, 96, 3), step, np.uint8),
            'wrist': np.full((64, 64, 3), 5 * wrist_step, np.uint8),
        }
        state = np.array([0.01 * state_step, 0.6, 0.2, 0.5])
        return Observation(images, state, 'go', round((1000.0 + 25.0 * step) * MS))


@pytest.mark.parametrize(('image_behind', 'state_behind'), [(0, 0), (1, 0), (0, 1), (2, 1)])
def test_an_input_that_had_not_arrived_yet_is_found(
    recorded_arm, tmp_path, image_behind, state_behind
):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        race = Race(arm, image_behind, state_behind)
    run = run_of(arm.path)
    assert {one.sureness for one in run.judged} == {'proven'}
    for one, reference in zip(run.judged, race.references):
        np.testing.assert_array_equal(one.reference.actions, reference)


def test_without_replay_the_likeliest_is_taken_and_may_be_wrong(recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'run') as arm:
        race = Race(arm, 1, 0)
    run = run_of(arm.path, is_replayed=False)
    differs = [
        not np.array_equal(one.reference.actions, reference)
        for one, reference in zip(run.judged, race.references)
    ]
    assert all(differs)


def test_the_summary_counts_how_sure_observations_are(record_toy, kept):
    from vlaq_ros.analysis.drift_live import compare_live
    from vlaq_ros.analysis.drift_page import page

    judged = run_of(record_toy(provenance=kept).path)
    values = summarize(judged, compare_live(judged))
    assert values['overall']['sureness'] == {'proven': 8}
    assert '8 of 8 observations are proven' in page(values, {})
