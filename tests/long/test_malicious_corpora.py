"""Data sets among whose images lie such as were made to do harm: each of these is left out with its reason."""

import sys
from collections.abc import Callable
from pathlib import Path

import memory
import numpy as np
import pytest
from dicoms import complete, written
from malicious import BAD
from served import png

from rayad.bounds import Bounds
from rayad.datasets import phantom
from rayad.imaging import raster
from rayad.patches.corpus import Corpus

HEALTHY = phantom.Dataset(patients=12, diseased=0.0, height=256, width=192, spacing_mm=0.8)
ENDINGS = {b"\x89P": ".png", b"II": ".tif", b"\xff\xd8": ".jpg", b"P2": ".pgm"}
pytestmark = pytest.mark.timeout(1200)


def as_dicom(exam: phantom.Exam) -> bytes:
    pixels = (HEALTHY.pixels(exam) * 4095).astype(np.uint16)
    return written(complete(pixels, PixelSpacing=[0.8, 0.8], PatientID=exam.patient_id))


def folder_of(place: Path, dataset: str, kinds: dict[str, Callable[[], bytes]]) -> set[str]:
    """Write a folder of good images and of bad ones, of which the names are returned."""
    place.mkdir()
    bad = set()
    for number, (kind, make) in enumerate(kinds.items()):
        data = make()
        assert data, kind
        is_raster = raster.is_raster(data)
        if is_raster == (dataset == "folder"):
            ending = next((of for start, of in ENDINGS.items() if data.startswith(start)), ".png")
            name = f"bad-{number:02}{ending if is_raster else '.dcm'}"
            (place / name).write_bytes(data)
            bad.add(name)
    table = "".join(f"{name},{name}\n" for name in sorted(bad))  # a patient each, some of whom one learns from
    (place / "labels.csv").write_text(f"image,patient\n{table}")
    for number, exam in enumerate(HEALTHY.exams()):
        if dataset == "folder":
            (place / f"good-{number:02}.png").write_bytes(png(HEALTHY, exam))
        else:
            (place / f"good-{number:02}.dcm").write_bytes(as_dicom(exam))
    return bad


@pytest.mark.parametrize("dataset", ["folder", "dicom"])
def test_each_is_left_out_with_its_reason_in_bounded_memory(tmp_path, dataset):
    bad = folder_of(tmp_path / "in", dataset, BAD)
    folder_of(tmp_path / "good", dataset, {})

    def run(command: str, source: str, *more: str) -> int:
        """The most bytes that it took, all its processes together."""
        words = [sys.executable, "-m", "rayad.cli", command, "--dataset", dataset, "--source", str(tmp_path / source)]
        words += ["--settings", "healthy=true", "spacing_mm=0.8", *["patient_ids=plain"] * (dataset == "dicom")]
        words += ["--picture", "spacing_mm=0.8", "intensity=relative", "--out", str(tmp_path / f"{command}-{source}")]
        code, said, most = memory.of_tree([*words, *more])
        assert code == 0, said
        return most

    often = ("--max-failures", "1", "--sampling.patches", "5")
    usual = max(run("ingest", "good", *often), run("inspect", "good"))
    most = max(run("ingest", "in", *often), run("inspect", "in"))
    assert most < usual + 2 * Bounds().memory_mb * 1_000_000  # two images are read at once
    manifest = Corpus.open(str(tmp_path / "ingest-in")).manifest
    left_out = manifest["failures"] + manifest["excluded"]
    named = {of["url"].rpartition("/")[2] for of in left_out}
    assert named <= bad
    assert len(named) > len(bad) / 2  # patients of the test split are not learned from
    assert all(of["reason"] for of in left_out)
    assert manifest["images"] == Corpus.open(str(tmp_path / "ingest-good")).manifest["images"]
