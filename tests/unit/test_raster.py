"""rayad.imaging.raster against bytes that Pillow, tifffile and the hand have written."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from rayad.errors import ImageError, StorageError
from rayad.imaging import raster

RAMP8 = np.arange(256, dtype=np.uint8).reshape(8, 32)
RAMP12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)
RAMP16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)
COLOUR8 = np.stack([RAMP8, RAMP8[::-1], RAMP8.T.reshape(8, 32)], axis=-1)


def pillow(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def pgm(pixels: np.ndarray, full_scale: int) -> bytes:
    raw = pixels.astype("u1" if full_scale < 256 else ">u2").tobytes()
    return b"P5\n# a comment\n%d %d\n%d\n" % (pixels.shape[1], pixels.shape[0], full_scale) + raw


def png_with(bits: int, kind: int) -> bytes:
    """A PNG header of any bit depth and colour type (PNG specification, section 11.2.2)."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 1, 1, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


LOSSLESS = {
    "png 8": (pillow(RAMP8, "PNG"), RAMP8, 255),
    "png 16": (pillow(RAMP16, "PNG"), RAMP16, 65535),
    "png 12 in 16": (pillow(RAMP12, "PNG"), RAMP12, 65535),
    "png colour": (pillow(COLOUR8, "PNG"), COLOUR8, 255),
    "tiff 8": (tiff(RAMP8), RAMP8, 255),
    "tiff 16": (tiff(RAMP16), RAMP16, 65535),
    "tiff 16 big-endian": (tiff(RAMP16, byteorder=">"), RAMP16, 65535),
    "tiff 16 big": (tiff(RAMP16, bigtiff=True), RAMP16, 65535),
    "tiff 16 deflated": (pillow(RAMP16, "TIFF", compression="tiff_adobe_deflate"), RAMP16, 65535),
    "tiff 8 lzw": (pillow(RAMP8, "TIFF", compression="tiff_lzw"), RAMP8, 255),
    "tiff 16 lzw": (pillow(RAMP16, "TIFF", compression="tiff_lzw"), RAMP16, 65535),
    "tiff 16 tiles": (tiff(RAMP16, tile=(64, 64)), RAMP16, 65535),
    "tiff inverted": (tiff(255 - RAMP8, photometric="miniswhite"), RAMP8, 255),
    "tiff colour": (tiff(COLOUR8, photometric="rgb"), COLOUR8, 255),
    "tiff colour 16": (
        tiff(COLOUR8.astype(np.uint16) * 257, photometric="rgb"),
        COLOUR8 * np.uint16(257),
        65535,
    ),
    "tiff colour planes": (
        tiff(np.moveaxis(COLOUR8, -1, 0), photometric="rgb", planarconfig="separate"),
        COLOUR8,
        255,
    ),
    "pgm 8": (pgm(RAMP8, 255), RAMP8, 255),
    "pgm 12": (pgm(RAMP12, 4095), RAMP12, 4095),
    "pgm 16": (pgm(RAMP16, 65535), RAMP16, 65535),
    "pgm 100 levels": (pgm(RAMP8 // 3, 100), RAMP8 // 3, 100),
    "pgm text": (b"P2 2 2 # size\n1000\n0 1 # row\n999 1000\n# end\n", np.array([[0, 1], [999, 1000]]), 1000),
    "ppm": (b"P6\n1 2\n255\n" + bytes([1, 2, 3, 4, 5, 6]), np.array([[[1, 2, 3]], [[4, 5, 6]]]), 255),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_sample_survives(name: str) -> None:
    data, expected, full_scale = LOSSLESS[name]
    image = raster.decode(data, name)
    assert image.full_scale == full_scale
    assert image.pixels.dtype == (np.uint8 if full_scale < 256 else np.uint16)
    np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize("name", ["png 12 in 16", "pgm 12", "tiff 16", "png 16"])
def test_every_level_stays_its_own_as_a_float(name: str) -> None:
    data, expected, full_scale = LOSSLESS[name]
    pixels = raster.grey(raster.decode(data, name), name)
    assert pixels.dtype == np.float32
    assert len(np.unique(pixels)) == expected.size
    np.testing.assert_allclose(pixels, expected / full_scale, rtol=1e-6)


def test_jpeg_is_read_to_its_own_precision() -> None:
    smooth = np.tile(np.linspace(20, 200, 64), (64, 1)).astype(np.uint8)
    image = raster.decode(pillow(smooth, "JPEG", quality=95), "x.jpg")
    assert image.pixels.shape == (64, 64)
    assert np.abs(image.pixels.astype(int) - smooth).max() <= 3
    assert raster.decode(pillow(COLOUR8, "JPEG"), "x.jpg").pixels.shape == (8, 32, 3)


def test_the_same_image_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(pillow(RAMP12, "PNG"))
    np.testing.assert_array_equal(raster.read(str(tmp_path / "x.png")).pixels, RAMP12)
    with pytest.raises(StorageError):
        raster.read(str(tmp_path / "y.png"))


def test_palette_bits_and_opaque_alpha_are_expanded() -> None:
    two_tone = np.where(RAMP8 > 127, 255, 0).astype(np.uint8)
    for mode in ("1", "P", "LA", "RGBA"):
        image = raster.decode(pillow(two_tone, "PNG", mode), mode)
        np.testing.assert_array_equal(raster.grey(image, mode), two_tone / 255)
    bits = raster.decode(tiff(two_tone > 0, photometric="minisblack"), "bits.tif")
    np.testing.assert_array_equal(raster.grey(bits, "bits.tif"), two_tone / 255)
    with_alpha = np.dstack([COLOUR8, np.full_like(RAMP8, 255)])
    opaque = raster.decode(tiff(with_alpha, photometric="rgb", extrasamples=["unassalpha"]), "rgba.tif")
    np.testing.assert_array_equal(opaque.pixels, COLOUR8)


def test_equal_channels_are_grey_and_others_are_not() -> None:
    equal = raster.decode(pillow(np.dstack([RAMP8] * 3), "PNG"), "equal.png")
    np.testing.assert_array_equal(raster.grey(equal, "equal.png"), RAMP8 / np.float32(255))
    with pytest.raises(ImageError, match=r"colour\.png: a grey image is wanted"):
        raster.grey(raster.decode(pillow(COLOUR8, "PNG"), "colour.png"), "colour.png")


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"REFNUM BG CLASS", "not a PNG, JPEG, JPEG 2000, TIFF, PGM"),
    "transparent": (pillow(np.dstack([COLOUR8, RAMP8]), "PNG"), "transparent"),
    "transparent grey": (pillow(RAMP8, "PNG", transparency=7), "transparent"),
    "16-bit colour": (png_with(16, 2), "16-bit colour"),
    "16-bit alpha": (png_with(16, 4), "16-bit colour or alpha"),
    "film": (
        pillow(RAMP8, "PNG", save_all=True, append_images=[Image.fromarray(RAMP8[::-1])]),
        "the file holds 2",
    ),
    "cmyk": (pillow(COLOUR8, "JPEG", "CMYK"), "CMYK"),
    "stack": (tiff(np.stack([RAMP8, RAMP8]), photometric="minisblack"), "the file holds 2"),
    "imagej stack": (tiff(np.stack([RAMP8, RAMP8]), imagej=True), "the file holds 2"),
    "float": (tiff(RAMP8 / np.float32(255)), "float32"),
    "signed": (tiff(RAMP8.astype(np.int16)), "int16"),
    "32 bits": (tiff(RAMP8.astype(np.uint32)), "uint32"),
    "five channels": (
        tiff(np.zeros((4, 4, 5), np.uint8), photometric="minisblack", planarconfig="contig"),
        "5",
    ),
    "no pixels": (b"P5 0 4 255\n", "is empty"),
    "no levels": (b"P5 1 1 0\n\0", "1 to 65535"),
    "too large": (b"P5 30000 30000 255\n", "more than bounds.pixels=40000000"),
    "over white": (b"P5 1 1 100\n\xff", "255 is over the maximum 100"),
    "words": (b"P2 2 1 255\n12 twelve", "damaged"),
    "negative": (b"P2 2 1 255\n12 -1", "damaged"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "its end is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(ImageError, match=reason) as caught:
        raster.decode(data, name)
    assert str(caught.value).startswith(name + ": ")


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_truncated_file_is_refused_unless_all_samples_are_there(name: str, share: float) -> None:
    data, expected, _ = LOSSLESS[name]
    try:
        pixels = raster.decode(data[: int(len(data) * share)], name).pixels
    except ImageError:
        return
    assert share == 0.97
    np.testing.assert_array_equal(pixels, expected)


def test_a_truncated_jpeg_is_refused() -> None:
    data = pillow(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8), "JPEG")
    for share in (0.05, 0.5, 0.9):
        with pytest.raises(ImageError, match=r"^x\.jpg: damaged"):
            raster.decode(data[: int(len(data) * share)], "x.jpg")


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_an_image_or_an_error_of_ours() -> None:
    rng = np.random.default_rng(0)
    files = [data for data, _, _ in LOSSLESS.values() if len(data) < 20_000]
    for _ in range(300):
        data = bytearray(files[rng.integers(len(files))])
        for _ in range(3):
            data[rng.integers(min(len(data), 400))] = rng.integers(256)
        try:
            raster.decode(bytes(data), "x")
        except ImageError:
            continue


@pytest.mark.parametrize("between", [b" ", b"#\n", b"\n# a word\n"])
def test_a_file_of_blanks_is_told_from_an_image_without_memory(between: bytes) -> None:
    data = b"P2" + between * (20_000_000 // len(between))
    tracemalloc.start()
    assert not raster.is_raster(data)
    assert raster.is_raster(b"P5" + between * 1000 + b"7 8" + between * 3 + b"255\n")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


TURNED = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "TIFF 16", "TIFF lzw"])
def test_an_image_is_upright_as_viewers_show_it(kind: str, orientation: int) -> None:
    """The truth is Pillow's exif_transpose."""
    exif = Image.Exif()
    exif[274] = orientation
    buffer, image = io.BytesIO(), Image.fromarray(TURNED.astype(np.uint16) if kind == "TIFF 16" else TURNED)
    options = {"compression": "tiff_lzw"} if kind == "TIFF lzw" else {"quality": 100} if kind == "JPEG" else {}
    image.save(buffer, kind.split()[0], exif=exif, **options)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    np.testing.assert_array_equal(raster.decode(buffer.getvalue(), "here").pixels, seen)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP"])
def test_formats_of_the_web_are_read_and_refused_when_cut(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    buffer, image = io.BytesIO(), Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8))
    image.save(buffer, kind, **options)
    data = buffer.getvalue()
    assert raster.is_raster(data)
    np.testing.assert_allclose(raster.grey(raster.decode(data, "here"), "here") * 255, np.asarray(image), atol=1e-4)
    for share in (0.2, 0.6, 0.9):
        with pytest.raises(ImageError):
            raster.decode(data[: int(share * len(data))], "here")


@pytest.mark.parametrize("container", ["j2k", "jp2"])
@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (12, 1), (16, 1), (8, 3), (16, 3)])
def test_jpeg_2000_is_read_at_full_depth_and_refused_when_cut(container: str, bits: int, channels: int) -> None:
    shape = (40, 30) if channels == 1 else (40, 30, channels)
    kind = np.uint8 if bits == 8 else np.uint16
    pixels = np.random.default_rng(0).integers(0, 2**bits, shape).astype(kind)
    data = imagecodecs.jpeg2k_encode(pixels, codecformat=container, bitspersample=bits, reversible=True, mct=False)
    assert raster.is_raster(data)
    image = raster.decode(data, "here")
    assert image.full_scale == 2**bits - 1
    np.testing.assert_array_equal(image.pixels, pixels)
    for share in (0.2, 0.6, 0.9, 0.999):
        with pytest.raises(ImageError):
            raster.decode(data[: int(share * len(data))], "here")


def test_jpeg_2000_of_another_program_is_read() -> None:
    """Pillow's openjpeg, with its own choice of tiles and colours."""
    pixels = np.random.default_rng(1).integers(0, 255, (50, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", tile_size=(32, 32))
    np.testing.assert_array_equal(raster.decode(buffer.getvalue(), "here").pixels, pixels)


def test_an_animation_is_refused() -> None:
    buffer, image = io.BytesIO(), Image.fromarray(np.zeros((8, 8), np.uint8))
    image.save(buffer, "GIF", save_all=True, append_images=[Image.fromarray(np.full((8, 8), 9, np.uint8))])
    with pytest.raises(ImageError, match="one image is wanted, the file holds 2"):
        raster.decode(buffer.getvalue(), "here")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"PK\x03\x04rest", "an archive; unpack it"), (b"\0\0\0\x0cjP  \r\n", "damaged image: 0 sizes")],
)
def test_what_else_a_file_may_be_is_said(data: bytes, sentence: str) -> None:
    with pytest.raises(ImageError, match=sentence):
        raster.decode(data, "here")
