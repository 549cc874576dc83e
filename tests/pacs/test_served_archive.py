"""The loop as it is used: a real archive, a real `rayad serve`, and `rayad watch` as a process between them."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import psutil
import pytest
import requests
from pydicom import Dataset

from rayad.imaging import dicomweb
from rayad.serving import objects
from tests.dicoms import complete, written
from tests.pacs.conftest import LOGIN, Archive
from tests.pacs.test_scored_archive import count, held, put
from tests.served import ME, PATIENTS, TOKEN, Served, serving
from tests.unit.test_objects import points


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("DICOMWEB_USER", LOGIN[0])
    monkeypatch.setenv("DICOMWEB_PASSWORD", LOGIN[1])
    dicomweb._client.cache_clear()


def images(number: int) -> list[Dataset]:
    """Mammograms of phantoms with a lesion, of a patient each."""
    exams = [exam for exam in PATIENTS.exams() if exam.lesions]
    spacing = {"PixelSpacing": [0.8, 0.8], "ImagerPixelSpacing": [0.8, 0.8]}
    return [
        complete((PATIENTS.pixels(exams[n % len(exams)]) * 4095).astype(np.uint16), PatientID=f"MADE-UP-{n}", **spacing)
        for n in range(number)
    ]


def watching(archive: Archive, server: Served, output: Path) -> subprocess.Popen[bytes]:
    """`rayad watch --once`; what it prints goes to a file."""
    command = [sys.executable, "-m", "rayad.cli", "watch", "--pacs", archive.url, "--server", server.url, "--once"]
    with output.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"RAYAD_TOKEN": TOKEN})


def watched(archive: Archive, server: Served, output: Path) -> dict[str, int]:
    """What it counted, when it has ended by itself."""
    process = watching(archive, server, output)
    assert process.wait(300) == 0, output.read_text()
    return counted(output)


def counted(output: Path) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", output.read_text().splitlines()[-1])}


def uids(image: Dataset, server: Served) -> dict[str, str]:
    """Of the objects that an image can have."""
    (sha256, *_) = [card["sha256"] for card in server.get("/v1/detectors").json()["detectors"]]
    return {kind: objects.uid(image.SOPInstanceUID, sha256, kind) for kind in objects.KINDS}


@pytest.mark.long
def test_objects_are_stored_once_and_lie_where_the_server_says(archive, served, tmp_path):
    sources = images(2)
    put(archive, *sources)
    assert watched(archive, served, tmp_path / "1") == {"stored": 2, "present": 0, "unscorable": 0, "failures": 0}
    after = count(archive)
    assert watched(archive, served, tmp_path / "2") == {"stored": 0, "present": 2, "unscorable": 0, "failures": 0}
    assert count(archive) == after
    marked = 0
    for source in sources:
        answer = requests.post(f"{served.url}/v1/score", data=written(source), headers=ME, timeout=120).json()
        (report,) = held(archive, source.StudyInstanceUID, "SR")
        (capture,) = held(archive, source.StudyInstanceUID, "OT")
        expected = uids(source, served)
        assert (report.SOPInstanceUID, capture.SOPInstanceUID) == (expected["sr"], expected["sc"])
        assert (capture.Rows, capture.Columns) == (source.Rows, source.Columns)
        assert list(capture.PixelSpacing) == [0.8, 0.8]
        assert report.PatientID == capture.PatientID == source.PatientID
        found = [(one["column"] + 0.5, one["row"] + 0.5) for one in answer["findings"]]
        np.testing.assert_allclose(points(report), found)
        for segmented in held(archive, source.StudyInstanceUID, "SEG"):
            read = hd.seg.segread(io.BytesIO(objects.to_bytes(segmented)))
            options = {"ignore_spatial_locations": True, "segment_numbers": [1]}
            mask = read.get_pixels_by_source_instance([source.SOPInstanceUID], **options)[0, ..., 0]
            assert mask.shape == (source.Rows, source.Columns)
            assert all(mask[int(row), int(column)] for column, row in found)
            marked += 1
    assert after == 2 + 2 * 2 + marked
    said = (tmp_path / "1").read_text()
    assert not any(word in said for word in ("Made", "MADE-UP", "19600102"))


@pytest.mark.long
def test_a_server_that_is_killed_and_started_again_loses_no_image(archive, served, tmp_path):
    sources = images(6)
    put(archive, *sources)
    process = watching(archive, served, tmp_path / "1")
    until = time.monotonic() + 120
    while "stored in" not in (tmp_path / "1").read_text():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    killed_and_started_again(served)
    assert process.wait(300) == 0, (tmp_path / "1").read_text()
    counts = counted(tmp_path / "1")
    assert (counts["stored"], counts["unscorable"]) == (6, 0)
    assert counts["failures"] >= 1
    for source in sources:
        expected = uids(source, served)
        stored = [
            one.SOPInstanceUID for of in ("OT", "SEG", "SR") for one in held(archive, source.StudyInstanceUID, of)
        ]
        assert {expected["sc"], expected["sr"]} <= set(stored) <= set(expected.values())
        assert len(set(stored)) == len(stored)
    after = count(archive)
    assert watched(archive, served, tmp_path / "2")["present"] == 6
    assert count(archive) == after


@pytest.mark.long
@pytest.mark.parametrize(("number", "done"), [(signal.SIGKILL, 0), (signal.SIGTERM, 1), (signal.SIGINT, 3)])
def test_a_watch_that_is_killed_goes_on_and_stores_nothing_twice(archive, served, tmp_path, number, done):
    sources = images(6)
    put(archive, *sources)
    process, output = watching(archive, served, tmp_path / "1"), tmp_path / "1"
    until = time.monotonic() + 120
    while output.read_text().count("stored in") < done or count(archive) == len(sources):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    counts = watched(archive, served, tmp_path / "2")
    assert counts["stored"] + counts["present"] == 6
    assert counts["unscorable"] == counts["failures"] == 0
    for source in sources:
        expected, stored = uids(source, served), []
        for modality in ("OT", "SEG", "SR"):
            stored += [one.SOPInstanceUID for one in held(archive, source.StudyInstanceUID, modality)]
        assert {expected["sc"], expected["sr"]} <= set(stored) <= set(expected.values())
        assert len(set(stored)) == len(stored)


def killed_and_started_again(server: Served) -> None:
    """By SIGKILL, with which everything ends that it had started; on the same port."""
    command, environment = server.process.cmdline(), server.process.environ()
    children = server.process.children(recursive=True)
    server.process.kill()
    server.process.wait(30)
    assert not psutil.wait_procs(children, timeout=30)[1]
    with (server.folder / "log").open("w") as log:
        server.process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
    server.says("rayad serves spn, plain at http://127.0.0.1", 240)
