"""Mammograms that arrive at an archive are scored by a rayad server, and what it says goes back to the archive.

One process, without state of its own: what was scored is known by the objects that are there, whose UIDs follow from
the image and the detector (`rayad.serving.objects`). Lines that are printed hold SOP instance UIDs and nothing else of
a patient.
"""

import io
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from pydicom import Dataset

from rayad.errors import FormatError, ImageError, OptionError, ServiceError, StorageError
from rayad.heatmaps.answers import DetectorName
from rayad.imaging import dicomweb
from rayad.imaging.dicom import explained
from rayad.serving import objects
from rayad.serving.client import Client
from rayad.terminal import say

BACKOFF_S = (1.0, 60.0)
"""Wait after the first failure, and the longest; each failure doubles it."""
DEFERRED_S = (5.0, 600.0)
"""The same of an image: others come first meanwhile."""
PATIENCE_S = 120.0
"""How long a single pass is tried without any progress."""
REFUSED = (
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
"""The server's word that the image cannot be scored, so that asking again is of no use."""
CREDENTIALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
UNREACHED = 3
"""Attempts of a single pass at an archive and a server that have never answered: their addresses may be wrong."""
MODALITY = "MG"
DERIVED = (
    *("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.30"),  # segmentation, parametric map
    *(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in (11, 22, 33, 34, 50, 59)),  # reports, CAD, key objects
    *(f"1.2.840.10008.5.1.4.1.1.11.{n}" for n in range(1, 9)),  # presentation states
)
"""SOP classes that are about images, rayad's own among them; whatever modality they are filed under."""


@dataclass
class WatchCounts:
    """Images since the start."""

    stored: int = 0
    """Scored, and the objects stored."""
    present: int = 0
    """Whose objects were there already."""
    unscorable: int = 0
    """That the server refused, or that cannot be read."""
    failures: int = 0
    """Attempts that failed and are made again."""


def watch(
    pacs: str,
    server: str,
    *,
    token: str = "",
    detector: str = "",
    poll_s: float = 30.0,
    days: int = 0,
    once: bool = False,
) -> WatchCounts:
    """Score what arrives until KeyboardInterrupt; what fails is tried again, ever more rarely.

    An image that the server cannot score is not sent again while it stays as it is.

    Args:
        pacs: a DICOMweb server; see `rayad.imaging.dicomweb` for its credentials.
        server: of rayad, such as http://127.0.0.1:8000.
        token: the server's bearer token; "": it has none.
        detector: "": the server's default.
        poll_s: time between searches.
        days: only studies of so many days; 0: of any age.
        once: return when every image has its objects or cannot have them.

    Raises:
        OptionError: the server refuses the token, or has no such detector.
        StorageError: with `once`, archive or server never answered, or failed for PATIENCE_S without a single image
            being done.
    """
    scorer, memory = _Scorer(Client(server.rstrip("/"), token, attempts=1), detector), _Memory()
    attempt, progress, reason, reached = 0, time.monotonic(), "", False
    while True:
        done_before = memory.done
        try:
            waiting = _pass(pacs.rstrip("/"), scorer, memory, days)
            attempt, reached = 0, True
        except StorageError as error:
            memory.counts.failures += 1
            waiting, attempt, reason = True, attempt + 1, str(error)
            say(reason)
        if memory.done > done_before:
            attempt, progress, reached = min(attempt, 1), time.monotonic(), True
        if once and not reached and attempt >= UNREACHED:
            raise StorageError(reason)
        if once and not waiting:
            return memory.counts
        if once and time.monotonic() - progress > PATIENCE_S:
            raise StorageError(f"no image was done for {PATIENCE_S:g} s: {reason}")
        time.sleep(_backoff(attempt, BACKOFF_S) if attempt or once else poll_s)


@dataclass(frozen=True)
class _Scorer:
    """A rayad server; what fails is tried again by the loop, so it is asked once."""

    client: Client
    detector: str

    def algorithm(self) -> DetectorName:
        """The detector that scores now; a server that was started again may have another."""
        with self._explained():
            cards = self.client.detectors()
        names = [card.name for card in cards]
        name = self.detector or next(iter(names), "")
        if name not in names:
            raise OptionError(f"{self.client.url} has no detector {name!r}, only {', '.join(names) or 'none'}")
        return DetectorName(name=name, sha256=cards[names.index(name)].sha256)

    def score(self, data: bytes, detector: DetectorName) -> list[Dataset]:
        """The objects of an image.

        Raises:
            ImageError: it cannot be scored.
            StorageError: the server cannot be reached or answers anything else.
        """
        with self._explained():
            return self.client.objects(data, detector=detector.name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What the server's refusal means for the loop."""
        try:
            yield
        except ServiceError as problem:
            if problem.status in REFUSED:
                raise ImageError(problem.detail or problem.title) from problem
            if problem.status in CREDENTIALS:
                raise OptionError(f"{self.client.url} answers {problem.status}: it wants another token") from problem
            sentence = f"{problem.status}: {problem.detail or problem.title}"
            raise StorageError(f"{self.client.url} answers {sentence}") from problem
        except FormatError as error:
            raise StorageError(f"{self.client.url}: {error}") from error


@dataclass
class _Memory:
    """What this process has seen; all of it can be lost."""

    counts: WatchCounts = field(default_factory=WatchCounts)
    settled: dict[str, tuple[str, str]] = field(default_factory=dict)
    """SOP instance UID -> what the archive said of it and the detector, when there was nothing left to do."""
    deferred: dict[str, tuple[int, float]] = field(default_factory=dict)
    """SOP instance UID -> failures in a row, and when to try again."""

    @property
    def done(self) -> int:
        return self.counts.stored + self.counts.present + self.counts.unscorable

    def settle(self, image: dicomweb.Listed, detector: DetectorName) -> None:
        self.settled[image.instance] = image.said, detector.sha256
        self.deferred.pop(image.instance, None)

    def defer(self, image: dicomweb.Listed) -> None:
        failures = self.deferred.get(image.instance, (0, 0.0))[0] + 1
        self.deferred[image.instance] = failures, time.monotonic() + _backoff(failures, DEFERRED_S)

    def waits(self, image: dicomweb.Listed) -> bool:
        return time.monotonic() < self.deferred.get(image.instance, (0, 0.0))[1]


def _pass(pacs: str, scorer: _Scorer, memory: _Memory, days: int) -> bool:
    """Everything that is new; whether images wait for another attempt.

    Raises:
        StorageError: archive or server failed, perhaps at a single image, which then waits.
    """
    detector, waiting = scorer.algorithm(), False
    studies: dict[str, set[str]] = {}
    since = f"{datetime.now(UTC) - timedelta(days=days):%Y%m%d}" if days else ""
    for image in dicomweb.search(pacs, MODALITY, since):
        if image.sop_class in DERIVED or memory.settled.get(image.instance) == (image.said, detector.sha256):
            continue
        if memory.waits(image):
            waiting = True
            continue
        try:
            _one(pacs, image, detector, scorer, studies, memory.counts)
        except StorageError as error:
            memory.defer(image)
            raise StorageError(f"{image.instance}: {error}") from error
        memory.settle(image, detector)
    return waiting


def _one(
    pacs: str,
    image: dicomweb.Listed,
    detector: DetectorName,
    scorer: _Scorer,
    studies: dict[str, set[str]],
    counts: WatchCounts,
) -> None:
    """An image from the archive to the server and its objects back, those that are missing.

    Args:
        studies: what studies hold, as far as they were asked.
    """
    if image.study not in studies:
        studies[image.study] = dicomweb.in_study(pacs, image.study)
    stored_uids, uids = (
        studies[image.study],
        {kind: objects.uid(image.instance, detector.sha256, kind) for kind in objects.KINDS},
    )
    if uids["sr"] in stored_uids:
        counts.present += 1
        return
    began = time.monotonic()
    try:
        datasets = scorer.score(_fetched(image), detector)
    except ImageError as error:
        counts.unscorable += 1
        say(f"{image.instance}: not scored: {error}")
        return
    datasets_by_uid = {str(dataset.SOPInstanceUID): dataset for dataset in datasets}
    if uids["sr"] not in datasets_by_uid or not set(datasets_by_uid) <= set(uids.values()):
        raise StorageError(f"{scorer.client.url} answers with objects of another image or detector")
    report = datasets_by_uid.pop(uids["sr"])
    if missing := [dataset for uid, dataset in datasets_by_uid.items() if uid not in stored_uids]:
        dicomweb.store(pacs, missing)
    dicomweb.store(pacs, [report])
    counts.stored += 1
    kinds = [kind for kind, uid in uids.items() if uid in datasets_by_uid or kind == "sr"]
    say(f"{image.instance}: {', '.join(kinds)} stored in {time.monotonic() - began:.1f} s")


def _fetched(image: dicomweb.Listed) -> bytes:
    """The image's file; ImageError if it is damaged, or made by rayad itself."""
    with explained("in the archive"):
        source, buffer = dicomweb.instance(image.url), io.BytesIO()
        if source.get("Manufacturer") == objects.MANUFACTURER:
            raise ImageError("made by rayad itself")
        source.save_as(buffer)
    return buffer.getvalue()


def _backoff(failures: int, limits: tuple[float, float]) -> float:
    """Seconds to wait: doubled by each failure, capped, and drawn so that watchers do not come back all at once."""
    shortest, longest = limits
    return min(longest, shortest * 2 ** min(max(failures, 1) - 1, 30)) * random.uniform(0.5, 1)
