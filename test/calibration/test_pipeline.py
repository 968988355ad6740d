"""From a bag to a packed bundle: the proof, the same bytes twice, and what bad input gets."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from vlaq_ros.calibration.artifact import mean_bits, read_plan
from vlaq_ros.calibration.job import CalibrationJob, check_job
from vlaq_ros.calibration.pipeline import calibrate
from vlaq_ros.calibration.progress import Progress
from vlaq_ros.calibration.samples import draw_samples
from vlaq_ros.calibration.verification import Tolerance
from vlaq_ros.errors import BagError, ConfigError
from vlaq_ros.kinematics.drift import open_loop_drift
from vlaq_ros.policies.bundle import open_bundle
from vlaq_ros.policies.registry import load_policy

LOOSE = Tolerance(drift_m=1.0, gripper=1.0)


@pytest.fixture
def make_job(tiny_bundle, tiny_bag, tmp_path):
    """Return a function that makes a job whose parts may be changed."""

    def make(**changes):
        job = CalibrationJob(
            bags=(tiny_bag,),
            out=tmp_path / 'packed',
            bundle=str(tiny_bundle),
            method='gptq',
            bits=5.0,
            group_size=16,
            samples=16,
            held_out=8,
            tolerance=LOOSE,
        )
        return dataclasses.replace(job, **changes)

    return make


def run(job, tell=lambda standing: None):
    return calibrate(check_job(job), Progress(tell))


class StopError(Exception):
    """Ends a run from within."""


def stop_at(stage):
    def tell(standing):
        if standing.stage == stage:
            raise StopError

    return tell


@pytest.mark.parametrize('method', ['rtn', 'gptq', 'awq', 'smoothquant', 'qvla', 'da_ptq', 'ours'])
def test_every_method_keeps_the_budget_and_gives_a_bundle_that_runs(make_job, method):
    found = run(make_job(method=method))
    assert mean_bits(read_plan(found.bundle)) <= 5.0
    assert found.record['method'] == method
    policy = load_policy(found.bundle.path)
    assert policy.self_test().passed
    assert (
        policy.memory().quantized_weights
        == 2 * found.record['packed_bytes'] * 4 / (found.record['mean_bits_per_weight'])
    )


def test_the_stored_bundle_acts_as_was_verified(make_job, tiny_bundle):
    job = make_job(method='qvla', bits=4.0)
    found = run(job)
    checked = check_job(dataclasses.replace(job, overwrite=True))
    drawn = draw_samples(checked.recordings, checked.bundle.spec, checked.plan)
    spec, worst = found.bundle.spec, []
    for head in spec.heads:
        packed, exact = (load_policy(p, head=head) for p in (job.out, tiny_bundle))
        drifts = []
        for sample in drawn.held_out:
            chunks = [p.infer(sample.observation).actions for p in (packed, exact)]
            drifts.append(open_loop_drift(*chunks, spec.action).position_accumulated_m)
        verified = found.record['verified'][head]['drift_m']
        worst.append(abs(np.mean(drifts) - verified))
        if head == 'flow':  # arg max over bins may tip over between two ways of adding up
            assert np.mean(drifts) == pytest.approx(verified, rel=0.05, abs=1e-6)
    assert max(worst) < 0.01


def test_the_record_says_where_everything_comes_from(make_job, tiny_bag, tiny_bundle):
    record = run(make_job()).bundle.quantization
    [recording] = record['samples_drawn']['recordings']
    for name, digest in recording['sha256'].items():
        assert digest == hashlib.sha256((tiny_bag / name).read_bytes()).hexdigest()
    assert record['origin'] == open_bundle(tiny_bundle).digest
    assert (record['seed'], record['samples'], record['held_out']) == (0, 16, 8)
    assert record['software']['torch'] == torch.__version__
    assert record['samples_drawn']['calibration']['samples'] == 16
    text = json.dumps(record, allow_nan=False)
    assert str(tiny_bag.parent) not in text


def test_calibration_and_judgement_use_different_episodes(make_job):
    drawn = run(make_job()).record['samples_drawn']
    episodes = [set(drawn[name]['episodes']) for name in ('calibration', 'held_out')]
    assert all(episodes)
    assert not episodes[0] & episodes[1]


def test_the_same_job_twice_gives_the_same_bytes(make_job, tmp_path):
    digests = {run(make_job(method='qvla', out=tmp_path / name)).bundle.digest for name in 'ab'}
    assert len(digests) == 1


def test_another_seed_gives_another_bundle(make_job, tmp_path):
    digests = {run(make_job(seed=s, out=tmp_path / str(s))).bundle.digest for s in (0, 1)}
    assert len(digests) == 2


@pytest.mark.parametrize('stage', ['sensitivity', 'verification', 'packing'])
def test_an_interrupted_run_goes_on_to_the_same_bytes(make_job, tmp_path, stage):
    whole = run(make_job(out=tmp_path / 'whole'))
    job = make_job(out=tmp_path / 'stopped')
    with pytest.raises(StopError):
        run(job, stop_at(stage))
    assert not job.out.exists()
    assert list(job.work_folder.iterdir())
    resumed = run(dataclasses.replace(job, resume=True))
    assert resumed.bundle.digest == whole.bundle.digest
    assert not job.work_folder.exists()


def test_an_interrupted_run_is_neither_used_nor_thrown_away_unasked(make_job):
    job = make_job()
    with pytest.raises(StopError):
        run(job, stop_at('method'))
    with pytest.raises(ConfigError, match='--resume'):
        check_job(job)
    assert list(job.work_folder.iterdir())


def test_finished_parts_are_shared_by_methods_and_never_by_other_samples(make_job, tmp_path):
    work = tmp_path / 'work'
    run(make_job(work=work, out=tmp_path / 'a'))
    before = {path.name for path in work.iterdir()}
    run(make_job(method='rtn', work=work, out=tmp_path / 'b'))
    after = {path.name for path in work.iterdir()}
    assert {name.split('-')[0] for name in after - before} == {'result'}
    run(make_job(seed=1, work=work, out=tmp_path / 'c'))
    kinds = sorted(name.split('-')[0] for name in {p.name for p in work.iterdir()} - after)
    assert kinds == ['result', 'samples', 'sensitivity', 'statistics']


def test_a_damaged_part_is_made_again(make_job, tmp_path):
    work = tmp_path / 'work'
    whole = run(make_job(work=work, out=tmp_path / 'a'))
    for path in work.iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert run(make_job(work=work, out=tmp_path / 'b')).bundle.digest == whole.bundle.digest


def test_the_float_bundle_is_not_touched(make_job, tiny_bundle):
    before = open_bundle(tiny_bundle).digest
    run(make_job(method='smoothquant'))
    assert open_bundle(tiny_bundle).digest == before


def test_a_missed_tolerance_is_stepped_back_from_within_the_budget(make_job, tmp_path):
    tight = Tolerance(drift_m=1e-5, gripper=1.0)
    plain = run(make_job(method='rtn', bits=8.0, tolerance=tight, promotions=0))
    better = run(
        make_job(method='rtn', bits=8.0, tolerance=tight, promotions=2, out=tmp_path / 'b')
    )
    assert not plain.verification.passed
    assert len(better.verification.promoted) == 2
    assert mean_bits(read_plan(better.bundle)) <= 8.0

    def badness(found):
        return sum(one.drift_m**2 for one in found.verification.heads.values())

    assert badness(better) < badness(plain)


def test_only_the_chosen_heads_count(make_job):
    found = run(make_job(heads=('flow',)))
    assert list(found.record['verified']) == ['flow']
    assert load_policy(found.bundle.path, head='token').self_test().passed


def test_everything_wrong_is_listed_before_anything_is_read(make_job, tmp_path):
    (tmp_path / 'empty').mkdir()
    job = make_job(
        method='gtpq',
        bits=-1.0,
        group_size=24,
        activation_bits=7,
        heads=('flwo',),
        bags=(tmp_path / 'nowhere', tmp_path / 'empty'),
        samples=0,
    )
    with pytest.raises(ConfigError) as caught:
        check_job(job)
    message = str(caught.value)
    for part in (
        "Did you mean 'gptq'",
        '--bits -1',
        '--group-size 24',
        '--activation-bits 7',
        "'flwo'",
        'no bag at',
        'holds neither',
        'calibration=0',
    ):
        assert part in message, message


@pytest.mark.parametrize('method', ['rtn', 'qvla'])
def test_a_budget_the_method_cannot_reach_is_refused_at_once(make_job, method):
    with pytest.raises(ConfigError, match=r'--bits 2: .* needs at least [23]\.\d+'):
        check_job(make_job(method=method, bits=2.0))


def test_a_layout_of_its_own_is_no_matter_of_the_budget(make_job):
    assert check_job(make_job(method='quantvla', bits=2.0)).job.bits == 2.0
    with pytest.raises(ConfigError, match='needs at least'):
        check_job(make_job(method='quantvla', bits=2.0, options={'layout': 'all'}))


def test_pruning_lowers_what_a_budget_must_be(make_job):
    with pytest.raises(ConfigError, match='needs at least 3'):
        check_job(make_job(method='ours', bits=2.9))
    check_job(make_job(method='ours', bits=2.9, options={'prune_share': '0.5'}))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'mood': 'paper'}, "no option of qvla named 'mood'. Known: mode"),
        ({'mode': 'papper'}, "mode='papper' must be"),
        ({'exact_pairs': 'many'}, "exact_pairs of qvla = 'many': write a int"),
    ],
    ids=['unknown', 'value', 'type'],
)
def test_a_wrong_option_of_a_method_is_refused(make_job, options, message):
    with pytest.raises(ConfigError, match=message):
        check_job(make_job(method='qvla', options=options))


def test_options_reach_the_method(make_job):
    found = run(make_job(method='qvla', bits=5.0, options={'mode': 'paper'}))
    assert found.record['method_record']['mode'] == 'paper'
    assert found.record['options'] == {'mode': 'paper'}


def test_a_bag_of_another_robot_is_refused_with_what_it_holds(make_job, recorded_arm, tmp_path):
    path = tmp_path / 'other'
    names = {'front/image_raw': '/top/image', 'ee_pose': '/tool'}
    with recorded_arm.RecordedArm(path, topics=names) as arm:
        for stamp_ms in (1000.0, 1025.0):
            arm.sense(stamp_ms)
    with pytest.raises(ConfigError) as caught:
        check_job(make_job(bags=(path,)))
    message = str(caught.value)
    assert '--bag' in message
    assert 'other' in message
    assert '/top/image' in message


def test_a_bag_with_images_of_another_size_is_refused(make_job, recorded_arm, tmp_path):
    with recorded_arm.RecordedArm(tmp_path / 'small') as arm:
        arm.say('reach the goal', 990.0)
        for stamp_ms in (1000.0, 1025.0):
            arm.sense(stamp_ms)
    with pytest.raises(ConfigError, match='32'):
        check_job(make_job(bags=(tmp_path / 'small',)))


def test_a_truncated_bag_is_used_as_far_as_it_goes_and_its_losses_are_recorded(
    make_job, tiny_bag, tmp_path
):
    path = tmp_path / 'cut'
    path.mkdir()
    [file] = tiny_bag.glob('*.mcap')
    data = file.read_bytes()
    (path / 'cut.mcap').write_bytes(data[: int(0.8 * len(data))])
    found = run(make_job(bags=(path,), samples=8, held_out=4))
    [recording] = found.record['samples_drawn']['recordings']
    assert recording['losses']
    assert recording['steps'] < 240


def test_a_bag_cut_after_one_episode_is_refused(make_job, tiny_bag, tmp_path):
    path = tmp_path / 'stub'
    path.mkdir()
    [file] = tiny_bag.glob('*.mcap')
    data = file.read_bytes()
    (path / 'stub.mcap').write_bytes(data[: len(data) // 20])
    with pytest.raises((BagError, ConfigError), match='stub|not enough'):
        run(make_job(bags=(path,)))
