"""`rayad sweep`: what is wrong with a command is one sentence, before Ray starts."""

from pathlib import Path

import pytest

from rayad import cli, storage
from rayad.datasets import phantom
from rayad.on_ray import pool
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.ingest import ingest
from rayad.pool import Here


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("corpus"))
    dataset = phantom.Dataset(patients=24, diseased=0.0, height=256, width=192)
    ingest(Here(), dataset, url, Ingest(sampling=Sampling(patches=4), shard_patches=60), {"dataset": "phantom"})
    return url


@pytest.fixture(autouse=True)
def without_ray(monkeypatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("Ray would have started")

    monkeypatch.setattr(pool, "connected", start)


BVAE = ("--model", "bvae", "--space", "beta=0.01..10:log")
PHANTOM = ("--dataset", "phantom", "--dataset-settings", "height=256", "width=192")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--space", "inputs=2..4"], 2, "one of both"),
        ([*BVAE, "--detector", "somewhere"], 2, "one of both"),
        (["--model", "deep_svdd", "--space", "width=4,8"], 2, "deep_svdd has no likelihood of patches"),
        (["--model", "fanogan", "--density", "spn", "--space", "width=4,8"], 2, "--objective auc"),
        ([*BVAE, "inputs=5..60"], 2, "no field 'inputs' to search"),
        ([*BVAE, "seed=1,2", "--density", "spn"], 2, "'seed' is a field of several: write schedule.seed or"),
        ([*BVAE, "--density", "snp"], 2, "no density 'snp'"),
        ([*BVAE, "--density", "one_class_svm"], 2, "one_class_svm has no likelihood"),
        ([*BVAE, "--density", "spn", "--settings", "preset=paper"], 2, "write model.preset or density.preset"),
        ([*BVAE, "--density", "spn", "--classes", "nothing"], 2, "classes are a column of the index"),
        ([*BVAE, "--classes", "density"], 2, "name it, as --density spn"),
        ([*BVAE, "--objective", "auc"], 2, "needs the labels of a data set"),
        ([*BVAE, *PHANTOM], 2, "needs the labels of a data set"),
        (
            [*BVAE, "--objective", "auc", *PHANTOM, "patients=6", "diseased=0.0"],
            1,
            "is anomalous and in the development",
        ),
        ([*BVAE, "--schedule.batch", "100000"], 2, "100"),
        ([*BVAE, "--search.trials", "0"], 2, "trials"),
    ],
)
def test_what_cannot_be_searched_is_said_in_a_sentence(corpus, tmp_path, capsys, arguments, code, sentence):
    out = tmp_path / "sweep"
    assert cli.run(["sweep", "--corpus", corpus, "--out", str(out), *arguments]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in line
    assert not Path(out / "sweep.json").exists()


def test_a_sweep_of_another_version_stays_as_it_is(corpus, tmp_path, capsys):
    old = {"name": "old", "rows": [], "made_of": "x", "space": {}}
    storage.write_json(str(tmp_path / "sweep.json"), old)
    assert cli.run(["sweep", "--corpus", corpus, "--out", str(tmp_path), *BVAE]) == 2
    assert "of another version of rayad" in capsys.readouterr().err
    assert storage.read_json(str(tmp_path / "sweep.json")) == old
