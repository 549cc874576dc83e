"""What is lost when something dies: nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayad import catalog, storage
from rayad.datasets import phantom
from rayad.fit import Schedule
from rayad.on_ray.resources import Workers, keep_private
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling

keep_private()


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    from rayad.on_ray.cluster import cluster

    with cluster():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    from rayad.on_ray.ingest import ingest

    url = str(tmp_path_factory.mktemp("corpus"))
    ingest(
        phantom.Dataset(patients=24, diseased=0.0), url, Ingest(sampling=Sampling(patches=60)), {"dataset": "phantom"}
    )
    return Corpus.open(url)


def own_workers() -> list[int]:
    """Process ids of Ray Train's workers that this process started, through its raylet."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    raylets = {pid for pid, parent, args in rows if int(parent) == os.getpid() and "raylet" in args}
    return [int(pid) for pid, parent, args in rows if parent in raylets and args.startswith("ray::RayTrainWorker")]


def test_training_whose_worker_is_killed_learns_what_it_would_have_learned(corpus, tmp_path):
    from rayad.on_ray.train import train

    config = catalog.configure("models", "cae", {"width": 16})
    schedule = Schedule(epochs=20, patience=20)  # long enough to be met at work
    undisturbed = train(corpus.url, "cae", config, schedule, Workers(2), str(tmp_path / "a"))
    killed = []

    def kill_after_the_first_epoch() -> None:
        while not storage.exists(str(tmp_path / "b/checkpoint.safetensors")):
            time.sleep(0.05)
        killed.extend(own_workers()[:1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_after_the_first_epoch, daemon=True)
    thread.start()
    disturbed = train(corpus.url, "cae", config, schedule, Workers(2, max_failures=2), str(tmp_path / "b"))
    thread.join()
    assert killed
    for name, value in disturbed.module.state_dict().items():
        assert torch.allclose(value, undisturbed.module.state_dict()[name], rtol=1e-4, atol=1e-6), name


def test_an_ingest_that_is_killed_goes_on_to_the_same_corpus(corpus, tmp_path):
    out = str(tmp_path / "corpus")
    command = [
        *(sys.executable, "-m", "rayad.cli", "ingest", "--dataset", "phantom", "--out", out),
        *("--settings", "patients=24", "diseased=0.0", "--corpus.sampling.patches", "60"),
        *("--corpus.shard-patches", "240"),
    ]
    process = subprocess.Popen(command, start_new_session=True)
    while not list(Path(tmp_path).glob("corpus/parts/*.json")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half = storage.exists(f"{out}/manifest.json")
    subprocess.run(command, check=True)
    whole = str(tmp_path / "whole")
    subprocess.run([whole if part == out else part for part in command], check=True)
    assert not half
    first, second = (Corpus.open(url).manifest for url in (out, whole))
    assert first["content"] == second["content"]
    assert replace(Corpus.open(out), url=whole).index().equals(Corpus.open(out).index())
