"""Images in, heatmaps out: NAME.npz with scores and p-values, NAME.png with the overlay.

A detector by likelihood that can draw also shows what the image would look like if it were healthy.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayad import bounds, storage
from rayad.errors import ImageError, OptionError, StorageError, reason
from rayad.evaluation.figures import Healthy, Map, View, explained, overlay
from rayad.evaluation.judgement import Judgement, judge
from rayad.imaging import dicom, raster
from rayad.imaging.picture import Prepared, Source, step_px
from rayad.scoring import counterfactual
from rayad.scoring.detector import Detector


@dataclass(frozen=True)
class Request:
    """What is said of the images, and where they are scored."""

    spacing_mm: float = 0.0
    """mm a pixel of images that do not say it; 0: there must be none."""
    view: str = ""
    """MLO, CC or empty, of images that do not say it."""
    step_mm: float = 3.2
    """Distance of the places, mm."""


def write_heatmaps(detector: Detector, images: Sequence[str], request: Request, url: str) -> list[dict[str, Any]]:
    """Score images one by one and write what each gives; a file that fails is a row with its reason.

    Args:
        images: files, or folders of which every image is taken.

    Returns:
        A row an image: url, name, image score and p-value, or the reason why there are none.

    Raises:
        OptionError: no spacing, or a detector that is not calibrated.
        StorageError: the target cannot be written, or an image folder cannot be read.
    """
    if not request.spacing_mm >= 0:
        raise OptionError(f"the images' spacing must be a positive number of mm a pixel, not {request.spacing_mm}")
    if detector.calibration is None:
        raise OptionError(f"detector {detector.name!r} is not calibrated, so it has no p-values: run rayad calibrate")
    rows, step = [], step_px(detector.preprocessing, request.step_mm)
    for file, name in named(files_in(images)):
        try:
            prepared = detector.preprocessing.prepare(opened(file, detector.preprocessing.channels, request))
            with bounds.within(bounds.current().score_seconds, "score_seconds"):
                judged = judge(prepared, detector.heatmap(prepared, step), detector.calibration)
        except Exception as error:  # noqa: BLE001, whatever it is, the other images are scored
            rows.append({"image": file, "reason": reason(error)})
            continue
        _write(storage.join(url, name), prepared, judged, detector)
        rows.append({"image": file, "name": name, "score": judged.score, "p": judged.p})
    return rows


def opened(file: str, channels: int, request: Request) -> Source:
    """An image, with what it says of itself or else the request.

    Raises:
        ImageError: it cannot be read, is no mammogram of a whole breast, or nothing says its spacing.
        StorageError: the file cannot be read.
    """
    if file.lower().endswith(raster.SUFFIXES):
        return _of_raster(raster.read(file), file, channels, request)
    if unsuitable := dicom.header(file).unsuitable:  # said before a large file is read
        raise ImageError(f"{file}: {unsuitable}")
    return _of_dicom(dicom.read_bytes(file), file, request)


def decoded(data: bytes, name: str, channels: int, request: Request) -> Source:
    """An image from the bytes of a file; errors call it by its name. ImageError as `opened`."""
    if not data or raster.is_raster(data):
        return _of_raster(raster.decode(data, name), name, channels, request)
    return _of_dicom(data, name, request)


def _of_raster(image: raster.Raster, name: str, channels: int, request: Request) -> Source:
    pixels = raster.grey(image, name) if channels == 1 else raster.colour(image, name)
    return Source(pixels, _spacing(0.0, name, request), request.view)


def _of_dicom(data: bytes, name: str, request: Request) -> Source:
    header, pixels = dicom.mammogram(data, name)
    return Source(pixels, _spacing(header.spacing_mm, name, request), header.view or request.view)


def _spacing(said: float, name: str, request: Request) -> float:
    if not (said or request.spacing_mm):
        raise ImageError(f"{name}: no pixel spacing, in the file or the option spacing_mm")
    return said or request.spacing_mm


def files_in(images: Sequence[str]) -> list[str]:
    """Every image file in folders and lists of files; ImageError where there is none."""
    files = []
    for place in images:
        files += _below(place)
    return _some(files, images)


def files_below(prefix: str) -> list[str]:
    """Every image file below a URL.

    Raises:
        ImageError: there is none.
        StorageError: it cannot be listed.
    """
    return _some(_listed(prefix), [prefix])


def named(files: Sequence[str]) -> list[tuple[str, str]]:
    """Each file and the name of its heatmap: the file's, with its folder's where two have the same.

    Raises:
        OptionError: two would be called the same.
    """
    parts = [file.replace("\\", "/").rsplit("/", 2) for file in map(_bare, files)]
    stems = [_stem(p[-1]) for p in parts]
    often = Counter(stems)
    names = [s if often[s] == 1 else f"{p[-2]}-{s}" if len(p) > 1 else s for s, p in zip(stems, parts, strict=True)]
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        raise OptionError(f"two images would both be called {twice[0]!r}; give them in separate calls")
    return list(zip(files, names, strict=True))


def _bare(file: str) -> str:
    """A web address without its query, which may be a signature."""
    return file.partition("?")[0] if file.startswith(("http://", "https://")) else file


def _stem(name: str) -> str:
    """A file's name without its ending; a UID, as archives call DICOM files, has none."""
    stem, suffix = posixpath.splitext(name)
    return name if suffix[1:].isdigit() else stem


def _below(place: str) -> list[str]:
    """The images in a folder; what is no folder is taken for a file, whose reading says what is wrong with it."""
    try:
        return [place] if place.lower().endswith(raster.SUFFIXES) else _listed(place)
    except StorageError:
        return [place]


def _listed(folder: str) -> list[str]:
    files = storage.listing(folder)
    return [file for file in files if file.lower().endswith(raster.SUFFIXES) or dicom.is_candidate(file)]


def _some(files: list[str], of: Sequence[str]) -> list[str]:
    if not files:
        places = ", ".join(of) or "an empty list"
        raise ImageError(f"no image in {places}; rayad reads {', '.join(raster.SUFFIXES)} and DICOM")
    return files


def _write(url: str, prepared: Prepared, judged: Judgement, detector: Detector) -> None:
    arrays, png = drawn(url.rsplit("/", 1)[-1], prepared, judged, detector)
    storage.write_bytes(f"{url}.npz", judged.npz(**arrays))
    storage.write_bytes(f"{url}.png", png)


def drawn(name: str, prepared: Prepared, judged: Judgement, detector: Detector) -> tuple[dict[str, np.ndarray], bytes]:
    """The overlay as PNG; where the detector can, with the healthy version of the image, and that as arrays."""
    view, found = pictured(name, prepared, judged)
    if counterfactual.lacking(detector):
        return {}, overlay(view, found)
    healthy = if_healthy(detector, prepared)
    return {"counterfactual": healthy.pixels, "change": healthy.change}, explained(view, found, healthy)


def if_healthy(detector: Detector, prepared: Prepared) -> Healthy:
    """The healthy counterfactual as figures take it.

    Raises:
        OptionError: the detector is lacking a decoder or a density.
    """
    with bounds.within(bounds.current().score_seconds, "score_seconds"):
        found = counterfactual.image(detector, prepared)
    return Healthy(found.pixels, found.change, detector.preprocessing.intensity)


def pictured(name: str, prepared: Prepared, judged: Judgement) -> tuple[View, Map]:
    """The image and the map as figures take them."""
    nothing = np.zeros(prepared.stored.shape, bool)
    shown = prepared.stored if prepared.pixels.ndim == 2 else prepared.pixels
    scale = np.array(prepared.stored.shape) / np.array(judged.shape)
    rows, columns = ((places + 0.5) * of - 0.5 for places, of in zip((judged.rows, judged.cols), scale, strict=True))
    view = View(
        name, shown, prepared.spacing_mm, rows.round().astype(np.int64), columns.round().astype(np.int64), nothing
    )
    return view, Map(judged.healthy_quantile, judged.mask)
