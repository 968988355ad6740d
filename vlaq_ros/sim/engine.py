"""
The only place that imports MuJoCo and Meta-World.

MuJoCo chooses its rendering library from `MUJOCO_GL` while it is imported, so the default is set
here, first.
"""

import os

from vlaq_ros.errors import MissingDependencyError

os.environ.setdefault('MUJOCO_GL', 'osmesa')
# Several simulators share the cores: one software-rendering thread each.
os.environ.setdefault('LP_NUM_THREADS', '1')

try:
    import metaworld
    import mujoco
    from metaworld.policies import ENV_POLICY_MAP as EXPERTS
except (ImportError, OSError) as error:
    raise MissingDependencyError(
        f'the simulator cannot be imported ({error}). It needs the packages metaworld and '
        'mujoco, and the system library OSMesa (Debian: libosmesa6) or EGL with MUJOCO_GL=egl'
    ) from error

__all__ = ['EXPERTS', 'metaworld', 'mujoco']
