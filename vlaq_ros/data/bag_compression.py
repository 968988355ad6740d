"""Decompression of what bags hold, as far as it goes when the data are cut off."""

from pathlib import Path

from vlaq_ros.errors import MissingDependencyError

try:
    import lz4.frame
    import zstandard
except ImportError as error:
    raise MissingDependencyError(
        f'bags are read with the Python packages zstandard and lz4 ({error}): '
        "pip install 'vlaq_ros[bags]'"
    ) from error

PACKED_SUFFIXES = ('.zstd', '.zst')


def decompress(kind: str, data: bytes) -> bytes:
    """
    Return data that were compressed with `zstd`, `lz4` or not at all (empty).

    Raises:
        ValueError: The compression is not known.
        Exception: Whatever the library raises for damaged data.
    """
    if kind == 'zstd':
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if kind == 'lz4':
        return lz4.frame.LZ4FrameDecompressor().decompress(data)
    if kind:
        raise ValueError(f'compression {kind!r} is not known')
    return data


def unpack_file(packed: Path, plain: Path) -> str:
    """Write a zstd file in plain, piece by piece; return what is wrong with it, empty: nothing."""
    with packed.open('rb') as source, plain.open('wb') as target:
        try:
            zstandard.ZstdDecompressor().copy_stream(source, target)
        except zstandard.ZstdError as error:
            return f'{packed.name}: the compressed file is damaged ({error})'
    return ''
