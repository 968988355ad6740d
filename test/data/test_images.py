"""Every encoding is judged by the colours that come back, with padding and both byte orders."""

import array
import sys

import numpy as np
import pytest

from vlaq_ros.data.images import (
    COLOUR_ENCODINGS,
    ENCODINGS,
    decode_compressed,
    decode_image,
    unpack_pixels,
)
from vlaq_ros.errors import ImageError, MissingDependencyError

cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed', exc_type=ImportError)

ORANGE = (230, 120, 40)
COLOURS = {'orange': ORANGE, 'green': (20, 200, 60), 'blue': (30, 60, 220), 'grey': (99, 99, 99)}
HEIGHT, WIDTH = 6, 8
BYTE_ORDERS = pytest.mark.parametrize('big', [False, True], ids=['little endian', 'big endian'])


def luminance(rgb):
    """Return the BT.601 grey value of a colour."""
    return round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])


def yuv_bt601(rgb):
    """Return Y, U, V of a colour in video range, from the definition in ITU-R BT.601."""
    r, g, b = (value / 255 for value in rgb)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return (
        round(16 + 219 * y),
        round(128 + 224 * 0.5 * (b - y) / (1 - 0.114)),
        round(128 + 224 * 0.5 * (r - y) / (1 - 0.299)),
    )


def mosaic(pattern, rgb):
    """Return one 2 x 2 cell repeated; `pattern` names its pixels row by row."""
    cell = np.array([rgb['rgb'.index(name)] for name in pattern], np.uint8).reshape(2, 2)
    return np.tile(cell, (HEIGHT // 2, WIDTH // 2))


def encode(encoding, rgb):
    """Return the pixels a camera sends for a scene of one colour, as an array of its numbers."""
    r, g, b = rgb
    y, u, v = yuv_bt601(rgb)
    flat = {
        'rgb8': (r, g, b),
        'rgba8': (r, g, b, 7),
        'bgr8': (b, g, r),
        'bgra8': (b, g, r, 7),
        '8UC3': (b, g, r),
        '8UC4': (b, g, r, 7),
        'mono8': (luminance(rgb),),
        '8UC1': (luminance(rgb),),
    }
    if encoding in flat:
        return np.tile(np.array(flat[encoding], np.uint8), (HEIGHT, WIDTH))
    if encoding.endswith('16'):  # the upper byte is the colour, the lower one is noise
        return encode(encoding[:-2] + '8', rgb).astype(np.uint16) * 256 + 200
    if encoding.startswith('bayer_'):
        return mosaic(encoding[6:10], rgb)
    pair = (u, y, v, y) if encoding in ('yuv422', 'uyvy') else (y, u, y, v)
    return np.tile(np.array(pair, np.uint8), (HEIGHT, WIDTH // 2))


def to_message(numbers, big=False, padding=0):
    """Return step and bytes of these rows, padded with a value that would show."""
    rows = numbers.astype(numbers.dtype.newbyteorder('>' if big else '<'))
    rows = np.ascontiguousarray(rows).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=171)
    return rows.shape[1], rows.tobytes()


def expected_colour(encoding, rgb):
    """Return the colour that must come back."""
    return (luminance(rgb),) * 3 if encoding in ('mono8', 'mono16', '8UC1') else rgb


@pytest.mark.parametrize(
    ('big', 'padding'), [(False, 0), (True, 5)], ids=['tight rows', 'padded big endian']
)
@pytest.mark.parametrize('rgb', COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize('encoding', COLOUR_ENCODINGS)
def test_a_scene_of_one_colour_comes_back_in_that_colour(encoding, rgb, big, padding):
    step, data = to_message(encode(encoding, rgb), big, padding)
    image = decode_image(encoding, HEIGHT, WIDTH, step, big, data)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    expected = np.broadcast_to(expected_colour(encoding, rgb), image.shape)
    tolerance = 3 if 'yv' in encoding or 'yu' in encoding else 0
    assert np.abs(image.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'rgb16', 'bgr16'])
def test_every_pixel_stays_in_its_place(encoding):
    scene = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    numbers = scene[..., ::-1] if encoding.startswith('bgr') else scene
    if 'a8' in encoding:
        numbers = np.concatenate([numbers, np.full((5, 7, 1), 9, np.uint8)], axis=2)
    if encoding.endswith('16'):
        numbers = numbers.astype(np.uint16) * 257
    step, data = to_message(numbers.reshape(5, -1), padding=3)
    np.testing.assert_array_equal(decode_image(encoding, 5, 7, step, False, data), scene)


def test_both_halves_of_a_yuv_image_keep_their_colour():
    left, right = encode('yuyv', ORANGE), encode('yuyv', (30, 60, 220))
    step, data = to_message(np.concatenate([left, right], axis=1))
    image = decode_image('yuyv', HEIGHT, 2 * WIDTH, step, False, data).astype(int)
    assert np.abs(image[:, :WIDTH] - ORANGE).max() <= 3
    assert np.abs(image[:, WIDTH:] - (30, 60, 220)).max() <= 3


@pytest.mark.parametrize(
    'container',
    [bytes, bytearray, memoryview, lambda data: array.array('B', data), np.array],
    ids=['bytes', 'bytearray', 'memoryview', 'array', 'numpy'],
)
def test_any_buffer_is_read_and_the_result_owns_its_memory(container):
    source = np.frombuffer(to_message(encode('rgb8', ORANGE))[1], np.uint8)
    if container is not np.array:
        source = source.tobytes()
    buffer = container(source)
    image = decode_image('rgb8', HEIGHT, WIDTH, 3 * WIDTH, False, buffer)
    assert image.flags.owndata or image.base.flags.owndata
    assert not np.shares_memory(image, np.frombuffer(buffer, np.uint8))
    assert tuple(image[0, 0]) == ORANGE


@BYTE_ORDERS
@pytest.mark.parametrize(
    ('encoding', 'dtype', 'value'),
    [('16UC1', np.uint16, 1234), ('32FC1', np.float32, 1.5), ('64FC1', np.float64, np.nan)],
    ids=['16UC1', '32FC1', '64FC1'],
)
def test_depth_is_unpacked_but_is_not_an_image_of_colours(encoding, dtype, value, big):
    step, data = to_message(np.full((HEIGHT, WIDTH), value, dtype), big, padding=6)
    depth = unpack_pixels(encoding, HEIGHT, WIDTH, step, big, data)
    assert depth.dtype == dtype
    np.testing.assert_array_equal(depth, np.full((HEIGHT, WIDTH), value))
    with pytest.raises(ImageError, match=f"'{encoding}' holds distances .* colour topic"):
        decode_image(encoding, HEIGHT, WIDTH, step, big, data)


def test_depth_encodings_are_the_only_ones_without_colour():
    assert set(ENCODINGS) - set(COLOUR_ENCODINGS) == {'16UC1', '32FC1', '64FC1'}
    assert len(ENCODINGS) == 26


@pytest.mark.parametrize('encoding', ['nv21', 'RGB8', '', 'rgb32'])
def test_an_unknown_encoding_is_refused_with_the_known_ones(encoding):
    with pytest.raises(ImageError, match=f"unknown image encoding '{encoding}'. Known: rgb8, "):
        decode_image(encoding, 1, 1, 3, False, bytes(3))


@pytest.mark.parametrize(
    ('height', 'width'), [(0, 8), (6, 0), (-1, 8)], ids=['no rows', 'no columns', 'negative']
)
def test_an_empty_image_is_refused(height, width):
    with pytest.raises(ImageError, match=f'is empty: width={width}, height={height}'):
        decode_image('rgb8', height, width, 24, False, b'')


@pytest.mark.parametrize('step', [0, 23], ids=['no step', 'one byte missing'])
def test_a_step_shorter_than_a_row_is_refused(step):
    with pytest.raises(ImageError, match=f'step={step} is too short: 8 pixels of rgb8 take 24'):
        decode_image('rgb8', 6, 8, step, False, bytes(6 * step))


@pytest.mark.parametrize('size', [0, 143, 145], ids=['nothing', 'one too few', 'one too many'])
def test_data_that_do_not_fit_the_header_are_refused(size):
    with pytest.raises(ImageError, match=rf'{size} bytes of data, but .* 6 x 24 = 144'):
        decode_image('rgb8', 6, 8, 24, False, bytes(size))


def test_a_yuv_image_of_odd_width_is_refused():
    with pytest.raises(ImageError, match='7 x 6 pixels needs an even width'):
        decode_image('yuyv', 6, 7, 14, False, bytes(6 * 14))


@pytest.mark.parametrize(('height', 'width'), [(2, 8), (8, 2)], ids=['low', 'narrow'])
def test_a_bayer_image_without_a_whole_cell_is_refused(height, width):
    """OpenCV turned such an image black without a word."""
    with pytest.raises(ImageError, match=f'Bayer image of {width} x {height} pixels'):
        decode_image('bayer_rggb8', height, width, width, False, bytes(height * width))


def compress(extension, numbers):
    """Return the bytes of a JPEG or PNG file of these pixels, blue first."""
    return cv2.imencode(extension, numbers)[1].tobytes()


SCENE_BGR = np.broadcast_to(np.array(ORANGE[::-1], np.uint8), (16, 16, 3)).copy()


@pytest.mark.parametrize(
    'format', ['jpeg', 'png', 'rgb8; jpeg compressed bgr8', 'bgr8; png compressed bgr8', '']
)
@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_compressed_scene_comes_back_in_its_colour(extension, format):
    image = decode_compressed(format, compress(extension, SCENE_BGR))
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - ORANGE).max() <= (3 if extension == '.jpg' else 0)


def test_a_file_that_was_written_with_swapped_colours_is_swapped_back():
    swapped = compress('.png', SCENE_BGR[..., ::-1])
    image = decode_compressed('rgb8; png compressed rgb8', swapped)
    assert tuple(image[0, 0]) == ORANGE


@pytest.mark.parametrize(
    ('pixels', 'format', 'expected'),
    [
        (np.full((4, 4), 99, np.uint8), 'mono8; png compressed ', (99, 99, 99)),
        (np.full((4, 4), 99 * 256 + 7, np.uint16), 'mono16; png compressed ', (99, 99, 99)),
        (np.full((4, 4, 3), (10, 20, 30), np.uint16) * 256 + 7, 'png', (30, 20, 10)),
        (np.full((4, 4, 4), (10, 20, 30, 255), np.uint8), 'png', (30, 20, 10)),
    ],
    ids=['grey', 'grey 16 bit', 'colour 16 bit', 'transparent'],
)
def test_other_kinds_of_png_become_8_bit_rgb(pixels, format, expected):
    image = decode_compressed(format, compress('.png', pixels))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (4, 4, 3)))


@pytest.mark.parametrize(
    ('format', 'header', 'dtype'),
    [
        ('16UC1; png compressed ', b'', np.uint8),
        ('compressedDepth', bytes(12), np.uint16),
        ('png', b'', np.uint16),
    ],
    ids=['by its encoding', 'by its transport', 'by its numbers'],
)
def test_compressed_depth_is_not_an_image_of_colours(format, header, dtype):
    depth = header + compress('.png', np.full((4, 4), 123, dtype))
    with pytest.raises(ImageError, match='holds distances or bare numbers'):
        decode_compressed(format, depth)


def test_a_compressed_bayer_mosaic_is_refused():
    data = compress('.jpg', mosaic('rggb', ORANGE))
    with pytest.raises(ImageError, match='Bayer mosaic has lost its colours'):
        decode_compressed('bayer_rggb8; jpeg compressed ', data)


@pytest.mark.parametrize('data', [b'', b'GIF89a', bytes(100)], ids=['nothing', 'gif', 'zeros'])
def test_data_that_are_neither_jpeg_nor_png_are_refused(data):
    with pytest.raises(ImageError, match=r"neither JPEG nor PNG \(format 'h264'\)"):
        decode_compressed('h264', data)


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.3, 0.9], ids=['early', 'late'])
def test_a_truncated_file_is_refused(extension, share):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = compress(extension, noise)
    cut = int(share * len(whole))
    with pytest.raises(ImageError, match=f'cut off after {cut} bytes'):
        decode_compressed('', whole[:cut])


def test_a_broken_file_is_refused():
    with pytest.raises(ImageError, match='of 5 bytes is broken'):
        decode_compressed('jpeg', b'\xff\xd8\x00\xff\xd9')


def test_without_opencv_plain_colours_still_decode_and_the_rest_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    step, data = to_message(encode('bgr8', ORANGE))
    assert tuple(decode_image('bgr8', HEIGHT, WIDTH, step, False, data)[0, 0]) == ORANGE
    step, data = to_message(encode('bayer_rggb8', ORANGE))
    with pytest.raises(MissingDependencyError, match='install .* opencv-python .* libgl1'):
        decode_image('bayer_rggb8', HEIGHT, WIDTH, step, False, data)
