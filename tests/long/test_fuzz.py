"""Damaged files: whatever the bytes, a result or one of rayad's own errors, never another exception."""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from rayad import storage
from rayad.datasets import cbis_ddsm, ddsm, inbreast, labels, medmnist, mias
from rayad.errors import ImageError, RayadError
from rayad.imaging import raster
from tests.unit.test_ddsm import ICS, OVERLAY, SQUARE
from tests.unit.test_inbreast import HEADER, ROWS, regions

ROUNDS = 2000
TABLE = """image,patient,label,view,laterality,density,spacing_mm,kind,malignant,row,col,radius,mask
a.png,P1,anomalous,MLO,L,D,0.2,mass,yes,10,12.5,4,
b.png,P2,anomalous,CC,R,,0.1,calcification,no,,,,m.png
c.png,P3,normal,,,,,,,,,,
"""
INBREAST = HEADER + ROWS.format("R", "CC", 1001, 2, "5") + ROWS.format("L", "MLO", 1002, 1, "1")
INFO = "mdb001 G CIRC B 535 425 197\nmdb002 G NORM\nmdb003 D CALC M *NOTE 3*\n"
CBIS = dict.fromkeys(cbis_ddsm.COLUMNS, "3") | {
    "left or right breast": "LEFT",
    "image view": "CC",
    "pathology": "MALIGNANT",
    "abnormality type": "mass",
    **dict.fromkeys(cbis_ddsm.PATHS, '"f/1.2/3.4/000000.dcm\n"'),
}


def mutations(whole: bytes, text: bool = False) -> Iterator[bytes]:
    """Bytes that were changed, left out, doubled or cut away."""
    random, data = np.random.default_rng(0), np.frombuffer(whole, np.uint8)
    letters = np.frombuffer(b'0123456789,-.\n\r\t "#/ABMN\xff\x00\xc3', np.uint8)
    for _ in range(ROUNDS):
        damaged = data.copy()
        places = random.integers(0, len(data), 1 + random.integers(4))
        damaged[places] = random.choice(letters, len(places)) if text else random.integers(0, 256)
        start, end = sorted(random.integers(0, len(data) + 1, 2))
        kind = random.random()
        if kind < 0.3:
            damaged = damaged[: random.integers(1, len(data) + 1)]
        elif kind < 0.4:
            damaged = np.delete(damaged, slice(start, end))
        elif kind < 0.5:
            damaged = np.concatenate([damaged[:end], damaged[start:]])
        yield damaged.tobytes()


def survives(read: Callable[[bytes], object], whole: bytes, error: type[RayadError] = RayadError, text: bool = False):
    """Read the undamaged bytes, then all mutations."""
    read(whole)
    refused = 0
    for damaged in mutations(whole, text):
        try:
            read(damaged)
        except error:
            refused += 1
    return refused


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg", "ppm"])
def test_a_damaged_image_is_an_image_error(kind: str):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)).save(buffer, format=kind)
    assert survives(lambda data: raster.decode(data, "damaged"), buffer.getvalue(), ImageError) > 0


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(kind: str):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(buffer, format=kind)
    whole = buffer.getvalue()
    claims = {
        "png": whole[:16] + (100_000).to_bytes(4, "big") * 2 + whole[24:],
        "tiff": whole.replace((5).to_bytes(4, "little"), (100_000).to_bytes(4, "little"), 1),
        "ppm": whole.replace(b"5 3", b"100000 100000"),
    }
    assert claims[kind] != whole
    with pytest.raises(ImageError):
        raster.decode(claims[kind], "damaged")


@pytest.mark.parametrize(
    ("name", "whole", "read"),
    [
        ("labels.csv", TABLE, lambda url: labels.read(url, ["a.png", "b.png", "c.png", "m.png"])),
        ("Info.txt", INFO, lambda url: mias._parse(storage.read_bytes(url).decode("latin-1"), url)),
        (
            "mass_case_description_test_set.csv",
            ",".join(CBIS) + "\n" + ",".join(CBIS.values()),
            lambda url: cbis_ddsm._parse(storage.read_bytes(url), url),
        ),
        ("INbreast.csv", INBREAST, inbreast.read_table),
        ("1001.xml", regions(("Mass", ["(1.0, 2.0)", "(3, 4)", "(5, 1)"])).decode(), inbreast.read_regions),
        ("case.ics", ICS.format(name="C-0029-1"), lambda url: ddsm.read_ics(_text(url), url)),
        ("film.OVERLAY", OVERLAY.format(square=SQUARE, second="1 1 2 4 6 0"), lambda url: _outlines(_text(url))),
    ],
)
def test_a_damaged_table_is_an_error_of_ours(name: str, whole: str, read: Callable[[str], object]):
    url = f"memory://fuzz/{name}"

    def written(data: bytes) -> object:
        storage.write_bytes(url, data)
        return read(url)

    survives(written, whole.encode(), text=True)


def test_a_damaged_npz_is_an_error_of_ours():
    buffer = io.BytesIO()
    images, numbers = np.zeros((4, 8, 8), np.uint8), np.zeros((4, 1), np.uint8)
    parts = {f"{part}_{kind}": of for part in medmnist.PARTS for kind, of in (("images", images), ("labels", numbers))}
    np.savez(buffer, **parts)

    def read(data: bytes) -> object:
        storage.write_bytes("memory://fuzz/set.npz", data)
        medmnist._parts.cache_clear()
        return medmnist._parts("memory://fuzz/set.npz")

    assert survives(read, buffer.getvalue()) > 0


def _text(url: str) -> str:
    return storage.read_bytes(url).decode("latin-1")


def _outlines(text: str) -> object:
    return [ddsm.filled(of.outline, (60, 40)) for of in ddsm.read_overlay(text, (60, 40)) if of.outline is not None]
