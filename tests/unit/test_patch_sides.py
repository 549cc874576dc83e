"""Patches of every side: the same definitions as at 64 px, and one sentence where sides do not fit each other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayad import catalog, cli, storage
from rayad.arrays import Image
from rayad.datasets import phantom
from rayad.density import spn
from rayad.density.em import EM
from rayad.errors import FormatError, ImageError, OptionError
from rayad.fit import Objective, Schedule
from rayad.imaging import mammogram, square
from rayad.imaging.context import context
from rayad.imaging.picture import Prepared, Source
from rayad.models import bvae, cae, vqvae
from rayad.models._blocks import Decoder, Encoder
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling, choose, cut, leaves_image
from rayad.pipeline.fit_density import fit_detector
from rayad.pipeline.ingest import ingest
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.train import model_config, train_detector
from rayad.pool import Here
from rayad.scoring import bundle, check, counterfactual, dense
from rayad.scoring.detector import Detector
from rayad.scoring.scores import Floor
from rayad.tensors import Patches

SIDES = (32, 64, 128, 256)
MODELS = {
    "cae": cae.Config(width=4, latents=6),
    "bvae": bvae.Config(width=4, latents=6),
    "normalized": bvae.Config(width=4, latents=6, batch_norm=True),
    "vqvae": vqvae.Config(width=4, codes=16, embedding=8, blocks=1),
}


def image(h: int, w: int, *channels: int) -> Image:
    return np.random.default_rng(0).random((h, w, *channels), np.float32)


def patches_of(pixels: Image, side: int, step: int) -> Patches:
    """By the definition in rayad/arrays.py, with the reflection written out."""

    def reflected(i: np.ndarray, n: int) -> np.ndarray:
        return n - 1 - np.abs(n - 1 - np.abs(i))

    h, w = pixels.shape
    around = np.arange(-side // 2, side // 2)
    places = [(r, c) for r in range(step // 2, h, step) for c in range(step // 2, w, step)]
    cuts = [pixels[np.ix_(reflected(r + around, h), reflected(c + around, w))] for r, c in places]
    return torch.from_numpy(np.stack(cuts))[:, None].double()


def built(name: str, side: int, padding: str) -> nn.Module:
    """With running statistics as training would leave them."""
    torch.manual_seed(1)
    model = replace(MODELS[name], patch_px=side, padding=padding).build().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("side", range(32, 264, 8))
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_decoder_gives_the_side_that_the_encoder_took(side, padding):
    encoder, decoder = Encoder(1, 1, 3, padding, side), Decoder(1, 1, 3, padding, side)
    assert decoder(encoder(torch.rand(2, 1, side, side))).shape == (2, 1, side, side)
    assert encoder.cells(torch.rand(1, 1, side, side)).shape[2:] == (encoder.side, encoder.side)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("name", MODELS)
def test_dense_scores_are_those_of_the_patches(name, padding, side):
    model, pixels, step = built(name, side, padding), image(side + 37, side + 12), max(16, side // 4)
    x = patches_of(pixels, side, step)
    with torch.no_grad():
        truth, scores = model.encode(x), model.scores(x)
    found = dense.encode(model, pixels, step)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    for score, values in scores.items():
        dense_scores = dense.patch_scores(model, lambda x, score=score: model.scores(x)[score], pixels, step)
        torch.testing.assert_close(dense_scores, values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["bvae", "vqvae"])
def test_the_likelihood_of_a_whole_image_is_that_of_its_patches(name, side):
    model, pixels, step = built(name, side, "valid"), image(side + 40, side + 21), max(16, side // 4)
    states = (16,) * model.latents if name == "vqvae" else ()
    torch.manual_seed(0)
    circuit = spn.Config(depth=0, inputs=2, replicas=2, states=states).build(model.latents).double().eval()
    with torch.no_grad():
        truth = -circuit.log_prob(model.encode(patches_of(pixels, side, step)))
        alone = dense.likelihood(model, circuit.log_prob, pixels, step)
        masks = [np.ones([len(p) for p in dense.places(*pixels.shape, step)], bool)]
        (together,) = dense.latent_scores_together(model, lambda z: -circuit.log_prob(z), [pixels], step, masks)
    torch.testing.assert_close(alone, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(together, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [128, 256])
def test_whole_windows_are_as_exact_in_single_precision(side):
    torch.manual_seed(0)
    model, pixels = cae.Config(latents=16, patch_px=side).build().eval(), image(side + 16, side + 8)
    with torch.no_grad():
        truth = model.encode(patches_of(pixels, side, 64).float())
    assert (dense.encode(model, pixels, 64) - truth).abs().max() < 1e-5 * truth.std()


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("name", catalog.names("models"))
def test_every_model_takes_patches_of_other_sides(name, side):
    module, given = catalog.find("models", name), {"patch_px": side, "channels": 3}
    narrow = {} if name in ("pca", "lbp", "glcm", "implicit_field") else {"width": 4}
    torch.manual_seed(0)
    model = replace(module.Config(), **given, **narrow).build().eval()
    x = torch.rand(3, 3, side, side)
    assert model.encode(x).shape == (3, model.latents)
    assert all(score.shape == (3,) and score.isfinite().all() for score in model.scores(x).values())
    if hasattr(model, "reconstruct"):
        assert model.reconstruct(x).shape == x.shape
    for objective in (item for stage in model.stages() for item in stage if isinstance(item, Objective)):
        loss = objective.loss(x, lambda *shape: torch.randn(3, *shape)).sum()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, objective.parameters))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("cae", ["patch_px=100"], "cae: patch_px must be a multiple of 8 between 32 and 256, not 100"),
        ("bvae", ["patch_px=24"], "patch_px must be a multiple of 8"),
        ("fanogan", ["patch_px=40"], "patch_px of f-AnoGAN must be a multiple of 16, not 40"),
        ("pca", ["patch_px=40"], "side of averaged patches must divide 40 px, not 32"),
        ("mddpm", ["patch_px=40", "boxes=3"], "boxes divide 40 px"),
        ("implicit_field", ["patch_px=40"], "a divisor of 40 above 1, not 16"),
        ("lbp", ["patch_px=32", "radii=16"], "radii of local binary patterns are 1 to 15 px"),
        ("glcm", ["patch_px=32", "distances=32"], "distances of co-occurrence are 1 to 31 px"),
    ],
)
def test_a_model_refuses_a_side_that_it_cannot_do(name, settings, sentence):
    with pytest.raises(OptionError, match=sentence):
        catalog.configure("models", name, settings)


@pytest.mark.parametrize("side", [100, 24, 264, 0])
def test_other_sides_are_refused_wherever_they_are_built(side):
    for build in (lambda: Sampling(patch_px=side), lambda: Floor("brightness", side), cae.Config(patch_px=side).build):
        with pytest.raises(OptionError, match=f"patch_px must be a multiple of 8 between 32 and 256, not {side}"):
            build()


def breast(h: int = 300, w: int = 260) -> Prepared:
    pixels, body = image(h, w), np.zeros((h, w), bool)
    body[30:270, 20:200] = True
    tissue = body.copy()
    tissue[:90, :80] = False
    return Prepared(pixels, pixels, body, tissue, 0.4, Source(pixels, 0.4))


@pytest.mark.parametrize("side", SIDES)
def test_patches_are_cut_around_their_centres(side):
    prepared = breast()
    rows, columns, _ = choose(prepared.body, prepared.tissue, Sampling(20, patch_px=side), "exam")
    same_places = choose(prepared.body, prepared.tissue, Sampling(20), "exam")
    assert np.array_equal(rows, same_places[0])
    assert np.array_equal(columns, same_places[1])
    found, leaves = cut(prepared.pixels, rows, columns, side), leaves_image((300, 260), rows, columns, side)
    half, inside = side // 2, 0
    for patch, row, column, outside in zip(found, rows, columns, leaves, strict=True):
        if row >= half and column >= half and row + half <= 300 and column + half <= 260:
            assert np.array_equal(patch, prepared.pixels[row - half : row + half, column - half : column + half])
            assert not outside
            inside += 1
        else:
            assert outside
    assert inside or side == 256


def test_an_image_smaller_than_a_patch_has_none():
    with pytest.raises(ImageError, match="at least 128x128 px is wanted to take patches from, not 200x100"):
        cut(image(200, 100), np.array([50]), np.array([50]), 128)
    with pytest.raises(ImageError, match="at least 128x128 px is wanted to score patches, not 200x100"):
        dense.encode(built("cae", 128, "valid"), image(200, 100), 16)


@pytest.mark.parametrize("side", [32, 128])
def test_the_ring_of_a_place_lies_around_its_patch(side):
    prepared, (row, column) = breast(), (150, 120)
    weight = prepared.tissue.astype(float)

    def box(half: int) -> np.ndarray:
        area = np.s_[max(0, row - half) : row + half, max(0, column - half) : column + half]
        return np.array([(prepared.pixels * weight)[area].sum(), weight[area].sum()])

    total, count = box(side) - box(side // 2)
    assert context(prepared, side)["ring_density"][row, column] == pytest.approx(total / count, rel=1e-3)


@pytest.mark.parametrize("side", [32, 128])
def test_a_floor_looks_at_the_box_of_its_patch(side):
    prepared, tissue = breast(), np.zeros((300, 260), bool)
    tissue[150, 120] = True
    (found,) = Floor("brightness", side).places(prepared, 1, tissue)
    area = np.s_[150 - side // 2 : 150 + side // 2, 120 - side // 2 : 120 + side // 2]
    assert found == pytest.approx(prepared.stored[area][prepared.tissue[area]].mean(), rel=1e-6)


def test_a_picture_smaller_than_its_patches_is_refused():
    with pytest.raises(OptionError, match="must be at least that of their patches, 128, not 64"):
        Ingest(square.Preprocessing(), Sampling(patch_px=128))
    assert Ingest(square.Preprocessing(side_px=32), Sampling(patch_px=32)).patch_shape == (32, 32)
    assert Ingest(square.Preprocessing(side_px=128, colour=True), Sampling(patch_px=96)).patch_shape == (96, 96, 3)


PHANTOM = phantom.Dataset(patients=24, diseased=0.0, height=256, width=192)
SMALL = ("width=4", "latents=6")


def ingested(url: Path, side: int) -> Corpus:
    settings = Ingest(sampling=Sampling(4, patch_px=side), shard_patches=24)
    ingest(Here(), PHANTOM, str(url), settings, {"dataset": "phantom"})
    return Corpus.open(str(url))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[int, Corpus]:
    folder = tmp_path_factory.mktemp("corpora")
    return {side: ingested(folder / str(side), side) for side in (32, 64)}


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory) -> Detector:
    """Nobody said the side of its patches: it is that of the corpus."""
    url = str(tmp_path_factory.mktemp("trained") / "detector")
    return train_detector(Here(), "cae", corpora[32], TrainRequest("cae", SMALL, Schedule(epochs=1)), url)


def test_a_corpus_says_the_side_of_its_patches(corpora):
    for side, corpus in corpora.items():
        assert corpus.manifest["parameters"]["sampling"]["patch_px"] == corpus.patch_px == side
        (name, number), *_ = corpus.shards("train")
        assert corpus.read(name).shape == (number, side, side)
        assert corpus.read(name, (3, 5)).shape[1:] == (side, side)


def test_a_corpus_from_before_has_patches_of_64_px(corpora):
    manifest = {**corpora[64].manifest, "parameters": {**corpora[64].manifest["parameters"]}}
    manifest["parameters"]["sampling"] = {"patches": 4, "contour": 0.5, "seed": 0, "where": "random"}
    before = Corpus(corpora[64].url, manifest)
    assert (before.patch_px, before.patch_shape) == (64, (64, 64))
    (name, _), *_ = before.shards("train")
    assert np.array_equal(before.read(name, (0, 2)), corpora[64].read(name, (0, 2)))


def test_a_detector_of_other_patches_is_saved_and_loaded(trained, corpora, tmp_path):
    request = DensityRequest("spn", ("inputs=2", "replicas=2"), context=("ring_density",), em=EM(epochs=1))
    fitted = fit_detector(Here(), "cae-spn", corpora[32], trained, request, str(tmp_path / "fitted"))
    prepared = mammogram.Preprocessing().prepare(Source(PHANTOM.pixels(PHANTOM.exams()[0]), 0.4, force=("size",)))
    for detector in (trained, fitted, Detector("floor", Floor("brightness", 128), mammogram.Preprocessing())):
        bundle.save(detector, str(tmp_path / "again"))
        again = bundle.load(str(tmp_path / "again"))
        assert check.faults(str(tmp_path / "again")) == []
        assert again.patch_px == detector.patch_px == storage.read_json(f"{tmp_path}/again/detector.json")["patch_px"]
        scores = [d.heatmap(prepared, 16).scores for d in (detector, again)]
        assert np.array_equal(*scores, equal_nan=True)
    assert trained.patch_px == 32


def test_a_bundle_from_before_is_of_64_px_patches(tmp_path):
    for score in (Floor("brightness"), Floor("top-hat")):
        bundle.save(Detector("floor", score, mammogram.Preprocessing()), str(tmp_path))
        description = storage.read_json(f"{tmp_path}/detector.json")
        storage.write_json(
            f"{tmp_path}/detector.json", {k: v for k, v in description.items() if k != "patch_px"} | {"schema": 3}
        )
        assert bundle.load(str(tmp_path)).score == score


def test_a_floor_of_an_impossible_side_is_refused(tmp_path):
    bundle.save(Detector("floor", Floor("brightness"), mammogram.Preprocessing()), str(tmp_path))
    description = storage.read_json(f"{tmp_path}/detector.json")
    storage.write_json(f"{tmp_path}/detector.json", description | {"patch_px": 10**9})
    with pytest.raises(FormatError, match="'score': patch_px must be a multiple of 8 between 32 and 256"):
        bundle.load(str(tmp_path))


def test_sides_that_do_not_fit_are_one_sentence_before_anything_starts(trained, corpora, tmp_path, capsys):
    wrong = "model cae is of patches of {} px, but those of the corpus have {}"
    with pytest.raises(OptionError, match=wrong.format(64, 32)):
        model_config(TrainRequest("cae", ("patch_px=64",)), corpora[32])
    with pytest.raises(OptionError, match=wrong.format(32, 64)):
        fit_detector(Here(), "spn", corpora[64], trained, DensityRequest(), str(tmp_path / "fitted"))
    bundle.save(trained, str(tmp_path / "trained"))
    commands = {
        wrong.format(128, 64): ["train", "--model", "cae", "--settings", "patch_px=128", "--corpus", corpora[64].url],
        wrong.format(32, 64): ["fit-density", "--detector", str(tmp_path / "trained"), "--corpus", corpora[64].url],
        "patch_px must be a multiple of 8 between 32 and 256, not 100": [
            *("ingest", "--dataset", "phantom", "--sampling.patch-px", "100")
        ],
    }
    for sentence, command in commands.items():
        assert cli.run([*command, "--out", str(tmp_path / "out")]) != 0
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_counterfactual_is_blended_of_patches_of_any_side(corpora, tmp_path):
    request = TrainRequest("bvae", (*SMALL, "beta=0.0001"), Schedule(epochs=1))
    model = train_detector(Here(), "bvae", corpora[32], request, str(tmp_path / "bvae"))
    fitted = fit_detector(
        *(Here(), "spn", corpora[32], model, DensityRequest(settings=("inputs=2", "replicas=2"), em=EM(epochs=1))),
        str(tmp_path / "spn"),
    )
    found = counterfactual.image(fitted, breast())
    assert found.pixels.shape == (300, 260)
    assert np.isfinite(found.pixels).all()
