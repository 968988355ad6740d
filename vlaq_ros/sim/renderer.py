"""
Pictures of one MuJoCo model without a screen, at any size up to `MAX_SIZE`.

One OpenGL context serves all cameras of a model; `mujoco.Renderer` needs one for each image size.
It is released in an order that leaves the contexts of other models alone, also when nobody closes
it: MuJoCo frees textures and buffers while whichever context happens to be current, and what that
one draws afterwards is wrong.
"""

import os
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import SimulatorError
from vlaq_ros.sim.engine import mujoco

MAX_SIZE = 256

_this_thread = threading.local()  # .context: what is current in this thread


class Renderer:
    """
    Draws one model. Use it from one thread.

    Raises:
        SimulatorError: No OpenGL library for drawing without a screen was found.
    """

    def __init__(self, model: Any) -> None:
        # Shadow maps and multisampling cost twenty times the rest of a software-rendered image.
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = MAX_SIZE
        self._model = model
        try:
            self._context = mujoco.GLContext(MAX_SIZE, MAX_SIZE)
            _make_current(self._context)
            self._gpu = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:
            raise SimulatorError(
                f'MuJoCo cannot render with MUJOCO_GL={os.environ["MUJOCO_GL"]}: {error}. '
                'Install OSMesa (Debian: libosmesa6) or use MUJOCO_GL=egl'
            ) from error
        self._finalizer = weakref.finalize(self, _release, self._context, self._gpu)
        self._finalizer.atexit = False  # the libraries may be gone by then
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._gpu)
        self._scene = mujoco.MjvScene(model, maxgeom=10000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def render(self, data: Any, camera: str, size: int) -> NDArray[np.uint8]:
        """
        Return what a camera of the model sees: RGB uint8 [size, size, 3].

        Raises:
            SimulatorError: OpenGL reports an error, so there is no picture.
        """
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        _make_current(self._context)
        mujoco.mjr_getError()  # forget what others left
        area = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(area, self._scene, self._gpu)
        image = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, area, self._gpu)
        if error := mujoco.mjr_getError():
            raise SimulatorError(
                f'camera {camera!r} was not drawn: OpenGL reports error {error:#x} with MUJOCO_GL='
                f'{os.environ["MUJOCO_GL"]}. Start this process again; if it happens again, use '
                'another MUJOCO_GL (osmesa, egl)'
            )
        return image[::-1]

    def close(self) -> None:
        """Release the context and everything in it."""
        self._finalizer()


def _make_current(context: Any) -> None:
    context.make_current()
    _this_thread.context = context


def _release(context: Any, gpu: Any) -> None:
    """Free what belongs to a context while it is current, then go back to the one before."""
    before = getattr(_this_thread, 'context', None)
    _make_current(context)
    gpu.free()
    context.free()
    _this_thread.context = None
    if before is not None and before is not context:
        _make_current(before)
