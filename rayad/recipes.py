"""Named runs: every row of the README's tables is one of these, whole and in one place."""

from dataclasses import dataclass, field
from typing import Any

from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.imaging.mammogram import Preprocessing
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.scoring.combine import Aggregation


@dataclass(frozen=True)
class Line:
    """Detectors that see the same picture of an image: one corpus, and what is learned from it."""

    name: str
    """Of the corpus; "" or a word that is put before the names of the detectors."""
    ingest: Ingest
    floors: dict[str, tuple[str, Aggregation]]
    """Detectors that learn nothing, which a trained one has to beat: name -> score and its aggregation."""
    models: dict[str, dict[str, Any]]
    """Model -> fields of its Config that are not the defaults."""
    schedule: Schedule
    density: dict[str, Any]
    """Fields of the SPN's Config that are not the defaults."""
    em: EM
    aggregation: Aggregation = Aggregation()
    """Of the likelihoods."""


@dataclass(frozen=True)
class Recipe:
    """A data set, the detectors that are trained on it, and how they are compared."""

    name: str
    dataset: str
    kinds: tuple[str, ...]
    """Kinds of lesion, a row of the table each."""
    lines: tuple[Line, ...]
    dataset_fields: dict[str, Any] = field(default_factory=dict)
    step_mm: float = 3.2
    """Distance of the scored places."""
    why: str = ""
    """How the settings were chosen."""


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
            models={"cae": {}},
            schedule=Schedule(epochs=6, patience=3),
            density={"inputs": 20, "replicas": 10},
            em=EM(epochs=20),
            aggregation=SMOOTH,
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
            ingest=Ingest(Preprocessing(intensity="relative"), Sampling(patches=150, contour=0.0), shard_patches=2048),
            floors=FLOORS,
            models={"cae": {}, "bvae": {}},
            schedule=Schedule(epochs=6),
            density={"inputs": 20, "replicas": 10},
            em=EM(),
            aggregation=SMOOTH,
        ),
        Line(
            name="specks",
            ingest=Ingest(
                Preprocessing(spacing_mm=0.2, intensity="specks"),
                Sampling(patches=150, contour=0.0),
                shard_patches=2048,
            ),
            floors={"fine-top-hat": ("top-hat", Aggregation())},
            models={"cae": {}},  # the bVAE of this sparse picture collapses, with beta 0.1 and 0.01 alike
            schedule=Schedule(epochs=6),
            density={"inputs": 20, "replicas": 10},
            em=EM(),
        ),
    ),
    why=(
        "Choices were made on another split of these patients, which shares images with this test half "
        "(docs/method.md): the picture "
        "that models see (relative: a density is two-sided, but lesions are bright, so what is darker than its "
        "surroundings is set to zero; specks: only what a top-hat leaves), the resolution, no contour patches, the "
        "number of epochs and the smoothing of likelihoods."
    ),
)

_RECIPES = {recipe.name: recipe for recipe in (_DEMO, _MIAS)}
