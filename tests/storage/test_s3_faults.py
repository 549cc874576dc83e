"""rayad.storage on an S3 server that throttles, cuts connections and loses its bucket."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import pytest
from faulty import Fault, Proxy, faulty

from rayad import storage
from rayad.errors import StorageError


@pytest.fixture
def disturbed(s3, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[Proxy]]:
    """The server behind a proxy; the environment leads to the proxy."""

    @contextmanager
    def start(fault: Fault, cut_after: int = 1000) -> Iterator[Proxy]:
        with faulty(s3.endpoint, fault, cut_after) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            yield proxy
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)

    return start


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(3 * 2**20)


def test_a_server_that_throttles_now_and_then_is_waited_for(disturbed, content: bytes) -> None:
    with disturbed(lambda number, *_: "throttle" if number % 3 == 0 else "pass") as proxy:
        for name in "abc":
            storage.write_bytes(f"s3://rayad/throttled/{name}", content)
        assert [storage.read_bytes(url) for url in storage.listing("s3://rayad/throttled")] == [content] * 3
        assert storage.exists("s3://rayad/throttled/a")
    assert proxy.count("throttle") > 3


def test_a_server_that_only_throttles_is_named_in_seconds(disturbed, content: bytes) -> None:
    storage.write_bytes("s3://rayad/always/x", content)
    with disturbed(lambda *_: "throttle"):
        for attempt in (storage.read_bytes, partial(storage.write_bytes, data=b"1")):
            start = time.monotonic()
            with pytest.raises(StorageError, match=r"s3://rayad/always/x: .*reduce your request rate"):
                attempt("s3://rayad/always/x")
            assert time.monotonic() - start < 60
    assert storage.read_bytes("s3://rayad/always/x") == content


@pytest.mark.parametrize("cut_after", [0, 1000, 2**20])
def test_a_connection_cut_in_the_middle_is_made_again(disturbed, content: bytes, cut_after: int) -> None:
    with disturbed(lambda number, *_: "cut" if number % 4 == 1 else "pass", cut_after) as proxy:
        for _ in range(3):
            storage.write_bytes("s3://rayad/cut/x", content)
            assert storage.read_bytes("s3://rayad/cut/x") == content
    assert proxy.count("cut") >= 2


def test_a_connection_that_is_always_cut_is_named(disturbed, content: bytes) -> None:
    storage.write_bytes("s3://rayad/cut/y", content)
    with (
        disturbed(lambda _, method, path: "cut" if method == "GET" and path.endswith("/y") else "pass"),
        pytest.raises(StorageError, match="cannot read s3://rayad/cut/y: the connection was cut"),
    ):
        storage.read_bytes("s3://rayad/cut/y")


def test_a_large_object_goes_in_parts_and_a_part_that_fails_goes_again(disturbed) -> None:
    content = np.random.default_rng(1).bytes(110 * 2**20)  # s3fs: 50 MiB a part
    failed: list[str] = []

    def second_part_fails(_: int, method: str, path: str) -> str:
        if method == "PUT" and "partNumber=2" in path and not failed:
            failed.append(path)
            return "throttle"
        return "pass"

    with disturbed(second_part_fails) as proxy:
        storage.write_bytes("s3://rayad/large/x", content)
        assert storage.read_bytes("s3://rayad/large/x") == content
    parts = {path.partition("partNumber=")[2][0] for _, path, _ in proxy.seen if "partNumber=" in path}
    assert failed
    assert parts == {"1", "2", "3"}


def test_a_listing_of_more_than_a_page_is_whole(disturbed) -> None:
    names = [f"{number:04d}" for number in range(1100)]  # S3: 1,000 names a page
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"s3://rayad/many/{name}", b""), names))
    with disturbed(lambda number, *_: "throttle" if number == 1 else "pass") as proxy:
        assert storage.listing("s3://rayad/many") == [f"s3://rayad/many/{name}" for name in names]
    assert sum("continuation-token" in path for _, path, _ in proxy.seen) >= 1


@pytest.mark.long
def test_storage_that_goes_away_and_comes_back_is_waited_for(disturbed, content: bytes) -> None:
    with disturbed(lambda *_: "pass") as proxy:
        storage.write_bytes("s3://rayad/away/x", content)
        for attempt in (
            lambda: storage.read_bytes("s3://rayad/away/x"),
            lambda: storage.write_bytes("s3://rayad/away/y", content),
            lambda: storage.listing("s3://rayad/away"),
            lambda: storage.exists("s3://rayad/away/y"),
            lambda: storage.remove("s3://rayad/away/y"),
        ):
            proxy.leave(8)
            start = time.monotonic()
            attempt()
            assert 7 < time.monotonic() - start < 60
        assert storage.listing("s3://rayad/away") == ["s3://rayad/away/x"]


def test_storage_that_stays_away_is_named(disturbed, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_S", 5.0)
    with disturbed(lambda *_: "pass") as proxy:
        storage.write_bytes("s3://rayad/gone/x", content)
        proxy.close()
        with pytest.raises(StorageError, match=r"cannot read s3://rayad/gone/x: .*connect to the endpoint"):
            storage.read_bytes("s3://rayad/gone/x")
