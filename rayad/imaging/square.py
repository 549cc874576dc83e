"""Any image drawn into a square, all of which is scored: for sets of small images, such as MedMNIST.

There are no mm: a pixel of the working resolution counts as one.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float
from PIL import Image as Pillow

from rayad import bounds
from rayad.arrays import Image
from rayad.errors import ImageError, OptionError
from rayad.imaging.picture import Prepared, Source
from rayad.options import PATCH_SIDES, Within

SMALLEST_PX = int(PATCH_SIDES.least)
"""Side of the smallest patch."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before patches are cut from it."""

    side_px: Annotated[int, Within(SMALLEST_PX, 8192)] = 64
    """Every image is drawn into a square of this side, whatever its own; of a patch's side it is one patch."""
    colour: bool = False
    """Red, green and blue; otherwise grey."""

    def __post_init__(self) -> None:
        if self.side_px < SMALLEST_PX:
            raise OptionError(f"side_px of an image must be at least {SMALLEST_PX}, not {self.side_px}")

    @property
    def spacing_mm(self) -> float:
        """A pixel counts as a mm."""
        return 1.0

    @property
    def channels(self) -> int:
        """Of what models see."""
        return 3 if self.colour else 1

    @property
    def intensity(self) -> str:
        """What models see."""
        return "colour" if self.colour else "stored"

    def prepare(self, source: Source) -> Prepared:
        """Resize; ImageError if the image has colours and none are wanted, or none and they are."""
        if (source.pixels.ndim == 3) != self.colour:
            expected = "in colour" if self.colour else "in grey"
            raise ImageError(f"an image {expected} expected, this one has {source.pixels.shape}")
        picture = resize(source.pixels, self.side_px)
        stored = picture.mean(axis=2, dtype=np.float32) if self.colour else picture
        all_pixels = np.ones(stored.shape, dtype=bool)
        return Prepared(stored, picture, all_pixels, all_pixels, self.spacing_mm, source)


def resize(pixels: Image, side: int) -> Float[np.ndarray, "side side *channels"]:
    """The image drawn into a square, each channel by the Lanczos kernel; no value leaves the range of the input."""
    bounds.current().require_pixels(side, side, "the image", " of the working resolution")
    channels = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    resized_channels = [
        np.asarray(
            Pillow.fromarray(np.ascontiguousarray(channel, np.float32)).resize((side, side), Pillow.Resampling.LANCZOS)
        )
        for channel in channels
    ]
    return np.stack(resized_channels, axis=-1).clip(pixels.min(), pixels.max()).reshape(side, side, *pixels.shape[2:])
