"""
One hash for what a policy saw, so that two machines know that they saw the same.

The sentence is not in it: it travels with the hash, as text.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from vlaq_ros.types import Observation


def observation_hash(observation: Observation, cameras: Iterable[str]) -> str:
    """
    Return the sha256 of images and state, as hexadecimal digits.

    Args:
        observation: Images as RGB uint8, rows from top to bottom; the state as float64.
        cameras: Names in the order of the policy; the state, little-endian, comes last.
    """
    digest = hashlib.sha256()
    for name in cameras:
        digest.update(np.ascontiguousarray(observation.images[name]))
    digest.update(observation.state.astype('<f8').tobytes())
    return digest.hexdigest()
