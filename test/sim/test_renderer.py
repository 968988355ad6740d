"""Several OpenGL contexts in one process: none takes anything from another."""

import numpy as np
import pytest

from vlaq_ros.errors import SimulatorError

BALL = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="above" pos="0 0 2"/>
    <geom type="sphere" size="{size}" rgba="{colour} 1"/>
  </worldbody>
</mujoco>
"""


class Drawing:
    """A ball, and what draws it."""

    def __init__(self, size, colour):
        from vlaq_ros.sim.engine import mujoco
        from vlaq_ros.sim.renderer import Renderer

        self.model = mujoco.MjModel.from_xml_string(BALL.format(size=size, colour=colour))
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.renderer = Renderer(self.model)

    def render(self):
        return self.renderer.render(self.data, 'above', 64)


@pytest.fixture
def red(simulator):
    drawing = Drawing(0.5, '1 0 0')
    yield drawing
    drawing.renderer.close()


def test_what_is_drawn_is_there(red):
    image = red.render()
    assert image.shape == (64, 64, 3)
    assert image[32, 32, 0] > 2 * image[32, 32, 1:].max()
    assert image[32, 32, 0] > image[0, 0, 0]


def test_two_draw_in_turn(red):
    blue = Drawing(0.3, '0 0 1')
    first, other = red.render(), blue.render()
    assert np.array_equal(red.render(), first)
    assert np.array_equal(blue.render(), other)
    assert not np.array_equal(first, other)
    blue.renderer.close()


@pytest.mark.parametrize('is_closed', [True, False])
def test_one_that_is_gone_takes_nothing_from_the_others(red, is_closed):
    before = red.render()
    blue = Drawing(0.3, '0 0 1')
    blue.render()
    red.render()
    if is_closed:
        blue.renderer.close()
    del blue
    assert np.array_equal(red.render(), before)


def test_one_may_be_closed_twice(red):
    before = red.render()
    blue = Drawing(0.3, '0 0 1')
    blue.renderer.close()
    blue.renderer.close()
    assert np.array_equal(red.render(), before)


def test_an_error_of_opengl_is_no_picture(red, monkeypatch):
    from vlaq_ros.sim.engine import mujoco

    reported = iter([0, 1286])
    monkeypatch.setattr(mujoco, 'mjr_getError', lambda: next(reported))
    with pytest.raises(SimulatorError, match="camera 'above' was not drawn: .* error 0x506"):
        red.render()
