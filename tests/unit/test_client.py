"""The client and servers that are away for a moment, busy, or none of rayad's; rayad's own is in tests/ray."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rayad.errors import FormatError, ImageError, ServiceError, StorageError
from rayad.serving import client
from rayad.serving.client import Client


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, the last one for ever; its URL and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            status, headers, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815, names of http.server

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def problem(status: int, **headers: str) -> tuple[int, dict[str, str], bytes]:
    said = {"type": "about:blank", "title": "Busy", "status": status, "detail": "too many images are waiting"}
    return status, {"Content-Type": "application/problem+json", **headers}, json.dumps(said).encode()


NONE = (200, {}, b'{"batches": []}')
LATER = {"Retry-After": "1"}


@pytest.mark.parametrize("status", [429, 503])
def test_who_says_when_is_asked_again(status):
    with answering(problem(status, **LATER), NONE) as (url, asked):
        began = time.monotonic()
        assert Client(url).batches() == ()
        assert 1 <= time.monotonic() - began < 3
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("status", "headers"), [(503, {}), (503, {"Retry-After": "3600"}), (503, {"Retry-After": "soon"}), (500, LATER)]
)
def test_who_does_not_say_when_or_says_much_later_is_not(status, headers):
    with answering(problem(status, **headers)) as (url, asked), pytest.raises(ServiceError) as caught:
        Client(url).batches()
    assert (caught.value.status, caught.value.title) == (status, "Busy")
    assert str(caught.value) == f"the server answers {status}: too many images are waiting"
    assert len(asked) == 1


def test_attempts_are_bounded(monkeypatch):
    with answering(problem(503, **LATER)) as (url, asked), pytest.raises(ServiceError) as caught:
        Client(url, attempts=2).batches()
    assert (len(asked), caught.value.retry_after) == (2, 1)
    monkeypatch.setattr(client, "PAUSE_S", 0.01)
    with pytest.raises(StorageError, match=r"cannot reach http://127\.0\.0\.1:9: ConnectionError"):
        Client("http://127.0.0.1:9").batches()


def test_a_batch_is_not_started_twice(monkeypatch):
    with answering(problem(503, **LATER)) as (url, asked), pytest.raises(ServiceError):
        Client(url).start_batch("s3://results/a", prefix="s3://images/")
    assert len(asked) == 1
    monkeypatch.setattr(client, "PAUSE_S", 100)
    with pytest.raises(StorageError):
        Client("http://127.0.0.1:9").start_batch("s3://results/a", prefix="s3://images/")


def test_a_server_that_comes_back_is_found(monkeypatch):
    monkeypatch.setattr(client, "PAUSE_S", 0.2)
    with answering(NONE) as (url, _):
        pass
    port = int(url.rpartition(":")[2])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(Client(url).batches()))
    thread.start()
    time.sleep(0.3)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(NONE[2])))
            self.end_headers()
            self.wfile.write(NONE[2])

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.timeout = 10
        server.handle_request()
    thread.join()
    assert found == [()]


def test_a_token_is_sent_nowhere_else_and_shown_nowhere(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with answering((302, {"Location": "http://127.0.0.1:9/"}, b""), NONE) as (url, asked):
        with pytest.raises(ServiceError, match="answers 302"):
            Client(url, "secret").batches()
        Client(url).batches()
    assert asked == ["GET /v1/batches Bearer secret", "GET /v1/batches None"]
    assert "secret" not in repr(Client(url, "secret"))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"batches": [{"id": "x"}]}', b'{"batches": 3}'])
def test_what_is_no_answer_of_rayad_s_is_said(body):
    with answering((200, {}, body)) as (url, _), pytest.raises(FormatError, match="none of rayad's"):
        Client(url).batches()


def test_an_answer_that_nests_without_end_is_said():
    deep = b"[" * 100_000
    with answering((200, {}, deep)) as (url, _):
        for ask in (Client(url).batches, lambda: Client(url).score(b"x")):
            with pytest.raises(FormatError, match=r"none of rayad's: .* may nest 64 levels deep"):
                ask()
    with (
        answering((500, {}, deep)) as (url, _),
        pytest.raises(ServiceError, match="answers 500: Internal Server Error"),
    ):
        Client(url).batches()


@pytest.mark.parametrize("body", [b"", b"no zip", b"\x93NUMPY", b"PK\x03\x04"])
def test_what_is_no_heatmap_is_said(body):
    with answering((200, {}, body)) as (url, _), pytest.raises(FormatError, match="none of rayad's"):
        Client(url).heatmap(b"x")


def test_an_image_is_one_thing_and_a_proxy_s_page_a_problem(tmp_path):
    for image, url in ((b"", ""), (b"x", "s3://images/a")):
        with pytest.raises(ImageError, match="one of them"):
            Client("http://127.0.0.1:9").score(image, url=url)
    with pytest.raises(StorageError, match="cannot read"):
        Client("http://127.0.0.1:9").score(tmp_path / "none.png")
    with answering((502, {}, b"<html>")) as (url, _), pytest.raises(ServiceError, match="answers 502: Bad Gateway"):
        Client(url).score(b"x")
