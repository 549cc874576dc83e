"""What comes from outside and is larger or deeper than it may be, at each place that reads it."""

import asyncio
import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from rayad import bounded
from rayad.errors import FormatError, StorageError
from rayad.imaging import dicomweb
from rayad.patches.corpus import ZSTD, Corpus
from rayad.serving.issuer import Issuer
from rayad.serving.problems import Problem

DEEP = b"[" * 100_000 + b"]" * 100_000
HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}\n"


def npy(kind: str, shape: str, content: bytes) -> bytes:
    """An npy file as numpy's format says (version 1.0), with whatever header."""
    header = HEADER.format(kind, shape).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def npz(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def test_what_numpy_saved_is_loaded() -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.eye(3)),
        "c": np.array("text"),
        "d": np.zeros(0),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    found = bounded.load_npz(buffer.getvalue(), "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy("<f8", "(1000000000000,)", bytes(8)),
        npy("<f8", "(2,)", bytes(8)),
        npy("<f8", "(1,)", bytes(16)),
        npy("|O", "(1,)", bytes(8)),
        npy("<f8", "(" * 5000, bytes(8)),
        npy("<f8", "-" * 9000 + "1", bytes(8)),
        npy("<f8", "(-2, -4)", bytes(64)),
        b"\x93NUMPY\x09\x00" + bytes(100),
    ],
    ids=["empty", "cut", "declares-8-TB", "short", "long", "objects", "parentheses", "minus", "negative", "version"],
)
def test_an_npy_file_whose_header_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^x\.npy: (is not )?an npy file .{5,60}$"):
        bounded.load_npy(data, "x.npy")
    with pytest.raises(FormatError, match=r"^x\.npz, 'a\.npy': (is not )?an npy file .{5,60}$"):
        bounded.load_npz(npz(a=data), "x.npz")


def test_no_more_is_decompressed_than_is_allowed() -> None:
    data = npz(a=npy("|u1", "(10000000,)", bytes(10_000_000)))
    assert len(data) < 20_000
    assert len(bounded.load_npz(data, "x.npz")["a"]) == 10_000_000
    with pytest.raises(FormatError, match=r"x\.npz: arrays of at most 10 MB are read, not of 10 MB"):
        bounded.load_npz(data, "x.npz", largest=10_000_000)
    with pytest.raises(FormatError, match=r"x\.npz: is not an npz file"):
        bounded.load_npz(data[:-100], "x.npz")


@pytest.mark.parametrize("content", [npy("<u2", "(1000, 64, 64)", bytes(8192)), npy("|O", "(1,)", bytes(8)), b"no npy"])
def test_a_shard_that_is_not_what_its_header_declares_is_refused(tmp_path: Path, content: bytes) -> None:
    file = ZSTD.compress(content, asbytes=True)
    (tmp_path / "a.npy.zst").write_bytes(file)
    shard = {"name": "a", "patches": 1, "sha256": hashlib.sha256(file).hexdigest(), "npy_bytes": len(content)}
    with pytest.raises(FormatError, match=rf"a\.npy\.zst: holds no npy of {len(content)} bytes, as the manifest says"):
        Corpus(str(tmp_path), {"shards": [shard]}).read("a")


@pytest.fixture
def answer() -> Iterator[list[bytes]]:
    """Bodies that a server on loopback answers one after the other, the last again and again; its URL is put first."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.pop(0) if len(bodies) > 1 else bodies[0]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        bodies.append(f"http://127.0.0.1:{server.server_port}".encode())
        yield bodies
        server.shutdown()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (DEEP, "may nest 64 levels deep"),
        (b'[{"00280030": {"vr": "DS", "Value": [NaN]}}]', "NaN is no number of JSON"),
        (b"<html>", "is not JSON"),
        (b"3", "TypeError"),
        (b'["text"]', "Error"),
    ],
)
def test_a_search_of_an_archive_has_bounds(answer: list[bytes], body: bytes, reason: str) -> None:
    url = answer.pop().decode()
    answer.append(body)
    with pytest.raises(StorageError, match=f"cannot read {url}: .*{reason}"):
        dicomweb.search(url, "MG")


def test_an_issuer_s_document_has_bounds(answer: list[bytes]) -> None:
    issuer = Issuer(answer.pop().decode(), "rayad", pause_s=0)
    answer.append(DEEP)
    parts = (b'{"alg": "RS256"}', b"{}", b"no signature")
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    with pytest.raises(Problem, match="does not answer"):
        asyncio.run(issuer.find(token))


def test_an_archive_s_answer_has_a_size(answer: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    url = answer.pop().decode()
    row = {key: {"vr": "UI", "Value": ["1.2"]} for key in ("0020000D", "0020000E", "00080018", "00080016")}
    answer.append(json.dumps([row]).encode())
    assert [one.instance for one in dicomweb.search(url, "MG")] == ["1.2"]
    monkeypatch.setattr(dicomweb, "LARGEST", 100)
    with pytest.raises(StorageError, match=r"JSON of at most 0\.0001 MB is read"):
        dicomweb.search(url, "MG")
