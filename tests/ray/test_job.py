"""A stage submitted for real: a head of its own, `ray job submit`, the job's exit code and its result."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from ports import free_ports
from ray.job_submission import JobStatus, JobSubmissionClient

from rayad import cli
from rayad.outputs import IGNORE, MARK
from rayad.patches.corpus import Corpus
from rayad.private import keep_private

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Where the head's jobs leave what they printed."""
    return tmp_path_factory.mktemp("logs")


def said(logs: Path) -> list[str]:
    """What every job has printed so far."""
    return [file.read_text() for file in logs.glob("*.log")]


@pytest.fixture(scope="module")
def head(tmp_path_factory, logs):
    """The address and environment of a head that was started by `ray start`."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    keep_private()
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9", "RAYAD_LOG_URL": str(logs)}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else it waits for actors that Ray Data leaves
    environment.pop("RAY_ADDRESS", None)
    output = (tmp_path_factory.mktemp("head") / "head.log").open("w")
    process = subprocess.Popen(
        [
            *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={gcs}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}", "--num-cpus=4"),
            *("--object-store-memory=200000000", f"--temp-dir=/tmp/rayad-{os.getpid()}"),
        ],
        env=environment,
        stdout=output,
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
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
        try:
            with urllib.request.urlopen(request, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"{url} does not answer")


def until(happened: Callable[[], object], why: str) -> None:
    """Wait for something, two minutes at most."""
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, why
        time.sleep(0.1)


def submit(head, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """`ray job submit` of a script in jobs/, in the environment that jobs have on a cluster."""
    address, environment = head
    around = ("--runtime-env", str(ROOT / "jobs/runtime_env.yaml"), "--working-dir", str(ROOT))
    words = [BIN / "ray", "job", "submit", "--address", address, *around, *options, "--", "python", *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def test_a_submitted_ingest_writes_its_corpus(head, tmp_path):
    settings = ["--settings", "patients=12", "height=256", "width=192"]
    out = str(tmp_path / "corpus")
    done = submit(head, "jobs/ingest.py", "--dataset", "phantom", *settings, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Corpus.open(out).manifest["patches"] > 0


@pytest.mark.long
def test_a_job_that_fails_says_why_in_its_log_too_and_ends_with_its_exit_code(head, logs, tmp_path):
    done = submit(head, "jobs/train.py", "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert "no patch corpus here" in done.stdout + done.stderr
    assert any("no patch corpus here" in text for text in said(logs))


MANY_SHARDS = (
    *("--dataset", "phantom", "--settings", "patients=60", "height=512", "width=384"),
    *("--sampling.patches", "20", "--shard-patches", "40"),
)


@pytest.mark.long
def test_a_job_that_is_stopped_leaves_nothing_half_written_and_goes_on(head, logs, tmp_path):
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    told = ("--no-wait", "--submission-id", "stopped")
    assert submit(head, "jobs/ingest.py", *MANY_SHARDS, "--out", str(out), options=told).returncode == 0
    until(lambda: len(list(out.glob("parts/*.json"))) > 3, "no shard was written")
    jobs = JobSubmissionClient(head[0])
    jobs.stop_job("stopped")
    until(lambda: jobs.get_job_status("stopped") == JobStatus.STOPPED, "the job was not stopped")
    left = {file.name for file in out.rglob("*") if file.is_file()}
    assert "shard-00000.npy.zst" in left
    assert "manifest.json" not in left
    assert sorted(name for name in left if name.startswith(".")) == [MARK, IGNORE]
    assert any(text.endswith("rayad: stopped; the same command goes on where it stopped\n") for text in said(logs))
    done = submit(head, "jobs/ingest.py", *MANY_SHARDS, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert cli.run(["ingest", *MANY_SHARDS, "--out", str(whole)]) == 0
    stopped, undisturbed = (Corpus.open(str(url)) for url in (out, whole))
    assert stopped.manifest["content"] == undisturbed.manifest["content"]
    assert stopped.index().equals(undisturbed.index())
