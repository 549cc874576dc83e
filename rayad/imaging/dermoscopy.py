"""From the pixels of one dermoscopic image to what every later stage sees: its size, its colours, the skin.

After Mukesh et al. 2024: images are resized and their colours corrected. There are no mm in dermoscopy: a pixel of the
working resolution counts as one, so "mm" reads "px" wherever distances are given.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from rayad.arrays import Mask
from rayad.errors import ImageError, OptionError
from rayad.imaging.picture import Prepared, Source
from rayad.imaging.square import SMALLEST_PX, resize
from rayad.options import Within

Colours = Float[np.ndarray, "h w 3"]
DARK = 0.12
"""Brightness below which the border of an image is not skin but the rim of the lens."""
NORMS = {"gray-world": 1.0, "shades-of-gray": 6.0}
"""Minkowski norm p of a constancy (Finlayson and Trezzi 2004, "Shades of Gray and Colour Constancy")."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a dermoscopic image before patches are cut from it."""

    side_px: Annotated[int, Within(SMALLEST_PX, 8192)] = 64
    """Every image is drawn into a square of this side, whatever its own; of a patch's side it is one patch."""
    constancy: Literal["none", "gray-world", "shades-of-gray"] = "shades-of-gray"
    """Method by which the colour of the light is taken out."""

    def __post_init__(self) -> None:
        if self.side_px < SMALLEST_PX:
            raise OptionError(f"side_px of a dermoscopic image must be at least {SMALLEST_PX}, not {self.side_px}")
        if self.constancy not in ("none", *NORMS):
            raise OptionError(f"constancy is none, {' or '.join(NORMS)}, not {self.constancy!r}")

    @property
    def spacing_mm(self) -> float:
        """A pixel counts as a mm."""
        return 1.0

    @property
    def channels(self) -> int:
        """Red, green and blue."""
        return 3

    @property
    def intensity(self) -> str:
        """What models see."""
        return "colour"

    def prepare(self, source: Source) -> Prepared:
        """Resize, correct the colours, and find the skin inside the rim of the lens.

        Raises:
            ImageError: the image has no colours, or is dark all over.
        """
        if source.pixels.ndim != 3:
            raise ImageError("a dermoscopic image has three channels, this one is grey")
        resized = resize(source.pixels, self.side_px)
        skin = find_skin(resized)
        if not skin.any():
            raise ImageError("no skin in the image: it is dark all over")
        picture = resized if self.constancy == "none" else constant(resized, skin, NORMS[self.constancy])
        stored = picture.mean(axis=2, dtype=np.float32)
        return Prepared(stored, picture, skin, skin, self.spacing_mm, source)


def find_skin(pixels: Colours) -> Mask:
    """All but the dark rim: what is dark and joined to the border of the image."""
    dark = pixels.mean(axis=2) < DARK
    labels, _ = ndimage.label(dark)  # type: ignore[reportGeneralTypeIssues]  a pair without an output
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return ~np.isin(labels, border[border > 0])


def constant(pixels: Colours, skin: Mask, norm: float) -> Colours:
    """The image under white light: each channel divided by its Minkowski mean over the skin, the mean gain kept at one.

    Finlayson and Trezzi 2004, equation 5: (mean I^p)^(1/p) is the colour of the light.
    """
    light = (pixels[skin].astype(np.float64) ** norm).mean(axis=0) ** (1 / norm)
    light = np.maximum(light, 1e-6)
    return np.clip(pixels * (light.mean() / light), 0, 1).astype(np.float32)
