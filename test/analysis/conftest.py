"""A recorded run of the toy policy: two episodes, two levels, an arm that moves."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vlaq_ros.policies.registry import load_policy
from vlaq_ros.types import Observation

MS = 1_000_000
SIZES = {'front': (96, 96), 'wrist': (64, 64)}
STEP_MS = 25.0
EVERY = 6


@dataclass
class ToyRun:
    """What was recorded, to be calculated with once more; chunks are by number."""

    path: object
    chunks: list = field(default_factory=list)
    references: list = field(default_factory=list)


def shade(stamp_ms, camera):
    return round(stamp_ms * (1 if camera == 'front' else 3)) % 251


def observation(stamp_ms, step, sentence):
    images = {
        camera: np.full((*size, 3), shade(stamp_ms, camera), np.uint8)
        for camera, size in SIZES.items()
    }
    state = np.array([0.001 * step, 0.6, 0.2, 10.0 * gripper(step)])
    return Observation(images, state, sentence, round(stamp_ms * MS))


def gripper(step):
    return 0.08 if step < 12 else 0.01


def record_toy_run(
    recorded_arm,
    path,
    *,
    left_out=lambda camera, stamp_ms: False,
    change=lambda chunk: {},
    tell=lambda arm, chunk, reference: None,
    first_sequence=1,
    provenance=None,
):
    """
    Record two episodes of 24 steps, in lockstep, with a chunk every 6 steps.

    Images for which `left_out` is true are not recorded; `change` gives other fields of the
    message of a chunk; `tell` is called after every chunk.
    """
    policies = {name: load_policy('toy', precision=name) for name in ('fp32', 'w8', 'w4a8')}
    run = ToyRun(path)
    with recorded_arm.RecordedArm(path) as arm:
        if provenance is not None:
            arm.set_custom_data('vlaq_ros', json.dumps(provenance))
        for epoch, task in ((1, 'reach'), (2, 'drawer-open')):
            arm.say(f'do {task}', 1000.0 * epoch - 5.0)
            for step in range(24):
                stamp_ms = 1000.0 * epoch + STEP_MS * step
                for camera, size in SIZES.items():
                    if not left_out(camera, stamp_ms):
                        arm.image(camera, stamp_ms, shade(stamp_ms, camera), size)
                arm.pose(stamp_ms, (0.001 * step, 0.6, 0.2))
                arm.joints(stamp_ms, gripper(step))
                arm.episode(stamp_ms, epoch, task, done=step == 23, success=step == 23)
                if step % EVERY == 0:
                    seen = observation(stamp_ms, step, f'do {task}')
                    level = 'w8' if step < 12 else 'w4a8'
                    number = {'sequence': first_sequence + len(run.chunks), 'epoch': epoch}
                    run.chunks.append(replace(policies[level].infer(seen), **number))
                    run.references.append(policies['fp32'].infer(seen))
                    arm.chunk(run.chunks[-1], **change(run.chunks[-1]))
                    tell(arm, run.chunks[-1], run.references[-1])
                arm.put(
                    'policy/gripper_cmds',
                    stamp_ms,
                    header=arm.header(stamp_ms),
                    name=['gripper'],
                    position=np.array([gripper(step)]),
                    velocity=np.zeros(0),
                    effort=np.zeros(0),
                )
    return run


@pytest.fixture
def record_toy(recorded_arm, tmp_path):
    """Record into a folder of this test; see `record_toy_run`."""
    return lambda name='run', **options: record_toy_run(recorded_arm, tmp_path / name, **options)


@pytest.fixture(scope='session')
def toy_run(recorded_arm, tmp_path_factory):
    """A complete run."""
    return record_toy_run(recorded_arm, tmp_path_factory.mktemp('bags') / 'run')
