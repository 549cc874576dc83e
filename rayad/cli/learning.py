"""Learning: image models, densities of their latents, and the search of their settings."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import tyro

from rayad import catalog, storage
from rayad.cli.shared import Names, OnCluster, Settings, place
from rayad.density.em import EM
from rayad.errors import OptionError
from rayad.fit import Schedule
from rayad.outputs import claimed
from rayad.patches.corpus import Corpus
from rayad.pipeline.requests import Search, Strips
from rayad.pool import Pool, Workers
from rayad.recipes import Density
from rayad.scoring import bundle
from rayad.terminal import say


@dataclass(frozen=True, kw_only=True)
class Train(OnCluster):
    """A corpus to a detector that scores by reconstruction."""

    corpus: str
    """URL of the patch corpus."""
    out: str
    """Folder or URL of the detector."""
    model: str = "cae"
    """An image model that rayad knows: cae, bvae, ..."""
    name: str = ""
    """Name of the detector; empty: that of the model."""
    settings: Settings = ()
    """Fields of the model's Config, such as latents=32 or padding=same."""
    schedule: Schedule = Schedule()
    strips: Strips = Strips()
    workers: Workers = Workers()

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.train import train_detector

        config = catalog.configure("models", self.model, self.settings)
        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        with claimed(out, "a detector", [corpus.url]), connected(self.address, self.workers) as pool:
            name = self.name or self.model
            train_detector(pool, name, corpus, self.model, config, self.schedule, out, self.strips)
        say(f"The detector is at {self.out}")


@dataclass(frozen=True, kw_only=True)
class FitDensity(OnCluster):
    """A trained detector's latents to a detector that scores by likelihood."""

    detector: str
    """URL of the trained detector."""
    corpus: str
    """URL of the patch corpus."""
    out: str
    """Folder or URL of the detector."""
    density: str = "spn"
    """A density that rayad knows: spn, mixture, ..."""
    name: str = ""
    """Name of the detector; empty: the trained detector's and the density's, such as cae-spn."""
    settings: Settings = ()
    """Fields of the density's Config, such as replicas=20."""
    context: Names = ()
    """Facts about a place that stand beside the latents: skin_mm, rel_row, rel_col, ring_density, image_density; scores
    are then in context."""
    smooth: bool = False
    """Fit it to the smoothest third of the patches alone: the background of a likelihood ratio."""
    classes: str = ""
    """Column of the index, such as density: a circuit of as many roots as it has values learns one for each."""
    em: EM = EM()
    workers: Workers = Workers()

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.detectors import model_of
        from rayad.pipeline.fit_density import density_config, fit_detector

        density = Density(self.settings, self.density, self.context, self.smooth, self.classes)
        detector = storage.absolute(self.detector)
        trained = bundle.load(detector)
        density_config(density, model_of(trained))  # what is wrong with it is said before Ray starts
        name = self.name or f"{trained.name}-{self.density}"
        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        with claimed(out, "a detector", [detector, corpus.url]), connected(self.address, self.workers) as pool:
            fit_detector(pool, name, corpus, trained, density, self.em, out)
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
            for seed, why in enumerate(fitted["errors"]):
                if why:
                    say(f"{name}: seed {seed} failed and is not in the mean: {why}")
        say(f"The page is at {storage.join(self.out, 'index.html')}")

    def _of_density(self, pool: Pool) -> dict[str, Any]:
        from rayad import search
        from rayad.on_ray import sweep
        from rayad.pipeline import trial
        from rayad.pipeline.detectors import model_of
        from rayad.pipeline.fit_density import Fit, density_config, fit_detector, latents_of

        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        trained = bundle.load(storage.absolute(self.detector))
        model = model_of(trained)
        density = Density(self.settings, self.density, classes=self.classes)
        fit = Fit(self.density, density_config(density, model), self.em, classes=self.classes)
        latents = latents_of(trained, corpus, out)
        task, data = trial.of_density(pool, model, fit, self.space, corpus.url, latents)
        summary = sweep.sweep(self.name or f"{trained.name}-{self.density}", task, data, self.search, out)
        if self.apply:
            parts = search.applied(task.parts, task.space, summary["best"]["settings"])
            winner = replace(density, fields=asdict(parts["density"]))
            url = storage.join(out, "detector")
            fit_detector(pool, summary["name"], corpus, trained, winner, parts["em"], url, out)
        return summary

    def _of_model(self, pool: Pool) -> dict[str, Any]:
        from rayad import search
        from rayad.on_ray import sweep
        from rayad.pipeline import trial
        from rayad.pipeline.train import train_detector

        corpus, out = Corpus.open(storage.absolute(self.corpus)), storage.absolute(self.out)
        config = catalog.configure("models", self.model, self.settings)
        task, data = trial.of_model(config, self.schedule, self.space, corpus.url)
        summary = sweep.sweep(self.name or self.model, task, data, self.search, out)
        if self.apply:
            parts = search.applied(task.parts, task.space, summary["best"]["settings"])
            model, schedule, url = parts["model"], parts["schedule"], storage.join(out, "detector")
            train_detector(pool, summary["name"], corpus, self.model, model, schedule, url)
        return summary
