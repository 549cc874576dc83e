"""PNG, JPEG, JPEG 2000, TIFF, PNM (PGM, PPM), BMP, GIF and WebP files, each sample as it is stored, 8 to 16 bits."""

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import Float, UInt8, UInt16
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from rayad import bounds, storage
from rayad.arrays import Pixels
from rayad.errors import ImageError
from rayad.imaging import codestream
from rayad.imaging.decoder import apart

Samples = (
    UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"]
)

SUFFIXES = (
    *(".png", ".pgm", ".ppm", ".tif", ".tiff", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k"),
    *(".bmp", ".gif", ".webp"),
)
"""Endings by which a folder's images are found; what a file is, its content says."""
ORIENTATION = 274
"""Tag of EXIF and TIFF: how an image must be turned to be upright."""
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GIF = (b"GIF87a", b"GIF89a")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_YCC, _BOXES = b"colr\x01\0\0\0\0\0\x12", 4096
"""A JP2 box that says that colours are sYCC (I.5.3.3), and before which byte it stands."""
_ARCHIVE = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNM = re.compile(rb"P([2356])" + rb"(?:\s++|#[^\n]*+\n)++(\d{1,9}+)" * 3 + rb"\s")
"""Possessive: a file of blanks takes no memory for ways to read them in another way."""

_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError),
    *(EOFError, RuntimeError, struct.error, zlib.error, tifffile.TiffFileError),
)
"""What Pillow and tifffile raise over damaged files, found by flipping bytes."""


@dataclass(frozen=True)
class Raster:
    """An image as it is stored."""

    pixels: Samples
    """h x w grey or h x w x 3 red, green and blue samples."""
    full_scale: int
    """The value of white: 255, 65535, or a PNM file's own maximum."""


def read(url: str) -> Raster:
    """The image in a file.

    Raises:
        ImageError: the file is empty, damaged, of another kind, transparent, or holds several images.
        StorageError: the file cannot be read.
    """
    return decode(read_bytes(url), url)


def read_bytes(url: str) -> bytes:
    """The content of an image's file.

    Raises:
        ImageError: it is larger than an image's file may be.
        StorageError: it cannot be read.
    """
    bounds.current().require_bytes(storage.size(url), url)
    return storage.read_bytes(url)


def is_raster(data: bytes) -> bool:
    """Do the bytes of a file begin as one of these kinds does?"""
    signatures = (_PNG, _JPEG, *_JPEG_2000, *_TIFF, *_GIF)
    return data.startswith(signatures) or _is_bmp(data) or _is_webp(data) or _PNM.match(data) is not None


def is_archive(data: bytes) -> bool:
    """Do the bytes of a file begin as an archive of files does?"""
    return data.startswith(_ARCHIVE)


def _is_bmp(data: bytes) -> bool:
    """A bitmap's header has one of these sizes, in the formats of Windows and OS/2."""
    return data[:2] == b"BM" and data[14:18] in {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def decode(data: bytes, name: str) -> Raster:
    """The image in the bytes of a file; errors call it by its name. ImageError as `read`, or above the bounds."""
    facts, pixels = apart("raster:parsed", data, name)
    return Raster(pixels, facts["full_scale"])


def parsed(data: bytes, name: str) -> tuple[dict[str, int], Samples]:
    """What `decode` gives, decoded in this process."""
    image = _parsed(data, name)
    return {"full_scale": image.full_scale}, image.pixels


def _parsed(data: bytes, name: str) -> Raster:
    try:
        if data.startswith(_PNG):
            return _png(data, name)
        if data.startswith(_JPEG):
            return _jpeg(data, name)
        if data.startswith(_TIFF):
            return _tiff(data, name)
        if data.startswith(_JPEG_2000):
            return _jpeg_2000(data, name)
        if _PNM.match(data):
            return _pnm(data, name)
        if data.startswith(_GIF) or _is_bmp(data) or _is_webp(data):
            return _of_the_web(data, name)
    except _DAMAGE as error:
        raise ImageError(f"{name}: damaged image: {_damage(error)}") from error
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if is_archive(data):
        raise ImageError(f"{name}: an archive; unpack it, and name the folder of its images")
    raise ImageError(f"{name}: not a PNG, JPEG, JPEG 2000, TIFF, PGM, BMP, GIF or WebP image")


def _of_the_web(data: bytes, name: str) -> Raster:
    """GIF, BMP and WebP, 8 bits deep."""
    kind = GifImageFile if data.startswith(_GIF) else BmpImageFile if data[:2] == b"BM" else WebPImageFile
    image = kind(io.BytesIO(data))
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(f"{name}: one image is wanted, the file holds {frames}")
    return _with_pillow(image, name)


def _damage(error: Exception) -> str:
    """What is wrong with a file; libraries say it in words, Python of its own arithmetic."""
    in_words = isinstance(error, (OSError, SyntaxError, NotImplementedError, tifffile.TiffFileError))
    return str(error) if in_words and str(error) else "its header or its data make no sense, or its end is missing"


def grey(raster: Raster, name: str) -> Pixels:
    """The samples as a share of full scale; three equal channels count as grey.

    Raises:
        ImageError: the image has colours.
    """
    pixels = raster.pixels
    if pixels.ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise ImageError(f"{name}: a grey image is wanted, this one has colours")
        pixels = pixels[..., 0]
    return pixels.astype(np.float32) / np.float32(raster.full_scale)


def colour(raster: Raster, name: str) -> Float[np.ndarray, "h w 3"]:
    """The samples as a share of full scale; ImageError for a grey image."""
    if raster.pixels.ndim != 3:
        raise ImageError(f"{name}: an image with colours is wanted, this one is grey")
    return raster.pixels.astype(np.float32) / np.float32(raster.full_scale)


def _png(data: bytes, name: str) -> Raster:
    """PNG; Pillow would cut 16-bit samples to 8 in all but plain grey, so these are refused."""
    bits, kind = struct.unpack_from("BB", data, 24)
    if bits == 16 and kind != 0:
        raise ImageError(f"{name}: PNG with 16-bit colour or alpha is not read; store it as TIFF")
    image = PngImageFile(io.BytesIO(data))
    if image.n_frames > 1:
        raise ImageError(f"{name}: one image is wanted, the file holds {image.n_frames}")
    _check_size(image.height, image.width, name)
    _check_rows(data, name)
    return _with_pillow(image, name)


def _check_rows(data: bytes, name: str) -> None:
    """ImageError if a PNG has not all of its rows: Pillow leaves those black that its data end before.

    PNG, third edition, 7.2 and 8.1: rows of whole bytes with a filter byte before, in seven passes if interlaced.
    """
    width, height, bits, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    pixel = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy))) for x, y, dx, dy in passes]
    expected = sum(rows * (1 + -(-columns * pixel // 8)) for columns, rows in sizes if columns)
    inflate, present = zlib.decompressobj(), 0
    for part in _chunks(data, b"IDAT"):
        while part and present < expected:
            present += len(inflate.decompress(part, 1 << 22))
            part = inflate.unconsumed_tail
    if present < expected:
        raise ImageError(f"{name}: damaged image: {present:,} of {expected:,} bytes of its rows are there")


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of a pass, and the steps from one to the next."""


def _chunks(data: bytes, kind: bytes) -> Iterator[bytes]:
    """The contents of a PNG's chunks of a kind."""
    offset = len(_PNG)
    while offset + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        if data[offset + 4 : offset + 8] == kind:
            yield data[offset + 8 : offset + 8 + length]
        offset += 12 + length


def _jpeg(data: bytes, name: str) -> Raster:
    """JPEG; Pillow takes a file whose later scans are missing for a whole one."""
    image = JpegImageFile(io.BytesIO(data))
    if image.info.get("progressive"):
        _check_scans(data, name)
    return _with_pillow(image, name)


def _check_scans(data: bytes, name: str) -> None:
    """ImageError if the scans of a progressive JPEG (ISO 10918-1, G.1.1.1) do not give all bits of all coefficients."""
    missing: dict[int, set[int]] = {}
    for start in re.finditer(rb"\xff\xda", data):
        offset, (length, count) = start.end(), struct.unpack_from(">HB", data, start.end())
        if length != 6 + 2 * count or not 1 <= count <= 4:
            continue  # no start of scan: its bytes stand in a table
        first, last, bits = struct.unpack_from("3B", data, offset + 3 + 2 * count)
        for component in data[offset + 3 : offset + 3 + 2 * count : 2]:
            coefficients = missing.setdefault(component, set(range(64)))
            if not bits & 15:
                coefficients -= set(range(first, last + 1))
    if not missing or any(missing.values()):
        raise ImageError(f"{name}: damaged image: scans of a progressive JPEG are missing")


def _jpeg_2000(data: bytes, name: str) -> Raster:
    """JPEG 2000 (ISO 15444-1), with or without the boxes of a JP2 file; Pillow cuts 16-bit colour to 8 bits."""
    heads = set(codestream.heads_of_jpeg_2000(data))
    if len(heads) != 1:
        raise ImageError(f"{name}: damaged image: {len(heads)} sizes in a file of one image")
    (head,) = heads
    _check_size(head.rows, head.columns, name, head.channels)
    if head.signed or not 1 <= head.bits <= 16:
        raise ImageError(f"{name}: JPEG 2000 of {head.bits} bits is read up to 16, without signs")
    if _YCC in data[:_BOXES]:
        raise ImageError(f"{name}: JPEG 2000 in YCC is not read; store it as RGB or grey")
    samples, full_scale = imagecodecs.jpeg2k_decode(data), (1 << head.bits) - 1
    if samples.shape[:2] != (head.rows, head.columns):
        raise ImageError(f"{name}: damaged image: {samples.shape[:2]} samples in an image of {head.rows, head.columns}")
    if samples.ndim == 3 and samples.shape[-1] in (2, 4):
        samples = _without_alpha(samples, full_scale, name)
    return Raster(samples.astype(np.uint8 if full_scale < 256 else np.uint16), full_scale)


def _with_pillow(image: ImageFile, name: str) -> Raster:
    """The classes of Pillow's formats are called directly: Image.open warns of large mammograms."""
    _check_size(image.height, image.width, name)
    alpha = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    if image.mode.startswith("I;16") and not alpha:
        return Raster(_upright(np.asarray(image).astype(np.uint16), _orientation(image)), 65535)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ImageError(f"{name}: pixels of mode {image.mode} are not read, only grey, palette and RGB")
    expanded = "L" if image.mode in ("1", "L", "LA") else "RGB"
    samples = np.array(image.convert(expanded + "A" if alpha else expanded))
    return Raster(_upright(_without_alpha(samples, 255, name) if alpha else samples, _orientation(image)), 255)


def _orientation(image: ImageFile) -> int:
    """How an image is turned, 1 to 8 (EXIF 2.3, tag 274); of a TIFF 1, since Pillow turns it."""
    with suppress(*_DAMAGE):  # of what else a camera says
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns as viewers show them."""
    turned = {
        2: lambda: samples[:, ::-1],
        3: lambda: samples[::-1, ::-1],
        4: lambda: samples[::-1],
        5: lambda: samples.swapaxes(0, 1),
        6: lambda: samples.swapaxes(0, 1)[:, ::-1],
        7: lambda: samples[::-1, ::-1].swapaxes(0, 1),
        8: lambda: samples.swapaxes(0, 1)[::-1],
    }.get(orientation)
    return np.ascontiguousarray(turned()) if turned else samples


def _without_alpha(samples: np.ndarray, full_scale: int, name: str) -> np.ndarray:
    """The channels before the last, where the last one says that all is opaque."""
    if (samples[..., -1] != full_scale).any():
        raise ImageError(f"{name}: the image is partly transparent")
    channels = samples[..., :-1]
    return np.ascontiguousarray(channels if channels.shape[-1] == 3 else channels[..., 0])


def _tiff(data: bytes, name: str) -> Raster:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        frames = sum(series.size for series in tiff.series if not series.keyframe.is_reduced) // page.size
        if frames != 1:
            raise ImageError(f"{name}: one image is wanted, the file holds {frames}")
        if page.dtype is None or page.dtype.kind not in "ub" or page.bitspersample > 16:
            raise ImageError(f"{name}: TIFF samples of type {page.dtype} are not read, only 1 to 16 bits, unsigned")
        _check_size(page.imagelength, page.imagewidth, name, page.samplesperpixel)
        if min(page.databytecounts, default=0) < 1 or len(page.databytecounts) < math.prod(page.chunked):
            raise ImageError(f"{name}: damaged image: strips or tiles are missing")
        if max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0) > len(data):
            raise ImageError(f"{name}: damaged image: the file is truncated")
        if page.compression in (tifffile.COMPRESSION.LZW, tifffile.COMPRESSION.JPEG):
            return _tiff_with_pillow(data, page, name)
        image, tag = _tiff_samples(page, name), page.tags.get(ORIENTATION)
        return replace(image, pixels=_upright(image.pixels, int(tag.value) if tag else 1))


def _tiff_with_pillow(data: bytes, page: tifffile.TiffPage, name: str) -> Raster:
    """Compressions that tifffile has no code for; Pillow would cut 16-bit colour to 8 bits."""
    if page.bitspersample > 8 and page.samplesperpixel > 1:
        raise ImageError(f"{name}: compressed TIFF with 16-bit colour is not read; store it without compression")
    return _with_pillow(TiffImageFile(io.BytesIO(data)), name)


def _tiff_samples(page: tifffile.TiffPage, name: str) -> Raster:
    samples, full_scale = page.asarray(), (1 << page.bitspersample) - 1
    if page.axes == "SYX":
        samples = np.moveaxis(samples, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise ImageError(f"{name}: a TIFF with axes {page.axes} is not a plane image")
    samples = samples.astype(np.uint8 if full_scale < 256 else np.uint16)
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        assert page.colormap is not None  # TIFF 6.0, section 5: a palette image has one
        return Raster(np.moveaxis(page.colormap, 0, -1)[samples], 65535)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        samples = full_scale - samples
    if samples.ndim == 3 and samples.shape[-1] in (2, 4):
        samples = _without_alpha(samples, full_scale, name)
    if samples.ndim == 3 and samples.shape[-1] != 3:
        raise ImageError(f"{name}: {samples.shape[-1]} channels are neither grey nor RGB")
    return Raster(samples, full_scale)


def _pnm(data: bytes, name: str) -> Raster:
    """PGM and PPM, P2 P3 P5 P6, after the netpbm manual; Pillow rescales their samples."""
    header = _PNM.match(data)
    assert header is not None  # decode() matched it
    kind, width, height, full_scale = (int(group) for group in header.groups())
    _check_size(height, width, name)
    if not 0 < full_scale < 65536:
        raise ImageError(f"{name}: the maximum of a PNM is 1 to 65535, not {full_scale}")
    shape = (height, width) if kind in (2, 5) else (height, width, 3)
    samples = _pnm_samples(data[header.end() :], kind, full_scale, int(np.prod(shape)))
    if samples.size < np.prod(shape):
        raise ImageError(f"{name}: damaged image: {samples.size} samples instead of {np.prod(shape)}")
    if samples.max() > full_scale:
        raise ImageError(f"{name}: damaged image: sample {samples.max()} is over the maximum {full_scale}")
    return Raster(samples.astype(np.uint8 if full_scale < 256 else np.uint16).reshape(shape), full_scale)


def _pnm_samples(body: bytes, kind: int, full_scale: int, count: int) -> np.ndarray:
    """At most `count` samples, plain text for kinds 2 and 3, else big-endian."""
    if kind in (2, 3):
        words = re.sub(rb"#[^\n]*", b"", body).split(maxsplit=count)[:count]
        return np.array(words, dtype=np.uint32) if words else np.zeros(0, np.uint32)
    dtype = np.dtype("u1" if full_scale < 256 else ">u2")
    return np.frombuffer(body, dtype, count=min(count, len(body) // dtype.itemsize))


def _check_size(height: int, width: int, name: str, channels: int = 1) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name}: an image of {height} x {width} pixels is empty")
    bounds.current().require_pixels(height, width, name)
    if channels > 4:
        raise ImageError(f"{name}: {channels} channels are neither grey nor RGB")
