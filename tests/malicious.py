"""Files that were made to stop, fill or mislead who reads them: name -> what makes the bytes."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pydicom
from dicoms import complete, written
from PIL import Image
from pydicom import uid


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def made_png(side: int, samples: bytes, *more: bytes, bits: int = 8) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0))
    parts = (head, *more, chunk(b"IDAT", samples), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def made_tiff(data: bytes = bytes(5000), after: int = 0, **tags: int) -> bytes:
    """A grey TIFF of 64 x 64; tags by number as in t256=64."""
    usual = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 150, 277: 1, 278: 64, 279: 4096}
    for name, value in tags.items():
        usual[int(name[1:])] = value
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in usual.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(usual)) + entries + struct.pack("<I", after)
    return head.ljust(150, b"\0") + data


def many_pages(count: int) -> bytes:
    size, pages = 2 + 12 * 3 + 4, b""
    for page in range(1, count + 1):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, 1) for tag in (256, 257, 258))
        pages += struct.pack("<H", 3) + entries + struct.pack("<I", 8 + page * size if page < count else 0)
    return b"II*\0" + struct.pack("<I", 8) + pages


def jpeg_that_claims(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(buffer, "jpeg")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


PIXELS = np.zeros((256, 192), np.uint16)
PIXELS[50:200, 50:150] = 3000
OTHER = np.random.default_rng(0).integers(0, 4000, (192, 256), dtype=np.uint16)
"""As many pixels in another shape."""


def mammogram() -> pydicom.FileDataset:
    return complete(PIXELS, PixelSpacing=[0.8, 0.8])


def deflated(body: bytes) -> bytes:
    """A DICOM file whose data set is these bytes."""
    of = mammogram()
    of.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    whole = written(of)
    length = struct.unpack("<I", whole[140:144])[0]  # of the group (0002,xxxx)
    return whole[: 144 + length] + body


def raw_deflate(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(size)) + packer.flush()


def nested(depth: int) -> bytes:
    whole = written(mammogram())
    length = struct.unpack("<I", whole[140:144])[0]
    return whole[: 144 + length] + bytes.fromhex("0800401153510000fffffffffeff00e0ffffffff") * depth


def crowded(count: int) -> bytes:
    """A file of so many private attributes before its pixels."""
    whole = written(mammogram())
    length = struct.unpack("<I", whole[140:144])[0]
    group = b"".join(struct.pack("<HH2sH", 9 + 2 * (i >> 16), i & 0xFFFF, b"LO", 0) for i in range(count))
    start = 144 + length
    return whole[:start] + group + whole[start:]


def compressed(codestream: bytes, syntax: str, **attributes: int) -> bytes:
    return frames([codestream], syntax, **attributes)


def frames(codestreams: list[bytes], syntax: str, **attributes: int) -> bytes:
    of = mammogram()
    for keyword, value in attributes.items():
        setattr(of, keyword, value)
    of.file_meta.TransferSyntaxUID = uid.UID(syntax)
    of.PixelData = pydicom.encaps.encapsulate(codestreams)
    of["PixelData"].VR = "OB"
    of["PixelData"].is_undefined_length = True
    return written(of)


def jpeg_2000(pixels: np.ndarray, claims: int = 0) -> bytes:
    data = bytearray(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, reversible=True))
    at = data.index(b"\xff\x51") + 6
    if claims:
        data[at : at + 8] = data[at + 16 : at + 24] = struct.pack(">II", claims, claims)
    return compressed(bytes(data), uid.JPEG2000Lossless)


def lossless(pixels: np.ndarray) -> bytes:
    return compressed(imagecodecs.ljpeg_encode(pixels, bitspersample=16), uid.JPEGLosslessSV1)


def jpeg_ls(claims: int = 0) -> bytes:
    """A codestream, which may claim to be of so many rows and columns."""
    data = bytearray(imagecodecs.jpegls_encode(PIXELS))
    at = data.index(b"\xff\xf7") + 5
    if claims:
        data[at : at + 4] = struct.pack(">HH", claims, claims)
    return bytes(data)


def two_sizes() -> bytes:
    """A codestream with the frame's size twice, the second the right one."""
    data, large = jpeg_ls(), jpeg_ls(65_535)
    at = data.index(b"\xff\xf7")
    length = 2 + struct.unpack_from(">H", data, at + 2)[0]
    return data[:at] + large[at : at + length] + data[at:]


def decoy() -> bytes:
    """The right size in a private attribute that looks like pixels, another in the pixels."""
    of, honest = mammogram(), jpeg_ls()
    end = honest.index(b"\xff\xf7") + 13
    content = b"\xe0\x7f\x10\x00" + honest[:end]
    of.add_new(0x00090010, "LO", "X")
    of.add_new(0x00091001, "OB", content + bytes(len(content) % 2))
    of.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    of.PixelData = pydicom.encaps.encapsulate([jpeg_ls(65_535)])
    of["PixelData"].VR = "OB"
    of["PixelData"].is_undefined_length = True
    return written(of)


def replicated(size: int) -> bytes:
    """Two segments of RLE (PS3.5, G) of so many equal bytes each."""
    runs, rest = divmod(size, 128)
    segment = b"\x81\0" * runs + (bytes([257 - rest, 0]) if rest else b"")
    return struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2


def first_scan() -> bytes:
    """A progressive JPEG that ends after its first scan."""
    buffer = io.BytesIO()
    Image.fromarray((PIXELS >> 4).astype(np.uint8)).save(buffer, "jpeg", progressive=True)
    data = buffer.getvalue()
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    return data[:second] + b"\xff\xd9"


def shifted() -> bytes:
    """More bytes than pixels, so that the image may begin anywhere."""
    of = mammogram()
    of.PixelData = bytes(10_000) + of.PixelData
    return written(of)


ITEMS = bytes.fromhex("feff00e000000000")
"""An empty item of a sequence."""


def raw_deflate_of(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    kind = uid.DigitalMammographyXRayImageStorageForPresentation.encode().ljust(30, b"\0")
    start = b"\x08\x00\x16\x00UI" + struct.pack("<H", len(kind)) + kind
    start += b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"  # of undefined length: items are read one by one
    return packer.compress(start + data) + packer.flush()


def many_views() -> bytes:
    """A million and a half items in the sequence of views."""
    whole, items = written(mammogram()), ITEMS * 1_500_000
    start = 144 + struct.unpack("<I", whole[140:144])[0]
    kind = uid.DigitalMammographyXRayImageStorageForPresentation.encode().ljust(30, b"\0")
    first = b"\x08\x00\x16\x00UI" + struct.pack("<H", len(kind)) + kind
    return whole[:start] + first + b"\x54\x00\x20\x02SQ\0\0" + struct.pack("<I", len(items)) + items


def rescaled(before: bytes, after: bytes) -> bytes:
    """A file whose slope is 9.8765 and whose intercept is 5.4321, with other bytes in the place of one of them."""
    data = written(complete(PIXELS, **SPACED | {"RescaleSlope": "9.8765", "RescaleIntercept": "5.4321"}))
    assert data.count(before) == 1
    return data.replace(before, after)


SPACED = {"PixelSpacing": [0.8, 0.8]}
BAD = {
    "png of 900 Mpx": lambda: made_png(30_000, zeros(1000)),
    "png with too few samples": lambda: made_png(900, zeros(1000)),
    "png without its lower half": lambda: made_png(64, zeros(65 * 32)),
    "tiff whose strip is nowhere": lambda: made_tiff(t273=0, t279=0),
    "progressive jpeg of one scan": lambda: first_scan(),
    "jpeg-ls with more bits than are said": lambda: compressed(jpeg_ls(), uid.JPEGLSLossless, BitsStored=8, HighBit=7),
    "pixels somewhere in more bytes": lambda: shifted(),
    "deflated dicom of a million items": lambda: deflated(raw_deflate_of(ITEMS * 1_000_000)),
    "dicom of a million views": lambda: many_views(),
    "png with 400 MB of samples": lambda: made_png(100, zeros(400_000_000)),
    "png with a text of 300 MB": lambda: made_png(64, zeros(65 * 64), chunk(b"zTXt", b"a\0\0" + zeros(300_000_000))),
    "png of 99 bits": lambda: made_png(64, zeros(65 * 64), bits=99),
    "tiff of 5000 channels": lambda: made_tiff(t277=5000),
    "tiff of 3600 Mpx": lambda: made_tiff(t256=60_000, t257=60_000),
    "tiff that is its own next page": lambda: made_tiff(after=8),
    "tiff of many pages": lambda: many_pages(20_000),
    "tiff without rows": lambda: made_tiff(t257=0),
    "tiff with 400 MB of samples": lambda: made_tiff(zeros(400_000_000), t259=8, t279=380_000),
    "jpeg of 4290 Mpx": lambda: jpeg_that_claims(65_500),
    "jpeg cut": lambda: jpeg_that_claims(64)[:-200],
    "pgm of words": lambda: b"P2 64 64 255\n" + b"x " * 4096,
    "pgm of one number": lambda: b"P2 64 64 255\n" + b"9" * 100_000,
    "dicom cut": lambda: written(mammogram())[:50_000],
    "dicom of 4 Gpx": lambda: written(complete(PIXELS, Rows=65_535, Columns=65_535)),
    "dicom of 0 bits": lambda: written(complete(PIXELS, BitsAllocated=0)),
    "deflated dicom of 1 GB": lambda: deflated(raw_deflate(1_000_000_000)),
    "deflated dicom that is not": lambda: deflated(b"\xff" * 3000),
    "dicom of nested sequences": lambda: nested(60_000),
    "jpeg 2000 in another shape": lambda: jpeg_2000(OTHER),
    "jpeg 2000 that is larger": lambda: jpeg_2000(np.zeros((5000, 5000), np.uint16)),
    "jpeg 2000 of 3600 Mpx": lambda: jpeg_2000(PIXELS, 60_000),
    "jpeg lossless in another shape": lambda: lossless(OTHER),
    "jpeg lossless that is smaller": lambda: lossless(PIXELS[:64, :64].copy()),
    "jpeg-ls in another shape": lambda: compressed(imagecodecs.jpegls_encode(OTHER), uid.JPEGLSLossless),
    "jpeg-ls of 4 Gpx, its size in a private attribute": lambda: decoy(),
    "jpeg-ls of two frames": lambda: frames([imagecodecs.jpegls_encode(PIXELS)] * 2, uid.JPEGLSLossless),
    "jpeg that claims two sizes": lambda: compressed(two_sizes(), uid.JPEGLSLossless),
    "rle of 400 Mpx": lambda: compressed(replicated(400_000_000), uid.RLELossless, Rows=20_000, Columns=20_000),
    "rle of more bytes than pixels": lambda: compressed(replicated(400_000_000), uid.RLELossless),
    "dicom whose slope is not a number": lambda: rescaled(b"9.8765", b"nan   "),
    "dicom whose slope is infinite": lambda: rescaled(b"9.8765", b"1e999 "),
    "dicom whose intercept is not a number": lambda: rescaled(b"5.4321", b"nan   "),
    "dicom whose values overflow": lambda: written(
        complete(PIXELS, **{**SPACED, "RescaleSlope": "1e308", "RescaleIntercept": "-1e308"})
    ),
    "dicom of pixels of 9.9 mm": lambda: written(complete(np.tile(PIXELS, (8, 8)), PixelSpacing=[9.9, 9.9])),
    "dicom of a spacing that is not a number": lambda: written(complete(PIXELS, PixelSpacing=[9.8765, 9.8765])).replace(
        b"9.8765", b"nan   "
    ),
    "dicom of three million attributes": lambda: crowded(3_000_000),
    "zip before an image": lambda: b"PK\3\4" + made_png(64, zeros(65 * 64)),
}
"""What is no image, or none of its kind; spacings are 0.8 mm."""
