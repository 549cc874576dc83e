"""rayad.serving.access, tokens and issuer: a real server on this machine, asked by sockets, and a real issuer."""

import asyncio
import hashlib
import http.client
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import APIRouter, FastAPI, Request, UploadFile
from fastapi.responses import PlainTextResponse, StreamingResponse

from rayad.errors import OptionError
from rayad.serving import exchange, problems, tokens
from rayad.serving.access import Access, Guard, Limits, check_binding
from rayad.serving.issuer import Issuer
from rayad.serving.problems import Problem
from rayad.serving.tokens import Tokens, from_environment, new_token

PLAIN = "a-token-of-enough-letters"


def application() -> FastAPI:
    """A small service that does everything wrong that an application can."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    problems.install(app)
    router = APIRouter(prefix="/v1")

    @router.post("/score")
    async def score(http: Request) -> dict[str, Any]:
        return {"bytes": len(await http.body()), "who": http.state.who, "id": http.state.request_id}

    @router.post("/form")
    async def form(image: UploadFile) -> int:
        return len(await image.read())

    @router.post("/json")
    async def of_json(body: dict[str, int]) -> int:
        return len(body)

    @router.post("/deaf")
    async def deaf(http: Request) -> str:
        try:
            await http.body()
        except Exception:  # noqa: BLE001, as bad applications do
            return "all is well"
        return "whole"

    @router.post("/full")
    async def full() -> None:
        raise Problem(503, "too many images are waiting")

    @router.get("/batches/{number}")
    async def batch(number: str) -> str:
        return number

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is hunter2")

    @router.get("/half")
    async def half() -> StreamingResponse:
        async def parts() -> Any:
            yield b"half"
            raise RuntimeError("hunter2")

        return StreamingResponse(parts())

    @router.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(30)

    @router.get("/injected")
    async def injected() -> PlainTextResponse:
        answer = PlainTextResponse("x", headers={"Content-Security-Policy": "none", "Server-Timing": "x"})
        answer.raw_headers.append((b"x-evil", b"1\r\nset-cookie: a=b"))
        return answer

    @router.get("/health")
    async def health() -> str:
        return "alive"

    @app.get("/")
    async def page() -> str:
        return "page"

    @app.get("/web/{name}")
    async def file(name: str) -> str:
        return name

    app.include_router(router)
    return app


@dataclass
class Served:
    """A server on a free port."""

    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """Ask, with - for _ in the names of headers; the body is read already, as `text`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            answer.text = answer.read().decode()  # type: ignore[attr-defined]
        finally:
            connection.close()
        return answer

    def raw(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """Send bytes, with pauses; all that comes until the server ends it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


@contextmanager
def running(app: Any, kind: str = "httptools") -> Iterator[int]:
    """The port of a server that runs an application."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=kind, ws="none", lifespan="off", log_config=None, access_log=False, loop="asyncio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listening.close()


Serve = Callable[..., Served]


PARSERS = pytest.mark.parametrize("parser", ["httptools", "h11"], scope="module", indirect=True)
"""Those of HTTP that uvicorn has: a test of bytes is run with both."""
MB = Limits(max_body_mb=1)
NAMED = Access(hosts=("Rayad.example.org", "only.example.org:444"))


@pytest.fixture(scope="module")
def parser(request: pytest.FixtureRequest) -> str:
    return pytest.importorskip(getattr(request, "param", "h11")).__name__


@pytest.fixture(scope="module")
def free(parser: str) -> Iterator[Served]:
    """A server that asks for no token."""
    with running(Guard(application(), NAMED, MB), parser) as port:
        yield Served(port)


@pytest.fixture(scope="module")
def door(parser: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that asks for a token, PLAIN."""
    with running(Guard(application(), Access(tokens=of_jane(tmp_path_factory.mktemp("list"))), MB), parser) as port:
        yield Served(port)


@pytest.fixture
def serve(parser: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers with a guard."""
    monkeypatch.delenv(tokens.VARIABLE, raising=False)
    with ExitStack() as stack:

        def start(access: Access = NAMED, limits: Limits = MB, inside: bool = False, **more: Any) -> Served:
            app: Any = application()
            if inside:
                app.add_middleware(Guard, access=access, limits=limits, **more)
            else:
                app = Guard(app, access, limits, **more)
            return Served(stack.enter_context(running(app, parser)))

        yield start


def of_jane(folder: Path) -> str:
    """A list with one token, PLAIN, of Jane."""
    file = folder / "tokens"
    file.write_text(f"# ours\njane {hashlib.sha256(PLAIN.encode()).hexdigest()}  # the clinic\n")
    file.chmod(0o600)
    return str(file)


@pytest.fixture
def listed(tmp_path: Path) -> str:
    return of_jane(tmp_path)


def bearer(plain: str = PLAIN) -> dict[str, str]:
    return {"Authorization": f"Bearer {plain}"}


def problem(answer: Any) -> dict[str, Any]:
    """The document of a problem, which has the answer's status."""
    assert answer.getheader("Content-Type") == "application/problem+json"
    document = json.loads(answer.text)
    assert document["status"] == answer.status
    return document


# --- tokens


@PARSERS
@pytest.mark.parametrize("inside", [False, True])
def test_a_token_opens_the_door(serve: Serve, listed: str, inside: bool) -> None:
    served = serve(Access(tokens=listed), inside=inside)
    answer = served.ask("POST", "/v1/score", b"image", **bearer())
    assert answer.status == 200
    said = json.loads(answer.text)
    assert (said["bytes"], said["who"], said["id"]) == (5, "jane", answer.getheader("X-Request-Id"))


@PARSERS
@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Basic {PLAIN}",
        PLAIN,
        f"Bearer {PLAIN} x",
        f"Bearer {PLAIN},{PLAIN}",
        f"Bearer {PLAIN}\u00e9",
        "Bearer " + "a" * 9000,
        "Bearer " + hashlib.sha256(PLAIN.encode()).hexdigest(),
    ],
)
def test_nothing_else_does(door: Served, given: str) -> None:
    answer = door.ask("POST", "/v1/score", b"image", Authorization=given)
    assert answer.status == 401
    assert str(answer.getheader("WWW-Authenticate")).startswith('Bearer realm="rayad"')
    assert PLAIN not in answer.text
    assert problem(answer)["title"] == "Unauthorized"


@PARSERS
def test_two_tokens_at_once_are_none(door: Served) -> None:
    line = f"Authorization: Bearer {PLAIN}\r\n".encode()
    answer = door.raw(b"GET /v1/batches/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + line + line + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["/", "/web/a.js", "/v1/health"])
def test_pages_need_no_token(door: Served, path: str) -> None:
    assert door.ask("GET", path).status == 200
    assert door.ask("POST", path, b"").status == 401


@PARSERS
@pytest.mark.parametrize(
    "path", ["/web/../v1/broken", "/web/%2e%2e/v1/broken", "/web//v1/broken", "//v1/broken", "/web/..%2fv1/broken"]
)
def test_no_path_leads_around_the_guard(door: Served, path: str) -> None:
    assert door.ask("GET", path).status in (401, 404)


@PARSERS
def test_a_wrong_token_is_refused_before_the_body_is_sent(door: Served) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
    began = time.monotonic()
    answer = door.raw(head)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"100 Continue" not in answer
    assert time.monotonic() - began < 1


def test_a_deleted_line_is_a_revoked_token(serve: Serve, listed: str) -> None:
    served = serve(Access(tokens=listed))
    assert served.ask("GET", "/v1/batches/1", **bearer()).status == 200
    os.truncate(listed, 0)
    assert served.ask("GET", "/v1/batches/1", **bearer()).status == 401
    fresh = new_token("john", listed)
    assert served.ask("GET", "/v1/batches/1", **bearer(fresh)).status == 200
    Path(listed).write_text("nonsense\n")
    assert served.ask("GET", "/v1/batches/1", **bearer(fresh)).status == 503
    os.unlink(listed)
    assert served.ask("GET", "/v1/batches/1", **bearer(fresh)).status == 503


def test_a_new_token_is_in_the_list_by_its_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first, second = new_token("jane", str(file)), new_token("jane", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert first not in file.read_text()
    found = Tokens(str(file))
    assert len(found) == 2
    for plain in (first, second):
        caller = found.find(plain)
        assert caller is not None
        assert caller.name == "jane"


def test_a_list_without_a_last_line_end_keeps_its_last_token(listed: str) -> None:
    Path(listed).write_text(Path(listed).read_text().rstrip("\n").partition("  #")[0])
    plain = new_token("john", listed)
    assert len(Tokens(listed)) == 2
    assert Tokens(listed).find(plain) is not None


def test_many_at_once_append_to_a_list(tmp_path: Path) -> None:
    file, made = str(tmp_path / "tokens"), list[str]()
    threads = [threading.Thread(target=lambda: made.append(new_token("jane", file))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Tokens(file)
    assert all(found.find(plain) for plain in made)
    assert len(found) == 20


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o602])
def test_a_list_that_others_can_read_or_change_is_refused(listed: str, mode: int) -> None:
    os.chmod(listed, mode)
    with pytest.raises(OptionError, match="others may read or change"):
        Tokens(listed)
    with pytest.raises(OptionError, match="others may read or change"):
        new_token("john", listed)


@pytest.mark.parametrize(
    "line", ["jane", "jane 12", "jane " + "G" * 64, "ja:ne " + "0" * 64, "j " + "0" * 64 + " x", "a b c d"]
)
def test_a_line_that_is_none_is_named(listed: str, line: str) -> None:
    with open(listed, "a") as file:
        file.write(line + "\n")
    with pytest.raises(OptionError, match="line 3 is not"):
        Tokens(listed)


@pytest.mark.parametrize(
    "said", ["jane", "jane:", ":" + PLAIN, "jane:short", f"ja ne:{PLAIN}", "jane:with space in it all"]
)
def test_an_environment_of_no_tokens_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(tokens.VARIABLE, said)
    with pytest.raises(OptionError, match=tokens.VARIABLE):
        from_environment()


def test_tokens_of_the_environment_are_good(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tokens.VARIABLE, f"jane:{PLAIN}, john:another-token-of-john")
    lines = from_environment()
    assert PLAIN not in " ".join(lines)
    assert Access().asks()
    here = serve()
    assert here.ask("GET", "/v1/batches/1", **bearer("another-token-of-john")).status == 200
    assert here.ask("GET", "/v1/batches/1").status == 401
    monkeypatch.delenv(tokens.VARIABLE)
    elsewhere = serve(listed=lines)
    assert elsewhere.ask("GET", "/v1/batches/1", **bearer()).status == 200
    assert elsewhere.ask("GET", "/v1/batches/1").status == 401


# --- how much


def test_a_token_has_so_many_requests_a_minute(serve: Serve, listed: str) -> None:
    with open(listed, "a") as file:
        file.write(f"often {hashlib.sha256(b'often').hexdigest()} 5\n")
    served = serve(Access(tokens=listed, per_minute=2))
    assert [served.ask("GET", "/v1/batches/1", **bearer()).status for _ in range(3)] == [200, 200, 429]
    assert [served.ask("GET", "/v1/batches/1", **bearer("often")).status for _ in range(6)] == [200] * 5 + [429]
    answer = served.ask("GET", "/v1/batches/1", **bearer())
    assert 1 <= int(str(answer.getheader("Retry-After"))) <= 60
    problem(answer)
    assert served.ask("GET", "/").status == 200


def test_wrong_tokens_are_counted_and_lock_nobody_else_out(serve: Serve, listed: str) -> None:
    served = serve(Access(tokens=listed))
    statuses = [served.ask("GET", "/v1/batches/1", **bearer(f"guess-{n}")).status for n in range(22)]
    assert statuses == [401] * 20 + [429] * 2
    assert served.ask("GET", "/v1/batches/1", **bearer()).status == 200


@PARSERS
def test_a_body_that_says_it_is_too_large_is_not_read(free: Served) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
    for length in (1_000_001, 10**17, 10**17 + 1):
        answer = free.raw(head % length + b"Expect: 100-continue\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"100 Continue" not in answer
    assert free.ask("POST", "/v1/score", bytes(1_000_000)).status == 200


@PARSERS
def test_who_sends_too_much_reads_why(free: Served) -> None:
    answer = free.ask("POST", "/v1/score", bytes(30_000_000))
    assert problem(answer)["detail"] == "A request may have 1 MB."


@PARSERS
@pytest.mark.parametrize(
    ("path", "kind", "start"),
    [
        ("/v1/score", "image/png", b""),
        ("/v1/deaf", "image/png", b""),
        ("/v1/json", "application/json", b'{"a": "'),
        (
            "/v1/form",
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n',
        ),
    ],
)
def test_a_body_of_unknown_length_is_counted(free: Served, path: str, kind: str, start: bytes) -> None:
    def body(size: int) -> Iterator[bytes]:
        yield start
        for _ in range(size // 100_000):
            yield b"a" * 100_000

    answer = free.ask("POST", path, body(1_500_000), Content_Type=kind)
    assert answer.status == 413
    problem(answer)
    if path == "/v1/score":
        assert free.ask("POST", path, body(900_000)).status == 200


@PARSERS
@pytest.mark.parametrize("path", ["/v1/score", "/v1/deaf", "/v1/json"])
def test_a_slow_body_is_not_waited_for(serve: Serve, path: str) -> None:
    served = serve(limits=Limits(body_seconds=0.3))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nContent-Type: application/json\r\n\r\n"
    answer = served.raw(head.encode(), *[b"1"] * 9, pause=0.07)  # each in time, all together not
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in answer
    assert b"connection: close" in answer.lower()


def test_a_body_that_stops_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "LINGER_S", 0.1)
    served = serve(limits=Limits(body_seconds=0.2))
    began = time.monotonic()
    answer = served.raw(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1")
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 2


def test_a_body_comes_at_a_least_rate(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "GRACE_S", 0.3)
    served = serve(limits=Limits(least_kb_s=100))
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 400000\r\n\r\n"
    began = time.monotonic()
    answer = served.raw(head + bytes(40_000), *[b"1"] * 30, pause=0.05)  # 0.3 s and 0.4 s for what has come
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"less than 100 kB/s" in answer
    assert time.monotonic() - began < 5
    answer = served.raw(head, *[bytes(20_000)] * 20, pause=0.05)  # 400 kB/s
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("path", "kind", "most", "detail"),
    [
        ("/v1/score", "application/json", 64_000, "A request may have 64 kB."),
        ("/v1/score", "Application/JSON; charset=utf-8", 64_000, "A request may have 64 kB."),
        ("/v1/batches", "text/plain", 32_000_000, "A request may have 32 MB."),
    ],
)
def test_what_names_images_is_smaller_than_images(serve: Serve, path: str, kind: str, most: int, detail: str) -> None:
    served = serve(limits=Limits())
    assert problem(served.ask("POST", path, bytes(most + 1), Content_Type=kind))["detail"] == detail
    assert served.ask("POST", path, bytes(most), Content_Type=kind).status != 413


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A list with a token each of Jane, PLAIN, and John, PLAIN twice."""
    file = of_jane(tmp_path)
    with open(file, "a") as out:
        out.write(f"john {hashlib.sha256((PLAIN + PLAIN).encode()).hexdigest()}\n")
    return file


def arriving(served: Served, plain: str, sent: int) -> socket.socket:
    """A body of 2 MB of which so much has been sent."""
    line = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {plain}\r\nConnection: close\r\n"
    line.sendall(f"{head}Content-Length: 2000000\r\n\r\n".encode() + bytes(sent))
    return line


def test_who_sends_slowly_keeps_nobody_else_out(serve: Serve, two: str) -> None:
    served = serve(Access(tokens=two), Limits(max_body_mb=2, held_mb=10))
    with ExitStack() as stack:
        assert served.ask("POST", "/v1/score", b"x", **bearer(PLAIN + PLAIN)).status == 200
        slow = [stack.enter_context(arriving(served, PLAIN, 1000)) for _ in range(20)]
        time.sleep(0.5)
        answer = served.ask("POST", "/v1/score", bytes(2_000_000), **bearer())
        assert problem(answer)["detail"] == "The requests under way are all that the service holds."
        assert answer.getheader("Retry-After") == "2"
        assert served.ask("POST", "/v1/score", bytes(2_000_000), **bearer(PLAIN + PLAIN)).status == 200
        slow[0].sendall(bytes(1_999_000))
        assert slow[0].recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 503")
    until = time.monotonic() + 10
    while served.ask("POST", "/v1/score", bytes(2_000_000), **bearer()).status != 200:
        assert time.monotonic() < until  # what they held is free when they have hung up
        time.sleep(0.1)


@pytest.mark.parametrize(("held", "largest"), [(1, 1), (399, 200)])
def test_a_caller_s_half_holds_the_largest_request(held: int, largest: int) -> None:
    with pytest.raises(OptionError, match=f"at least twice max_body_mb, which is {largest}"):
        Limits(max_body_mb=largest, held_mb=held)


def test_a_request_that_takes_too_long_is_given_up(serve: Serve) -> None:
    answer = serve(limits=Limits(request_seconds=0.3)).ask("GET", "/v1/slow")
    assert answer.status == 503
    assert answer.getheader("Retry-After") == "60"
    problem(answer)


@PARSERS
@pytest.mark.parametrize(
    "garbage",
    [
        b"Content-Length: -5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: five\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked, identity\r\n",
        b"X: \x00\r\n",
        b"X\x01Y: 1\r\n",
        b"A" * 200_000 + b": 1\r\n",
        b"Host: evil\r\n",
        b"Origin: http://[\r\n",
        b"Origin: \xff\xfe\r\n",
        b"Authorization: \xff\xfe\r\n",
    ],
)
def test_garbage_in_headers_is_no_failure_of_ours(door: Served, garbage: bytes) -> None:
    try:
        answer = door.raw(
            b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + garbage + b"\r\n0\r\n\r\n"
        )
    except (ConnectionResetError, BrokenPipeError):
        answer = b"HTTP/1.1 400"
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert door.ask("GET", "/").status == 200


# --- from where


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("rayad.example.org", 200),
        ("rayad.example.org:443", 200),
        ("only.example.org:444", 200),
        ("only.example.org", 421),
        ("evil.example.org", 421),
        ("localhost.evil.org", 421),
        ("localhost:8000@evil.org", 421),
        ("localhost, evil.org", 421),
        ("localhost:8000:80", 421),
        ("", 421),
    ],
)
def test_a_host_must_be_known(free: Served, host: str, status: int) -> None:
    assert free.ask("GET", "/v1/batches/1", Host=host).status == status
    assert free.ask("GET", "/", Host=host).status == status
    assert free.ask("GET", "/v1/health", Host=host).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://LOCALHOST:80"}, 200),
        ({"Origin": "https://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Origin": "https://evil.org"}, 403),
        ({"Origin": "https://localhost.evil.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "localhost"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(free: Served, headers: dict[str, str], status: int) -> None:
    assert free.ask("POST", "/v1/score", b"x", Host="localhost", **headers).status == status
    assert free.ask("GET", "/v1/batches/1", Host="localhost", **headers).status == 200


# --- what goes out


@PARSERS
@pytest.mark.parametrize(
    "path", ["/", "/web/a.js", "/v1/batches/1", "/nowhere", "/v1/broken", "/v1/injected", "/v1/score"]
)
def test_every_answer_has_the_headers_of_safety(free: Served, path: str) -> None:
    answer = free.ask("GET", path, X_Request_Id="mine")
    assert "frame-ancestors 'none'" in str(answer.getheader("Content-Security-Policy"))
    assert "unsafe" not in str(answer.getheader("Content-Security-Policy"))
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Referrer-Policy") == "no-referrer"
    assert answer.getheader("Cache-Control") == ("no-store" if path.startswith("/v1") else "no-cache")
    assert len(str(answer.getheader("X-Request-Id"))) == 32
    assert answer.getheader("set-cookie") is None
    assert answer.getheader("x-evil") is None


@pytest.mark.parametrize("inside", [False, True])
def test_an_error_tells_nothing_of_the_inside(serve: Serve, inside: bool, caplog: pytest.LogCaptureFixture) -> None:
    answer = serve(inside=inside).ask("GET", "/v1/broken")
    assert answer.status == 500
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text
    problem(answer)
    assert f"request {answer.getheader('X-Request-Id')} failed" in caplog.text


@PARSERS
def test_an_answer_that_comes_before_the_body_is_read_by_who_still_sends(parser: str) -> None:
    with running(Guard(application(), NAMED), parser) as port:
        answer = Served(port).ask("POST", "/v1/full", b"x" * 30_000_000)
    assert answer.status == 503
    assert answer.getheader("connection") == "close"
    assert "waiting" in answer.text


@PARSERS
def test_who_hangs_up_before_the_end_is_no_failure(free: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_connection(("127.0.0.1", free.port), timeout=10) as connection:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
        time.sleep(0.2)
    assert [line["status"] for line in audited(caplog, 1)] == [499]
    assert "failed" not in caplog.text


@PARSERS
def test_half_an_answer_is_cut_off(free: Served) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        free.ask("GET", "/v1/half")


def audited(caplog: pytest.LogCaptureFixture, number: int) -> list[dict[str, Any]]:
    """So many lines of the audit log, which come when an exchange is over."""
    until, lines = time.monotonic() + 5, list[dict[str, Any]]()
    while len(lines) < number and time.monotonic() < until:
        time.sleep(0.02)
        lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "rayad.audit"]
    return lines


def test_the_audit_log_has_a_line_a_request_and_nothing_of_a_patient(
    serve: Serve, listed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rayad.audit")
    served = serve(Access(tokens=listed), Limits(max_body_mb=1))
    served.ask("POST", "/v1/score?patient=Doe", b"Doe^Jane", **bearer())
    served.ask("GET", "/v1/batches/Doe-1970", **bearer("Doe-a-wrong-token"))
    served.ask("GET", "/Doe%0d%0aDoe/..", **bearer())
    served.ask("DOE", "/v1/score", **bearer())
    served.ask("POST", "/v1/score", bytes(1_000_001), **bearer())
    lines = audited(caplog, 5)
    assert [(row["who"], row["method"], row["path"], row["status"], row["bytes_in"]) for row in lines] == [
        ("jane", "POST", "/v1/score", 200, 8),
        ("-", "GET", "/v1/batches/*", 401, 0),
        ("-", "GET", "/*/*", 404, 0),
        ("jane", "-", "/v1/score", 405, 0),
        ("jane", "POST", "/v1/score", 413, 0),
    ]
    assert {"time", "id", "seconds"} < set(lines[0])
    assert len({row["id"] for row in lines}) == 5
    assert "Doe" not in caplog.text
    assert PLAIN not in caplog.text


@PARSERS
def test_a_client_that_goes_away_is_written_down(free: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rayad.audit")
    with socket.create_connection(("127.0.0.1", free.port)) as connection:
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n123")
        time.sleep(0.2)
    [row] = audited(caplog, 1)
    assert row["bytes_in"] == 3
    assert row["path"] == "/v1/score"


# --- where it listens


@pytest.mark.parametrize(
    ("host", "auth", "here", "front", "fine"),
    [
        ("127.0.0.1", False, False, False, True),
        ("localhost", False, False, False, True),
        ("::1", False, False, False, True),
        ("127.8.8.8", False, False, False, True),
        ("0.0.0.0", True, False, False, False),
        ("0.0.0.0", False, True, False, False),
        ("0.0.0.0", False, False, True, False),
        ("0.0.0.0", True, True, False, True),
        ("::", True, False, True, True),
        ("", False, False, False, False),
        ("10.0.0.1", False, True, True, False),
        ("rayad.example.org", False, False, False, False),
        ("localhost.evil.org", False, False, False, False),
    ],
)
def test_others_are_let_in_with_tokens_and_tls_alone(
    host: str, auth: bool, here: bool, front: bool, fine: bool
) -> None:
    if fine:
        check_binding(host, auth, here, front)
    else:
        with pytest.raises(OptionError, match="the service needs"):
            check_binding(host, auth, here, front)


@pytest.mark.parametrize(
    "wrong",
    [{"per_minute": -1}, {"issuer": "https://a"}, {"audience": "a"}, {"hosts": ("*",)}, {"hosts": ("https://a",)}],
)
def test_options_of_access_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Access(**wrong)


def test_limits_are_above_zero() -> None:
    with pytest.raises(OptionError, match="max_body_mb"):
        Limits(max_body_mb=0)
    with pytest.raises(OptionError, match="body_seconds"):
        Limits(body_seconds=float("nan"))


def test_a_list_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot read the tokens"):
        Access(tokens=str(tmp_path / "none")).asks()


# --- an OpenID Connect provider


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


RSA = rsa_key()
OTHER = rsa_key()
CURVE = ec.generate_private_key(ec.SECP256R1())


def published(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **more}


@dataclass
class Provider:
    """What a provider publishes, and how often it was asked."""

    port: int = 0
    keys: list[dict[str, Any]] = field(default_factory=lambda: [published(RSA, "one"), published(CURVE, "curve")])
    claimed: str = ""
    jwks_uri: str = ""
    asked: int = 0
    broken: bool = False
    pause_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **claims: Any) -> str:
        now = int(time.time())
        said = {"iss": self.url, "aud": "rayad", "sub": "jane", "exp": now + 60, "nbf": now - 1, **claims}
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key, algorithm, headers={"kid": kid} if kid else {})


@pytest.fixture(scope="module")
def published_at() -> Iterator[Provider]:
    found, app = Provider(), FastAPI()

    @app.get("/.well-known/openid-configuration")
    async def configuration() -> dict[str, str]:
        found.asked += 1
        await asyncio.sleep(found.pause_s)
        if found.broken:
            raise Problem(500)
        return {"issuer": found.claimed or found.url, "jwks_uri": found.jwks_uri or f"{found.url}/keys"}

    @app.get("/keys")
    async def keys() -> dict[str, Any]:
        return {"keys": found.keys}

    problems.install(app)
    with running(app) as found.port:
        yield found


@pytest.fixture
def provider(published_at: Provider) -> Provider:
    """A provider that has said nothing yet."""
    vars(published_at).update(vars(Provider(published_at.port)))
    return published_at


def whom(issuer: Issuer, token: str) -> str:
    caller = asyncio.run(issuer.find(token))
    return caller.name if caller else ""


def test_a_token_of_the_provider_opens_the_door(serve: Serve, provider: Provider, listed: str) -> None:
    served = serve(Access(issuer=provider.url, audience="rayad", tokens=listed))
    answer = served.ask("POST", "/v1/score", b"x", **bearer(provider.token()))
    assert json.loads(answer.text)["who"] == "oidc:jane"
    assert served.ask("POST", "/v1/score", b"x", **bearer(provider.token(aud="other"))).status == 401
    assert served.ask("POST", "/v1/score", b"x", **bearer()).status == 200


@pytest.mark.parametrize(
    ("made", "good"),
    [
        ({}, True),
        ({"key": CURVE, "algorithm": "ES256", "kid": "curve"}, True),
        ({"aud": ["other", "rayad"]}, True),
        ({"exp": -10}, True),  # our clocks may differ by half a minute
        ({"exp": -3600}, False),
        ({"exp": None}, False),
        ({"nbf": 3600}, False),
        ({"aud": "other"}, False),
        ({"aud": None}, False),
        ({"iss": "https://evil.org"}, False),
        ({"iss": None}, False),
        ({"sub": None}, False),
        ({"sub": ["jane"]}, False),
        ({"exp": "soon"}, False),
        ({"key": OTHER}, False),
        ({"key": OTHER, "kid": "two"}, False),
        ({"kid": None}, False),  # of two keys it names none
        ({"key": CURVE, "algorithm": "ES256"}, False),
        ({"algorithm": "RS384"}, False),  # the key is for RS256
        ({"key": None, "algorithm": "none"}, False),
        ({"key": "secret" * 8, "algorithm": "HS256"}, False),
    ],
)
def test_what_a_token_says_is_checked(provider: Provider, made: dict[str, Any], good: bool) -> None:
    """Times are seconds from now."""
    now, issuer = int(time.time()), Issuer(provider.url, "rayad")
    made = {name: now + value if isinstance(value, int) else value for name, value in made.items()}
    assert whom(issuer, provider.token(**made)) == ("oidc:jane" if good else "")


def test_a_public_key_is_no_secret(provider: Provider) -> None:
    """The classic confusion: HS256 with the public key's bytes."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, claims, _ = provider.token().split(".")
    head = jwt.utils.base64url_encode(b'{"alg": "HS256", "kid": "one"}').decode()
    sign = jwt.utils.base64url_encode(
        jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(f"{head}.{claims}".encode(), public)
    ).decode()
    assert whom(Issuer(provider.url, "rayad"), f"{head}.{claims}.{sign}") == ""


def test_a_published_secret_is_no_key(provider: Provider) -> None:
    secret = "c2VjcmV0" * 8
    provider.keys = [{"kty": "oct", "k": secret, "kid": "one", "alg": "HS256"}]
    token = provider.token(jwt.utils.base64url_decode(secret), "HS256")
    assert whom(Issuer(provider.url, "rayad"), token) == ""


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "e30.e30.", "e30.e30.e30", "W10.W10.W10", "." * 3000, "eyJhbGciOiJSUzI1NiJ9..", "\x00"],
)
def test_what_is_no_token_asks_nobody(provider: Provider, token: str) -> None:
    assert whom(Issuer(provider.url, "rayad"), token) == ""
    assert provider.asked <= 1


@pytest.mark.parametrize(
    "claims", [b'{"exp": Infinity}', b"[" * 3000, b"null", b'"x"', b'{"exp": 1e999, "sub": 5}', b"\xff"]
)
def test_signed_nonsense_is_refused(provider: Provider, claims: bytes) -> None:
    token = jwt.api_jws.encode(claims, RSA, "RS256", headers={"kid": "one"})
    assert whom(Issuer(provider.url, "rayad"), token) == ""


def test_a_new_key_is_found_and_an_old_one_forgotten(provider: Provider) -> None:
    issuer = Issuer(provider.url, "rayad", pause_s=0)
    assert whom(issuer, provider.token()) == "oidc:jane"
    provider.keys = [published(OTHER, "two")]
    assert whom(issuer, provider.token(OTHER, kid="two")) == "oidc:jane"
    assert whom(issuer, provider.token()) == ""


def test_made_up_keys_do_not_become_requests(provider: Provider) -> None:
    issuer = Issuer(provider.url, "rayad")
    for number in range(20):
        assert whom(issuer, provider.token(OTHER, kid=f"key-{number}")) == ""
    assert provider.asked == 1


def test_a_provider_that_fails_later_is_borne(provider: Provider) -> None:
    issuer = Issuer(provider.url, "rayad", pause_s=0)
    assert whom(issuer, provider.token()) == "oidc:jane"
    provider.broken = True
    issuer._loaded -= 400
    assert whom(issuer, provider.token()) == "oidc:jane"
    issuer._loaded -= 4000
    with pytest.raises(Problem, match="does not answer"):
        whom(issuer, provider.token())


def test_a_damaged_list_leaves_other_tokens_good(
    serve: Serve, provider: Provider, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tokens.VARIABLE, f"metrics:{'b' * 24}")
    served = serve(Access(tokens=listed, issuer=provider.url, audience="rayad"))
    Path(listed).write_text("nonsense\n")
    asked = {word: served.ask("GET", "/v1/batches/1", **bearer(word)).status for word in ("b" * 24, provider.token())}
    assert set(asked.values()) == {200}
    assert served.ask("GET", "/v1/batches/1", **bearer()).status == 503


def test_a_provider_that_hangs_holds_up_one_request_alone(provider: Provider) -> None:
    issuer = Issuer(provider.url, "rayad", pause_s=60)
    token = provider.token()

    async def asked() -> float:
        began = time.monotonic()
        caller = await issuer.find(token)
        assert caller is not None
        return time.monotonic() - began

    async def together() -> list[float]:
        await issuer.find(token)
        issuer._loaded -= 400
        issuer._asked -= 400
        provider.pause_s = 1.0
        return sorted(await asyncio.gather(*(asked() for _ in range(5))))

    took = asyncio.run(together())
    assert took[3] < 0.5 < took[4]


@pytest.mark.parametrize(
    "said", [{"claimed": "https://evil.org"}, {"jwks_uri": "http://evil.org/keys"}, {"broken": True}]
)
def test_a_provider_that_is_another_is_not_believed(provider: Provider, said: dict[str, Any]) -> None:
    for name, value in said.items():
        setattr(provider, name, value)
    with pytest.raises(Problem) as caught:
        whom(Issuer(provider.url, "rayad"), provider.token())
    assert caught.value.status == 503


@pytest.mark.parametrize("url", ["", "http://issuer.org", "ftp://issuer.org", "https://me:pw@issuer.org", "issuer.org"])
def test_an_issuer_is_reached_by_tls(url: str) -> None:
    with pytest.raises(OptionError, match="https"):
        Issuer(url, "rayad")


def test_the_name_of_a_subject_is_plain(provider: Provider) -> None:
    assert whom(Issuer(provider.url, "rayad"), provider.token(sub='a"\r\n b' * 40)).startswith("oidc:a____b")


def test_no_two_subjects_are_one_caller(provider: Provider) -> None:
    issuer = Issuer(provider.url, "rayad")
    subjects = ["a b", "a_b", "a\tb", "x" * 64, "x" * 65, "x" * 66, "ä", "ö"]
    names = [whom(issuer, provider.token(sub=subject)) for subject in subjects]
    assert len(set(names)) == len(subjects)
    copied = names[0].removeprefix("oidc:")
    assert whom(issuer, provider.token(sub=copied)) not in names  # a name is no way to be taken for its bearer
    assert all(len(name) <= len("oidc:") + 64 for name in names)
    assert whom(issuer, provider.token(sub="")) == ""
