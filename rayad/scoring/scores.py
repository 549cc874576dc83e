"""Scores as values: each holds what it needs and scores places of a prepared image, higher where it is less healthy.

What cannot work cannot be built: a likelihood has its model and its density, and the two fit each other. A score that
combines those of other detectors is `detector.Combined`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from rayad.arrays import GridMask
from rayad.errors import OptionError
from rayad.imaging.context import context
from rayad.imaging.picture import Prepared
from rayad.models._blocks import patch_of
from rayad.options import PATCH_SIDES, PatchSide
from rayad.scoring import dense, floors, other_side, residuals
from rayad.tensors import Context, Latents, Patches, Scores, like

BOTH_SIDES = ("other-side", "asymmetry")
"""Names of the scores of a density of both breasts (rayad/scoring/other_side.py)."""
LATENT = ("likelihood", "novelty", "context", *BOTH_SIDES)
"""Names of a density's scores of latents."""


@dataclass(frozen=True)
class Part:
    """A trained plug-in: its file name, its configuration and its parameters."""

    name: str
    config: Any
    module: Any
    """An nn.Module that keeps the promises of its kind."""
    variables: int = 0
    """Of a density: the number of variables it was built for."""

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "config": asdict(self.config), "variables": self.variables}


@runtime_checkable
class Conditional(Protocol):
    """A model that also sees a fact about the image, such as the density of the breast."""

    condition: str
    """Which one: a field of `Source`."""

    def planes(self, fact: str) -> Sequence[float]:
        """The fact in numbers, as planes behind the image's channels; all 0 where it is not known."""
        ...

    def given(self, fact: str) -> nn.Module:
        """The model for images of which this is known; "" where it is not."""
        ...


@dataclass(frozen=True)
class Floor:
    """A score that learns nothing: one of `floors.MAPS`."""

    name: str
    patch_px: PatchSide = 64
    """Side of the patches of the models that it is compared with: the box of those that look at a patch."""

    def __post_init__(self) -> None:
        if self.name not in floors.MAPS:
            raise OptionError(f"no floor {self.name!r}; rayad has {', '.join(floors.MAPS)}")
        if self.patch_px not in PATCH_SIDES:
            raise OptionError(f"patch_px must be {PATCH_SIDES}, not {self.patch_px}")

    def places(self, prepared: Prepared, step: int, tissue: GridMask) -> np.ndarray:
        """Scores of the tissue's places, row by row."""
        values = floors.MAPS[self.name](prepared.stored, prepared.tissue, prepared.spacing_mm, self.patch_px)
        return values[_grid(prepared, step)][tissue]


@dataclass(frozen=True)
class ModelScore:
    """A score of patches by a model: one of its own, or a residual of its reconstruction (`residuals.OPERATORS`)."""

    model: Part
    name: str

    def __post_init__(self) -> None:
        if self.name not in (names := scores_of(self.model)):
            raise OptionError(f"no score {self.name!r}; the model {self.model.name!r} has {', '.join(names)}")

    def places(self, prepared: Prepared, step: int, tissue: GridMask) -> np.ndarray:
        """Scores of the tissue's places, row by row."""
        model, residual = told(self.model.module, prepared), residuals.OPERATORS.get(self.name)
        with torch.inference_mode():
            if isinstance(model, dense.OfPixels) and residual is None:
                scores = dense.pixel_scores(model, self.name, prepared.pixels, step, tissue)
            elif isinstance(model, dense.Decoding) and (residual or self.name == "reconstruction"):
                scores = dense.residual_scores(model, residual or residuals.squared, prepared.pixels, step, tissue)
            else:
                scores = dense.patch_scores(model, self._of_patches(model), prepared.pixels, step, tissue)
        return scores.cpu().numpy()

    def _of_patches(self, model: Any) -> Callable[[Patches], Scores]:
        residual = residuals.OPERATORS.get(self.name)
        if residual is None:
            return lambda x: model.scores(x)[self.name]
        return lambda x: residual(x, model.reconstruct(x))


@dataclass(frozen=True)
class LatentScore:
    """A score of a model's latents by a density: -log p(z), its own novelty, -log p(z | c) given the place, or what the
    other breast says."""

    model: Part
    density: Part
    name: str = "likelihood"
    """One of `LATENT`."""
    context: tuple[str, ...] = ()
    """What the density knows of a place beside the latents: names of `imaging.context.CONTEXT`, its last variables."""

    def __post_init__(self) -> None:
        if self.name not in LATENT:
            raise OptionError(f"no score {self.name!r} of latents; a density has {', '.join(LATENT)}")
        if not hasattr(self.density.module, "novelty" if self.name == "novelty" else "log_prob"):
            raise OptionError(f"{self.density.name} has no {self.name}")
        sides = 2 if self.both_sides else 1
        variables = sides * self.model.module.latents + len(self.context)
        if self.density.variables != variables:
            raise OptionError(
                f"the density is of {self.density.variables} variables, but model and context give {variables}"
            )

    @property
    def both_sides(self) -> bool:
        """Whether the density is of both breasts: images come with that of the other one."""
        return self.name in BOTH_SIDES

    def places(self, prepared: Prepared, step: int, tissue: GridMask) -> np.ndarray:
        """Scores of the tissue's places, row by row."""
        model, density = told(self.model.module, prepared), self.density.module
        with torch.inference_mode():
            if self.name == "likelihood":
                scores = dense.likelihood(model, density.log_prob, prepared.pixels, step, tissue)
            elif self.name == "novelty":
                scores = dense.latent_scores(model, density.novelty, prepared.pixels, step, tissue)
            elif self.name == "context":
                latents = dense.encode(model, prepared.pixels, step, tissue)
                scores = in_context(density, latents, self._context(prepared, step, tissue))
            else:
                rows = paired_rows(model, prepared, step, tissue, self.context)
                score = other_side.asymmetry if self.name == "asymmetry" else other_side.given_other
                scores = score(density, *(part.to(rows[0]) for part in rows))
        return scores.cpu().numpy()

    @property
    def faster_together(self) -> bool:
        """Whether several images take fewer passes: on a GPU. On a CPU a batch of tiles leaves the cache."""
        model = self.model.module
        if self.name not in ("likelihood", "novelty") or isinstance(model, Conditional):
            return False
        return like(model).device.type != "cpu"

    def places_together(self, images: Sequence[Prepared], step: int, tissues: Sequence[GridMask]) -> list[np.ndarray]:
        """Scores of several images' places, each as `places` gives it alone."""
        density = self.density.module
        score = density.novelty if self.name == "novelty" else lambda z: -density.log_prob(z)
        pixels = [image.pixels for image in images]
        with torch.inference_mode():
            scores = dense.latent_scores_together(self.model.module, score, pixels, step, tissues)
        return [values.cpu().numpy() for values in scores]

    def _context(self, prepared: Prepared, step: int, tissue: GridMask) -> Context:
        """What is known of the tissue's places, n and a column a name."""
        return known_of(prepared, step, tissue, self.context, patch_of(self.model.module))


def in_context(density: Any, latents: Latents, context: Context) -> Scores:
    """-log p(z | c) = log p(c) - log p(z, c), in nats: how unusual the latents are *for this place*.

    Exact in a density that answers with variables left out (nan); nan in the context is left out in both terms.
    """
    missing = torch.full_like(latents, torch.nan)
    context = context.to(latents)
    return density.log_prob(torch.cat([missing, context], 1)) - density.log_prob(torch.cat([latents, context], 1))


def known_of(prepared: Prepared, step: int, tissue: GridMask, names: Sequence[str], patch_px: int) -> Context:
    """What is known of the tissue's places, n and a column a name of `imaging.context.CONTEXT`."""
    if not names:
        return torch.empty(int(tissue.sum()), 0)
    maps, grid = context(prepared, patch_px), _grid(prepared, step)
    return torch.from_numpy(np.stack([maps[name][grid][tissue] for name in names], 1))


def paired_rows(
    model: nn.Module, prepared: Prepared, step: int, tissue: GridMask, names: Sequence[str]
) -> tuple[Latents, Latents, Context]:
    """Of the tissue's places: the latents, those of the other breast, and what is known of the place."""
    model = told(model, prepared)
    latents = dense.encode(model, prepared.pixels, step, tissue)
    others = other_side.other_latents(model, prepared, step, tissue).to(latents)
    return latents, others, known_of(prepared, step, tissue, names, patch_of(model))


def scores_of(model: Part) -> list[str]:
    """The scores of patches that a model has, its own first."""
    module = model.module
    side = patch_of(module)
    empty = torch.zeros(0, getattr(model.config, "channels", 1), side, side).to(like(module))
    with torch.inference_mode():
        return [*module.scores(empty), *(residuals.OPERATORS if hasattr(module, "reconstruct") else ())]


def told(model: nn.Module, prepared: Prepared) -> nn.Module:
    """The model for this image: one that sees a fact about images is told it."""
    return model.given(getattr(prepared.source, model.condition)) if isinstance(model, Conditional) else model


def _grid(prepared: Prepared, step: int) -> tuple[np.ndarray, ...]:
    """Indices of the grid's places in an image."""
    h, w = prepared.stored.shape
    return np.ix_(*dense.places(h, w, step))
