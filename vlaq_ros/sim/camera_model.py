"""
Pinhole intrinsics of the simulated cameras, for `sensor_msgs/CameraInfo`.

They describe the image as it is delivered, so a consumer needs no region of interest: the window
that is read out of the sensor only moves the principal point. Integer pixel coordinates are pixel
centres, as in OpenCV and image_geometry.
"""

import math

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.sim.robot import Camera, SimRobot


def intrinsics(robot: SimRobot, camera: Camera) -> NDArray[np.float64]:
    """
    Return the camera matrix K [3, 3] of `camera` [px].

    A camera that hangs upside down delivers its image turned by 180 degrees. The centre of the
    square sensor stays where it is, so the turn does not change K: it turns the optical frame of
    the delivered image about its own z axis.
    """
    model = robot.scene.environment.model
    fovy = math.radians(model.cam_fovy[model.camera(camera.source).id])
    focal = 0.5 * camera.sensor / math.tan(0.5 * fovy)  # square pixels: fx = fy
    centre = 0.5 * (camera.sensor - 1)
    return np.array(
        [
            [focal, 0.0, centre - camera.left],
            [0.0, focal, centre - camera.top],
            [0.0, 0.0, 1.0],
        ]
    )


def optical_pose(
    robot: SimRobot, camera: Camera
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return position [3] in metres and rotation [3, 3] of the optical frame in the base frame.

    Optical frames (REP 103) look along z with x to the right and y down in the delivered image;
    MuJoCo cameras look along -z with y up.
    """
    data = robot.scene.environment.data
    placed = data.camera(camera.source)
    turn = np.diag([-1.0, 1.0, -1.0]) if camera.upside_down else np.diag([1.0, -1.0, -1.0])
    return placed.xpos.copy(), placed.xmat.reshape(3, 3) @ turn
