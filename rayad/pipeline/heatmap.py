"""Images in, heatmaps out: NAME.npz with scores and p-values, NAME.png with the overlay.

A detector by likelihood that can draw also shows what the image would look like if it were healthy.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from rayad import bounded, bounds, storage
from rayad.errors import FormatError, OptionError, reason
from rayad.fingerprint import fingerprint
from rayad.heatmaps.answers import ROW, Failure, Result, Row
from rayad.heatmaps.drawing import USUAL, Written, arrays_and_picture
from rayad.heatmaps.images import HeatmapRequest, ImageRequest, asked_of, with_other
from rayad.heatmaps.judgement import judge
from rayad.imaging.picture import Prepared
from rayad.outputs import require_apart
from rayad.pool import Mapper
from rayad.scoring import counterfactual
from rayad.scoring.detector import Detector
from rayad.terminal import say

EVERY_S = 2.0
"""How often rows are written down."""


def write_heatmaps(
    pool: Mapper,
    detector: Detector,
    images: Sequence[str],
    request: HeatmapRequest,
    url: str,
    written: Written = USUAL,
) -> Iterator[Row]:
    """Score images and write what each gives; a file that fails is a row with its reason.

    What is done stands in `heatmaps.jsonl`, a row an image, and is not done again for the same file, detector and
    request; what failed is tried again.

    Args:
        images: files, folders of which every image is taken, or tables with a row an image (see `asked_of`).

    Yields:
        A row an image as it is through: its file, name, score and p-value, or the reason why there are none.

    Raises:
        DatasetError: a table that cannot be understood.
        OptionError: no spacing, a detector that is not calibrated or cannot draw the healthy version that is asked for,
            or a name that another image's heatmap has there.
        StorageError: the target cannot be written, or an image folder cannot be read.
    """
    if not request.spacing_mm >= 0:
        raise OptionError(f"the images' spacing must be a positive number of mm a pixel, not {request.spacing_mm}")
    if detector.calibration is None:
        raise OptionError(f"detector {detector.name!r} is not calibrated, so it has no p-values: run rayad calibrate")
    detector.step(request.step_mm)
    if written.counterfactual and (lacking := counterfactual.lacking(detector)):
        raise OptionError(f"{lacking}: there is no healthy version of an image by it")
    image_requests, left_out = asked_of(images, request)
    if not detector.both_sides:
        image_requests = [replace(image, other=None) for image in image_requests]
    require_apart(url, [image.file for image in image_requests])  # a table may name what lies in the target
    if left_out:
        number = len(left_out) + len(image_requests)
        say(f"left out: {len(left_out)} of {number} files, which are no images, such as {left_out[0]}", sys.stderr)
    versions = storage.versions(image.file for image in image_requests)
    facts = [detector.name, detector.score.name, detector.aggregation, detector.provenance]
    request_hashes = {
        heatmap_request: fingerprint([*facts, heatmap_request, written])
        for heatmap_request in {image.request for image in image_requests}
    }
    made_of = {
        image.file: fingerprint(
            [
                fact
                for each in filter(None, (image, image.other))
                for fact in (request_hashes[each.request], versions[each.file])
            ]
        )
        for image in image_requests
    }
    with Rows(url) as rows:
        rows.require_free([(image.file, image.name) for image in image_requests])
        endings = [".npz", *([".png"] if written.picture else [])]
        done_rows = [
            row for image in image_requests if (row := rows.done(image.file, image.name, made_of[image.file], endings))
        ]
        yield from done_rows
        done_files = {row.image for row in done_rows}
        missing = [image for image in image_requests if storage.encodable(image.file) not in done_files]
        results = pool.map(Writer, missing, "heatmaps", (detector, url, written, pool.device), failed)
        for image, row in zip(missing, results, strict=True):
            rows.add(row, made_of[image.file])
            yield row


@dataclass(frozen=True)
class Writer:
    """Writes the heatmaps of images by a detector that it keeps."""

    detector: Detector
    url: str
    written: Written
    device: str = "cpu"

    @staticmethod
    def prepare(detector: Detector, url: str, written: Written, device: str, image: ImageRequest) -> Prepared:
        """The image as the call needs it."""
        return detector.preprocessing.prepare(with_other(image, detector.preprocessing.channels))

    def __call__(self, image: ImageRequest, prepared: Callable[[], Prepared] | None = None) -> Row:
        prepared = prepared or partial(self.prepare, self.detector, self.url, self.written, self.device, image)
        return write_heatmap(self.detector.on(self.device), self.url, self.written, image, prepared)


def write_heatmap(
    detector: Detector, url: str, written: Written, image: ImageRequest, prepare: Callable[[], Prepared]
) -> Row:
    """Score one image and write what it gives; its row. StorageError where that cannot be written.

    Args:
        prepare: returns the image as the detector needs it, or raises why it cannot be had.
    """
    assert detector.calibration is not None  # whoever calls saw to it
    target, request = storage.join(url, image.name), image.request
    try:
        prepared = prepare()
        with bounds.within(bounds.current().score_seconds, "score_seconds"):
            heatmap = detector.heatmap(prepared, detector.step(request.step_mm))
            judged = judge(prepared, heatmap, detector.calibration, detector.rule)
        arrays, png = arrays_and_picture(image.name, prepared, judged, detector, written)
    except Exception as error:  # noqa: BLE001, whatever it is, the other images are scored
        return failed(reason(error), image)
    storage.write_bytes(f"{target}.npz", judged.npz(**arrays))
    if png:
        storage.write_bytes(f"{target}.png", png)
    return judged.verdict().of(image.file, image.name)


def failed(why: str, image: ImageRequest) -> Row:
    """The row of an image without a heatmap."""
    return Failure(image=image.file, reason=why)


class Rows:
    """The rows of a folder of heatmaps, in `heatmaps.jsonl`, each written when it is known."""

    def __init__(self, url: str) -> None:
        """Read those that are there; one that was cut short by a crash counts as none."""
        self._url, self._where = url, storage.join(url, "heatmaps.jsonl")
        self._rows: dict[str, tuple[Row, str]] = {}  # with what each was made of
        self._files: set[str] = set()
        self._kept = self._written = time.monotonic()
        if storage.exists(self._where):
            self._files.update(storage.listing(url))  # one request for all images
            for line in storage.read_bytes(self._where).splitlines():
                with suppress(FormatError, KeyError, TypeError, ValueError):
                    row = bounded.parse_json(line, self._where)
                    self._rows[row["image"]] = ROW.validate_python(row), row["made_of"]
        self._new = False

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._keep()

    def require_free(self, files: Sequence[tuple[str, str]]) -> None:
        """OptionError where a name is that of another image's heatmap."""
        names = {row.name: file for file, (row, _) in self._rows.items() if isinstance(row, Result)}
        requested = dict(files)
        for file, name in files:
            if names.get(name, file) != file and names[name] not in requested:
                raise OptionError(f"{self._url}: {name} is the heatmap of {names[name]} there; name another folder")

    def done(self, file: str, name: str, made_of: str, endings: Sequence[str]) -> Row | None:
        """The row of an image that has its files, made of the same."""
        row, made_of_then = self._rows.get(storage.encodable(file), (None, ""))
        if not isinstance(row, Result) or row.name != name or made_of_then != made_of:
            return None
        files = {storage.join(self._url, f"{name}{ending}") for ending in endings}
        is_hidden = name.startswith(".")  # no listing has these
        is_there = all(map(storage.exists, files)) if is_hidden else files <= self._files
        return row if is_there else None

    def add(self, row: Row, made_of: str) -> None:
        """Write down what came of an image, soon: long lists take a twentieth of the time."""
        self._rows[row.image], self._new = (row, made_of), True
        if time.monotonic() > self._kept + max(EVERY_S, 20 * (self._kept - self._written)):
            self._keep()

    def _keep(self) -> None:
        if self._new:
            self._written = time.monotonic()
            rows = (row.model_dump(mode="json") | {"made_of": made_of} for row, made_of in self._rows.values())
            storage.write_bytes(self._where, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
            self._kept, self._new = time.monotonic(), False
