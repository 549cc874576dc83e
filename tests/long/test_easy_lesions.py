"""Every detector, trained small on healthy phantoms, finds lesions that are easy to find."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayad import catalog
from rayad.datasets import phantom
from rayad.datasets.exam import source_of
from rayad.density import em
from rayad.evaluation.metrics import auroc
from rayad.fit import Schedule, batches, fit
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.sample import Sampling, choose, cut
from rayad.scoring import floors

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

MODELS = catalog.names("models")
LATENT = [name for name in catalog.names("density") if name != "spn"]
EASY = 0.9
"""AUC over patches with and without a lesion."""


def pictures(patients: int, seed: int, picture: str = "relative") -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels and tissue of healthy phantoms, 0.8 mm a pixel."""
    dataset = phantom.Dataset(patients=patients, seed=seed, diseased=0.0)
    preprocessing = Preprocessing(spacing_mm=0.8, intensity=picture)  # type: ignore[reportArgumentType]
    prepared = [preprocessing.prepare(source_of(dataset, exam)) for exam in dataset.exams()]
    return [(p.pixels, p.tissue) for p in prepared]


def patches(images: list[tuple[np.ndarray, np.ndarray]], each: int) -> Tensor:
    """Healthy patches, n 1 64 64."""
    found = []
    for number, (pixels, tissue) in enumerate(images):
        rows, columns, _ = choose(tissue, tissue, Sampling(each, contour=0.0), f"easy-{number}")
        found.append(cut(pixels, rows, columns))
    return torch.from_numpy(np.concatenate(found))[:, None]


def with_lesion(x: Tensor) -> Tensor:
    """A bright disc with a sharp edge and a grating in it, in the middle of each patch."""
    y, z = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((y - 32) ** 2 + (z - 32) ** 2) < 16**2
    grating = 0.75 + 0.25 * torch.where((z // 3) % 2 == 0, 1.0, -1.0)
    return torch.where(disc, grating, x)


@pytest.fixture(scope="module")
def train() -> Tensor:
    return patches(pictures(12, 0), 30)


@pytest.fixture(scope="module")
def validation() -> Tensor:
    return patches(pictures(3, 1), 30)


@pytest.fixture(scope="module")
def unseen() -> Tensor:
    return patches(pictures(4, 2), 16)


def learned(name: str, train: Tensor, validation: Tensor) -> Any:
    module = catalog.find("models", name)
    narrow = {f.name: 8 for f in fields(module.Config) if f.name == "width"}
    torch.manual_seed(0)
    model = replace(module.Config(), **narrow).build()
    schedule = Schedule(epochs=8, batch=8 if name == "fanogan" else 32)  # 88 steps make no generator
    fit(model, lambda epoch: batches(train, schedule, epoch), lambda: batches(validation, schedule), schedule)
    return model


def auc(score, healthy: Tensor) -> float:
    with torch.no_grad():
        scores = torch.cat([score(healthy), score(with_lesion(healthy))]).double().numpy()
    return auroc(scores, np.repeat([False, True], len(healthy)))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_finds_easy_lesions(name, train, validation, unseen):
    model = learned(name, train, validation)
    found = {score: auc(lambda x, of=score: model.scores(x)[of], unseen) for score in model.scores(unseen[:1])}
    assert next(iter(found.values())) > EASY, found  # the first is the model's own criterion


@pytest.fixture(scope="module")
def autoencoder(train, validation) -> Any:
    return learned("cae", train, validation)


@pytest.mark.parametrize("name", [*LATENT, "spn"])
def test_a_detector_of_latents_finds_easy_lesions(name, autoencoder, train, validation, unseen):
    z = {split: autoencoder.encode(x).detach() for split, x in (("train", train), ("validation", validation))}
    config = catalog.configure("density", name, {"inputs": 10, "replicas": 10} if name == "spn" else {})
    density = config.build(z["train"].shape[1])
    if hasattr(density, "learn"):
        density.learn(z["train"], z["validation"], 0)
    else:
        em.fit(density, z["train"], z["validation"], em.EM(epochs=20))
    score = density.novelty if hasattr(density, "novelty") else lambda z: -density.log_prob(z)
    assert auc(lambda x: score(autoencoder.encode(x)), unseen) > EASY


@pytest.mark.parametrize("name", sorted(floors.MAPS))
def test_what_learns_nothing_finds_easy_lesions(name):
    """Judged are places in the lesion against those whose box does not reach it."""
    dataset = phantom.Dataset(patients=1, seed=3, diseased=0.0)
    prepared = Preprocessing().prepare(source_of(dataset, dataset.exams()[0]))
    pixels, tissue = prepared.stored, prepared.tissue
    rows, columns = np.nonzero(tissue)
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    away = np.hypot(y - int(rows.mean()), x - int(columns.mean()))
    lesion, judged = (away < 12) & tissue, ((away < 12) | (away > 64)) & tissue
    bright = np.where(lesion, np.where((x // 2) % 2 == 0, 1.0, 0.8), pixels).astype(np.float32)
    scores = floors.MAPS[name](bright, tissue, 0.4)
    assert auroc(scores[judged].astype(float), lesion[judged]) > EASY
