"""Whole runs: recipes from images to a report, and what there is to choose from."""

from dataclasses import dataclass, replace
from typing import Literal

import tyro

from rayad import catalog, recipes, storage
from rayad.cli.shared import ReadsImages, Settings, all_settings, place
from rayad.errors import OptionError
from rayad.options import Count, SpacingOrNone
from rayad.outputs import claimed
from rayad.pool import Workers
from rayad.terminal import say

OWN = "own"
"""The recipe for a data set that an option names."""


@dataclass(frozen=True, kw_only=True)
class Demo(ReadsImages):
    """The main job on synthetic mammograms, from nothing to the report, in minutes."""

    out: str = "demo"
    """Folder or URL for corpus, detectors and report."""
    workers: Workers = Workers()

    def __call__(self) -> None:
        _run(recipes.find("demo"), "", self.out, self, self.workers)


@dataclass(frozen=True, kw_only=True)
class Run(ReadsImages):
    """All stages of a recipe; stages that are done are not run again."""

    recipe: tyro.conf.Positional[str]
    """demo, mias, detectors, isic, ham10000; or own, for any data set of mammograms."""
    out: str
    """Folder or URL for corpus, detectors and report."""
    source: str = ""
    """Folder or URL of the recipe's data set; demo needs none."""
    dataset: str = ""
    """Data set of the recipe own: folder (the default), dicom, cbis_ddsm, ..."""
    settings: Settings = ()
    """Fields of that data set, such as healthy=true."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of the recipe own's images that do not say it."""
    workers: Workers = Workers()

    def __call__(self) -> None:
        recipe, settings = recipes.find(self.recipe), all_settings(self.settings, self.spacing_mm)
        if self.recipe == OWN:
            fields = dict(map(catalog.pair, settings))
            recipe = replace(recipe, dataset=self.dataset or recipe.dataset, dataset_fields=fields)
        elif self.dataset or settings:
            raise OptionError(f"recipe {self.recipe} has a data set and settings of its own; {OWN} takes any")
        _run(recipe, self.source, self.out, self, self.workers)


@dataclass(frozen=True, kw_only=True)
class Benchmark(ReadsImages):
    """A recipe with several seeds: the table with its spread over them; what is done is not run again."""

    recipe: tyro.conf.Positional[str]
    """detectors (every detector of the literature on mini-MIAS), isic, ham10000, mias or demo."""
    out: str
    """Folder or URL for corpora, detectors, scores and the report."""
    source: str = ""
    """Folder or URL of the recipe's data set; demo needs none."""
    seeds: Count = 3
    """Number of seeds with which everything that learns is trained."""
    split: Literal["test", "development"] = "test"
    """Split whose images are judged; development is for choices."""
    workers: Workers = Workers()

    def __call__(self) -> None:
        _run(recipes.find(self.recipe), self.source, self.out, self, self.workers, self.seeds, self.split)


@dataclass(frozen=True)
class List:
    """What rayad has: models, densities, datasets, preprocessings, scores and recipes, with their settings."""

    kind: tyro.conf.Positional[str] = ""
    """One of these, whose every setting is explained; empty: all of them, a line each."""

    def __call__(self) -> None:
        from rayad.listing import listed

        for line in listed(self.kind):
            say(line)


def _run(
    recipe: recipes.Recipe,
    source: str,
    out: str,
    where: ReadsImages,
    workers: Workers,
    seeds: int = 1,
    split: str = "test",
) -> None:
    """Run a recipe, and say where its report is."""
    from rayad.on_ray.pool import connected
    from rayad.pipeline.run import run_recipe

    images, url = place(source), storage.absolute(out)
    with claimed(url, "a run", [images]), connected(where.address, workers) as pool:
        report = run_recipe(pool, recipe, images, url, seeds, split)
    if report:
        say(f"The report is at {report}")
    else:
        say(f"No test image has a finding, so there is no report; the detectors are at {out}/detectors")
