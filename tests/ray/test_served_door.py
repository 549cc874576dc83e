"""TLS, an identity provider's tokens, and what is sent without an end, through HAProxy and Ray Serve."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import psutil
import pytest
import requests
from certificates import self_signed
from cryptography.hazmat.primitives.asymmetric import ec
from served import ME, PATIENTS, Served, png, serving

from rayad.serving.client import Client

pytestmark = pytest.mark.long
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def issuer(tmp_path_factory) -> Iterator[str]:
    """URL of a provider: two files on loopback."""
    folder = tmp_path_factory.mktemp("issuer")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        (folder / ".well-known").mkdir()
        said = {"issuer": url, "jwks_uri": f"{url}/keys"}
        (folder / ".well-known" / "openid-configuration").write_text(json.dumps(said))
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))
        (folder / "keys").write_text(json.dumps({"keys": [public | {"kid": "one", "use": "sig", "alg": "ES256"}]}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield url
        server.shutdown()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate of 127.0.0.1 that signs itself; its key is beside it."""
    return self_signed(tmp_path_factory.mktemp("tls"), KEY)


@pytest.fixture(scope="module")
def served(tmp_path_factory, issuer, certificate) -> Iterator[Served]:
    more = ("--access.issuer", issuer, "--access.audience", "rayad", "--listening.host", "0.0.0.0")
    more += ("--listening.certificate", str(certificate), "--listening.key", str(certificate.with_name("key.pem")))
    with serving(tmp_path_factory.mktemp("door"), *more) as server:
        yield server


@pytest.fixture(scope="module")
def image() -> bytes:
    return png(PATIENTS, next(iter(PATIENTS.exams())))


@pytest.fixture
def trusted(certificate, monkeypatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))


def token(issuer: str, **other: Any) -> str:
    now = int(time.time())
    claims = {"iss": issuer, "aud": "rayad", "sub": "jane", "exp": now + 60, **other}
    return jwt.encode(claims, KEY, "ES256", headers={"kid": "one"})


def test_nobody_is_answered_without_tls(served):
    plain = served.url.replace("https://", "http://")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{plain}/v1/health", timeout=10)


def test_a_certificate_that_is_not_trusted_is_seen(served):
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{served.url}/v1/health", timeout=10)


def test_health_is_told_over_tls_and_browsers_are_told_to_stay_with_it(served, trusted):
    answer = requests.get(f"{served.url}/v1/health", timeout=10)
    assert answer.status_code == 200
    assert "max-age" in answer.headers["strict-transport-security"]


def test_a_token_of_the_provider_opens_the_door(served, trusted, issuer, image):
    answer = Client(served.url, token(issuer)).score(image, spacing_mm=0.8, view="MLO")
    assert 0 < answer.p_value <= 1
    until = time.monotonic() + 30  # a line is written when the answer is out
    while "oidc:jane" not in (served.folder / "audit").read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    lines = [json.loads(line) for line in (served.folder / "audit").read_text().splitlines()]
    assert "oidc:jane" in {line["who"] for line in lines}


@pytest.mark.parametrize("other", [{"aud": "another"}, {"exp": 1}, {"iss": "https://another.example.org"}])
def test_a_token_for_others_or_of_others_does_not(served, trusted, issuer, other):
    headers = {"authorization": f"Bearer {token(issuer, **other)}"}
    answer = requests.get(f"{served.url}/v1/detectors", headers=headers, timeout=30)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_no_token_does_not(served, trusted):
    assert requests.get(f"{served.url}/v1/detectors", timeout=30).status_code == 401


def test_a_token_of_the_list_does_as_well(served, trusted):
    assert requests.get(f"{served.url}/v1/detectors", headers=ME, timeout=30).status_code == 200


# --- what is sent without an end


def line(served: Served, certificate: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate))
    port = int(served.url.rsplit(":", 1)[1])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60), server_hostname="127.0.0.1")


def memory(served: Served) -> dict[str, float]:
    """MB that both proxies have for themselves."""
    found = {}
    for process in served.process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline())
            for kind in ("haproxy.cfg", "ray::ProxyActor"):
                if kind in name:
                    found[kind] = process.memory_full_info().uss / 1e6
    return found


@contextlib.contextmanager
def unharmed(served: Served, image: bytes) -> Iterator[None]:
    """An honest client asks all the while, loses nothing and waits for little; no proxy takes memory."""
    before, stop, waits, statuses = memory(served), threading.Event(), list[float](), list[int]()
    assert len(before) == 2

    def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            statuses.append(served.score(image).status_code)
            waits.append(time.monotonic() - began)

    honest = threading.Thread(target=ask)
    honest.start()
    try:
        yield
    finally:
        stop.set()
        honest.join()
    assert set(statuses) == {200}
    assert np.median(waits) < 3, waits  # seconds; the machine may be busy
    assert all(after < before[kind] + 40 for kind, after in memory(served).items())


def ended(line: ssl.SSLSocket) -> bytes:
    """What is answered until the line is cut."""
    answer = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := line.recv(65536):
            answer += part
    return answer


FLOODS = {
    "headers": (b"GET /v1/detectors HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"a: b\r\n" * 100_000),
    "a header": (b"GET /v1/detectors HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: ", b"a" * 1_000_000),
    "the url": (b"GET /", b"a" * 1_000_000),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_head_without_an_end_harms_nobody(served, trusted, certificate, image, kind):
    start, block = FLOODS[kind]
    with unharmed(served, image):
        for _ in range(20):
            with line(served, certificate) as client, contextlib.suppress(ConnectionError, ssl.SSLError):
                client.sendall(start)
                for _ in range(100):
                    client.sendall(block)
                pytest.fail("100 MB were taken")


def test_heads_that_trickle_harm_nobody(served, trusted, certificate, image):
    with unharmed(served, image), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(line(served, certificate)) for _ in range(50)]
        for byte in b"GET / HTTP/1.1":
            for client in clients:
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    client.sendall(bytes([byte]))
            time.sleep(1)
        assert all(ended(client)[:13] in (b"HTTP/1.1 408 ", b"") for client in clients)


@pytest.mark.parametrize("start", [1, 200_000])
def test_bodies_that_trickle_harm_nobody(served, trusted, certificate, image, issuer, start):
    """Short ones do not get through to the API; of those that do, each is known by its caller."""
    head = f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token(issuer)}\r\n"
    with unharmed(served, image), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(line(served, certificate)) for _ in range(100)]
        for client in clients:
            client.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + bytes(start))
        for _ in range(6):
            time.sleep(3)
            for client in clients:
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    client.sendall(b"x")
        answers = [ended(client) for client in clients]
    assert {answer[:13] for answer in answers} <= {b"HTTP/1.1 408 ", b"HTTP/1.1 503 ", b""}
    assert any(answer.startswith(b"HTTP/1.1 408") for answer in answers)


def test_nobody_goes_around_the_front(served):
    """Ray's own proxy, which other accounts of this machine can reach."""
    (proxy,) = [one for one in served.process.children(recursive=True) if "ray::ProxyActor" in " ".join(one.cmdline())]
    ports = {c.laddr for c in proxy.net_connections("tcp") if c.status == "LISTEN" and c.laddr.ip == "127.0.0.1"}
    statuses = set()
    for place in ports:
        with contextlib.suppress(requests.RequestException):
            statuses.add(requests.get(f"http://127.0.0.1:{place.port}/v1/detectors", headers=ME, timeout=5).status_code)
    assert 421 in statuses
    assert 200 not in statuses


def test_where_ray_s_proxy_dies_the_front_says_so_until_there_is_another(served, trusted, image):
    (proxy,) = [one for one in served.process.children(recursive=True) if "ray::ProxyActor" in " ".join(one.cmdline())]
    proxy.kill()
    answers = [served.score(image)]
    until = time.monotonic() + 60
    while answers[-1].status_code != 200:
        assert time.monotonic() < until
        answers.append(served.score(image))
    for answer in answers[:-1]:
        assert answer.status_code in (502, 503)
        assert answer.json()["status"] == answer.status_code
        assert "max-age" in answer.headers["strict-transport-security"]


def test_a_front_that_is_killed_is_there_again(served, trusted, image):
    (front,) = [one for one in served.process.children(recursive=True) if one.name() == "haproxy"]
    front.kill()
    until = time.monotonic() + 5
    while True:
        try:
            assert served.score(image).status_code == 200
            break
        except requests.ConnectionError:  # what was on its way when it died
            assert time.monotonic() < until
