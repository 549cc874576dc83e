"""What a sweep searches: the configurations that are varied together, their space, and what counts.

- With an image model every trial trains it: alone, or with a density that is fitted to its latents after that.
- With a trained detector its encoder stays, and the density alone varies: latents are encoded once and shared.

What counts is, without labels, bits: a pixel of healthy validation patches where trials train encoders, since the
latents of two encoders do not compare (rayad/scoring/coding.py), and a dimension of their latents at one encoder. Or it
is, if asked for, the AUC of the images that are for choices (development.py).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from rayad import catalog, search
from rayad.errors import OptionError
from rayad.fingerprint import fingerprint
from rayad.options import Settings
from rayad.patches.corpus import LEARNING_SPLITS, Corpus
from rayad.pipeline.detectors import require_fits
from rayad.pipeline.development import Development
from rayad.pipeline.encode import encode
from rayad.pipeline.fit_density import FittedRows, density_config, states_of
from rayad.pipeline.requests import DensityRequest, TrainRequest
from rayad.pipeline.train import learning_stages, model_config, order_of
from rayad.pool import Pool
from rayad.scoring.coding import Decodes
from rayad.scoring.scores import Part

Objective = Literal["bits", "auc"]


@dataclass(frozen=True)
class Task:
    """What is searched: everything that a trial needs besides its values and its data."""

    parts: dict[str, Any]
    """Configurations: model and schedule, density and em, or all four."""
    space: dict[str, search.Dimension]
    corpus: str
    objective: str
    """In words, with its unit; lower is better."""
    model: str = ""
    """Image model that every trial trains; empty: trials share the latents of a trained one."""
    density: str = ""
    """The density that every trial fits; empty: none."""
    classes: str = ""
    """Column of the index whose values are the classes of a circuit with as many roots."""
    encoder: Part | None = None
    """The trained model, where it does not vary and images are scored."""
    development: Development | None = None
    """What counts, where it is not bits."""

    @property
    def epochs(self) -> int:
        """After which a trial reports what compares with others, at most: of its model, or of EM; 0: it never does."""
        if self.development:
            return 0
        if not self.model:
            return self._most("em")
        return self._most("schedule") * learning_stages(self.parts["model"])

    @property
    def made_of(self) -> list[Any]:
        """All that its values depend on, besides corpus and latents; for a hash."""
        space = {name: asdict(dimension) for name, dimension in self.space.items()}
        names = [self.model, self.density, self.classes, self.objective]
        return [self.parts, space, names, self.development and self.development.content]

    def parts_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The configurations with these values; a density of codes is told how many codes the model has."""
        parts = search.applied(self.parts, self.space, values)
        if self.model and self.density and hasattr(parts["density"], "states"):
            states = states_of(parts["model"].build())
            parts["density"] = replace(parts["density"], states=states) if states else parts["density"]
        return parts

    def requests(self, values: Mapping[str, Any]) -> tuple[TrainRequest | None, DensityRequest | None]:
        """What trains the model and fits the density with these values, as the stages are asked for it."""
        parts, train, density = self.parts_with(values), None, None
        if self.model:
            train = TrainRequest(self.model, catalog.settings_of(parts["model"]), parts["schedule"])
        if self.density:
            settings = catalog.settings_of(parts["density"])
            density = DensityRequest(self.density, settings, classes=self.classes, em=parts["em"])
        return train, density

    def _most(self, part: str) -> int:
        """Epochs of a configuration, also where they are searched."""
        searched = [d.values for d in self.space.values() if (d.part, d.field) == (part, "epochs")]
        return max([self.parts[part].epochs, *map(max, searched)])


@dataclass(frozen=True)
class SharedLatents:
    """The latents that a density is fitted to; read-only where trials share them, in the object store."""

    train: np.ndarray
    validation: np.ndarray
    classes: np.ndarray
    """The class of every training row, -1 where it is not known; of no length without classes."""
    names: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of all of it: another encoder has other latents."""
        arrays = (self.train, self.validation, self.classes)
        parts = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return fingerprint([parts, self.names])


def density_task(
    encoder: Part,
    request: DensityRequest,
    texts: tuple[str, ...],
    corpus_url: str,
    development: Development | None = None,
) -> Task:
    """A sweep over fields of a density and of EM at a trained encoder.

    Raises:
        OptionError: nothing can be searched so; no trial has begun, and no patch was encoded.
    """
    corpus = Corpus.open(corpus_url)
    parts = {"density": density_config(request, encoder), "em": request.em}
    space = search.parse(texts, parts)
    _check(parts, space, lambda parts: _fits(parts, encoder.module.latents, request.density, development))
    require_fits(encoder.name, encoder.config, corpus)
    FittedRows(corpus, "", request).classes("train")
    corpus.require_disjoint()
    rows = sum(number for _, number in corpus.shards("validation"))
    objective = development.objective if development else f"bits a dimension of {rows:,} healthy validation patches"
    shown = {"encoder": encoder, "development": development} if development else {}
    return Task(parts, space, corpus_url, objective, "", request.density, request.classes, **shown)


def model_task(
    train: TrainRequest,
    density: DensityRequest | None,
    texts: tuple[str, ...],
    corpus_url: str,
    development: Development | None = None,
) -> Task:
    """A sweep over fields of an image model and its schedule, with a density those of it and of EM too.

    Raises:
        OptionError: nothing can be searched so; no trial has begun.
    """
    corpus = Corpus.open(corpus_url)
    config = model_config(train, corpus)
    model = config.build()
    if development is None and not isinstance(model, Decodes):
        raise OptionError(
            f"{train.model} has no likelihood of patches, so labels must judge it (--objective auc); without them "
            f"{', '.join(_coded())} can be searched"
        )
    parts: dict[str, Any] = {"model": config, "schedule": train.schedule}
    if density:
        parts |= {"density": density_config(density, Part(train.model, config, model)), "em": density.em}
    space = search.parse(texts, parts)

    def build(parts: search.Parts) -> None:
        require_fits(train.model, parts["model"], corpus)
        module = parts["model"].build()
        if density:
            _fits(parts, module.latents, density.density, development)

    _check(parts, space, build)
    order_of(corpus, train.schedule)
    corpus.require_disjoint()
    if density:
        FittedRows(corpus, "", density).classes("train")
    names = (density.density, density.classes) if density else ("", "")
    unit = "bits a pixel of healthy validation patches, of 16"
    objective = development.objective if development else f"{unit}, model and density together" if density else unit
    return Task(parts, space, corpus_url, objective, train.model, *names, development=development)


def shared_latents(pool: Pool, encoder: Part, task: Task, corpus: Corpus, url: str) -> SharedLatents:
    """The latents of an encoder, written to the URL unless they are there."""
    encode(pool, corpus, encoder, url)
    rows = FittedRows(corpus, url, DensityRequest(task.density, classes=task.classes))
    train, validation = (rows.variables(split).numpy() for split in LEARNING_SPLITS)
    return SharedLatents(train, validation, *rows.classes("train"))


def divided(settings: Settings, model: str, density: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The settings of an image model and those of a density, from texts NAME=VALUE of either.

    A name that both have, such as ``preset``, is written with whose it is: ``model.preset=paper``.

    Raises:
        OptionError: neither has the name, or both have it.
    """
    if not density:
        return tuple(settings), ()
    kinds = {"model": ("models", model), "density": ("density", density)}
    names = {part: _settable(*kind) for part, kind in kinds.items()}
    settings_of: dict[str, list[str]] = {part: [] for part in kinds}
    for text in settings:
        name, value = catalog.pair(text)
        owner, _, field = name.rpartition(".")
        owners = [part for part in names if (field in names[part]) and owner in ("", part)]
        if len(owners) > 1:
            both = " or ".join(f"{part}.{name}" for part in owners)
            raise OptionError(f"{name!r} is a setting of both: write {both}")
        if not owners:
            all_names = [f"{part}.{field}" for part, own in names.items() for field in own]
            raise OptionError(f"no setting {name!r}; there are {', '.join(all_names)}")
        settings_of[owners[0]].append(f"{field}={value}")
    return tuple(settings_of["model"]), tuple(settings_of["density"])


def _settable(folder: str, name: str) -> list[str]:
    kind = getattr(catalog.find(folder, name), catalog.PLUGGED_IN[folder])
    return [*(field.name for field in fields(kind)), "preset"]


def _check(parts: dict[str, Any], space: search.Space, build: Callable[[search.Parts], object]) -> None:
    """OptionError where the parts, with or without a value of the space, cannot be built."""
    build(parts)
    search.check(parts, space, build)


def _fits(parts: search.Parts, latents: int, density: str, development: Development | None) -> None:
    """OptionError unless the density can be fitted to so many latents, and judged."""
    module = parts["density"].build(latents)
    if development is None and not hasattr(module, "log_prob"):
        raise OptionError(f"{density} has no likelihood, so labels must judge it: --objective auc")


def _coded() -> list[str]:
    """The image models that need no labels to be searched."""
    return [n for n in catalog.names("models") if isinstance(catalog.configure("models", n).build(), Decodes)]
