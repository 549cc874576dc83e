"""Named runs: every row of docs/benchmark.md's tables is made by one of these, whole and in one place.

A recipe of one's own is a Python file that defines ``RECIPE`` in the same way (docs/recipes.md).
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rayad.bounds import Bounds
from rayad.density.em import EM, PAPER
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.imaging import dermoscopy
from rayad.imaging.mammogram import Preprocessing
from rayad.options import Settings
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.run import Recipe, Run
from rayad.scoring.combine import PLAIN, Aggregation
from rayad.scoring.detector import Detector

SMOOTH = Aggregation("gaussian", 4.8)
SMALL = ("inputs=20", "replicas=10")
"""A circuit that learns in a minute."""
LATENT_DETECTORS = {
    "gaussian-mixture": "gaussian_mixture",
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
PLACE_SMOOTH_MM = 3.0
"""Smoothing of scores that are adjusted for the place, chosen on pasted lesions (benchmarks/place.py)."""
WIDE = Aggregation("maximum", 6.4)
"""Of what finds masses: the highest score nearby."""
DRAWN = {
    "unet-masses": (Preprocessing(spacing_mm=0.8, intensity="relative"), ("lesions=masses",), WIDE),
    "unet-specks": (
        Preprocessing(spacing_mm=0.2, intensity="relative"),
        ("lesions=specks", "middle_px=16", "faintest=0.02", "brightest=0.3"),
        PLAIN,
    ),
}
"""Detector that learned to find drawn lesions -> the picture that it sees, settings of its model, its aggregation."""
SEVEN = ("cae", "bvae", "vqvae", "fanogan", "cae-spn", "bvae-spn", "vqvae-spn")
"""The detectors of Dietrichstein et al. 2022."""


def names() -> list[str]:
    """The recipes there are."""
    return sorted({recipe.name for recipe in RECIPES})


def presets(name: str) -> list[str]:
    """The settings that a recipe has by name; the first are those where none is given."""
    return [recipe.preset for recipe in RECIPES if recipe.name == name and recipe.preset]


def find(name: str, preset: str = "") -> Recipe:
    """The recipe of this name, or the RECIPE of a Python file.

    Args:
        preset: which of its settings; empty: the first.

    Raises:
        OptionError: there is no such recipe, preset or file, or the file has none.
    """
    is_file = name.endswith(".py")
    named = [_of_file(Path(name))] if is_file else [recipe for recipe in RECIPES if recipe.name == name]
    if not named:
        raise OptionError(f"no recipe {name!r}; rayad has {', '.join(names())}, and takes Python files")
    chosen = [recipe for recipe in named if preset in ("", recipe.preset)]
    if not chosen:
        preset_names = ", ".join(recipe.preset for recipe in named if recipe.preset)
        others = f"only {preset_names}" if preset_names else "nor another"
        raise OptionError(f"recipe {name} has no preset {preset!r}, {others}")
    return chosen[0]


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
    corpus = run.corpus(Ingest(Preprocessing(intensity="relative"), Sampling(patches=60), shard_patches=1024))
    cae = run.train(corpus, TrainRequest("cae", ("width=12",), Schedule(epochs=8, patience=3, threads=2)))
    spn = run.fit(corpus, cae, DensityRequest(settings=SMALL, em=EM(epochs=20)))
    return [*_floors(run, corpus), run.ask(cae, "cae"), run.ask(spn, "cae-spn", aggregation=SMOOTH)]


def own(run: Run) -> list[Detector]:
    """Any data set of mammograms, with the settings of mini-MIAS."""
    corpus = run.corpus(_relative())
    cae = run.train(corpus, _learns("cae"))
    spn = run.fit(corpus, cae, DensityRequest())
    floors, plain = _floors(run, corpus), run.ask(spn, "cae-spn")
    smooth = run.ask(spn, "cae-spn", aggregation=SMOOTH)
    return [*floors, run.ask(cae, "cae"), smooth, *_in_place(run, [*floors, plain], ("relative-maximum", "cae-spn"))]


def mias(run: Run) -> list[Detector]:
    """Mini-MIAS: floors, autoencoders, circuits and what learned to find drawn lesions; some given the place."""
    corpus = run.corpus(_relative())
    cae, bvae = run.train(corpus, _learns("cae")), run.train(corpus, _learns("bvae"))
    table = [
        *_floors(run, corpus),
        run.ask(cae, "cae"),
        run.ask(run.fit(corpus, cae, DensityRequest()), "cae-spn"),
        run.ask(bvae, "bvae"),
        run.ask(run.fit(corpus, bvae, DensityRequest()), "bvae-spn"),
        *_of_specks(run),
        *drawn_lesions(run),
    ]
    names = ("relative-maximum", "cae-spn", "bvae-spn", "fine-top-hat", "specks-cae-spn", *DRAWN)
    return [*table, *_in_place(run, table, names)]


def detectors(run: Run) -> list[Detector]:
    """Mini-MIAS: every detector of the literature, on the same places of the same images."""
    corpus = run.corpus(_relative())
    models = {
        **{name: run.train(corpus, _learns(name)) for name in ("cae", "bvae", "cvad", "deep_svdd", "implicit_field")},
        **{name: run.train(corpus, _learns(name)) for name in ("mddpm", "conditional_vae", "pca", "lbp", "glcm")},
        "vqvae": run.train(corpus, _learns("vqvae", 8, ("padding=same", "book=ema"))),
        **{name: run.train(corpus, _learns(name, 8)) for name in ("fanogan", "dagan")},
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
        *(run.ask(models[name], name) for name in ("cvad", "dagan", "deep_svdd", "implicit_field", "mddpm")),
        *(run.ask(models[name], name) for name in ("conditional_vae", "pca", "lbp", "glcm")),
        *_of_specks(run),
    ]
    return [*table, *_combined(run, {detector.name: detector for detector in table})]


def ddsm_paper(run: Run) -> list[Detector]:
    """DDSM, judged on CBIS-DDSM: the seven detectors of Dietrichstein et al. 2022, trained as they were."""
    corpus = run.corpus(Ingest(Preprocessing(spacing_mm=0.05), Sampling(), shard_patches=4096))
    epochs = {"cae": 100, "bvae": 100, "vqvae": 20, "fanogan": 11}
    models = {
        name: run.train(corpus, TrainRequest(name, ("preset=paper",), Schedule(epochs=number, patience=number)))
        for name, number in epochs.items()
    }
    paper = DensityRequest(settings=("preset=paper",), em=PAPER)
    return _seven(run, models, {name: run.fit(corpus, models[name], paper) for name in ("cae", "bvae", "vqvae")})


def ddsm_rayad(run: Run) -> list[Detector]:
    """DDSM, judged on CBIS-DDSM: the seven detectors with the settings of mini-MIAS, floors, and specks."""
    corpus = run.corpus(_relative())
    models = {name: run.train(corpus, _learns(name)) for name in ("cae", "bvae")}
    models["vqvae"] = run.train(corpus, _learns("vqvae", 8, ("padding=same", "book=ema")))
    models["fanogan"] = run.train(corpus, _learns("fanogan", 8))
    spn = {name: run.fit(corpus, models[name], DensityRequest()) for name in ("cae", "bvae", "vqvae")}
    return [*_seven(run, models, spn), *_floors(run, corpus), *_of_specks(run)]


def ddsm_laptop(run: Run) -> list[Detector]:
    """DDSM, judged on CBIS-DDSM: the seven detectors in hours on a laptop."""
    picture = Preprocessing(spacing_mm=0.8, intensity="relative")
    corpus = run.corpus(Ingest(picture, Sampling(patches=24), shard_patches=2048))
    models = {name: run.train(corpus, _learns(name, 4)) for name in ("cae", "bvae", "fanogan")}
    models["vqvae"] = run.train(corpus, _learns("vqvae", 4, ("padding=same", "book=ema", "blocks=2")))
    small = DensityRequest(settings=SMALL, em=EM(epochs=20))
    spn = {name: run.fit(corpus, models[name], small) for name in ("cae", "bvae", "vqvae")}
    return [*_seven(run, models, spn), *_floors(run, corpus)]


def _seven(run: Run, models: dict[str, Detector], spn: dict[str, Detector]) -> list[Detector]:
    """Models and their circuits, as rows of the table."""
    alone = [run.ask(model, name) for name, model in models.items()]
    return [*alone, *(run.ask(fitted, f"{name}-spn") for name, fitted in spn.items())]


def whole_skin(run: Run) -> list[Detector]:
    """Dermoscopy as Mukesh et al. 2024: a convolutional VAE on whole images, learned from benign ones and from both."""
    ingest, early = _whole_images(), Schedule(epochs=100, batch=32)
    corpus, mixed = run.corpus(ingest), run.corpus(replace(ingest, mixed=1.0), "mixed")
    convolutional = TrainRequest("bvae", ("channels=3", "batch_norm=true"), early)
    vae, mixed_vae = (run.train(images, convolutional, "vae") for images in (corpus, mixed))
    cae = run.train(corpus, TrainRequest("cae", ("channels=3",), early))
    spn = {trained.name: run.fit(corpus, trained, DensityRequest(settings=SMALL)) for trained in (vae, cae)}
    return [
        *(run.floor(corpus, name) for name in ("brightness", "local-deviation")),
        run.ask(vae, "vae"),
        run.ask(vae, "vae-reconstruction", "reconstruction"),
        run.ask(vae, "vae-divergence", "divergence"),
        run.ask(vae, "vae-ssim", "ssim"),
        run.ask(mixed_vae, "mixed-vae"),
        run.ask(mixed_vae, "mixed-vae-reconstruction", "reconstruction"),
        run.ask(cae, "cae"),
        *(run.ask(fitted, f"{name}-spn") for name, fitted in spn.items()),
    ]


def skin(run: Run, epochs: int) -> list[Detector]:
    """Dermoscopy: every detector on whole images of benign skin, each a patch; malignant ones should score higher."""
    corpus = run.corpus(_whole_images())

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


def _whole_images() -> Ingest:
    """A dermoscopic image a patch."""
    return Ingest(dermoscopy.Preprocessing(), Sampling(1, 0.0, where="centre"), shard_patches=512)


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
        run.floor(corpus, "relative-brightness", "relative-maximum", WIDE),
        run.floor(corpus, "top-hat"),
    ]


def _in_place(run: Run, detectors: Sequence[Detector], names: Sequence[str]) -> list[Detector]:
    """Some of the detectors with scores adjusted for the place and smoothed by what pasted lesions chose."""
    return run.adjust({f"{d.name}-place": (d, PLACE_SMOOTH_MM) for d in detectors if d.name in names})


def _of_specks(run: Run) -> list[Detector]:
    """On what a top-hat leaves; the bVAE of this sparse picture collapses, with beta 0.1 and 0.01 alike."""
    picture = Preprocessing(spacing_mm=0.2, intensity="specks")
    corpus = run.corpus(Ingest(picture, Sampling(), shard_patches=2048), "specks")
    cae = run.train(corpus, _learns("cae"))
    spn = run.fit(corpus, cae, DensityRequest())
    floor = run.floor(corpus, "top-hat", "fine-top-hat")
    return [floor, run.ask(cae, "specks-cae"), run.ask(spn, "specks-cae-spn")]


def drawn_lesions(run: Run, *names: str) -> list[Detector]:
    """What learned to find lesions drawn into healthy tissue: masses at 0.8 mm, specks at 0.2 mm.

    Args:
        names: some of `DRAWN`; all, where none is given.
    """
    detectors = []
    for name in names or DRAWN:
        picture, settings, aggregation = DRAWN[name]
        corpus = run.corpus(Ingest(picture, Sampling(contour=0.2), shard_patches=2048), name)
        request = TrainRequest("synthetic_lesions", settings, Schedule(epochs=12))
        detectors.append(run.ask(run.train(corpus, request), name, aggregation=aggregation))
    return detectors


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
_TABLE_1 = {
    "mass": {
        **{"cae": 0.53, "bvae": 0.80, "vqvae": 0.67, "fanogan": 0.86},
        **{"cae-spn": 0.88, "bvae-spn": 0.88, "vqvae-spn": 0.82},
    },
    "calcification": {
        **{"cae": 0.65, "bvae": 0.73, "vqvae": 0.69, "fanogan": 0.67},
        **{"cae-spn": 0.72, "bvae-spn": 0.66, "vqvae-spn": 0.68},
    },
}
"""Pixel AUC by kind of lesion and detector, Dietrichstein et al. 2022, table 1, on CBIS-DDSM."""
_IMAGE_WISE = {("mass", "fanogan"): 0.85}
"""Mean image-wise AUC of the same table, where it is known to us."""
_ON_DDSM = tuple(
    {
        "detector": name,
        "lesion": kind,
        "dataset": "CBIS-DDSM",
        "pixel_auc": auc,
        "image_wise_auc": _IMAGE_WISE.get((kind, name)),
        "source": "Dietrichstein et al. 2022",
    }
    for kind, figures in _TABLE_1.items()
    for name, auc in figures.items()
)
_PAPER = (
    "Those of Dietrichstein et al. 2022: convolutions of 5x5 with 32, 64 and 128 channels, padded; 64 latents; batches "
    "of 64; CAE and bVAE 100 epochs at 1e-5, beta 0.1; VQVAE 20 epochs at 1e-4, six residual blocks, codes of 64 "
    "numbers, commitment 0.25; circuits of C=1, I=45, D=1, R=50, 50 epochs of expectation-maximization in batches of "
    "64 with step 1e-4; 120 patches an image, half of them on the contour; places 16 px apart at 0.05 mm, the "
    "resolution of the film scanners, to which all films are resampled; 90 and 10 % of the patients train and "
    "validate. The paper leaves open how many codes the VQVAE has (128 here) and how long f-AnoGAN is trained (the "
    "50,000 steps of the encoder that its authors took are 11 epochs of all healthy films)."
)
_AS_MIAS = "The settings of mini-MIAS's recipe; nothing was chosen on these images."
_SMALL_LESIONS = ("mass=area", "calcification=box")
_NATIVE = Bounds(places=100_000, score_seconds=36_000.0)
"""Of films at 0.05 mm: f-AnoGAN takes 5,832 s for one of 31,786 places (docs/recipes.md)."""
_LAPTOP = "Fewer patches, epochs and numbers than the preset rayad, at 0.8 mm; nothing was chosen on these images."
_FIRST = "As Dietrichstein et al. 2022"
_WITH_OUR_SETTINGS = "The detectors of Dietrichstein et al. 2022, with our settings"


def _dermoscopy(name: str, detectors: Callable[[Run], list[Detector]], **facts: Any) -> Recipe:
    return Recipe(
        name,
        detectors,
        dataset="isic",
        kinds=("malignant",),
        step_mm=64.0,
        **facts,
        why="Sizes and rates of the mammograms' recipe; nothing was chosen on these images.",
    )


def _on_ddsm(preset: str, detectors: Callable[[Run], list[Detector]], **facts: Any) -> Recipe:
    return Recipe(
        "ddsm",
        detectors,
        dataset="ddsm",
        shares=("train=0.9", "validation=0.1", "calibration=0"),
        preset=preset,
        test_dataset="cbis_ddsm",
        test_split="test",
        kinds=("mass", "calcification"),
        literature=_ON_DDSM,
        **facts,
    )


RECIPES: Sequence[Recipe] = (
    Recipe("demo", demo, "phantom", ("patients=60",), kinds=("mass", "calcification")),
    Recipe("own", own, why=_AS_MIAS),
    Recipe("mias", mias, "mias", kinds=("mass", "calcification"), why=_CHOSEN),
    Recipe(
        "detectors",
        detectors,
        "mias",
        kinds=("mass", "calcification", "distortion", "asymmetry"),
        step_mm=6.4,  # a quarter of a patch: the slowest of these score thirty patches a second of a core
        order=SEVEN,
        first=_WITH_OUR_SETTINGS,
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
    _dermoscopy("dermoscopy", whole_skin),
    _dermoscopy("isic", partial(skin, epochs=60), order=SEVEN, first=_WITH_OUR_SETTINGS),
    _dermoscopy("ham10000", partial(skin, epochs=20), order=SEVEN, first=_WITH_OUR_SETTINGS),
    _on_ddsm(
        "paper",
        ddsm_paper,
        why=_PAPER,
        step_mm=0.8,
        order=SEVEN,
        first=_FIRST,
        selection=_SMALL_LESIONS,
        bounds=_NATIVE,
    ),
    _on_ddsm("rayad", ddsm_rayad, order=SEVEN, first=_WITH_OUR_SETTINGS, why=_AS_MIAS),
    _on_ddsm("laptop", ddsm_laptop, order=SEVEN, first=_WITH_OUR_SETTINGS, why=_LAPTOP, step_mm=6.4),
)
"""All recipes; of those with one name, the first is meant where no preset is given."""
