"""Batches as values: what was asked, how far one is, what lies in its folder. rayad/on_ray/batch.py runs them."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

from rayad import storage
from rayad.errors import OptionError, RayadError, StorageError, reason
from rayad.heatmaps.answers import (
    Answer,
    Batch,
    BatchRequest,
    DetectorName,
    Failure,
    HowScored,
    Result,
    Row,
    State,
)
from rayad.heatmaps.images import files_below, named
from rayad.outputs import require_own
from rayad.serving import RESEARCH_USE
from rayad.serving.fetch import AllowList

LOG = logging.getLogger("rayad.serving")
OWN = "batch"
"""Name of the file that a batch keeps among its results."""


@dataclass(frozen=True)
class Places:
    """Where batches are remembered, read and written: `Service.state`, `Service.read`, `Service.write`."""

    state: str
    read: tuple[str, ...]
    write: tuple[str, ...]


@dataclass
class KeptBatch:
    """A batch that the service runs or remembers."""

    status: Batch
    """What is told of it."""
    request: BatchRequest | None
    """None when it has ended."""
    url: str
    """Of the detector's bundle."""
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    """Has its turn come?"""
    resumed: bool = False
    """Did a service before this one begin it?"""

    @property
    def running(self) -> bool:
        """Has it not ended yet, whether or not its turn has come?"""
        return self.status.state == "running"

    def lacking(self, images: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of these images and names that are neither scored nor given up."""
        ended = {row.image for row in (*self.status.results, *self.status.failures)}
        return [image for image in images if storage.encodable(image[0]) not in ended]

    def add(self, row: Row) -> None:
        """What came of an image."""
        if isinstance(row, Failure):
            self.status.failures.append(row)
        else:
            self.status.results.append(row)
        self.status.done, self.status.failed = len(self.status.results), len(self.status.failures)
        self.status.updated = now()

    def forget(self, images: set[str]) -> None:
        """What came of these images, as far as anything did."""
        names = {storage.encodable(image) for image in images}
        self.status.results = [row for row in self.status.results if row.image not in names]
        self.status.failures = [row for row in self.status.failures if row.image not in names]

    def end(self, state: State, why: str = "") -> None:
        """It is over; `why` says what went wrong, if anything did."""
        if why:
            self.status.failures.append(Failure(image="", reason=why))
        self.status.state, self.status.updated = state, now()


class BatchFiles:
    """What is written of batches: how far each is, below its own `out`, and in the state folder what it is."""

    def __init__(self, places: Places) -> None:
        """An empty state folder remembers nothing from one service to the next."""
        self._state, self._writing = places.state, AllowList(places.write)

    def write(self, batch: KeptBatch, begun: bool = False) -> None:
        """How far it is; of one that begins now also what it is. StorageError where that cannot be written."""
        status = batch.status
        place = self._writing.check(own_file(status.out))
        storage.write_json(place, status.model_dump(mode="json"), through_links=False)
        if begun and self._state and batch.request:
            facts = {"id": status.id, "wanted": batch.request.model_dump(mode="json"), "url": batch.url}
            facts["detector"] = status.detector.model_dump(mode="json")
            storage.write_json(storage.join(self._state, "batches", f"{status.id}.json"), facts)

    def written(self, batch: KeptBatch) -> bool:
        """Whether it could be written down; a batch outlives storage that is away."""
        try:
            self.write(batch)
        except RayadError:
            return False
        return True

    def read(self, status: Batch) -> Batch:
        """What its folder says; ValueError where that is none of a batch."""
        place = own_file(self._writing.check(status.out))
        return Batch.model_validate(storage.read_json(place, roots=self._writing.prefixes))

    def known(self) -> Iterator[KeptBatch]:
        """Batches of a service before this one."""
        folder = storage.join(self._state, "batches") if self._state else ""
        for file in storage.listing(folder) if folder and storage.exists(folder) else []:
            try:
                facts = storage.read_json(file)
                request = BatchRequest.model_validate(facts["wanted"])
                place = own_file(self._writing.check(request.out))
                status = Batch.model_validate(
                    storage.read_json(place, roots=self._writing.prefixes)
                    | {"detector": facts["detector"], "out": request.out, "asked": how_scored(request)}
                    | {"research_use_only": RESEARCH_USE}
                )  # of a folder that others write, no more than how far it is
                if status.id == facts["id"]:  # else another batch's results are there by now
                    yield KeptBatch(status, request, facts["url"], resumed=True)
            except (RayadError, KeyError, TypeError, ValueError) as error:
                LOG.warning("a batch is not taken up again: %s: %s", file, reason(error))

    def changed(self, batch: KeptBatch, images: Sequence[str]) -> set[str]:
        """The images that are others than when a service before this one began the batch; remembers what they are now.

        Of the web's nobody knows, and of none where storage is away.
        """
        if not self._state:
            return set()
        place = self._images(batch)
        try:
            versions = storage.versions(image for image in images if not image.startswith(("http://", "https://")))
            before = storage.read_json(place) if storage.exists(place) else {}
            storage.write_json(place, {storage.encodable(image): version for image, version in versions.items()})
        except RayadError:
            return set()
        return {
            image for image, version in versions.items() if before.get(storage.encodable(image), version) != version
        }

    def forget_images(self, batch: KeptBatch) -> None:
        """What the images of a batch that has ended were."""
        with suppress(RayadError):
            if self._state:
                storage.remove(self._images(batch))

    def _images(self, batch: KeptBatch) -> str:
        return storage.join(self._state, "images", f"{batch.status.id}.json")


def new(request: BatchRequest, detector: DetectorName, url: str) -> KeptBatch:
    """A batch that begins now.

    Args:
        url: of the detector's bundle.
    """
    began = now()
    status = Batch(
        id=uuid4().hex,
        state="running",
        detector=detector,
        out=request.out,
        asked=how_scored(request),
        began=began,
        updated=began,
    )
    return KeptBatch(status, request, url)


def how_scored(request: BatchRequest) -> HowScored:
    """What is told of what was asked."""
    return HowScored(**{name: getattr(request, name) for name in HowScored.model_fields})


def images_of(request: BatchRequest) -> list[tuple[str, str]]:
    """URLs and names of a batch's images; OptionError where they cannot be scored as it was begun."""
    # URLs of a list are not listed: only `fetch` may ask a web server
    images = named(files_below(request.prefix) if request.prefix else request.urls)
    if any(name == OWN for _, name in images):
        raise OptionError(f"an image's results cannot be called {OWN!r}, as the batch's own file is")
    nameless = [image for image, name in images if not name]
    if nameless:
        raise OptionError(f"{nameless[0]}: an image without a name")
    return images


def results_there(batch: Batch, images: Sequence[tuple[str, str]]) -> Iterator[Result]:
    """The results of images whose files are all there, though nobody wrote them down; their JSON is written last.

    Args:
        images: URLs, and the names of what is made of them.
    """
    if "json" not in batch.asked.results:
        return
    files: set[str] = set()
    with suppress(StorageError):  # it cannot be listed, so all are scored again
        files.update(storage.listing(batch.out, (".json",), roots=(batch.out,)))  # one request for all images
    for image, name in images:
        json_url = storage.join(batch.out, f"{name}.json")
        if json_url in files and (answer := _answer(json_url, batch)):
            yield answer.of(image, name)


def _answer(json_url: str, batch: Batch) -> Answer | None:
    """What a file says, if this batch wrote it."""
    try:
        # object stores know the time to the second, as `began` does
        if storage.modified(json_url) < datetime.fromisoformat(batch.began):
            return None
        answer = Answer.model_validate(storage.read_json(json_url, roots=(batch.out,)))
    except (RayadError, ValueError):
        return None
    return answer if answer.detector.sha256 == batch.detector.sha256 else None


def own_file(out: str) -> str:
    """The file that a batch keeps among its results."""
    return storage.join(out, f"{OWN}.json")


def require_own_folder(out: str, roots: Sequence[str]) -> None:
    """OptionError where the folder has what is no batch's, or a batch of another service."""
    require_own(out, "a batch")
    own_batch = storage.read_json(own_file(out), roots=roots) if storage.exists(own_file(out)) else {}
    if own_batch.get("state") == "running":
        raise OptionError(
            f"{out}: batch {own_batch.get('id')} of another service writes there; if that is gone, remove {OWN}.json"
        )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
