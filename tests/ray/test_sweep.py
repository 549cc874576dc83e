"""Sweeps by Ray Tune and Optuna: what is searched, written and taken up again; and what is refused at once."""

import json
import math
import stat
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from ray.exceptions import OutOfMemoryError

from rayad import cli, storage
from rayad.datasets import phantom
from rayad.density.em import EM
from rayad.errors import OptionError, TrainingError
from rayad.fit import Schedule
from rayad.on_ray import sweep
from rayad.on_ray.pool import OnRay
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline import sweep_task, trial
from rayad.pipeline.fit_density import fit_density, fit_detector
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import DensityRequest, Search, TrainRequest
from rayad.pipeline.train import train_detector
from rayad.pool import Here, Workers
from rayad.scoring import bundle

SMALL = DensityRequest(settings=("inputs=3", "replicas=3"), em=EM(epochs=4, batches=4))
SPACE = ("inputs=2..8", "replicas=2,4", "step=0.05..0.5:log")
FEW = Search(trials=4, seeds=1, grace=2, minutes=5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    url = str(tmp_path_factory.mktemp("corpus"))
    dataset = phantom.Dataset(patients=24, diseased=0.0, height=256, width=192)
    ingest(Here(), dataset, url, Ingest(sampling=Sampling(patches=20), shard_patches=120), {"dataset": "phantom"})
    return Corpus.open(url)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> str:
    """URL of a detector whose latents are searched over."""
    url = str(tmp_path_factory.mktemp("cae"))
    request = TrainRequest("cae", ("width=4", "latents=6"), Schedule(epochs=1))
    train_detector(Here(), "cae", corpus, request, url)
    return url


def shared(model, space, corpus: Corpus, url: str) -> tuple[sweep_task.Task, sweep_task.SharedLatents]:
    task = sweep_task.density_task(model, SMALL, space, corpus.url)
    return task, sweep_task.shared_latents(Here(), model, task, corpus, url)


def numbers(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{url}/optuna.db").trials


def test_a_sweep_writes_what_it_found_and_goes_on_where_it_ended(corpus, trained, tmp_path):
    model = bundle.load(trained).model
    assert model is not None
    url, latents = str(tmp_path / "sweep"), str(tmp_path / "latents")
    task, data = shared(model, SPACE, corpus, latents)
    first = sweep.sweep("small", task, data, FEW, url)
    assert len(first["rows"]) == 4
    assert first["base"] == {"inputs": 3, "replicas": 3, "step": 0.1}
    assert first["best"]["value"] == min(row["value"] for row in first["rows"])
    assert first["state"] == "done"
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "sweep").iterdir()} == {0o600}
    assert storage.read_json(f"{url}/sweep.json") == json.loads(json.dumps(first))
    assert {round(t.value, 6) for t in numbers(url)} == {round(row["value"], 6) for row in first["rows"]}
    for name in ("index.html", "trials.csv", "parallel.png", "importance.png", "contour.png", "history.png"):
        assert storage.exists(f"{url}/{name}"), name
    more = sweep.sweep("small", task, data, replace(FEW, trials=5), url)
    assert more["rows"][:4] == first["rows"]
    assert len(more["rows"]) == len(numbers(url)) == 5
    other, _ = shared(model, (*SPACE[:2], "step=0.1..0.2"), corpus, latents)
    with pytest.raises(OptionError, match="another sweep is here"):
        sweep.sweep("small", other, data, FEW, url)
    with pytest.raises(OptionError, match="another sweep is here"):  # the same fields, of another encoder's latents
        sweep.sweep("small", task, replace(data, train=data.train + 1), FEW, url)


def test_a_trial_is_what_fit_density_makes_of_its_settings(corpus, trained, tmp_path):
    """The winner's value is that of its training: same rows, same seed."""
    model = bundle.load(trained).model
    assert model is not None
    latents = str(tmp_path / "latents")
    task, data = shared(model, SPACE, corpus, latents)
    values = {"inputs": 5, "replicas": 4, "step": 0.2}
    told: list[float] = []
    value = trial.learn(task, data, values, None, lambda epoch, value: told.append(value))
    wanted = replace(SMALL, settings=("inputs=5", "replicas=4"), em=replace(SMALL.em, step=0.2))
    _, said = fit_density(Here(), corpus.url, model, wanted, latents)
    assert value == pytest.approx(said["best"]["validation"], abs=1e-5)
    assert told[-1] == pytest.approx(value, abs=1e-5)
    assert told == sorted(told, reverse=True)


@pytest.mark.long
def test_the_command_trains_the_winner(corpus, trained, tmp_path, capsys):
    out = tmp_path / "out"
    code = cli.run(
        [
            *("sweep", "--corpus", corpus.url, "--detector", trained, "--out", str(out), "--space", "inputs=2..4"),
            *("--settings", "replicas=2", "--em.epochs", "2", "--search.trials", "2", "--search.seeds", "1", "--apply"),
        ]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "best of 2 trials: inputs=" in said.out
    summary = storage.read_json(f"{out}/sweep.json")
    settings = summary["seeds"][summary["winner"]]["settings"]
    assert summary["best"]["settings"]["inputs"] in range(2, 5)
    winner = bundle.load(f"{out}/detector").density
    assert winner is not None
    assert (winner.config.inputs, winner.config.replicas) == (settings["inputs"], 2)


@pytest.mark.long
def test_the_weight_of_a_bvae_is_searched_by_what_a_pixel_costs(corpus, tmp_path):
    request = TrainRequest("bvae", ("width=4", "latents=4", "learning_rate=3e-3"), Schedule(epochs=3, batch=16))
    task = sweep_task.model_task(request, None, ("beta=0.001,1000",), corpus.url)
    found = sweep.sweep("bvae", task, None, Search(trials=2, seeds=1, grace=0, minutes=5), str(tmp_path / "sweep"))
    assert {row["how"] for row in found["rows"]} <= {"whole", "failed"}
    assert "bits a pixel" in found["objective"]
    assert math.isfinite(found["best"]["value"])
    assert found["best"]["settings"] == {"beta": 0.001}


@pytest.mark.long
def test_settings_that_diverge_with_their_seeds_do_not_end_the_sweep(corpus, tmp_path):
    url, schedule = str(tmp_path / "sweep"), Schedule(epochs=1, batch=16)
    request = TrainRequest("bvae", ("width=4", "latents=4", "learning_rate=1000"), schedule)
    space = ("learning_rate=0.001,0.002,0.003,1000",)
    task = sweep_task.model_task(request, None, space, corpus.url)
    found = sweep.sweep("rates", task, None, Search(trials=4, seeds=2, grace=0, minutes=5), url)
    best, base = found["seeds"]["best"], found["seeds"]["base"]
    assert math.isfinite(best["mean"])
    assert base["values"] == [None, None]
    assert base["mean"] is None
    assert all("not finite" in why for why in base["errors"])
    assert found["state"] == "done"
    assert "not finite" in storage.read_bytes(f"{url}/index.html").decode()
    assert storage.exists(f"{url}/trials.csv")


@pytest.mark.long
@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "stopped"), (TrainingError, "failed")])
def test_a_sweep_that_comes_to_no_end_says_how_it_ended_and_goes_on(
    corpus, trained, tmp_path, monkeypatch, error, state
):
    def end(*_: object) -> None:
        raise error

    model, url = bundle.load(trained).model, str(tmp_path / "sweep")
    assert model is not None
    task, data = shared(model, SPACE, corpus, str(tmp_path / "latents"))
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_with_seeds", end)
        with pytest.raises(error):
            sweep.sweep("small", task, data, FEW, url)
    assert storage.read_json(f"{url}/sweep.json")["state"] == state
    found = sweep.sweep("small", task, data, FEW, url)
    assert found["state"] == "done"
    assert len(found["rows"]) == len(numbers(url)) == 4


@pytest.mark.long
def test_a_root_a_class_of_tissue(corpus, trained, tmp_path):
    """With as many roots as there are classes each root learns one: their shares are those of the patches."""
    index = corpus.index()
    names = sorted(set(index["density"]) - {""})
    assert len(names) > 1
    detector = bundle.load(trained)
    settings = ("inputs=4", "replicas=4", f"roots={len(names)}")
    request = DensityRequest(settings=settings, classes="density", em=EM(epochs=5))
    made = fit_detector(
        OnRay(Workers(1)), "classes", corpus, detector, request, str(tmp_path / "d"), str(tmp_path / "l")
    )
    assert made.density is not None
    train = index[index["split"] == "train"]
    shares = train["density"].value_counts(normalize=True).sort_index().to_numpy()
    assert made.density.module.mixing.numpy() == pytest.approx(shares, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "depth=1,2,9"], "depth=9 cannot be searched"),
        (["--space", "inputz=1,2"], "no field 'inputz' to search"),
        (["--space", "inputs=2..4", "--classes", "nothing"], "classes are a column of the index"),
        (["--space", "inputs=2..4", "--search.gpu", "1"], "2 trials need 2 GPUs (the cluster has 0)"),
        (
            ["--space", "inputs=2..4", "--search.gpu", "1", "--search.wait-minutes", "0.02"],
            "2 trials need 2 GPUs (the cluster has 0)",
        ),
        (["--space", "inputs=2..4", "--search.concurrent", "99"], "99 trials need 99 CPUs"),
        (["--space", "inputs=2..4", "--model", "bvae"], "one of both"),
        (["--space", "inputs=2..4", "--search.trials", "0"], "trials of a sweep must be at least 1"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(corpus, trained, tmp_path, capsys, arguments, said):
    code = cli.run(["sweep", "--corpus", corpus.url, "--detector", trained, "--out", str(tmp_path / "s"), *arguments])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert said in error[-1]
    assert not Path(tmp_path / "s" / "sweep.json").exists()


@pytest.mark.long
def test_a_model_and_its_density_are_searched_together_and_the_winner_is_trained(corpus, tmp_path, capsys):
    """What was stopped early is not the best; what is applied is what won, with the image model beside it."""
    out = tmp_path / "out"
    code = cli.run(
        [
            *("sweep", "--corpus", corpus.url, "--out", str(out), "--model", "bvae", "--density", "spn"),
            *("--space", "beta=0.001..0.1:log", "inputs=2..4", "--settings", "width=4", "latents=4", "replicas=2"),
            *("--schedule.epochs", "3", "--schedule.batch", "16", "--em.epochs", "3", "--em.batches", "4"),
            *("--search.trials", "4", "--search.grace", "1", "--search.seeds", "1", "--workers.number", "1", "--apply"),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = storage.read_json(f"{out}/sweep.json")
    whole = [row for row in summary["rows"] if row["how"] == "whole"]
    assert summary["best"]["value"] == min(row["value"] for row in whole)
    assert len(summary["rows"]) == 4
    assert {row["epochs"] for row in whole} == {3}
    assert summary["winner"] in ("best", "base")
    assert "win" in printed.out
    settings = summary["seeds"][summary["winner"]]["settings"]
    made = bundle.load(f"{out}/detector")
    assert made.name == "bvae-spn"
    assert made.model is not None
    assert made.density is not None
    assert made.model.config.beta == pytest.approx(settings["beta"])
    assert (made.density.config.inputs, made.density.config.replicas) == (settings["inputs"], 2)
    assert bundle.load(f"{out}/model").name == "bvae"


@pytest.mark.long
def test_a_model_without_a_likelihood_is_searched_by_the_images_that_are_for_choices(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    code = cli.run(
        [
            *("sweep", "--corpus", corpus.url, "--out", str(out), "--model", "deep_svdd", "--space", "width=2,4"),
            *("--settings", "latents=4", "--schedule.epochs", "1", "--schedule.batch", "16"),
            *("--objective", "auc", "--dataset", "phantom", "--step-mm", "12.8"),
            *("--dataset-settings", "patients=12", "diseased=0.7", "height=256", "width=192", "seed=3"),
            *("--search.trials", "2", "--search.seeds", "1"),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = storage.read_json(f"{out}/sweep.json")
    assert "1 - AUC of the places" in summary["objective"]
    assert {row["how"] for row in summary["rows"]} == {"whole"}  # none is stopped early
    assert all(0 <= row["value"] <= 1 for row in summary["rows"])


def test_memory_that_is_used_up_is_one_sentence():
    """Ray Tune raises a RuntimeError then, which the search answers by going on."""
    used_up = OutOfMemoryError("Task was killed due to the node running low on memory.\nTo adjust the threshold, ...")
    sentence = r"the memory of a node was used up.*; the same command goes on"
    with pytest.raises(TrainingError, match=sentence), sweep._explained("optuna.db"):
        raise RuntimeError(f"Caught unexpected exception: {used_up}") from used_up
    with pytest.raises(RuntimeError, match="something else"), sweep._explained("optuna.db"):
        raise RuntimeError("something else")
