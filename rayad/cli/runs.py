"""Whole runs: recipes from images to a report, and what there is to choose from."""

from dataclasses import dataclass
from typing import Literal

import tyro

from rayad import bounds, recipes, storage
from rayad.cli.shared import ReadsImages, all_settings, place
from rayad.errors import OptionError
from rayad.options import Count, Folds, Settings, SpacingOrNone
from rayad.outputs import claimed
from rayad.pipeline.requests import part
from rayad.pipeline.run import Changes, Data, RunRequest, rehearse, run_recipe
from rayad.pool import Workers
from rayad.terminal import say


@dataclass(frozen=True, kw_only=True)
class Demo(Changes, ReadsImages):
    """The main job on synthetic mammograms, from nothing to the report, in minutes."""

    out: str = "demo"
    """Folder or URL for corpus, detectors and report."""
    workers: Workers = Workers(number=1)

    def __call__(self) -> None:
        recipe = recipes.find("demo")
        request = RunRequest(recipe, Data(recipe.dataset, "", recipe.settings), changes=part(Changes, self))
        _run(request, self.out, self, self.workers)


@dataclass(frozen=True, kw_only=True)
class RunRecipe(Changes, ReadsImages):
    """All stages of a recipe; stages that are done are not run again."""

    recipe: tyro.conf.Positional[str]
    """demo, mias, detectors, ddsm, dermoscopy, isic, ham10000; own, for any data set of mammograms; or a Python
    file that defines one (docs/recipes.md)."""
    out: str
    """Folder or URL for corpora, detectors, scores and the report."""
    preset: str = ""
    """Settings of the recipe by name, of ddsm: paper, rayad, laptop; empty: the first."""
    source: str = ""
    """Folder or URL of the data set; demo needs none."""
    dataset: str = ""
    """Data set, such as dicom or cbis_ddsm; empty: the recipe's (of own: folder)."""
    settings: Settings = ()
    """Fields of the data set, such as healthy=true, beside the recipe's."""
    spacing_mm: SpacingOrNone = 0.0
    """Pixel spacing, mm, of images that do not state it; sets the data set's field of this name."""
    shares: Settings = ()
    """Shares of the patients in each split, such as train=0.9 validation=0.1, beside the recipe's (docs/data.md)."""
    test_source: str = ""
    """Folder or URL of other images to judge, such as CBIS-DDSM for ddsm; empty: the test split of the data set."""
    test_dataset: str = ""
    """Data set of those images; empty: the recipe's, or the same."""
    test_settings: Settings = ()
    """Fields of that data set."""
    selection: Settings = ()
    """Images to judge by the size of their lesions, such as mass=area calcification=box (docs/recipes.md)."""
    seeds: Count = 1
    """Number of seeds with which everything that learns is trained."""
    folds: Folds = 0
    """Parts of the healthy patients, each of which is judged by detectors that learned from the others, besides the
    usual run, so that all healthy patients are test patients (docs/recipes.md); 0: none."""
    workers: Workers = Workers()
    split: Literal["test", "development", "label-free"] = "test"
    """Split whose images are judged: test; development, for choices; or label-free, both, where nothing is chosen on
    diseased patients."""

    def __call__(self) -> None:
        _run(self._request(), self.out, self, self.workers)

    def _request(self) -> RunRequest:
        recipe = recipes.find(self.recipe, self.preset)
        recipe_settings = recipe.settings if self.dataset in ("", recipe.dataset) else ()
        settings = all_settings((*recipe_settings, *self.settings), self.spacing_mm)
        shares = (*recipe.shares, *self.shares)
        data = Data(self.dataset or recipe.dataset, place(self.source), settings, shares)
        if (self.test_dataset or self.test_settings) and not self.test_source:
            raise OptionError("--test-dataset and --test-settings need --test-source, the URL of the images to judge")
        if recipe.test_dataset and not self.test_source:
            raise OptionError(f"recipe {recipe.name} judges images of {recipe.test_dataset}: give their --test-source")
        test_dataset = self.test_dataset or recipe.test_dataset or data.dataset
        test_settings = recipe.test_settings if test_dataset == recipe.test_dataset else ()
        test_data = Data(test_dataset, place(self.test_source), (*test_settings, *self.test_settings))
        test = test_data if self.test_source else None
        if self.selection and not test:
            raise OptionError("--selection chooses among the images of --test-source, which is missing")
        return RunRequest(recipe, data, test, self.seeds, self.split, part(Changes, self), self.selection, self.folds)


@dataclass(frozen=True, kw_only=True)
class Benchmark(RunRecipe):
    """Run a recipe with several seeds; the table has the spread over them. Finished stages are not run again."""

    seeds: Count = 3
    """Number of seeds with which everything that learns is trained."""


@dataclass(frozen=True)
class List:
    """List what rayad has: models, densities, datasets, preprocessings, scores and recipes, with their settings."""

    kind: tyro.conf.Positional[str] = ""
    """One of these, whose every setting is explained; empty: all of them, a line each."""

    def __call__(self) -> None:
        from rayad.listing import listed

        for line in listed(self.kind):
            say(line)


def _run(request: RunRequest, out: str, command: ReadsImages, workers: Workers) -> None:
    """Run a recipe, and say where its report is."""
    from rayad.on_ray.pool import connected

    rehearse(request)  # what cannot be is said before Ray starts
    bounds.use(bounds.current().or_else(request.recipe.bounds))
    if request.changes.sentence:
        say(request.changes.sentence)
    url, inputs = storage.absolute(out), [request.data.source, request.test.source if request.test else ""]
    with claimed(url, "a run", inputs), connected(command.address, workers) as pool:
        report = run_recipe(pool, request, url)
    if report:
        say(f"The report is at {report}")
    else:
        say(f"No test image has a finding, so there is no report; the detectors are at {out}/detectors")
