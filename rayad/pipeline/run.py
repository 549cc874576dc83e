"""A whole run: the stages strung together by a recipe, then calibration, evaluation and the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from rayad import catalog, storage
from rayad.bounds import Bounds
from rayad.datasets.content import contents
from rayad.datasets.exam import Images, listed
from rayad.datasets.exams import Dataset as ListOfImages
from rayad.datasets.exams import listed_once
from rayad.datasets.exams import write as write_list
from rayad.datasets.splits import EVERY, assign, divided, division
from rayad.errors import OptionError
from rayad.fingerprint import fingerprint
from rayad.imaging.context import CONTEXT
from rayad.options import Amount, Folds, MillimetresOrNone, PatchSideOrNone, Settings
from rayad.patches.corpus import Corpus, Ingest
from rayad.pipeline.adjust import adjust_detectors
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.combine import combine
from rayad.pipeline.detectors import (
    aggregated,
    alike,
    asked,
    floor_detector,
    model_of,
    origin_of,
    preprocessing_of,
    saved,
)
from rayad.pipeline.evaluate import Evaluation, evaluate
from rayad.pipeline.fit_density import density_config, fit_detector, score_of
from rayad.pipeline.folds import add_folds, announce
from rayad.pipeline.ingest import write_corpus
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.score import in_split
from rayad.pipeline.selection import readings_of, select
from rayad.pipeline.train import model_config, train_detector
from rayad.pool import Here, Pool
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.combine import PLAIN, Aggregation
from rayad.scoring.detector import Combined, Detector, Taught
from rayad.scoring.rule import parse
from rayad.scoring.scores import LatentScore, ModelScore, Part, scores_of
from rayad.terminal import say, warn_once


@dataclass(frozen=True)
class Data:
    """A data set, and where it lies."""

    dataset: str
    """Name of the plug-in."""
    source: str = ""
    """Folder or URL of the images."""
    settings: Settings = ()
    """Fields of the data set that are not the defaults."""
    shares: Settings = ()
    """Shares of the patients in each split that are not the usual ones."""

    def opened(self) -> Images:
        """Its images; OptionError where a setting is none of the data set's."""
        images = catalog.configure("datasets", self.dataset, [f"source={self.source}", *self.settings])
        return divided(images, division(self.shares))


@dataclass(frozen=True)
class Changes:
    """Settings that override those of a recipe."""

    epochs: Amount = 0
    """Epochs of every image model, which may then collapse with a warning; 0: the recipe's."""
    density_epochs: Amount = 0
    """Epochs of expectation-maximization of every density; 0: the recipe's."""
    picture: Settings = ()
    """Fields of every preparation of an image, such as spacing_mm=0.8."""
    patch_px: PatchSideOrNone = 0
    """Side of the patches of every corpus, px; 0: the recipe's."""
    step_mm: MillimetresOrNone = 0.0
    """Distance of the scored places, mm; 0: the recipe's."""
    rule: str = ""
    """Rule by which an image is abnormal: sd=3, quantile=0.95, fpr=0.05 or score=12.5; empty: none is said."""
    max_failures: Amount = 0
    """Images of a split that may fail to be scored before there is no result."""

    @property
    def sentence(self) -> str:
        """What is other than the recipe says; empty: nothing."""
        settings = zip(catalog.settings_of(self), fields(self), strict=True)
        changed = [text for text, field in settings if getattr(self, field.name) != field.default]
        return f"Other than the recipe says: {', '.join(changed)}." if changed else ""


NO_CHANGES = Changes()


class Run:
    """The stages of a recipe with one seed. What is done is not done again.

    Below its URL lie ``exams.parquet``, ``corpus``, ``models``, ``latents``, ``densities``, ``adjusted``,
    ``detectors`` and ``scores``; what is learned with another seed than 0 goes below ``seed-1`` and so on.
    """

    def __init__(
        self, pool: Pool, data: Data, url: str, seed: int = 0, step_mm: float = 3.2, changes: Changes = NO_CHANGES
    ) -> None:
        """With the images of `data`, whose healthy patients are learned from, places `step_mm` apart."""
        self.pool, self.data, self.url, self.seed, self.step_mm, self.changes = pool, data, url, seed, step_mm, changes
        self._names: dict[str, str] = {}  # URL of a corpus -> its name
        self._pictures: dict[str, str] = {}  # content of a corpus -> its name
        self.corpora: dict[str, Corpus] = {}
        """Content -> corpus, of those that were asked for."""

    @cached_property
    def dataset(self) -> Images:
        """The images, listed once."""
        return listed_once(self.data.opened(), self.url)

    def corpus(self, ingest: Ingest, name: str = "") -> Corpus:
        """Healthy patches as one preparation of images gives them.

        Args:
            name: of the corpus, where a recipe has several; what is learned from it is called by it.
        """
        url = storage.join(self.url, "-".join(filter(None, ["corpus", name])))
        corpus = self._ingested(self._changed(ingest), url)
        self._names[corpus.url] = self._pictures[corpus.manifest["content"]] = name
        self.corpora[corpus.manifest["content"]] = corpus
        return corpus

    def floor(self, corpus: Corpus, score: str, name: str = "", aggregation: Aggregation = PLAIN) -> Detector:
        """A detector that learns nothing, by one of `floors.MAPS`."""
        return aggregated(floor_detector(name or score, score, corpus), aggregation)

    def train(self, corpus: Corpus, request: TrainRequest, name: str = "") -> Detector:
        """A model that is trained on a corpus's patches.

        Args:
            name: of the model; "": that of the plug-in.
        """
        epochs = self.changes.epochs or request.schedule.epochs
        collapse = "warning" if self.changes.epochs else request.schedule.collapse
        schedule = replace(request.schedule, seed=self.seed, epochs=epochs, collapse=collapse)
        name = name or request.model
        return self._trained(name, corpus, replace(request, schedule=schedule), self._at(corpus, "models", name))

    def fit(self, corpus: Corpus, trained: Detector, request: DensityRequest, name: str = "") -> Detector:
        """A trained model with a density that is fitted to its latents of a corpus's patches.

        Args:
            name: of the density; "": that of the plug-in.
        """
        epochs = self.changes.density_epochs or request.em.epochs
        request = replace(request, em=replace(request.em, seed=self.seed, epochs=epochs))
        name = name or request.density
        density_url, latents_url = (
            self._at(corpus, "densities", trained.name, name),
            self._at(corpus, "latents", trained.name),
        )
        return self._fitted(name, corpus, trained, request, density_url, latents_url)

    def ask(self, detector: Detector, name: str, score: str = "", aggregation: Aggregation = PLAIN) -> Detector:
        """A detector of the table: one that was learned, asked for one of its scores.

        Args:
            score: "": the first that it has.
        """
        return aggregated(asked(detector, name, score or detector.score.name), aggregation)

    def combine(self, name: str, rule: str, members: Sequence[Detector], aggregation: Aggregation = PLAIN) -> Detector:
        """A detector whose score combines those of others, by one of `combine.RULES`."""
        return aggregated(self._combined(name, rule, members), aggregation)

    def adjust(self, detectors: Mapping[str, tuple[Detector, float]]) -> list[Detector]:
        """Detectors whose scores are adjusted for the place, which healthy training images teach.

        Args:
            detectors: name of the adjusted detector -> one, and the standard deviation of its smoothing, mm.
        """
        smoothings = {name: Aggregation("gaussian", smooth_mm) for name, (_, smooth_mm) in detectors.items()}
        by_name: dict[str, Detector] = {}
        for group in alike([replace(detector, name=name) for name, (detector, _) in detectors.items()]):
            by_name |= {d.name: d for d in self._adjusted(group, [smoothings[d.name] for d in group])}
        return [by_name[name] for name in detectors]

    def calibrated(self, detectors: Sequence[Detector]) -> list[Detector]:
        """With their p-values, saved; those that have them already are loaded."""
        by_name: dict[str, Detector] = {}
        for group in [*alike([d for d in detectors if not d.members]), *([d] for d in detectors if d.members)]:
            by_name |= {d.name: d for d in self._calibrated(group)}
        return [by_name[d.name] for d in detectors]

    def heading(self, detector: Detector) -> str:
        """The heading under which the table has a detector."""
        of_members = {Combined: "Combined", Taught: "Taught by labels"}.get(type(detector.score))
        if of_members:
            return of_members
        learned = {ModelScore: "Image models", LatentScore: "Latents"}.get(type(detector.score), "Learn nothing")
        return ", ".join(filter(None, [learned, self._pictures[detector.origin("corpus")]]))

    def _changed(self, ingest: Ingest) -> Ingest:
        changes = dict(map(catalog.pair, self.changes.picture))
        kind = catalog.described(ingest.preprocessing)["kind"]
        settings = dict(map(catalog.pair, catalog.settings_of(ingest.preprocessing))) | changes
        preprocessing = catalog.configure("imaging", kind, settings) if changes else ingest.preprocessing
        patch_px = self.changes.patch_px or ingest.sampling.patch_px
        return replace(ingest, preprocessing=preprocessing, sampling=replace(ingest.sampling, patch_px=patch_px))

    def _ingested(self, ingest: Ingest, url: str) -> Corpus:
        return write_corpus(self.pool, self.data.dataset, self.data.source, self.dataset, ingest, url)

    def _trained(self, name: str, corpus: Corpus, request: TrainRequest, url: str) -> Detector:
        return train_detector(self.pool, name, corpus, request, url)

    def _fitted(
        self, name: str, corpus: Corpus, trained: Detector, request: DensityRequest, url: str, latents: str
    ) -> Detector:
        return fit_detector(self.pool, name, corpus, trained, request, url, latents)

    def _combined(self, name: str, rule: str, members: Sequence[Detector]) -> Detector:
        scores_url = storage.join(self.url, "scores")
        failures = self.changes.max_failures
        return combine(self.pool, name, rule, members, self.dataset, self.step_mm, scores_url, failures)

    def _adjusted(self, detectors: Sequence[Detector], smoothings: Sequence[Aggregation]) -> list[Detector]:
        urls = [storage.join(self._home, "adjusted", d.name) for d in detectors]
        failures = self.changes.max_failures
        return adjust_detectors(self.pool, detectors, smoothings, self.dataset, self.step_mm, urls, failures)

    def _calibrated(self, detectors: Sequence[Detector]) -> list[Detector]:
        urls = [self.bundle_url(detector) for detector in detectors]
        ready = [saved(d, url) for d, url in zip(detectors, urls, strict=True)]
        scores_url, failures = storage.join(self.url, "scores"), self.changes.max_failures
        calibrated = calibrate_detectors(self.pool, ready, self.dataset, self.step_mm, scores_url, failures)
        calibrated = [d.ruled(self.changes.rule) if self.changes.rule else d for d in calibrated]
        for before, after, url in zip(ready, calibrated, urls, strict=True):
            is_saved = before.calibration is after.calibration and before.rule == after.rule
            if not is_saved:
                bundle.save(after, url)
            if after.calibration and after.calibration.few:
                warn_once(f"detectors are {after.calibration.few}")
        return calibrated

    def bundle_url(self, detector: Detector) -> str:
        """URL of the bundle of a calibrated detector."""
        return storage.join(self._home, "detectors", detector.name)

    @property
    def _home(self) -> str:
        """Where what depends on the seed lies."""
        return storage.join(self.url, f"seed-{self.seed}") if self.seed else self.url

    def _at(self, corpus: Corpus, kind: str, *names: str) -> str:
        return storage.join(self._home, kind, "-".join(filter(None, [self._names[corpus.url], *names])))


class _Rehearsal(Run):
    """A run without images: the same detectors, which learned nothing."""

    def __init__(self, request: "RunRequest") -> None:
        if request.changes.rule:
            parse(request.changes.rule)
        super().__init__(Here(), request.data, "", 0, request.step_mm, request.changes)
        request.data.opened()

    def _ingested(self, ingest: Ingest, url: str) -> Corpus:
        return Corpus(url, {"content": url, "dataset": self.data.dataset, "parameters": ingest.described()})

    def _trained(self, name: str, corpus: Corpus, request: TrainRequest, url: str) -> Detector:
        config, preprocessing = model_config(request, corpus), preprocessing_of(corpus)
        model = Part(request.model, config, config.build().eval())
        origin = origin_of(corpus, name, request.schedule)
        return Detector(name, ModelScore(model, scores_of(model)[0]), preprocessing, provenance=origin)

    def _fitted(
        self, name: str, corpus: Corpus, trained: Detector, request: DensityRequest, url: str, latents: str
    ) -> Detector:
        if unknown := [fact for fact in request.context if fact not in CONTEXT]:
            raise OptionError(f"density {name}: a context is of {', '.join(CONTEXT)}; not {unknown[0]!r}")
        model = model_of(trained)
        config, variables = density_config(request, model), model.module.latents + len(request.context)
        density = Part(request.density, config, config.build(variables).eval(), variables)
        return replace(trained, name=name, score=score_of(model, density, request))

    def _adjusted(self, detectors: Sequence[Detector], smoothings: Sequence[Aggregation]) -> list[Detector]:
        return list(detectors)

    def _combined(self, name: str, rule: str, members: Sequence[Detector]) -> Detector:
        healthy = calibrate({"": [np.arange(4.0).reshape(2, 2)]})
        score = Combined(rule, tuple(member.calibrated(healthy) for member in members))
        return Detector(name, score, members[0].preprocessing, provenance=members[0].provenance)


@dataclass(frozen=True)
class Recipe:
    """A run that can be asked for by name: a data set, detectors, and how they are compared."""

    name: str
    detectors: Callable[[Run], Sequence[Detector]]
    """Makes the detectors of the table with the stages of a run; its docstring says what they are."""
    dataset: str = "folder"
    """Data set whose healthy patients are learned from, and whose images are judged where no others are given."""
    settings: Settings = ()
    """Fields of the data set."""
    shares: Settings = ()
    """Shares of the patients in each split that are not the usual ones."""
    preset: str = ""
    """Name of these settings, where recipes of one name differ in nothing else."""
    test_dataset: str = ""
    """Another data set whose images are judged; empty: the test images are those of `dataset`."""
    test_settings: Settings = ()
    """Fields of that data set."""
    test_split: str = EVERY
    """Split of that data set that is judged."""
    selection: Settings = ()
    """Kind of lesion and reading of the paper's test images (rayad/pipeline/selection.py); none: all are judged."""
    kinds: tuple[str, ...] = ()
    """Kinds of lesion, a row of the table each; none: those of the test images."""
    step_mm: float = 3.2
    """Distance of the scored places."""
    order: tuple[str, ...] = ()
    """Detectors that stand first in the table, in this order."""
    first: str = ""
    """Heading under which those stand."""
    dense: tuple[str, ...] = ()
    """Classes of tissue that count as dense, where the data set has classes: then figures are given for both."""
    compare: tuple[tuple[str, str], ...] = ()
    """Which detectors are tested against each other; none: see `pipeline.evaluate.pairs`. More tests, less power."""
    literature: tuple[dict[str, Any], ...] = ()
    """Figures that others reported, on other data."""
    why: str = ""
    """How the settings were chosen."""
    bounds: Bounds = field(default_factory=Bounds)
    """What one of its images may take, where the command does not say otherwise."""

    @property
    def docstring(self) -> str:
        """What its detectors are, in the words of the function that makes them."""
        return getattr(self.detectors, "func", self.detectors).__doc__ or ""


@dataclass(frozen=True)
class RunRequest:
    """A recipe, its images, and what is other than it says."""

    recipe: Recipe
    data: Data
    test: Data | None = None
    """Other images to judge, all that have a label or the recipe's `test_split`; None: the split of `data`."""
    seeds: int = 1
    """How often everything that learns is trained; the table is of seed 0, with the spread over the others."""
    split: str = "test"
    """Whose images of `data` are judged: test, or development for choices."""
    changes: Changes = field(default_factory=Changes)
    selection: Settings = ()
    """Readings of the paper's test images that override the recipe's."""
    folds: Folds = 0
    """Parts of the healthy patients, each of which is judged by detectors that learned from the others; 0: none."""

    def __post_init__(self) -> None:
        if self.folds and (self.test or self.seeds > 1 or self.split == "development"):
            raise OptionError(
                "folds are of the healthy patients of one data set: they go with no other images to judge, no seeds "
                "and no split for choices"
            )

    def of_fold(self, fold: int) -> "RunRequest":
        """The same, where one of the folds tests."""
        data = replace(self.data, shares=(*self.data.shares, f"folds={self.folds}", f"fold={fold}"))
        return replace(self, data=data, folds=0)

    @property
    def readings(self) -> dict[str, str]:
        """Kind of lesion -> reading by which images of `test` are judged; none: all are."""
        own = self.recipe.selection if self.test and self.test.dataset == self.recipe.test_dataset else ()
        return dict(map(catalog.pair, (*own, *self.selection)))

    @property
    def step_mm(self) -> float:
        """Distance of the scored places."""
        return self.changes.step_mm or self.recipe.step_mm

    @property
    def first(self) -> str:
        """Heading of the detectors that stand first; it says so where they are not what the recipe makes."""
        first, is_changed = self.recipe.first, replace(self.changes, rule="") != NO_CHANGES
        return f"{first}, but for what the notes say" if first and is_changed else first

    @property
    def judged_split(self) -> str:
        """Whose images are judged."""
        if not self.test:
            return self.split
        return self.recipe.test_split if self.test.dataset == self.recipe.test_dataset else EVERY


def run_recipe(pool: Pool, request: RunRequest, url: str) -> str:
    """Run all stages that are not done; return the URL of the report's page, "" if there is nothing to report.

    There is nothing where the recipe names no kind of lesion and no image that is judged has a finding.

    Args:
        url: where everything goes: what `Run` makes, and ``report``; of folds below ``fold-0`` and so on. What cannot
            be, `rehearse` says beforehand.
    """
    if request.folds:
        divisions = [division(request.of_fold(fold).data.shares) for fold in range(request.folds)]
        announce(listed(Run(pool, request.data, url).dataset)[0], divisions)
    pages = [
        run_recipe(pool, request.of_fold(fold), storage.join(url, f"fold-{fold}")) for fold in range(request.folds)
    ]
    page = _run(pool, request, url)
    if page and pages:
        add_folds(_folder(page), [_folder(fold_page) for fold_page in pages])
    return page


def _folder(page: str) -> str:
    return page.rpartition("/")[0]


def _run(pool: Pool, request: RunRequest, url: str) -> str:
    """The stages of all patients, or of one fold."""
    recipe = request.recipe
    seeds = [Run(pool, request.data, url, seed, request.step_mm, request.changes) for seed in range(request.seeds)]
    detectors, headings = [], {}
    for run in seeds:
        calibrated = run.calibrated(recipe.detectors(run))
        headings = {d.name: run.heading(d) for d in calibrated} | dict.fromkeys(recipe.order, request.first)
        detectors.append(_in_order(calibrated, recipe.order, headings))
    judged, split = request.test or request.data, request.judged_split
    dataset, counted = (seeds[0].dataset, ()) if not request.test else _judged(pool, request, detectors[0][0], url)
    if not recipe.kinds and not any(exam.anomalous for exam in in_split(listed(dataset)[0], split)):
        return ""
    options = Evaluation(
        judged.dataset,
        judged.source,
        split,
        step_mm=request.step_mm,
        max_failures=request.changes.max_failures,
        kinds=recipe.kinds,
        recipe=recipe.name,
        why=recipe.why,
        dense=recipe.dense,
        compare=recipe.compare,
        literature=recipe.literature,
        groups=headings,
        notes=tuple(filter(None, [request.changes.sentence, *counted])),
        bundles={d.name: seeds[0].bundle_url(d) for d in detectors[0]},
    )
    report_url = storage.join(url, "report" if split in ("test", EVERY) else f"report-{split}")
    scores_url, corpora = storage.join(url, "scores"), seeds[0].corpora
    return evaluate(pool, detectors[0], dataset, options, report_url, scores_url, detectors[1:], corpora)


def _judged(pool: Pool, request: RunRequest, detector: Detector, url: str) -> tuple[Images, tuple[str, ...]]:
    """The other images that are judged, and how many each reading of the paper's selection would keep."""
    assert request.test is not None
    images, where = request.test.opened(), storage.join(url, "judged")
    if not request.readings:
        return listed_once(images, where), ()
    exams, left_out = listed(images)
    chosen = in_split(exams, request.judged_split)
    side_mm = detector.patch_px * detector.preprocessing.spacing_mm
    made_of = fingerprint([request.readings, side_mm, contents(images, chosen)])
    kept_url = storage.join(where, "selection.json")
    kept = storage.read_json(kept_url) if storage.exists(kept_url) else {}
    if kept.get("request") != made_of:
        selection = select(pool, images, chosen, request.readings, side_mm)
        splits = assign(exams)
        write_list(images, selection.exams, splits, (*left_out, *selection.left_out), where)
        kept = {"request": made_of, "counts": [count.line for count in selection.counts]}
        storage.write_json(kept_url, kept)
        for line in kept["counts"]:
            say(line)
    return ListOfImages(where), tuple(f"Test images: {line}." for line in kept["counts"])


def rehearse(request: RunRequest) -> list[Detector]:
    """The detectors of a run before anything is read or learned.

    Raises:
        OptionError: a data set, model, density, setting, score or fold that there is not, or two detectors of one name.
    """
    detectors = list(request.recipe.detectors(_Rehearsal(request)))
    names = [detector.name for detector in detectors]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"recipe {request.recipe.name}: two detectors are called {repeated[0]!r}")
    required = [*request.recipe.order, *(name for pair in request.recipe.compare for name in pair)]
    if missing := [name for name in required if name not in names]:
        raise OptionError(f"recipe {request.recipe.name} has no detector {missing[0]!r}, only {', '.join(names)}")
    if request.test:
        request.test.opened()
    for fold in range(request.folds):
        request.of_fold(fold).data.opened()
    readings_of(request.readings)
    return detectors


def _in_order(detectors: Sequence[Detector], first: Sequence[str], headings: dict[str, str]) -> list[Detector]:
    """The rows of the table: those that stand first, then the others, and what has one heading together."""
    names = list(dict.fromkeys([*first, *(d.name for d in detectors)]))
    groups = list(dict.fromkeys(headings[name] for name in names))
    return sorted(detectors, key=lambda d: (groups.index(headings[d.name]), names.index(d.name)))
