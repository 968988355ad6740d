"""A tiny reference policy with random weights, and batches of random observations."""

import dataclasses

import pytest
import torch

from vlaq_ros.calibration.method import CalibrationContext
from vlaq_ros.calibration.reference import ReferenceBatch, ReferenceForward, reference_structure
from vlaq_ros.policies.bundle import open_bundle, write_bundle
from vlaq_ros.policies.reference import QUANTIZED_ROLES, golden_actions, layer_roles
from vlaq_ros.policies.reference_model import ReferenceConfig, ReferenceModel
from vlaq_ros.policies.spec import CameraSpec
from vlaq_ros.policies.toy import toy_spec

CONFIG = ReferenceConfig(
    8,
    6,
    (('front', 32, 32), ('wrist', 16, 16)),
    4,
    4,
    8,
    hidden_size=32,
    layers=2,
    heads=2,
    intermediate_size=48,
    dit_layers=1,
    bins=16,
)


def _batch(generator: torch.Generator, size: int) -> ReferenceBatch:
    images = {
        name: torch.rand(size, 3, height, width, generator=generator) * 2 - 1
        for name, height, width in CONFIG.cameras
    }
    words = torch.randint(2, 8, (size, 6), generator=generator)
    words[:, 4:] = 0
    return ReferenceBatch(images, torch.randn(size, 4, generator=generator), words)


@pytest.fixture
def context() -> CalibrationContext:
    """A context of its own for every test; the modulation of the flow head is not zero."""
    torch.manual_seed(0)
    model = ReferenceModel(CONFIG).eval()
    for block in model.dit:
        torch.nn.init.normal_(block.adaln.weight, std=0.2)
        torch.nn.init.normal_(block.adaln.bias, std=0.2)
        torch.nn.init.normal_(block.norm2.bias, std=0.2)
    model.requires_grad_(False)
    spec = dataclasses.replace(toy_spec(), family='reference', name='tiny')
    roles = layer_roles(model)
    generator = torch.Generator().manual_seed(1)
    return CalibrationContext(
        model=model,
        layers={name: role for name, role in roles.items() if role in QUANTIZED_ROLES},
        forward=ReferenceForward(model, spec, spec.heads),
        decode=ReferenceForward(model, spec, spec.heads, decoded=True),
        batches=[_batch(generator, 8) for _ in range(2)],
        held_out=[_batch(generator, 8)],
        spec=spec.action,
        action_scale=torch.tensor(spec.action_std),
        structure=reference_structure(model),
        budget_bits=4.0,
        group_size=16,
    )


@pytest.fixture(scope='session')
def tiny_bundle(tmp_path_factory):
    """Folder of a float bundle with random weights whose actions see images and words."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, prompt_length=toy_spec().prompt.max_words)
    model = ReferenceModel(config).eval()
    for block in model.dit:
        torch.nn.init.normal_(block.adaln.weight, std=0.2)
    cameras = tuple(CameraSpec(*camera) for camera in CONFIG.cameras)
    spec = dataclasses.replace(toy_spec(), family='reference', name='tiny', cameras=cameras)
    path = tmp_path_factory.mktemp('bundles') / 'tiny'
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    write_bundle(path, spec, config.to_json(), tensors)
    golden = golden_actions(open_bundle(path), ('reach the goal', 'open the drawer'))
    write_bundle(path, spec, config.to_json(), tensors, golden)
    return path


SENTENCES = ('reach the goal', 'open the drawer')


@pytest.fixture(scope='session')
def tiny_bag(recorded_arm, tmp_path_factory):
    """A bag that fits `tiny_bundle`: six episodes with two sentences, an arm that moves."""
    path = tmp_path_factory.mktemp('bags') / 'work'
    write_tiny_bag(recorded_arm, path)
    return path


def write_tiny_bag(recorded_arm, path, **options):
    """Record 40 steps per episode, and 3 s of silence between two of them."""
    with recorded_arm.RecordedArm(path, **options) as arm:
        for episode in range(6):
            start_ms = 1000.0 + 4000.0 * episode
            arm.say(SENTENCES[episode % 2], start_ms - 10.0)
            for step in range(40):
                now_ms = start_ms + 25.0 * step
                phase = step / 40.0
                place = (0.1 * phase**2, 0.5 + 0.02 * episode, 0.2 - 0.1 * phase * (1 - phase))
                for camera, height, width in CONFIG.cameras:
                    value = (7 * step + 31 * episode) % 251
                    arm.image(camera, now_ms, value, (height, width))
                arm.pose(now_ms, place)
                arm.joints(now_ms, 0.04 if step < 25 else 0.0)
