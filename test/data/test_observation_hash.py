"""One hash for what a policy saw."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest

from vlaq_ros.data.observation_hash import observation_hash
from vlaq_ros.types import Observation

RNG = np.random.default_rng(0)
SEEN = Observation(
    {
        'front': RNG.integers(0, 256, (6, 8, 3), np.uint8),
        'wrist': RNG.integers(0, 256, (4, 4, 3), np.uint8),
    },
    np.array([0.1, -2.0, 3e-9]),
    'open',
    7,
)


def test_it_is_the_sha256_of_images_then_state_as_little_endian_doubles():
    content = SEEN.images['front'].tobytes() + SEEN.images['wrist'].tobytes()
    content += struct.pack('<3d', *SEEN.state)
    expected = hashlib.sha256(content).hexdigest()
    assert observation_hash(SEEN, ('front', 'wrist')) == expected


def test_neither_the_layout_in_memory_nor_the_stamps_matter():
    turned = {name: np.asfortranarray(image) for name, image in SEEN.images.items()}
    same = replace(SEEN, images=turned, observed_ns=8, image_ns={'front': 8})
    assert observation_hash(same, SEEN.images) == observation_hash(SEEN, SEEN.images)


@pytest.mark.parametrize('camera', ['front', 'wrist'])
def test_one_step_of_one_colour_matters(camera):
    images = {name: image.copy() for name, image in SEEN.images.items()}
    images[camera][2, 1, 0] ^= 1
    changed = observation_hash(replace(SEEN, images=images), SEEN.images)
    assert changed != observation_hash(SEEN, SEEN.images)


def test_the_last_bit_of_the_state_and_the_order_of_cameras_matter():
    state = SEEN.state.copy()
    state[2] = np.nextafter(state[2], 1.0)
    first = observation_hash(SEEN, ('front', 'wrist'))
    assert observation_hash(replace(SEEN, state=state), ('front', 'wrist')) != first
    assert observation_hash(SEEN, ('wrist', 'front')) != first
