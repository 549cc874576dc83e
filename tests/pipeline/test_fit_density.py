"""What a density is fitted to: the latents of a corpus, in its order, with what stands beside them."""

import numpy as np
import pytest
import torch
from workers import in_threads

from rayad import catalog
from rayad.datasets import phantom
from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.encode import encode, read_latents
from rayad.pipeline.fit_density import FittedRows, density_config, fit_detector, latents_of
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import DensityRequest
from rayad.pool import Here
from rayad.scoring.detector import Detector
from rayad.scoring.scores import ModelScore, Part


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


def test_the_context_stands_beside_the_latents_of_its_own_place(corpus, model, tmp_path):
    encode(Here(), corpus, model, str(tmp_path))
    wanted = DensityRequest(context=("rel_row", "skin_mm"))
    found = FittedRows(corpus, str(tmp_path), wanted).variables("train")
    assert torch.equal(found[:, :6], read_latents(corpus, str(tmp_path), "train"))
    index = corpus.index().set_index(["shard", "row_in_shard"])
    truth = [index.loc[(name, row)] for name, number in corpus.shards("train") for row in range(number)]
    assert found[:, 6].tolist() == pytest.approx([row["rel_row"] for row in truth])
    assert found[:, 7].tolist() == pytest.approx([row["skin_mm"] for row in truth])


@pytest.mark.parametrize("world", [2, 3, 50])
def test_workers_hold_their_shares_and_no_more(corpus, model, tmp_path, world):
    encode(Here(), corpus, model, str(tmp_path))
    request, shares = DensityRequest(context=("rel_row",), classes="view", smooth=True), []
    whole = FittedRows(corpus, str(tmp_path), request)

    def work(sync) -> None:
        rows = FittedRows(corpus, str(tmp_path), request, sync)
        shares.append((sync.rank, rows.variables("train"), *rows.classes("train")))

    in_threads(world, work)
    _, variables, classes, names = zip(*sorted(shares, key=lambda share: share[0]), strict=True)
    assert torch.equal(torch.cat(variables), whole.variables("train"))
    assert np.concatenate(classes).tolist() == whole.classes("train")[0].tolist()
    assert set(names) == {whole.classes("train")[1]}
    every = len(read_latents(corpus, str(tmp_path), "train"))
    parts = [read_latents(corpus, str(tmp_path), "train", rank, world) for rank in range(world)]
    assert {len(part) for part in parts} <= {every // world, -(-every // world)}


def test_a_background_is_fitted_to_the_smoothest_third(corpus, model, tmp_path):
    encode(Here(), corpus, model, str(tmp_path))
    every, smooth = (
        FittedRows(corpus, str(tmp_path), DensityRequest(smooth=s)).variables("train") for s in (False, True)
    )
    patches = torch.cat([torch.from_numpy(corpus.read(name).astype("float64")) for name, _ in corpus.shards("train")])
    deviation = patches.flatten(1).std(1)
    kept = deviation <= deviation.quantile(1 / 3)
    assert torch.equal(smooth, every[kept])


def test_latents_are_those_of_the_corpus_in_its_order(corpus, model, tmp_path):
    encode(Here(), corpus, model, str(tmp_path))
    shards = [name for name, _ in corpus.shards("train")]
    patches = torch.cat([torch.from_numpy(corpus.read(s).astype("float32") / 65535) for s in shards])
    with torch.no_grad():
        expected = model.module.encode(patches[:, None])
    assert torch.allclose(read_latents(corpus, str(tmp_path), "train"), expected, atol=1e-5)


def test_another_corpus_at_the_same_place_is_not_answered_by_the_old_detector(corpus, model, tmp_path):
    other, latents = corpus_at(str(tmp_path / "corpus"), seed=1), str(tmp_path / "latents")
    trained = Detector("cae", ModelScore(model, "reconstruction"), Preprocessing(), provenance={"made_of": "cae"})
    how = trained, DensityRequest("mahalanobis"), str(tmp_path / "fitted"), latents
    for of in (corpus, other):
        made = fit_detector(Here(), "fitted", of, *how)
        own = read_latents(of, latents_of(trained, of, latents), "train")
        assert made.provenance["corpus"] == of.manifest["content"]
        assert made.density is not None
        assert torch.allclose(made.density.module.centre, own.double().mean(0))


def test_a_bundle_says_which_rows_its_density_was_fitted_to(corpus, model, tmp_path):
    trained = Detector("cae", ModelScore(model, "reconstruction"), Preprocessing(), provenance={"made_of": "cae"})
    made = fit_detector(Here(), "fitted", corpus, trained, DensityRequest("mahalanobis", smooth=True), str(tmp_path))
    assert made.provenance["density_training"]["smooth"] is True
    assert made.provenance["density_training"]["classes"] == ""


def test_a_density_that_hardly_leaves_its_start_says_so(corpus, model, tmp_path, capsys):
    """As the step of the paper, 1e-4, does with so few batches."""
    trained = Detector("cae", ModelScore(model, "reconstruction"), Preprocessing(), provenance={"made_of": "cae"})
    small, step = ("inputs=2", "replicas=2"), EM(epochs=2, step=1e-4)
    fit_detector(Here(), "cae-spn", corpus, trained, DensityRequest(settings=small, em=step), str(tmp_path / "a"))
    assert "rayad: cae-spn: the steps add up to " in (said := capsys.readouterr().err)
    assert "the density has hardly left its start; take larger steps or more epochs" in said
    usual = EM(epochs=40)
    fit_detector(Here(), "cae-spn", corpus, trained, DensityRequest(settings=small, em=usual), str(tmp_path / "b"))
    assert "hardly left its start" not in capsys.readouterr().err


@pytest.mark.parametrize("name", catalog.names("density"))
def test_codes_are_refused_by_densities_that_take_numbers(name):
    config = catalog.configure("models", "vqvae", {"width": 4, "blocks": 1})
    model = Part("vqvae", config, config.build())
    if name in ("spn", "mixture"):
        assert density_config(DensityRequest(name), model).states == (config.codes,) * model.module.latents
        return
    with pytest.raises(OptionError, match=f"density {name} takes numbers, but the latents of vqvae are codes"):
        density_config(DensityRequest(name), model)
