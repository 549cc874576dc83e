"""Lists of a DICOMweb server that pages as it likes: all of it, or an error."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest

from rayad.errors import StorageError
from rayad.heatmaps.answers import DetectorName
from rayad.imaging import dicomweb
from rayad.serving import watch

MG = "1.2.840.10008.5.1.4.1.1.1.2"


def row(number: int) -> dict:
    uids = {"00080016": MG, "00080018": f"1.2.3.{number}", "0020000D": "1.2.1", "0020000E": "1.2.2"}
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}


@contextmanager
def server(
    total: int, most: int = 10**9, offsets: bool = True, warns: bool = False, empty: bool = False
) -> Iterator[str]:
    """A server of so many instances that answers with at most so many at a time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlparse(self.path).query)
            first = int(asked.get("offset", ["0"])[0]) if offsets else 0
            last = min(total, first + min(most, int(asked["limit"][0])))
            rows = [row(number) for number in range(first, last)] if asked.get("Modality") != ["SEG"] else []
            if empty and first:
                rows = []
            body = json.dumps(rows).encode() if rows else b""
            self.send_response(200 if rows else 204)
            self.send_header("Content-Type", "application/dicom+json")
            if warns and last < total:
                self.send_header("Warning", f'299 test: "There are {total - last} additional results"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *of: object) -> None:
            """Say nothing."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


@pytest.mark.parametrize(
    "how",
    [
        {"total": 1200},
        {"total": 500},
        {"total": 1000},
        {"total": 250, "most": 100, "warns": True},
        {"total": 250, "most": 100},
        {"total": 7, "most": 1},
        {"total": 250, "offsets": False},
        {"total": 0},
    ],
)
def test_all_instances_come_whatever_the_size_of_a_page(how):
    with server(**how) as url:
        found = dicomweb.search(url, "MG")
    assert [of.instance for of in found] == [f"1.2.3.{number}" for number in range(how["total"])]


@pytest.mark.parametrize(
    "how",
    [
        {"total": 250, "most": 100, "offsets": False, "warns": True},
        {"total": 700, "offsets": False},
        {"total": 250, "most": 100, "warns": True, "empty": True},
    ],
)
def test_a_list_that_the_server_does_not_give_whole_is_an_error(how):
    with (
        server(**how) as url,
        pytest.raises(StorageError, match="an incomplete list of instances"),
    ):
        dicomweb.instances(url)


def test_a_single_pass_at_an_archive_that_never_answered_ends(monkeypatch):
    monkeypatch.setattr(watch, "BACKOFF_S", (0.01, 0.02))
    monkeypatch.setattr(watch._Scorer, "algorithm", lambda self: DetectorName(name="a", sha256="b" * 64))
    with pytest.raises(StorageError, match=r"cannot read http://127\.0\.0\.1:1"):
        watch.watch("http://127.0.0.1:1", "http://127.0.0.1:2", once=True)
