"""Densities on Ray Train: statistics add over workers, so N workers learn what one process learns."""

import pytest
import torch

from rayad import catalog
from rayad.datasets import phantom
from rayad.density import em
from rayad.density.em import EM
from rayad.on_ray.pool import OnRay
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.encode import read_latents
from rayad.pipeline.fit_density import fit_density
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import DensityRequest
from rayad.pool import Here, Workers
from rayad.scoring.scores import Part


def corpus_at(url: str, seed: int) -> Corpus:
    dataset = phantom.Dataset(patients=24, diseased=0.0, height=256, width=192, seed=seed)
    ingest(Here(), dataset, url, Ingest(sampling=Sampling(patches=10), shard_patches=60), {"dataset": "phantom"})
    return Corpus.open(url)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return corpus_at(str(tmp_path_factory.mktemp("corpus")), seed=0)


@pytest.fixture(scope="module")
def model() -> Part:
    torch.manual_seed(0)
    config = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    return Part("cae", config, config.build().eval())


@pytest.mark.parametrize(
    "schedule", [EM(epochs=3, batches=4, step=0.3), pytest.param(em.full_batch(3), marks=pytest.mark.long)]
)
def test_two_workers_learn_the_density_of_one_process(corpus, model, tmp_path, schedule):
    config = catalog.configure("density", "spn", {"inputs": 3, "replicas": 4})
    part, said = fit_density(
        OnRay(Workers(2)),
        corpus.url,
        model,
        DensityRequest(settings=("inputs=3", "replicas=4"), em=schedule),
        str(tmp_path),
    )
    train, validation = (read_latents(corpus, str(tmp_path), split) for split in ("train", "validation"))
    alone = config.build(train.shape[1])
    em.fit(alone, train, validation, schedule)
    for name, value in part.module.state_dict().items():
        assert torch.allclose(value, alone.state_dict()[name], rtol=1e-5, atol=1e-6), name
    assert said["epochs"] == 3
