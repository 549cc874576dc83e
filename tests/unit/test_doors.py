"""What was made to do harm is a row with its reason, and the images beside it are scored, read and looked at."""

import time

import memory
import numpy as np
import pytest
from malicious import BAD
from PIL import Image
from served import PATIENTS, made, png

from rayad.errors import ImageError
from rayad.heatmaps import images
from rayad.heatmaps.answers import Failure, Result
from rayad.heatmaps.images import HeatmapRequest, decoded
from rayad.pipeline.heatmap import write_heatmaps
from rayad.pool import Here
from rayad.scoring import bundle


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {kind: make() for kind, make in BAD.items()}


def test_one_by_one_they_are_refused_by_name_and_in_time(files):
    preprocessing = made(0).preprocessing
    for kind, data in files.items():
        began = time.monotonic()
        with pytest.raises(ImageError):
            preprocessing.prepare(decoded(data, "image", 1, HeatmapRequest(0.8)))
        assert time.monotonic() < began + 60, kind


@pytest.mark.long
def test_a_folder_of_them_costs_the_other_images_nothing(files, tmp_path):
    for number, data in enumerate(files.values()):
        (tmp_path / f"{number:02}.dcm").write_bytes(data)  # without an ending, what begins as no image is left out
    exams = list(PATIENTS.exams())[:2]
    for name, exam in zip(("00-first", "99-last"), exams, strict=True):
        (tmp_path / f"{name}.png").write_bytes(png(PATIENTS, exam))
    rows = list(write_heatmaps(Here(), made(0), [str(tmp_path)], HeatmapRequest(0.8, "MLO"), str(tmp_path / "out")))
    assert [row.name for row in rows if isinstance(row, Result)] == ["00-first", "99-last"]
    assert len(rows) == len(files) + 2


def test_an_error_that_nobody_expected_is_a_row_too(tmp_path, monkeypatch):
    for number, exam in enumerate(list(PATIENTS.exams())[:3]):
        (tmp_path / f"{number}.png").write_bytes(png(PATIENTS, exam))

    def broken(file: str, *arguments: object) -> object:
        if file.endswith("1.png"):
            raise ZeroDivisionError("division\nby zero")
        return opened(file, *arguments)

    opened = images.opened
    monkeypatch.setattr(images, "opened", broken)
    rows = list(write_heatmaps(Here(), made(0), [str(tmp_path)], HeatmapRequest(0.8, "MLO"), str(tmp_path / "out")))
    assert [row.reason for row in rows if isinstance(row, Failure)] == ["it failed: ZeroDivisionError: division"]
    assert isinstance(rows[1], Failure)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--spacing-mm", "40"), r"an image of 10240 x 7680 mm, 40 mm a pixel, is larger than any film"),
        pytest.param(
            ("--spacing-mm", "40", "--force", "size"),
            r"pixels of 0.8 mm, made of 40 mm, are more than bounds.pixels",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("--spacing-mm", "0.8", "--step-mm", "0.8", "--bounds.places", "1000"),
            r"more than bounds.places=1000",
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("--spacing-mm", "0.8", "--bounds.pixels", "100"),
            r"256 x 192 pixels are more than bounds.pixels=100",
            marks=pytest.mark.long,
        ),
    ],
)
def test_absurd_sizes_are_refused_within_three_gigabytes(tmp_path, options, sentence):
    bundle.save(made(0), str(tmp_path / "detector"))
    (tmp_path / "a.png").write_bytes(png(PATIENTS, next(iter(PATIENTS.exams()))))
    words = ["--detector", str(tmp_path / "detector"), "--images", str(tmp_path / "a.png")]
    code, out, most = memory.rayad("heatmap", *words, "--out", str(tmp_path / "out"), *options)
    assert sentence in out
    assert code == 1
    assert most < 3_000_000_000


@pytest.mark.long
def test_an_image_of_the_largest_size_takes_less_than_three_gigabytes(tmp_path):
    """4,800 x 6,000 px of 0.05 mm, twice as large as the bounds ask for room."""
    rows, columns = np.mgrid[0:6000, 0:4800]
    inside = np.hypot((rows - 3000) / 2700, columns / 3800) < 1
    pixels = np.where(inside, 20_000 + (rows + columns) % 1000, 0).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    bundle.save(made(0), str(tmp_path / "detector"))
    words = ["--detector", str(tmp_path / "detector"), "--images", str(tmp_path / "a.png")]
    words += ["--out", str(tmp_path / "out"), "--spacing-mm", "0.05", "--view", "CC"]
    code, out, most = memory.rayad("heatmap", *words)
    assert (code, most < 3_000_000_000) == (0, True), out
