"""The page of `rayad inspect`: what a data set holds, before one learns from it.

`inspection` holds "dataset", "source"; "counts": split -> {"images", "patients", "anomalous"}; "facts": name (view,
side, density, scanner, lesions) -> value -> count; "excluded", "failures", "doubtful": [{"reason", "count",
"example"}]; "twins": [{"a", "b", "bits", "rho", "splits", "across"}]; "intensities": scanner -> [share of a bin];
"corpus": what was checked in it; "problems": [sentence], what forbids to learn from it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image, ImageDraw

from rayad import storage
from rayad.arrays import Mask
from rayad.evaluation import images_of
from rayad.imaging.picture import Prepared
from rayad.patches.sample import Places

MOST_TWINS = 100
"""Rows of the table of images that look the same."""
SIDE = 240
"""Of a picture of the contact sheet, px."""
BODY, MUSCLE, PLACE, HIDDEN = (60, 200, 255), (255, 140, 0), (255, 230, 80), (90, 20, 70)
"""Colours: outline of the tissue, of what was imaged but is not scored, of patches; and what was painted over."""


def picture(prepared: Prepared, rows: Places, columns: Places, patch_px: int = 64) -> bytes:
    """An image with the outlines of its masks and its patches drawn in, WebP."""
    pixels = prepared.stored
    shrink = SIDE / max(pixels.shape)
    size = (max(1, round(pixels.shape[1] * shrink)), max(1, round(pixels.shape[0] * shrink)))
    grey = np.asarray(Image.fromarray((pixels * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX))
    rgb = np.repeat(grey[..., None], 3, axis=2)
    if prepared.hidden is not None:
        rgb[np.asarray(Image.fromarray(prepared.hidden).resize(size, Image.Resampling.NEAREST))] = HIDDEN
    for mask, colour in ((prepared.body, MUSCLE), (prepared.tissue, BODY)):
        small_mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        rgb[_outline(small_mask)] = colour
    sheet = Image.fromarray(rgb)
    pencil = ImageDraw.Draw(sheet)
    for row, column in zip(rows, columns, strict=True):
        corners = [(column - patch_px / 2) * shrink, (row - patch_px / 2) * shrink]
        pencil.rectangle([*corners, corners[0] + patch_px * shrink, corners[1] + patch_px * shrink], outline=PLACE)
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def _outline(mask: Mask) -> Mask:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inner


def curves(intensities: Mapping[str, Sequence[float]]) -> Markup:
    """Histograms of tissue intensity, a line a scanner, as SVG."""
    width, height, paths = 640, 180, []
    highest = max((max(shares) for shares in intensities.values()), default=1) or 1
    for number, (name, shares) in enumerate(intensities.items()):
        points = " ".join(
            f"{width * (i + 0.5) / len(shares):.1f},{4 + (height - 4) * (1 - share / highest):.1f}"
            for i, share in enumerate(shares)
        )
        colour = f"hsl({number * 360 / max(1, len(intensities)):.0f} 70% 45%)"
        label = escape(name or "not known")
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        paths.append(f'<text x="{width + 12}" y="{18 + 18 * number}" fill="{colour}">{label}</text>')
    high = max(height + 24, 24 + 18 * len(intensities))
    axis = (
        f'<line x1="0" y1="{height}" x2="{width}" y2="{height}" stroke="currentColor"/>'
        f'<text x="0" y="{height + 18}" fill="currentColor">0</text>'
        f'<text x="{width / 2}" y="{height + 18}" fill="currentColor" text-anchor="middle">'
        "brightness, share of full scale</text>"
        f'<text x="4" y="14" fill="currentColor">{highest:.1%} of the tissue in a 64th of the scale</text>'
        f'<text x="{width}" y="{height + 18}" fill="currentColor" text-anchor="end">1</text>'
    )
    head = f'<svg width="{width + 280}" height="{high}" role="img" aria-label="intensities of the tissue by scanner">'
    return Markup(head + axis + "".join(paths) + "</svg>")


def build(inspection: dict[str, Any], pictures: Sequence[tuple[str, bytes]], url: str) -> str:
    """Write inspection.json and index.html; return the URL of the page.

    Args:
        inspection: see the head of this module.
        pictures: name of an image and its picture.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("rayad.evaluation").joinpath("inspection.html.j2").read_text("utf-8")
    shown = [(name, base64.b64encode(data).decode()) for name, data in pictures]
    page = environment.from_string(template).render(
        inspection=inspection,
        called=images_of(inspection["dataset"], inspection["source"]),
        shown=shown,
        most_twins=MOST_TWINS,
        curves=curves(inspection["intensities"]),
    )
    storage.write_json(storage.join(url, "inspection.json"), inspection)
    index = storage.join(url, "index.html")
    storage.write_bytes(index, page.encode())
    return index
