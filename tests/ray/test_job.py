"""A stage submitted for real: a head of its own, `ray job submit`, the job's exit code and its result."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from rayad.on_ray.resources import PRIVATE
from rayad.patches.corpus import Corpus

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The address and environment of a head that was started by `ray start`."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    environment = os.environ | PRIVATE | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9"}
    environment.pop("RAY_ADDRESS", None)
    log = (tmp_path_factory.mktemp("head") / "head.log").open("w")
    process = subprocess.Popen(
        [
            *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={gcs}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", "--num-cpus=4"),
            *("--object-store-memory=200000000", f"--temp-dir=/tmp/rayad-{os.getpid()}"),
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for url in (f"{address}/api/version", f"http://127.0.0.1:{agent}/api/local_raylet_healthz"):
            _await(url, process)
        yield address, environment
    finally:
        process.terminate()
        process.wait(timeout=60)


def _await(url: str, process: subprocess.Popen) -> None:
    for _ in range(240):
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"{url} does not answer")


def submit(head, *command: str) -> subprocess.CompletedProcess:
    """`ray job submit` of a script in jobs/."""
    address, environment = head
    words = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", "python", *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def test_a_submitted_ingest_writes_its_corpus(head, tmp_path):
    settings = ["--settings", "patients=12", "height=256", "width=192"]
    out = str(tmp_path / "corpus")
    done = submit(head, "jobs/ingest.py", "--dataset", "phantom", *settings, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Corpus.open(out).manifest["patches"] > 0


def test_a_job_that_fails_says_why_and_ends_with_its_exit_code(head, tmp_path):
    done = submit(head, "jobs/train.py", "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "no patch corpus here" in done.stdout + done.stderr
