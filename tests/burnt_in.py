"""Text as machines burn it into the background of a mammogram."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rayad.arrays import Mask, Pixels

TEXT = "DOE^JANE 19470313"


def burn(pixels: Pixels, top: float, right: bool, height_px: int) -> tuple[Pixels, Mask]:
    """The image with white text at a side, and where the text is.

    Args:
        top: of the text, a share of the image's height.
        right: at the right side, else at the left.
    """
    font = ImageFont.load_default(height_px)
    sheet = Image.new("L", pixels.shape[::-1], 0)
    pencil = ImageDraw.Draw(sheet)
    left = pixels.shape[1] - pencil.textlength(TEXT, font=font) - 10 if right else 10
    pencil.text((left, top * pixels.shape[0]), TEXT, fill=255, font=font)
    ink = np.asarray(sheet, np.float32) / 255
    return pixels * (1 - ink) + ink, ink > 0
