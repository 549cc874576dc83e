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
            ingest=Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=2048),
            floors=FLOORS,
            models={"cae": {}, "bvae": {}},
            schedule=Schedule(epochs=6),
            density={},
            em=EM(),
        ),
        Line(
            name="specks",
            ingest=Ingest(Preprocessing(spacing_mm=0.2, intensity="specks"), Sampling(), shard_patches=2048),
            floors={"fine-top-hat": ("top-hat", Aggregation())},
            models={"cae": {}},  # the bVAE of this sparse picture collapses, with beta 0.1 and 0.01 alike
            schedule=Schedule(epochs=6),
            density={},
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

_RECIPES = {recipe.name: recipe for recipe in (_DEMO, _MIAS)}
