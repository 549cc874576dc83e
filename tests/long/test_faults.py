"""What is lost when something dies: nothing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from rayad import catalog, storage
from rayad.datasets import phantom
from rayad.fit import Schedule
from rayad.on_ray.resources import Workers, keep_private
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling

keep_private()
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


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


@dataclass(frozen=True)
class Dying:
    """A model of which the second worker is killed once, at work after the first epoch."""

    config: Any
    checkpoint: str
    died: str

    def build(self) -> Any:
        model = self.config.build()
        loss = model.loss

        def loss_or_death(x: Any, draw: Any) -> Any:
            import torch.distributed as dist  # a module in a closure does not pickle

            at_work = dist.is_initialized() and dist.get_rank() == 1 and Path(self.checkpoint).exists()
            if at_work and not Path(self.died).exists():
                Path(self.died).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(x, draw)

        model.loss = loss_or_death
        return model


def test_training_whose_worker_is_killed_learns_what_it_would_have_learned(corpus, tmp_path):
    from rayad.on_ray.train import train

    config, schedule = catalog.configure("models", "cae", {"width": 8}), Schedule(epochs=4)
    undisturbed = train(corpus.url, "cae", config, schedule, Workers(2), str(tmp_path / "a"))
    dying = Dying(config, str(tmp_path / "b/checkpoint.safetensors"), str(tmp_path / "died"))
    disturbed = train(corpus.url, "cae", dying, schedule, Workers(2, max_failures=2), str(tmp_path / "b"))
    assert Path(dying.died).exists()
    for name, value in disturbed.module.state_dict().items():
        torch.testing.assert_close(value, undisturbed.module.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_an_ingest_that_is_killed_goes_on_to_the_same_corpus(corpus, tmp_path):
    out = str(tmp_path / "corpus")
    command = [
        *(sys.executable, "-m", "rayad.cli", "ingest", "--dataset", "phantom", "--out", out),
        *("--settings", "patients=24", "diseased=0.0", "--sampling.patches", "60"),
        *("--shard-patches", "240"),
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
