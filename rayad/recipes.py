"""Named runs: every row of docs/benchmark.md's tables is one of these, whole and in one place."""

from dataclasses import dataclass, field, replace
from typing import Any

from rayad.catalog import Settings
from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.imaging import dermoscopy
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.scoring.combine import Aggregation


@dataclass(frozen=True)
class Model:
    """An image model that is trained once, whatever is asked of it."""

    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of its Config that are not the defaults."""
    name: str = ""
    """Of the plug-in; "" if that is the label under which a line has it."""
    epochs: int = 0
    """Instead of the line's; 0: the line's."""


@dataclass(frozen=True)
class Density:
    """A detector of latents that is fitted once for a model."""

    fields: Settings = ()
    """Fields of its Config that are not the defaults."""
    name: str = "spn"
    """Of the plug-in."""
    context: tuple[str, ...] = ()
    """What it knows of a place beside the latents; see rayad/imaging/context.py."""
    smooth: bool = False
    """Fit it to the smoothest third of the patches alone: the background of a likelihood ratio."""
    classes: str = ""
    """Column of the corpus's index whose values are the classes of a circuit's roots, such as density."""


@dataclass(frozen=True)
class Row:
    """A detector: a trained model and what is asked of it. A row of the table."""

    model: str
    """Its label in the line."""
    score: str = "reconstruction"
    density: str = ""
    """Its label in the line, where the score is of latents."""
    aggregation: Aggregation = Aggregation()


@dataclass(frozen=True)
class Combined:
    """A detector whose score combines those of others, which stand before it in the recipe."""

    rule: str
    """One of `combine.RULES`."""
    members: tuple[str, ...]
    aggregation: Aggregation = Aggregation()


@dataclass(frozen=True)
class Line:
    """Detectors that see the same picture of an image: one corpus, and what is learned from it."""

    name: str
    """Of the corpus and the trained models; "" where there is one line."""
    ingest: Ingest
    floors: dict[str, tuple[str, Aggregation]]
    """Detectors that learn nothing, which a trained one has to beat: name -> score and its aggregation."""
    models: dict[str, Model]
    densities: dict[str, Density]
    rows: dict[str, Row]
    """Name of a detector -> what it is."""
    schedule: Schedule
    em: EM


@dataclass(frozen=True)
class Recipe:
    """A data set, the detectors that are trained on it, and how they are compared."""

    name: str
    dataset: str
    kinds: tuple[str, ...]
    """Kinds of lesion, a row of the table each; none: those of the test images."""
    lines: tuple[Line, ...]
    combined: dict[str, Combined] = field(default_factory=dict)
    dataset_fields: dict[str, Any] = field(default_factory=dict)
    step_mm: float = 3.2
    """Distance of the scored places."""
    order: tuple[str, ...] = ()
    """Detectors that stand first in the table, in this order."""
    dense: tuple[str, ...] = ()
    """Classes of tissue that count as dense, where the data set has classes: then figures are given for both."""
    compare: tuple[tuple[str, str], ...] = ()
    """Which detectors are tested against each other; none: see `pipeline.evaluate.pairs`. More tests, less power."""
    literature: tuple[dict[str, Any], ...] = ()
    """Figures that others reported, on other data."""
    why: str = ""
    """How the settings were chosen."""

    @property
    def groups(self) -> dict[str, str]:
        """Detector -> heading under which the table has it."""
        headings: dict[str, str] = {}
        for line in self.lines:
            picture = "" if line is self.lines[0] else f", {line.name}"
            for name, row in line.rows.items():
                headings[name] = ("Latents" if row.density else "Image models") + picture
            headings |= dict.fromkeys(line.floors, f"Learn nothing{picture}")
        return (
            headings
            | dict.fromkeys(self.combined, "Combined")
            | dict.fromkeys(self.order, "As Dietrichstein et al. 2022")
        )


def names() -> list[str]:
    """The recipes there are."""
    return sorted(_RECIPES)


def find(name: str) -> Recipe:
    """The recipe of this name; OptionError lists what there is."""
    if name not in _RECIPES:
        raise OptionError(f"no recipe {name!r}; rayad has {', '.join(names())}")
    return _RECIPES[name]


SMOOTH = Aggregation("gaussian", 4.8)
FLOORS = {
    "brightness": ("brightness", Aggregation()),
    "relative-brightness": ("relative-brightness", Aggregation()),
    "relative-maximum": ("relative-brightness", Aggregation("maximum", 6.4)),
    "top-hat": ("top-hat", Aggregation()),
}

_DEMO = Recipe(
    name="demo",
    dataset="phantom",
    dataset_fields={"patients": 60},
    kinds=("mass", "calcification"),
    lines=(
        Line(
            name="",
            ingest=Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=1024),
            floors=FLOORS,
            models={"cae": Model()},
            densities={"spn": Density({"inputs": 20, "replicas": 10})},
            rows={"cae": Row("cae"), "cae-spn": Row("cae", "likelihood", "spn", SMOOTH)},
            schedule=Schedule(epochs=6, patience=3),
            em=EM(epochs=20),
        ),
    ),
)

_MIAS = Recipe(
    name="mias",
    dataset="mias",
    kinds=("mass", "calcification"),
    lines=(
        Line(
            name="",
            ingest=Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048),
            floors=FLOORS,
            models={"cae": Model(), "bvae": Model()},
            densities={"spn": Density()},
            rows={
                "cae": Row("cae"),
                "cae-spn": Row("cae", "likelihood", "spn"),
                "bvae": Row("bvae", "elbo"),
                "bvae-spn": Row("bvae", "likelihood", "spn"),
            },
            schedule=Schedule(epochs=6),
            em=EM(),
        ),
        Line(
            name="specks",
            ingest=Ingest(Preprocessing(spacing_mm=0.2, intensity="specks"), Sampling(), shard_patches=2048),
            floors={"fine-top-hat": ("top-hat", Aggregation())},
            models={"cae": Model()},  # the bVAE of this sparse picture collapses, with beta 0.1 and 0.01 alike
            densities={"spn": Density()},
            rows={"specks-cae": Row("cae"), "specks-cae-spn": Row("cae", "likelihood", "spn")},
            schedule=Schedule(epochs=6),
            em=EM(),
        ),
    ),
    why=(
        "By benchmarks/choose.py, on the development half of the diseased patients and on lesions pasted into healthy "
        "validation patients: picture and resolution, contour patches, epochs, size of the circuit, aggregation. What "
        "did not beat the literature's setting by a margin stated beforehand stayed the literature's, which is "
        "everything but the picture (relative: how much brighter a place is than its surroundings; specks: what a "
        "top-hat leaves) and the learning rate."
    ),
)

_OWN = Recipe(
    name="own",
    dataset="folder",
    kinds=(),
    lines=(
        replace(
            _MIAS.lines[0],
            models={"cae": Model()},
            rows={"cae": Row("cae"), "cae-spn": Row("cae", "likelihood", "spn", SMOOTH)},
        ),
    ),
    why="The settings of mini-MIAS's recipe; nothing was chosen on these images.",
)

_LATENT_DETECTORS = {
    "mixture": "gaussian_mixture",
    "gaussian": "mahalanobis",
    "kde": "kernel_density",
    "svm": "one_class_svm",
    "forest": "isolation_forest",
    "lof": "local_outlier_factor",
    "som": "self_organizing_map",
    "dbn": "deep_belief_network",
}
"""Label -> plug-in: what the literature puts in the circuit's place, on the same latents."""
_PLACE = ("skin_mm", "rel_row", "rel_col", "ring_density", "image_density")

_FIRST = ("cae", "bvae", "vqvae", "fanogan", "cae-spn", "bvae-spn", "vqvae-spn")
"""The seven of Dietrichstein et al. 2022."""

_ON_DDSM = tuple(
    {"detector": name, "lesion": "mass", "dataset": "DDSM", "pixel_auc": auc, "source": "Dietrichstein et al. 2022"}
    for name, auc in (("autoencoders and f-AnoGAN alone", "0.53 to 0.80"), ("with a RAT-SPN", "up to 0.88"))
)

_DETECTORS = replace(
    _MIAS,
    name="detectors",
    kinds=("mass", "calcification", "distortion", "asymmetry"),
    order=_FIRST,
    compare=(
        *((f"{model}-spn", model) for model in ("cae", "bvae", "vqvae")),
        ("cae-spn", "fanogan"),
        *(("cae-spn", f"cae-{label}") for label in _LATENT_DETECTORS),
        ("cae-spn-context", "cae-spn"),
        ("cae-spn", "relative-maximum"),
        ("everything", "relative-maximum"),
        ("specks-cae-spn", "fine-top-hat"),
        ("specks-and-latents", "fine-top-hat"),
    ),
    literature=_ON_DDSM,
    dense=("D",),
    step_mm=6.4,  # a quarter of a patch: the slowest of these score thirty patches a second of a core
    lines=(
        replace(
            _MIAS.lines[0],
            floors={**FLOORS, "local-deviation": ("local-deviation", Aggregation())},
            models={
                "cae": Model(),
                "bvae": Model(),
                "vqvae": Model({"padding": "same", "book": "ema"}, epochs=8),
                "fanogan": Model(epochs=8),
                "cvad": Model(),
                "deep_svdd": Model(),
                "implicit_field": Model(),
                "mddpm": Model(),
                "conditional_vae": Model(),
                "pca": Model(),
                "lbp": Model(),
                "glcm": Model(),
            },
            densities={
                "spn": Density(),
                "context": Density(context=_PLACE),
                "background": Density(smooth=True),
                **{label: Density(name=name) for label, name in _LATENT_DETECTORS.items()},
            },
            rows={
                "cae": Row("cae"),
                "bvae": Row("bvae", "elbo"),
                "vqvae": Row("vqvae"),
                "fanogan": Row("fanogan"),
                **{f"{model}-spn": Row(model, "likelihood", "spn") for model in ("cae", "bvae", "vqvae")},
                "cae-ssim": Row("cae", "ssim"),
                "cae-maximum": Row("cae", "maximum"),
                "cae-spn-context": Row("cae", "context", "context"),
                "cae-background": Row("cae", "likelihood", "background"),
                **{f"cae-{label}": Row("cae", "likelihood", label) for label in ("mixture", "gaussian", "kde")},
                **{f"cae-{label}": Row("cae", "novelty", label) for label in ("svm", "forest", "lof", "som", "dbn")},
                "cvad": Row("cvad"),
                "deep_svdd": Row("deep_svdd", "distance"),
                "implicit_field": Row("implicit_field"),
                "mddpm": Row("mddpm"),
                "conditional_vae": Row("conditional_vae", "elbo"),
                "pca": Row("pca"),
                "lbp": Row("lbp", "distance"),
                "glcm": Row("glcm", "distance"),
            },
        ),
        _MIAS.lines[1],
    ),
    combined={
        "cae-spn-ratio": Combined("difference", ("cae-spn", "cae-background")),
        "spn-mean": Combined("mean", ("cae-spn", "bvae-spn", "vqvae-spn")),
        "spn-fisher": Combined("fisher", ("cae-spn", "bvae-spn", "vqvae-spn")),
        "scales": Combined("minimum", ("cae-spn", "specks-cae-spn")),
        "blobs-and-specks": Combined("minimum", ("relative-maximum", "specks-cae-spn")),
        "specks-and-latents": Combined("fisher", ("fine-top-hat", "specks-cae-spn", "cae-spn")),
        "everything": Combined("fisher", ("cae-spn", "bvae-spn", "relative-maximum", "specks-cae-spn", "fine-top-hat")),
    },
)

_COLOUR = {"channels": 3}
_SKIN_ROWS = {
    "cae": Row("cae"),
    "bvae": Row("bvae", "elbo"),
    "vqvae": Row("vqvae"),
    "fanogan": Row("fanogan"),
    **{f"{model}-spn": Row(model, "likelihood", "spn") for model in ("cae", "bvae", "vqvae")},
    "bvae-reconstruction": Row("bvae", "reconstruction"),
    "bvae-divergence": Row("bvae", "divergence"),
    "cae-ssim": Row("cae", "ssim"),
    "cae-maximum": Row("cae", "maximum"),
    **{f"cae-{label}": Row("cae", "likelihood", label) for label in ("mixture", "gaussian", "kde")},
    **{f"cae-{label}": Row("cae", "novelty", label) for label in ("svm", "forest", "lof", "som", "dbn")},
    "cvad": Row("cvad"),
    "deep_svdd": Row("deep_svdd", "distance"),
    "mddpm": Row("mddpm"),
    "pca": Row("pca"),
    "lbp": Row("lbp", "distance"),
    "glcm": Row("glcm", "distance"),
}


def _dermoscopy(name: str, epochs: int) -> Recipe:
    """Whole images of benign skin as patches, after Mukesh et al. 2022; malignant ones should score higher."""
    line = Line(
        name="",
        ingest=Ingest(dermoscopy.Preprocessing(), Sampling(1, 0.0, where="centre"), shard_patches=512),
        floors={name: (name, Aggregation()) for name in ("brightness", "local-deviation")},
        models={
            **{label: Model(_COLOUR) for label in ("cae", "bvae", "cvad", "deep_svdd", "mddpm", "pca", "lbp", "glcm")},
            "vqvae": Model({**_COLOUR, "padding": "same", "book": "ema"}),
            "fanogan": Model(_COLOUR, epochs=2 * epochs),
        },
        densities={
            "spn": Density({"inputs": 20, "replicas": 10}),
            **{label: Density(name=plugin) for label, plugin in _LATENT_DETECTORS.items()},
        },
        rows=_SKIN_ROWS,
        schedule=Schedule(epochs=epochs, batch=32),
        em=EM(),
    )
    return Recipe(
        name=name,
        dataset="isic",
        kinds=("malignant",),
        lines=(line,),
        combined={"spn-mean": Combined("mean", ("cae-spn", "bvae-spn", "vqvae-spn"))},
        step_mm=64.0,
        order=_FIRST,
        why="Sizes and rates of the mammograms' recipe; nothing was chosen on these images.",
    )


_RECIPES = {
    recipe.name: recipe
    for recipe in (_DEMO, _OWN, _MIAS, _DETECTORS, _dermoscopy("isic", epochs=60), _dermoscopy("ham10000", epochs=20))
}
