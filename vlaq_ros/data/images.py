"""
Image messages as RGB pixels.

One decoder for every encoding that colour cameras send, so that a recording and the running node
see the same pixels on every machine. An encoding that is not known, a buffer that does not match
its header or a broken file is refused; nothing is guessed and no pixel is filled in. Depth images
have no colour: `decode_image` refuses them and `unpack_pixels` returns their numbers.

Conventions: 16 bit colours keep their upper byte; `8UC3` and `8UC4` name no colours and are taken
in the order of OpenCV, blue first; YUV is converted as OpenCV does (BT.601, video range).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlaq_ros.errors import ImageError, MissingDependencyError


class _Layout(NamedTuple):
    """How the bytes of one pixel are laid out, and how to get its colour; None: it has none."""

    dtype: str
    channels: int
    to_rgb: Callable[[NDArray], NDArray] | None


def _rgb(pixels: NDArray) -> NDArray:
    return pixels[..., :3]


def _bgr(pixels: NDArray) -> NDArray:
    return pixels[..., 2::-1]


def _mono(pixels: NDArray) -> NDArray:
    return np.repeat(pixels[..., np.newaxis], 3, axis=2)


def _bayer(opencv_pattern: str) -> Callable[[NDArray], NDArray]:
    def demosaic(pixels: NDArray) -> NDArray:
        if min(pixels.shape) < 3:
            raise ImageError(f'a Bayer image of {_size(pixels)} has no whole cell: send colour')
        cv2 = _opencv()
        return cv2.cvtColor(pixels, getattr(cv2, f'COLOR_Bayer{opencv_pattern}2RGB'))

    return demosaic


def _yuv422(opencv_name: str) -> Callable[[NDArray], NDArray]:
    def convert(pixels: NDArray) -> NDArray:
        if pixels.shape[1] % 2:
            raise ImageError(f'a YUV 4:2:2 image of {_size(pixels)} needs an even width')
        cv2 = _opencv()
        return cv2.cvtColor(pixels, getattr(cv2, f'COLOR_YUV2RGB_{opencv_name}'))

    return convert


# ROS names a Bayer pattern by its first four pixels, OpenCV by the second pixel of the second row.
_BAYER = {'rggb': 'BG', 'bggr': 'RG', 'gbrg': 'GR', 'grbg': 'GB'}

_LAYOUTS = {
    'rgb8': _Layout('u1', 3, _rgb),
    'rgba8': _Layout('u1', 4, _rgb),
    'rgb16': _Layout('u2', 3, _rgb),
    'bgr8': _Layout('u1', 3, _bgr),
    'bgra8': _Layout('u1', 4, _bgr),
    'bgr16': _Layout('u2', 3, _bgr),
    'mono8': _Layout('u1', 1, _mono),
    'mono16': _Layout('u2', 1, _mono),
    '8UC1': _Layout('u1', 1, _mono),
    '8UC3': _Layout('u1', 3, _bgr),
    '8UC4': _Layout('u1', 4, _bgr),
    '16UC1': _Layout('u2', 1, None),
    '32FC1': _Layout('f4', 1, None),
    '64FC1': _Layout('f8', 1, None),
    'yuv422': _Layout('u1', 2, _yuv422('UYVY')),
    'uyvy': _Layout('u1', 2, _yuv422('UYVY')),
    'yuv422_yuy2': _Layout('u1', 2, _yuv422('YUY2')),
    'yuyv': _Layout('u1', 2, _yuv422('YUY2')),
    **{f'bayer_{ros}8': _Layout('u1', 1, _bayer(opencv)) for ros, opencv in _BAYER.items()},
    **{f'bayer_{ros}16': _Layout('u2', 1, _bayer(opencv)) for ros, opencv in _BAYER.items()},
}

ENCODINGS = tuple(_LAYOUTS)
"""Every encoding that `unpack_pixels` knows."""

COLOUR_ENCODINGS = tuple(name for name, layout in _LAYOUTS.items() if layout.to_rgb)
"""Every encoding that `decode_image` knows."""


def decode_image(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Any
) -> NDArray[np.uint8]:
    """
    Return the pixels [height, width, 3] of a `sensor_msgs/Image` in RGB order.

    The arguments are the fields of the message; `data` is anything with the buffer protocol. The
    result owns its memory.

    Raises:
        ImageError: The encoding is unknown or has no colour, or the data do not fit the header.
    """
    pixels = unpack_pixels(encoding, height, width, step, is_bigendian, data)
    to_rgb = _LAYOUTS[encoding].to_rgb
    if to_rgb is None:
        raise ImageError(_no_colour(encoding))
    return _to_8_bit(to_rgb(pixels))


def unpack_pixels(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Any
) -> NDArray:
    """
    Return the numbers of a `sensor_msgs/Image` as they were sent, in native byte order.

    Returns:
        [height, width] or [height, width, channels] without row padding: for depth 16UC1 the
        distance in mm, for 32FC1 in m; for Bayer the mosaic; for YUV 4:2:2 the byte pairs.

    Raises:
        ImageError: The encoding is unknown, or the data do not fit the header.
    """
    if encoding not in _LAYOUTS:
        raise ImageError(f'unknown image encoding {encoding!r}. Known: {", ".join(ENCODINGS)}')
    dtype, channels, _ = _LAYOUTS[encoding]
    dtype = np.dtype(dtype)
    if height < 1 or width < 1:
        raise ImageError(f'the {encoding} image is empty: width={width}, height={height}')
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise ImageError(
            f'step={step} is too short: {width} pixels of {encoding} take {row_bytes} bytes a row'
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    if raw.size != height * step:
        raise ImageError(
            f'the {encoding} image has {raw.size} bytes of data, '
            f'but height x step = {height} x {step} = {height * step}'
        )
    rows = np.ascontiguousarray(raw.reshape(height, step)[:, :row_bytes])
    pixels = rows.view(dtype.newbyteorder('>' if is_bigendian else '<')).astype(dtype)
    return pixels if channels == 1 else pixels.reshape(height, width, channels)


def decode_compressed(format: str, data: Any) -> NDArray[np.uint8]:
    """
    Return the pixels [height, width, 3] of a `sensor_msgs/CompressedImage` in RGB order.

    JPEG and PNG are recognized by their content. `format` says what the pixels meant before
    compression, e.g. `rgb8; jpeg compressed bgr8`, and whether the file holds swapped colours.

    Raises:
        ImageError: The data are neither JPEG nor PNG, are truncated or broken, or have no colour.
    """
    source, _, _ = format.partition(';')
    raw = np.frombuffer(data, dtype=np.uint8)
    if 'compressedDepth' in format or _has_no_colour(source):
        raise ImageError(_no_colour(format))
    _require_whole_file(format, raw.tobytes())
    cv2 = _opencv()
    pixels = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)  # blue first; keeps 16 bits; ignores EXIF
    if pixels is None:
        raise ImageError(f'the compressed image of {raw.size} bytes is broken (format {format!r})')
    if pixels.ndim == 3:
        return _to_8_bit((_rgb if 'compressed rgb' in format else _bgr)(pixels))
    if source.startswith('bayer_'):
        raise ImageError(f'a compressed Bayer mosaic has lost its colours (format {format!r})')
    if pixels.dtype != np.uint8 and source != 'mono16':
        raise ImageError(_no_colour(f'{format}, 16 bit, one channel'))
    return _to_8_bit(_mono(pixels))


def _to_8_bit(pixels: NDArray) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _has_no_colour(encoding: str) -> bool:
    return encoding in _LAYOUTS and _LAYOUTS[encoding].to_rgb is None


def _no_colour(encoding: str) -> str:
    return (
        f'encoding {encoding!r} holds distances or bare numbers, not colours: '
        'subscribe to the colour topic of this camera'
    )


def _require_whole_file(format: str, raw: bytes) -> None:
    """Refuse a truncated file: decoders fill the missing part with grey and only log it."""
    if raw.startswith(b'\xff\xd8'):
        is_whole = b'\xff\xd9' in raw[2:]
    elif raw.startswith(b'\x89PNG\r\n\x1a\n'):
        is_whole = b'IEND' in raw
    else:
        raise ImageError(f'the compressed image is neither JPEG nor PNG (format {format!r})')
    if not is_whole:
        raise ImageError(f'the compressed image is cut off after {len(raw)} bytes')


def _size(pixels: NDArray) -> str:
    return f'{pixels.shape[1]} x {pixels.shape[0]} pixels'


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f'OpenCV cannot be loaded ({error}): install the Python package opencv-python and, '
            'on a bare system, the library libgl1'
        ) from error
    return cv2
