"""The experiment of Dietrichstein et al. 2022 as one job: images and results on S3, the work on two nodes."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from papers import Sizes, write_cbis, write_ddsm
from ports import free_ports

from rayad import storage
from rayad.private import keep_private

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SIZES = Sizes(share=100, height=384, width=288)
CLUSTER = """
import os, sys
os.environ["RAY_TMPDIR"] = sys.argv[1]
from ray.cluster_utils import Cluster
small = {"object_store_memory": 150 * 2**20, "num_cpus": 3}
ports = {"dashboard_port": int(sys.argv[2]), "dashboard_agent_listen_port": int(sys.argv[3])}
dashboard = {"include_dashboard": True, "num_cpus": 0} | ports
cluster = Cluster(initialize_head=True, head_node_args=small | dashboard)
nodes = [cluster.add_node(temp_dir=f"{sys.argv[1]}/{name}", **small) for name in "ab"]
print(*(node.all_processes["raylet"][0].process.pid for node in nodes), flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""A head that does no work, and two nodes of three workers each, until nobody needs them.

Each node has a folder of its own, as machines have: every node unpacks the job's files, over those that lie there.
"""


@pytest.fixture
def tree(s3, tmp_path) -> str:
    """The two data sets at a hundredth of their counts, in a bucket."""
    write_ddsm(tmp_path / "ddsm", SIZES)
    write_cbis(tmp_path / "cbis-ddsm", SIZES)
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        storage.write_bytes(f"s3://{s3.bucket}/papers/{file.relative_to(tmp_path)}", file.read_bytes())
    return f"s3://{s3.bucket}/papers"


@pytest.fixture
def nodes(tree) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The address of the cluster's jobs, and the raylets of its two nodes, none of which has the keys of the bucket."""
    keep_private()
    port, agent = free_ports(2)  # another Ray of this machine has the usual ones
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory(prefix="rayad-", dir="/tmp") as session:
        words = [sys.executable, "-c", CLUSTER, session, str(port), str(agent)]
        process = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        raylets = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        yield f"http://127.0.0.1:{port}", raylets
        process.communicate("", timeout=120)


def submitted(words: list[str]) -> subprocess.CompletedProcess[str]:
    """The job, once the cluster takes jobs, to its end."""
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(words, capture_output=True, text=True, timeout=1500, check=False)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


@contextmanager
def watched(raylets: list[psutil.Process]) -> Iterator[list[dict[int, float]]]:
    """The CPU time of each process that a node ran, seconds, looked at while it lives."""
    seconds: list[dict[int, float]] = [{} for _ in raylets]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            for raylet, of_node in zip(raylets, seconds, strict=True):
                for process in raylet.children(recursive=True):
                    with suppress(psutil.Error):  # it has just ended
                        of_node[process.pid] = process.cpu_times().user

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()


def test_the_whole_experiment_is_a_job_on_two_nodes(tree, nodes):
    address, raylets = nodes
    runtime = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    runtime["env_vars"] |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    job = [
        *("python", "jobs/run.py", "ddsm", "--preset", "laptop", "--epochs", "1", "--density-epochs", "1"),
        *("--step-mm", "6.4", "--workers.number", "2", "--test-settings", f"spacing_mm={SIZES.spacing_mm}"),
        *("--source", f"{tree}/ddsm", "--test-source", f"{tree}/cbis-ddsm", "--out", f"{tree}/out"),
    ]
    around = ["--runtime-env-json", json.dumps(runtime), "--working-dir", str(ROOT)]
    words = [str(BIN / "ray"), "job", "submit", "--address", address, *around, "--", *job]
    with watched(raylets) as seconds:
        done = submitted(words)
    assert done.returncode == 0, done.stdout + done.stderr
    results = storage.read_json(f"{tree}/out/report/results.json")
    assert len([row for row in results["rows"] if row["lesion"] == "mass"]) == 11
    assert storage.exists(f"{tree}/out/report/index.html")
    assert min(sum(of_node.values()) for of_node in seconds) > 10, seconds
