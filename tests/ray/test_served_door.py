"""TLS and an identity provider's tokens, through Ray Serve: a certificate and a provider of the tests' own."""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
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
