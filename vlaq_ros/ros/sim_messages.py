"""Messages of the simulated arm, from numbers. No logic, no node."""

import array

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Header

from vlaq_ros.ros.conversions import to_stamp
from vlaq_ros.sim.robot import GRIPPER_TRAVEL_M, JOINT_NAMES

GRIPPER_JOINT = 'gripper'
_JPEG_QUALITY = 90


def header(stamp_ns: int, frame: str) -> Header:
    """Return a header for a stamp in nanoseconds."""
    return Header(stamp=to_stamp(stamp_ns), frame_id=frame)


def image_message(image: NDArray[np.uint8], stamped: Header) -> Image:
    """Return an `rgb8` image message of RGB pixels [height, width, 3]."""
    height, width, _ = image.shape
    message = Image(header=stamped, height=height, width=width, encoding='rgb8', step=3 * width)
    message.data = array.array('B', image.tobytes())  # other types are checked byte by byte
    return message


def jpeg_message(image: NDArray[np.uint8], stamped: Header) -> CompressedImage:
    """Return a JPEG of RGB pixels [height, width, 3], labelled as image_transport does."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    _, encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    message = CompressedImage(header=stamped, format='rgb8; jpeg compressed bgr8')
    message.data = array.array('B', encoded.tobytes())
    return message


def camera_info_message(
    matrix: NDArray[np.float64], height: int, width: int, stamped: Header
) -> CameraInfo:
    """Return the calibration of a camera without distortion: `matrix` is K [3, 3] in pixels."""
    projection = np.hstack([matrix, np.zeros((3, 1))])
    return CameraInfo(
        header=stamped,
        height=height,
        width=width,
        distortion_model='plumb_bob',
        d=[0.0] * 5,
        k=matrix.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=projection.ravel().tolist(),
    )


def joint_state_message(
    angles: NDArray[np.float64], opening: float, stamped: Header
) -> JointState:
    """Return the arm's joints [rad] and the distance of the fingers [m] for an opening [1]."""
    return JointState(
        header=stamped,
        name=[*JOINT_NAMES, GRIPPER_JOINT],
        position=[*angles.tolist(), opening * GRIPPER_TRAVEL_M],
    )
