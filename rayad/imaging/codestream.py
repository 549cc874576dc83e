"""How large a compressed image in a DICOM file is by its own word, before a decoder believes it.

Decoders take the size from the codestream and not from Rows and Columns: a few bytes can claim any size, and an image
of as many pixels in another shape would be scored as if it were the right one. So the codestream of PixelData itself is
asked, never what looks like one elsewhere in the file.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset, uid
from pydicom.encaps import generate_frames, parse_basic_offsets

from rayad.errors import ImageError

_JPEG_2000 = (*uid.JPEG2000TransferSyntaxes, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
_JPEG = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes)
_SIZ = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream, ISO 15444-1, A.4.1 and A.5.1: SIZ comes first."""
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))
"""Second bytes of start of frame, ISO 10918-1, B.1.1.3, and of JPEG-LS, ISO 14495-1, C.1.1."""
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Second bytes of markers without parameters."""
_SCAN, _END = 0xDA, 0xD9


def check(dataset: Dataset) -> None:
    """Refuse compressed pixels that are not one frame of Rows x Columns.

    Raises:
        ImageError: another size, several frames, or a codestream that does not say its size where it has to.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    if len(parse_basic_offsets(dataset.PixelData)) > 1:
        raise ImageError("several frames of pixels in a file of one image")
    if syntax not in (*_JPEG_2000, *_JPEG):
        return  # the decoder of RLE takes the size from Rows and Columns
    codestream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    if syntax in _JPEG_2000:
        sizes = {(head.rows, head.columns) for head in heads_of_jpeg_2000(codestream)}
    else:
        sizes = set(_of_jpeg(codestream))
    if sizes != {(dataset.Rows, dataset.Columns)}:
        claims = ", ".join(f"{rows} x {columns} px" for rows, columns in sorted(sizes)) or "unknown size"
        raise ImageError(f"a compressed image of {claims} in a file of {dataset.Rows} x {dataset.Columns} px")


@dataclass(frozen=True)
class Head:
    """What a JPEG 2000 codestream says of its image (ISO 15444-1, A.5.1)."""

    rows: int
    columns: int
    channels: int
    bits: int
    """Of the first channel."""
    signed: bool


def heads_of_jpeg_2000(codestream: bytes) -> Iterator[Head]:
    """Every header that a decoder might take, also of a JP2 file around it."""
    for start in re.finditer(re.escape(_SIZ), codestream):
        offset = start.start()
        right, bottom, left, top = struct.unpack_from(">4I", codestream, offset + 8)
        channels, depth = struct.unpack_from(">HB", codestream, offset + 40)
        yield Head(bottom - top, right - left, channels, (depth & 0x7F) + 1, bool(depth & 0x80))


def _of_jpeg(codestream: bytes) -> Iterator[tuple[int, int]]:
    """Rows and columns of every frame before the first scan."""
    offset = 2
    if not codestream.startswith(b"\xff\xd8"):
        return
    while offset + 4 <= len(codestream):
        if codestream[offset] != 0xFF:
            raise ImageError("a damaged JPEG: no marker where one must be")
        kind = codestream[offset + 1]
        if kind == 0xFF or kind in _ALONE:  # a fill byte, or a marker alone
            offset += 1 if kind == 0xFF else 2
            continue
        if kind in (_SCAN, _END):
            return
        if kind in _FRAMES:
            rows, columns = struct.unpack_from(">2H", codestream, offset + 5)
            yield rows, columns
        offset += 2 + struct.unpack_from(">H", codestream, offset + 2)[0]
