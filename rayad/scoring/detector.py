"""A detector: everything that turns an image into a heatmap, as a value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from rayad import bounds
from rayad.arrays import Grid, GridMask
from rayad.errors import ImageError, OptionError
from rayad.imaging.context import context
from rayad.imaging.picture import PATCH, Prepared, Preprocessing, step_px
from rayad.scoring import combine, dense, floors, residuals
from rayad.scoring.calibrate import Calibration
from rayad.scoring.combine import Aggregation, aggregate
from rayad.scoring.files import DEEPEST, LONGEST_NAME, MOST_MEMBERS, is_plain
from rayad.tensors import Latents, Patches, Scores, like
from rayad.terminal import printable

Context = Float[torch.Tensor, "n k"]
"""What is known of n places: a column a name."""


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


@dataclass(frozen=True)
class Heatmap:
    """Scores of one image at the places of a grid."""

    scores: Grid
    """nan outside the tissue."""
    rows: np.ndarray
    """Rows of the places, in px of the working resolution."""
    columns: np.ndarray
    tissue: GridMask


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
class Detector:
    """One way to score an image; a frozen value, so scoring an image depends on nothing else."""

    name: str
    score: str
    """One of the model's own scores; a residual of its reconstruction (`residuals.OPERATORS`); "likelihood" or
    "novelty" of its latents; "context", their likelihood given the place; the name of a floor that needs no model; or
    how the members' scores are combined (`combine.RULES`)."""
    preprocessing: Preprocessing
    model: Part | None = None
    density: Part | None = None
    aggregation: Aggregation = Aggregation()
    calibration: Calibration | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    context: tuple[str, ...] = ()
    """What the density knows of a place beside the latents: names of `imaging.context.CONTEXT`, its last variables."""
    members: tuple["Detector", ...] = ()
    """Detectors whose scores are combined, each calibrated on healthy patients."""

    def __post_init__(self) -> None:
        if self.score in floors.MAPS:
            return
        if self.score in combine.RULES:
            _check_members(self)
            return
        if self.score in LATENT:
            if self.model is None or self.density is None:
                raise OptionError(f"detector {self.name!r}: the {self.score} score needs a trained model and density")
            return
        scores = [*floors.MAPS, *combine.RULES, *LATENT, *(scores_of(self.model) if self.model else ())]
        if self.score not in scores:
            raise OptionError(f"no score {self.score!r}; {self.name!r} has {', '.join(scores)}")

    def summary(self) -> str:
        """One line on what it is."""
        parts = [f"{p.name} of {sum(t.numel() for t in p.module.state_dict().values()):,} numbers" for p in self._parts]
        parts += [f"of {', '.join(member.name for member in self.members)}"] if self.members else []
        patients = self.calibration.patients if self.calibration else 0
        calibrated = f"calibrated on {patients} healthy patients" if patients else "not calibrated, so without p-values"
        return printable(", ".join([f"{self.name} scores by {self.score}", *parts, calibrated]))

    def origin(self, name: str) -> Any:
        """What its provenance says of this; OptionError where it says nothing."""
        if name not in self.provenance:
            raise OptionError(f"detector {self.name!r} has no {name} in its provenance, by which results are known")
        return self.provenance[name]

    def step(self, step_mm: float = 0.0) -> int:
        """Distance of the places that are scored, px of the working resolution.

        Args:
            step_mm: 0: that of the calibration, or else 3.2 mm.

        Raises:
            OptionError: another than the calibration's, which no p-value is for; or less than a pixel.
        """
        calibrated_mm = self.provenance.get("step_mm", 0.0) if self.calibration else 0.0
        step = step_px(self.preprocessing, step_mm or calibrated_mm or STEP_MM)
        if calibrated_mm and step != step_px(self.preprocessing, calibrated_mm):
            raise OptionError(
                f"detector {self.name!r} was calibrated with places {calibrated_mm:g} mm apart, its p-values are not "
                f"for places {step_mm:g} mm apart: leave step_mm out, or calibrate it again"
            )
        return step

    def calibrated(self, calibration: Calibration, **provenance: Any) -> "Detector":
        """The detector with this calibration, and what is to be known of it."""
        return replace(self, calibration=calibration, provenance={**self.provenance, **provenance})

    def heatmap(self, prepared: Prepared, step: int, known: Mapping[str, Heatmap] = MappingProxyType({})) -> Heatmap:
        """Score the tissue of a prepared image on a grid.

        Args:
            step: distance of the places, in px of the working resolution.
            known: heatmaps of this image that members need not compute again, by name.

        Raises:
            ImageError: the image is smaller than a patch, no place lies in the tissue, or more than may be scored.
        """
        grid = _grid(prepared, step)
        tissue = prepared.tissue[np.ix_(*grid)]
        if not tissue.any():
            raise ImageError(f"none of the {tissue.size} places of the grid lies in the tissue")
        bounds.current().require_places(int(tissue.sum()))
        combined = self._combined(prepared, step, known)[tissue] if self.members else None
        values = self._places(prepared, step, tissue) if combined is None else combined
        return self._mapped(values, grid, tissue, step * prepared.spacing_mm)

    def heatmaps(self, prepared: Sequence[Prepared], step: int) -> list[Heatmap]:
        """Of several images, each as `heatmap` gives it alone; scores of latents on a GPU in fewer passes.

        On a CPU a batch of tiles leaves the cache: one image after the other is faster.

        Raises:
            ImageError: as `heatmap`, for whichever of the images.
        """
        model = self.model.module if self.model and self.density and self.score in LATENT[:2] else None
        if len(prepared) < 2 or isinstance(model, Conditional) or model is None or like(model).device.type == "cpu":
            return [self.heatmap(one, step) for one in prepared]
        assert self.density is not None  # else there is no model here
        grids = [_grid(one, step) for one in prepared]
        tissues = [one.tissue[np.ix_(*grid)] for one, grid in zip(prepared, grids, strict=True)]
        if not all(tissue.any() for tissue in tissues):
            raise ImageError("none of the places of an image's grid lies in the tissue")
        for tissue in tissues:
            bounds.current().require_places(int(tissue.sum()))
        density = self.density.module
        score = density.novelty if self.score == "novelty" else lambda z: -density.log_prob(z)
        with torch.inference_mode():
            score_grids = dense.latent_scores_together(
                model, score, [image.pixels for image in prepared], step, tissues
            )
        return [
            self._mapped(values.cpu().numpy(), grid, tissue, step * one.spacing_mm)
            for values, grid, tissue, one in zip(score_grids, grids, tissues, prepared, strict=True)
        ]

    def on(self, device: str) -> "Detector":
        """The detector with its parts on a device, "cuda" or "cpu"."""
        for part in self._parts:
            part.module.to(device)
        for member in self.members:
            member.on(device)
        return self

    def _mapped(
        self, values: np.ndarray, grid: tuple[np.ndarray, np.ndarray], tissue: GridMask, step_mm: float
    ) -> Heatmap:
        """The tissue's scores, row by row, as a heatmap."""
        scores = np.full(tissue.shape, np.nan, np.float32)
        scores[tissue] = values
        return Heatmap(aggregate(scores, tissue, self.aggregation, step_mm), *grid, tissue)

    @property
    def _parts(self) -> list[Part]:
        return [part for part in (self.model, self.density) if part]

    def _places(self, prepared: Prepared, step: int, tissue: GridMask) -> np.ndarray:
        """Scores of the tissue's places, row by row."""
        if self.score in floors.MAPS:
            rows, columns = _grid(prepared, step)
            values = floors.MAPS[self.score](prepared.stored, prepared.tissue, prepared.spacing_mm)
            return values[np.ix_(rows, columns)][tissue]
        assert self.model is not None  # __post_init__ saw to it
        model = self.model.module
        if isinstance(model, Conditional):
            model = model.given(getattr(prepared.source, model.condition))
        with torch.inference_mode():
            if self.score in LATENT:
                scores = self._of_latents(model, prepared, step, tissue)
            else:
                scores = dense.patch_scores(model, _patch_score(model, self.score), prepared.pixels, step, tissue)
        return scores.cpu().numpy()

    def _of_latents(self, model: nn.Module, prepared: Prepared, step: int, tissue: GridMask) -> Scores:
        assert self.density is not None  # __post_init__ saw to it
        density = self.density.module
        match self.score:
            case "likelihood":
                return dense.likelihood(model, density.log_prob, prepared.pixels, step, tissue)
            case "novelty":
                return dense.latent_scores(model, density.novelty, prepared.pixels, step, tissue)
            case _:
                latents = dense.encode(model, prepared.pixels, step, tissue)
                return in_context(density, latents, self._context(prepared, step, tissue))

    def _context(self, prepared: Prepared, step: int, tissue: GridMask) -> Context:
        """What is known of the tissue's places, n and a column a name."""
        maps, at = context(prepared), np.ix_(*_grid(prepared, step))
        return torch.from_numpy(np.stack([maps[name][at][tissue] for name in self.context], 1))

    def _combined(self, prepared: Prepared, step: int, known: Mapping[str, Heatmap]) -> Grid:
        """The members' scores, combined; each sees its own picture of the image."""
        scored = []
        for member in self.members:
            same = member.preprocessing == self.preprocessing
            heatmap = known.get(member.name)
            if heatmap is None:
                own = prepared if same else member.preprocessing.prepare(prepared.source)
                heatmap = member.heatmap(own, step_px(member.preprocessing, step * prepared.spacing_mm), known)
            ratio = prepared.spacing_mm / member.preprocessing.spacing_mm
            assert member.calibration is not None  # __post_init__ saw to it
            scored.append((_onto(heatmap, _grid(prepared, step), ratio), member.calibration))
        return combine.RULES[self.score](scored)


STEP_MM = 3.2
"""Distance of places where nobody says another."""
LATENT = ("likelihood", "novelty", "context")
"""Scores of latents by a density."""


def in_context(density: Any, latents: Latents, context: Context) -> Scores:
    """-log p(z | c) = log p(c) - log p(z, c), in nats: how unusual the latents are *for this place*.

    Exact in a density that answers with variables left out (nan); nan in the context is left out in both terms.
    """
    nothing = torch.full_like(latents, torch.nan)
    context = context.to(latents)
    return density.log_prob(torch.cat([nothing, context], 1)) - density.log_prob(torch.cat([latents, context], 1))


def _check_members(detector: Detector) -> None:
    if len(detector.members) < 2:
        raise OptionError(f"detector {detector.name!r}: {detector.score} combines at least two detectors")
    names = [member.name for member in detector.members]
    odd = [name for name in names if not is_plain(name)]
    if odd:
        raise OptionError(
            f"detector {detector.name!r}: its member {odd[0]!r} has a folder of its name in the bundle, which may have"
            f" {LONGEST_NAME} letters, digits, blanks and _ . -; give it such a name"
        )
    if len(set(names)) < len(names):
        raise OptionError(f"detector {detector.name!r}: two of its members have the same name; give them others")
    if _members(detector) > MOST_MEMBERS or _levels(detector) > DEEPEST:
        raise OptionError(
            f"detector {detector.name!r} has {_members(detector)} members in {_levels(detector)} levels; a bundle has"
            f" at most {MOST_MEMBERS} in {DEEPEST}"
        )
    bare = [member.name for member in detector.members if member.calibration is None]
    if bare:
        raise OptionError(f"detector {detector.name!r}: its members {', '.join(bare)} are not calibrated")


def _members(detector: Detector) -> int:
    """How many members there are, with those of members."""
    return sum(1 + _members(member) for member in detector.members)


def _levels(detector: Detector) -> int:
    """How deep members have members."""
    return max((1 + _levels(member) for member in detector.members), default=0)


def scores_of(part: Part) -> list[str]:
    """The scores of patches that a model has, its own first."""
    model = part.module
    empty = torch.zeros(0, getattr(part.config, "channels", 1), PATCH, PATCH).to(like(model))
    with torch.inference_mode():
        return [*model.scores(empty), *(residuals.OPERATORS if hasattr(model, "reconstruct") else ())]


def _patch_score(model: Any, name: str) -> Callable[[Patches], Scores]:
    """The score of patches that has this name."""

    def own(x: Patches) -> Scores:
        return model.scores(x)[name]

    def residual(x: Patches) -> Scores:
        return residuals.OPERATORS[name](x, model.reconstruct(x))

    return residual if name in residuals.OPERATORS else own


def _onto(heatmap: Heatmap, grid: tuple[np.ndarray, np.ndarray], ratio: float) -> Grid:
    """The heatmap of another picture of the same image, at the nearest of its places, where that is in its tissue.

    Args:
        grid: rows and columns of the wanted places.
        ratio: px of the heatmap's picture to a px of theirs.
    """
    at = []
    for there, here in zip((heatmap.rows, heatmap.columns), grid, strict=True):
        positions = (here + 0.5) * ratio - 0.5
        at.append(np.abs(there[None, :] - positions[:, None]).argmin(1))
    return heatmap.scores[np.ix_(*at)]


def _grid(prepared: Prepared, step: int) -> tuple[np.ndarray, np.ndarray]:
    h, w = prepared.stored.shape
    return dense.places(h, w, step)
