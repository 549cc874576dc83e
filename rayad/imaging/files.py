"""What a file is: its content says it, not its name."""

import posixpath
from collections.abc import Iterable
from typing import Literal

from rayad import storage
from rayad.errors import StorageError
from rayad.imaging import dicom, raster

HEAD = 4096
"""Bytes of a file by which one knows what it is."""
Kind = Literal["raster", "dicom", "an archive", "a DICOMDIR", "text or else", "a link that leads nowhere"]


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
        return "a link that leads nowhere"
    if raster.is_raster(head):
        return "raster"
    if dicom.is_dicom(head):
        return "dicom"
    return "an archive" if raster.is_archive(head) else "text or else"


def by_kind(urls: Iterable[str]) -> dict[Kind, list[str]]:
    """The files of each kind, in their order."""
    files: dict[Kind, list[str]] = {}
    for url in urls:
        files.setdefault(kind_of(url), []).append(url)
    return files
