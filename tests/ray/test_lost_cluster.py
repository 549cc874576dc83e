"""Ray that cannot be reached, or is lost, is one sentence; workers of a cluster can open what the command can."""

import os
import subprocess
import sys

import pytest
import ray

SECRET = "not-to-be-shown-anywhere"
WITH_KEYS = """
import os, sys
import ray
from rayad.on_ray.cluster import cluster

with cluster(sys.argv[1]):
    print(ray.get(ray.remote(lambda: os.environ["AWS_SECRET_ACCESS_KEY"]).remote()))
    print([job for job in ray._private.state.jobs()], ray.get_runtime_context().runtime_env)
"""
READING = """
import threading, time
import ray
from rayad.on_ray.cluster import cluster

def read_ahead():
    time.sleep(1)
    print(ray.get(ray.put("read")))

with cluster(cpus=1):
    threading.Thread(target=read_ahead, name="iter_threaded", daemon=True).start()
print("ended")
"""
LOSING = """
import time
import psutil
from rayad.errors import ClusterError
from rayad.on_ray.pool import connected

def slow(number):
    time.sleep(1)
    return number

try:
    with connected("", cpus=2) as pool:
        (raylet,) = [one for one in psutil.Process().children(recursive=True) if one.name() == "raylet"]
        for number in pool.map(slow, range(60), "numbers"):
            if number == 2:
                raylet.kill()
except ClusterError as error:
    print(error)
"""


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=200, check=True)


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path):
    words = ["ingest", "--dataset", "phantom", "--out", str(tmp_path / "out"), "--address", "127.0.0.1:9"]
    ended = subprocess.run(
        [sys.executable, "-m", "rayad.cli", *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("rayad: no Ray cluster answers at 127.0.0.1:9: ")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_node_that_dies_is_one_sentence():
    ended = python(LOSING)
    assert ended.stdout.splitlines()[-1].startswith("the Ray cluster of this command was lost: ")
    assert "the same command goes on where it stopped" in ended.stdout
    assert {line.partition(":")[0] for line in ended.stderr.splitlines()} <= {"numbers"}, ended.stderr


def test_what_reads_ahead_ends_before_ray_does():
    """Else Ray ends the process without a word, with exit code 1."""
    assert python(READING).stdout.split() == ["read", "ended"]


def test_keys_of_object_stores_are_handed_to_workers_and_shown_nowhere():
    address = ray.get_runtime_context().gcs_address
    said, *shown = python(WITH_KEYS, address, AWS_SECRET_ACCESS_KEY=SECRET).stdout.splitlines()
    assert said == SECRET
    assert shown
    assert SECRET not in "".join(shown)
