"""Learning: image models, densities of their latents, and the search of their settings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rayad import catalog, storage
from rayad.cli.shared import MayFail, OfDataset, OnCluster, ReadsImages, WithStep, open_dataset, place
from rayad.datasets.exam import read_by
from rayad.density.em import EM
from rayad.errors import FormatError, OptionError, TrainingError
from rayad.fit import Schedule
from rayad.options import Millimetres, Names, Settings, SpacingOrNone
from rayad.outputs import claimed
from rayad.patches.corpus import Corpus
from rayad.pipeline.requests import DensityRequest, Search, TrainRequest, part
from rayad.pool import Pool, Workers
from rayad.scoring import bundle
from rayad.scoring.detector import Detector
from rayad.terminal import say

if TYPE_CHECKING:
    from rayad.pipeline.development import Development
    from rayad.pipeline.sweep_task import Task


@dataclass(frozen=True, kw_only=True)
class Train(TrainRequest, OnCluster):
    """Train an image model on a corpus, as a detector that scores by reconstruction."""

    corpus: str
    """URL of the patch corpus."""
    out: str
    """Folder or URL of the detector."""
    name: str = ""
    """Name of the detector; empty: that of the model."""
    workers: Workers = Workers()

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.train import model_config, train_detector

        request, out = part(TrainRequest, self), storage.absolute(self.out)
        try:
            corpus = Corpus.open(storage.absolute(self.corpus))
        except FormatError:
            catalog.configure("models", request.model, request.settings)  # of two mistakes, that of the command is said
            raise
        model_config(request, corpus)  # what is wrong with it is said before Ray starts
        with claimed(out, "a detector", [corpus.url]), connected(self.address, self.workers) as pool:
            train_detector(pool, self.name or self.model, corpus, request, out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class FitDensity(DensityRequest, OnCluster):
    """Fit a density to the latents of a trained detector, as a detector that scores by likelihood."""

    detector: str
    """URL of the trained detector."""
    corpus: str
    """URL of the patch corpus."""
    out: str
    """Folder or URL of the detector."""
    name: str = ""
    """Name of the detector; empty: the trained detector's and the density's, such as cae-spn."""
    workers: Workers = Workers()

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.detectors import model_of, require_fits
        from rayad.pipeline.fit_density import density_config, fit_detector

        request = part(DensityRequest, self)
        detector = storage.absolute(self.detector)
        trained = bundle.load(detector)
        model = model_of(trained)
        density_config(request, model)  # what is wrong with it is said before Ray starts
        name = self.name or f"{trained.name}-{self.density}"
        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        require_fits(model.name, model.config, corpus)
        with claimed(out, "a detector", [detector, corpus.url]), connected(self.address, self.workers) as pool:
            fit_detector(pool, name, corpus, trained, request, out)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class Pair(OfDataset, WithStep, MayFail):
    """Fit a density to places of both breasts of healthy women, as a detector that scores a place given the other."""

    detector: str
    """URL of a trained detector, whose model gives the latents."""
    out: str
    """Folder or URL of the new detector; it is not calibrated."""
    name: str = ""
    """Name of the detector; empty: the trained detector's and the density's, such as cae-spn-other."""
    density: str = "spn"
    """A density that answers with variables left out: spn, mixture or gaussian_mixture."""
    density_settings: Settings = ()
    """Fields of the density's Config, such as components=4; of spn those of a circuit that cuts between the sides."""
    context: Names = ("skin_mm", "rel_row", "rel_col")
    """Facts about a place that are given too: skin_mm, rel_row, rel_col, ring_density, image_density."""
    em: EM = EM()
    workers: Workers = Workers()

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.detectors import model_of
        from rayad.pipeline.pair import pair_config, pair_detector

        url, out = storage.absolute(self.detector), storage.absolute(self.out)
        trained = bundle.load(url)
        request = DensityRequest(self.density, self.density_settings, context=self.context, em=self.em)
        pair_config(request, model_of(trained))  # what is wrong with it is said before Ray starts
        name, dataset = self.name or f"{trained.name}-{self.density}-other", self.opened()
        work = name, trained, dataset, request, self.step_mm, out, self.max_failures
        with claimed(out, "a detector", [url, *read_by(dataset)]), connected(self.address, self.workers) as pool:
            pair_detector(pool, *work)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class Sweep(ReadsImages):
    """Search settings of a density at a trained encoder, of an image model, or of both together."""

    corpus: str
    """URL of the patch corpus."""
    out: str
    """Folder of the sweep; one that was interrupted goes on."""
    space: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUES ...")]
    """Fields and the values that are tried: depth=1,2,3 (choices), inputs=5..60 (numbers between),
    step=0.01..0.5:log."""
    detector: str = ""
    """URL of the trained detector whose latents a density is searched for."""
    model: str = ""
    """Image model that every trial trains instead: bvae, cae, ... (`rayad list models`)."""
    density: str = ""
    """Density that every trial fits: spn, mixture, ...; empty: spn with --detector, none with --model."""
    name: str = ""
    """Name of the sweep; empty: that of what is searched."""
    settings: Settings = ()
    """Fields that are not searched and differ from the defaults, such as min_variance=0.01; where both the image model
    and the density have the name, model.preset=paper."""
    classes: str = ""
    """Column of the index (density, view) whose values are the classes of a circuit with as many roots."""
    objective: Literal["bits", "auc"] = "bits"
    """Measure of a trial: bits of healthy validation patches, or AUC of labelled images that are for choices."""
    dataset: str = ""
    """A data set with labels, for the AUC: mias, folder, ... (`rayad list datasets`); its test images stay unseen."""
    source: str = ""
    """Folder or URL of that data set's images."""
    dataset_settings: Settings = ()
    """Fields of that data set, such as patients=40 of phantom."""
    spacing_mm: SpacingOrNone = 0.0
    """Pixel spacing, mm, of its images that do not state it."""
    shares: Settings = ()
    """Shares of its patients in each split, as the corpus was made with them (docs/data.md)."""
    step_mm: Millimetres = 3.2
    """Distance of the places that are scored in its images, mm."""
    em: EM = EM()
    schedule: Schedule = Schedule(epochs=20)
    search: Search = Search()
    apply: bool = False
    """Train the winner: its detector goes to OUT/detector, the image model of a density to OUT/model."""
    workers: Workers = Workers()
    """Processes that train the winner."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.on_ray.sweep import require_trials, sweep
        from rayad.pipeline.detectors import model_of
        from rayad.pipeline.fit_density import latents_of
        from rayad.pipeline.sweep_book import stored
        from rayad.pipeline.sweep_task import shared_latents
        from rayad.pipeline.winner import sentence

        trained, task, inputs = self._planned()  # what is wrong with it is said before Ray starts
        corpus, out = Corpus.open(task.corpus), storage.absolute(self.out)
        stored(out)
        name = self.name or "-".join(filter(None, [trained.name if trained else self.model, task.density]))
        with claimed(out, "a sweep", inputs), connected(self.address, self.workers) as pool:
            require_trials(self.search)  # before latents are made
            data = None
            if trained:
                data = shared_latents(pool, model_of(trained), task, corpus, latents_of(trained, corpus, out))
            summary = sweep(name, task, data, self.search, out)
            self._tell(summary)
            if self.apply and summary["winner"]:
                self._apply(pool, task, trained, corpus, summary)
        say(f"The page is at {storage.join(self.out, 'index.html')}")
        if self.apply and not summary["winner"]:
            raise TrainingError(sentence(summary["seeds"]))

    def _planned(self) -> tuple[Detector | None, "Task", list[str]]:
        """The detector whose encoder stays, what is searched, and what is read."""
        from rayad.pipeline.detectors import model_of
        from rayad.pipeline.sweep_task import density_task, divided, model_task

        if bool(self.detector) == bool(self.model):
            raise OptionError(
                "a sweep is over a density at an encoder (--detector) or trains an image model (--model), one of both"
            )
        if self.model and self.classes and not self.density:
            raise OptionError("--classes are those of a density's roots: name it, as --density spn")
        url, inputs = storage.absolute(self.corpus), [place(self.corpus), place(self.detector)]
        development = self._development(url, inputs)
        em = {"classes": self.classes, "em": self.em}
        if self.detector:
            trained = bundle.load(place(self.detector))
            request = DensityRequest(self.density or "spn", self.settings, **em)
            return trained, density_task(model_of(trained), request, self.space, url, development), inputs
        of_model, of_density = divided(self.settings, self.model, self.density)
        train = TrainRequest(self.model, of_model, self.schedule)
        request = DensityRequest(self.density, of_density, **em) if self.density else None
        return None, model_task(train, request, self.space, url, development), inputs

    def _development(self, corpus_url: str, inputs: list[str]) -> "Development | None":
        """The images whose AUC counts, if any; what they are read from is added to the inputs."""
        from rayad.pipeline.development import development_of

        if bool(self.dataset) != (self.objective == "auc"):
            raise OptionError("--objective auc needs the labels of a data set (--dataset), and nothing else does")
        if not self.dataset:
            return None
        dataset = open_dataset(self.dataset, self.source, self.dataset_settings, self.spacing_mm, self.shares)
        inputs += read_by(dataset)
        return development_of(dataset, Corpus.open(corpus_url), self.step_mm)

    def _tell(self, summary: dict[str, Any]) -> None:
        """Say what the sweep came to, and which seeds failed."""
        from rayad.pipeline.winner import sentence

        best, base = summary["seeds"]["best"], summary["seeds"]["base"]
        settings = ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in best["settings"].items()
        )
        means = ["-" if fitted["mean"] is None else f"{fitted['mean']:.4f}" for fitted in (best, base)]
        say(f"best of {len(summary['rows'])} trials: {settings}: {means[0]}, without a search {means[1]}")
        say(f"({summary['objective']}, means of {len(best['values'])} seeds)")
        for name, fitted in (("the best", best), ("without a search", base)):
            for seed, error in enumerate(fitted["errors"]):
                if error:
                    say(f"{name}: seed {seed} failed and is not in the mean: {error}")
        say(f"{sentence(summary['seeds'])}.")

    def _apply(
        self, pool: Pool, task: "Task", trained: Detector | None, corpus: Corpus, summary: dict[str, Any]
    ) -> None:
        """Train what won the sweep."""
        from rayad.pipeline.fit_density import fit_detector
        from rayad.pipeline.train import train_detector

        out, name = storage.absolute(self.out), summary["name"]
        train, density = task.requests(summary["seeds"][summary["winner"]]["settings"])
        url = storage.join(out, "detector")
        if train:
            own = (self.model, storage.join(out, "model")) if density else (name, url)
            trained = train_detector(pool, own[0], corpus, train, own[1])
        if density:
            assert trained is not None  # it was given, or trained just now
            fit_detector(pool, name, corpus, trained, density, url, out)
        say(f"The detector is at {storage.join(self.out, 'detector')}")
