"""Named runs: every row of docs/benchmark.md's tables is made by one of these, whole and in one place.

A recipe of one's own is a Python file that defines ``RECIPE`` in the same way (docs/recipes.md).
"""

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.imaging import dermoscopy
from rayad.imaging.mammogram import Preprocessing
from rayad.options import Settings
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Recipe, Run
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import Detector

SMOOTH = Aggregation("gaussian", 4.8)
SMALL = ("inputs=20", "replicas=10")
"""A circuit that learns in a minute."""
LATENT_DETECTORS = {
    "mixture": "gaussian_mixture",
    "gaussian": "mahalanobis",
    "kde": "kernel_density",
    "svm": "one_class_svm",
    "forest": "isolation_forest",
    "lof": "local_outlier_factor",
    "som": "self_organizing_map",
    "dbn": "deep_belief_network",
}
"""Name in the tables -> plug-in: what the literature puts in the circuit's place, on the same latents."""
PLACE = ("skin_mm", "rel_row", "rel_col", "ring_density", "image_density")
SEVEN = ("cae", "bvae", "vqvae", "fanogan", "cae-spn", "bvae-spn", "vqvae-spn")
"""The detectors of Dietrichstein et al. 2022."""


def names() -> list[str]:
    """The recipes there are."""
    return sorted(RECIPES)


def find(name: str) -> Recipe:
    """The recipe of this name, or the RECIPE of a Python file.

    Raises:
        OptionError: there is no such recipe or file, or the file has none.
    """
    if name.endswith(".py"):
        return _of_file(Path(name))
    if name not in RECIPES:
        raise OptionError(f"no recipe {name!r}; rayad has {', '.join(names())}, and takes Python files")
    return RECIPES[name]


def _of_file(file: Path) -> Recipe:
    """Runs the file, which is the user's own."""
    if not file.is_file():
        raise OptionError(f"there is no recipe {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"{file}: {type(error).__name__}: {error}") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise OptionError(f"{file} defines no RECIPE (docs/recipes.md)")
    return recipe


def demo(run: Run) -> list[Detector]:
    """Synthetic mammograms, from nothing to a report in minutes."""
    corpus = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=1024))
    cae = run.train(corpus, TrainRequest("cae", schedule=Schedule(epochs=6, patience=3)))
    spn = run.fit(corpus, cae, DensityRequest(settings=SMALL, em=EM(epochs=20)))
    return [*_floors(run, corpus), run.ask(cae, "cae"), run.ask(spn, "cae-spn", aggregation=SMOOTH)]


def own(run: Run) -> list[Detector]:
    """Any data set of mammograms, with the settings of mini-MIAS."""
    corpus = run.corpus(_relative())
    cae = run.train(corpus, _learns("cae"))
    spn = run.fit(corpus, cae, DensityRequest())
    return [*_floors(run, corpus), run.ask(cae, "cae"), run.ask(spn, "cae-spn", aggregation=SMOOTH)]


def mias(run: Run) -> list[Detector]:
    """Mini-MIAS: autoencoders and their circuits, on the tissue and on what a top-hat leaves of it."""
    corpus = run.corpus(_relative())
    cae, bvae = run.train(corpus, _learns("cae")), run.train(corpus, _learns("bvae"))
    return [
        *_floors(run, corpus),
        run.ask(cae, "cae"),
        run.ask(run.fit(corpus, cae, DensityRequest()), "cae-spn"),
        run.ask(bvae, "bvae"),
        run.ask(run.fit(corpus, bvae, DensityRequest()), "bvae-spn"),
        *_of_specks(run),
    ]


def detectors(run: Run) -> list[Detector]:
    """Mini-MIAS: every detector of the literature, on the same places of the same images."""
    corpus = run.corpus(_relative())
    models = {
        **{name: run.train(corpus, _learns(name)) for name in ("cae", "bvae", "cvad", "deep_svdd", "implicit_field")},
        **{name: run.train(corpus, _learns(name)) for name in ("mddpm", "conditional_vae", "pca", "lbp", "glcm")},
        "vqvae": run.train(corpus, _learns("vqvae", 8, ("padding=same", "book=ema"))),
        "fanogan": run.train(corpus, _learns("fanogan", 8)),
    }
    spn = {name: run.fit(corpus, models[name], DensityRequest()) for name in ("cae", "bvae", "vqvae")}
    context = run.fit(corpus, models["cae"], DensityRequest(context=PLACE), "context")
    background = run.fit(corpus, models["cae"], DensityRequest(smooth=True), "background")
    table = [
        *_floors(run, corpus),
        run.floor(corpus, "local-deviation"),
        *(run.ask(models[name], name) for name in ("cae", "bvae", "vqvae", "fanogan")),
        *(run.ask(fitted, f"{name}-spn") for name, fitted in spn.items()),
        run.ask(models["cae"], "cae-ssim", "ssim"),
        run.ask(models["cae"], "cae-maximum", "maximum"),
        run.ask(context, "cae-spn-context"),
        run.ask(background, "cae-background"),
        *_on_latents(run, corpus, models["cae"]),
        *(run.ask(models[name], name) for name in ("cvad", "deep_svdd", "implicit_field", "mddpm")),
        *(run.ask(models[name], name) for name in ("conditional_vae", "pca", "lbp", "glcm")),
        *_of_specks(run),
    ]
    return [*table, *_combined(run, {detector.name: detector for detector in table})]


def skin(run: Run, epochs: int) -> list[Detector]:
    """Dermoscopy: whole images of benign skin as patches (Mukesh et al. 2022); malignant ones should score higher."""
    corpus = run.corpus(Ingest(dermoscopy.Preprocessing(), Sampling(1, 0.0, where="centre"), shard_patches=512))

    def learns(name: str, times: int = 1, settings: Settings = ()) -> TrainRequest:
        return TrainRequest(name, ("channels=3", *settings), Schedule(epochs=times * epochs, batch=32))

    other_models = ("cvad", "deep_svdd", "mddpm", "pca", "lbp", "glcm")
    models = {
        **{name: run.train(corpus, learns(name)) for name in ("cae", "bvae", *other_models)},
        "vqvae": run.train(corpus, learns("vqvae", settings=("padding=same", "book=ema"))),
        "fanogan": run.train(corpus, learns("fanogan", 2)),
    }
    spn = {name: run.fit(corpus, models[name], DensityRequest(settings=SMALL)) for name in ("cae", "bvae", "vqvae")}
    circuits = [run.ask(fitted, f"{name}-spn") for name, fitted in spn.items()]
    return [
        *(run.floor(corpus, name) for name in ("brightness", "local-deviation")),
        *(run.ask(models[name], name) for name in ("cae", "bvae", "vqvae", "fanogan")),
        *circuits,
        run.ask(models["bvae"], "bvae-reconstruction", "reconstruction"),
        run.ask(models["bvae"], "bvae-divergence", "divergence"),
        run.ask(models["cae"], "cae-ssim", "ssim"),
        run.ask(models["cae"], "cae-maximum", "maximum"),
        *_on_latents(run, corpus, models["cae"]),
        *(run.ask(models[name], name) for name in other_models),
        run.combine("spn-mean", "mean", circuits),
    ]


def _relative() -> Ingest:
    """How much brighter a place is than its surroundings."""
    return Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048)


def _learns(model: str, epochs: int = 6, settings: Settings = ()) -> TrainRequest:
    """An image model of mammograms."""
    return TrainRequest(model, settings, Schedule(epochs=epochs))


def _floors(run: Run, corpus: Corpus) -> list[Detector]:
    """Detectors that learn nothing, which a trained one has to beat."""
    return [
        run.floor(corpus, "brightness"),
        run.floor(corpus, "relative-brightness"),
        run.floor(corpus, "relative-brightness", "relative-maximum", Aggregation("maximum", 6.4)),
        run.floor(corpus, "top-hat"),
    ]


def _of_specks(run: Run) -> list[Detector]:
    """On what a top-hat leaves; the bVAE of this sparse picture collapses, with beta 0.1 and 0.01 alike."""
    picture = Preprocessing(spacing_mm=0.2, intensity="specks")
    corpus = run.corpus(Ingest(picture, Sampling(), shard_patches=2048), "specks")
    cae = run.train(corpus, _learns("cae"))
    spn = run.fit(corpus, cae, DensityRequest())
    floor = run.floor(corpus, "top-hat", "fine-top-hat")
    return [floor, run.ask(cae, "specks-cae"), run.ask(spn, "specks-cae-spn")]


def _on_latents(run: Run, corpus: Corpus, trained: Detector) -> list[Detector]:
    """What the literature puts in the circuit's place."""
    fitted = {
        name: run.fit(corpus, trained, DensityRequest(plug_in), name) for name, plug_in in LATENT_DETECTORS.items()
    }
    return [run.ask(detector, f"{trained.name}-{name}") for name, detector in fitted.items()]


def _combined(run: Run, table: dict[str, Detector]) -> list[Detector]:
    """Several of the table as one."""

    def of(name: str, rule: str, *members: str) -> Detector:
        return run.combine(name, rule, [table[member] for member in members])

    circuits = ("cae-spn", "bvae-spn", "vqvae-spn")
    return [
        of("cae-spn-ratio", "difference", "cae-spn", "cae-background"),
        of("spn-mean", "mean", *circuits),
        of("spn-fisher", "fisher", *circuits),
        of("scales", "minimum", "cae-spn", "specks-cae-spn"),
        of("blobs-and-specks", "minimum", "relative-maximum", "specks-cae-spn"),
        of("specks-and-latents", "fisher", "fine-top-hat", "specks-cae-spn", "cae-spn"),
        of("everything", "fisher", "cae-spn", "bvae-spn", "relative-maximum", "specks-cae-spn", "fine-top-hat"),
    ]


_CHOSEN = (
    "By benchmarks/choose.py, on the development half of the diseased patients and on lesions pasted into healthy "
    "validation patients: picture and resolution, contour patches, epochs, size of the circuit, aggregation. What "
    "did not beat the literature's setting by a margin stated beforehand stayed the literature's, which is "
    "everything but the picture (relative: how much brighter a place is than its surroundings; specks: what a "
    "top-hat leaves) and the learning rate."
)
_ON_DDSM = tuple(
    {"detector": name, "lesion": "mass", "dataset": "DDSM", "pixel_auc": auc, "source": "Dietrichstein et al. 2022"}
    for name, auc in (("autoencoders and f-AnoGAN alone", "0.53 to 0.80"), ("with a RAT-SPN", "up to 0.88"))
)
_FIRST = "As Dietrichstein et al. 2022"


def _dermoscopy(name: str, epochs: int) -> Recipe:
    return Recipe(
        name,
        partial(skin, epochs=epochs),
        dataset="isic",
        kinds=("malignant",),
        step_mm=64.0,
        order=SEVEN,
        first=_FIRST,
        why="Sizes and rates of the mammograms' recipe; nothing was chosen on these images.",
    )


_ALL: Sequence[Recipe] = (
    Recipe("demo", demo, "phantom", ("patients=60",), kinds=("mass", "calcification")),
    Recipe("own", own, why="The settings of mini-MIAS's recipe; nothing was chosen on these images."),
    Recipe("mias", mias, "mias", kinds=("mass", "calcification"), why=_CHOSEN),
    Recipe(
        "detectors",
        detectors,
        "mias",
        kinds=("mass", "calcification", "distortion", "asymmetry"),
        step_mm=6.4,  # a quarter of a patch: the slowest of these score thirty patches a second of a core
        order=SEVEN,
        first=_FIRST,
        dense=("D",),
        compare=(
            *((f"{model}-spn", model) for model in ("cae", "bvae", "vqvae")),
            ("cae-spn", "fanogan"),
            *(("cae-spn", f"cae-{name}") for name in LATENT_DETECTORS),
            ("cae-spn-context", "cae-spn"),
            ("cae-spn", "relative-maximum"),
            ("everything", "relative-maximum"),
            ("specks-cae-spn", "fine-top-hat"),
            ("specks-and-latents", "fine-top-hat"),
        ),
        literature=_ON_DDSM,
        why=_CHOSEN,
    ),
    _dermoscopy("isic", epochs=60),
    _dermoscopy("ham10000", epochs=20),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
"""Name -> recipe."""
