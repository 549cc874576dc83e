"""Find what does not belong in medical images, learned from healthy images alone.

Every place is a folder, s3://bucket/key or memory://x. Exit codes: 0 done, 1 a stage failed, 2 the
command is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import io
import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import tyro

from rayad import bounds, catalog, local, log, options, storage
from rayad.bounds import Bounds
from rayad.datasets.exam import Excluded, Images, read_by, reasons
from rayad.density.em import EM
from rayad.density.kernel import cache
from rayad.errors import DatasetError, OptionError, RayadError
from rayad.fit import Schedule
from rayad.imaging import plausibility
from rayad.on_ray.few import ForMany
from rayad.on_ray.private import given, keep_private
from rayad.options import Amount, Count, GPUs, Millimetres, MillimetresOrNone, Port, Share, SpacingOrNone, Within
from rayad.outputs import claimed, require_apart
from rayad.patches.corpus import Corpus, Ingest
from rayad.patches.sample import Sampling
from rayad.pipeline.requests import Search, Strips
from rayad.pool import Pool, Workers
from rayad.recipes import Density
from rayad.scoring import bundle
from rayad.scoring.combine import Aggregation
from rayad.scoring.detector import STEP_MM, Detector
from rayad.serving.access import Access, Limits
from rayad.serving.settings import Listening, Replicas
from rayad.terminal import print_error, say, writable

T = TypeVar("T")
OWN = "own"
"""The recipe for a data set that an option names."""
Several = Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL [URL ...]")]
Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")]
Forced = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DOUBT ...")]


@runtime_checkable
class Command(Protocol):
    """A subcommand: its options, and what it does."""

    def __call__(self) -> None: ...


@runtime_checkable
class OnDataset(Protocol):
    """The options of a command that reads a data set."""

    @property
    def dataset(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def settings(self) -> tuple[str, ...]: ...
    @property
    def spacing_mm(self) -> float: ...


STOPPED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM
GOES_ON = "rayad: stopped; the same command goes on where it stopped"
NAMED = 10
"""Failures that are printed; manifest.json has all."""


@dataclass(frozen=True)
class Demo:
    """The main job on synthetic mammograms, from nothing to the report, in minutes."""

    out: str = "demo"
    """Where corpus, detectors and report go."""
    workers: Workers = Workers()
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        Run("demo", out=self.out, workers=self.workers, force=self.force, bounds=self.bounds, address=self.address)()


@dataclass(frozen=True)
class Run:
    """All stages of a recipe; stages that are done are not run again."""

    recipe: tyro.conf.Positional[str]
    """demo, mias, detectors, isic, ham10000; or own, for any data set of mammograms."""
    out: str
    """Where corpus, detectors and report go."""
    source: str = ""
    """Folder or URL of the recipe's data set; demo needs none."""
    dataset: str = ""
    """Of the recipe own: folder (which it takes if nothing is said), dicom, cbis_ddsm, ..."""
    settings: Settings = ()
    """Of the recipe own: fields of the data set, such as healthy=true."""
    spacing_mm: SpacingOrNone = 0.0
    """Of the recipe own: mm a pixel of images that do not say it."""
    workers: Workers = Workers()
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad import recipes
        from rayad.on_ray.pool import connected
        from rayad.pipeline.run import run_recipe

        recipe, source, out = recipes.find(self.recipe), _place(self.source), storage.absolute(self.out)
        if self.recipe == OWN:
            fields = dict(map(catalog.pair, _settings(self)))
            recipe = replace(recipe, dataset=self.dataset or recipe.dataset, dataset_fields=fields)
        elif self.dataset or _settings(self):
            raise OptionError(f"recipe {self.recipe} has a data set and settings of its own; {OWN} takes any")
        with claimed(out, "a run", [source]), connected(self.address, self.workers) as pool:
            report = run_recipe(pool, recipe, source, out)
        if report:
            say(f"The report is at {report}")
        else:
            say(f"No test image has a finding, so there is no report; the detectors are at {self.out}/detectors")


@dataclass(frozen=True)
class Benchmark:
    """A recipe with several seeds: the table with its spread over them; what is done is not run again."""

    recipe: tyro.conf.Positional[str]
    """detectors (every detector of the literature on mini-MIAS), isic, ham10000, mias or demo."""
    out: str
    """Where corpora, detectors, scores and the report go."""
    source: str = ""
    """Folder or URL of the recipe's data set; demo needs none."""
    seeds: Count = 3
    """How often everything that learns is trained."""
    split: str = "test"
    """test, or development for choices."""
    workers: Workers = Workers()
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad import recipes
        from rayad.on_ray.pool import connected
        from rayad.pipeline.run import run_recipe

        recipe, source, out = recipes.find(self.recipe), _place(self.source), storage.absolute(self.out)
        with claimed(out, "a run", [source]), connected(self.address, self.workers) as pool:
            report = run_recipe(pool, recipe, source, out, self.seeds, self.split)
        say(f"The report is at {report}")


@dataclass(frozen=True)
class List:
    """What rayad has: models, densities, datasets, preprocessings, scores and recipes, with their settings."""

    kind: tyro.conf.Positional[str] = ""
    """One of these, whose every setting is explained; empty: all of them, a line each."""

    def __call__(self) -> None:
        from rayad.listing import listed

        for line in listed(self.kind):
            say(line)


@dataclass(frozen=True)
class IngestCommand:
    """Images to a patch corpus of the healthy patients that one learns from."""

    dataset: str
    """A data set that rayad knows: mias, folder, phantom, ..."""
    out: str
    """Where the corpus goes."""
    source: str = ""
    """Folder or URL of the images; phantom needs none."""
    settings: Settings = ()
    """Fields of the data set, such as spacing_mm=0.05 or healthy=true."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of images that do not say it: the data set's setting of this name."""
    preprocessing: str = "mammogram"
    """What happens to an image before patches are cut from it: mammogram, dermoscopy."""
    picture: Settings = ()
    """Fields of the preprocessing, such as spacing_mm=0.2 or intensity=relative."""
    sampling: Sampling = Sampling()
    shard_patches: Count = 4096
    """Patches a shard, about; a shard holds whole images."""
    max_failures: Share = 0.01
    """Share of images that may fail before the corpus is refused."""
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline import stages

        dataset = _dataset(self)
        preprocessing = catalog.configure("imaging", self.preprocessing, self.picture)
        settings = Ingest(preprocessing, self.sampling, self.shard_patches, self.max_failures)
        out = storage.absolute(self.out)
        with claimed(out, "a corpus", read_by(dataset)), connected(self.address) as pool:
            corpus = stages.write_corpus(pool, self.dataset, self.source, dataset, settings, out)
        manifest = corpus.manifest
        patches, images, failed = manifest["patches"], manifest["images"], len(manifest["failures"])
        say(f"{patches} patches of {images} images, {failed} failed: {self.out}")
        for failure in manifest["failures"][:NAMED]:
            say(f"failed: {failure['reason']}")
        for row in reasons(Excluded(entry["url"], entry["sentence"]) for entry in manifest.get("doubtful", ())):
            say(f"doubtful: {row['count']} x {row['reason']}, such as {row['example']}")
        for row in reasons(Excluded(**entry) for entry in manifest.get("excluded", ())):
            say(f"left out: {row['count']} x {row['reason']}")


@dataclass(frozen=True)
class Inspect:
    """What a data set holds: counts, failures, masks, intensities, images that are in it twice; a page."""

    dataset: str
    """A data set that rayad knows: mias, dicom, folder, ..."""
    out: str
    """Where the page goes."""
    source: str = ""
    """Folder or URL of the images."""
    settings: Settings = ()
    """Fields of the data set, such as spacing_mm=0.05 or healthy=true."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of images that do not say it: the data set's setting of this name."""
    preprocessing: str = "mammogram"
    """What happens to an image before patches are cut from it: mammogram, dermoscopy, square."""
    picture: Settings = ()
    """Fields of the preprocessing, such as spacing_mm=0.2 or intensity=relative."""
    corpus: str = ""
    """URL of a corpus made from it: is it whole, and is no patient in two of its splits?"""
    sheet: Amount = 48
    """Images that are shown."""
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.inspect import inspect

        dataset = _dataset(self)
        preprocessing = catalog.configure("imaging", self.preprocessing, self.picture)
        out, corpus = storage.absolute(self.out), _place(self.corpus)
        with claimed(out, "an inspection", [*read_by(dataset), corpus]), connected(self.address) as pool:
            page, problems = inspect(pool, self.dataset, self.source, dataset, preprocessing, out, self.sheet, corpus)
        say(f"The page is at {page}")
        if problems:
            raise DatasetError(" ".join(problems))


@dataclass(frozen=True)
class Train:
    """A corpus to a detector that scores by reconstruction."""

    corpus: str
    """URL of the patch corpus."""
    out: str
    """Where the detector goes."""
    model: str = "cae"
    """An image model that rayad knows: cae, bvae, ..."""
    name: str = ""
    """Of the detector; empty: that of the model."""
    settings: Settings = ()
    """Fields of the model's Config, such as latents=32 or padding=same."""
    schedule: Schedule = Schedule()
    strips: Strips = Strips()
    workers: Workers = Workers()
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline import stages

        config = catalog.configure("models", self.model, self.settings)
        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        with claimed(out, "a detector", [corpus.url]), connected(self.address, self.workers) as pool:
            name = self.name or self.model
            stages.train_detector(pool, name, corpus, self.model, config, self.schedule, out, self.strips)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True)
class FitDensity:
    """A trained detector's latents to a detector that scores by likelihood."""

    detector: str
    """URL of the trained detector."""
    corpus: str
    """URL of the patch corpus."""
    out: str
    """Where the detector goes."""
    density: str = "spn"
    """A density that rayad knows: spn, mixture, ..."""
    name: str = ""
    """Of the detector; empty: the trained detector's and the density's, such as cae-spn."""
    settings: Settings = ()
    """Fields of the density's Config, such as replicas=20."""
    context: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """What it knows of a place: skin_mm, rel_row, rel_col, ring_density, image_density; scores are then in context."""
    smooth: bool = False
    """Fit it to the smoothest third of the patches alone: the background of a likelihood ratio."""
    classes: str = ""
    """Column of the index, such as density: a circuit of as many roots as it has values learns one for each."""
    em: EM = EM()
    workers: Workers = Workers()
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline import stages

        density = Density(self.settings, self.density, self.context, self.smooth, self.classes)
        detector = storage.absolute(self.detector)
        trained = bundle.load(detector)
        stages.density_config(density, stages.model_of(trained))  # what is wrong with it is said before Ray starts
        name = self.name or f"{trained.name}-{self.density}"
        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        with claimed(out, "a detector", [detector, corpus.url]), connected(self.address, self.workers) as pool:
            stages.fit_detector(pool, name, corpus, trained, density, self.em, out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True)
class Sweep:
    """Search settings of a density at a trained encoder, or of an image model, without labels."""

    corpus: str
    """URL of the patch corpus."""
    out: str
    """Folder of the sweep; one that was interrupted goes on."""
    space: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES ...")]
    """What is searched: depth=1,2,3 (choices), inputs=5..60 (numbers between), step=0.01..0.5:log."""
    detector: str = ""
    """URL of the trained detector whose latents a density is searched for."""
    model: str = ""
    """Or the image model whose fields are searched: bvae, conditional_vae."""
    density: str = "spn"
    """The density that is searched: spn, mixture."""
    name: str = ""
    """Of the sweep; empty: of what is searched."""
    settings: Settings = ()
    """Fields that are not searched and have not the defaults, such as min_variance=0.01."""
    classes: str = ""
    """Column of the index (density, view) whose values are the classes of a circuit with as many roots."""
    em: EM = EM()
    schedule: Schedule = Schedule(epochs=20)
    search: Search = Search()
    apply: bool = False
    """Train the winner: its detector goes to OUT/detector."""
    workers: Workers = Workers()
    """Of the winner's training."""
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected

        if bool(self.detector) == bool(self.model):
            raise OptionError("a sweep is over a density (--detector) or over an image model (--model), one of both")
        inputs = [_place(self.corpus), _place(self.detector)]
        with claimed(storage.absolute(self.out), "a sweep", inputs), connected(self.address, self.workers) as pool:
            summary = self._of_density(pool) if self.detector else self._of_model(pool)
        best, base = summary["seeds"]["best"], summary["seeds"]["base"]
        settings = ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in best["settings"].items()
        )
        means = ["-" if fitted["mean"] is None else f"{fitted['mean']:.4f}" for fitted in (best, base)]
        say(f"best of {len(summary['rows'])} trials: {settings}: {means[0]}, without a search {means[1]}")
        say(f"({summary['objective']}, means of {len(best['values'])} seeds)")
        for name, fitted in (("the best", best), ("without a search", base)):
            for seed, why in enumerate(fitted["errors"]):
                if why:
                    say(f"{name}: seed {seed} failed and is not in the mean: {why}")
        say(f"The page is at {storage.join(self.out, 'index.html')}")

    def _of_density(self, pool: Pool) -> dict[str, Any]:
        from rayad import search
        from rayad.on_ray import sweep
        from rayad.pipeline import stages, trial
        from rayad.pipeline.fit_density import Fit

        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        trained = bundle.load(storage.absolute(self.detector))
        model = stages.model_of(trained)
        density = Density(self.settings, self.density, classes=self.classes)
        fit = Fit(self.density, stages.density_config(density, model), self.em, classes=self.classes)
        latents = stages.latents_of(trained, corpus, out)
        task, data = trial.of_density(pool, model, fit, self.space, corpus.url, latents)
        summary = sweep.sweep(self.name or f"{trained.name}-{self.density}", task, data, self.search, out)
        if self.apply:
            parts = search.applied(task.parts, task.space, summary["best"]["settings"])
            winner = replace(density, fields=asdict(parts["density"]))
            url = storage.join(out, "detector")
            stages.fit_detector(pool, summary["name"], corpus, trained, winner, parts["em"], url, out)
        return summary

    def _of_model(self, pool: Pool) -> dict[str, Any]:
        from rayad import search
        from rayad.on_ray import sweep
        from rayad.pipeline import stages, trial

        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        config = catalog.configure("models", self.model, self.settings)
        task, data = trial.of_model(config, self.schedule, self.space, corpus.url)
        summary = sweep.sweep(self.name or self.model, task, data, self.search, out)
        if self.apply:
            parts = search.applied(task.parts, task.space, summary["best"]["settings"])
            model, schedule, url = parts["model"], parts["schedule"], storage.join(out, "detector")
            stages.train_detector(pool, summary["name"], corpus, self.model, model, schedule, url)
        return summary


@dataclass(frozen=True)
class Rescore:
    """A trained detector asked for another of its scores, or aggregated in another way."""

    detector: str
    """URL of the trained detector."""
    out: str
    """Where the new detector goes; it is not calibrated."""
    name: str
    """Of the new detector."""
    score: str = ""
    """One that the model has, or squared, maximum, ssim of its reconstruction; empty: the same as before."""
    aggregation: Aggregation = Aggregation()

    def __call__(self) -> None:
        from rayad.pipeline import stages

        detector, out = storage.absolute(self.detector), storage.absolute(self.out)
        trained = bundle.load(detector)
        rescored = stages.asked(trained, self.name, self.score or trained.score)
        with claimed(out, "a detector", [detector]):
            bundle.save(stages.aggregated(rescored, self.aggregation), out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True)
class Combine:
    """Several detectors to one, by how rare each one's score is in healthy validation patients."""

    detector: Several
    """URLs of the detectors; they may see different pictures of an image."""
    out: str
    """Where the new detector goes; it is not calibrated."""
    name: str
    """Of the new detector."""
    dataset: str
    """The data set whose validation patients are scored."""
    scores: str
    """Folder for their scores."""
    rule: str = "fisher"
    """fisher, minimum, mean, spread or difference."""
    source: str = ""
    """Folder or URL of the images; phantom needs none."""
    settings: Settings = ()
    """Fields of the data set."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of images that do not say it: the data set's setting of this name."""
    step_mm: Millimetres = 3.2
    """Distance of the scored places, mm."""
    gpu: GPUs = 0.0
    """GPUs of each process that scores, such as 1, or 0.25 where four share one; 0: CPUs alone."""
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline import stages

        urls = [storage.absolute(url) for url in self.detector]
        out, scores = storage.absolute(self.out), storage.absolute(self.scores)
        members = [bundle.load(url) for url in urls]
        dataset = _dataset(self)
        inputs = [*urls, *read_by(dataset)]
        require_apart(scores, inputs)
        with claimed(out, "a detector", inputs), connected(self.address, Workers(gpu=self.gpu)) as pool:
            bundle.save(stages.combined(pool, self.name, self.rule, members, dataset, self.step_mm, scores), out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True)
class Calibrate:
    """Give a detector its p-values, from healthy patients that serve nothing else."""

    detector: Several
    """URLs of detectors of one corpus; their bundles get the calibration."""
    dataset: str
    """A data set that rayad knows: mias, folder, phantom, ..."""
    scores: str
    """Folder for the scores of the calibration patients."""
    source: str = ""
    """Folder or URL of the images; phantom needs none."""
    settings: Settings = ()
    """Fields of the data set."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of images that do not say it: the data set's setting of this name."""
    step_mm: Millimetres = 3.2
    """Distance of the scored places, mm."""
    gpu: GPUs = 0.0
    """GPUs of each process that scores, such as 1, or 0.25 where four share one; 0: CPUs alone."""
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline import stages

        urls = [storage.absolute(url) for url in self.detector]
        dataset = _dataset(self)
        scores = storage.absolute(self.scores)
        require_apart(scores, [*urls, *read_by(dataset)])
        with ExitStack() as held:
            for url in urls:
                held.enter_context(claimed(url, "a detector", read_by(dataset)))
            with connected(self.address, Workers(gpu=self.gpu)) as pool:
                detectors = [bundle.load(url) for url in urls]
                done = stages.calibrate_detectors(pool, detectors, dataset, self.step_mm, scores)
            for one, url in zip(done, urls, strict=True):
                bundle.save(one, url)
        for one in done:
            patients = one.calibration.patients if one.calibration else 0
            say(f"{one.name}: calibrated on {patients} healthy patients, smallest p {1 / (patients + 1):.3g}")
        _warn_of_few(done)


@dataclass(frozen=True)
class Evaluate:
    """Detectors on a labelled data set: results.json, index.html."""

    detector: Several
    """URLs of detectors."""
    dataset: str
    """A data set that rayad knows: mias, folder, phantom, ..."""
    out: str
    """Where the report goes."""
    source: str = ""
    """Folder or URL of the images; phantom needs none."""
    settings: Settings = ()
    """Fields of the data set."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of images that do not say it: the data set's setting of this name."""
    split: str = "test"
    """test, or development for choices."""
    dense: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS ...")] = ()
    """Classes of tissue that count as dense, such as D; then figures are given for dense and other images apart."""
    step_mm: MillimetresOrNone = 0.0
    """Distance of the scored places, mm; 0: that of the detectors' calibration, which p-values are for."""
    max_failures: Amount = 0
    """Images that may fail before there is no result."""
    streamed: bool = False
    """For test sets of any size: workers count, and only the figures over places come out, as streamed.json."""
    gpu: GPUs = 0.0
    """GPUs of each process that scores, such as 1, or 0.25 where four share one; 0: CPUs alone."""
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or one made for this command."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.evaluate import Evaluation, evaluate
        from rayad.pipeline.streamed import streamed

        dataset = _dataset(self)
        urls, out = [storage.absolute(url) for url in self.detector], storage.absolute(self.out)
        detectors = [bundle.load(url) for url in urls]
        step_mm = self.step_mm or detectors[0].provenance.get("step_mm", STEP_MM)
        options = Evaluation(self.dataset, self.source, self.split, step_mm, self.max_failures, dense=self.dense)
        _warn_of_few(detectors)
        with (
            claimed(out, "a report", [*urls, *read_by(dataset)]),
            connected(self.address, Workers(gpu=self.gpu)) as pool,
        ):
            if self.streamed:
                _print_streamed(streamed(pool, detectors, dataset, options, out))
                return
            report = evaluate(pool, detectors, dataset, options, out)
        say(f"The report is at {report}")


def _print_streamed(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each detector and kind of lesion."""
    say(f"{'detector':24}{'lesion':16}{'images':>8}{'AUROC':>8}{'AP':>8}{'Dice':>8}")
    for row in rows:
        values = [row[name]["value"] for name in ("pixel_auc", "pixel_ap", "best_dice")]
        cells = "".join(f"{value:8.3f}" if value is not None else f"{'-':>8}" for value in values)
        say(f"{row['detector']:24}{row['lesion']:16}{row['images']:8}{cells}")


@dataclass(frozen=True)
class Heatmap:
    """Images to heatmaps: NAME.npz with scores and p-values, NAME.png with the overlay."""

    detector: str
    """URL of a detector."""
    images: Several
    """Images, folders of images, or tables (CSV, parquet) with columns url, spacing_mm and view."""
    out: str
    """Folder for the heatmaps."""
    spacing_mm: SpacingOrNone = 0.0
    """mm a pixel of images that do not tell it, as PNG, PGM, TIFF and JPEG: 0.2 for mini-MIAS."""
    view: str = ""
    """MLO, CC or empty, of images that do not tell it; in an MLO view the pectoral muscle is left out."""
    step_mm: MillimetresOrNone = 0.0
    """Distance of the scored places, mm; 0: that of the detector's calibration, which p-values are for."""
    picture: bool = True
    """Write NAME.png."""
    counterfactual: bool = True
    """Write what the image would look like if it were healthy, where the detector can say it: much of the time."""
    gpu: GPUs = 0.0
    """GPUs of each process that scores, such as 1, or 0.25 where four share one; 0: CPUs alone."""
    force: Forced = ()
    """Doubts about an image that are overruled: polarity, frame, size, depth, kind (docs/data.md)."""
    bounds: Bounds = field(default_factory=bounds.current)
    address: str = ""
    """Ray cluster; empty: RAY_ADDRESS, or for many images one made for this command."""

    def __call__(self) -> None:
        from rayad.heatmaps.drawing import Written
        from rayad.heatmaps.images import HeatmapRequest
        from rayad.pipeline.heatmap import write_heatmaps

        request = HeatmapRequest(self.spacing_mm, self.view, self.step_mm, self.force)
        written = Written(self.picture, self.counterfactual)
        images, out = [storage.absolute(url) for url in self.images], storage.absolute(self.out)
        one = bundle.load(storage.absolute(self.detector))
        _warn_of_few([one])
        number = failures = 0
        with claimed(out, "heatmaps", [storage.absolute(self.detector), *images]):
            for row in write_heatmaps(ForMany(self.address, Workers(gpu=self.gpu)), one, images, request, out, written):
                say(json.dumps(row))
                number, failures = number + 1, failures + ("reason" in row)
        if failures:
            raise RayadError(f"{failures} of {number} images failed; the others' heatmaps are in {self.out}")


def _warn_of_few(detectors: Sequence[Detector]) -> None:
    """Say of which detectors p-values say little."""
    for one in detectors:
        if one.calibration and one.calibration.few:
            say(f"rayad: detector {one.name} is {one.calibration.few}", sys.stderr)


@dataclass(frozen=True)
class Check:
    """Is a detector bundle whole, and are its numbers those of a detector?"""

    detector: Several
    """URLs of detectors."""

    def __call__(self) -> None:
        from rayad.scoring.check import faults

        faulty = 0
        for url in self.detector:
            bundle_faults = faults(storage.absolute(url))
            for fault in bundle_faults:
                say(f"{url}: {fault}", sys.stderr)
            faulty += bool(bundle_faults)
            if not bundle_faults:
                say(f"{url}: {bundle.load(storage.absolute(url)).summary()}")
        if faulty:
            raise RayadError(f"{faulty} of {len(self.detector)} detectors are not what docs/formats.md says")


@dataclass(frozen=True)
class Report:
    """The page of a report again, from its results.json alone."""

    results: str
    """Folder or URL that holds results.json."""

    def __call__(self) -> None:
        from rayad.evaluation import report

        say(f"The report is at {report.rebuild(storage.absolute(self.results))}")


@dataclass(frozen=True)
class Dashboard:
    """Runs, sweeps and faults below some folders as a page, with the tools that show the rest; until Ctrl-C."""

    root: Several
    """Folders or URLs whose runs, sweeps and corpora are shown; Optuna's dashboard and TensorBoard need local ones."""
    port: Port = 0
    """Of the page, on 127.0.0.1; TensorBoard, Prometheus and Optuna's dashboards take those behind it. 0: free ones."""
    discovery: str = "/tmp/ray/prom_metrics_service_discovery.json"
    """The list of metric ports that a Ray cluster keeps in its --temp-dir, for Prometheus."""

    def __call__(self) -> None:
        from rayad.dashboard.serve import show

        show([storage.absolute(root) for root in self.root], self.port, os.path.abspath(self.discovery))


@dataclass(frozen=True)
class Serve:
    """Detectors over HTTP, with a viewer in the browser; until Ctrl-C. For research use only."""

    detector: Several
    """URLs of detectors, or NAME=URL; the first is the default."""
    read: Several = ()
    """Prefixes of URLs from which images may be fetched, such as s3://hospital/inbox/."""
    write: Several = ()
    """Prefixes of URLs below which batches may write their results."""
    state: str = ""
    """Folder or URL in which batches are remembered over restarts."""
    audit: str = ""
    """File to which every request adds a line of JSON, without patients' data."""
    listening: Listening = Listening()
    access: Access = Access()
    limits: Limits = Limits()
    bounds: Bounds = field(default_factory=bounds.current)
    replicas: Replicas = Replicas()
    address: str = ""
    """Of a running Ray cluster; empty: one of this command's own."""

    def __call__(self) -> None:
        from rayad.on_ray.serve import Service
        from rayad.on_ray.server import run
        from rayad.serving.cards import named
        from rayad.serving.tokens import from_environment

        def here(file: str) -> str:
            return storage.absolute(file) if file else ""

        listening = replace(self.listening, certificate=here(self.listening.certificate), key=here(self.listening.key))
        hosts = (*self.access.hosts, listening.name)  # the service is asked by what it prints
        service = Service(
            detectors=named(self.detector),
            read=tuple(self.read),
            write=tuple(self.write),
            audit=here(self.audit),
            state=here(self.state),
            listed=from_environment(),
            access=replace(self.access, tokens=here(self.access.tokens), hosts=hosts),
            limits=self.limits,
            bounds=self.bounds,
            replicas=self.replicas,
        )
        run(service, listening, self.address)


@dataclass(frozen=True)
class Watch:
    """Score the mammograms that arrive in an archive (DICOMweb), and store what was found there; until Ctrl-C."""

    pacs: str
    """The archive's DICOMweb root; DICOMWEB_TOKEN, or DICOMWEB_USER and DICOMWEB_PASSWORD, let in."""
    server: str = "http://127.0.0.1:8000"
    """Where `rayad serve` answers; its token is in RAYAD_TOKEN."""
    detector: str = ""
    """Name of a detector there; empty: the default."""
    poll_s: Annotated[float, Within(0.1, 86_400)] = 30.0
    """Seconds from one search to the next."""
    days: Annotated[int, Within(0, 36_500)] = 0
    """Only studies of so many days; 0: of any age."""
    once: bool = False
    """End when every image has its objects or cannot have them."""

    def __call__(self) -> None:
        from rayad.serving.watch import watch

        token = os.environ.get("RAYAD_TOKEN", "")
        options = {"token": token, "detector": self.detector, "poll_s": self.poll_s, "days": self.days}
        say(str(watch(self.pacs, self.server, once=self.once, **options)))


@dataclass(frozen=True)
class Token:
    """A new token for `rayad serve`: its hash is added to a file, the token is printed once."""

    name: str
    """Of who gets it: letters, digits and _.@-"""
    file: str
    """The list, made if it is not there."""

    def __call__(self) -> None:
        from rayad.serving.tokens import new_token

        say(new_token(self.name, self.file))


COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "run": Run,
    "benchmark": Benchmark,
    "list": List,
    "inspect": Inspect,
    "ingest": IngestCommand,
    "train": Train,
    "fit-density": FitDensity,
    "sweep": Sweep,
    "rescore": Rescore,
    "combine": Combine,
    "calibrate": Calibrate,
    "evaluate": Evaluate,
    "report": Report,
    "heatmap": Heatmap,
    "check": Check,
    "dashboard": Dashboard,
    "serve": Serve,
    "watch": Watch,
    "token": Token,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code.

    What it writes is for its owner alone, or as RAYAD_UMASK says. When nobody reads what it prints any more, it ends
    with 141, as other tools do.
    """
    received: list[int] = []
    signal.signal(signal.SIGTERM, partial(_interrupt, received))
    sys.excepthook = print_error
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")  # whatever the locale, no name is a UnicodeEncodeError
    try:
        code = _code(sys.argv[1:] if argv is None else list(argv))
        for stream in _streams():
            stream.flush()
    except BrokenPipeError:
        closed = [stream for stream in _streams() if _is_closed(stream)]
        if not closed:
            raise
        for stream in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python complains of what is not written
        code = 128 + signal.SIGPIPE
    sys.exit(TERMINATED if code == STOPPED and received else code)


def _code(argv: list[str]) -> int | str | None:
    """The exit code of a command, however it ends."""
    try:
        os.umask(local.umask())
        _keep_torch_cache()
        return run(argv)
    except OptionError as error:
        say(f"rayad: {error}", sys.stderr)
        return 2
    except SystemExit as end:  # tyro has answered --help, or said what is wrong
        return end.code
    except KeyboardInterrupt:  # again, while it ended
        return STOPPED


def _keep_torch_cache() -> None:
    """Let torch keep its cache in the user's: it would make a temporary folder, which stays after a kill."""
    with suppress(OSError):  # a home that cannot be written
        folder = cache() / "torch"
        folder.mkdir(exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _interrupt(received: list[int], number: int, frame: FrameType | None) -> None:
    """As Ctrl-C: Ray's waiting calls let a KeyboardInterrupt through, but make of SystemExit an end without a word."""
    received.append(number)
    raise KeyboardInterrupt


def _streams() -> list[io.TextIOWrapper]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


def _is_closed(stream: io.TextIOWrapper) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def run(argv: list[str]) -> int:
    """Run a command; the exit code. What goes wrong on purpose is one line on standard error.

    What a command prints is also copied to a file below RAYAD_LOG_URL, where that is set.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    name = next(iter(argv), "")
    where = os.environ.get("RAYAD_LOG_URL", "") if name in COMMANDS else ""
    with log.copied(where, name):
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        command = _parsed(argv)
        if not given(getattr(command, "address", "")):
            keep_private()
        bounds.use(getattr(command, "bounds", bounds.current()))
        plausibility.use(getattr(command, "force", ()))
        command()
    except RayadError as error:
        say(f"rayad: {error}", sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    except KeyboardInterrupt:
        say(GOES_ON, sys.stderr)
        return STOPPED
    except SystemExit as end:
        if end.code != signal.SIGTERM:  # Ray's answer to it, while it starts
            raise
        say(GOES_ON, sys.stderr)
        return TERMINATED
    return 0


def _parsed(argv: list[str]) -> Command:
    """The command with its options; OptionError where a number is none that the option can have."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), writable():
            command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=argv, prog="rayad", description=__doc__)
    except SystemExit:
        for line in complaint.getvalue().splitlines():
            say(line, sys.stderr)
        raise
    options.check(command, lambda name: f"--{name.replace('_', '-')}")
    return command


def _settings(command: OnDataset) -> tuple[str, ...]:
    """The data set's settings, the spacing among them."""
    spacing = (f"spacing_mm={command.spacing_mm!r}",) if command.spacing_mm else ()
    return (*spacing, *command.settings)


def _dataset(command: OnDataset) -> Images:
    """The data set that a command reads."""
    from rayad.pipeline import stages

    return stages.open_dataset(command.dataset, _place(command.source), _settings(command))


def _place(source: str) -> str:
    return storage.absolute(source) if source else ""


if __name__ == "__main__":
    main()
