"""
Checks that a loaded policy behaves like a policy, run before the robot may move.

A policy that ignores its cameras or its instruction still returns smooth, finite actions, so only
changing the input shows it (openvla/openvla#346 drove robots blind in this way).
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.base import Policy, SelfTestReport
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.types import Observation

# Share of the range of an action dimension that counts as a change.
SENSITIVE = 1e-4
# Mean difference to the golden actions, as a share of the range of each action dimension.
# The golden actions of a packed bundle are its own, taken when it was packed.
GOLDEN_TOLERANCE = {
    'fp32': 1e-3,
    'bf16': 0.01,
    'w8': 0.01,
    'w8a8': 0.01,
    'w4': 0.05,
    'w4a8': 0.05,
    'nested': 0.01,
    'packed': 0.01,
}


def synthetic_observation(
    spec: PolicySpec, instruction: str, shade: int | None = None
) -> Observation:
    """
    Return a fixed observation for `spec`: textured images (or one flat shade), the mean state.

    Built without a random generator, so that it is the same everywhere and for ever.
    """
    images = {}
    for camera in spec.cameras:
        rows, columns = np.mgrid[0 : camera.height, 0 : camera.width]
        phase = zlib.crc32(camera.name.encode()) % 97
        channels = [(rows * (3 + c) + columns * (5 - c) + phase * (c + 1)) % 256 for c in range(3)]
        image = np.stack(channels, axis=-1).astype(np.uint8)
        images[camera.name] = image if shade is None else np.full_like(image, shade)
    return Observation(images, np.array(spec.state.mean), instruction, observed_ns=0)


def run_self_test(
    policy: Policy, instructions: tuple[str, str], golden: NDArray[np.float64] | None
) -> SelfTestReport:
    """
    Check finiteness, sensitivity to image, state of the network and words, and the golden actions.

    Args:
        policy: The policy as it will run.
        instructions: Two sentences that ask for different motions.
        golden: [horizon, action_dim] actions of the full-precision policy for the first
            instruction.
    """
    spec = policy.spec
    span = np.subtract(spec.action.high, spec.action.low)

    def actions(instruction: str, shade: int | None = None) -> NDArray[np.float64]:
        return policy.infer(synthetic_observation(spec, instruction, shade)).actions

    checks: list[tuple[str, bool, str]] = []
    try:
        base = actions(instructions[0])
        image_change = float(
            (np.abs(actions(instructions[0], 0) - actions(instructions[0], 255)) / span).max()
        )
        word_change = float((np.abs(base - actions(instructions[1])) / span).max())
        repeated = bool(np.array_equal(base, actions(instructions[0])))
    except PolicyError as error:
        return SelfTestReport((('inference', False, str(error)),))
    checks.append(
        (
            'images',
            image_change > SENSITIVE,
            f'black against white images change the actions by {image_change:.2%} of their range',
        )
    )
    checks.append(
        (
            'instruction',
            word_change > SENSITIVE,
            f'another instruction changes the actions by {word_change:.2%} of their range',
        )
    )
    checks.append(('determinism', repeated, 'the same observation twice gives the same actions'))
    if golden is not None:
        error = float((np.abs(base - golden) / span).mean())
        limit = golden_tolerance(policy)
        text = f'actions differ from the stored ones by {error:.3%} of their range in the mean, '
        text += f'limit {limit:.1%}' if limit < math.inf else f'not judged at {policy.precision}'
        checks.append(('golden', error <= limit, text))
    return SelfTestReport(tuple(checks))


def golden_tolerance(policy: Policy) -> float:
    """
    Return how far from its golden actions a policy may be at what it runs at now.

    Levels that a loaded policy was switched to have the tolerance of their weights; with
    activations below 8 bits no figure says what is still right, and the answer is infinite.
    """
    known = GOLDEN_TOLERANCE.get(policy.precision)
    if known is not None:
        return known
    levels = policy.active_levels.values()
    if min(level.activation_bits for level in levels) < 8:
        return math.inf
    return max(GOLDEN_TOLERANCE[f'w{level.weight_bits}'] for level in levels)
