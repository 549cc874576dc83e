"""Lossless JPEG as DDSM has it: the bare stream, from an encoder that begins in a way of its own.

ISO/IEC 10918-1, H.1.2: in the first row a pixel is predicted by its left neighbour. The encoder of DDSM used its
predictor 7, the mean of left and upper neighbour, there too, with 2^15 as the row above; a decoder by the standard
then gives a ramp from which the image is lost in a wedge along the diagonal. The differences are right, so the
image is decoded by the standard, turned into differences again, and added up as the encoder meant it.
"""

import struct

import imagecodecs
import numpy as np

from rayad import bounds
from rayad.errors import ImageError
from rayad.imaging.decoder import apart

_ABOVE = 1 << 15
_MEAN = 7
"""The predictor (left + above) >> 1 of table H.1."""


def decode(data: bytes, name: str) -> np.ndarray:
    """Grey levels, uint16.

    Raises:
        ImageError: no lossless JPEG of one component and 16 bits, damaged, cut off, or above the bounds.
    """
    return apart("ljpeg:parsed", data, name)[1]


def parsed(data: bytes, name: str) -> tuple[dict[str, int], np.ndarray]:
    """What `decode` gives, decoded in this process."""
    rows, columns, predictor = _header(data, name)
    try:
        decoded = imagecodecs.jpeg8_decode(data)
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"{name}: damaged lossless JPEG: {type(error).__name__}") from error
    if decoded.shape != (rows, columns):
        raise ImageError(f"{name}: damaged lossless JPEG: {decoded.shape} px in place of {rows} x {columns}")
    return {}, _added_up(_differences(decoded)) if predictor == _MEAN else decoded


def _header(data: bytes, name: str) -> tuple[int, int, int]:
    """Rows, columns and predictor."""
    expected = f"{name}: a lossless JPEG of one component and 16 bits expected"
    if data[:2] != b"\xff\xd8":
        raise ImageError(expected)
    offset, shape = 2, (0, 0)
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker, length = data[offset + 1], struct.unpack(">H", data[offset + 2 : offset + 4])[0]
        body = data[offset + 4 : offset + 2 + length]
        if marker == 0xC3 and len(body) >= 6:
            bits, rows, columns, components = struct.unpack(">BHHB", body[:6])
            shape = (rows, columns) if (bits, components) == (16, 1) else (0, 0)
        if marker == 0xDA and len(body) >= 4:
            if not shape[0] * shape[1]:
                raise ImageError(expected)
            bounds.current().require_pixels(*shape, name)
            if shape[0] * shape[1] > 8 * len(data):  # a pixel takes a bit at least
                raise ImageError(f"{name}: damaged lossless JPEG: too short for {shape[0]} x {shape[1]} px")
            if b"\xff\xd9" not in data[offset:]:
                raise ImageError(f"{name}: the file is cut off, a lossless JPEG ends in its marker EOI")
            return shape[0], shape[1], body[3]
        offset += 2 + length
    raise ImageError(expected)


def _differences(decoded: np.ndarray) -> np.ndarray:
    """What the stream holds, modulo 2^16, of an image that was decoded by the standard."""
    pixels = decoded.astype(np.int32)
    predicted = np.empty_like(pixels)
    predicted[0, 0] = _ABOVE
    predicted[0, 1:] = pixels[0, :-1]
    predicted[1:, 0] = pixels[:-1, 0]
    predicted[1:, 1:] = (pixels[1:, :-1] + pixels[:-1, 1:]) >> 1
    return pixels - predicted


def _added_up(differences: np.ndarray) -> np.ndarray:
    """The image, diagonal by diagonal: all that a diagonal needs lies on the one before."""
    height, width = differences.shape
    image = np.empty((height, width), np.uint16)
    last_diagonal = np.zeros(height, np.int32)  # by row, on the last diagonal
    for diagonal in range(height + width - 1):
        first, last = max(0, diagonal - width + 1), min(height - 1, diagonal)
        rows = np.arange(first, last + 1)
        columns = diagonal - rows
        above = np.where(rows > 0, last_diagonal[rows - 1], _ABOVE)
        predicted = np.where(columns > 0, (last_diagonal[rows] + above) >> 1, above)
        values = (predicted + differences[rows, columns]) & 0xFFFF
        image[rows, columns] = values
        last_diagonal[rows] = values
    return image
