"""One image on its way to the places that are scored: what came in, and what every later stage sees of it.

How it gets there is a module of this folder with a frozen dataclass ``Preprocessing``: mammogram, dermoscopy, square.
A detector bundle keeps its settings, so an image is prepared in scoring as it was in training.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rayad import catalog
from rayad.arrays import Image, Mask, Pixels
from rayad.errors import FormatError, OptionError
from rayad.imaging.plausibility import Doubt


@dataclass(frozen=True)
class Source:
    """An image as it came in, and what is known of it."""

    pixels: Image
    """At its own resolution."""
    spacing_mm: float
    """mm a pixel of that image."""
    view: str = ""
    """MLO, CC or "" where it is not known; only an MLO view shows a pectoral muscle."""
    density: str = ""
    """The corpus's own class of the tissue, or empty."""
    force: tuple[str, ...] = ()
    """Doubts that are overruled; see rayad/imaging/plausibility.py."""
    doubts: tuple[Doubt, ...] = ()
    """What is known to be wrong with it already."""
    wall: str = ""
    """At which edge its header says that the chest wall is, left or right; empty: nothing says it."""
    laterality: str = ""
    """L, R or "" where it is not known."""
    patient: str = field(default="", repr=False)
    """Hash of the patient's identifier, for comparison; empty: the file has none."""
    other: "Source | None" = None
    """The image of the patient's other breast in the same view, where there is one and it is asked for."""


@dataclass(frozen=True)
class Prepared:
    """An image at working resolution."""

    stored: Pixels
    """The image's own values, of colours their mean, float32 in [0, 1]."""
    pixels: Image
    """What models see of them, float32 in [0, 1]."""
    body: Mask
    """What was imaged, without labels, tape and edges: the breast with the pectoral muscle, or the skin."""
    tissue: Mask
    """The places that are scored: of the breast what is not muscle."""
    spacing_mm: float
    source: Source
    hidden: Mask | None = None
    """Where labels and text were painted over; None: nowhere."""
    doubts: tuple[Doubt, ...] = ()
    """What may be wrong with the image."""
    other: "Prepared | None" = None
    """The other breast, where its source has one that can be prepared."""

    @property
    def shown(self) -> Image:
        """What people are shown of it: its own values, or its colours."""
        return self.stored if self.pixels.ndim == 2 else self.pixels


@runtime_checkable
class Preprocessing(Protocol):
    """What happens to an image before patches are cut from it: a frozen dataclass, the same in training and scoring."""

    @property
    def spacing_mm(self) -> float:
        """Working resolution, mm a pixel."""
        ...

    @property
    def channels(self) -> int:
        """Channels of what models see."""
        ...

    @property
    def side_px(self) -> int:
        """Side of the square that every image is drawn into; 0 where images have sizes of their own."""
        ...

    @property
    def intensity(self) -> str:
        """What models see: the name of the picture."""
        ...

    def prepare(self, source: Source) -> Prepared:
        """Resample to the working resolution and find the tissue.

        Raises:
            ImageError: the image shows nothing to score, or is too small.
            OptionError: a spacing that is not a positive number.
        """
        ...


def step_px(preprocessing: Preprocessing, step_mm: float) -> int:
    """A distance of places in px of the working resolution.

    Raises:
        OptionError: it would be less than a pixel.
    """
    step = round(step_mm / preprocessing.spacing_mm)
    if step < 1:
        raise OptionError(f"places {step_mm} mm apart are closer than the pixels, {preprocessing.spacing_mm} mm")
    return step


def described(preprocessing: Preprocessing) -> dict[str, Any]:
    """Its kind and its settings, for JSON."""
    return catalog.described(preprocessing)


def from_description(description: dict[str, Any]) -> Preprocessing:
    """The inverse of `described`; before there were several kinds, all were of mammograms.

    Raises:
        FormatError: settings that this kind does not have.
    """
    settings = dict(description)
    kind = settings.pop("kind", "mammogram")
    try:
        return catalog.find("imaging", kind).Preprocessing(**settings)
    except TypeError:
        raise FormatError(f"preprocessing {kind} does not have the settings {', '.join(settings)}") from None
