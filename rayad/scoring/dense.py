"""A whole image through a model at once, equal to the model's patch by patch.

The places of a grid with distance `step` are the pixels step // 2, step // 2 + step, ... in both directions; the
patch of a place is the square around it, of the side that the model sees, in the image continued by reflection. An
encoder with unpadded convolutions gives cells at a distance of 8 px; where the step is a multiple of that, the cells of
the image contain those of every patch. So the convolutions run once over the image, in tiles that bound the memory, and
the head reads windows of as many cells as a patch has, 5x5 of 64 px. A network that scores pixels goes over the image
in such tiles too. Other models and other steps take the patches one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import pad

from rayad import bounds
from rayad.arrays import GridMask, Image
from rayad.errors import ImageError
from rayad.models._blocks import PATCH_PX, STRIDE, patch_of
from rayad.tensors import Latents, Patches, Scores, like

TILE = (576, 1152)
"""Rows and columns of an image, in px, whose cells are computed at once: in float32 at most 21 MB a layer."""
TOGETHER = 8
"""Tiles of several images that go through the encoder at once."""
BATCH = 64
"""Patches of 64 px that are looked at at once; more are slower on a CPU, their layers leave the cache."""

Rows = Int[np.ndarray, " gh"]
Columns = Int[np.ndarray, " gw"]
Indices = Int[np.ndarray, "_"]
"""Of places, in the flattened grid."""
Located = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The places of an image, and which of them are wanted."""
LogProb = Callable[[Latents], Scores]


@runtime_checkable
class ImageModel(Protocol):
    """What a model is asked for here."""

    def encode(self, x: Patches) -> Latents: ...

    def scores(self, x: Patches) -> dict[str, Scores]: ...


@runtime_checkable
class Decoding(Protocol):
    """A model that reconstructs a patch from its latents alone: reconstruct(x) is decode(encode(x)), and its score
    "reconstruction" the mean squared error of that."""

    def decode(self, z: Latents) -> Patches:
        """The patch of each latent."""
        ...


@runtime_checkable
class Sliding(Protocol):
    """An encoder that goes over whole images: the cells of an image contain those of every patch."""

    slides: bool
    """It does, with its padding."""

    def cells(self, x: Patches) -> Tensor:
        """Cells 8 px apart, n c h w."""
        ...

    def windows(self, cells: Tensor, stride: int) -> Tensor:
        """The latents of every window of as many cells as a patch has, so many cells apart, n m gh gw."""
        ...


@runtime_checkable
class OfPixels(Protocol):
    """A model of pixels: a patch's score is made of those in its middle, which nothing outside the patch reaches."""

    stride: int
    """Px of the image in a pixel of its coarsest maps: patches that far apart have these in common."""

    def log_odds(self, x: Patches) -> Tensor:
        """A number a pixel, n h w."""
        ...

    def windows(self, log_odds: Tensor, step: int) -> Tensor:
        """The score of every patch, so many px apart, n gh gw."""
        ...


def places(h: int, w: int, step: int) -> tuple[Rows, Columns]:
    """Rows and columns of the grid's places, in px."""
    return np.arange(step // 2, h, step), np.arange(step // 2, w, step)


def encode(model: nn.Module, pixels: Image, step: int, mask: GridMask | None = None) -> Latents:
    """The latents of the places in the mask, or of all, row by row; the decoder does not run.

    Computed in the precision of the model; bfloat16 comes back as float32.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    selected = _grid(pixels, step, patch_of(model), mask)[2]
    indices, latents = zip(*_parts(model, pixels, step, selected), strict=True)
    return torch.cat(latents)[_row_by_row(indices)]


def likelihood(model: nn.Module, log_prob: LogProb, pixels: Image, step: int, mask: GridMask | None = None) -> Scores:
    """-log p of the latents of the places in the mask, or of all, row by row, in nats; see `latent_scores`."""
    return latent_scores(model, lambda z: -log_prob(z), pixels, step, mask)


def latent_scores(
    model: nn.Module,
    score: Callable[[Latents], Scores],
    pixels: Image,
    step: int,
    mask: GridMask | None = None,
) -> Scores:
    """A score of the latents of the places in the mask, or of all, row by row; higher is more anomalous.

    Encoder and score go over the image in one pass, tile by tile: of the latents no more than a tile's are kept.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    selected = _grid(pixels, step, patch_of(model), mask)[2]
    indices, scores = zip(*((index, score(z)) for index, z in _parts(model, pixels, step, selected)), strict=True)
    return torch.cat(scores)[_row_by_row(indices)]


def latent_scores_together(
    model: nn.Module,
    score: Callable[[Latents], Scores],
    images: Sequence[np.ndarray],
    step: int,
    masks: Sequence[np.ndarray],
) -> list[Tensor]:
    """`latent_scores` of several images in few passes: tiles of like size go through the encoder as one batch, and the
    score sees the latents of all images at once. What an image gets does not depend on the others.

    Raises:
        ImageError: an image is smaller than a patch.
    """
    grids = [_grid(pixels, step, patch_of(model), mask) for pixels, mask in zip(images, masks, strict=True)]
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Sliding) or not encoder.slides or step % STRIDE:
        latents = [encode_patches(model, pixels, step, mask) for pixels, mask in zip(images, masks, strict=True)]
    else:
        latents = _encode_together(model, encoder, images, step, grids)
    sizes = [len(z) for z in latents]
    return list(score(torch.cat(latents)).split(sizes))


def _encode_together(
    model: nn.Module, encoder: Sliding, images: Sequence[np.ndarray], step: int, grids: Sequence[Located]
) -> list[Tensor]:
    """Latents of the wanted places of each image, row by row."""
    side = patch_of(model)
    crops = []  # image, tile of its grid, pixels
    for number, (pixels, (rows, columns, selected)) in enumerate(zip(images, grids, strict=True)):
        padded = _continued(pixels, model)
        for tile in _tiles(selected, step, side):
            (top, bottom), (left, right) = rows[tile[0]][[0, -1]], columns[tile[1]][[0, -1]]
            crops.append((number, tile, padded[:, top : bottom + side, left : right + side]))
    parts: list[list[tuple[np.ndarray, Tensor]]] = [[] for _ in images]
    crops.sort(key=lambda crop: crop[2].shape[1:])
    for start in range(0, len(crops), TOGETHER):
        bounds.go_on()
        group = crops[start : start + TOGETHER]
        height, width = (max(crop.shape[side] for _, _, crop in group) for side in (1, 2))
        # what is added below and to the right reaches no cell of the crop: the convolutions are unpadded
        batch = torch.stack([pad(crop, (0, width - crop.shape[2], 0, height - crop.shape[1])) for _, _, crop in group])
        with torch.no_grad():
            latents = encoder.windows(encoder.cells(batch), step // STRIDE).permute(0, 2, 3, 1)
        for (number, tile, _), tile_latents in zip(group, latents, strict=True):
            selected = grids[number][2]
            is_selected = selected[tile]
            index = np.arange(selected.size).reshape(selected.shape)[tile][is_selected]
            inside = tile_latents[: is_selected.shape[0], : is_selected.shape[1]]
            parts[number].append((index, _full_precision(inside[torch.from_numpy(is_selected)])))
    return [
        torch.cat([z for _, z in part])[_row_by_row([index for index, _ in part])]
        if part
        else encode_patches(model, pixels, step, selected)  # nothing is wanted of it
        for part, pixels, (_, _, selected) in zip(parts, images, grids, strict=True)
    ]


def _parts(model: nn.Module, pixels: Image, step: int, selected: GridMask) -> Iterator[tuple[Indices, Latents]]:
    """The latents of the wanted places, a part of the image after the other, with the places' indices in the grid.

    There is at least one part, maybe empty.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Sliding) or not encoder.slides or step % STRIDE or not selected.any():
        index = np.arange(selected.size).reshape(selected.shape)
        yield index[selected], encode_patches(model, pixels, step, selected)
        return

    def latents(crop: Patches) -> Tensor:
        return encoder.windows(encoder.cells(crop), step // STRIDE)[0].permute(1, 2, 0)

    yield from _tiled(model, pixels, step, selected, latents)


def _tiled(
    model: nn.Module, pixels: Image, step: int, selected: GridMask, of_crop: Callable[[Patches], Tensor]
) -> Iterator[tuple[Indices, Tensor]]:
    """What is made of an image tile by tile, at the wanted places, with these places' indices in the grid.

    Args:
        of_crop: of the pixels of a tile's patches, 1 c h w, a value of each of its places, gh gw or gh gw m.
    """
    side, index = patch_of(model), np.arange(selected.size).reshape(selected.shape)
    rows, columns, _ = _grid(pixels, step, side, selected)
    image = _continued(pixels, model)[None]
    for tile in _tiles(selected, step, side):
        bounds.go_on()
        (top, bottom), (left, right) = rows[tile[0]][[0, -1]], columns[tile[1]][[0, -1]]
        with torch.no_grad():
            values = of_crop(image[:, :, top : bottom + side, left : right + side])
        yield index[tile][selected[tile]], _full_precision(values[torch.from_numpy(selected[tile])])


def _row_by_row(indices: Sequence[Indices]) -> Tensor:
    """The order that brings the parts' places into that of the grid."""
    return torch.from_numpy(np.concatenate(indices).argsort(kind="stable"))


def encode_patches(
    model: nn.Module, pixels: Image, step: int, mask: GridMask | None = None, *, batch: int = BATCH
) -> Latents:
    """The latents of the places in the mask, or of all, patch by patch: for any model and any step.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    scorer = cast(ImageModel, model)
    with torch.no_grad():
        latents = [scorer.encode(x) for x in _patches(model, pixels, step, mask, batch)]
    return _full_precision(torch.cat(latents))


def patch_scores(
    model: nn.Module,
    score: Callable[[Patches], Scores],
    pixels: Image,
    step: int,
    mask: GridMask | None = None,
    *,
    batch: int = BATCH,
) -> Scores:
    """A score of the patches of the places in the mask, or of all, row by row; higher is more anomalous.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    with torch.no_grad():
        scores = [score(x) for x in _patches(model, pixels, step, mask, batch)]
    return _full_precision(torch.cat(scores))


def pixel_scores(model: nn.Module, name: str, pixels: Image, step: int, mask: GridMask | None = None) -> Scores:
    """A model of pixels at the places in the mask, or at all, row by row.

    Args:
        model: `OfPixels`.
        name: of its score of patches.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    network, selected = cast(OfPixels, model), _grid(pixels, step, patch_of(model), mask)[2]
    if step % network.stride or not selected.any():
        return patch_scores(model, lambda x: cast(ImageModel, model).scores(x)[name], pixels, step, mask)
    parts = _tiled(model, pixels, step, selected, lambda crop: network.windows(network.log_odds(crop), step)[0])
    indices, scores = zip(*parts, strict=True)
    return torch.cat(scores)[_row_by_row(indices)]


def residual_scores(
    model: nn.Module,
    residual: Callable[[Patches, Patches], Scores],
    pixels: Image,
    step: int,
    mask: GridMask | None = None,
) -> Scores:
    """How far the patches of the places in the mask, or of all, are from what is decoded of their latents, row by row.

    The encoder goes over the image as in `encode`, the decoder from place to place.

    Args:
        model: `Decoding`.
        residual: of n patches and n reconstructions, n numbers.

    Raises:
        ImageError: the image is smaller than a patch.
    """
    decode = cast(Decoding, model).decode
    latents = encode(model, pixels, step, mask).to(like(model))
    scores, start = [], 0
    with torch.no_grad():
        for x in _patches(model, pixels, step, mask, BATCH):
            scores.append(residual(x, decode(latents[start : start + len(x)])))
            start += len(x)
    return _full_precision(torch.cat(scores))


def _patches(model: nn.Module, pixels: Image, step: int, mask: GridMask | None, batch: int) -> Iterator[Patches]:
    """The patches of the places in the mask in batches of as many pixels as so many patches of 64 px have; at least
    one, maybe empty."""
    side = patch_of(model)
    batch = max(1, batch * PATCH_PX**2 // side**2)
    rows, columns, selected = _grid(pixels, step, side, mask)
    windows = _continued(pixels, model).unfold(1, side, 1).unfold(2, side, 1)  # c h w s s, a view
    k, j = np.nonzero(selected)
    top, left = torch.from_numpy(rows[k]), torch.from_numpy(columns[j])
    for start in range(0, max(len(top), 1), batch):
        bounds.go_on()
        yield windows[:, top[start : start + batch], left[start : start + batch]].transpose(0, 1)


def _continued(pixels: Image, model: nn.Module) -> Tensor:
    """The image, c h w, with half a patch of its reflection around it: the patch of (r, c) begins there at (r, c)."""
    half = patch_of(model) // 2
    padded = np.pad(pixels, [(half, half), (half, half)] + [(0, 0)] * (pixels.ndim - 2), mode="reflect")
    return torch.from_numpy(np.moveaxis(padded.reshape(*padded.shape[:2], -1), 2, 0)).to(like(model))


def _grid(pixels: Image, step: int, side: int, mask: GridMask | None) -> tuple[Rows, Columns, GridMask]:
    """Rows and columns of the grid's places, and which of them are wanted; ImageError if no patch of this side fits."""
    h, w = pixels.shape[:2]
    if min(h, w) < side:
        raise ImageError(f"an image of at least {side}x{side} px is wanted to score patches, not {h}x{w}")
    rows, columns = places(h, w, step)
    selected = np.ones((len(rows), len(columns)), bool) if mask is None else mask
    assert selected.shape == (len(rows), len(columns))  # a mask is made for the grid of its image
    return rows, columns, selected


def _tiles(selected: GridMask, step: int, patch_px: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of the grid that hold all wanted places, each shrunk to those that it holds."""
    height, width = (max(1, (side - patch_px) // step + 1) for side in TILE)
    for top in range(0, selected.shape[0], height):
        for left in range(0, selected.shape[1], width):
            tile_places = np.argwhere(selected[top : top + height, left : left + width]) + np.array([top, left])
            if len(tile_places):
                first, last = tile_places.min(0), tile_places.max(0) + 1
                yield slice(first[0], last[0]), slice(first[1], last[1])


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
