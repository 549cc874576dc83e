"""Masks of breast and pectoral muscle against those drawn by hand, on 66 mammograms of DDSM (Tiryaki et al.).

    python benchmarks/masks.py --source ddsm-tissue-66 --out masks

Prints the intersection over union (median, quartiles, worst ten) and draws the worst ten of each: drawn by hand in
green, found here in red. The hand-drawn labels: above 64 breast, 255 muscle.
"""

import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from skimage.segmentation import find_boundaries

from rayad import storage
from rayad.arrays import Mask, Pixels
from rayad.imaging import raster
from rayad.imaging.breast import find_breast, find_pectoral

SPACING_MM = 0.25
"""960 rows of about 240 mm of film; the files do not say."""
RESULTS = Path(__file__).parent / "results" / "masks.json"
DRAWN, FOUND = (0, 200, 0), (230, 0, 0)
WORST = 10


@dataclass(frozen=True)
class Compared:
    """One image: what was drawn and what was found."""

    name: str
    pixels: Pixels
    drawn: Mask
    found: Mask

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both are empty."""
        union = (self.drawn | self.found).sum()
        return float((self.drawn & self.found).sum() / union) if union else 1.0

    def picture(self) -> Image.Image:
        """The image with both outlines."""
        grey = np.round(self.pixels / max(float(self.pixels.max()), 1e-6) * 255).astype(np.uint8)
        colours = np.stack([grey] * 3, 2)
        for mask, colour in ((self.drawn, DRAWN), (self.found, FOUND)):
            colours[find_boundaries(mask, mode="thick")] = colour
        return Image.fromarray(colours)


def compared(source: str) -> tuple[list[Compared], list[Compared]]:
    """Breasts and muscles of all images."""
    breasts, muscles = [], []
    for url in storage.listing(source, (".png",)):
        folder, name = posixpath.split(url)
        if not folder.endswith("/fgt_seg"):
            continue
        pixels = raster.grey(raster.read(url), name)
        labels = raster.read(f"{folder}_labels/{name.removesuffix('.png')}_LI.png").pixels
        breast = find_breast(pixels, SPACING_MM)
        breasts.append(Compared(name, pixels, labels > 64, breast))
        muscles.append(Compared(name, pixels, labels == 255, find_pectoral(pixels, breast, SPACING_MM)))
    return breasts, muscles


def summary(kind: str, images: Sequence[Compared], out: str) -> dict[str, object]:
    """Figures of a kind of mask; the worst are drawn side by side."""
    worst = sorted(images, key=lambda image: image.iou)[:WORST]
    pictures = [image.picture() for image in worst]
    sheet = Image.new("RGB", (sum(p.width for p in pictures[:5]), 2 * max(p.height for p in pictures)))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % 5 * picture.width, number // 5 * (sheet.height // 2)))
    sheet.thumbnail((2000, 2000))
    Path(out).mkdir(parents=True, exist_ok=True)
    sheet.save(Path(out) / f"worst-{kind}.png")
    low, median, high = np.quantile([image.iou for image in images], [0.25, 0.5, 0.75])
    return {
        "images": len(images),
        "iou_median": round(float(median), 4),
        "iou_quartiles": [round(float(low), 4), round(float(high), 4)],
        "worst": {image.name: round(image.iou, 4) for image in worst},
    }


def main(source: str, out: str = "masks") -> None:
    """Compare, print, draw, and keep the figures."""
    found = dict(zip(("breast", "muscle"), compared(source), strict=True))
    figures = {kind: summary(kind, images, out) for kind, images in found.items()}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
