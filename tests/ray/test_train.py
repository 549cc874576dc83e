"""Training on Ray Train: N workers learn what one process learns, from patches that arrive through Ray Data."""

import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from rayad import catalog
from rayad.checkpoints import CheckpointFolder
from rayad.datasets import phantom
from rayad.errors import OptionError, TrainingError
from rayad.fit import Schedule, fit
from rayad.on_ray import pool
from rayad.on_ray.pool import OnRay
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.ingest import ingest
from rayad.pipeline.train import order_of, pixels, train, validation_batches
from rayad.pool import Here, Workers

SMALL = {"width": 4, "latents": 6, "optimizer": "sgd", "learning_rate": 0.05}
TEN_STEPS = Schedule(epochs=1, batch=16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """A corpus of at least ten global batches of 16."""
    url = str(tmp_path_factory.mktemp("corpus"))
    dataset = phantom.Dataset(patients=24, diseased=0.0, height=256, width=192)
    ingest(Here(), dataset, url, Ingest(sampling=Sampling(patches=10), shard_patches=60), {"dataset": "phantom"})
    return Corpus.open(url)


def alone(corpus: Corpus, config: Any, schedule: Schedule) -> dict[str, torch.Tensor]:
    """What one process learns, without Ray."""
    torch.manual_seed(schedule.seed)
    model, order = config.build(), order_of(corpus, schedule)
    fit(
        model,
        lambda epoch: (pixels(batch) for batch in order.batches(corpus.read, epoch)),
        validation_batches(corpus.read, corpus, schedule.batch, 0, 1),
        schedule,
    )
    return model.state_dict()


@pytest.mark.parametrize(
    ("model", "precision", "tolerance"),
    [
        ("cae", "float64", 1e-12),
        pytest.param("cae", "float32", 1e-5, marks=pytest.mark.long),
        pytest.param("bvae", "float64", 1e-12, marks=pytest.mark.long),
    ],
)
def test_two_workers_and_one_process_agree_after_ten_steps(corpus, tmp_path, model, precision, tolerance):
    assert order_of(corpus, TEN_STEPS).steps >= 10
    settings = SMALL | ({"learning_rate": 1e-5} if model == "bvae" else {})
    config, schedule = catalog.configure("models", model, settings), replace(TEN_STEPS, precision=precision)
    expected, before = alone(corpus, config, schedule), signal.getsignal(signal.SIGINT)
    part, faults, _ = train(OnRay(Workers(2)), corpus.url, model, config, schedule, str(tmp_path / "training"))
    assert faults == []
    assert signal.getsignal(signal.SIGINT) is before  # Ctrl-C means what it meant before
    for name, value in part.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def test_one_worker_of_a_ray_of_ones_own_is_this_process(tmp_path):
    members: list[tuple[int, int]] = []
    pool = OnRay(Workers(1))
    pool.learn(lambda task, member: members.append((os.getpid(), member.sync.world)), {}, str(tmp_path), 1, "nothing")
    assert members == [(os.getpid(), 1)]


@pytest.mark.long
def test_a_loss_that_is_not_a_number_ends_the_run_with_epoch_and_step(corpus, tmp_path):
    config = catalog.configure("models", "cae", SMALL | {"learning_rate": 1000})
    url = str(tmp_path / "training")
    with pytest.raises(TrainingError, match=r"epoch 1.*step"):
        train(OnRay(Workers(2, max_failures=0)), corpus.url, "cae", config, TEN_STEPS, url)
    assert CheckpointFolder(url).load() is None  # there was no good epoch to keep


def test_more_workers_than_a_corpus_has_lanes_are_refused(corpus, tmp_path):
    config = catalog.configure("models", "cae", SMALL)
    with pytest.raises(OptionError, match="16 lanes"):
        train(OnRay(Workers(17)), corpus.url, "cae", config, TEN_STEPS, str(tmp_path))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Workers(2, gpu=1), r"2 workers need 2 GPUs \(the cluster has 0\)"),
        (Workers(2, cpus=99), r"2 workers need 198 CPUs \(the cluster has \d+\)"),
        (Workers(1, cpus=99), r"1 worker needs 99 CPUs \(the cluster has \d+\)"),
        (Workers(2, gpu=1, least=1, wait_minutes=0.02), r"1 worker needs 1 GPU \(the cluster has 0\)"),
    ],
)
def test_what_the_cluster_has_not_is_said_in_seconds(corpus, tmp_path, wanted, said):
    config, began = catalog.configure("models", "cae", SMALL), time.monotonic()
    with pytest.raises(OptionError, match=said):
        train(OnRay(wanted), corpus.url, "cae", config, TEN_STEPS, str(tmp_path))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("gpu", "lacking"), [(0, {}), (1, {"GPU": (2.0, 0)})])
def test_what_was_asked_of_an_autoscaling_cluster_is_withdrawn(monkeypatch, gpu, lacking):
    asked: list[list] = []
    monkeypatch.setattr(pool, "request_resources", lambda bundles: asked.append(bundles))
    wanted = Workers(2, gpu=gpu, wait_minutes=0.01)
    assert pool.awaited(wanted) == lacking
    assert asked == [[wanted.resources] * 2, []]


@pytest.mark.parametrize(("number", "least"), [(0, 0), (2, 3), (2, -1)])
def test_workers_are_at_least_one(number, least):
    with pytest.raises(OptionError, match="workers are at least 1"):
        Workers(number, least=least)
