"""Recipes: what they name is there, and what cannot be is said before anything is read."""

from dataclasses import replace
from pathlib import Path

import pytest

from rayad import catalog, recipes
from rayad.bounds import Bounds
from rayad.errors import OptionError
from rayad.imaging.picture import step_px
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Changes, Data, Recipe, Run, RunRequest, rehearse

SKIN = ("isic", "ham10000")


def request(recipe: Recipe) -> RunRequest:
    return RunRequest(recipe, Data(recipe.dataset, "", recipe.settings))


@pytest.mark.parametrize(("name", "preset"), [(recipe.name, recipe.preset) for recipe in recipes.RECIPES])
def test_a_recipe_can_be_built(name: str, preset: str):
    recipe = recipes.find(name, preset)
    assert recipe.preset == preset
    detectors = rehearse(request(recipe))
    assert len(detectors) >= 6
    assert recipe.docstring
    for detector in detectors:  # whole images go through at once: an encoder's cells are 8 px apart, a U-Net's fewer
        stride = getattr(detector.model and detector.model.module, "stride", 8)
        assert name in SKIN or step_px(detector.preprocessing, recipe.step_mm) % stride == 0


def test_the_seven_detectors_of_the_paper_have_its_sizes():
    """The numbers are those of Dietrichstein et al. 2022, section 3."""
    recipe = recipes.find("ddsm")
    detectors = {detector.name: detector for detector in rehearse(request(recipe))}
    assert tuple(detectors) == recipes.SEVEN
    for name, epochs, rate in (("cae", 100, 1e-5), ("bvae", 100, 1e-5), ("vqvae", 20, 1e-4)):
        config = detectors[name].model.config
        assert (config.width, config.padding, config.learning_rate) == (32, "same", rate)
        assert f"epochs={epochs}, batch=64, patience={epochs}" in detectors[name].provenance["settings"]
        circuit = detectors[f"{name}-spn"].density.config
        assert (circuit.roots, circuit.inputs, circuit.depth, circuit.replicas) == (1, 45, 1, 50)
    assert detectors["cae"].model.config.latents == detectors["bvae"].model.config.latents == 64
    assert detectors["bvae"].model.config.beta == 0.1
    assert (detectors["vqvae"].model.config.blocks, detectors["vqvae"].model.config.embedding) == (6, 64)
    assert detectors["fanogan"].model.config.width == 64
    assert {step_px(detector.preprocessing, recipe.step_mm) for detector in detectors.values()} == {16}
    assert len(recipe.literature) == 14


def test_the_paper_s_images_may_take_what_they_take_unless_the_command_says_otherwise():
    """f-AnoGAN takes 5,832 s for a film at 0.05 mm (benchmarks/results/native.json)."""
    paper = recipes.find("ddsm").bounds
    assert Bounds().or_else(paper) == paper
    assert paper.score_seconds > 2 * 5832
    assert replace(Bounds(), score_seconds=10.0).or_else(paper) == replace(paper, score_seconds=10.0)
    assert Bounds().or_else(recipes.find("mias").bounds) == Bounds()


def test_a_preset_that_there_is_not():
    with pytest.raises(OptionError, match="recipe ddsm has no preset 'papr', only paper, rayad, laptop"):
        recipes.find("ddsm", "papr")
    with pytest.raises(OptionError, match="recipe mias has no preset 'paper', nor another"):
        recipes.find("mias", "paper")


def test_changes_reach_every_picture_and_every_epoch(monkeypatch):
    seen = []
    monkeypatch.setattr(Run, "ask", lambda self, detector, *_, **__: seen.append(detector) or detector)
    changes = Changes(epochs=2, density_epochs=3, picture=("spacing_mm=0.8",))
    recipe = replace(recipes.find("mias"), detectors=lambda run: (recipes.mias(run), [])[1])
    rehearse(replace(request(recipe), changes=changes))
    assert {detector.preprocessing.spacing_mm for detector in seen} == {0.8}
    assert {detector.preprocessing.intensity for detector in seen} == {"relative", "specks"}
    assert {detector.provenance["settings"].count("epochs=2") for detector in seen} == {1}


def test_the_side_of_patches_and_the_distance_of_places_reach_every_detector():
    changes = Changes(picture=("side_px=128",), patch_px=128, step_mm=128.0)
    whole = replace(request(recipes.find("isic")), changes=changes)
    assert {detector.patch_px for detector in rehearse(whole)} == {128}
    assert whole.step_mm == 128.0
    with pytest.raises(OptionError, match="must be at least that of their patches, 128, not 64"):
        rehearse(replace(whole, changes=Changes(patch_px=128)))
    with pytest.raises(OptionError, match="must divide 40 px, not 32"):
        rehearse(replace(whole, changes=Changes(patch_px=40)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run, corpus: run.floor(corpus, "glow"), "no floor 'glow'"),
        (lambda run, corpus: run.train(corpus, TrainRequest("cea")), "rayad has bvae, cae"),
        (lambda run, corpus: run.train(corpus, TrainRequest(settings=("wide=4",))), "cae has no 'wide'"),
        (lambda run, corpus: run.train(corpus, TrainRequest(settings=("channels=3",))), "the picture has 1"),
        (lambda run, corpus: run.ask(run.train(corpus, TrainRequest()), "a", "elbo"), "no score 'elbo'"),
        (
            lambda run, corpus: run.fit(corpus, run.train(corpus, TrainRequest()), DensityRequest(context=("nose",))),
            "a context is of skin_mm, .*; not 'nose'",
        ),
        (
            lambda run, corpus: run.combine("both", "difference", [run.floor(corpus, "top-hat")] * 3),
            "difference combines two detectors, not 3",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(make, said):
    def wrong(run: Run) -> list:
        return [make(run, run.corpus(recipes._relative()))]

    with pytest.raises(OptionError, match=said):
        rehearse(request(Recipe("wrong", wrong, "phantom")))


def test_names_of_detectors_are_different_and_those_that_are_compared_are_there():
    def floors(run: Run) -> list:
        return [run.floor(run.corpus(recipes._relative()), "top-hat")]

    with pytest.raises(OptionError, match="two detectors are called 'top-hat'"):
        rehearse(request(Recipe("twice", lambda run: floors(run) * 2, "phantom")))
    with pytest.raises(OptionError, match="has no detector 'cae', only top-hat"):
        rehearse(request(Recipe("absent", floors, "phantom", compare=(("cae", "top-hat"),))))


def test_a_file_of_one_s_own_is_a_recipe(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from rayad.pipeline.run import Recipe\nRECIPE = Recipe('mine', lambda run: [], 'phantom')\n")
    assert recipes.find(str(file)).name == "mine"
    file.write_text("RECIPE = 3\n")
    with pytest.raises(OptionError, match="defines no RECIPE"):
        recipes.find(str(file))
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(OptionError, match=r"mine\.py: ModuleNotFoundError: No module named 'nothing_of_that_name'"):
        recipes.find(str(file))
    with pytest.raises(OptionError, match="there is no recipe"):
        recipes.find(str(tmp_path / "yours.py"))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(OptionError, match="no recipe 'mais'; rayad has ddsm, demo, "):
        recipes.find("mais")


@pytest.mark.parametrize("name", catalog.names("density"))
def test_a_configuration_is_the_same_from_its_settings(name):
    config = catalog.configure("density", name)
    assert catalog.configure("density", name, catalog.settings_of(config)) == config


def test_settings_of_every_type_come_back():
    given = {"inputs": 7, "min_variance": 1e-05, "states": (0, 3, 2)}
    config = catalog.configure("density", "spn", given)
    assert catalog.configure("density", "spn", catalog.settings_of(config)) == config


def test_the_recipe_of_the_documentation_can_be_run(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    (tmp_path / "mine.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    names = [detector.name for detector in rehearse(request(recipes.find(str(tmp_path / "mine.py"))))]
    assert names == ["relative-brightness", "bvae", "bvae-ssim", "bvae-spn", "bvae-gaussian", "bvae-spn-place", "both"]
