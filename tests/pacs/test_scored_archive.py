"""The loop over a real archive: images are scored once, their objects come back, restarts are survived."""

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import highdicom as hd
import numpy as np
import pytest
import requests
from pydicom import Dataset, dcmread

from rayad.errors import OptionError, StorageError
from rayad.imaging import dicom, dicomweb
from rayad.serving import objects, watch
from tests.dicoms import complete, mammogram, written
from tests.pacs.conftest import LOGIN, Archive
from tests.unit.test_objects import BY, LESION, judged, points, with_lesion

TOKEN = "a token of this test"


class Server(ThreadingHTTPServer):
    """Answers as rayad's HTTP API does, with objects of the image; refuses what is smaller than the test's images."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scored: list[str] = []
        self.before: Callable[[int], int] = lambda count: 200
        """What happens when an image comes in, and the status; by the number of images so far."""
        self.instead: bytes = b""
        """An image whose objects are sent for every image."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        card = {"name": BY.name, "sha256": BY.sha256, "score": "likelihood", "summary": "", "counterfactual": False}
        card |= {"calibration_patients": 4, "p_value_floor": 0.2, "preprocessing": {}, "provenance": {}}
        allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self._answer(200 if allowed else 401, "application/json", {"detectors": [card], "default": BY.name})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/v1/score?detector={BY.name}"
        assert self.headers["Accept"] == "application/dicom"
        source = dcmread(io.BytesIO(data))
        if (status := self.server.before(len(self.server.scored))) != 200:
            self._answer(status, "application/problem+json", {"title": "", "status": status, "detail": "not now"})
            return
        self.server.scored.append(source.SOPInstanceUID)
        if source.Rows < 100:
            self._answer(
                422, "application/problem+json", {"title": "", "status": 422, "detail": "smaller than a patch"}
            )
            return
        if self.server.instead:
            data, source = self.server.instead, dcmread(io.BytesIO(self.server.instead))
        pixels = dicom.decode(data, "image")
        made = [objects.to_bytes(found) for found in objects.objects(source, pixels, judged(pixels), BY).values()]
        related = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in made)
        self._answer(200, 'multipart/related; type="application/dicom"; boundary=x', related + b"--x--\r\n")

    def _answer(self, status: int, kind: str, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("DICOMWEB_USER", LOGIN[0])
    monkeypatch.setenv("DICOMWEB_PASSWORD", LOGIN[1])
    dicomweb._client.cache_clear()


def put(archive: Archive, *images: Dataset) -> None:
    for image in images:
        url = f"{archive.root}/instances"
        requests.post(url, data=written(image), auth=LOGIN, timeout=30).raise_for_status()


def count(archive: Archive) -> int:
    answer = requests.get(f"{archive.root}/statistics", auth=LOGIN, timeout=30)
    return int(answer.json()["CountInstances"])


def held(archive: Archive, study: str, modality: str) -> list[Dataset]:
    """Objects of a study, as the archive gives them back."""
    found = [one for one in dicomweb.search(archive.url, modality) if one.study == study]
    return [dicomweb.instance(one.url) for one in found]


def once(archive: Archive, server: Server, **options) -> watch.WatchCounts:
    return watch.watch(archive.url, server.url, token=TOKEN, once=True, **options)


def small() -> Dataset:
    return mammogram(np.zeros((64, 48), np.uint16), PatientID="MADE-UP-2")


def test_objects_come_back_once_and_lie_on_the_image(archive, server, capsys):
    image = complete(with_lesion())
    put(archive, image, complete(with_lesion(), PatientID="MADE-UP-3"), small())
    assert once(archive, server) == watch.WatchCounts(stored=2, unscorable=1)
    assert count(archive) == 3 + 2 * 3
    (segmented,), (report,) = (held(archive, image.StudyInstanceUID, of) for of in ("SEG", "SR"))
    (capture,) = held(archive, image.StudyInstanceUID, "OT")
    read = hd.seg.segread(io.BytesIO(objects.to_bytes(segmented)))
    options = {"ignore_spatial_locations": True, "segment_numbers": [1]}
    mask = read.get_pixels_by_source_instance([image.SOPInstanceUID], **options)[0, ..., 0]
    ((column, row),) = points(report)
    assert mask[LESION]
    assert mask[int(row), int(column)]
    assert np.ptp(capture.pixel_array[LESION].astype(int)) > 50
    assert report.PatientName == segmented.PatientName == capture.PatientName == image.PatientName
    said = capsys.readouterr().out
    assert said.count("\n") == 3
    assert "smaller than a patch" in said
    assert not any(word in said for word in ("Made", "MADE-UP", "19600102", "A1"))

    assert once(archive, server) == watch.WatchCounts(present=2, unscorable=1)
    assert count(archive) == 9
    assert len(server.scored) == 4  # the small one is asked for again by another watcher, the others are not


def test_what_a_broken_store_left_out_is_added_and_nothing_is_stored_twice(archive, server):
    image = complete(with_lesion())
    put(archive, image)
    once(archive, server)
    (report,) = held(archive, image.StudyInstanceUID, "SR")
    (capture,) = held(archive, image.StudyInstanceUID, "OT")
    found = requests.post(f"{archive.root}/tools/lookup", data=report.SOPInstanceUID, auth=LOGIN, timeout=30).json()
    requests.delete(f"{archive.root}{found[0]['Path']}", auth=LOGIN, timeout=30).raise_for_status()
    assert once(archive, server) == watch.WatchCounts(stored=1)
    assert count(archive) == 4
    (again,) = held(archive, image.StudyInstanceUID, "OT")
    assert again.TimeOfSecondaryCapture == capture.TimeOfSecondaryCapture  # still the first one


def test_restarts_of_archive_and_server_are_survived(archive, server):
    images = [complete(with_lesion(), PatientID=f"MADE-UP-{n}") for n in range(3)]
    put(archive, *images)
    asked = []

    def before(scored: int) -> int:
        asked.append(scored)
        if len(asked) == 3:
            archive.stop()  # while the second image is scored, and for longer than the client of DICOMweb retries
            threading.Timer(4.5, archive.start).start()
        return 503 if len(asked) == 1 else 200

    server.before = before
    counts = once(archive, server)
    assert counts.stored == 3
    assert 2 <= counts.failures <= 6, "one each at least, and no tight loop"
    assert count(archive) == 3 + 3 * 3
    assert {image.SOPInstanceUID for image in images} == set(server.scored)


def test_what_is_new_is_found_until_the_process_is_told_to_stop(archive, server):
    put(archive, complete(with_lesion()), small())

    def later() -> None:
        _until(lambda: len(server.scored) == 2)
        put(archive, complete(with_lesion(), PatientID="MADE-UP-2"))
        _until(lambda: count(archive) == 3 + 2 * 3)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=later)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            watch.watch(archive.url, server.url, token=TOKEN, poll_s=0.05)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert len(server.scored) == 3  # the small one is not sent again and again


def test_old_studies_are_left_out(archive, server):
    put(archive, complete(with_lesion(), StudyDate="20200101"))
    assert once(archive, server, days=30) == watch.WatchCounts()
    assert once(archive, server) == watch.WatchCounts(stored=1)


def test_what_never_answers_and_what_is_refused_is_said(archive, server, monkeypatch):
    with pytest.raises(OptionError, match="answers 401: it wants another token"):
        watch.watch(archive.url, server.url, token="wrong", once=True)
    with pytest.raises(OptionError, match="has no detector 'another', only pca"):
        once(archive, server, detector="another")
    monkeypatch.setattr(watch, "PATIENCE_S", 0.5)
    with pytest.raises(StorageError, match=r"no image was done for 0\.5 s: cannot reach http://127\.0\.0\.1:9"):
        watch.watch(archive.url, "http://127.0.0.1:9", once=True)
    put(archive, complete(with_lesion()))
    server.before = lambda _: 500
    with pytest.raises(StorageError, match="answers 500: not now"):
        once(archive, server)
    assert count(archive) == 1


def test_objects_of_another_image_are_not_stored(archive, server, monkeypatch):
    monkeypatch.setattr(watch, "PATIENCE_S", 0.0)
    put(archive, complete(with_lesion()))
    server.instead = written(complete(with_lesion(), PatientID="MADE-UP-9"))
    with pytest.raises(StorageError, match="objects of another image or detector"):
        once(archive, server)
    assert count(archive) == 1


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
