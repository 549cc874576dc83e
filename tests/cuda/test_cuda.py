"""What a GPU computes is what a CPU computes, stage by stage. Never run: no machine of the project has a GPU."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import parts

from rayad import catalog
from rayad.datasets import phantom
from rayad.datasets.exam import source_of
from rayad.density import em, spn
from rayad.density.em import EM
from rayad.fit import Schedule, batches, fit
from rayad.heatmaps.drawing import if_healthy
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.encode import encoded
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import TrainRequest
from rayad.pipeline.score import KeptScores, ScoredImage, ScoreExam
from rayad.pipeline.sweep_task import SharedLatents, Task
from rayad.pipeline.train import train_detector
from rayad.pipeline.trial import learn
from rayad.pool import Here, Workers
from rayad.scoring import dense
from rayad.scoring.detector import Detector
from rayad.scoring.scores import LatentScore, ModelScore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("model", ["cae", "bvae"])
def test_training_and_dense_scoring_agree_with_the_cpu(model: str):
    patches = torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    schedule, found = Schedule(epochs=2, batch=16), {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        one = catalog.configure("models", model, {"width": 8, "learning_rate": 1e-4}).build().to(device)
        fit(one, lambda epoch: batches(patches, schedule, epoch), lambda: batches(patches, schedule), schedule)
        pixels = np.random.default_rng(0).random((200, 150), dtype=np.float32)
        found[device] = dense.encode(one, pixels, 8).cpu()
    assert torch.allclose(found["cpu"], found["cuda"], rtol=1e-3, atol=1e-3)


def test_the_density_learned_on_a_gpu_is_that_of_the_cpu():
    z = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    found = {}
    for device in ("cpu", "cuda"):
        density = catalog.configure("density", "spn", {"inputs": 4, "replicas": 4}).build(8).to(device)
        em.fit(density, z[:300].to(device), z[300:].to(device), EM(epochs=3))
        found[device] = density.log_prob(z.to(device)).cpu()
    assert torch.allclose(found["cpu"], found["cuda"], atol=1e-2)


def test_a_trial_of_a_sweep_ends_on_a_gpu_with_the_value_of_the_cpu():
    rng, found = np.random.default_rng(0), {}
    train, validation = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (300, 100))
    data = SharedLatents(train, validation, classes=rng.integers(-1, 2, 300), names=("fatty", "dense"))
    parts = {"density": spn.Config(roots=2, inputs=4, replicas=4), "em": EM(epochs=3)}
    for device in ("cpu", "cuda"):
        found[device] = learn(Task(parts, {}, "", "bits"), data, {}, 0, lambda _, value: None, device)
    assert found["cpu"] == pytest.approx(found["cuda"], abs=1e-2)


IMAGES = phantom.Dataset(patients=6, diseased=0.0, height=256, width=192, spacing_mm=0.8)
PICTURE = Preprocessing(spacing_mm=0.8, intensity="relative")


@pytest.fixture
def detector() -> Detector:
    return Detector("cae-spn", LatentScore(*parts()), PICTURE, provenance={"made_of": "noise"})


def test_images_are_scored_alike_by_likelihood_and_by_reconstruction(detector, tmp_path):
    """Stages that score: calibrate, evaluate, combine and heatmap call the same."""
    assert isinstance(detector.score, LatentScore)
    error = replace(detector, name="cae", score=ModelScore(detector.score.model, "reconstruction"))
    exams, found = IMAGES.exams()[:3], {}
    for device in ("cpu", "cuda"):
        keep = KeptScores.of(IMAGES, exams, str(tmp_path / device), (detector, error), 8)
        work = ScoreExam(IMAGES, keep, device)
        found[device] = [work(exam, partial(ScoreExam.prepare, IMAGES, keep, device, exam)) for exam in exams]
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert isinstance(one, ScoredImage)
        assert isinstance(other, ScoredImage)
        for name, scores in one.scores.items():
            np.testing.assert_allclose(scores, other.scores[name], rtol=1e-3, atol=1e-3)


def test_healthy_versions_are_alike(detector):
    prepared = PICTURE.prepare(source_of(IMAGES, IMAGES.exams()[0]))
    one, other = (if_healthy(detector.on(device), prepared) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(one.pixels, other.pixels, atol=1e-3)


def corpus_at(url: str) -> Corpus:
    settings = Ingest(PICTURE, Sampling(patches=12), shard_patches=60)
    ingest(Here(), replace(IMAGES, patients=24), url, settings, {"dataset": "phantom"})
    return Corpus.open(url)


def test_a_shard_is_encoded_alike(detector, tmp_path):
    assert isinstance(detector.score, LatentScore)
    corpus, model = corpus_at(str(tmp_path)), detector.score.model
    shard, _ = corpus.shards("train")[0]
    found = {}
    for device in ("cpu", "cuda"):
        model.module.to(device)
        found[device] = encoded(corpus, model, shard)
    assert torch.allclose(found["cpu"], found["cuda"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("workers", [Workers(1, gpu=1.0), Workers(2, gpu=0.5)], ids=["a GPU", "two halves of one"])
def test_workers_that_share_a_gpu_learn_what_the_cpu_learns(workers, tmp_path: Path):
    """On Ray, as `--workers.gpu` has it."""
    pytest.importorskip("ray")
    from rayad.on_ray.pool import connected

    corpus, request = corpus_at(str(tmp_path / "corpus")), TrainRequest("cae", ("width=4",), Schedule(epochs=2))
    here = train_detector(Here(), "cae", corpus, request, str(tmp_path / "here"))
    with connected(workers=workers) as pool:
        there = train_detector(pool, "cae", corpus, request, str(tmp_path / "there"))
    assert here.model is not None
    assert there.model is not None
    for name, value in here.model.module.state_dict().items():
        assert torch.allclose(value, there.model.module.state_dict()[name].cpu(), rtol=1e-3, atol=1e-3), name
