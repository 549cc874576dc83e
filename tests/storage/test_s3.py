"""rayad.storage on a real S3 server: what memory and disk cannot show."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty import faulty

from rayad import storage
from rayad.errors import StorageError


@pytest.fixture
def root(s3, request: pytest.FixtureRequest) -> str:
    """A place of its own for each test."""
    return f"s3://{s3.bucket}/{request.node.name}"


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files go here, so that one can see what is left of them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_was_written_is_read_again_and_listed(root: str) -> None:
    for name in ["b.png", "a/c.PNG", "a/.hidden", "d.txt"]:
        storage.write_bytes(storage.join(root, name), name.encode())
    assert storage.listing(root) == [f"{root}/{name}" for name in ["a/c.PNG", "b.png", "d.txt"]]
    assert storage.listing(root, (".png",)) == [f"{root}/a/c.PNG", f"{root}/b.png"]
    assert storage.read_bytes(f"{root}/a/c.PNG") == b"a/c.PNG"
    assert storage.exists(f"{root}/b.png")
    assert storage.exists(f"{root}/a")
    assert not storage.exists(f"{root}/b")


def test_listings_and_contents_are_fresh(root: str) -> None:
    for count in (1, 2, 3):
        storage.write_bytes(f"{root}/same", str(count).encode())
        storage.write_bytes(f"{root}/{count}", b"")
        assert storage.read_bytes(f"{root}/same") == str(count).encode()
        assert len(storage.listing(root)) == 1 + count
    storage.remove(f"{root}/3")
    assert len(storage.listing(root)) == 3
    assert not storage.exists(f"{root}/3")


def test_an_object_appears_when_it_is_complete(root: str, own_temporary_folder: Path) -> None:
    url = f"{root}/x"
    with storage.writing(url) as file:
        file.write(b"half")
        file.flush()
        assert not storage.exists(url)
        file.write(b" and half")
    assert storage.read_bytes(url) == b"half and half"
    assert os.listdir(own_temporary_folder) == []


def _write_half(url: str) -> None:
    with storage.writing(url) as file:
        file.write(b"new")
        raise ValueError("half way")


def test_an_exception_leaves_the_old_object_and_no_temporary_file(root: str, own_temporary_folder: Path) -> None:
    storage.write_bytes(f"{root}/x", b"old")
    for name in ("x", "y"):
        with pytest.raises(ValueError, match="half way"):
            _write_half(f"{root}/{name}")
    assert storage.read_bytes(f"{root}/x") == b"old"
    assert not storage.exists(f"{root}/y")
    assert os.listdir(own_temporary_folder) == []


UPLOAD = """
import sys
from rayad import storage
storage.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has files without a name")
@pytest.mark.parametrize(("size", "request_held"), [(2**20, 1), (110 * 2**20, 1), (110 * 2**20, 3)])
def test_a_kill_in_the_middle_of_an_upload_leaves_neither_object_nor_file(
    s3, root: str, tmp_path: Path, size: int, request_held: int
) -> None:
    held, over, puts = threading.Event(), threading.Event(), []

    def fault(number: int, method: str, path: str) -> str:
        puts.extend([path] * (method == "PUT"))
        if len(puts) == request_held:
            held.set()
            over.wait(60)
        return "pass"

    with faulty(s3.endpoint, fault) as proxy:
        environment = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint, "RAYAD_TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", UPLOAD, f"{root}/x", str(size)]
        with subprocess.Popen(command, env=environment) as child:
            assert held.wait(60)
            child.kill()
            assert child.wait() == -signal.SIGKILL
        over.set()
    assert os.listdir(tmp_path) == []
    assert not storage.exists(f"{root}/x")
    storage.write_bytes(f"{root}/x", b"again")
    assert storage.read_bytes(f"{root}/x") == b"again"


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [("page.html", 10, "text/html"), ("x.json", 10, "application/json"), ("a.png", 110 * 2**20, "image/png")],
)
def test_an_object_has_the_type_that_its_name_says(root: str, name: str, size: int, kind: str) -> None:
    storage.write_bytes(f"{root}/{name}", bytes(size))
    filesystem, key = fsspec.url_to_fs(f"{root}/{name}", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    assert filesystem.info(key, refresh=True)["ContentType"] == kind


def test_a_large_object_goes_in_parts_and_is_read_in_parts(root: str) -> None:
    array = np.random.default_rng(0).integers(0, 255, 110 * 2**20, dtype=np.uint8)  # s3fs: 50 MiB a part
    with storage.writing(f"{root}/x.npy") as file:
        np.save(file, array)
    with storage.reading(f"{root}/x.npy") as file:
        file.seek(-1000, os.SEEK_END)
        assert file.read() == array[-1000:].tobytes()
        file.seek(0)
        np.testing.assert_array_equal(np.load(file), array)


def test_parquet_and_json_come_back(root: str) -> None:
    table = pa.table({"row": [1, 2], "split": ["train", "test"]})
    with storage.writing(f"{root}/index.parquet") as file:
        pq.write_table(table, file)
    with storage.reading(f"{root}/index.parquet") as file:
        assert pq.read_table(file).equals(table)
    storage.write_json(f"{root}/manifest.json", {"count": 2})
    assert storage.read_json(f"{root}/manifest.json") == {"count": 2}


def test_remove_takes_the_tree_and_spares_its_neighbours(root: str) -> None:
    for name in ["run/a", "run/b/c", "runner/d"]:
        storage.write_bytes(f"{root}/{name}", b"")
    storage.remove(f"{root}/run")
    storage.remove(f"{root}/nothing")
    assert storage.listing(root) == [f"{root}/runner/d"]
    assert not storage.exists(f"{root}/run")


def test_threads_write_and_read_side_by_side(root: str) -> None:
    def round_trip(number: int) -> bytes:
        storage.write_bytes(f"{root}/{number}", str(number).encode())
        return storage.read_bytes(f"{root}/{number}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(round_trip, range(32))) == [str(number).encode() for number in range(32)]


def _read_into(url: str, queue: "multiprocessing.Queue[bytes]") -> None:
    queue.put(storage.read_bytes(url))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_reads_too(root: str, method: str) -> None:
    storage.write_bytes(f"{root}/x", b"from the parent")
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_into, args=(f"{root}/x", queue))
    child.start()
    assert queue.get(timeout=60) == b"from the parent"
    child.join(60)


def test_what_is_not_there_says_so(root: str) -> None:
    for url in (f"{root}/nothing", "s3://no-such-bucket/x"):
        assert not storage.exists(url)
        with pytest.raises(StorageError, match=f"cannot read {url}: it does not exist"):
            storage.read_bytes(url)
        with pytest.raises(StorageError, match=f"cannot list {url}: it does not exist"):
            storage.listing(url)


def test_a_file_is_not_listed_as_a_folder(root: str) -> None:
    storage.write_bytes(f"{root}/x", b"1")
    with pytest.raises(StorageError, match="it is not a folder"):
        storage.listing(f"{root}/x")


def test_a_wrong_key_is_denied(s3, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{root}/x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for attempt in (storage.read_bytes, storage.exists, storage.listing, storage.remove):
        with pytest.raises(StorageError, match=f"{root}/x: access is denied"):
            attempt(f"{root}/x")
    with pytest.raises(StorageError, match=f"cannot write {root}/x: access is denied"):
        storage.write_bytes(f"{root}/x", b"2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    assert storage.read_bytes(f"{root}/x") == b"1"


def test_a_reader_reads_and_may_not_write(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{s3.shared}/x"
    storage.write_bytes(url, b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader[1])
    assert storage.read_bytes(url) == b"1"
    assert storage.listing(f"s3://{s3.shared}") == [url]
    with pytest.raises(StorageError, match=f"cannot write {url}: access is denied"):
        storage.write_bytes(url, b"2")
    with pytest.raises(StorageError, match=f"cannot write s3://{s3.bucket}/x: access is denied"):
        storage.write_bytes(f"s3://{s3.bucket}/x", b"2")


def _closed_port() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"  # bound, not listening: connections are refused


def _silent_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        port = server.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))  # fills the backlog: the next connection is never answered
        yield f"http://127.0.0.1:{port}"
        for each in waiting:
            each.close()


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("endpoint", [_closed_port, _silent_port])
def test_an_endpoint_out_of_reach_fails_in_seconds(endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in endpoint():
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        start = time.monotonic()
        with pytest.raises(StorageError, match=f"cannot read s3://rayad/x: .*{url}"):
            storage.read_bytes("s3://rayad/x")
        assert time.monotonic() - start < 30


@pytest.mark.usefixtures("s3")
def test_writing_out_of_reach_names_the_target(monkeypatch: pytest.MonkeyPatch, own_temporary_folder: Path) -> None:
    for url in _closed_port():
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StorageError, match=f"cannot write s3://rayad/x: .*{url}"):
            storage.write_bytes("s3://rayad/x", b"1")
    assert os.listdir(own_temporary_folder) == []


@pytest.mark.usefixtures("s3")
def test_no_key_at_all_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        storage.read_bytes("s3://rayad/x")


@pytest.mark.usefixtures("s3")
def test_two_writers_leave_one_whole_object() -> None:
    contents = [bytes([number]) * 2**20 for number in range(4)]
    writers = [threading.Thread(target=storage.write_bytes, args=("s3://rayad/race", each)) for each in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert storage.read_bytes("s3://rayad/race") in contents


def test_an_object_that_is_replaced_meanwhile_is_read_as_one_of_the_two(s3) -> None:
    url, contents = f"s3://{s3.bucket}/replaced", [b"a" * 1000, b"b" * 2000]
    storage.write_bytes(url, contents[0])
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            for content in contents:
                storage.write_bytes(url, content)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        found = {storage.read_bytes(url) for _ in range(200)}
    finally:
        done.set()
        writer.join()
    assert found == set(contents)
