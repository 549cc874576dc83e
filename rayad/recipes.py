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

FLOORS = ("brightness", "relative-brightness", "top-hat")
"""Detectors that learn nothing; a trained one has to beat them."""


@dataclass(frozen=True)
class Recipe:
    """A data set, the detectors that are trained on it, and how they are compared."""

    name: str
    dataset: str
    kinds: tuple[str, ...]
    """Kinds of lesion, a row of the table each."""
    ingest: Ingest
    schedule: Schedule
    models: dict[str, dict[str, Any]]
    """Model -> fields of its Config that are not the defaults."""
    density: dict[str, Any]
    """Fields of the SPN's Config that are not the defaults."""
    em: EM
    aggregation: Aggregation = Aggregation()
    dataset_fields: dict[str, Any] = field(default_factory=dict)
    step_px: int = 8
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


_DEMO = Recipe(
    name="demo",
    dataset="phantom",
    dataset_fields={"patients": 60},
    kinds=("mass", "calcification"),
    ingest=Ingest(Preprocessing(intensity="relative"), Sampling(), shard_patches=1024),
    schedule=Schedule(epochs=6, patience=3),
    models={"cae": {}},
    density={"inputs": 20, "replicas": 20},
    em=EM(epochs=20),
)

_MIAS = Recipe(
    name="mias",
    dataset="mias",
    kinds=("mass", "calcification"),
    ingest=Ingest(Preprocessing(), Sampling(patches=240), shard_patches=2048),
    schedule=Schedule(epochs=40, patience=8),
    models={"cae": {}, "bvae": {}},
    density={},
    em=EM(),
)

_RECIPES = {recipe.name: recipe for recipe in (_DEMO, _MIAS)}
