"""The detector bundle: equal scores after a round trip, and a sentence for every kind of damage."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from rayad import catalog, storage
from rayad.errors import FormatError, OptionError
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Prepared, Source
from rayad.scoring import bundle, floors
from rayad.scoring.calibrate import calibrate
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Combined, Detector, score_named
from rayad.scoring.scores import Floor, LatentScore, ModelScore, Part, scores_of
from rayad.scoring.scores import in_context as conditional


def prepared() -> Prepared:
    pixels = np.random.default_rng(0).random((150, 100), dtype=np.float32)
    breast = np.zeros(pixels.shape, bool)
    breast[10:140, :70] = True
    return Prepared(pixels, pixels, breast, breast, 0.4, Source(pixels, 0.4))


def detector() -> Detector:
    torch.manual_seed(0)
    config = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    mixture = catalog.configure("density", "mixture", {"components": 3})
    density = mixture.build(6)
    density.start(torch.randn(50, 6), 0)
    return Detector(
        "small",
        LatentScore(Part("cae", config, config.build().eval()), Part("mixture", mixture, density.eval(), 6)),
        Preprocessing(),
        Aggregation("gaussian", 3.0),
        provenance={"made_of": "test"},
    )


@pytest.fixture
def url(tmp_path) -> str:
    one = detector()
    scores = one.heatmap(prepared(), 8).scores
    bundle.save(one.calibrated(calibrate({"a": [scores], "b": [scores + 1]})), str(tmp_path))
    return str(tmp_path)


def test_a_bundle_scores_as_the_detector_that_was_saved(url):
    saved, loaded = detector(), bundle.load(url)
    assert np.array_equal(saved.heatmap(prepared(), 8).scores, loaded.heatmap(prepared(), 8).scores, equal_nan=True)
    assert loaded.calibration is not None
    assert loaded.calibration.patients == 2


def test_the_states_of_a_circuit_survive_a_bundle(tmp_path):
    one = detector()
    config = catalog.configure("density", "spn", ["inputs=2", "replicas=2", "states=0,0,0,0,0,3"])
    density = config.build(6)
    density.start(torch.cat([torch.randn(50, 5), torch.randint(3, (50, 1))], dim=1), 0)
    assert one.model is not None
    score = LatentScore(one.model, Part("spn", config, density.eval(), 6))
    bundle.save(replace(one, score=score), str(tmp_path))
    loaded = bundle.load(str(tmp_path)).density
    assert loaded is not None
    assert loaded.config == config
    z = torch.ones(4, 6)
    assert torch.equal(loaded.module.log_prob(z), density.log_prob(z))


def test_every_score_has_values_in_the_tissue_and_only_there():
    learned = detector()
    assert learned.model is not None
    for score in (*scores_of(learned.model), "likelihood", *floors.MAPS):
        heatmap = replace(learned, score=score_named(score, learned.model, learned.density)).heatmap(prepared(), 16)
        assert np.array_equal(np.isfinite(heatmap.scores), heatmap.tissue), score


def test_the_likelihood_never_runs_the_decoder(monkeypatch):
    one = detector()
    assert one.model is not None
    monkeypatch.setattr(one.model.module.decoder, "forward", lambda z: pytest.fail("the decoder ran"))
    one.heatmap(prepared(), 8)


def test_altered_truncated_and_missing_tensors_are_refused(url):
    where = storage.listing(url, (".safetensors",))[-1]
    assert "/model-" in where
    data = storage.read_bytes(where)
    storage.write_bytes(where, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match=r"model-\w+\.safetensors: altered or truncated"):
        bundle.load(url)
    storage.write_bytes(where, data[: len(data) // 2])
    with pytest.raises(FormatError, match="altered or truncated"):
        bundle.load(url)
    storage.remove(where)
    with pytest.raises(FormatError, match="missing"):
        bundle.load(url)


def test_a_newer_schema_and_an_empty_folder_are_refused(url, tmp_path):
    said = storage.read_json(f"{url}/detector.json")
    storage.write_json(f"{url}/detector.json", {**said, "schema": bundle.SCHEMA + 1})
    with pytest.raises(FormatError, match="newer than"):
        bundle.load(url)
    with pytest.raises(FormatError, match="no detector here"):
        bundle.load(str(tmp_path / "nothing"))


def test_an_unknown_model_in_a_bundle_is_answered_with_the_known_ones(url):
    said = storage.read_json(f"{url}/detector.json")
    said["model"]["name"] = "transformer"
    storage.write_json(f"{url}/detector.json", said)
    with pytest.raises(FormatError, match="rayad has bvae, cae"):
        bundle.load(url)


def test_a_score_without_its_parts_is_refused():
    with pytest.raises(OptionError, match="needs a trained model"):
        score_named("likelihood")
    with pytest.raises(OptionError, match="no score 'magic'; there are brightness"):
        score_named("magic")
    with pytest.raises(OptionError, match="no floor 'magic'; rayad has brightness"):
        Floor("magic")
    model, density = detector().model, detector().density
    assert model is not None
    assert density is not None
    with pytest.raises(OptionError, match="no score 'elbo'; the model 'cae' has reconstruction, squared"):
        ModelScore(model, "elbo")
    with pytest.raises(OptionError, match="no score 'elbo' of latents; a density has likelihood, novelty, context"):
        LatentScore(model, density, "elbo")
    with pytest.raises(OptionError, match="mixture has no novelty"):
        LatentScore(model, density, "novelty")
    with pytest.raises(OptionError, match="of 6 variables, but model and context give 7"):
        LatentScore(model, density, "context", ("skin_mm",))


def test_a_density_that_the_score_of_a_bundle_does_not_need_is_left_out(url):
    """Bundles of earlier versions kept it when they were asked for another score."""
    description = storage.read_json(f"{url}/detector.json")
    storage.write_json(f"{url}/detector.json", {**description, "score": "squared"})
    loaded = bundle.load(url)
    assert loaded.density is None
    assert loaded.model is not None
    assert loaded.score == ModelScore(loaded.model, "squared")


def in_context() -> Detector:
    """A mixture over latents and the distance to the skin; the last variable is the distance."""
    torch.manual_seed(0)
    config = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    mixture = catalog.configure("density", "mixture", {"components": 3})
    density = mixture.build(7)
    density.start(torch.randn(50, 7) * torch.tensor([1.0] * 6 + [15.0]), 0)
    parts = Part("cae", config, config.build().eval()), Part("mixture", mixture, density.eval(), 7)
    score = LatentScore(*parts, "context", ("skin_mm",))
    return Detector("placed", score, Preprocessing(), provenance={"made_of": "test"})


def test_a_likelihood_in_context_is_a_density_of_the_latents():
    """The integral over one latent of p(z | c), the others left out, is one, whatever the context."""
    mixture = catalog.configure("density", "mixture", {"components": 3})
    density = mixture.build(2)
    density.start(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), 0)
    z = torch.linspace(-30, 30, 20_001, dtype=torch.float64)[:, None]
    for skin in (-1.0, 0.3, 2.0):
        score = conditional(density.double().eval(), z, torch.full_like(z, skin))
        assert torch.trapezoid((-score).exp(), z[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_the_same_latents_are_scored_by_their_place(tmp_path):
    one, image = in_context(), prepared()
    flat = replace(image, pixels=np.full_like(image.pixels, 0.5))  # every patch is the same
    scores = one.heatmap(flat, 8).scores
    assert np.nanstd(scores) > 0.01
    bundle.save(one, str(tmp_path))
    assert np.array_equal(bundle.load(str(tmp_path)).heatmap(flat, 8).scores, scores, equal_nan=True)


def ensemble() -> Detector:
    model = detector().model
    assert model is not None
    score = ModelScore(model, "reconstruction")
    fine = replace(detector(), name="fine", preprocessing=Preprocessing(0.2), score=score)
    healthy = calibrate({"a": [np.random.default_rng(0).random((9, 9)) * 50]})
    members = tuple(one.calibrated(healthy) for one in (detector(), fine))
    return Detector("both", Combined("fisher", members), members[0].preprocessing, provenance={"made_of": "x"})


def test_members_see_their_own_picture_of_the_image_and_survive_a_bundle(tmp_path):
    source = Source(np.random.default_rng(1).random((300, 240), dtype=np.float32), 0.2)
    pixels = source.pixels[::2, ::2].copy()
    tissue = np.zeros(pixels.shape, bool)
    tissue[20:100, 20:80] = True
    image = Prepared(pixels, pixels, tissue, tissue, 0.4, source)
    fine = Prepared(source.pixels, source.pixels, *[np.ones((300, 240), bool)] * 2, 0.2, source)
    known = {"fine": ensemble().members[1].heatmap(fine, 16)}
    found = ensemble().heatmap(image, 8, known).scores
    assert np.array_equal(np.isfinite(found), image.tissue[np.ix_(range(4, 150, 8), range(4, 120, 8))])
    bundle.save(ensemble(), str(tmp_path))
    again = bundle.load(str(tmp_path))
    assert [member.name for member in again.members] == ["small", "fine"]
    assert np.array_equal(again.heatmap(image, 8, known).scores, found, equal_nan=True)


def test_members_that_are_not_calibrated_and_too_few_are_refused():
    one, other = ensemble().members
    with pytest.raises(OptionError, match="combines at least two"):
        Combined("fisher", (one,))
    with pytest.raises(OptionError, match="the members fine are not calibrated"):
        Combined("fisher", (one, replace(other, calibration=None)))


def test_a_bundle_of_the_first_schema_is_read_in_todays_words(url):
    said = storage.read_json(f"{url}/detector.json")
    old = {k: v for k, v in said.items() if k not in ("context", "members")} | {"schema": 1}
    old["preprocessing"].pop("kind")
    for file in storage.listing(url, (".safetensors",)):
        os.rename(file, f"{file.rpartition('-')[0]}.safetensors")  # names had no hashes
    storage.write_json(f"{url}/detector.json", old)
    assert bundle.load(url).preprocessing == Preprocessing()
    storage.write_json(f"{url}/detector.json", old | {"score": "reconstruction", "model": {"name": "bvae"}})
    assert bundle.describe(url)["score"] == "elbo"
