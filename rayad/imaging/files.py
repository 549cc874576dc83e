"""What a file is: its content says it, not its name."""

import posixpath
from typing import Literal

from rayad import storage
from rayad.errors import StorageError
from rayad.imaging import dicom, raster

HEAD = 4096
"""Bytes of a file by which one knows what it is."""
Kind = Literal["raster", "dicom", "an archive: unpack it", "a DICOMDIR", "neither image nor label", "a dead link"]
"""What a file is; what is no image is called by why it is left out."""


def kind_of(url: str) -> Kind:
    """What the file begins like; one called as an image is one, though perhaps a damaged one.

    Raises:
        StorageError: a file that is not local cannot be read.
    """
    if url.lower().endswith(raster.SUFFIXES):
        return "raster"
    if url.lower().endswith(".dcm"):
        return "dicom"
    if posixpath.basename(url).upper() == "DICOMDIR":
        return "a DICOMDIR"
    try:
        head = storage.head(url, HEAD)
    except StorageError:
        if not storage.is_local(url):
            raise
        return "a dead link"
    if raster.is_raster(head):
        return "raster"
    if dicom.is_dicom(head):
        return "dicom"
    return "an archive: unpack it" if raster.is_archive(head) else "neither image nor label"
