"""Does an observation fit the spec? One place, used by every policy family."""

import numpy as np

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.spec import PolicySpec
from vlaq_ros.types import Observation


def check_observation(observation: Observation, spec: PolicySpec) -> None:
    """
    Raise `PolicyError` listing everything about `observation` that does not fit `spec`.

    Nothing is filled in and nothing is resized: a policy that was trained on 96 x 96 pixels sees
    something else in any other image.
    """
    problems = []
    for camera in spec.cameras:
        image = observation.images.get(camera.name)
        expected = (camera.height, camera.width, 3)
        if image is None:
            problems.append(f'camera {camera.name!r} is missing')
        elif image.shape != expected or image.dtype != np.uint8:
            problems.append(
                f'camera {camera.name!r} is {image.dtype} {list(image.shape)}, expected uint8 '
                f'{list(expected)}'
            )
    size = len(spec.state.names)
    if observation.state.shape != (size,):
        problems.append(f'state is {list(observation.state.shape)}, expected [{size}]')
    elif not np.isfinite(observation.state).all():
        bad = [n for n, v in zip(spec.state.names, observation.state) if not np.isfinite(v)]
        problems.append(f'state is not finite: {", ".join(bad)}')
    if problems:
        raise PolicyError('the observation does not fit the policy: ' + '; '.join(problems))
