"""Is an image what it is taken for? A score of anything else is a number without a meaning.

A doubt has a kind and a sentence. What cannot be right is refused, unless its kind is overruled by name; what may be
wrong is told beside the result. The limits are those of real images: `docs/data.md` has how they were chosen.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rayad.arrays import Mask, Pixels
from rayad.errors import ImageError, OptionError
from rayad.imaging.breast import chest_wall

VARIABLE = "RAYAD_FORCE"
"""Of the environment: the kinds that are overruled, with commas."""
Kind = Literal["polarity", "frame", "size", "depth", "side", "far", "kind", "other"]
KINDS: dict[Kind, str] = {
    "polarity": "air is bright: an inverted image, or none of a breast",
    "frame": "a bright frame around the picture, as of a picture of a screen",
    "size": "the breast is larger or smaller than breasts are: another pixel spacing",
    "depth": "values end far below the full scale: fewer bits than the file says",
    "side": "the header says two sides, or its chest wall is not where that of the picture is",
    "far": "as a whole it is unlike the healthy images that a detector was calibrated on; told, never refused",
    "kind": "no standard view of a whole breast: implant, spot, magnification, synthetic, specimen, test",
    "other": "the image of the other breast cannot be compared with; told, never refused",
}
BRIGHT_AIR, PALE_AIR = 0.3, 0.15
"""What 40 of 100 places along the border are darker than, as a share of the brightest: of 829 real images 0.06 at most,
of the same inverted 0.52 at least."""
ALIKE = 0.1
"""How much of the highest brightness lies between the pixels of a frame."""
SMALLEST_MM, LARGEST_MM = 40.0, 350.0
"""Height of a breast with its muscle in the image."""
LARGEST_SIDE_MM = 600.0
"""Of an image: films have at most 360 mm, and their scans a border."""
DEPTHS = (10, 12, 14)
"""Bits that detectors have, in files that say 16."""
ENOUGH = 250_000
"""Pixels of which the brightest are looked for."""
BORDER = 0.02
"""Width of the border, as a share of the shorter side."""


@dataclass(frozen=True)
class Doubt:
    """What may be wrong with an image."""

    kind: str
    """Of `KINDS`."""
    sentence: str


def without_other(error: ImageError) -> Doubt:
    """The doubt about an image whose other breast cannot be compared with, and why it cannot."""
    return Doubt("other", f"the other breast is left out: {error}")


def use(kinds: Iterable[str]) -> None:
    """Overrule doubts of these kinds, in this process and all that it starts.

    Raises:
        OptionError: there is no such kind.
    """
    os.environ[VARIABLE] = ",".join(checked(kinds))


def forced() -> tuple[str, ...]:
    """The kinds that are overruled in this process."""
    return checked(filter(None, os.environ.get(VARIABLE, "").split(",")))


def checked(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds; OptionError where one is none."""
    checked_kinds = tuple(kinds)
    if unknown := [kind for kind in checked_kinds if kind not in KINDS]:
        raise OptionError(f"there is no doubt called {unknown[0]!r} that could be overruled, only {', '.join(KINDS)}")
    return checked_kinds


def refuse(doubt: Doubt, force: Sequence[str]) -> Doubt:
    """The doubt, if it is overruled; ImageError else."""
    if doubt.kind not in force:
        raise ImageError(f"{doubt.sentence} (force {doubt.kind} to overrule this)")
    return doubt


def true_depth(pixels: Pixels, force: Sequence[str]) -> tuple[Pixels, list[Doubt]]:
    """The pixels as a share of the full scale that they have, where a file of 16 bits holds values of fewer.

    Args:
        force: kinds that are overruled; with "depth" the file is believed.
    """
    if "depth" in force:
        return pixels, []
    highest = float(pixels.max(initial=0))
    if not 0 < highest < (2 ** max(DEPTHS) - 0.5) / 65535:
        return pixels, []
    values = np.rint(pixels * np.float32(65535))
    sample = values[:: max(1, len(values) // 64)]
    if (
        np.abs(pixels[:: max(1, len(values) // 64)] * np.float32(65535) - sample).max() > 0.05
        or not (sample % 257).any()
    ):
        return pixels, []  # of another file than one of 16 bits
    bits = next(bits for bits in DEPTHS if values.max() < 2**bits)
    sentence = f"values end at {values.max():,.0f} of 65,535 and are taken for {bits} bits"
    return (values / np.float32(2**bits - 1)).astype(np.float32), [Doubt("depth", sentence)]


def require_size(shape: tuple[int, ...], spacing_mm: float, force: Sequence[str]) -> list[Doubt]:
    """Whether an image can be a mammogram of this spacing, before it is made of another; ImageError where it cannot."""
    h, w = (side * spacing_mm for side in shape[:2])
    if max(h, w) <= LARGEST_SIDE_MM:
        return []
    sentence = f"an image of {h:.0f} x {w:.0f} mm, {spacing_mm:g} mm a pixel, is larger than any film"
    return [refuse(Doubt("size", sentence), force)]


def of_mammogram(pixels: Pixels, breast: Mask, spacing_mm: float, force: Sequence[str], wall: str = "") -> list[Doubt]:
    """What may be wrong with a mammogram in which a breast was found.

    Args:
        pixels: at working resolution.
        force: kinds that are overruled.
        wall: where its header says that the chest wall is, left or right; empty: nothing.

    Raises:
        ImageError: it cannot be one.
    """
    step = max(1, int((pixels.size / ENOUGH) ** 0.5))
    highest = max(float(np.percentile(pixels[::step, ::step], 99.5)), 1e-6)
    doubts = [*_frame(pixels, highest, force), *_polarity(pixels, highest, force)]
    return [*doubts, *_breast_size(breast, spacing_mm, force), *_wall(breast, wall)]


def _wall(breast: Mask, header_wall: str) -> list[Doubt]:
    picture_wall = chest_wall(breast) if header_wall else ""
    if picture_wall in ("", header_wall):
        return []
    return [
        Doubt(
            "side",
            f"by the header the chest wall is at the {header_wall} edge, in the picture at the {picture_wall} one",
        )
    ]


def _frame(pixels: Pixels, highest: float, force: Sequence[str]) -> list[Doubt]:
    """The outermost pixels of a mammogram are of air and of the chest wall, and not all alike."""
    ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    level = float(ring.mean())
    if level < PALE_AIR * highest or float(np.ptp(ring)) > ALIKE * highest:
        return []
    sentence = f"all pixels at the edge have {level / highest:.0%} of the highest brightness: a frame, or no mammogram"
    return [refuse(Doubt("frame", sentence), force)]


def _polarity(pixels: Pixels, highest: float, force: Sequence[str]) -> list[Doubt]:
    width = max(1, round(BORDER * min(pixels.shape)))
    inner = pixels[width:-width]
    border = np.concatenate([pixels[:width], pixels[-width:]], axis=None)
    border = np.concatenate([border, inner[:, :width].ravel(), inner[:, -width:].ravel()])
    air = float(np.percentile(border, 40)) / highest
    sentence = f"the air beside the breast has {air:.0%} of the highest brightness"
    if air >= BRIGHT_AIR:
        return [refuse(Doubt("polarity", f"{sentence}: the image seems to be inverted, or to show no breast"), force)]
    return [Doubt("polarity", sentence)] if air >= PALE_AIR else []


def _breast_size(breast: Mask, spacing_mm: float, force: Sequence[str]) -> list[Doubt]:
    rows = np.flatnonzero(breast.any(axis=1))
    height = (rows[-1] - rows[0] + 1) * spacing_mm
    if SMALLEST_MM <= height <= LARGEST_MM:
        return []
    sentence = (
        f"a breast is {SMALLEST_MM:.0f} to {LARGEST_MM:.0f} mm high, not {height:.0f}: its spacing is another one"
    )
    return [refuse(Doubt("size", sentence), force)]
