"""What a model has learned so far, as a strip: patches, how it draws them, and what it draws out of nothing."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from rayad.tensors import Latents, Patches, like

GAP = 2
"""Between pictures, px."""
White = 255


def rows(model: Any, x: Patches) -> dict[str, Patches]:
    """What a row shows -> its patches: those given; reconstructions, if the model has any; draws from random latents.

    The latents are standard normal and the same at every call, so that one sees a draw become healthy tissue. Models
    whose latents are codes, or that have no decoder or generator of latents, draw nothing.
    """
    named = {"healthy patches": x}
    with torch.no_grad():
        if hasattr(model, "reconstruct"):
            named["their reconstructions"] = model.reconstruct(x)
        draws = _drawn(model, len(x))
        if draws is not None:
            named["draws from standard normal latents"] = draws
    return named


def strip(patches: Iterable[Patches]) -> UInt8[np.ndarray, "high wide 3"]:
    """Rows of pictures, one above the other."""
    return np.concatenate([_row(row) for row in patches])


def png(picture: UInt8[np.ndarray, "high wide 3"]) -> bytes:
    """The strip as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(model: Any, z: Latents) -> Patches | None:
    """Patches from latents; None of a model that decodes none."""
    decode = next((own for name in ("decode", "draw", "decoder") if (own := getattr(model, name, None))), None)
    if decode is None:
        return None
    with torch.no_grad():
        return decode(z.to(like(model)))


def _drawn(model: Any, number: int) -> Patches | None:
    if getattr(model, "states", ()):
        return None
    return decoded(model, torch.randn(number, model.latents, generator=torch.Generator().manual_seed(0)))


def _row(x: Patches) -> UInt8[np.ndarray, "high wide 3"]:
    """Patches side by side, white between them."""
    pixels = (x[:, :3] if x.shape[1] == 3 else x[:, :1].expand(-1, 3, -1, -1)).float().clamp(0, 1).cpu()
    framed = torch.nn.functional.pad(pixels, (GAP, GAP, GAP, GAP), value=1.0)
    return (framed.permute(2, 0, 3, 1).flatten(1, 2).numpy() * White).round().astype(np.uint8)
