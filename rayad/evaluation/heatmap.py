"""Images in, heatmaps out: NAME.npz with scores and p-values, NAME.png with the overlay.

A detector by likelihood that can draw also shows what the image would look like if it were healthy.
"""

import hashlib
import json
import posixpath
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayad import bounded, bounds, storage
from rayad.errors import FormatError, ImageError, OptionError, StorageError, reason
from rayad.evaluation.figures import Healthy, Map, View, explained, overlay
from rayad.evaluation.judgement import Judgement, judge
from rayad.fingerprint import fingerprint
from rayad.imaging import dicom, raster, views
from rayad.imaging.files import kind_of
from rayad.imaging.picture import Prepared, Source
from rayad.pool import Pool
from rayad.scoring import counterfactual
from rayad.scoring.detector import Detector
from rayad.terminal import say

Row = dict[str, Any]
"""What came of an image."""
EVERY_S = 2.0
"""How often rows are written down."""


@dataclass(frozen=True)
class Request:
    """What is said of the images, and where they are scored."""

    spacing_mm: float = 0.0
    """mm a pixel of images that do not say it; 0: there must be none."""
    view: str = ""
    """MLO, CC or empty, of images that do not say it."""
    step_mm: float = 0.0
    """Distance of the places, mm; 0: that of the detector's calibration."""
    force: tuple[str, ...] = ()
    """Doubts that are overruled; see rayad/imaging/plausibility.py."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "view", views.view(self.view)[0])
        except ValueError as error:
            raise OptionError(str(error)) from error


@dataclass(frozen=True)
class Written:
    """What is written of an image beside its scores and p-values."""

    picture: bool = True
    """NAME.png, the overlay."""
    counterfactual: bool = True
    """What the image would look like if it were healthy, where the detector can say it: much of the time."""


def write_heatmaps(
    pool: Pool,
    detector: Detector,
    images: Sequence[str],
    request: Request,
    url: str,
    written: Written = Written(),
) -> Iterator[Row]:
    """Score images and write what each gives; a file that fails is a row with its reason.

    What is done stands in `heatmaps.jsonl`, a row an image, and is not done again for the same file, detector and
    request; what failed is tried again.

    Args:
        images: files, or folders of which every image is taken.

    Yields:
        A row an image as it is through: its file, name, score and p-value, or the reason why there are none.

    Raises:
        OptionError: no spacing, a detector that is not calibrated, or a name that another image's heatmap has there.
        StorageError: the target cannot be written, or an image folder cannot be read.
    """
    if not request.spacing_mm >= 0:
        raise OptionError(f"the images' spacing must be a positive number of mm a pixel, not {request.spacing_mm}")
    if detector.calibration is None:
        raise OptionError(f"detector {detector.name!r} is not calibrated, so it has no p-values: run rayad calibrate")
    detector.step(request.step_mm)
    image_files, left_out = found_in(images)
    files = named(_some(image_files, images))
    if left_out:
        number = len(left_out) + len(files)
        say(f"left out: {len(left_out)} of {number} files, which are no images, such as {left_out[0]}", sys.stderr)
    versions = storage.versions(file for file, _ in files)
    like = fingerprint([detector.name, detector.score, detector.aggregation, detector.provenance, request, written])
    made_of = {file: fingerprint([like, versions[file]]) for file, _ in files}
    with Rows(url) as rows:
        rows.require_free(files)
        endings = [".npz", *([".png"] if written.picture else [])]
        done = [row for file, name in files if (row := rows.done(file, name, made_of[file], endings))]
        yield from done
        ready = {row["image"] for row in done}
        lacking = [image for image in files if image[0] not in ready]
        through = pool.map(Writer, lacking, "heatmaps", (detector, request, url, written, pool.device), failed)
        for (file, _), row in zip(lacking, through, strict=True):
            rows.add(row | {"made_of": made_of[file]})
            yield row


@dataclass(frozen=True)
class Writer:
    """Writes the heatmaps of images by a detector that it keeps."""

    detector: Detector
    request: Request
    url: str
    written: Written
    device: str = "cpu"

    def __call__(self, image: tuple[str, str]) -> Row:
        return write_heatmap(self.detector.on(self.device), self.request, self.url, self.written, *image)


def write_heatmap(detector: Detector, request: Request, url: str, written: Written, file: str, name: str) -> Row:
    """Score one image and write what it gives; its row. StorageError where that cannot be written."""
    assert detector.calibration is not None  # whoever calls saw to it
    where = storage.join(url, name)
    try:
        prepared = detector.preprocessing.prepare(opened(file, detector.preprocessing.channels, request))
        with bounds.within(bounds.current().score_seconds, "score_seconds"):
            heatmap = detector.heatmap(prepared, detector.step(request.step_mm))
            judged = judge(prepared, heatmap, detector.calibration)
        arrays, png = _drawn(name, prepared, judged, detector, written)
    except Exception as error:  # noqa: BLE001, whatever it is, the other images are scored
        return failed(reason(error), (file, name))
    storage.write_bytes(f"{where}.npz", judged.npz(**arrays))
    if png:
        storage.write_bytes(f"{where}.png", png)
    p = {"p": judged.p, "p_floor": judged.p_floor, "calibration_patients": judged.patients}
    doubts = {"doubts": [asdict(doubt) for doubt in judged.doubts]} if judged.doubts else {}
    return {"image": file, "name": name, "score": judged.score, **p, **doubts}


def failed(why: str, image: tuple[str, str]) -> Row:
    """The row of an image without a heatmap."""
    return {"image": image[0], "reason": why}


class Rows:
    """The rows of a folder of heatmaps, in `heatmaps.jsonl`, each written when it is known."""

    def __init__(self, url: str) -> None:
        """Read those that are there; one that was cut short by a crash counts as none."""
        self._url, self._where = url, storage.join(url, "heatmaps.jsonl")
        self._rows: dict[str, Row] = {}
        self._kept = self._written = time.monotonic()
        if storage.exists(self._where):
            for line in storage.read_bytes(self._where).splitlines():
                with suppress(FormatError, KeyError, TypeError):
                    row = bounded.parse_json(line, self._where)
                    self._rows[row["image"]] = row
        self._new = False

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *of: object) -> None:
        self._keep()

    def require_free(self, files: Sequence[tuple[str, str]]) -> None:
        """OptionError where a name is that of another image's heatmap."""
        names, requested = {row["name"]: file for file, row in self._rows.items() if "name" in row}, dict(files)
        for file, name in files:
            if names.get(name, file) != file and names[name] not in requested:
                raise OptionError(f"{self._url}: {name} is the heatmap of {names[name]} there; name another folder")

    def done(self, file: str, name: str, made_of: str, endings: Sequence[str]) -> Row | None:
        """The row of an image that has its files, made of the same."""
        row = self._rows.get(file, {})
        same = row.get("name") == name and row.get("made_of") == made_of
        if not same or not all(storage.exists(storage.join(self._url, f"{name}{ending}")) for ending in endings):
            return None
        return {key: value for key, value in row.items() if key != "made_of"}

    def add(self, row: Row) -> None:
        """Write down what came of an image, soon: long lists take a twentieth of the time."""
        self._rows[row["image"]], self._new = row, True
        if time.monotonic() > self._kept + max(EVERY_S, 20 * (self._kept - self._written)):
            self._keep()

    def _keep(self) -> None:
        if self._new:
            self._written = time.monotonic()
            lines = (json.dumps(row, allow_nan=False) + "\n" for row in self._rows.values())
            storage.write_bytes(self._where, "".join(lines).encode(errors="backslashreplace"))
            self._kept, self._new = time.monotonic(), False


def opened(file: str, channels: int, request: Request) -> Source:
    """An image, with what it says of itself or else the request.

    Raises:
        ImageError: it cannot be read, is no mammogram of a whole breast, or nothing says its spacing.
        StorageError: the file cannot be read.
    """
    if not dicom.is_web(file) and kind_of(file) == "raster":
        return _of_raster(raster.read(file), file, channels, request)
    if (unsuitable := dicom.header(file).unsuitable) and "kind" not in request.force:  # before a large file is read
        raise ImageError(f"{file}: {unsuitable}")
    return _of_dicom(dicom.read_bytes(file), file, request)


def decoded(data: bytes, name: str, channels: int, request: Request) -> Source:
    """An image from the bytes of a file; errors call it by its name. ImageError as `opened`."""
    if not data or raster.is_raster(data):
        return _of_raster(raster.decode(data, name), name, channels, request)
    return _of_dicom(data, name, request)


def _of_raster(image: raster.Raster, name: str, channels: int, request: Request) -> Source:
    pixels = raster.grey(image, name) if channels == 1 else raster.colour(image, name)
    return Source(pixels, _spacing(0.0, name, request), request.view, force=request.force)


def _of_dicom(data: bytes, name: str, request: Request) -> Source:
    header, pixels = dicom.mammogram(data, name, "kind" in request.force)
    spacing_mm = _spacing(header.spacing_mm, name, request, header.spacing_fault)
    view = header.view or request.view
    return Source(pixels, spacing_mm, view, force=request.force, doubts=dicom.doubts(header), wall=header.wall)


def _spacing(said: float, name: str, request: Request, fault: str = "") -> float:
    if not (said or request.spacing_mm):
        raise ImageError(f"{name}: no pixel spacing, in the file or the option spacing_mm" + f"; {fault}" * bool(fault))
    return said or request.spacing_mm


def found_in(images: Sequence[str]) -> tuple[list[str], list[str]]:
    """The image files among files and in folders, and what else is in the folders; what a file is, its content says."""
    image_files: list[str] = []
    left_out: list[str] = []
    for place in images:
        below = None if place.lower().endswith(raster.SUFFIXES) else _below(place)
        for file in [place] if below is None else below:
            is_image = below is None or kind_of(file) in ("raster", "dicom")
            (image_files if is_image else left_out).append(file)
    return image_files, left_out


def files_below(prefix: str) -> list[str]:
    """Every image file below a URL.

    Raises:
        ImageError: there is none.
        StorageError: it cannot be listed.
    """
    return _some(_listed(prefix), [prefix])


def named(files: Sequence[str]) -> list[tuple[str, str]]:
    """Each file and the name of its heatmap: the file's, with as many of its folders as tell it from the others.

    Raises:
        OptionError: a file is given twice.
    """
    if len(set(files)) < len(files):
        twice = next(file for file, often in Counter(files).items() if often > 1)
        raise OptionError(f"{twice}: this image is given twice")
    paths = [[part for part in _bare(file).replace("\\", "/").split("/") if part] or [""] for file in files]
    deep = [1] * len(paths)
    while True:
        names = ["-".join([*path[-depth:-1], _stem(path[-1])]) for path, depth in zip(paths, deep, strict=True)]
        often = Counter(names)
        alike = [i for i, name in enumerate(names) if often[name] > 1]
        growing = [i for i in alike if deep[i] < len(paths[i])]
        if not growing:
            break
        for i in growing:
            deep[i] += 1
    for i in alike:  # whose endings alone differ
        names[i] = f"{names[i]}-{hashlib.sha256(files[i].encode(errors='surrogateescape')).hexdigest()[:8]}"
    return list(zip(files, names, strict=True))


def _bare(file: str) -> str:
    """A web address without its query, which may be a signature."""
    return file.partition("?")[0] if file.startswith(("http://", "https://")) else file


def _stem(name: str) -> str:
    """A file's name without its ending; a UID, as archives call DICOM files, has none."""
    stem, suffix = posixpath.splitext(name)
    return name if suffix[1:].isdigit() else stem


def _below(place: str) -> list[str] | None:
    """The files in a folder; None where there is none: whatever reads it as a file says what is wrong with it."""
    try:
        return storage.listing(place)
    except StorageError:
        return None


def _listed(folder: str) -> list[str]:
    files = storage.listing(folder)
    return [file for file in files if file.lower().endswith(raster.SUFFIXES) or dicom.is_candidate(file)]


def _some(files: list[str], of: Sequence[str]) -> list[str]:
    if not files:
        places = ", ".join(of) or "an empty list"
        raise ImageError(f"no image in {places}; rayad reads {', '.join(raster.SUFFIXES)} and DICOM")
    return files


def _drawn(
    name: str, prepared: Prepared, judged: Judgement, detector: Detector, written: Written
) -> tuple[dict[str, np.ndarray], bytes]:
    """Arrays of the healthy version and the picture, as far as they are wanted."""
    if written.counterfactual and not counterfactual.lacking(detector):
        healthy = if_healthy(detector, prepared)
        arrays = {"counterfactual": healthy.pixels, "change": healthy.change}
        return arrays, explained(*pictured(name, prepared, judged), healthy) if written.picture else b""
    return {}, overlay(*pictured(name, prepared, judged)) if written.picture else b""


def drawn(name: str, prepared: Prepared, judged: Judgement, detector: Detector) -> bytes:
    """The overlay as PNG; where the detector can, with the healthy version of the image."""
    return _drawn(name, prepared, judged, detector, Written())[1]


def if_healthy(detector: Detector, prepared: Prepared) -> Healthy:
    """The healthy counterfactual as figures take it.

    Raises:
        OptionError: the detector is lacking a decoder or a density.
    """
    with bounds.within(bounds.current().score_seconds, "score_seconds"):
        healthy = counterfactual.image(detector, prepared)
    return Healthy(healthy.pixels, healthy.change, detector.preprocessing.intensity)


def pictured(name: str, prepared: Prepared, judged: Judgement) -> tuple[View, Map]:
    """The image and the map as figures take them."""
    nothing = np.zeros(prepared.stored.shape, bool)
    shown = prepared.stored if prepared.pixels.ndim == 2 else prepared.pixels
    scale = np.array(prepared.stored.shape) / np.array(judged.shape)
    rows, columns = (
        (places + 0.5) * factor - 0.5 for places, factor in zip((judged.rows, judged.cols), scale, strict=True)
    )
    view = View(
        name, shown, prepared.spacing_mm, rows.round().astype(np.int64), columns.round().astype(np.int64), nothing
    )
    return view, Map(judged.healthy_quantile, judged.mask)
