"""Images as a caller names them: files, folders, tables and bytes, read with what is said of them."""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rayad import storage, tables
from rayad.errors import DatasetError, ImageError, OptionError, StorageError
from rayad.fingerprint import fingerprint
from rayad.imaging import dicom, raster, views
from rayad.imaging.files import kind_of
from rayad.imaging.picture import Source
from rayad.imaging.plausibility import without_other
from rayad.terminal import warn_once

COLUMNS = ("url", "spacing_mm", "view", "patient", "laterality")
"""Of a table of images; but for the first they may be missing or empty."""
LEAST_MM, MOST_MM = 0.01, 100.0
"""mm a pixel that an image can have."""


@dataclass(frozen=True)
class HeatmapRequest:
    """What is said of the images, and where they are scored."""

    spacing_mm: float = 0.0
    """mm a pixel of images that do not state it; 0: every image must state its own."""
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


def opened(file: str, channels: int, request: HeatmapRequest) -> Source:
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


def with_other(image: "ImageRequest", channels: int) -> Source:
    """An image as `opened` gives it, with that of the other breast, where it has one that can be read.

    Raises:
        ImageError, StorageError: as `opened`, of the image itself.
    """
    source = opened(image.file, channels, image.request)
    if image.other is None:
        return source
    try:
        return replace(source, other=opened(image.other.file, channels, image.other.request))
    except ImageError as error:
        return replace(source, doubts=(*source.doubts, without_other(error)))


def decoded(data: bytes, name: str, channels: int, request: HeatmapRequest) -> Source:
    """An image from the bytes of a file; errors call it by its name. ImageError as `opened`."""
    if not data or raster.is_raster(data):
        return _of_raster(raster.decode(data, name), name, channels, request)
    return _of_dicom(data, name, request)


def _of_raster(image: raster.Raster, name: str, channels: int, request: HeatmapRequest) -> Source:
    pixels = raster.grey(image, name) if channels == 1 else raster.colour(image, name)
    return Source(pixels, _spacing(0.0, name, request), request.view, force=request.force)


def _of_dicom(data: bytes, name: str, request: HeatmapRequest) -> Source:
    header, pixels = dicom.mammogram(data, name, "kind" in request.force)
    spacing_mm = _spacing(header.spacing_mm, name, request, header.spacing_fault)
    return Source(
        pixels,
        spacing_mm,
        header.view or request.view,
        force=request.force,
        doubts=dicom.doubts(header),
        wall=header.wall,
        laterality=header.laterality,
        patient=fingerprint(header.patient_id) if header.patient_id else "",
    )


def _spacing(file_spacing_mm: float, name: str, request: HeatmapRequest, fault: str = "") -> float:
    if not (file_spacing_mm or request.spacing_mm):
        raise ImageError(f"{name}: no pixel spacing, in the file or the option spacing_mm" + f"; {fault}" * bool(fault))
    return file_spacing_mm or request.spacing_mm


@dataclass(frozen=True)
class ImageRequest:
    """An image that a heatmap is asked of."""

    file: str
    name: str
    """Of its heatmap."""
    request: HeatmapRequest
    """What is said of it."""
    other: "ImageRequest | None" = None
    """The patient's other breast in the same view, where a table says which image shows it."""


def asked_of(places: Sequence[str], request: HeatmapRequest) -> tuple[list[ImageRequest], list[str]]:
    """The images of files, folders and tables, and what else is in the folders.

    A table (CSV or parquet, rayad/tables.py) has a row an image: its `url`, below the table's folder where it is
    relative, and where they are known `spacing_mm` and `view`, which go before those of the request; by `patient`,
    `view` and `laterality` (L or R) images find that of the other breast.

    Raises:
        DatasetError: a table that cannot be understood.
        ImageError: there is no image.
        OptionError: an image is given twice.
        StorageError: a folder or table cannot be read.
    """
    table_requests: dict[str, HeatmapRequest] = {}
    others: dict[str, str] = {}
    files_and_folders: list[str] = []
    for place in places:
        if place.lower().endswith(tables.ENDINGS):
            rows, sides = _rows(place, request)
            table_requests |= rows
            others |= views.other_sides(sides)
            files_and_folders += rows
        else:
            files_and_folders.append(place)
    files, left_out = found_in(files_and_folders)
    requests = {
        file: ImageRequest(file, name, table_requests.get(file, request)) for file, name in named(_some(files, places))
    }
    return [replace(image, other=requests.get(others.get(file, ""))) for file, image in requests.items()], left_out


def _rows(url: str, request: HeatmapRequest) -> tuple[dict[str, HeatmapRequest], dict[str, views.Shown]]:
    """The images of a table, with what is said of each, and whose side each is where the table says it."""
    header, rows, separator = tables.cells(url)
    if "url" not in header:
        columns = f"columns {', '.join(header)}" + f", separated by {separator!r}" * bool(separator)
        raise DatasetError(f"{url}: {columns}; wanted url and any of {', '.join(COLUMNS[1:])}")
    if unused := [name for name in header if name not in COLUMNS]:
        warn_once(f"{url}: columns that are not used: {', '.join(unused)}")
    images: dict[str, HeatmapRequest] = {}
    sides: dict[str, views.Shown] = {}
    for line, cells in enumerate(rows, start=1):
        row = dict.fromkeys(COLUMNS, "") | dict(zip(header, cells, strict=False))
        if len(cells) != len(header) or not row["url"]:
            raise DatasetError(f"{url}: row {line} needs a url and {len(header)} cells")
        file = _beside(url, row["url"])
        if file in images:
            raise OptionError(f"{file}: this image is given twice")
        images[file] = _of_row(f"{url}: row {line}", row, request)
        if row["patient"] and row["laterality"]:
            sides[file] = row["patient"], images[file].view, _side(f"{url}: row {line}", row["laterality"])
    return images, sides


def _side(row_name: str, text: str) -> str:
    try:
        return views.side(text)
    except ValueError as error:
        raise DatasetError(f"{row_name}: {error}") from None


def _of_row(row_name: str, row: Mapping[str, str], request: HeatmapRequest) -> HeatmapRequest:
    spacing_mm = tables.number(row["spacing_mm"]) if row["spacing_mm"] else request.spacing_mm
    if not (spacing_mm == 0 or LEAST_MM <= spacing_mm <= MOST_MM):
        expected = f"a number of mm a pixel, from {LEAST_MM:g} to {MOST_MM:g}"
        raise DatasetError(f"{row_name}: spacing_mm is {expected}, or empty; not {row['spacing_mm']!r}")
    try:
        return replace(request, spacing_mm=spacing_mm, view=row["view"] or request.view)
    except OptionError as error:
        raise DatasetError(f"{row_name}: {error}") from None


def _beside(table: str, url: str) -> str:
    """The place that a table names: below the table's folder where it is relative."""
    if "://" in url or url.startswith("/"):
        return storage.absolute(url)
    return storage.join(table.rpartition("/")[0], url.replace("\\", "/"))


def found_in(images: Sequence[str]) -> tuple[list[str], list[str]]:
    """The image files among files and in folders, and what else is in the folders; what a file is, its content says."""
    image_files: list[str] = []
    left_out: list[str] = []
    for place in images:
        files = None if place.lower().endswith(raster.SUFFIXES) else _below(place)
        for file in [place] if files is None else files:
            is_image = files is None or kind_of(file) in ("raster", "dicom")
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
        repeated = next(file for file, often in Counter(files).items() if often > 1)
        raise OptionError(f"{repeated}: this image is given twice")
    paths = [[part for part in _bare(file).replace("\\", "/").split("/") if part] or [""] for file in files]
    depths = [1] * len(paths)
    while True:
        names = ["-".join([*path[-depth:-1], _stem(path[-1])]) for path, depth in zip(paths, depths, strict=True)]
        often = Counter(names)
        ambiguous = [i for i, name in enumerate(names) if often[name] > 1]
        growing = [i for i in ambiguous if depths[i] < len(paths[i])]
        if not growing:
            break
        for i in growing:
            depths[i] += 1
    for i in ambiguous:  # whose endings alone differ
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


def _some(files: list[str], places: Sequence[str]) -> list[str]:
    if not files:
        names = ", ".join(places) or "an empty list"
        raise ImageError(f"no image in {names}; rayad reads {', '.join(raster.SUFFIXES)} and DICOM")
    return files
