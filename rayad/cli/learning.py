"""Learning: image models, densities of their latents, and the search of their settings."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from rayad import catalog, storage
from rayad.cli.shared import OnCluster, place
from rayad.density.em import EM
from rayad.errors import FormatError, OptionError
from rayad.fit import Schedule
from rayad.options import Settings
from rayad.outputs import claimed
from rayad.patches.corpus import Corpus
from rayad.pipeline.requests import DensityRequest, Search, TrainRequest, part
from rayad.pool import Pool, Workers
from rayad.scoring import bundle
from rayad.terminal import say


@dataclass(frozen=True, kw_only=True)
class Train(TrainRequest, OnCluster):
    """A corpus to a detector that scores by reconstruction."""

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
    """A trained detector's latents to a detector that scores by likelihood."""

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
class Sweep(OnCluster):
    """Search settings of a density at a trained encoder, or of an image model, without labels."""

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
    """Image model whose fields are searched instead: bvae, conditional_vae."""
    density: str = "spn"
    """The density that is searched: spn, mixture."""
    name: str = ""
    """Name of the sweep; empty: that of what is searched."""
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
    """Processes that train the winner."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected

        if bool(self.detector) == bool(self.model):
            raise OptionError("a sweep is over a density (--detector) or over an image model (--model), one of both")
        inputs = [place(self.corpus), place(self.detector)]
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
            for seed, error in enumerate(fitted["errors"]):
                if error:
                    say(f"{name}: seed {seed} failed and is not in the mean: {error}")
        say(f"The page is at {storage.join(self.out, 'index.html')}")

    def _of_density(self, pool: Pool) -> dict[str, Any]:
        from rayad import search
        from rayad.on_ray import sweep
        from rayad.pipeline import trial
        from rayad.pipeline.detectors import model_of
        from rayad.pipeline.fit_density import fit_detector, latents_of

        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        trained = bundle.load(storage.absolute(self.detector))
        model = model_of(trained)
        request = DensityRequest(self.density, self.settings, classes=self.classes, em=self.em)
        latents = latents_of(trained, corpus, out)
        task, data = trial.of_density(pool, model, request, self.space, corpus.url, latents)
        summary = sweep.sweep(self.name or f"{trained.name}-{self.density}", task, data, self.search, out)
        if self.apply:
            parts = search.applied(task.parts, task.space, summary["best"]["settings"])
            winner = replace(request, settings=catalog.settings_of(parts["density"]), em=parts["em"])
            fit_detector(pool, summary["name"], corpus, trained, winner, storage.join(out, "detector"), out)
        return summary

    def _of_model(self, pool: Pool) -> dict[str, Any]:
        from rayad import search
        from rayad.on_ray import sweep
        from rayad.pipeline import trial
        from rayad.pipeline.train import train_detector

        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        request = TrainRequest(self.model, self.settings, self.schedule)
        task, data = trial.of_model(request, self.space, corpus.url)
        summary = sweep.sweep(self.name or self.model, task, data, self.search, out)
        if self.apply:
            parts = search.applied(task.parts, task.space, summary["best"]["settings"])
            winner = replace(request, settings=catalog.settings_of(parts["model"]), schedule=parts["schedule"])
            train_detector(pool, summary["name"], corpus, winner, storage.join(out, "detector"))
        return summary
