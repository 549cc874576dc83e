"""How large a compressed image in a DICOM file is by its own word, before a decoder believes it.

Decoders take the size from the codestream and not from Rows and Columns: a few bytes can claim any size, and an image
of as many pixels in another shape would be scored as if it were the right one.
"""

import struct

from pydicom import uid

from rayad.errors import ImageError
from rayad.imaging import dicom, raster

_JPEG_2000 = (*uid.JPEG2000TransferSyntaxes, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
_SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream, ISO 15444-1, A.4.1 and A.5.1: SIZ comes first."""
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
"""Second bytes of start of frame, ISO 10918-1, B.1.1.3, and of JPEG-LS, ISO 14495-1, C.1.1."""


def check(data: bytes, name: str) -> None:
    """ImageError if the codestream of a DICOM image has another size than Rows and Columns; others pass."""
    if raster.is_raster(data):
        return
    said = dicom.attributes(data, name)
    syntax = said.file_meta.get("TransferSyntaxUID", "") if hasattr(said, "file_meta") else ""
    with dicom.explained(name):
        if syntax in _JPEG_2000:
            found = _of_jpeg_2000(data)
        elif syntax in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes):
            found = _of_jpeg(data)
        else:
            return
        if found and found != (said.get("Rows"), said.get("Columns")):
            raise ImageError(f"{name}: a compressed image of {found[0]} x {found[1]} px in a file that says otherwise")


def _of_jpeg_2000(data: bytes) -> tuple[int, int] | None:
    at = data.find(_SIZ)
    if at < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return bottom - top, right - left


def _of_jpeg(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of the first frame; the header of a DICOM file has no JPEG of its own (an icon may)."""
    at = data.find(b"\xff\xd8\xff", max(0, data.find(b"\xe0\x7f\x10\x00"))) + 2  # (7FE0,0010), PixelData
    while at > 1 and at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = struct.unpack_from(">xBH", data, at)
        if kind in _FRAMES:
            rows, columns = struct.unpack_from(">2H", data, at + 5)
            return rows, columns
        at += 2 + length
    return None
