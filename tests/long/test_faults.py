"""What is lost when something dies or is damaged: nothing else."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle

from rayad import catalog, storage
from rayad.datasets import phantom
from rayad.datasets.splits import assign
from rayad.fit import Schedule
from rayad.patches.corpus import LEARNING_SPLITS, Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pool import Workers
from rayad.private import keep_private
from tests.dicoms import mammogram, written

keep_private()
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@pytest.fixture(scope="module", autouse=True)
def ray_cluster():
    from rayad.on_ray.cluster import cluster

    with cluster():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    from rayad.on_ray.pool import OnRay
    from rayad.pipeline.ingest import ingest

    url = str(tmp_path_factory.mktemp("corpus"))
    ingest(
        OnRay(),
        phantom.Dataset(patients=24, diseased=0.0),
        url,
        Ingest(sampling=Sampling(patches=60)),
        {"dataset": "phantom"},
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
    from rayad.on_ray.pool import OnRay
    from rayad.pipeline.train import train

    config, schedule = catalog.configure("models", "cae", {"width": 8}), Schedule(epochs=4)
    undisturbed, _, _ = train(OnRay(Workers(2)), corpus.url, "cae", config, schedule, str(tmp_path / "a"))
    dying = Dying(config, str(tmp_path / "b/checkpoint.safetensors"), str(tmp_path / "died"))
    disturbed, faults, _ = train(
        OnRay(Workers(2, max_failures=2)), corpus.url, "cae", dying, schedule, str(tmp_path / "b")
    )
    assert Path(dying.died).exists()
    assert {fault.stage for fault in faults} == {"cae"}
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


@pytest.mark.timeout(1800)
def test_an_ingest_that_is_killed_at_ten_moments_leaves_the_undisturbed_bytes(tmp_path):
    command = [
        *(sys.executable, "-m", "rayad.cli", "ingest", "--dataset", "phantom", "--out", str(tmp_path / "killed")),
        *("--settings", "patients=80", "diseased=0.0", "--sampling.patches", "40", "--shard-patches", "80"),
    ]
    parts, moments = tmp_path / "killed/parts", np.random.default_rng(0).uniform(0, 0.4, 10)
    for done, moment in enumerate(moments):
        process = subprocess.Popen(command, start_new_session=True)
        while len(list(parts.glob("*.json"))) <= 2 * done and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        assert process.poll() is None  # it is killed at work
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not storage.exists(f"{tmp_path}/killed/manifest.json")
    subprocess.run(command, check=True)
    undisturbed = str(tmp_path / "undisturbed")
    subprocess.run([undisturbed if part == str(tmp_path / "killed") else part for part in command], check=True)
    assert files(str(tmp_path / "killed")) == files(undisturbed)


def files(url: str) -> dict[str, str]:
    """Names and hashes of what is at a place."""
    return {f.removeprefix(url): hashlib.sha256(storage.read_bytes(f)).hexdigest() for f in storage.listing(url)}


def test_one_damaged_file_among_a_thousand_is_named_and_all_else_done(tmp_path, capsys):
    from rayad import cli

    dataset = phantom.Dataset(patients=20, diseased=0.0, height=256, width=192)
    images = [np.round(dataset.pixels(exam) * 4095).astype(np.uint16) for exam in dataset.exams()[:20]]
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(1000):
        facts = {"PatientID": f"P{number}", "ImagerPixelSpacing": [0.8, 0.8], "SOPInstanceUID": f"1.2.3.{number + 1}"}
        moved = np.roll(images[number % 20], number // 20, 0)
        (archive / f"{number:04}.dcm").write_bytes(written(mammogram(moved, bits=12, **facts)))
    rows = [f"{number:04}.dcm,normal" for number in range(1000)]
    (archive / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    exams = catalog.configure("datasets", "dicom", {"source": str(archive), "patient_ids": "plain"}).exams()
    splits = assign(exams)
    learned = [exam for exam in exams if splits[exam.exam_id] in LEARNING_SPLITS]
    damaged = Path(learned[300].url)
    damaged.write_bytes(damaged.read_bytes()[:-20_000])
    out = str(tmp_path / "corpus")
    source = ["--dataset", "dicom", "--source", str(archive), "--settings", "patient_ids=plain"]
    command = ["ingest", *source, "--out", out, "--sampling.patches", "4"]
    assert cli.run(command) == 0, capsys.readouterr().err
    manifest = storage.read_json(f"{out}/manifest.json")
    failed = [of["url"] for of in manifest["failures"]]
    assert len(exams) == 1000
    assert [Path(url).name for url in failed] == [damaged.name]
    assert manifest["images"] == len(learned) - 1
    said = capsys.readouterr().out
    assert "1 failed" in said
    assert f"failed: {damaged}" in said
