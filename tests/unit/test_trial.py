"""Trials and what they search, in this process, on corpora of a few patches."""

import math
from dataclasses import replace

import pytest
import torch

from rayad import search, storage
from rayad.datasets import phantom
from rayad.density.em import EM
from rayad.errors import CollapseError, DatasetError, OptionError
from rayad.fit import Schedule
from rayad.models import bvae
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline import sweep_book, trial
from rayad.pipeline.development import development_of
from rayad.pipeline.fit_density import fit_density, fit_detector
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.sweep_book import SweepBook
from rayad.pipeline.sweep_task import SharedLatents, Task, density_task, divided, model_task, shared_latents
from rayad.pipeline.train import train_detector
from rayad.pool import Here
from rayad.scoring.coding import bits_together
from rayad.scoring.scores import Part

SCHEDULE = Schedule(epochs=2, batch=16)
BVAE = TrainRequest("bvae", ("width=4", "latents=4", "learning_rate=3e-3", "beta=0.01"), SCHEDULE)
SPN = DensityRequest(settings=("inputs=3", "replicas=2"), em=EM(epochs=3, batches=4))
SPACE = ("beta=0.001..0.1:log", "inputs=2..4", "em.seed=0,1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    url = str(tmp_path_factory.mktemp("corpus"))
    dataset = phantom.Dataset(patients=24, diseased=0.0, height=256, width=192)
    ingest(Here(), dataset, url, Ingest(sampling=Sampling(patches=6), shard_patches=60), {"dataset": "phantom"})
    return Corpus.open(url)


def learned(task: Task, values: dict, data: SharedLatents | None = None, seed: int | None = None):
    reported: list[tuple[int, float]] = []
    value = trial.learn(task, data, values, seed, lambda epoch, value: reported.append((epoch, value)))
    return value, reported


def test_a_joint_trial_ends_with_what_its_settings_are_worth_when_they_are_applied(corpus, tmp_path):
    task = model_task(BVAE, SPN, SPACE, corpus.url)
    assert set(task.parts) == {"model", "schedule", "density", "em"}
    assert "together" in task.objective
    values = {"beta": 0.005, "inputs": 4, "em.seed": 1}
    value, reported = learned(task, values)
    assert [epoch for epoch, _ in reported] == [1, 2]
    assert all(math.isfinite(bits) for _, bits in reported)
    assert reported[1][1] <= reported[0][1]
    train, density = task.requests(values)
    assert train is not None
    assert density is not None
    trained = train_detector(Here(), "bvae", corpus, train, str(tmp_path / "model"))
    fitted = fit_detector(Here(), "bvae-spn", corpus, trained, density, str(tmp_path / "detector"))
    assert fitted.model is not None
    assert fitted.density is not None
    assert (fitted.model.config.beta, fitted.density.config.inputs) == (0.005, 4)
    batches = trial._Batches(corpus, task.parts_with(values))
    applied = bits_together(fitted.model.module, fitted.density.module.log_prob, batches.train, batches.validation)
    assert value == pytest.approx(applied, abs=1e-4)
    assert learned(task, values, seed=5)[0] != value


def test_a_density_makes_the_same_encoder_cheaper_or_dearer(corpus):
    """Bits see the density: one that hardly learned costs more."""
    task = model_task(BVAE, SPN, ("em.epochs=1,30", "em.step=0.0001,0.5"), corpus.url)
    assert task.epochs == 2
    slow = learned(task, {"em.epochs": 1, "em.step": 0.0001})[0]
    assert learned(task, {"em.epochs": 30, "em.step": 0.5})[0] < slow


def test_models_with_a_decoder_are_searched_alone_and_together(corpus):
    cae = TrainRequest("cae", ("width=4", "latents=4"), SCHEDULE)
    assert math.isfinite(learned(model_task(cae, None, ("width=4,8",), corpus.url), {"width": 8})[0])
    assert math.isfinite(learned(model_task(cae, SPN, ("width=4,8",), corpus.url), {"width": 4})[0])
    pca = TrainRequest("pca", ("side=16",), SCHEDULE)
    task = model_task(pca, None, ("components=1,16",), corpus.url)
    assert task.epochs == 0  # nothing is reported before the end
    assert learned(task, {"components": 16})[0] < learned(task, {"components": 1})[0]


def test_codes_follow_the_size_of_the_book(corpus):
    settings = ("width=4", "codes=8", "embedding=4", "blocks=0", "learning_rate=3e-3")
    task = model_task(TrainRequest("vqvae", settings, SCHEDULE), SPN, ("codes=4,8",), corpus.url)
    assert set(task.parts_with({"codes": 4})["density"].states) == {4}
    assert math.isfinite(learned(task, {"codes": 4})[0])


def test_a_collapse_ends_a_trial_while_it_trains(corpus):
    long = replace(BVAE, schedule=Schedule(epochs=50, batch=16, patience=50, collapse="warning"))
    task = model_task(long, None, ("beta=0.01,1e6",), corpus.url)
    reported: list[int] = []
    with pytest.raises(CollapseError, match=r"after epoch \d+: posterior collapse"):
        trial.learn(task, None, {"beta": 1e6}, None, lambda epoch, value: reported.append(epoch))
    assert len(reported) < 30
    again = trial.Again(task, None, "cpu")
    value, why = again(({"beta": 1e6}, 0))
    assert value is None
    assert "posterior collapse" in why


def test_the_bits_of_a_density_alone_are_those_of_its_fit(corpus, tmp_path):
    torch.manual_seed(0)
    config = bvae.Config(width=4, latents=4)
    encoder = Part("bvae", config, config.build().eval())
    task = density_task(encoder, SPN, ("inputs=2..4", "em.epochs=1..9"), corpus.url)
    assert task.epochs == 9  # what is searched may be more than what is not
    data = shared_latents(Here(), encoder, task, corpus, str(tmp_path / "latents"))
    value, reported = learned(task, {"inputs": 4, "em.epochs": 3}, data)
    _, density = task.requests({"inputs": 4, "em.epochs": 3})
    assert density is not None
    _, history = fit_density(Here(), corpus.url, encoder, density, str(tmp_path / "latents"))
    assert value == pytest.approx(history["best"]["validation"], abs=1e-5)
    assert reported[-1][1] == pytest.approx(value, abs=1e-5)


@pytest.fixture(scope="module")
def labelled() -> phantom.Dataset:
    return phantom.Dataset(patients=12, diseased=0.7, height=256, width=192, seed=3)


def test_the_auc_is_that_of_the_images_that_are_for_choices(corpus, labelled):
    development = development_of(labelled, corpus, 12.8)
    assert development.of_places
    assert {exam.patient_id for exam in development.exams}.isdisjoint(
        exam.patient_id for exam in labelled.exams() if exam.exam_id not in {e.exam_id for e in development.exams}
    )
    deep = TrainRequest("deep_svdd", ("width=4", "latents=4"), Schedule(epochs=1, batch=16))
    task = model_task(deep, None, ("width=2,4",), corpus.url, development)
    assert "1 - AUC" in task.objective
    assert task.epochs == 0
    value, reported = learned(task, {"width": 4})
    assert 0 <= value <= 1
    assert {bits for _, bits in reported} == {math.inf}


def test_the_auc_of_a_joint_trial(corpus, labelled):
    development = development_of(labelled, corpus, 12.8)
    alone = DensityRequest("mahalanobis")
    for density in (SPN, alone):
        task = model_task(BVAE, density, ("beta=0.01,0.1",), corpus.url, development)
        assert 0 <= learned(task, {"beta": 0.01})[0] <= 1


def test_images_without_a_lesion_are_refused(corpus):
    with pytest.raises(DatasetError, match="anomalous and in the development split"):
        development_of(phantom.Dataset(patients=6, diseased=0.0, height=256, width=192), corpus, 12.8)


@pytest.mark.parametrize(
    ("train", "density", "space", "sentence"),
    [
        (
            TrainRequest("deep_svdd"),
            None,
            ("width=4,8",),
            "--objective auc.*bvae, cae, conditional_vae",
        ),
        (BVAE, DensityRequest("isolation_forest"), ("beta=0.1,1",), "isolation_forest has no likelihood"),
        (BVAE, SPN, ("depth=1,2,3",), "depth=3 cannot be searched"),
        (BVAE, SPN, ("latents=4,1",), "latents=1 cannot be searched"),
        (BVAE, SPN, ("epochs=1,2",), "write schedule.epochs or em.epochs"),
        (BVAE, SPN, ("replicsa=1,2",), "no field 'replicsa' to search"),
        (BVAE, replace(SPN, classes="nothing"), ("inputs=2,3",), "classes are a column of the index"),
        (replace(BVAE, model="bvea"), None, ("beta=1,2",), "no model 'bvea'"),
        (replace(BVAE, schedule=Schedule(batch=10_000)), None, ("beta=1,2",), "10,?000"),
    ],
)
def test_what_cannot_be_searched_together_is_refused_before_a_trial(corpus, train, density, space, sentence):
    with pytest.raises(OptionError, match=sentence):
        model_task(train, density, space, corpus.url)


def test_settings_go_to_whom_they_belong():
    texts = ("width=4", "inputs=3", "model.preset=paper")
    assert divided(texts, "bvae", "spn") == (("width=4", "preset=paper"), ("inputs=3",))
    assert divided(("width=4",), "bvae", "") == (("width=4",), ())
    with pytest.raises(OptionError, match=r"write model\.preset or density\.preset"):
        divided(("preset=paper",), "bvae", "spn")
    with pytest.raises(OptionError, match="no setting 'inptus'"):
        divided(("inptus=3",), "bvae", "spn")


def test_a_sweep_of_another_version_is_refused(corpus, tmp_path):
    storage.write_json(str(tmp_path / "sweep.json"), {"name": "old", "rows": [], "made_of": "x", "space": {}})
    task = model_task(BVAE, None, ("beta=0.01,0.1",), corpus.url)
    with pytest.raises(OptionError, match="of another version of rayad"):
        SweepBook("new", task, None, 2, str(tmp_path), str(tmp_path))


def test_the_book_knows_another_objective_and_who_wins(corpus, tmp_path):
    url = str(tmp_path)
    task = model_task(BVAE, SPN, ("beta=0.01,0.1",), corpus.url)
    book = SweepBook("small", task, None, 3, url, url)
    book.add(0, {"beta": 0.1}, {"how": "stopped", "value": 1.0, "epoch": 1})
    book.add(1, {"beta": 0.01}, {"how": "whole", "value": 2.0, "epoch": 2})
    book.add(2, {"beta": 0.1}, None)
    assert book.best_settings() == {"beta": 0.01}
    book.keep_seeds([(2.0, ""), (2.2, ""), (1.5, ""), (1.6, "")])
    assert book.summary["winner"] == "base"
    assert sweep_book.stored(url)["seeds"]["best"]["values"] == [2.0, 2.2]
    other = replace(task, objective="another")
    with pytest.raises(OptionError, match="another sweep is here"):
        SweepBook("small", other, None, 3, url, url)
    assert search.base(task.parts, task.space) == book.summary["base"] == {"beta": 0.01}
