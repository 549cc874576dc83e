"""A detector: everything that turns an image into a heatmap, as a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rayad import bounds
from rayad.arrays import Grid, GridMask
from rayad.errors import ImageError, OptionError
from rayad.imaging.picture import Prepared, Preprocessing, step_px
from rayad.imaging.position import position
from rayad.models._blocks import PATCH_PX, patch_of
from rayad.scoring import combine, dense, floors
from rayad.scoring.adjustment import Adjustment
from rayad.scoring.calibrate import Calibration
from rayad.scoring.combine import PLAIN, Aggregation, aggregate
from rayad.scoring.files import DEEPEST, LONGEST_NAME, MOST_MEMBERS, is_plain
from rayad.scoring.rule import Rule, parse
from rayad.scoring.scores import LATENT, Floor, LatentScore, ModelScore, Part, scores_of, told
from rayad.scoring.taught import Teaching
from rayad.terminal import printable

STEP_MM = 3.2
"""Distance of places where nobody says another."""


@dataclass(frozen=True)
class Heatmap:
    """Scores of one image at the places of a grid."""

    scores: Grid
    """nan outside the tissue."""
    rows: np.ndarray
    """Rows of the places, in px of the working resolution."""
    columns: np.ndarray
    tissue: GridMask


@dataclass(frozen=True)
class Detector:
    """One way to score an image; a frozen value, so scoring an image depends on nothing else."""

    name: str
    score: "Floor | ModelScore | LatentScore | Combined | Taught"
    preprocessing: Preprocessing
    aggregation: Aggregation = PLAIN
    adjustment: Adjustment | None = None
    """Healthy scores given the place, by which aggregated scores are adjusted; None: they are left as they are."""
    calibration: Calibration | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Part | None:
        """The model whose patches or latents are scored."""
        return self.score.model if isinstance(self.score, ModelScore | LatentScore) else None

    @property
    def density(self) -> Part | None:
        """The density that scores latents."""
        return self.score.density if isinstance(self.score, LatentScore) else None

    @property
    def both_sides(self) -> bool:
        """Whether it looks at the other breast too, or a member does."""
        own = isinstance(self.score, LatentScore) and self.score.both_sides
        return own or any(member.both_sides for member in self.members)

    @property
    def members(self) -> "tuple[Detector, ...]":
        """The detectors whose scores are combined."""
        return self.score.members if isinstance(self.score, Combined | Taught) else ()

    @property
    def teaching(self) -> Teaching | None:
        """What labels taught."""
        return self.score.teaching if isinstance(self.score, Taught) else None

    @property
    def patch_px(self) -> int:
        """Side of the patches that are scored, px; of several detectors, the largest."""
        if isinstance(self.score, Floor):
            return self.score.patch_px
        return max([member.patch_px for member in self.members] or [patch_of(self.model and self.model.module)])

    @property
    def rule(self) -> Rule | None:
        """The rule by which its images are normal or abnormal, where it has one."""
        text = self.provenance.get("rule", "")
        return parse(text) if text else None

    def ruled(self, rule: str) -> "Detector":
        """The detector with this rule, "" for none.

        Raises:
            OptionError: it is no rule, or none for so few healthy patients.
        """
        if rule and self.calibration:
            parse(rule).threshold(self.calibration)
        others = {name: value for name, value in self.provenance.items() if name != "rule"}
        return replace(self, provenance=others | ({"rule": str(parse(rule))} if rule else {}))

    def summary(self) -> str:
        """One line on what it is."""
        parts = [f"{p.name} of {sum(t.numel() for t in p.module.state_dict().values()):,} numbers" for p in self._parts]
        parts += [f"of {', '.join(member.name for member in self.members)}"] if self.members else []
        parts += ["adjusted for the place"] if self.adjustment else []
        patients = self.calibration.patients if self.calibration else 0
        calibrated = f"calibrated on {patients} healthy patients" if patients else "not calibrated, so without p-values"
        return printable(", ".join([f"{self.name} scores by {self.score.name}", *parts, calibrated]))

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

    def heatmap(
        self, prepared: Prepared, step: int, member_heatmaps: Mapping[str, Heatmap] = MappingProxyType({})
    ) -> Heatmap:
        """Score the tissue of a prepared image on a grid.

        Args:
            step: distance of the places, in px of the working resolution.
            member_heatmaps: heatmaps of this image that members need not compute again, by name.

        Raises:
            ImageError: the image is smaller than a patch, no place lies in the tissue, or more than may be scored.
        """
        tissue = _tissue(prepared, step)
        if isinstance(self.score, Combined | Taught):
            values = self.score.places(prepared, step, tissue, self.preprocessing, member_heatmaps)
        else:
            values = self.score.places(prepared, step, tissue)
        return self._mapped(values, prepared, step, tissue)

    def heatmaps(self, images: Sequence[Prepared], step: int) -> list[Heatmap]:
        """Of several images, each as `heatmap` gives it alone; scores of latents on a GPU in fewer passes.

        Raises:
            ImageError: as `heatmap`, for whichever of the images.
        """
        if len(images) < 2 or not isinstance(self.score, LatentScore) or not self.score.faster_together:
            return [self.heatmap(image, step) for image in images]
        tissues = [_tissue(image, step) for image in images]
        values = self.score.places_together(images, step, tissues)
        return [
            self._mapped(image_values, image, step, tissue)
            for image_values, image, tissue in zip(values, images, tissues, strict=True)
        ]

    def on(self, device: str) -> "Detector":
        """The detector with its parts on a device, "cuda" or "cpu"."""
        for part in self._parts:
            part.module.to(device)
        for member in self.members:
            member.on(device)
        return self

    def _mapped(self, values: np.ndarray, prepared: Prepared, step: int, tissue: GridMask) -> Heatmap:
        """The tissue's scores, row by row, as a heatmap."""
        scores = np.full(tissue.shape, np.nan, np.float32)
        scores[tissue] = values
        step_mm = step * prepared.spacing_mm
        scores = aggregate(scores, tissue, self.aggregation, step_mm)
        rows, columns = _grid(prepared, step)
        if self.adjustment:
            scores = self.adjustment.mapped(scores, tissue, position(prepared, rows, columns), step_mm)
        return Heatmap(scores, rows, columns, tissue)

    @property
    def _parts(self) -> list[Part]:
        return [part for part in (self.model, self.density) if part]


@dataclass(frozen=True)
class Combined:
    """The scores of several detectors as one, each calibrated on healthy patients."""

    name: str
    """How they are combined: one of `combine.RULES`."""
    members: tuple[Detector, ...]

    def __post_init__(self) -> None:
        if self.name not in combine.RULES:
            raise OptionError(f"no rule {self.name!r}; detectors are combined by {', '.join(combine.RULES)}")
        if len(self.members) < 2 or (self.name == "difference" and len(self.members) > 2):
            number = "two" if self.name == "difference" else "at least two"
            raise OptionError(f"{self.name} combines {number} detectors, not {len(self.members)}")
        _require_members(self)

    def places(
        self,
        prepared: Prepared,
        step: int,
        tissue: GridMask,
        preprocessing: Preprocessing,
        member_heatmaps: Mapping[str, Heatmap] = MappingProxyType({}),
    ) -> np.ndarray:
        """Scores of the tissue's places, row by row; each member sees its own picture of the image.

        Args:
            preprocessing: that of the prepared image.
            member_heatmaps: heatmaps of this image that members need not compute again, by name.
        """
        return combine.RULES[self.name](_scored(self.members, prepared, step, preprocessing, member_heatmaps))[tissue]


@dataclass(frozen=True)
class Taught:
    """What labels taught about the scores of one or more detectors, each calibrated on healthy patients."""

    members: tuple[Detector, ...]
    teaching: Teaching

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != self.teaching.rarities:
            raise OptionError(
                f"what was taught is of {self.teaching.rarities} detectors, and {len(self.members)} are there"
            )
        _require_members(self)
        latents = latents_of(self.members) if self.teaching.latents else None
        if latents and latents.module.latents != self.teaching.latents:
            raise OptionError(
                f"what was taught is of {self.teaching.latents} latents, {latents.name} has {latents.module.latents}"
            )

    @property
    def name(self) -> str:
        """How it was learned: one of `taught.KINDS`."""
        return self.teaching.kind

    def places(
        self,
        prepared: Prepared,
        step: int,
        tissue: GridMask,
        preprocessing: Preprocessing,
        member_heatmaps: Mapping[str, Heatmap] = MappingProxyType({}),
    ) -> np.ndarray:
        """Log-odds of a lesion, up to a constant, at the tissue's places; see `Combined.places`."""
        places = described(
            self.members, prepared, step, tissue, preprocessing, member_heatmaps, bool(self.teaching.latents)
        )
        return self.teaching.log_odds(*places)


def described(
    members: Sequence[Detector],
    prepared: Prepared,
    step: int,
    tissue: GridMask,
    preprocessing: Preprocessing,
    member_heatmaps: Mapping[str, Heatmap],
    with_latents: bool,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n m"]]:
    """What a taught detector knows of the tissue's places, row by row: the rarity of each member's score, and the
    latents of the first model that has some; nan where a member scored none.

    Args:
        with_latents: else there are no columns of latents.
    """
    scored = _scored(members, prepared, step, preprocessing, member_heatmaps)
    rarities = np.stack([combine.rarity(scores, calibration)[tissue] for scores, calibration in scored], 1)
    if not with_latents:
        return rarities, np.zeros((len(rarities), 0), np.float32)
    model = latents_of(members)
    member = next(member for member in members if member.model is model)
    picture, member_step = _picture(member, prepared, step, preprocessing)
    inside, grid = _tissue(picture, member_step), _grid(picture, member_step)
    latents = np.full((*inside.shape, model.module.latents), np.nan, np.float32)
    with torch.inference_mode():
        encoded = dense.encode(told(model.module, picture), picture.pixels, member_step, inside)
    latents[inside] = encoded.cpu().numpy()
    ratio = prepared.spacing_mm / member.preprocessing.spacing_mm
    return rarities, latents[np.ix_(*_nearest(grid, _grid(prepared, step), ratio))][tissue]


def latents_of(members: Sequence[Detector]) -> Part:
    """The first model of these detectors that has latents; OptionError where none has."""
    for member in members:
        if member.model is not None and getattr(member.model.module, "latents", 0):
            return member.model
    raise OptionError(f"none of {', '.join(member.name for member in members)} has a model with latents")


Score = Floor | ModelScore | LatentScore | Combined | Taught


def score_named(
    name: str,
    model: Part | None = None,
    density: Part | None = None,
    context: tuple[str, ...] = (),
    members: tuple[Detector, ...] = (),
    patch_px: int = PATCH_PX,
    teaching: Teaching | None = None,
) -> Score:
    """The score of this name that these parts have.

    Args:
        patch_px: of a floor.
        teaching: what labels taught, of a taught detector.

    Raises:
        OptionError: they have no such score, or lack what it needs.
    """
    if name in floors.MAPS:
        return Floor(name, patch_px)
    if name in combine.RULES:
        return Combined(name, members)
    if teaching is not None and name == teaching.kind:
        return Taught(members, teaching)
    if name in LATENT:
        if model is None or density is None:
            raise OptionError(f"the {name} score needs a trained model and density")
        return LatentScore(model, density, name, context)
    if model is not None and name in scores_of(model):
        return ModelScore(model, name)
    names = [*floors.MAPS, *combine.RULES, *LATENT, *(scores_of(model) if model else ())]
    raise OptionError(f"no score {name!r}; there are {', '.join(names)}")


def _members(score: Score) -> int:
    """How many members there are, with those of members."""
    return sum(1 + _members(member.score) for member in score.members) if isinstance(score, Combined | Taught) else 0


def _levels(score: Score) -> int:
    """How deep members have members."""
    return 1 + max(_levels(member.score) for member in score.members) if isinstance(score, Combined | Taught) else 0


def _require_members(score: Combined | Taught) -> None:
    """OptionError unless these are detectors that a bundle can hold, each calibrated."""
    names = [member.name for member in score.members]
    unsuitable = [name for name in names if not is_plain(name)]
    if unsuitable:
        raise OptionError(
            f"the member {unsuitable[0]!r} has a folder of its name in the bundle, which may have {LONGEST_NAME} "
            "letters, digits, blanks and _ . -; give it such a name"
        )
    if len(set(names)) < len(names):
        raise OptionError("two members have the same name; give them others")
    if _members(score) > MOST_MEMBERS or _levels(score) > DEEPEST:
        raise OptionError(
            f"these are {_members(score)} members in {_levels(score)} levels; a bundle has at most {MOST_MEMBERS} in "
            f"{DEEPEST}"
        )
    uncalibrated = [member.name for member in score.members if member.calibration is None]
    if uncalibrated:
        raise OptionError(f"the members {', '.join(uncalibrated)} are not calibrated")


def _scored(
    members: Sequence[Detector],
    prepared: Prepared,
    step: int,
    preprocessing: Preprocessing,
    member_heatmaps: Mapping[str, Heatmap],
) -> list[tuple[Grid, Calibration]]:
    """The scores of each member at the places of the prepared image's grid, and what healthy patients score with it."""
    scored = []
    for member in members:
        heatmap = member_heatmaps.get(member.name)
        if heatmap is None:
            picture, member_step = _picture(member, prepared, step, preprocessing)
            heatmap = member.heatmap(picture, member_step, member_heatmaps)
        ratio = prepared.spacing_mm / member.preprocessing.spacing_mm
        assert member.calibration is not None  # _require_members saw to it
        indices = _nearest((heatmap.rows, heatmap.columns), _grid(prepared, step), ratio)
        scored.append((heatmap.scores[np.ix_(*indices)], member.calibration))
    return scored


def _picture(member: Detector, prepared: Prepared, step: int, preprocessing: Preprocessing) -> tuple[Prepared, int]:
    """The image as a member sees it, and the distance of its places in px of that."""
    picture = prepared if member.preprocessing == preprocessing else member.preprocessing.prepare(prepared.source)
    return picture, step_px(member.preprocessing, step * prepared.spacing_mm)


def _tissue(prepared: Prepared, step: int) -> GridMask:
    """The grid's places that are scored: those in the tissue."""
    tissue = prepared.tissue[np.ix_(*_grid(prepared, step))]
    if not tissue.any():
        raise ImageError(f"none of the {tissue.size} places of the grid lies in the tissue")
    bounds.current().require_places(int(tissue.sum()))
    return tissue


def _nearest(
    places: tuple[np.ndarray, np.ndarray], grid: tuple[np.ndarray, np.ndarray], ratio: float
) -> list[np.ndarray]:
    """Of each row and column of a grid, the number of the nearest row and column of another picture's places.

    Args:
        ratio: px of the other picture to a px of the grid's.
    """
    positions = [(own + 0.5) * ratio - 0.5 for own in grid]
    return [np.abs(other[None, :] - own[:, None]).argmin(1) for other, own in zip(places, positions, strict=True)]


def _grid(prepared: Prepared, step: int) -> tuple[np.ndarray, np.ndarray]:
    h, w = prepared.stored.shape
    return dense.places(h, w, step)
